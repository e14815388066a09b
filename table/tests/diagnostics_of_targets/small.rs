//! Those that choose a place or a block size.

use expect_test::expect;

use crate::check;

#[test]
fn unstriped() {
    check(
        "0 64 unstriped 2 8 1 /dev/vda",
        expect![[r#"
        error: unstriped: Invalid number of arguments
          --> disk.table:1:30
           |
         1 | 0 64 unstriped 2 8 1 /dev/vda
           |                              ^ found 4 arguments
           = expected: <start> <length> unstriped <stripes> <sectors per chunk> <stripe> <device> <start on the device>
    "#]],
    );
    check(
        "0 64 unstriped 0 8 1 /dev/vda 0",
        expect![[r#"
        error: unstriped: Invalid stripe count
          --> disk.table:1:16
           |
         1 | 0 64 unstriped 0 8 1 /dev/vda 0
           |                ^ found "0"
           = expected: a decimal number from 1 to 4294967295
    "#]],
    );
    check(
        "0 64 unstriped 2 8 x /dev/vda 0",
        expect![[r#"
        error: unstriped: Invalid stripe number
          --> disk.table:1:20
           |
         1 | 0 64 unstriped 2 8 x /dev/vda 0
           |                    ^ found "x"
           = expected: a stripe from 0 to 1
    "#]],
    );
    check(
        "0 64 unstriped 2 8 2 /dev/vda 0",
        expect![[r#"
        error: unstriped: Please provide stripe between [0, # of stripes]
          --> disk.table:1:20
           |
         1 | 0 64 unstriped 2 8 2 /dev/vda 0
           |                    ^ found "2"
           = expected: a stripe from 0 to 1
    "#]],
    );
    check(
        "0 64 unstriped 1 8 x /dev/vda 0",
        expect![[r#"
        error: unstriped: Invalid stripe number
          --> disk.table:1:20
           |
         1 | 0 64 unstriped 1 8 x /dev/vda 0
           |                    ^ found "x"
           = expected: a decimal number: how many chunks to skip
    "#]],
    );
    check(
        "0 63 unstriped 2 8 1 /dev/vda 0",
        expect![[r#"
        error: unstriped: Target length not divisible by chunk size
          --> disk.table:1:3
           |
         1 | 0 63 unstriped 2 8 1 /dev/vda 0
           |   ^^ found 63
           = expected: a multiple of 8 sectors, the size of a chunk
           = help: the nearest lengths are 56 and 64
    "#]],
    );
    check(
        "0 64 unstriped 2 8 1 /dev/vda -1",
        expect![[r#"
        error: unstriped: Invalid striped device offset
          --> disk.table:1:31
           |
         1 | 0 64 unstriped 2 8 1 /dev/vda -1
           |                               ^^ found "-1"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
}

#[test]
fn switch() {
    check(
        "0 64 switch",
        expect![[r#"
        error: switch: Invalid number of paths
          --> disk.table:1:12
           |
         1 | 0 64 switch
           |            ^ found the end of the line
           = expected: a decimal number from 1 to 262141
    "#]],
    );
    check(
        "0 64 switch 1 0 0 /dev/vda 0",
        expect![[r#"
        error: switch: Invalid region size
          --> disk.table:1:15
           |
         1 | 0 64 switch 1 0 0 /dev/vda 0
           |               ^ found "0"
           = expected: a decimal number from 1 to 4294967295
    "#]],
    );
    check(
        "0 64 switch 1 8 /dev/vda 0",
        expect![[r#"
        error: switch: Invalid number of optional args
          --> disk.table:1:17
           |
         1 | 0 64 switch 1 8 /dev/vda 0
           |                 ^^^^^^^^ found "/dev/vda"
           = expected: 0: there are none yet
    "#]],
    );
    check(
        "0 64 switch 2 8 0 /dev/vda 0",
        expect![[r#"
        error: switch: Incorrect number of path arguments
          --> disk.table:1:29
           |
         1 | 0 64 switch 2 8 0 /dev/vda 0
           |                             ^ found 5 arguments
           = expected: a device and a start sector for each of 2 paths: 7 arguments in all
    "#]],
    );
    check(
        "0 64 switch 1 8 0 /dev/vda 1k",
        expect![[r#"
        error: switch: Invalid device starting offset
          --> disk.table:1:28
           |
         1 | 0 64 switch 1 8 0 /dev/vda 1k
           |                            ^^ found "1k"
           = expected: a decimal number of sectors, without sign, unit or 0x
           = help: 1k is 2 sectors of 512 bytes
    "#]],
    );
    check(
        "0 64 switch 1 8 0 /dev/vda 18446744073709551616",
        expect![[r#"
        error: switch: Invalid device starting offset
          --> disk.table:1:28
           |
         1 | 0 64 switch 1 8 0 /dev/vda 18446744073709551616
           |                            ^^^^^^^^^^^^^^^^^^^^ found "18446744073709551616"
           = expected: at most 18446744073709551615
    "#]],
    );
}

#[test]
fn ebs() {
    check(
        "0 64 ebs /dev/vdb 0",
        expect![[r#"
        error: ebs: Invalid argument count
          --> disk.table:1:20
           |
         1 | 0 64 ebs /dev/vdb 0
           |                    ^ found 2 arguments
           = expected: <start> <length> ebs <device> <start on the device> <sectors per emulated block> [<sectors per underlying block>]
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 0 1 8 8",
        expect![[r#"
        error: ebs: Invalid argument count
          --> disk.table:1:25
           |
         1 | 0 64 ebs /dev/vdb 0 1 8 8
           |                         ^ found 5 arguments
           = expected: <start> <length> ebs <device> <start on the device> <sectors per emulated block> [<sectors per underlying block>]
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 64 1",
        expect![[r#"
        error: ebs: Invalid device offset sector
          --> disk.table:1:19
           |
         1 | 0 64 ebs /dev/vdb 64 1
           |                   ^^ found "64"
           = expected: a sector below 64, the line's length: so wants the kernel
           = help: to begin further in, put a linear device below
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 0 3",
        expect![[r#"
        error: ebs: Invalid emulated block size
          --> disk.table:1:21
           |
         1 | 0 64 ebs /dev/vdb 0 3
           |                     ^ found "3"
           = expected: a power of 2 from 1 to 8 sectors
           = help: the nearest are 2 and 4
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 0 16",
        expect![[r#"
        error: ebs: Invalid emulated block size
          --> disk.table:1:21
           |
         1 | 0 64 ebs /dev/vdb 0 16
           |                     ^^ found "16"
           = expected: a power of 2 from 1 to 8 sectors
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 0 1 0",
        expect![[r#"
        error: ebs: Invalid underlying block size
          --> disk.table:1:23
           |
         1 | 0 64 ebs /dev/vdb 0 1 0
           |                       ^ found "0"
           = expected: a power of 2 from 1 to 32768 sectors
    "#]],
    );
    check(
        "0 64 ebs /dev/vdb 4 1 8",
        expect![[r#"
        error: ebs: Device offset must be multiple of underlying block size
          --> disk.table:1:19
           |
         1 | 0 64 ebs /dev/vdb 4 1 8
           |                   ^ found "4"
           = expected: a multiple of 8 sectors
    "#]],
    );
}
