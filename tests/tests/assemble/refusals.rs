//! What is refused, in which words, and that nothing is written then.

use std::fs;

use crate::ground::Ground;

/// What follows the first line's place, as a terminal shows it.
fn refusal(ground: &Ground, args: &[&str]) -> String {
    let said = ground.try_assemble(args);
    assert!(!said.good, "{args:?} went well: {}", said.out);
    assert!(!ground.path("disk.head").exists() && !ground.path("disk.table").exists(), "{args:?} wrote something");
    said.err
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let ground = Ground::new();
    ground.piece("a", 2048);
    for (args, want) in [
        (
            ["a=a", "root=a@1G+2048"].as_slice(),
            "error: not a size\n --> piece 2:1:8\n  |\n1 | root=a@1G+2048\n  |        ^^ found \"1G\"\n  \
             = expected: a number of sectors of 512 bytes, or one with KiB, MiB, GiB or TiB behind it; G may be powers of \
             1000 or of 1024: 1GiB is clear\n",
        ),
        (
            &["a=a,typ=83"],
            "error: no such attribute\n --> piece 1:1:5\n  |\n1 | a=a,typ=83\n  |     ^^^^^^ found \"typ=83\"\n  \
             = expected: type=TYPE, guid=GUID, label=TEXT, number=NUMBER, bootable or ro\n  \
             = help: a comma that belongs to the path or text has a backslash before it: \\,\n",
        ),
        (
            &["a=a@1024"],
            "error: a start without a length\n --> piece 1:1:4\n  |\n1 | a=a@1024\n  |    ^^^^^\n  \
             = expected: @START+LENGTH\n  = help: an @ that belongs to the path has a backslash before it: \\@\n",
        ),
        (
            &["a=a@1024+1025"],
            "error: a ends before that\n --> piece 1:1:1\n  |\n1 | a=a@1024+1025\n  | ^^^^^^^^^^^^^ found 1025 sectors from sector 1024 on\n  \
             = expected: an end at or before sector 2048\n",
        ),
        (
            &["a=a,guid=5a1c39e8-0000-4000-8000-000000000001", "b=a,guid=5a1c39e8-0000-4000-8000-000000000001"],
            "error: it has the GUID of a\n --> piece 2:1:5\n  |\n1 | b=a,guid=5a1c39e8-0000-4000-8000-000000000001\n  \
             |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ found 5a1c39e8-0000-4000-8000-000000000001\n  \
             = help: give one of them another one: guid=GUID\n",
        ),
        (
            &["--label=mbr", "a=a,bootable", "b=a,bootable"],
            "error: a is bootable already\n --> piece 2:1:5\n  |\n1 | b=a,bootable\n  |     ^^^^^^^^\n  \
             = expected: one at most in an MBR\n",
        ),
    ] {
        let mut said = refusal(&ground, args);
        // The gutter is as wide as the number of the line, and a blank.
        said = said
            .replace("\n  --> ", "\n --> ")
            .replace("\n   |", "\n  |")
            .replace("\n 1 |", "\n1 |")
            .replace("\n   =", "\n  =");
        assert_eq!(said, want, "{args:?}");
    }
}

#[test]
fn what_cannot_be_made_is_refused_with_what_would_work() {
    let ground = Ground::new();
    ground.piece("a", 2048);
    fs::write(ground.path("odd"), [1; 1000]).expect("a file");
    fs::write(ground.path("empty"), []).expect("a file");
    fs::write(ground.path("boot"), [1; 1000]).expect("a file");
    for (args, want) in [
        (["a"].as_slice(), "not a piece of a disk"),
        (&["=a"], "no name before the ="),
        (&["a="], "no path"),
        (&["a=a b"], "make a symbolic link to it"),
        (&["a=nothing"], "nothing: No such file or directory"),
        (&["a=/dev/null"], "it is neither a file nor a block device"),
        (&["a=odd"], "truncate --size=%512 odd"),
        (&["a=empty"], "empty is empty"),
        (&["zero=0"], "a piece of no sectors"),
        (&["gap=1MiB,ro"], "a gap has no attributes"),
        (&["a=a,bootable,bootable"], "the same attribute again"),
        (&["a=a,number=0"], "no such number of a partition"),
        (&["a=a,type=nonsense"], "names are esp, xbootldr"),
        (&["a=a,type=42"], "this type has no counterpart in a partition table of kind GPT"),
        (&["--label=mbr", "a=a,type=msr"], "give two hexadecimal digits"),
        (&["--label=mbr", "a=a,number=5"], "a number from 1 to 4 that no other piece has"),
        (&["--label=mbr", "zero=1,number=1", "zero=1", "zero=1", "zero=1", "zero=1"], "numbers them in their order"),
        (&["--label=mbr", "zero=2TiB"], "it ends beyond what an MBR reaches"),
        (&["a=a,label=123456789012345678901234567890123456x"], "found 37 units of UTF-16"),
        (&["a=a", "--size=2MiB"], "need 4129 sectors (2.0 MiB) at least"),
        (&["a=a", "--size=8001", "--sector-size=4096"], "give a multiple of 8 sectors"),
        (&["zero=18014398509481983"], "the disk would be larger than 2^63 bytes"),
        (&["a=a", "--boot-code=boot"], "with type=bios-boot"),
        (&["a=a", "--force=everything"], "no finding has this name"),
        (&["a=a", "--disk-guid=1"], "32 hexadecimal digits"),
        (&["a=a", "--from=a"], "cannot be used with"),
        (&["--image-dir=."], "it holds no file whose name ends with .img or .raw"),
        (&[], "required"),
    ] {
        let said = refusal(&ground, args);
        assert!(said.contains(want), "{args:?}: {said}");
    }
}

#[test]
fn nothing_of_others_is_overwritten() {
    let ground = Ground::new();
    ground.piece("a", 2048);
    fs::write(ground.path("disk.head"), "mine").expect("a file");
    let said = ground.try_assemble(&["a=a"]);
    assert!(!said.good && said.err.contains("error[overwrite]: "), "{}", said.err);
    assert_eq!(fs::read(ground.path("disk.head")).expect("the file"), b"mine");
    ground.assemble(&["a=a", "--force=overwrite"]);
    // Now it is ours, until a guest changes it.
    ground.assemble(&["a=a"]);
    let mut head = fs::read(ground.path("disk.head")).expect("the header");
    head[0] = 0xEB;
    fs::write(ground.path("disk.head"), &head).expect("write to the header");
    let said = ground.try_assemble(&["a=a", "--force=overwrite"]);
    assert!(!said.good && said.err.contains("error[changed]: "), "one force is not for another finding: {}", said.err);
    assert_eq!(fs::read(ground.path("disk.head")).expect("the header"), head);
    ground.assemble(&["a=a", "--force=changed"]);
}

#[test]
fn what_is_found_in_pieces_refuses_until_it_is_forced() {
    let ground = Ground::new();
    crate::takeover::host(&ground, "nested", "label: gpt\nstart=2048, size=4096\n");
    let said = refusal(&ground, &["a=nested"]);
    assert!(said.contains("error[label-area]: a (") && said.contains("error[nested-table]: a ("), "{said}");
    let said = refusal(&ground, &["a=nested", "--force=nested-table"]);
    assert!(said.contains("error[label-area]: ") && said.contains("warning[nested-table]: "), "{said}");
    let said = ground.try_assemble(&["a=nested", "--force=label-area", "--force=nested-table"]);
    assert!(said.good && said.err.contains("warning[label-area]: "), "{}", said.err);
}
