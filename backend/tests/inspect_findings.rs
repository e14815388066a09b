//! What `check` finds: each thing that speaks against a piece, and beside it a neighbour that is harmless.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Dir, Loop, Mount, Need, can_run, dir, image, mke2fs, run};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Status and JSON of `check` on a table in a directory, in which its relative paths begin.
fn check(dir: &Path, table: &str, flags: &[&str]) -> (i32, Value) {
    fs::write(dir.join("disk.table"), table).expect("a table");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-dm"));
    let output = command.current_dir(dir).args(["check", "--json", "disk.table"]).args(flags).output().expect("check");
    let said = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {table}{said}"));
    (output.status.code().expect("a status"), json)
}

/// The ids and severities that were found, each once.
fn found(json: &Value) -> Vec<String> {
    let findings = json["findings"].as_array().expect("a list");
    let word = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let mut found: Vec<String> =
        findings.iter().map(|finding| format!("{} {}", word(finding, "severity"), word(finding, "id"))).collect();
    found.dedup();
    found
}

/// Checks that a table has exactly these findings, with this status.
fn expect(dir: &Dir, table: &str, status: i32, ids: &[&str]) -> Value {
    let (code, json) = check(dir.path(), table, &[]);
    assert_eq!(found(&json), ids, "{table}\n{json:#}");
    assert_eq!(code, status, "{table}\n{json:#}");
    json
}

fn partitioned(dir: &Dir, name: &str, label: &str) {
    let path = image(dir.path(), name, 32 * MIB);
    let script = dir.path().join("script");
    fs::write(&script, format!("label: {label}\nstart=2048, size=4096\nstart=8192, size=4096\n")).expect("a script");
    let input = fs::File::open(script).expect("a script");
    let status = Command::new("sfdisk").arg("--quiet").arg(path).stdin(input).stdout(Stdio::null()).status();
    assert!(status.expect("sfdisk").success());
}

#[test]
fn pieces_that_overlap() {
    let dir = dir();
    image(dir.path(), "a", MIB);
    expect(&dir, "0 100 linear a 0\n100 100 linear a 100\n", 0, &[]);
    let json = expect(&dir, "0 100 linear a 0\n100 100 linear a 99\n", 1, &["refuse overlap"]);
    let text = json["findings"][0]["text"].as_str().expect("a text");
    assert!(text.contains("sectors 99..100 of a are reachable through lines 1 and 2"), "{text}");
    let (status, json) = check(dir.path(), "0 100 linear a 0\n100 100 linear a 99\n", &["--read-only"]);
    assert_eq!((status, found(&json)), (0, vec![]), "who only reads may read twice");
}

#[test]
fn a_disk_within_a_disk() {
    if !can_run("a_disk_within_a_disk", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    for label in ["gpt", "dos"] {
        partitioned(&dir, "whole", label);
        image(dir.path(), "head", MIB);
        expect(&dir, "0 65536 linear whole 0\n", 0, &[]);
        expect(&dir, "0 2048 linear head 0\n2048 4096 linear whole 2048\n", 0, &[]);
        let nested = "0 2048 linear head 0\n2048 65536 linear whole 0\n";
        expect(&dir, nested, 1, &["refuse label-area", "refuse nested-table"]);
        let (status, json) = check(dir.path(), nested, &["--read-only"]);
        assert_eq!((status, found(&json)), (1, vec!["refuse nested-table".into()]));
        // Each is forced by its own name, and no other.
        let (status, json) = check(dir.path(), nested, &["--force=nested-table"]);
        assert_eq!((status, found(&json)), (1, vec!["refuse label-area".into(), "warn nested-table".into()]));
        let (status, _) = check(dir.path(), nested, &["--force=nested-table", "--force=label-area"]);
        assert_eq!(status, 0);
        // Through another device of the file it is seen, too.
        let stacked = "inner,,,rw,0 65536 linear whole 0;\
            disk,,,rw,0 2048 linear head 0,2048 65536 linear /dev/mapper/inner 0";
        expect(&dir, stacked, 1, &["refuse nested-table"]);
    }
}

#[test]
fn the_label_of_a_disk_of_which_a_part_is_taken() {
    if !can_run("the_label_of_a_disk_of_which_a_part_is_taken", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    partitioned(&dir, "gpt", "gpt");
    partitioned(&dir, "dos", "dos");
    let bsd = image(dir.path(), "bsd", 32 * MIB);
    let file = fs::OpenOptions::new().write(true).open(bsd).expect("a disk");
    for at in [512, 512 + 132] {
        file.write_all_at(&0x8256_4557u32.to_le_bytes(), at).expect("a disklabel");
    }
    let at = |name: &str, start: u64, len: u64| format!("0 2048 zero\n2048 {len} linear {name} {start}\n");
    for (name, first) in [("gpt", 34), ("dos", 2), ("bsd", 65)] {
        expect(&dir, &at(name, first, 1000), 0, &[]);
        expect(&dir, &at(name, first - 1, 1000), 1, &["refuse label-area"]);
    }
    let end = 32 * MIB / 512;
    expect(&dir, &at("gpt", 1000, end - 1000 - 33), 0, &[]);
    let json = expect(&dir, &at("gpt", 1000, end - 1000 - 32), 1, &["refuse label-area"]);
    assert!(json["findings"][0]["text"].as_str().is_some_and(|text| text.contains("the backup")), "{json:#}");
    expect(&dir, &at("dos", 1000, end - 1000), 0, &[]);
    let (status, json) = check(dir.path(), &at("dos", 1, 1000), &["--read-only"]);
    assert_eq!((status, found(&json)), (0, vec![]), "it cannot be written");
}

#[test]
fn a_file_system_larger_than_its_piece() {
    if !can_run("a_file_system_larger_than_its_piece", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let tools: [(&str, &str, u64, &[&str]); 5] = [
        ("ext4", "mke2fs", 20 * MIB, &["-q", "-F", "-t", "ext4"]),
        ("fat", "mkfs.fat", 20 * MIB, &[]),
        ("ntfs", "mkfs.ntfs", 20 * MIB, &["-q", "-F", "-f"]),
        ("xfs", "mkfs.xfs", 320 * MIB, &["-q", "-f"]),
        ("swap", "mkswap", 20 * MIB, &["-q"]),
    ];
    for (name, tool, size, args) in tools {
        let path = image(dir.path(), name, size);
        run(tool, args.iter().map(|arg| arg.as_ref()).chain([path.as_os_str()]));
        let sectors = size / 512;
        let half = sectors / 2;
        expect(&dir, &format!("0 2048 zero\n2048 {sectors} linear {name} 0\n"), 0, &[]);
        expect(&dir, &format!("0 2048 zero\n2048 {half} linear {name} 0\n"), 1, &["refuse fs-too-large"]);
        // In two pieces it is whole; with a hole between them it is not.
        let rest = sectors - half;
        let (second, third) = (2048 + half, 2048 + half + 8);
        let whole = format!("0 2048 zero\n2048 {half} linear {name} 0\n{second} {rest} linear {name} {half}\n");
        expect(&dir, &whole, 0, &[]);
        let torn =
            format!("0 2048 zero\n2048 {half} linear {name} 0\n{second} 8 zero\n{third} {rest} linear {name} {half}\n");
        expect(&dir, &torn, 1, &["refuse fs-too-large"]);
    }
    // The partition is smaller than the piece.
    partitioned(&dir, "head", "gpt");
    let table = |at: u64| format!("0 {at} linear head 0\n{at} 40960 linear ext4 0\n");
    expect(&dir, &table(8192), 1, &["refuse fs-too-large"]);
    expect(&dir, &table(16384), 0, &[]);
}

#[test]
fn what_was_not_shut_down() {
    if !can_run("what_was_not_shut_down", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let table = |name: &str| format!("0 40960 linear {name} 0\n");
    for name in ["clean", "dirty"] {
        mke2fs(&image(dir.path(), name, 20 * MIB));
    }
    let dirty = dir.path().join("dirty");
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), "feature +needs_recovery".as_ref(), dirty.as_os_str()]);
    expect(&dir, &table("clean"), 0, &[]);
    expect(&dir, &table("dirty"), 0, &["warn unclean"]);
    assert_eq!(check(dir.path(), &table("clean"), &["--strict"]).0, 0);
    assert_eq!(check(dir.path(), &table("dirty"), &["--strict"]).0, 3);
    let windows = image(dir.path(), "windows", 20 * MIB);
    run("mkfs.ntfs", ["-q".as_ref(), "-F".as_ref(), "-f".as_ref(), windows.as_os_str()]);
    expect(&dir, &table("windows"), 0, &[]);
    let file = dir.path().join("memory");
    fs::write(&file, b"hibr and then much more").expect("a file");
    run("ntfscp", ["-q".as_ref(), windows.as_os_str(), file.as_os_str(), "hiberfil.sys".as_ref()]);
    let json = expect(&dir, &table("windows"), 0, &["warn unclean"]);
    let text = json["findings"][0]["text"].as_str().expect("a text");
    assert!(text.contains("Windows hibernated"), "{text}");
}

#[test]
fn what_this_machine_uses() {
    if !can_run("what_this_machine_uses", &[Need::Loop, Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk", 32 * MIB);
    let device = Loop::with_two_partitions(&file);
    let (one, two) = (device.partition(1), device.partition(2));
    mke2fs(&one);
    let table = |node: &Path| format!("0 16384 linear {} 0\n", node.display());
    let mounted = Mount::new(&[one.as_os_str()], &dir.path().join("mnt"));
    let json = expect(&dir, &table(&one), 1, &["refuse mounted"]);
    let finding = &json["findings"][0];
    assert!(finding["text"].as_str().is_some_and(|text| text.contains("it is mounted on")), "{finding}");
    assert!(
        finding["help"].as_str().is_some_and(|text| text.contains("umount") && text.contains("overlay")),
        "{finding}"
    );
    // Its neighbour on the same disk is free.
    expect(&dir, &table(&two), 0, &[]);
    let (status, json) = check(dir.path(), &table(&one), &["--read-only"]);
    let ids = found(&json);
    assert_eq!((status, ids.contains(&"warn mounted".to_owned())), (0, true), "{json:#}");
    // The kernel refuses it whatever is forced here.
    let (status, json) = check(dir.path(), &table(&one), &["--force=mounted"]);
    assert_eq!((status, json["verdict"].as_str()), (1, Some("refused")), "{json:#}");
    assert_eq!(found(&json)[0], "warn mounted");
    drop(mounted);
    expect(&dir, &table(&one), 0, &[]);
    // The file behind a loop device; another file is free.
    expect(&dir, "0 8192 linear disk 4096\n", 1, &["refuse loop"]);
    image(dir.path(), "other", 32 * MIB);
    expect(&dir, "0 8192 linear other 4096\n", 0, &[]);
    run("mkswap", ["-q".as_ref(), two.as_os_str()]);
    run("swapon", [&two]);
    let (status, json) = check(dir.path(), &table(&two), &[]);
    run("swapoff", [&two]);
    assert_eq!((status, found(&json)[0].as_str()), (1, "refuse swap"), "{json:#}");
    expect(&dir, &table(&two), 0, &[]);
}

#[test]
fn text_and_json_say_the_same() {
    let dir = dir();
    image(dir.path(), "a", MIB);
    let table = "0 100 linear a 0\n100 100 linear a 99\n";
    let (_, json) = check(dir.path(), table, &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-dm"));
    let output = command.current_dir(dir.path()).args(["check", "disk.table"]).output().expect("check");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("refused[overlap]: "), "{text}");
    assert!(text.contains("2 segments on 1 component"), "{text}");
    assert_eq!(json["verdict"], "refused");
    assert_eq!(json["devices"][0]["sectors"], 200);
    assert_eq!(json["devices"][0]["parts"][1]["to"], "a 99");
    // What is no table, and what cannot be served at all.
    let (status, json) = check(dir.path(), "0 100 linear\n", &[]);
    assert_eq!((status, json["verdict"].as_str()), (1, Some("refused")));
    assert!(json["error"].as_str().is_some_and(|text| text.contains("disk.table:1:")), "{json:#}");
    let (status, json) = check(dir.path(), "0 100 linear none 0\n", &[]);
    assert_eq!((status, json["verdict"].as_str()), (1, Some("refused")));
    assert!(json["error"].as_str().is_some_and(|text| text.contains("none")), "{json:#}");
}
