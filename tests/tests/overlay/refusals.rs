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

/// The first sector of what begins at `at`, and a place behind it that changes when that is mounted.
fn busy_places() -> [(&'static str, Vec<u8>, u64); 4] {
    let mut ntfs = vec![0; 512];
    ntfs[3..11].copy_from_slice(b"NTFS    ");
    // Clusters of 4 KiB, a table of records of 1 KiB in cluster 512.
    (ntfs[12], ntfs[13], ntfs[41], ntfs[49], ntfs[64]) = (2, 8, 0x20, 2, 0xf6);
    let mut fat = vec![0; 512];
    // FAT16: 8 sectors, two tables of 256, 512 entries of the root directory.
    (fat[0], fat[12], fat[13], fat[14], fat[16], fat[18], fat[21], fat[23]) = (0xeb, 2, 1, 8, 2, 2, 0xf8, 1);
    fat[19..21].copy_from_slice(&8000u16.to_le_bytes());
    fat[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut luks = vec![0; 512];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    luks[104..108].copy_from_slice(&4096u32.to_be_bytes());
    let mut luks2 = luks.clone();
    luks2[7] = 2;
    [
        ("NTFS", ntfs, 512 * 4096 + 3 * 1024),
        ("FAT", fat, (8 + 2 * 256) * 512),
        ("LUKS", luks, 4096 * 512),
        ("LUKS2", luks2, 16 << 20),
    ]
}

/// A base is another when it was mounted meanwhile, also where a mount does not change what it begins with.
#[test]
fn a_base_that_was_mounted_meanwhile_is_refused() {
    use std::os::unix::fs::FileExt;
    for (what, head, busy) in busy_places() {
        for start in [0, 1 << 20] {
            let ground = Ground::new(60, 512);
            let base = ground.path("base.img");
            files::sparse(&base, 20 << 20);
            let file = fs::OpenOptions::new().read(true).write(true).open(&base).expect("the base");
            if start > 0 {
                // A partition.
                let mut label = [0; 512];
                label[446..462].copy_from_slice(&[0, 0, 0, 0, 7, 0, 0, 0, 0, 8, 0, 0, 0, 0x90, 0, 0]);
                label[510..].copy_from_slice(&[0x55, 0xaa]);
                file.write_all_at(&label, 0).expect("write");
            }
            file.write_all_at(&head, start).expect("write");
            let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
            vmm.write(0, 9, &[1; 512]).expect("write");
            drop(vmm);
            daemon.stop();
            let (daemon, vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
            drop(vmm);
            daemon.stop();
            file.write_all_at(&[1], start + busy).expect("write");
            let said = refused(&ground, &[ground.blk_file(), ground.cow()]);
            assert!(said.contains("has been written to since"), "{what} at {start}: {said}");
        }
    }
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

/// What is kept of a start that came to nothing names the overlay that it made: the next start must find that.
#[test]
fn an_overlay_that_a_kept_table_names_stays_when_the_start_fails() {
    let mut ground = Ground::new(52, 1 << 20);
    let directory = ground.path("directory");
    fs::create_dir(&directory).expect("a directory");
    let args = [ground.blk_file(), ground.cow(), flag("--state-dir", &ground.path("state"))];
    let mut failing = vec![flag("--socket-path", &directory)];
    failing.extend(args.iter().cloned());
    must_not(&failing);
    for _ in 0..2 {
        let (daemon, mut vmm) = ground.serve(&args);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 10);
        drop(vmm);
        daemon.stop();
    }
    assert!(ground.base_now() == ground.base, "the base has changed");
}

/// Whatever a header says is told, and the overlay can be removed: by no command's end is it a signal.
#[test]
fn a_header_that_no_store_can_have_is_told_by_every_command() {
    use std::os::unix::fs::FileExt;
    let version = "unable to handle snapshot disk version";
    let chunk = "invalid on-disk chunk size";
    for (valid, number, sectors, why) in [
        (1, 1, 0, chunk),
        (0, 1, 0, chunk),
        (1, 1, 3, chunk),
        (1, 1, 1 << 22, chunk),
        (1, 1, u32::MAX, chunk),
        (1, 2, 8, version),
        (0, 0, 0, version),
    ] {
        let ground = written(61);
        let (cow, base) = (ground.path("cow"), shown(&ground.path("base.img")));
        let header = [0x7041_6e53_u32, valid, number, sectors].map(u32::to_le_bytes).concat();
        let file = fs::OpenOptions::new().write(true).open(&cow).expect("the overlay");
        file.write_all_at(&header, 0).expect("write");
        let table = ground.path("disk.table");
        fs::write(&table, format!("0 2048 linear {base} 0\n")).expect("write the table");
        let (cow, table, out) = (shown(&cow), shown(&table), shown(&ground.path("out.img")));
        let mut said = vec![refused(&ground, &[ground.blk_file(), ground.cow()])];
        said.push(must_not(&words(&["commit", &cow, &ground.blk_file()])));
        // It shows the table all the same.
        said.push(must(&words(&["show", &table, &ground.cow()])));
        said.push(must_not(&words(&["export", &table, &ground.cow(), "--to", &out])));
        said.push(must_not(&words(&["check", &table, &ground.cow()])));
        for said in said {
            assert!(said.contains(why) && said.contains("vhost-user-dm discard"), "{valid} {number} {sectors}: {said}");
        }
        must(&words(&["discard", &cow]));
        assert!(!ground.path("cow").exists() && ground.base_now() == ground.base);
    }
}
