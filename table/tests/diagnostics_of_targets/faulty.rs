//! Those that make a disk slow or bad.

use expect_test::expect;

use crate::check;

#[test]
fn delay() {
    check(
        "0 128 delay /dev/vda 0",
        expect![[r#"
        error: delay: Requires exactly 3, 6 or 9 arguments
          --> disk.table:1:23
           |
         1 | 0 128 delay /dev/vda 0
           |                       ^ found 2 arguments
           = expected: <start> <length> delay <device> <start on the device> <milliseconds>, once for all, twice for reads and writes, or for reads, writes and flushes
    "#]],
    );
    check(
        "0 128 delay /dev/vda 0 100 1",
        expect![[r#"
        error: delay: Requires exactly 3, 6 or 9 arguments
          --> disk.table:1:28
           |
         1 | 0 128 delay /dev/vda 0 100 1
           |                            ^ found 4 arguments
           = expected: <start> <length> delay <device> <start on the device> <milliseconds>, once for all, twice for reads and writes, or for reads, writes and flushes
    "#]],
    );
    check(
        "0 128 delay a 0 1 b 0 1 c 0 1 d",
        expect![[r#"
        error: delay: Requires exactly 3, 6 or 9 arguments
          --> disk.table:1:31
           |
         1 | 0 128 delay a 0 1 b 0 1 c 0 1 d
           |                               ^ found 10 arguments
           = expected: <start> <length> delay <device> <start on the device> <milliseconds>, once for all, twice for reads and writes, or for reads, writes and flushes
    "#]],
    );
    check(
        "0 128 delay /dev/nope 1M y",
        expect![[r#"
        error: delay: Invalid device sector
          --> disk.table:1:23
           |
         1 | 0 128 delay /dev/nope 1M y
           |                       ^^ found "1M"
           = expected: a decimal number of sectors, without sign, unit or 0x
           = help: 1M is 2048 sectors of 512 bytes
    "#]],
    );
    check(
        "0 128 delay /dev/vda 0 100 /dev/sda 8 1.5",
        expect![[r#"
        error: delay: Invalid delay
          --> disk.table:1:39
           |
         1 | 0 128 delay /dev/vda 0 100 /dev/sda 8 1.5
           |                                       ^^^ found "1.5"
           = expected: a decimal number of milliseconds, without sign, unit or point
    "#]],
    );
}

#[test]
fn dust() {
    check(
        "0 64 dust /dev/vda 0",
        expect![[r#"
        error: dust: Invalid argument count
          --> disk.table:1:21
           |
         1 | 0 64 dust /dev/vda 0
           |                     ^ found 2 arguments
           = expected: <start> <length> dust <device> <start on the device> <block size in bytes>
    "#]],
    );
    check(
        "0 64 dust /dev/vda 0 4K",
        expect![[r#"
        error: dust: Invalid block size parameter
          --> disk.table:1:22
           |
         1 | 0 64 dust /dev/vda 0 4K
           |                      ^^ found "4K"
           = expected: a power of 2 from 512 to 32768 bytes
           = help: 4K is 4096 bytes
    "#]],
    );
    check(
        "0 64 dust /dev/vda 0 256",
        expect![[r#"
        error: dust: Block size must be at least 512
          --> disk.table:1:22
           |
         1 | 0 64 dust /dev/vda 0 256
           |                      ^^^ found "256"
           = expected: a power of 2 from 512 to 32768 bytes
    "#]],
    );
    check(
        "0 64 dust /dev/vda 0 768",
        expect![[r#"
        error: dust: Block size must be a power of 2
          --> disk.table:1:22
           |
         1 | 0 64 dust /dev/vda 0 768
           |                      ^^^ found "768"
           = expected: a power of 2 from 512 to 32768 bytes
           = help: the nearest are 512 and 1024
    "#]],
    );
    check(
        "0 64 dust /dev/vda 0 65536",
        expect![[r#"
        error: dust: Block size is too large
          --> disk.table:1:22
           |
         1 | 0 64 dust /dev/vda 0 65536
           |                      ^^^^^ found "65536"
           = expected: a power of 2 from 512 to 32768 bytes
    "#]],
    );
    check(
        "0 64 dust /dev/vda x 512",
        expect![[r#"
        error: dust: Invalid device offset sector
          --> disk.table:1:20
           |
         1 | 0 64 dust /dev/vda x 512
           |                    ^ found "x"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
}
