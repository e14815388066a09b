//! flakey and its features.

use expect_test::expect;

use crate::check;

#[test]
fn flakey() {
    check(
        "0 128 flakey /dev/vda 0 5",
        expect![[r#"
        error: flakey: Invalid argument count
          --> disk.table:1:26
           |
         1 | 0 128 flakey /dev/vda 0 5
           |                          ^ found 3 arguments
           = expected: <start> <length> flakey <device> <start on the device> <seconds up> <seconds down> [<number of feature arguments> <feature>…]
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5s 3",
        expect![[r#"
        error: flakey: Invalid up interval
          --> disk.table:1:25
           |
         1 | 0 128 flakey /dev/vda 0 5s 3
           |                         ^^ found "5s"
           = expected: a decimal number of seconds, without sign, unit or point
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 0 0",
        expect![[r#"
        error: flakey: Total (up + down) interval is zero
          --> disk.table:1:25
           |
         1 | 0 128 flakey /dev/vda 0 0 0
           |                         ^^^ found 0 and 0 seconds
           = expected: at least one second, up or down
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 4294967295 2",
        expect![[r#"
        error: flakey: Interval overflow
          --> disk.table:1:25
           |
         1 | 0 128 flakey /dev/vda 0 4294967295 2
           |                         ^^^^^^^^^^^^ found 4294967295 and 2 seconds
           = expected: at most 4294967295 seconds together
    "#]],
    );
}

#[test]
fn flakey_features() {
    check(
        "0 128 flakey /dev/vda 0 5 3 2 drop_writes",
        expect![[r#"
        error: flakey: Invalid number of feature args
          --> disk.table:1:29
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 drop_writes
           |                             ^ found "2"
           = expected: the number of feature arguments that follow: 1
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 drop_writes",
        expect![[r#"
        error: flakey: Invalid number of feature args
          --> disk.table:1:29
           |
         1 | 0 128 flakey /dev/vda 0 5 3 drop_writes
           |                             ^^^^^^^^^^^ found "drop_writes"
           = expected: the number of feature arguments that follow, from 0 to 11
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 1 whatever",
        expect![[r#"
        error: flakey: Unrecognised flakey feature requested
          --> disk.table:1:31
           |
         1 | 0 128 flakey /dev/vda 0 5 3 1 whatever
           |                               ^^^^^^^^ found "whatever"
           = expected: error_reads, drop_writes, error_writes, corrupt_bio_byte <nth byte> <r or w> <value> <flags>, random_read_corrupt <chance> or random_write_corrupt <chance>
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 2 error_reads ERROR_READS",
        expect![[r#"
        error: flakey: Feature error_reads duplicated
          --> disk.table:1:43
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 error_reads ERROR_READS
           |                                           ^^^^^^^^^^^ found "ERROR_READS"
           = expected: each feature once
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 2 drop_writes error_writes",
        expect![[r#"
        error: flakey: Feature error_writes conflicts with feature drop_writes
          --> disk.table:1:43
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 drop_writes error_writes
           |                                           ^^^^^^^^^^^^ found "error_writes"
           = expected: writes that are dropped, or writes that fail
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 2 corrupt_bio_byte 1 r 1 0",
        expect![[r#"
        error: flakey: Insufficient feature arguments
          --> disk.table:1:29
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 corrupt_bio_byte 1 r 1 0
           |                             ^ found "2"
           = expected: the number of all words that follow: a feature's parameters count too
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 1 corrupt_bio_byte",
        expect![[r#"
        error: flakey: Feature corrupt_bio_byte requires parameters
          --> disk.table:1:31
           |
         1 | 0 128 flakey /dev/vda 0 5 3 1 corrupt_bio_byte
           |                               ^^^^^^^^^^^^^^^^ found "corrupt_bio_byte"
           = expected: corrupt_bio_byte <nth byte> <r or w> <value> <flags>, 5 of the counted arguments
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 2 corrupt_bio_byte 1",
        expect![[r#"
        error: flakey: Invalid corrupt bio direction (r or w)
          --> disk.table:1:49
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 corrupt_bio_byte 1
           |                                                 ^ found the end of the line
           = expected: r or w
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 0 w 0 32",
        expect![[r#"
        error: flakey: Invalid corrupt bio byte
          --> disk.table:1:48
           |
         1 | 0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 0 w 0 32
           |                                                ^ found "0"
           = expected: a decimal number from 1 to 4294967295
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 1 x 0 32",
        expect![[r#"
        error: flakey: Invalid corrupt bio direction (r or w)
          --> disk.table:1:50
           |
         1 | 0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 1 x 0 32
           |                                                  ^ found "x"
           = expected: r or w
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 1 r 256 32",
        expect![[r#"
        error: flakey: Invalid corrupt value to write into bio byte (0-255)
          --> disk.table:1:52
           |
         1 | 0 128 flakey /dev/vda 0 5 3 5 corrupt_bio_byte 1 r 256 32
           |                                                    ^^^ found "256"
           = expected: a decimal number from 0 to 255
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 6 drop_writes corrupt_bio_byte 1 w 1 0",
        expect![[r#"
        error: flakey: drop_writes is incompatible with corrupt_bio_byte with the WRITE flag set
          --> disk.table:1:43
           |
         1 | 0 128 flakey /dev/vda 0 5 3 6 drop_writes corrupt_bio_byte 1 w 1 0
           |                                           ^^^^^^^^^^^^^^^^ found "corrupt_bio_byte"
           = expected: a corruption of reads, or writes that reach the device
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 1 random_read_corrupt",
        expect![[r#"
        error: flakey: Feature random_read_corrupt requires a parameter
          --> disk.table:1:31
           |
         1 | 0 128 flakey /dev/vda 0 5 3 1 random_read_corrupt
           |                               ^^^^^^^^^^^^^^^^^^^ found "random_read_corrupt"
           = expected: random_read_corrupt <parts of 1000000000>, 2 of the counted arguments
    "#]],
    );
    check(
        "0 128 flakey /dev/vda 0 5 3 2 random_write_corrupt 1000000001",
        expect![[r#"
        error: flakey: Invalid random corrupt argument
          --> disk.table:1:52
           |
         1 | 0 128 flakey /dev/vda 0 5 3 2 random_write_corrupt 1000000001
           |                                                    ^^^^^^^^^^ found "1000000001"
           = expected: a decimal number from 0 to 1000000000
    "#]],
    );
}
