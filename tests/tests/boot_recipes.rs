//! Recipes of README.md with virtual machines: its commands, literally, but for the paths.
//!
//! Needs what `ci/setup.sh` installs.
#![allow(dead_code, reason = "other tests use more of what they share with this one")]

#[path = "../boot/disk.rs"]
mod disk;
#[path = "../boot/host.rs"]
mod host;
#[path = "../boot/recipe.rs"]
mod recipe;
#[path = "../boot/vm.rs"]
mod vm;

use std::fs;
use std::path::Path;
use std::process::Command;

use disk::Disk;
use dm_tests::files;
use host::{SECTOR, Scratch, run, sha256};
use recipe::{Kitchen, commands};
use vm::{Setup, bootable_disk};

/// Lines of /var/boots on the root file system of a disk, which must be as it should be.
fn boots(scratch: &Scratch, image: &Path) -> usize {
    let dump = run(Command::new("sfdisk").arg("--dump").arg(image));
    let line = dump.lines().find(|line| line.contains("name=\"root\"")).expect("a root partition");
    let field = |key: &str| {
        let (_, after) = line.split_once(key).expect("a field");
        after.split(',').next().and_then(|number| number.trim().parse::<u64>().ok()).expect("a number")
    };
    let root = scratch.path("root-afterwards");
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", image.display())).arg(format!("of={}", root.display()));
    run(dd.args([format!("skip={}", field("start=")), format!("count={}", field("size="))]));
    run(Command::new("e2fsck").arg("-fn").arg(&root));
    run(Command::new("debugfs").args(["-R", "cat /var/boots"]).arg(&root)).lines().count()
}

#[test]
fn a_root_partition_boots_with_a_throw_away_overlay() {
    let scratch = Scratch::new();
    let pieces = bootable_disk(&scratch, "echo; echo boot $(wc -l </var/boots) of $(findmnt -no SOURCE /)\n");
    let image = scratch.path("sda.img");
    host::assemble(&pieces, &image);
    let disk = Disk::attach(&image);
    let sda = disk.as_ref().map_or(image.as_path(), Disk::path);
    let kitchen = Kitchen::new(&scratch, &[("/dev/sda", sda)]);
    let before = sha256(sda);
    let mut done = Vec::new();
    for line in commands("**Boot my real root partition with a throw-away overlay.**") {
        let overlay = ["--overlay=tmp", "--overlay=cow"].into_iter().find(|flag| line.contains(flag));
        match overlay {
            Some(overlay) => {
                // What the first one wrote is forgotten, or is there.
                for number in ["1", if overlay == "--overlay=tmp" { "1" } else { "2" }] {
                    let (daemon, socket) = kitchen.serve(&line);
                    let mut vm = Setup::new(&scratch).disk(&socket, "").boot();
                    assert_eq!(vm.wait_for("boot"), format!("{number} of /dev/vda2"), "{line}");
                    vm.power_off();
                    daemon.stop();
                    assert_eq!(sha256(sda), before, "{line}: the disk has changed");
                }
                done.push(overlay);
            }
            None => {
                kitchen.run(&line);
                done.extend(["commit", "discard"].into_iter().find(|verb| line.contains(&format!(" {verb} "))));
            }
        }
    }
    assert_eq!(done, ["--overlay=tmp", "--overlay=cow", "commit", "discard"]);
    assert!(!scratch.path("cow").exists());
    drop(disk);
    assert_eq!(boots(&scratch, &image), 2, "boots that came to the disk by the commit");
}

#[test]
fn a_disk_gets_slow_and_fails_while_its_guest_runs() {
    let scratch = Scratch::new();
    files::sparse(&scratch.path("disk.img"), 184320 * SECTOR);
    scratch.text("disk.table", "0 184320 linear disk.img 0\n");
    let kitchen = Kitchen::new(&scratch, &[]);
    let mut daemon = None;
    for line in commands("## Changing a running disk") {
        match line.contains("--socket-path") {
            true => daemon = Some(kitchen.serve(&line)),
            false => drop(kitchen.run(&line)),
        }
    }
    let (daemon, socket) = daemon.expect("a command that serves");
    let mut vm = Setup::new(&scratch).disk(&socket, "").run_test("slow-and-failing");
    vm.wait_for("ready");
    let recipe = commands("**Make it slow and failing.**");
    assert!(recipe.len() >= 2, "{recipe:?}");
    recipe.iter().for_each(|line| drop(kitchen.run(line)));
    let table = kitchen.run("vhost-user-dm dmsetup table");
    assert!(table.contains(" flakey ") && table.contains(" delay "), "{table}");
    // It takes as long as it was told to at least, and fails, and works again.
    vm.wait_for("slow");
    assert!(vm.wait_for("failing").ends_with("Input/output error"));
    vm.wait_for("works");
    let back = commands("**Break a disk and mend it.**").pop().expect("a command");
    assert!(back.contains("load disk disk.table"), "{back}");
    kitchen.run(&back);
    let table = kitchen.run("vhost-user-dm dmsetup table disk");
    assert!(table.starts_with("0 184320 linear "), "{table}");
    vm.finish();
    daemon.stop();
}

#[test]
fn a_file_system_is_checked_at_every_flush() {
    let scratch = Scratch::new();
    let disk = scratch.path("disk.img");
    files::sparse(&disk, 96 << 20);
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk));
    let kitchen = Kitchen::new(&scratch, &[]);
    let recipe = commands("## Checking a file system at every flush");
    let (replay, others) = recipe.split_last().expect("commands");
    for line in others {
        if !line.contains("--socket-path") {
            kitchen.run(line);
            continue;
        }
        let (daemon, socket) = kitchen.serve(line);
        let mut vm = Setup::new(&scratch).disk(&socket, "").run_test("logged-work");
        vm.wait_for("worked");
        vm.finish();
        daemon.stop();
    }
    let before = fs::read(scratch.path("before.img")).expect("the disk as it was");
    let said = kitchen.run(replay);
    let checks = said.matches("Pass 1: ").count();
    assert!(checks > 5, "{checks} checks: {said}");
    // What was replayed is the disk, all of it.
    let now = fs::read(scratch.path("before.img")).expect("the disk that was replayed");
    assert!(now != before && now == fs::read(&disk).expect("the disk"), "the log is not all that was written");
    // And a command that is not content stops it: there is one for the first flush.
    let (head, tail) = replay.split_once("e2fsck").expect("the recipe has a check");
    fs::write(scratch.path("before.img"), before).expect("the disk as it was");
    let broken = format!("! {head}exit 7; e2fsck{tail}");
    let said = kitchen.run(&broken.replace("now.img", "then.img"));
    assert!(said.contains("flush") && !said.contains("Pass 1: "), "{said}");
}
