//! Components that fail while they are served.

use dm_tests::blk::{Segment, kind};
use dm_tests::daemon::Served;
use dm_tests::files::{self, SmallFs};
use dm_tests::skip;
use dm_tests::vmm::Setup;

use crate::{IOERR, Piece, SECTOR, pattern};

#[test]
fn a_component_that_shrinks_fails_where_it_is_gone() {
    let memory = files::memory_dir();
    let disk = files::disk_dir();
    for dir in [Some(&disk), memory.as_ref()].into_iter().flatten() {
        let path = dir.path().join("shrinks");
        let bytes = pattern(512, 3);
        files::component(&path, &bytes);
        let other = Piece::new(64);
        let table = format!("0 512 linear {} 0\n512 64 linear {} 0\n", path.display(), other.name());
        let mut served = Served::table(&table, &[]);
        let mut vmm = served.vmm(&Setup::default());
        assert!(vmm.read(0, 0, 64 * SECTOR).as_deref() == Ok(&bytes[..64 * SECTOR]));
        files::truncate(&path, 256 * SECTOR as u64);
        assert!(vmm.read(0, 192, 64 * SECTOR).as_deref() == Ok(&bytes[192 * SECTOR..][..64 * SECTOR]));
        assert_eq!(vmm.read(0, 256, SECTOR), Err(IOERR));
        assert_eq!(vmm.read(0, 300, 64 * SECTOR), Err(IOERR));
        assert_eq!(vmm.read(0, 224, 64 * SECTOR), Err(IOERR), "across the new end");
        // The rest of the disk does not notice.
        assert!(vmm.read(0, 512, 64 * SECTOR).as_ref() == Ok(&other.bytes));
        vmm.write(0, 520, &pattern(8, 5)).expect("write");
        vmm.write(0, 8, &pattern(8, 6)).expect("write");
        files::truncate(&path, 0);
        assert_eq!(vmm.read(0, 0, SECTOR), Err(IOERR));
        assert!(vmm.read(0, 520, 8 * SECTOR) == Ok(pattern(8, 5)));
        drop(vmm);
        served.daemon.assert_running();
        served.daemon.stop();
    }
}

#[test]
fn a_full_file_system_fails_the_writes_that_find_no_room() {
    if !skip::is_root() {
        return skip::skip(
            "a_full_file_system_fails_the_writes_that_find_no_room",
            "mounting a small tmpfs needs root",
        );
    }
    let small = SmallFs::mount(2 << 20).expect("mount a tmpfs");
    let path = small.path().join("sparse");
    files::sparse(&path, 8 << 20);
    let other = Piece::new(64);
    let table = format!("0 16384 linear {} 0\n16384 64 linear {} 0\n", path.display(), other.name());
    let mut served = Served::table(&table, &[]);
    let mut vmm = served.vmm(&Setup::default());
    let mut written = Vec::new();
    let mut refused = Vec::new();
    for at in (0..16384).step_by(128) {
        match vmm.write(0, at, &pattern(128, at as u8 | 1)) {
            Ok(()) => written.push(at),
            Err(e) => {
                assert_eq!(e, IOERR, "sector {at}");
                refused.push(at);
            }
        }
    }
    assert!(written.len() >= 16, "{} writes of 64 KiB fit", written.len());
    assert!(refused.len() >= 96, "{} writes did not fit", refused.len());
    for &at in &written {
        assert!(vmm.read(0, at, 128 * SECTOR) == Ok(pattern(128, at as u8 | 1)), "sector {at}");
    }
    vmm.write(0, 16384, &pattern(8, 9)).expect("the other component has room");
    let give_back = Segment { sector: 0, sectors: 1024, flags: 0 };
    vmm.ranges(0, kind::DISCARD, &[give_back]).expect("discard");
    vmm.write(0, refused[0], &pattern(128, 7)).expect("there is room again");
    assert!(vmm.read(0, refused[0], 128 * SECTOR) == Ok(pattern(128, 7)));
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn the_log_stays_short_when_everything_fails() {
    let piece = Piece::new(512);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    files::truncate(&piece.path, 0);
    for _ in 0..20_000 {
        assert_eq!(vmm.read(0, 8, SECTOR), Err(IOERR));
    }
    let lines = served.daemon.log().lines().count();
    assert!(lines < 200, "{lines} lines of log");
    drop(vmm);
    served.daemon.stop();
}
