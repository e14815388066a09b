//! Errors of the medium on the real thing: the right status, the rest goes on, the log stays short, and what ends ends.

use dm_tests::blk::OK;
use dm_tests::daemon::Served;
use dm_tests::files;
use dm_tests::loops::{self, Loop, LoopFs};
use dm_tests::skip;
use dm_tests::vmm::{Failed, Setup, Vmm};

use crate::SECTOR;

const IOERR: Result<(), Failed> = Err(Failed(dm_tests::blk::IOERR));
/// Sectors of the component that fails, and of the one that does not.
const BAD: u64 = 8192;
const GOOD: u64 = 64;
const LEN: usize = 8 * SECTOR;
/// Requests of a flood, and the lines of log that all of them may cause.
const FLOOD: usize = 5000;
const LINES: usize = 100;

fn can_run(test: &str) -> bool {
    let missing = loops::missing();
    missing.into_iter().for_each(|why| skip::skip(test, why));
    missing.is_none()
}

/// A table of a component that will fail and one that will not.
fn table(bad: &std::path::Path, good: &std::path::Path) -> String {
    format!("0 {BAD} linear {} 0\n{BAD} {GOOD} linear {} 0\n", bad.display(), good.display())
}

fn good_goes_on(vmm: &mut Vmm, value: u8) {
    vmm.write(0, BAD + 8, &[value; LEN]).expect("the other component is well");
    assert!(vmm.read(0, BAD + 8, LEN).as_deref() == Ok(&[value; LEN]));
}

/// A flood of requests that fail makes a few lines.
fn short_log(served: &Served, vmm: &mut Vmm, mut fails: impl FnMut(&mut Vmm) -> bool) {
    let before = served.daemon.log().lines().count();
    for _ in 0..FLOOD {
        assert!(fails(vmm), "it does not fail any more");
    }
    let lines = served.daemon.log().lines().count() - before;
    assert!(lines < LINES, "{lines} lines of log");
}

#[test]
fn a_full_disk_fails_writes_until_there_is_room_again() {
    if !can_run("a_full_disk_fails_writes_until_there_is_room_again") {
        return;
    }
    let fs = LoopFs::mount(16 << 20).expect("an ext4");
    let (bad, good, other) = (fs.path().join("sparse"), fs.path().join("good"), fs.path().join("other"));
    files::component(&good, &vec![1; GOOD as usize * SECTOR]);
    files::sparse(&bad, BAD * SECTOR as u64);
    let mut served = Served::table(&table(&bad, &good), &[]);
    let mut vmm = served.vmm(&Setup::default());
    vmm.write(0, 0, &[2; LEN]).expect("there is room");
    // Someone else fills the file system.
    let mut filler = std::fs::File::create(&other).expect("a file");
    let block = vec![3; 4096];
    while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    drop(filler);
    assert_eq!(vmm.write(0, 1024, &[4; LEN]), IOERR);
    short_log(&served, &mut vmm, |vmm| vmm.write(0, 4096, &[4; LEN]) == IOERR);
    assert!(vmm.read(0, 0, LEN).as_deref() == Ok(&[2; LEN]) && vmm.read(0, 1024, LEN).as_deref() == Ok(&[0; LEN]));
    vmm.write(0, 0, &[5; LEN]).expect("this has its place already");
    good_goes_on(&mut vmm, 6);
    std::fs::remove_file(&other).expect("remove");
    vmm.write(0, 1024, &[7; LEN]).expect("there is room again");
    vmm.flush(0).expect("flush");
    assert!(vmm.read(0, 1024, LEN).as_deref() == Ok(&[7; LEN]));
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_device_that_is_gone_in_part_fails_there_and_comes_back() {
    if !can_run("a_device_that_is_gone_in_part_fails_there_and_comes_back") {
        return;
    }
    let dir = files::disk_dir();
    let (image, good) = (dir.path().join("image"), dir.path().join("good"));
    files::component(&image, &vec![1; BAD as usize * SECTOR]);
    files::component(&good, &vec![1; GOOD as usize * SECTOR]);
    let device = Loop::attach(&image, false).expect("a loop device");
    let mut served = Served::table(&table(&device.node, &good), &[]);
    let mut vmm = served.vmm(&Setup::default());
    assert!(vmm.read(0, 8000, LEN).as_deref() == Ok(&[1; LEN]));
    // The loop driver fails what lies past the end of its file, as a disk does with bad sectors.
    files::truncate(&image, BAD / 2 * SECTOR as u64);
    device.resize().expect("losetup -c");
    assert_eq!(vmm.read(0, 8000, LEN).map(drop), IOERR);
    assert_eq!(vmm.read(0, BAD / 2 - 4, LEN).map(drop), IOERR, "across the end");
    assert_eq!(vmm.write(0, 8000, &[9; LEN]), IOERR);
    short_log(&served, &mut vmm, |vmm| vmm.read(0, 8000, LEN).map(drop) == IOERR);
    assert!(vmm.read(0, 0, LEN).as_deref() == Ok(&[1; LEN]));
    good_goes_on(&mut vmm, 6);
    files::truncate(&image, BAD * SECTOR as u64);
    device.resize().expect("losetup -c");
    vmm.write(0, 8000, &[7; LEN]).expect("it is back");
    assert!(vmm.read(0, 8000, LEN).as_deref() == Ok(&[7; LEN]));
    vmm.flush(0).expect("flush");
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_file_system_that_shuts_down_fails_what_is_on_it() {
    if !can_run("a_file_system_that_shuts_down_fails_what_is_on_it") {
        return;
    }
    let fs = LoopFs::mount(32 << 20).expect("an ext4");
    let dir = files::disk_dir();
    let (bad, good) = (fs.path().join("component"), dir.path().join("good"));
    files::component(&bad, &vec![1; BAD as usize * SECTOR]);
    files::component(&good, &vec![1; GOOD as usize * SECTOR]);
    let mut served = Served::table(&table(&bad, &good), &[]);
    let mut vmm = served.vmm(&Setup::default());
    vmm.write(0, 0, &[2; LEN]).expect("write");
    // As ext4 does by itself after an error: read-only, whoever has files open.
    fs.remount("abort").expect("mount -o remount,abort");
    assert_eq!(vmm.write(0, 0, &[3; LEN]), IOERR);
    assert_eq!(vmm.flush(0), IOERR, "what was written before is not known to be there");
    short_log(&served, &mut vmm, |vmm| vmm.write(0, 0, &[3; LEN]) == IOERR);
    assert_eq!(vmm.flush(0), IOERR);
    good_goes_on(&mut vmm, 6);
    let request = dm_tests::blk::Request {
        kind: dm_tests::blk::kind::GET_ID,
        sector: 0,
        data: dm_tests::blk::Data::FromDevice(20),
    };
    assert_eq!(vmm.run(0, &request).status, OK);
    drop(vmm);
    served.daemon.stop();
}
