//! Overlays that do not belong where they are put, and what must not be lost.

use std::fs;

use dm_tests::daemon::flag;
use dm_tests::files;

use super::{Ground, must, must_not, shown, words};

/// A base of 1 MiB with an overlay that something was written to.
fn written(seed: u64) -> Ground {
    let mut ground = Ground::new(seed, 1 << 20);
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    ground.scribble(&mut vmm, 10);
    drop(vmm);
    daemon.stop();
    ground
}

fn refused(ground: &Ground, args: &[String]) -> String {
    let mut all = vec![flag("--socket-path", &ground.path("disk.sock"))];
    all.extend(args.iter().cloned());
    must_not(&all)
}

#[test]
fn an_overlay_of_another_base_is_refused() {
    let ground = written(11);
    let other = Ground::new(12, 1 << 20);
    let said = refused(&ground, &[other.blk_file(), ground.cow()]);
    assert!(said.contains("made over another disk") && said.contains("--force=other-base"), "{said}");
    let larger = Ground::new(13, 2 << 20);
    let said = refused(&ground, &[larger.blk_file(), ground.cow()]);
    assert!(said.contains("made over a disk of 2048 sectors, and this one has 4096"), "{said}");
    let cow = ground.path("cow");
    let said = must_not(&words(&["commit", &shown(&cow), &other.blk_file()]));
    assert!(said.contains("made over another disk"), "{said}");
    assert!(other.base_now() == other.base);
    // Who writes to the base takes its overlay away, and is told.
    let mut base = ground.base.clone();
    base[1080] ^= 1;
    fs::write(ground.path("base.img"), &base).expect("write the base");
    let said = refused(&ground, &[ground.blk_file(), ground.cow()]);
    assert!(said.contains("has been written to since"), "{said}");
    let (daemon, vmm) = ground.serve(&[ground.blk_file(), ground.cow(), "--force=other-base".into()]);
    drop(vmm);
    daemon.stop();
}

#[test]
fn nothing_else_is_taken_for_an_overlay() {
    let ground = written(21);
    // A disk image may begin with zeroes.
    let image = ground.path("image");
    let mut bytes = vec![0; 1 << 20];
    bytes[300_000] = 1;
    for content in [&ground.base, &bytes] {
        files::component(&image, content);
        let said = refused(&ground, &[ground.blk_file(), flag("--overlay", &image)]);
        assert!(said.contains("is a file that is no overlay"), "{said}");
        let said = must_not(&words(&["discard", &shown(&image)]));
        assert!(said.contains("is a file that is no overlay"), "{said}");
        must_not(&words(&["commit", &shown(&image), &ground.blk_file()]));
        assert!(&fs::read(&image).expect("read") == content);
    }
    let said = refused(&ground, &[ground.blk_file(), flag("--overlay", &ground.path("base.img"))]);
    assert!(said.contains("are the same"), "{said}");
    files::sparse(&image, 1 << 20);
    let said = must_not(&words(&["discard", &shown(&image)]));
    assert!(said.contains("nothing says that it is an overlay") && image.exists(), "{said}");
    assert!(ground.base_now() == ground.base);
}

#[test]
fn an_overlay_in_use_is_neither_served_twice_nor_merged_nor_removed() {
    let ground = written(31);
    let (daemon, vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    let said = refused(&ground, &[ground.blk_file(), ground.cow(), flag("--control-path", &ground.path("c"))]);
    assert!(said.contains("cow: cannot be served writable"), "{said}");
    let cow = shown(&ground.path("cow"));
    let said = must_not(&words(&["commit", &cow, &ground.blk_file()]));
    assert!(said.contains("cannot be served writable"), "{said}");
    let said = must_not(&words(&["discard", &cow]));
    assert!(said.contains("cow: cannot be served writable"), "{said}");
    drop(vmm);
    daemon.stop();
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
    // Two overlays may lie over one base.
    let args = [ground.blk_file(), flag("--overlay", &ground.path("second"))];
    let (first, one) = ground.serve(&[ground.blk_file(), ground.cow()]);
    fs::remove_file(ground.path("disk.sock")).expect("the socket");
    let (second, two) = ground.serve(&args);
    drop((one, two));
    first.stop();
    second.stop();
}

#[test]
fn an_invalid_overlay_is_refused_and_can_be_discarded() {
    use std::os::unix::fs::FileExt;
    let ground = written(41);
    let cow = ground.path("cow");
    let file = fs::OpenOptions::new().write(true).open(&cow).expect("open the overlay");
    file.write_all_at(&[0; 4], 4).expect("write");
    let said = refused(&ground, &[ground.blk_file(), ground.cow()]);
    assert!(said.contains("marked invalid") && said.contains("discard"), "{said}");
    let said = must_not(&words(&["commit", &shown(&cow), &ground.blk_file()]));
    assert!(said.contains("marked invalid"), "{said}");
    must(&words(&["discard", &shown(&cow)]));
    assert!(!cow.exists());
}

#[test]
fn what_cannot_be_together_is_refused() {
    let ground = written(51);
    let state = flag("--state-dir", &ground.path("state"));
    let said = refused(&ground, &[ground.blk_file(), "--overlay=tmp".into(), state]);
    assert!(said.contains("--overlay=COWFILE"), "{said}");
    let said = refused(&ground, &[ground.blk_file(), "--overlay=tmp".into(), "--incoming".into()]);
    assert!(said.contains("--overlay=COWFILE"), "{said}");
    let said = refused(&ground, &[ground.blk_file(), flag("--overlay", &ground.path("none")), "--incoming".into()]);
    assert!(said.contains("there is no such overlay"), "{said}");
    // What it has would be read before the source has written its last.
    let said = refused(&ground, &[ground.blk_file(), ground.cow(), "--incoming".into()]);
    assert!(said.contains("serve it without --incoming"), "{said}");
    // An overlay that was made for nothing does not stay.
    let table = ground.path("table");
    fs::write(&table, format!("0 8 linear {} 0\n", shown(&ground.path("missing")))).expect("write");
    refused(&ground, &[flag("--table", &table), flag("--overlay", &ground.path("new"))]);
    let directory = ground.path("directory");
    fs::create_dir(&directory).expect("a directory");
    let mut args = vec![flag("--socket-path", &directory)];
    args.extend([ground.blk_file(), flag("--overlay", &ground.path("new"))]);
    must_not(&args);
    assert!(!ground.path("new").exists());
}
