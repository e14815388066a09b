//! What of a disk's components is open for writing, and what a guest can do to those that are not.

use std::fs;
use std::path::{Path, PathBuf};

use dm_tests::blk::{Segment, kind};
use dm_tests::control::Controlled;
use dm_tests::files;
use dm_tests::vmm::Setup;

use crate::SECTOR;

/// Sectors of a component.
const LEN: usize = 64;

/// The access modes in which a process has a file open, sorted: 0 for reading, 2 for writing too.
fn modes(pid: u32, path: &Path) -> Vec<u32> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut modes = Vec::new();
    for entry in fs::read_dir(process.join("fd")).expect("descriptors").flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = process.join("fdinfo").join(entry.file_name());
            let info = fs::read_to_string(info).expect("a descriptor");
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
            modes.push(u32::from_str_radix(flags.trim(), 8).expect("octal digits") & 3);
        }
    }
    modes.sort_unstable();
    modes
}

/// Whether another process of ours would be let in: to write, to read.
fn strangers(path: &Path, dir: &Path) -> (bool, bool) {
    let table = dir.join("strange.table");
    fs::write(&table, format!("0 {LEN} linear {} 0\n", path.display())).expect("a table");
    let check = |more: &[&str]| {
        let args = ["check".to_owned(), table.display().to_string()];
        let args = args.into_iter().chain(more.iter().map(|&arg| arg.to_owned()));
        dm_tests::daemon::run(args).expect("check").0 == 0
    };
    (check(&[]), check(&["--read-only"]))
}

/// Three components in a directory, of bytes 1, 2 and 3.
fn components(dir: &Path) -> [PathBuf; 3] {
    [1, 2, 3].map(|byte| {
        let path = dir.join(format!("component{byte}"));
        files::component(&path, &[byte; LEN * SECTOR]);
        path
    })
}

fn nothing_can_write(dir: &Path) {
    let [a, b, c] = components(dir);
    let (pa, pb, pc) = (a.display(), b.display(), c.display());
    // 64 of a, then what is below and read-only: linear, two stripes, zeroes, and what a stateful target makes of it.
    let concise = format!(
        "disk,,,rw,0 64 linear {pa} 0,64 88 linear /dev/mapper/below 0,152 16 dust /dev/mapper/below 0 512;\
         below,,,ro,0 32 linear {pb} 0,32 32 striped 2 8 {pb} 32 {pc} 0,64 8 zero,72 16 flakey {pc} 32 0 1 1 drop_writes"
    );
    let mut process = Controlled::start(&concise, &[]);
    let mut disk = process.vmm("disk", &Setup::default());
    assert_eq!(disk.config.capacity, 168);
    let bytes = |byte: u8, sectors: usize| vec![byte; sectors * SECTOR];
    let stripes = [bytes(2, 8), bytes(3, 8), bytes(2, 8), bytes(3, 8)].concat();
    let below = [bytes(2, 32), stripes, bytes(0, 8), bytes(3, 16)].concat();
    assert!(disk.read(0, 0, 152 * SECTOR).expect("read") == [bytes(1, 64), below].concat());
    assert!(disk.read(0, 152, 16 * SECTOR).expect("read") == bytes(2, 16));
    for sector in 64..168 {
        assert!(disk.write(0, sector, &[0xEE; SECTOR]).is_err(), "write to {sector}");
        for what in [kind::DISCARD, kind::WRITE_ZEROES] {
            let range = Segment { sector, sectors: 1, flags: 0 };
            assert!(disk.ranges(0, what, &[range]).is_err(), "{what} of {sector}");
        }
    }
    // One that crosses the border: what is ours is written or not, and nothing else is.
    assert!(disk.write(0, 60, &bytes(0xDD, 8)).is_err());
    disk.write(0, 0, &bytes(0xEE, 60)).expect("write");
    disk.ranges(0, kind::DISCARD, &[Segment { sector: 48, sectors: 8, flags: 0 }]).expect("discard");
    disk.flush(0).expect("flush");
    let pid = process.daemon.pid();
    assert!(modes(pid, &a).contains(&2));
    for (path, byte) in [(&b, 2), (&c, 3)] {
        assert!(fs::read(path).expect("a component") == bytes(byte, LEN), "{path:?}");
        let modes = modes(pid, path);
        assert!(!modes.is_empty() && modes.iter().all(|mode| *mode == 0), "{modes:?}");
        assert_eq!(strangers(path, dir), (false, true));
    }
    assert_eq!(strangers(&a, dir), (false, false));
    drop(disk);
    process.daemon.assert_running();
    process.stop();
}

#[test]
fn what_lies_on_a_read_only_device_cannot_be_written() {
    nothing_can_write(files::disk_dir().path());
}

#[test]
fn what_lies_on_a_read_only_device_in_memory_cannot_be_written() {
    let Some(dir) = files::memory_dir() else { return };
    nothing_can_write(dir.path());
}

/// A component goes from being written to being named only, and back, while a guest is there.
#[test]
fn an_exchange_of_tables_opens_a_component_as_the_new_one_uses_it() {
    let dir = files::disk_dir();
    let [a, b, _] = components(dir.path());
    let (pa, pb) = (a.display(), b.display());
    let mut process = Controlled::start(&format!("disk,,,rw,0 64 linear {pa} 0,64 8 error {pb} 0"), &[]);
    let mut disk = process.vmm("disk", &Setup::default());
    let mut client = process.client();
    let pid = process.daemon.pid();
    disk.write(0, 0, &[0xEE; SECTOR]).expect("write");
    assert!(modes(pid, &b).iter().all(|mode| *mode == 0));
    assert_eq!((strangers(&a, dir.path()), strangers(&b, dir.path())), ((false, false), (false, true)));
    for round in 0..3 {
        client.swap("disk", &format!("0 64 linear {pb} 0\n64 8 error {pa} 0"));
        disk.write(0, 1, &[round; SECTOR]).expect("write");
        assert!(modes(pid, &a).iter().all(|mode| *mode == 0) && modes(pid, &b).contains(&2));
        assert_eq!((strangers(&a, dir.path()), strangers(&b, dir.path())), ((false, true), (false, false)));
        client.swap("disk", &format!("0 64 linear {pa} 0\n64 8 error {pb} 0"));
        disk.write(0, 2, &[round; SECTOR]).expect("write");
        assert!(modes(pid, &b).iter().all(|mode| *mode == 0) && modes(pid, &a).contains(&2));
        assert_eq!((strangers(&a, dir.path()), strangers(&b, dir.path())), ((false, false), (false, true)));
    }
    // Who reads it elsewhere, and shuts writers out, keeps the new table from being loaded, and the old one goes on.
    let other = dir.path().join("other.concise");
    fs::write(&other, format!("other,,,ro,0 64 linear {pb} 0")).expect("a table");
    let reader = Controlled::start(&fs::read_to_string(&other).expect("a table"), &[]);
    let refusal = client.load("disk", &format!("0 64 linear {pb} 0\n64 8 error {pa} 0")).expect_err("it is read");
    assert!(format!("{refusal:?}").contains("allows no one else writing"), "{refusal:?}");
    disk.write(0, 3, &[0xEE; SECTOR]).expect("write");
    reader.stop();
    client.swap("disk", &format!("0 64 linear {pb} 0\n64 8 error {pa} 0"));
    disk.write(0, 3, &[0xEE; SECTOR]).expect("write");
    drop(disk);
    process.stop();
}
