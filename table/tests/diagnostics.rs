//! One snapshot for each kind of mistake in a table's lines.

use std::sync::Arc;

use dm_table::{Diagnostic, Format, Source, parse};
use expect_test::{Expect, expect};

fn refused(name: &str, text: &str, format: Format) -> Diagnostic {
    let source = Arc::new(Source::new(name, text));
    parse(source, format).expect_err("this is a mistake")
}

fn check(text: &str, expect: Expect) {
    let refusal = refused("disk.table", text, Format::Auto);
    expect.assert_eq(&format!("{refusal}\n"));
}

#[test]
fn start_is_no_number() {
    check(
        "0 8 zero\n0x8 8 zero\n",
        expect![[r#"
            error: Invalid format on line 2 of table disk.table.
              --> disk.table:2:1
               |
             2 | 0x8 8 zero
               | ^^^ found "0x8"
               = expected: the line's first sector: <start> <length> <type> [<arguments>]
               = help: numbers are decimal: 0x8 is 8
        "#]],
    );
    check(
        "# disk\n\n  zero 8\n",
        expect![[r#"
        error: Invalid format on line 3 of table disk.table.
          --> disk.table:3:3
           |
         3 |   zero 8
           |   ^^^^ found "zero"
           = expected: the line's first sector: <start> <length> <type> [<arguments>]
           = help: the concise form begins with name,uuid,minor,flags,table
    "#]],
    );
}

#[test]
fn length_is_no_number() {
    check(
        "0 x64 zero\n",
        expect![[r#"
            error: Invalid format on line 1 of table disk.table.
              --> disk.table:1:3
               |
             1 | 0 x64 zero
               |   ^^^ found "x64"
               = expected: the line's length in sectors: <start> <length> <type> [<arguments>]
               = help: numbers are decimal: 0x64 is 100
        "#]],
    );
    check(
        "0\n",
        expect![[r#"
            error: Invalid format on line 1 of table disk.table.
              --> disk.table:1:2
               |
             1 | 0
               |  ^ found the end of the line
               = expected: the line's length in sectors: <start> <length> <type> [<arguments>]
        "#]],
    );
}

#[test]
fn type_is_missing() {
    check(
        "0 100",
        expect![[r#"
        error: Invalid format on line 1 of table disk.table.
          --> disk.table:1:6
           |
         1 | 0 100
           |      ^ found the end of the line
           = expected: the target's type: <start> <length> <type> [<arguments>]
    "#]],
    );
}

#[test]
fn stdin_is_named_as_dmsetup_names_it() {
    let refusal = refused("<stdin>", "0 100\n", Format::Plain);
    assert_eq!(refusal.reason(), "Invalid format on line 1 of table on stdin.");
    assert_eq!((refusal.file(), refusal.line(), refusal.column()), ("<stdin>", 1, 6));
}

#[test]
fn type_is_too_long() {
    check(
        "0 100 abcdefghijklmnop",
        expect![[r#"
            error: Target type name abcdefghijklmnop is too long.
              --> disk.table:1:7
               |
             1 | 0 100 abcdefghijklmnop
               |       ^^^^^^^^^^^^^^^^ found a type of 16 bytes
               = expected: a type of at most 15 bytes: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
        "#]],
    );
}

#[test]
fn text_mistakes_are_told_before_others() {
    check(
        "0 0 zero\n0 8\n",
        expect![[r#"
        error: Invalid format on line 2 of table disk.table.
          --> disk.table:2:4
           |
         2 | 0 8
           |    ^ found the end of the line
           = expected: the target's type: <start> <length> <type> [<arguments>]
    "#]],
    );
}

#[test]
fn zero_length() {
    check(
        "0 0 zero\n",
        expect![[r#"
        error: zero-length target
          --> disk.table:1:3
           |
         1 | 0 0 zero
           |   ^ found a length of 0 sectors
           = expected: a length of 1 sector or more
    "#]],
    );
    check(
        "0 0x64 zero\n",
        expect![[r#"
        error: zero-length target
          --> disk.table:1:3
           |
         1 | 0 0x64 zero
           |   ^ found a length of 0 sectors
           = expected: a length of 1 sector or more
           = help: numbers are decimal: 0x64 is read as 0 and the type x64
    "#]],
    );
}

#[test]
fn too_large() {
    check(
        "0 18014398509481984 zero\n",
        expect![[r#"
        error: too large device
          --> disk.table:1:1
           |
         1 | 0 18014398509481984 zero
           | ^^^^^^^^^^^^^^^^^^^ found a line of 18014398509481984 sectors from sector 0 on
           = expected: an end at or before sector 18014398509481983 (2^63 bytes)
    "#]],
    );
    check(
        "-1 100 zero\n",
        expect![[r#"
        error: too large device
          --> disk.table:1:1
           |
         1 | -1 100 zero
           | ^^^^^^ found a line of 100 sectors from sector 18446744073709551615 on
           = expected: an end at or before sector 18014398509481983 (2^63 bytes)
           = help: a number with a minus sign wraps around at 2^64
    "#]],
    );
}

#[test]
fn unknown_type() {
    check(
        "0 100 crypt aes-xts-plain64 - 0 /dev/vda 0\n",
        expect![[r#"
            error: crypt: unknown target type
              --> disk.table:1:7
               |
             1 | 0 100 crypt aes-xts-plain64 - 0 /dev/vda 0
               |       ^^^^^ found "crypt"
               = expected: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
        "#]],
    );
    check(
        "0 10G linear /dev/vda 0\n",
        expect![[r#"
            error: G: unknown target type
              --> disk.table:1:5
               |
             1 | 0 10G linear /dev/vda 0
               |     ^ found "G"
               = expected: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
               = help: 10G is read as the length 10 and the type G: numbers have no unit
        "#]],
    );
    check(
        "0 100 Linear /dev/vda 0\n",
        expect![[r#"
            error: Linear: unknown target type
              --> disk.table:1:7
               |
             1 | 0 100 Linear /dev/vda 0
               |       ^^^^^^ found "Linear"
               = expected: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
               = help: did you mean linear?
        "#]],
    );
    check(
        "0 100 zero,100 100 zero\n",
        expect![[r#"
            error: zero,100: unknown target type
              --> disk.table:1:7
               |
             1 | 0 100 zero,100 100 zero
               |       ^^^^^^^^ found "zero,100"
               = expected: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
               = help: a comma ends a line only in the concise form: name,uuid,minor,flags,table[,table]…
        "#]],
    );
}

#[test]
fn gap() {
    check(
        "0 2048 linear mbr.img 0\n4096 409600 linear /dev/sda1 0\n",
        expect![[r#"
        error: linear: Gap in table
          --> disk.table:2:1
           |
         2 | 4096 409600 linear /dev/sda1 0
           | ^^^^ found 4096
           = expected: 2048, where the line before ends
           = help: sectors that nothing lies on need a line of their own: 2048 2048 error
    "#]],
    );
    check(
        "0 2048 linear mbr.img 0\n1024 409600 linear /dev/sda1 0\n",
        expect![[r#"
        error: linear: Gap in table
          --> disk.table:2:1
           |
         2 | 1024 409600 linear /dev/sda1 0
           | ^^^^ found 1024
           = expected: 2048, where the line before ends
           = help: the lines overlap by 1024 sectors, or are not in order
    "#]],
    );
    check(
        "2048 8 zero\n",
        expect![[r#"
        error: zero: Gap in table
          --> disk.table:1:1
           |
         1 | 2048 8 zero
           | ^^^^ found 2048
           = expected: 0: the first line starts at sector 0
           = help: sectors that nothing lies on need a line of their own: 0 2048 error
    "#]],
    );
}

#[test]
fn linear() {
    check(
        "0 100 linear /dev/sda1\n",
        expect![[r#"
        error: linear: Invalid argument count
          --> disk.table:1:23
           |
         1 | 0 100 linear /dev/sda1
           |                       ^ found 1 argument
           = expected: <start> <length> linear <device> <start on the device>
    "#]],
    );
    check(
        "0 100 linear /dev/sda1 0 0 # comment\n",
        expect![[r#"
        error: linear: Invalid argument count
          --> disk.table:1:26
           |
         1 | 0 100 linear /dev/sda1 0 0 # comment
           |                          ^ found 3 arguments
           = expected: <start> <length> linear <device> <start on the device>
    "#]],
    );
    check(
        "0 100 linear # /dev/sda1 0\n",
        expect![[r#"
            error: linear: Invalid argument count
              --> disk.table:1:14
               |
             1 | 0 100 linear # /dev/sda1 0
               |              ^ found no arguments
               = expected: <start> <length> linear <device> <start on the device>
               = help: a # begins a comment, also within a word
        "#]],
    );
    check(
        "0 100 linear /dev/sda1 0x10\n",
        expect![[r#"
            error: linear: Invalid device sector
              --> disk.table:1:24
               |
             1 | 0 100 linear /dev/sda1 0x10
               |                        ^^^^ found "0x10"
               = expected: a decimal number of sectors, without sign, unit or 0x
               = help: 0x10 is 16 sectors of 512 bytes
        "#]],
    );
    check(
        "0 100 linear /dev/sda1 -1\n",
        expect![[r#"
        error: linear: Invalid device sector
          --> disk.table:1:24
           |
         1 | 0 100 linear /dev/sda1 -1
           |                        ^^ found "-1"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
}

#[test]
fn zero_and_error() {
    check(
        "0 100 zero foo bar\n",
        expect![[r#"
        error: zero: No arguments required
          --> disk.table:1:12
           |
         1 | 0 100 zero foo bar
           |            ^^^^^^^ found 2 arguments
           = expected: <start> <length> zero
    "#]],
    );
    check(
        "0 100 error /dev/sda1 1M\n",
        expect![[r#"
            error: error: Invalid device sector
              --> disk.table:1:23
               |
             1 | 0 100 error /dev/sda1 1M
               |                       ^^ found "1M"
               = expected: a decimal number of sectors, without sign, unit or 0x
               = help: 1M is 2048 sectors of 512 bytes
        "#]],
    );
}

#[test]
fn striped() {
    check(
        "0 128 striped 2\n",
        expect![[r#"
        error: striped: Not enough arguments
          --> disk.table:1:16
           |
         1 | 0 128 striped 2
           |                ^ found 1 argument
           = expected: <start> <length> striped <stripes> <sectors per chunk> <device> <start on the device> for each stripe
    "#]],
    );
    check(
        "0 128 striped 0 8\n",
        expect![[r#"
        error: striped: Invalid stripe count
          --> disk.table:1:15
           |
         1 | 0 128 striped 0 8
           |               ^ found "0"
           = expected: a decimal number from 1 to 4294967295
    "#]],
    );
    check(
        "0 128 striped 2 4294967296 a 0 b 0\n",
        expect![[r#"
        error: striped: Invalid chunk_size
          --> disk.table:1:17
           |
         1 | 0 128 striped 2 4294967296 a 0 b 0
           |                 ^^^^^^^^^^ found "4294967296"
           = expected: a decimal number from 1 to 4294967295
    "#]],
    );
    check(
        "0 129 striped 2 8 a 0 b 0\n",
        expect![[r#"
        error: striped: Target length not divisible by number of stripes
          --> disk.table:1:3
           |
         1 | 0 129 striped 2 8 a 0 b 0
           |   ^^^ found 129
           = expected: a multiple of 16 sectors: 2 stripes of 8 sectors to a chunk
           = help: the nearest lengths are 128 and 144
    "#]],
    );
    check(
        "0 8 striped 2 8 a 0 b 0\n",
        expect![[r#"
        error: striped: Target length not divisible by chunk size
          --> disk.table:1:3
           |
         1 | 0 8 striped 2 8 a 0 b 0
           |   ^ found 8
           = expected: a multiple of 16 sectors: 2 stripes of 8 sectors to a chunk
           = help: the nearest length is 16
    "#]],
    );
    check(
        "0 128 striped 2 8 a 0 b\n",
        expect![[r#"
        error: striped: Not enough destinations specified
          --> disk.table:1:24
           |
         1 | 0 128 striped 2 8 a 0 b
           |                        ^ found 5 arguments
           = expected: a device and a start sector for each of 2 stripes: 6 arguments in all
    "#]],
    );
    check(
        "0 128 striped 2 8 a 0 b 0 c 0\n",
        expect![[r#"
        error: striped: Not enough destinations specified
          --> disk.table:1:27
           |
         1 | 0 128 striped 2 8 a 0 b 0 c 0
           |                           ^^^ found 8 arguments
           = expected: a device and a start sector for each of 2 stripes: 6 arguments in all
    "#]],
    );
    check(
        "0 128 striped 2 8 a 0 b +8\n",
        expect![[r#"
        error: striped: Couldn't parse stripe destination
          --> disk.table:1:25
           |
         1 | 0 128 striped 2 8 a 0 b +8
           |                         ^^ found "+8"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
}
