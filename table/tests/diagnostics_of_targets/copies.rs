//! Those that keep data a second time.

use expect_test::expect;

use crate::check;

#[test]
fn log_writes() {
    check(
        "0 128 log-writes /dev/vda",
        expect![[r#"
        error: log-writes: Invalid argument count
          --> disk.table:1:26
           |
         1 | 0 128 log-writes /dev/vda
           |                          ^ found 1 argument
           = expected: <start> <length> log-writes <device> <device for the log>
    "#]],
    );
}

#[test]
fn snapshot() {
    check(
        "0 128 snapshot /dev/vda /dev/sda P",
        expect![[r#"
        error: snapshot: requires 4 or more arguments
          --> disk.table:1:35
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P
           |                                   ^ found 3 arguments
           = expected: <start> <length> snapshot <origin> <cow device> <P, PO or N> <sectors per chunk> [<number of feature arguments> <feature>…]
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda X 8",
        expect![[r#"
        error: snapshot: Couldn't create exception store
          --> disk.table:1:34
           |
         1 | 0 128 snapshot /dev/vda /dev/sda X 8
           |                                  ^ found "X"
           = expected: P for a store that is kept, PO for one that may be full, or N for one that is not kept
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda PX 8",
        expect![[r#"
        error: snapshot: Couldn't create exception store
          --> disk.table:1:34
           |
         1 | 0 128 snapshot /dev/vda /dev/sda PX 8
           |                                  ^^ found "PX"
           = expected: P for a store that is kept, or PO for one that may be full
           = help: the kernel log says: Unsupported persistent store option: X
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 24",
        expect![[r#"
        error: snapshot: Couldn't create exception store
          --> disk.table:1:36
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 24
           |                                    ^^ found "24"
           = expected: a power of 2 of at most 2097152 sectors, or with P 0 for what the store has
           = help: the nearest are 16 and 32
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 4K",
        expect![[r#"
        error: snapshot: Couldn't create exception store
          --> disk.table:1:36
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 4K
           |                                    ^^ found "4K"
           = expected: a power of 2 of at most 2097152 sectors, or with P 0 for what the store has
           = help: 4K is 8 sectors of 512 bytes
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 4194304",
        expect![[r#"
        error: snapshot: Couldn't create exception store
          --> disk.table:1:36
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 4194304
           |                                    ^^^^^^^ found "4194304"
           = expected: a power of 2 of at most 2097152 sectors, or with P 0 for what the store has
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda N 0",
        expect![[r#"
        error: snapshot: Chunk size not set
          --> disk.table:1:36
           |
         1 | 0 128 snapshot /dev/vda /dev/sda N 0
           |                                    ^ found "0"
           = expected: a power of 2: there is no store on the device that could say it
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 8 3 a b c",
        expect![[r#"
        error: snapshot: Invalid number of feature arguments
          --> disk.table:1:38
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 8 3 a b c
           |                                      ^ found "3"
           = expected: the number of feature arguments that follow, from 0 to 2
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 8 1",
        expect![[r#"
        error: snapshot: Invalid number of feature arguments
          --> disk.table:1:38
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 8 1
           |                                      ^ found "1"
           = expected: the number of feature arguments that follow: 0
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 8 1 discard",
        expect![[r#"
        error: snapshot: Unrecognised feature requested
          --> disk.table:1:40
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 8 1 discard
           |                                        ^^^^^^^ found "discard"
           = expected: discard_zeroes_cow, or discard_zeroes_cow and discard_passdown_origin
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 8 1 discard_passdown_origin",
        expect![[r#"
        error: snapshot: discard_passdown_origin feature depends on discard_zeroes_cow
          --> disk.table:1:40
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 8 1 discard_passdown_origin
           |                                        ^^^^^^^^^^^^^^^^^^^^^^^ found "discard_passdown_origin"
           = expected: discard_zeroes_cow beside it
    "#]],
    );
    check(
        "0 128 snapshot /dev/vda /dev/sda P 8 2 discard_passdown_origin junk",
        expect![[r#"
        error: snapshot: discard_passdown_origin feature depends on discard_zeroes_cow
          --> disk.table:1:40
           |
         1 | 0 128 snapshot /dev/vda /dev/sda P 8 2 discard_passdown_origin junk
           |                                        ^^^^^^^^^^^^^^^^^^^^^^^ found "discard_passdown_origin"
           = expected: discard_zeroes_cow beside it
    "#]],
    );
    check(
        "0 128 snapshot-merge /dev/vda /dev/sda N 8",
        expect![[r#"
        error: snapshot-merge: Snapshot exception store does not support snapshot-merge.
          --> disk.table:1:40
           |
         1 | 0 128 snapshot-merge /dev/vda /dev/sda N 8
           |                                        ^ found "N"
           = expected: P or PO: what is not kept on the device cannot be merged
    "#]],
    );
    check(
        "0 128 snapshot-origin",
        expect![[r#"
        error: snapshot-origin: origin: incorrect number of arguments
          --> disk.table:1:22
           |
         1 | 0 128 snapshot-origin
           |                      ^ found no arguments
           = expected: <start> <length> snapshot-origin <device>
    "#]],
    );
    check(
        "0 128 snapshot-origin /dev/vda 0",
        expect![[r#"
        error: snapshot-origin: origin: incorrect number of arguments
          --> disk.table:1:32
           |
         1 | 0 128 snapshot-origin /dev/vda 0
           |                                ^ found 2 arguments
           = expected: <start> <length> snapshot-origin <device>
    "#]],
    );
}

#[test]
fn mirror() {
    check(
        "0 128 mirror core",
        expect![[r#"
        error: mirror: Insufficient mirror log arguments
          --> disk.table:1:18
           |
         1 | 0 128 mirror core
           |                  ^ found 1 argument
           = expected: <start> <length> mirror <core or disk> <number of log arguments> [<log device>] <sectors per region> [<sync or nosync>] <legs> <device> <start on the device> for each leg [<number of features> <feature>…]
    "#]],
    );
    check(
        "0 128 mirror core x 16 2 a 0 b 0",
        expect![[r#"
        error: mirror: Invalid mirror log argument count
          --> disk.table:1:19
           |
         1 | 0 128 mirror core x 16 2 a 0 b 0
           |                   ^ found "x"
           = expected: the number of log arguments that follow
    "#]],
    );
    check(
        "0 128 mirror core 9 16 2 a 0",
        expect![[r#"
        error: mirror: Insufficient mirror log arguments
          --> disk.table:1:29
           |
         1 | 0 128 mirror core 9 16 2 a 0
           |                             ^ found 6 arguments
           = expected: 9 log arguments, as the number says
    "#]],
    );
    check(
        "0 128 mirror userspace 1 16 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:14
           |
         1 | 0 128 mirror userspace 1 16 2 a 0 b 0
           |              ^^^^^^^^^ found "userspace"
           = expected: core for a log in memory, or disk for one on a device
           = help: the kernel log says: dirty region log: Module for logging type "userspace" not found.
    "#]],
    );
    check(
        "0 128 mirror core 3 16 sync 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:19
           |
         1 | 0 128 mirror core 3 16 sync 2 a 0 b 0
           |                   ^ found "3"
           = expected: 1 or 2: the region size, and sync or nosync
           = help: the kernel log says: dirty region log: wrong number of arguments to dirty region log
    "#]],
    );
    check(
        "0 128 mirror disk 1 16 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:19
           |
         1 | 0 128 mirror disk 1 16 2 a 0 b 0
           |                   ^ found "1"
           = expected: 2 or 3: the log device, the region size, and sync or nosync
           = help: the kernel log says: dirty region log: wrong number of arguments to disk mirror log
    "#]],
    );
    check(
        "0 128 mirror core 2 16 snyc 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:24
           |
         1 | 0 128 mirror core 2 16 snyc 2 a 0 b 0
           |                        ^^^^ found "snyc"
           = expected: sync or nosync
           = help: the kernel log says: dirty region log: unrecognised sync argument to dirty region log: snyc
    "#]],
    );
    check(
        "0 128 mirror core 1 24 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:21
           |
         1 | 0 128 mirror core 1 24 2 a 0 b 0
           |                     ^^ found "24"
           = expected: a power of 2 from 2 to 128, the line's length
           = help: the nearest are 16 and 32
           = help: the kernel log says: dirty region log: invalid region size 24
    "#]],
    );
    check(
        "0 128 mirror disk 2 /dev/vdb 256 2 a 0 b 0",
        expect![[r#"
        error: mirror: Error creating mirror dirty log
          --> disk.table:1:30
           |
         1 | 0 128 mirror disk 2 /dev/vdb 256 2 a 0 b 0
           |                              ^^^ found "256"
           = expected: a power of 2 from 2 to 128, the line's length
           = help: the kernel log says: dirty region log: invalid region size 256
    "#]],
    );
    check(
        "0 128 mirror core 1 16",
        expect![[r#"
        error: mirror: Invalid number of mirrors
          --> disk.table:1:23
           |
         1 | 0 128 mirror core 1 16
           |                       ^ found the end of the line
           = expected: the number of legs, from 2 to 9
    "#]],
    );
    check(
        "0 128 mirror core 1 16 1 a 0",
        expect![[r#"
        error: mirror: Invalid number of mirrors
          --> disk.table:1:24
           |
         1 | 0 128 mirror core 1 16 1 a 0
           |                        ^ found "1"
           = expected: the number of legs, from 2 to 9
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0",
        expect![[r#"
        error: mirror: Too few mirror arguments
          --> disk.table:1:29
           |
         1 | 0 128 mirror core 1 16 2 a 0
           |                             ^ found 6 arguments
           = expected: a device and a start sector for each of 2 legs
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b x",
        expect![[r#"
        error: mirror: Invalid offset
          --> disk.table:1:32
           |
         1 | 0 128 mirror core 1 16 2 a 0 b x
           |                                ^ found "x"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b 0 handle_errors",
        expect![[r#"
        error: mirror: Invalid number of features
          --> disk.table:1:34
           |
         1 | 0 128 mirror core 1 16 2 a 0 b 0 handle_errors
           |                                  ^^^^^^^^^^^^^ found "handle_errors"
           = expected: the number of features that follow
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b 0 2 handle_errors",
        expect![[r#"
        error: mirror: Not enough arguments to support feature count
          --> disk.table:1:34
           |
         1 | 0 128 mirror core 1 16 2 a 0 b 0 2 handle_errors
           |                                  ^ found "2"
           = expected: the number of features that follow: 1
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b 0 1 handle",
        expect![[r#"
        error: mirror: Unrecognised feature requested
          --> disk.table:1:36
           |
         1 | 0 128 mirror core 1 16 2 a 0 b 0 1 handle
           |                                    ^^^^^^ found "handle"
           = expected: handle_errors, or handle_errors and keep_log
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b 0 1 keep_log",
        expect![[r#"
        error: mirror: keep_log feature requires the handle_errors feature
          --> disk.table:1:36
           |
         1 | 0 128 mirror core 1 16 2 a 0 b 0 1 keep_log
           |                                    ^^^^^^^^ found "keep_log"
           = expected: handle_errors beside it
    "#]],
    );
    check(
        "0 128 mirror core 1 16 2 a 0 b 0 0 junk",
        expect![[r#"
        error: mirror: Too many mirror arguments
          --> disk.table:1:36
           |
         1 | 0 128 mirror core 1 16 2 a 0 b 0 0 junk
           |                                    ^^^^ found 10 arguments
           = expected: the end of the line, or the number of features and the features
    "#]],
    );
}
