//! What `check`, `show` and `export` say of a disk with an overlay.

use std::fs;
use std::os::unix::fs::FileExt;

use dm_tests::daemon::{self, flag};
use dm_tests::loops::{self, LoopFs};
use dm_tests::skip::skip;

use super::{Ground, must, must_not, shown, words};

/// A table of two halves over the base of 1 MiB, exchanged.
fn table(ground: &Ground) -> String {
    let base = shown(&ground.path("base.img"));
    let table = ground.path("disk.table");
    fs::write(&table, format!("0 1024 linear {base} 1024\n1024 1024 linear {base} 0\n")).expect("write the table");
    shown(&table)
}

fn ground(seed: u64) -> Ground {
    let mut ground = Ground::new(seed, 1 << 20);
    let (first, second) = ground.base.split_at(1 << 19);
    ground.model = [second, first].concat();
    ground
}

fn written(ground: &mut Ground, writes: usize) {
    let (daemon, mut vmm) = ground.serve(&[flag("--table", &ground.path("disk.table")), ground.cow()]);
    ground.scribble(&mut vmm, writes);
    drop(vmm);
    daemon.stop();
}

/// Status and all that is printed.
fn check(args: &[&str]) -> (i32, String) {
    let (code, out, err) =
        daemon::run(words(&["check"]).iter().map(String::as_str).chain(args.iter().copied())).expect("run");
    (code, out + &err)
}

#[test]
fn a_check_makes_and_writes_nothing() {
    let mut ground = ground(500);
    let table = table(&ground);
    let cow = ground.cow();
    let before = fs::metadata(ground.dir.path()).expect("the directory").modified().expect("a time");
    let (code, said) = check(&[&table, &cow, "--strict"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("not there, and would be made") && said.contains("chunks of 4.0 KiB"), "{said}");
    let after = fs::metadata(ground.dir.path()).expect("the directory").modified().expect("a time");
    assert!(!ground.path("cow").exists() && before == after);
    let (code, said) = check(&[&table, "--overlay=tmp", "--strict"]);
    assert!(code == 0 && said.contains("a file without a name in"), "{code} {said}");
    let (code, said) = check(&[&table, &flag("--overlay", &ground.path("no/such/directory/cow"))]);
    assert!(code == 1 && said.contains("cannot be made in this directory"), "{code} {said}");
    // Then what it holds: as many chunks as were touched.
    written(&mut ground, 12);
    let changed = |n: &usize| {
        ground.model[n * 4096..][..4096]
            != [&ground.base[1 << 19..], &ground.base[..1 << 19]].concat()[n * 4096..][..4096]
    };
    let chunks = (0..256).filter(changed).count();
    let (bytes, time) = state(&ground);
    let (code, said) = check(&[&table, &cow, "--strict"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{chunks} of 256 chunks in chunks of 4.0 KiB; made over this disk")), "{said}");
    let (_, json) = check(&[&table, &cow, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    let overlay = &json["overlay"];
    assert_eq!((overlay["state"].as_str(), overlay["used"].as_u64()), (Some("used"), Some(chunks as u64)), "{json}");
    assert_eq!(overlay["belongs"].as_bool(), Some(true), "{json}");
    assert!(state(&ground) == (bytes, time), "the overlay was written to");
}

fn state(ground: &Ground) -> (Vec<u8>, std::time::SystemTime) {
    let cow = ground.path("cow");
    (fs::read(&cow).expect("the overlay"), fs::metadata(&cow).expect("the overlay").modified().expect("a time"))
}

#[test]
fn a_check_refuses_what_serving_refuses() {
    let mut ground = ground(510);
    let table = table(&ground);
    let cow = ground.cow();
    written(&mut ground, 12);
    let (daemon, vmm) = ground.serve(&[flag("--table", &ground.path("disk.table")), cow.clone()]);
    let (code, said) = check(&[&table, &cow]);
    assert!(code == 1 && said.contains("cow: cannot be served writable"), "{code} {said}");
    drop(vmm);
    daemon.stop();
    // A commit that was killed.
    let commit = ["commit", &shown(&ground.path("cow")), &format!("--table={table}")];
    let broken = ground.path("broken.table");
    let base = shown(&ground.path("base.img"));
    fs::write(&broken, format!("0 1024 linear {base} 1024\n1024 1024 error {base} 0\n")).expect("write the table");
    must_not(&words(&["commit", &shown(&ground.path("cow")), &flag("--table", &broken), "--force=other-base"]));
    let (code, said) = check(&[&table, &cow]);
    assert!(code == 0 && said.contains("a commit has begun"), "{code} {said}");
    must(&words(&commit));
    let (code, said) = check(&[&table, &cow]);
    assert!(code == 0 && said.contains("cow: empty"), "{code} {said}");
    // The base is written to behind its back.
    written(&mut ground, 1);
    let file = fs::OpenOptions::new().write(true).open(ground.path("base.img")).expect("the base");
    file.write_all_at(&[0x5a; 512], 1 << 16).expect("write");
    let (code, said) = check(&[&table, &cow]);
    assert!(code == 1 && said.contains("refused[other-base]") && said.contains("made over another disk, or"), "{said}");
    let (code, said) = check(&[&table, &cow, "--force=other-base"]);
    assert!(code == 0 && said.contains("warning[other-base]"), "{code} {said}");
    let cow_file = fs::OpenOptions::new().write(true).open(ground.path("cow")).expect("the overlay");
    cow_file.write_all_at(&[0; 4], 4).expect("write");
    let (code, said) = check(&[&table, &cow]);
    assert!(code == 1 && said.contains("marked invalid"), "{code} {said}");
    let (code, said) = check(&[&table, &flag("--overlay", &ground.path("base.img"))]);
    assert!(code == 1 && said.contains("are the same"), "{code} {said}");
}

#[test]
fn a_check_takes_the_block_size() {
    let ground = ground(520);
    let table = table(&ground);
    for args in [&["--block-size=4096"][..], &["--block-size=4096", "--overlay=tmp"]] {
        let (code, said) = check(&[&[table.as_str()], args].concat());
        assert!(code == 0 && said.contains("4096-byte blocks"), "{said}");
    }
    let (code, said) = check(&[&table]);
    assert!(code == 0 && said.contains("512-byte blocks"), "{said}");
}

#[test]
fn an_overlay_is_read_without_a_guest() {
    let mut ground = ground(530);
    let table = table(&ground);
    let cow = ground.cow();
    let image = ground.path("out.img");
    let export = |more: &[&str]| {
        let _ = fs::remove_file(&image);
        let (code, _, err) = daemon::run(["export", &table, "--to", &shown(&image)].iter().chain(more)).expect("run");
        (code, err, fs::read(&image).unwrap_or_default())
    };
    // One that is not there has nothing in it, and is not made.
    let (code, err, bytes) = export(&[&cow]);
    assert!(code == 0 && bytes == ground.model && !ground.path("cow").exists(), "{err}");
    for writes in [1, 40] {
        written(&mut ground, writes);
        let (code, err, bytes) = export(&[&cow]);
        assert_eq!(code, 0, "{err}");
        assert!(bytes == ground.model, "it is not what the guest saw");
    }
    // A guest made swap of its disk: only with its overlay it is that.
    let (daemon, mut vmm) = ground.serve(&[flag("--table", &ground.path("disk.table")), cow.clone()]);
    let mut page = vec![0; 4096];
    page[4086..].copy_from_slice(b"SWAPSPACE2");
    vmm.write(0, 0, &page).expect("write");
    vmm.flush(0).expect("flush");
    let (code, err, _) = export(&[&cow]);
    assert!(code == 1 && err.contains("cow"), "it is served, and was read: {err}");
    drop(vmm);
    daemon.stop();
    let show = |more: &[&str]| {
        let (code, out, err) = daemon::run(["show", &table].iter().chain(more)).expect("run");
        assert_eq!(code, 0, "{err}");
        out
    };
    let (without, with) = (show(&[]), show(&[&cow]));
    assert!(!without.contains("swap") && with.contains("swap"), "{without}{with}");
    // The segments are those of the table.
    assert_eq!(with.lines().filter(|line| line.contains("linear base.img")).count(), 2, "{with}");
    assert!(with.starts_with("disk: 2048 sectors"), "{with}");
    let printed = show(&["--qemu", &cow, "--block-size=4096"]);
    assert!(printed.contains(&cow) && printed.contains("--block-size=4096"), "{printed}");
    // Over another base it says nothing.
    let file = fs::OpenOptions::new().write(true).open(ground.path("base.img")).expect("the base");
    file.write_all_at(&[0x5a; 512], 1 << 16).expect("write");
    let (code, err, _) = export(&[&cow]);
    assert!(code == 1 && err.contains("--force=other-base"), "{err}");
    assert_eq!(export(&[&cow, "--force=other-base"]).0, 0);
}

#[test]
fn a_check_knows_a_base_that_the_host_writes() {
    if let Some(why) = loops::missing() {
        return skip("a_check_knows_a_base_that_the_host_writes", why);
    }
    let mounted = LoopFs::mount(4 << 20).expect("a file system");
    let ground = Ground::new(540, 512);
    let table = ground.path("disk.table");
    fs::write(&table, format!("0 8192 linear {} 0\n", mounted.device().display())).expect("write the table");
    let table = shown(&table);
    let (code, said) = check(&[&table, "--overlay=tmp"]);
    assert!(code == 1 && said.contains("refused[mounted]") && said.contains("may change under the overlay"), "{said}");
    assert_eq!(said.matches("[mounted]").count(), 1, "{said}");
    let (code, said) = check(&[&table, "--overlay=tmp", "--force=mounted"]);
    assert!(code == 0 && said.contains("warning[mounted]"), "{said}");
    // Without an overlay it would be written to, and nothing takes that back.
    let (code, said) = check(&[&table]);
    assert!(code == 1 && said.contains("--overlay=tmp"), "{said}");
    mounted.remount("ro").expect("mount it read-only");
    let (code, said) = check(&[&table, "--overlay=tmp"]);
    assert!(code == 0 && !said.contains("[mounted]"), "{said}");
}
