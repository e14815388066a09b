//! One snapshot for each kind of mistake in a file as a whole: its form, names, loops; and how places are shown.

use std::sync::Arc;

use dm_table::{Diagnostic, Format, Source, Span, parse};
use expect_test::{Expect, expect};

fn refused(name: &str, text: &str, format: Format) -> Diagnostic {
    let source = Arc::new(Source::new(name, text));
    parse(source, format).and_then(|file| file.load_order().map(|_| ())).expect_err("this is a mistake")
}

fn check(text: &str, expect: Expect) {
    let refusal = refused("disk.table", text, Format::Auto);
    expect.assert_eq(&format!("{refusal}\n"));
}

fn check_concise(text: &str, expect: Expect) {
    let refusal = refused("disks.concise", text, Format::Concise);
    expect.assert_eq(&format!("{refusal}\n"));
}

#[test]
fn names_in_front_of_some_lines() {
    check(
        "a: 0 8 zero\nb: 0 8 zero\n8 8 zero\n",
        expect![[r#"
            error: Invalid format on line 3 of table disk.table.
              --> disk.table:3:1
               |
             3 | 8 8 zero
               | ^^^^^^^^ found no device's name
               = expected: NAME: <start> <length> <type> [<arguments>]
               = help: either every line has a device's name in front, as `dmsetup table` prints them, or none has
        "#]],
    );
    check(
        "0 8 zero\nb: 0 8 zero\n",
        expect![[r#"
            error: Invalid format on line 2 of table disk.table.
              --> disk.table:2:1
               |
             2 | b: 0 8 zero
               | ^^ found "b:"
               = expected: the line's first sector: <start> <length> <type> [<arguments>]
               = help: either every line has a device's name in front, as `dmsetup table` prints them, or none has
        "#]],
    );
}

#[test]
fn neither_form() {
    check(
        "linear,/dev/sda1,0\n",
        expect![[r#"
        error: Five comma-separated fields are required for each device
          --> disk.table:1:1
           |
         1 | linear,/dev/sda1,0
           | ^^^^^^^^^^^^^^^^^^ found 3 fields: name "linear", uuid "/dev/sda1", minor "0\n"
           = expected: name,uuid,minor,flags,table[,table]…[;name,…], of which uuid, minor and flags may be empty
           = help: taken for the concise form, as it begins with a field and a comma; the lines of a plain table are <start> <length> <type> [<arguments>]
    "#]],
    );
    check(
        "disk one\n",
        expect![[r#"
        error: Invalid format on line 1 of table disk.table.
          --> disk.table:1:1
           |
         1 | disk one
           | ^^^^ found "disk"
           = expected: the line's first sector: <start> <length> <type> [<arguments>]
           = help: the concise form begins with name,uuid,minor,flags,table
    "#]],
    );
    check(
        "\u{feff}0 8 zero\n",
        expect![[r#"
            error: Invalid format on line 1 of table disk.table.
              --> disk.table:1:1
               |
             1 | \u{feff}0 8 zero
               | ^^^^^^^^^ found "\u{feff}0"
               = expected: the line's first sector: <start> <length> <type> [<arguments>]
               = help: the file begins with a byte order mark: save it without one
        "#]],
    );
    check(
        "0 8 zero\n\u{7f}ELF\u{2}\u{1}\0\0",
        expect![[r#"
        error: Invalid format on line 2 of table disk.table.
          --> disk.table:2:7
           |
         2 | \u{7f}ELF\u{2}\u{1}\0\0
           |                    ^^ found a zero byte
           = expected: text
           = help: a disk image is not a table: name it in a table's line
    "#]],
    );
}

#[test]
fn concise_fields() {
    check_concise(
        "root,,,0 8 zero;",
        expect![[r#"
        error: Five comma-separated fields are required for each device
          --> disks.concise:1:1
           |
         1 | root,,,0 8 zero;
           | ^^^^^^^^^^^^^^^ found 4 fields: name "root", uuid "", minor "", flags "0 8 zero"
           = expected: name,uuid,minor,flags,table[,table]…[;name,…], of which uuid, minor and flags may be empty
    "#]],
    );
    check_concise(
        "root,,,,",
        expect![[r#"
        error: Incomplete entry: five comma-separated fields are required for each device
          --> disks.concise:1:1
           |
         1 | root,,,,
           | ^^^^^^^^ found 5 fields: name "root", uuid "", minor "", flags "", table ""
           = expected: name,uuid,minor,flags,table[,table]…[;name,…], of which uuid, minor and flags may be empty
           = help: nothing may end with a comma or with an escaped character: put a `;` behind it
    "#]],
    );
    check_concise(
        "root,,,,0 8 zero\\",
        expect![[r#"
        error: Backslash must be followed by another character at end of string.
          --> disks.concise:1:17
           |
         1 | root,,,,0 8 zero\
           |                 ^ found a backslash at the end
           = expected: `\,` `\;` or `\\` for a comma, semicolon or backslash within a field
    "#]],
    );
    check_concise(
        "root,,,xx,0 8 zero",
        expect![[r#"
            error: Invalid flags parameter 'xx' must be 'ro' or 'rw' or empty.
              --> disks.concise:1:8
               |
             1 | root,,,xx,0 8 zero
               |        ^^ found "xx"
               = expected: ro, rw or nothing, without a blank behind it
        "#]],
    );
    check_concise(
        "root,,ro,,0 8 zero",
        expect![[r#"
        error: Invalid minor parameter 'ro' must be a number or empty.
          --> disks.concise:1:7
           |
         1 | root,,ro,,0 8 zero
           |       ^^ found "ro"
           = expected: a decimal number up to 1048575, or nothing
           = help: the fields are name,uuid,minor,flags,table[,table]…[;name,…], of which uuid, minor and flags may be empty
    "#]],
    );
}

#[test]
fn concise_names() {
    check_concise(
        "a/b,,,,0 8 zero",
        expect![[r#"
        error: Name "a/b" invalid. It contains "/".
          --> disks.concise:1:1
           |
         1 | a/b,,,,0 8 zero
           | ^^^ found "a/b"
           = expected: a name, not a path: the device is found as /dev/mapper/NAME
    "#]],
    );
    check_concise(
        ",,,,0 8 zero",
        expect![[r#"
        error: name not supplied when creating device
          --> disks.concise:1:1
           |
         1 | ,,,,0 8 zero
           | ^ found an empty name
           = expected: name,uuid,minor,flags,table
    "#]],
    );
    check_concise(
        "..,,,,0 8 zero",
        expect![[r#"
        error: device name cannot be "control", ".", or ".."
          --> disks.concise:1:1
           |
         1 | ..,,,,0 8 zero
           | ^^ found ".."
    "#]],
    );
    check_concise(
        "# disks\nroot,,,,0 8 zero",
        expect![[r##"
        error: Name "# disks\nroot" invalid. It contains a control character.
          --> disks.concise:1:1
           |
         1 | # disks
           | ^^^^^^^ found "# disks\nroot"
           = help: the concise form has no comments except inside of tables
    "##]],
    );
    check_concise(
        &format!("{},,,,0 8 zero", "n".repeat(128)),
        expect![[r#"
        error: Name "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" too long.
          --> disks.concise:1:1
           |
         1 | nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…
           | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ found a name of 128 bytes
           = expected: a name of at most 127 bytes
    "#]],
    );
    check_concise(
        &format!("{},,,,0 8 zero", " ".repeat(40)),
        expect![[r#"
        error: Mangled form of the name too long for "                                        ".
          --> disks.concise:1:1
           |
         1 |                                         ,,,,0 8 zero
           | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ found 160 bytes: \x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20
           = expected: a name of at most 127 bytes
    "#]],
    );
    check_concise(
        r"a b\\x20c,,,,0 8 zero",
        expect![[r#"
            error: The name "a b\x20c" contains mixed mangled and unmangled characters or it's already mangled improperly.
              --> disks.concise:1:1
               |
             1 | a b\\x20c,,,,0 8 zero
               | ^^^^^^^^^ found "a b\x20c"
               = help: a part \xNN stands for one byte; then every byte other than 0-9A-Za-z#+-.:=@_ must be written so
        "#]],
    );
    check_concise(
        "a,,,,0 8 zero;\n  a,,,,0 8 zero",
        expect![[r#"
        error: create ioctl on a  failed: Device or resource busy
          --> disks.concise:2:3
           |
         2 |   a,,,,0 8 zero
           |   ^ found the name "a" for a second time
           = expected: a name that no other device of the file has
           = help: the first is at line 1, column 1
    "#]],
    );
    check_concise(
        "a,U-1,,,0 8 zero;b,U-1,,,0 8 zero",
        expect![[r#"
        error: create ioctl on b U-1 failed: Device or resource busy
          --> disks.concise:1:20
           |
         1 | a,U-1,,,0 8 zero;b,U-1,,,0 8 zero
           |                    ^^^ found the uuid "U-1" for a second time
           = expected: a uuid that no other device of the file has
           = help: the first is at line 1, column 3
    "#]],
    );
    check_concise(
        &format!("a,{},,,0 8 zero", "u".repeat(129)),
        expect![[r#"
        error: Mangled form of the UUID too long for "uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu".
          --> disks.concise:1:3
           |
         1 | a,uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu…
           |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ found a uuid of 129 bytes
           = expected: a uuid of at most 128 bytes
    "#]],
    );
}

#[test]
fn concise_tables() {
    check_concise(
        "a,,,,0 8 zero;\nb,,,,0 8 zero,\n\t8 8 linear c\\,d;",
        expect![[r#"
        error: linear: Invalid argument count
          --> disks.concise:3:17
           |
         3 |     8 8 linear c\,d;
           |                    ^ found 1 argument
           = expected: <start> <length> linear <device> <start on the device>
    "#]],
    );
    check_concise(
        r"a,,,,0 8 linear \x\,y\;z 0x0",
        expect![[r#"
            error: linear: Invalid device sector
              --> disks.concise:1:26
               |
             1 | a,,,,0 8 linear \x\,y\;z 0x0
               |                          ^^^ found "0x0"
               = expected: a decimal number of sectors, without sign, unit or 0x
               = help: 0x0 is 0 sectors of 512 bytes
        "#]],
    );
}

#[test]
fn all_lines_are_read_before_one_is_checked() {
    // As dmsetup does, for a table in the concise form, for all devices where each line has a name in front; and of what the
    // kernel refuses the first counts.
    for (text, at, reason) in [
        ("0 8 nosuch\n8 0 zero\nx\n", 3, "Invalid format on line 3 of table disk.table."),
        ("0 8 nosuch\n8 0 zero\n", 1, "nosuch: unknown target type"),
        ("a: 0 8 nosuch\nb: 0 x zero\n", 2, "Invalid format on line 2 of table disk.table."),
        ("a: 0 8 zero\nb: 0 8 nosuch\na: 8 0 zero\n", 3, "zero-length target"),
        ("a,,,,0 8 nosuch,8 0 zero,x", 1, "Invalid format on line 3 of table ."),
        ("a,,,,0 8 nosuch;b,,,,0 x zero", 1, "nosuch: unknown target type"),
        // Between the two the device is created.
        ("a,,,,0 8 zero;a,,,,0 8 nosuch", 1, "create ioctl on a  failed: Device or resource busy"),
        ("a,,,,0 8 zero;a,,,,0 8 nosuch,x", 1, "Invalid format on line 2 of table ."),
    ] {
        let refusal = refused("disk.table", text, Format::Auto);
        assert_eq!((refusal.line(), refusal.reason()), (at, reason), "{text}");
    }
}

#[test]
fn loops() {
    check_concise(
        "a,,,,0 8 linear /dev/mapper/a 0",
        expect![[r#"
        error: linear: Device lookup failed (-EINVAL)
          --> disks.concise:1:17
           |
         1 | a,,,,0 8 linear /dev/mapper/a 0
           |                 ^^^^^^^^^^^^^ found a loop of devices: a -> a
           = expected: another device than the one whose table this is
    "#]],
    );
    check_concise(
        "a,,,,0 8 linear /dev/mapper/b 0;\nb,,,,0 8 striped 1 8 /dev/mapper/c 0;\nc,,,,0 8 linear /dev/mapper/a 0",
        expect![[r#"
            error: linear: Device lookup failed (-EINVAL)
              --> disks.concise:3:17
               |
             3 | c,,,,0 8 linear /dev/mapper/a 0
               |                 ^^^^^^^^^^^^^ found a loop of devices: a -> b -> c -> a
               = expected: devices that stand on each other without coming back to the first
        "#]],
    );
}

#[test]
fn carets_stand_under_wide_characters_and_tabs() {
    check(
        "\t0\t100\tlinear\t/srv/日本/é.img\tx # ü\n",
        expect![[r#"
        error: linear: Invalid device sector
          --> disk.table:1:29
           |
         1 |     0    100    linear    /srv/日本/é.img    x # ü
           |                                              ^ found "x"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
    check(
        "0 100 linear /a\u{1b}[31m\u{202e}/b x\u{7}\n",
        expect![[r#"
        error: linear: Invalid device sector
          --> disk.table:1:25
           |
         1 | 0 100 linear /a\u{1b}[31m\u{202e}/b x\u{7}
           |                                     ^^^^^^ found "x\u{7}"
           = expected: a decimal number of sectors, without sign, unit or 0x
    "#]],
    );
}

#[test]
fn long_lines_are_windowed() {
    let far = format!("0 128 striped 64 8{} /dev/vda x{}\n", " /dev/vda 0".repeat(40), " /dev/vda 0".repeat(23));
    check(
        &far.replace("0 128 ", "0 512 "),
        expect![[r#"
            error: striped: Couldn't parse stripe destination
              --> disk.table:1:469
               |
             1 | …vda 0 /dev/vda 0 /dev/vda 0 /dev/vda 0 /dev/vda x /dev/vda 0 /dev/vda 0 /dev/vda 0 /dev/vda 0 /dev/vda 0 /dev/vda 0 /dev…
               |                                                  ^ found "x"
               = expected: a decimal number of sectors, without sign, unit or 0x
        "#]],
    );
    check(
        &format!("0 100 linear /{} 0 0\n", "x".repeat(100_000)),
        expect![[r#"
        error: linear: Invalid argument count
          --> disk.table:1:100018
           |
         1 | …xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx 0 0
           |                                                  ^ found 3 arguments
           = expected: <start> <length> linear <device> <start on the device>
    "#]],
    );
    check(
        &format!("0 100 {}\n", "t".repeat(100_000)),
        expect![[r#"
            error: Target type name ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt…ttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt is too long.
              --> disk.table:1:7
               |
             1 | 0 100 tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt…
               |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ found a type of 100000 bytes
               = expected: a type of at most 15 bytes: one of the target types linear, striped, zero, error, delay, flakey, dust, unstriped, switch, ebs, log-writes, snapshot, snapshot-origin, snapshot-merge, mirror
        "#]],
    );
}

#[test]
fn warnings_and_places_of_ones_own() {
    let source = Source::new("a\n.table", "0 8 zero\n8 8 error");
    let warning = Diagnostic::warning(&source, Span { start: 9, end: 12 }, "this is odd").help("one").help("two");
    expect![[r#"
        warning: this is odd
          --> a\n.table:2:1
           |
         2 | 8 8 error
           | ^^^
           = help: one
           = help: two
    "#]]
    .assert_eq(&format!("{warning}\n"));
    let outside = Diagnostic::error(&source, Span { start: 900, end: 3 }, "");
    expect![[r#"
        error: 
          --> a\n.table:2:10
           |
         2 | 8 8 error
           |          ^
    "#]]
    .assert_eq(&format!("{outside}\n"));
}
