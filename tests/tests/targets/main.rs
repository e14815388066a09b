//! Stateful targets of a running process, as a guest and an operator meet them.
#![allow(missing_docs)]

mod dust;
mod golden;
mod model;
mod snapshot;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dm_tests::blk::IOERR;
use dm_tests::control::Controlled;
use dm_tests::files;
use dm_tests::vmm::{Failed, Setup, Vmm};
use tempfile::TempDir;

const SECTOR: usize = 512;
const SECTORS: usize = 2048;

/// A file of which each sector holds its number.
struct Component {
    path: PathBuf,
    _dir: TempDir,
}

/// What is in a sector that was not written.
fn fresh(sector: u64) -> Vec<u8> {
    vec![sector as u8; SECTOR]
}

impl Component {
    fn new() -> Component {
        let dir = files::disk_dir();
        let path = dir.path().join("component");
        let bytes: Vec<u8> = (0..SECTORS as u64).flat_map(fresh).collect();
        files::component(&path, &bytes);
        Component { path, _dir: dir }
    }

    fn at(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// What is in it, whatever the guest sees.
    fn sector(&self, sector: u64) -> Vec<u8> {
        read(&self.path, sector)
    }
}

fn read(path: &Path, sector: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; SECTOR];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
    bytes
}

/// A process with one device, and its guest.
fn serve(table: &str) -> (Controlled, Vmm) {
    let mut served = Controlled::start(&format!("disk,,,,{table}"), &[]);
    let vmm = served.vmm("disk", &Setup { queues: 2, ..Setup::default() });
    (served, vmm)
}

fn message(served: &Controlled, words: &[&str]) -> String {
    served.must(&[&["message", "disk", "0"], words].concat())
}

#[test]
fn a_bad_block_fails_reads_until_it_is_written() {
    let component = Component::new();
    let (served, mut vmm) = serve(&format!("0 1024 dust {} 16 512", component.at()));
    assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), fresh(20));
    // Blocks are counted from the start of the device.
    message(&served, &["addbadblock", "20"]);
    message(&served, &["addbadblock", "30", "2"]);
    assert_eq!(message(&served, &["queryblock", "20"]), "dust_query_block: block 20 found in badblocklist\n");
    assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), fresh(20), "it is not enabled yet");
    message(&served, &["enable"]);
    assert_eq!(
        served.must(&["status", "disk"]),
        format!("0 1024 dust {} fail_read_on_bad_block verbose\n", component.at())
    );
    assert_eq!(vmm.read(0, 4, SECTOR), Err(Failed(IOERR)));
    assert_eq!(vmm.read(1, 0, 8 * SECTOR), Err(Failed(IOERR)), "one bad block fails all that touches it");
    assert_eq!(vmm.read(0, 5, SECTOR).unwrap(), fresh(21));
    vmm.write(1, 4, &[7; SECTOR]).unwrap();
    assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), [7; SECTOR]);
    assert_eq!(message(&served, &["countbadblocks"]), "countbadblocks: 1 badblock(s) found\n");
    // Two writes to this one fail first.
    for _ in 0..2 {
        assert_eq!(vmm.write(0, 14, &[8; SECTOR]), Err(Failed(IOERR)));
    }
    assert_eq!(component.sector(30), fresh(30));
    vmm.write(0, 14, &[8; SECTOR]).unwrap();
    assert_eq!(component.sector(30), [8; SECTOR]);
    let refused = served.must_not(&["message", "disk", "0", "removebadblock", "30"]);
    assert!(refused.contains("dust: dust_remove_block: block 30 not found in badblocklist"), "{refused}");
    vmm.flush(0).unwrap();
    drop(vmm);
    served.stop();
}

#[test]
fn a_bad_block_does_not_cut_a_long_discard_into_millions() {
    let dir = files::disk_dir();
    let path = dir.path().join("component");
    let sectors = 0x7f_ffff;
    files::sparse(&path, (sectors + 1) * SECTOR as u64);
    let (served, mut vmm) = serve(&format!("0 {sectors} dust {} 0 512", path.display()));
    message(&served, &["addbadblock", "1000"]);
    message(&served, &["addbadblock", "1001", "1"]);
    message(&served, &["enable"]);
    let all = [dm_tests::blk::Segment { sector: 0, sectors: sectors as u32, flags: 0 }];
    assert_eq!(vmm.ranges(0, dm_tests::blk::kind::DISCARD, &all), Err(Failed(IOERR)));
    assert_eq!(message(&served, &["listbadblocks"]), "1001\n");
    vmm.ranges(0, dm_tests::blk::kind::DISCARD, &all).unwrap();
    assert_eq!(message(&served, &["listbadblocks"]), "No blocks in badblocklist\n");
    drop(vmm);
    served.stop();
}

#[test]
fn a_byte_that_is_told_and_one_by_chance_are_both_corrupted() {
    let component = Component::new();
    let features = "corrupt_bio_byte 3 w 0 0 random_write_corrupt 1000000000";
    let (served, mut vmm) = serve(&format!("0 1024 flakey {} 0 0 10 7 {features}", component.at()));
    let mut others = 0;
    for sector in 0..64 {
        vmm.write(0, sector, &[0xff; SECTOR]).unwrap();
        let written = component.sector(sector);
        let changed = written.iter().filter(|byte| **byte != 0xff).count();
        // The one by chance may be the same, or become what it was.
        assert!(changed <= 2 && (written[2] == 0 || changed <= 1), "sector {sector}");
        others += changed.saturating_sub(1);
    }
    assert!((32..=64).contains(&others), "{others} of 64 by chance");
    drop(vmm);
    served.stop();
}

#[test]
fn what_a_target_remembers_outlives_a_swap_below_it() {
    let component = Component::new();
    let low = |start: u64| format!("0 1024 linear {} {start}", component.at());
    let mut served = Controlled::start(&format!("low,,,,{};disk,,,,0 1024 dust /dev/mapper/low 0 512", low(0)), &[]);
    let mut vmm = served.vmm("disk", &Setup::default());
    message(&served, &["addbadblock", "3"]);
    message(&served, &["enable"]);
    assert_eq!(vmm.read(0, 3, SECTOR), Err(Failed(IOERR)));
    served.must(&["load", "low", "--table", &low(100)]);
    served.must(&["resume", "low"]);
    assert_eq!(vmm.read(0, 3, SECTOR), Err(Failed(IOERR)));
    assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), fresh(104));
    drop(vmm);
    served.stop();
}

#[test]
fn a_device_that_is_down_fails_drops_or_corrupts() {
    let component = Component::new();
    let flakey = |features: &str| format!("0 1024 flakey {} 0 0 10 {features}", component.at());
    // Without features reads and writes fail.
    let (served, mut vmm) = serve(flakey("").trim_end());
    assert!(served.must(&["table", "disk"]).ends_with(" 0 10 2 error_reads error_writes\n"));
    assert_eq!(vmm.read(0, 0, SECTOR), Err(Failed(IOERR)));
    assert_eq!(vmm.write(0, 0, &[1; SECTOR]), Err(Failed(IOERR)));
    let change = |table: &str| {
        served.must(&["load", "disk", "--table", table]);
        served.must(&["resume", "disk"]);
    };
    change(&flakey("1 drop_writes"));
    vmm.write(0, 0, &[1; SECTOR]).unwrap();
    assert_eq!(vmm.read(0, 0, SECTOR).unwrap(), fresh(0));
    change(&flakey("5 corrupt_bio_byte 513 r 99 0"));
    let mut expected = [fresh(8), fresh(9)].concat();
    expected[512] = 99;
    assert_eq!(vmm.read(1, 8, 2 * SECTOR).unwrap(), expected);
    assert_eq!(component.sector(9), fresh(9));
    change(&flakey("5 corrupt_bio_byte 2 w 77 0"));
    vmm.write(0, 5, &[3; SECTOR]).unwrap();
    let mut expected = vec![3; SECTOR];
    expected[1] = 77;
    assert_eq!((component.sector(5), vmm.read(0, 5, SECTOR).unwrap()), (expected.clone(), expected));
    change(&flakey("2 random_read_corrupt 1000000000"));
    let (read, right) = (vmm.read(0, 0, 8 * SECTOR).unwrap(), (0..8).flat_map(fresh));
    assert!(read.into_iter().zip(right).filter(|(is, was)| is != was).count() <= 1 + SECTOR);
    // Up.
    change(&format!("0 1024 flakey {} 0 1000 0", component.at()));
    vmm.write(0, 0, &[9; SECTOR]).unwrap();
    assert_eq!(component.sector(0), [9; SECTOR]);
    drop(vmm);
    served.stop();
}

#[test]
fn a_delay_holds_back_until_its_time_or_a_suspend() {
    let component = Component::new();
    let table = format!("0 1024 delay {0} 0 300 {0} 0 0", component.at());
    let (served, mut vmm) = serve(&table);
    let began = Instant::now();
    assert_eq!(vmm.read(0, 3, SECTOR).unwrap(), fresh(3));
    assert!(began.elapsed() >= Duration::from_millis(300), "held back for {:?}", began.elapsed());
    vmm.write(0, 3, &[5; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(served.must(&["status", "disk"]), "0 1024 delay 0 0 0\n");
    // A day; but a suspend lets go what is held.
    let day = format!("0 1024 delay {} 0 86400000", component.at());
    served.must(&["load", "disk", "--table", &day]);
    served.must(&["resume", "disk"]);
    let request = dm_tests::blk::Request {
        kind: dm_tests::blk::kind::IN,
        sector: 3,
        data: dm_tests::blk::Data::FromDevice(SECTOR),
    };
    let mut rng = fastrand::Rng::with_seed(1);
    vmm.submit(1, 0, &request, &dm_tests::blk::Shape::PLAIN, &mut rng);
    vmm.kick(1);
    dm_tests::control::wait_until("the read is held", || served.must(&["status", "disk"]) == "0 1024 delay 1 0 0\n");
    served.must(&["suspend", "disk"]);
    assert_eq!(vmm.wait(1).data, [5; SECTOR]);
    // So does a guest that stops its queue, or goes.
    served.must(&["resume", "disk"]);
    vmm.submit(1, 0, &request, &dm_tests::blk::Shape::PLAIN, &mut rng);
    vmm.kick(1);
    dm_tests::control::wait_until("the read is held", || served.must(&["status", "disk"]) == "0 1024 delay 1 0 0\n");
    vmm.stop_ring(1).unwrap();
    assert_eq!(vmm.complete(1).expect("it ended before the queue did").data, [5; SECTOR]);
    served.must(&["load", "disk", "--table", &table]);
    served.must(&["resume", "disk"]);
    assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), fresh(4));
    drop(vmm);
    served.stop();
}

#[test]
fn targets_lie_on_each_other_and_in_stripes() {
    let component = Component::new();
    let at = component.at();
    let concise = format!(
        "bad,,,,0 512 dust {at} 0 512;slow,,,,0 512 delay /dev/mapper/bad 0 1;\
         disk,,,,0 512 striped 2 8 /dev/mapper/slow 0 {at} 1024,512 16 linear /dev/mapper/slow 8"
    );
    let mut served = Controlled::start(&concise, &[]);
    let mut vmm = served.vmm("disk", &Setup::default());
    served.must(&["message", "bad", "0", "addbadblock", "9"]);
    served.must(&["message", "bad", "0", "enable"]);
    assert_eq!(vmm.read(0, 0, 16 * SECTOR).unwrap(), (0..8).chain(1024..1032).flat_map(fresh).collect::<Vec<_>>());
    // Sector 17 of the disk is sector 9 of the stripe, and so is sector 513.
    assert_eq!(vmm.read(0, 16, 8 * SECTOR), Err(Failed(IOERR)));
    assert_eq!(vmm.read(0, 513, SECTOR), Err(Failed(IOERR)));
    assert_eq!(vmm.read(0, 514, SECTOR).unwrap(), fresh(10));
    vmm.write(0, 513, &[1; SECTOR]).unwrap();
    assert_eq!(vmm.read(0, 17, SECTOR).unwrap(), [1; SECTOR]);
    vmm.flush(0).unwrap();
    drop(vmm);
    served.stop();
}

#[test]
fn a_delay_moves_with_what_it_lies_on_for_all_its_classes() {
    for groups in 1..=3 {
        let component = Component::new();
        let low = |start: u64| format!("0 512 linear {} {start}", component.at());
        let legs = vec!["/dev/mapper/low 0 0"; groups].join(" ");
        let mut served = Controlled::start(&format!("low,,,,{};disk,,,,0 512 delay {legs}", low(0)), &[]);
        let mut vmm = served.vmm("disk", &Setup::default());
        vmm.write(0, 3, &[1; SECTOR]).unwrap();
        served.must(&["load", "low", "--table", &low(1000)]);
        served.must(&["resume", "low"]);
        vmm.write(0, 4, &[2; SECTOR]).unwrap();
        vmm.flush(0).unwrap();
        assert_eq!((component.sector(3), component.sector(1003)), (vec![1; SECTOR], fresh(1003)), "{groups} groups");
        assert_eq!((component.sector(4), component.sector(1004)), (fresh(4), vec![2; SECTOR]), "{groups} groups");
        assert_eq!(vmm.read(0, 4, SECTOR).unwrap(), [2; SECTOR]);
        drop(vmm);
        served.stop();
    }
}

#[test]
fn stripes_over_targets_find_them_among_others() {
    let component = Component::new();
    let at = component.at();
    // The disk has a target of its own before those of the stripes, at two levels of stripes.
    let concise = format!(
        "a,,,,0 64 delay {at} 0 0;b,,,,0 64 dust {at} 64 512;c,,,,0 64 delay {at} 512 0;\
         s,,,,0 128 striped 2 8 /dev/mapper/a 0 /dev/mapper/b 0;\
         t,,,,0 128 striped 2 16 /dev/mapper/s 0 /dev/mapper/s 64;\
         disk,,,,0 64 linear /dev/mapper/c 0,64 112 linear /dev/mapper/s 16,176 112 linear /dev/mapper/t 16"
    );
    let mut served = Controlled::start(&concise, &[]);
    let mut vmm = served.vmm("disk", &Setup::default());
    let stripe = |sector: u64| {
        if (sector / 8).is_multiple_of(2) { sector / 16 * 8 + sector % 8 } else { 64 + sector / 16 * 8 + sector % 8 }
    };
    for sector in 0..112 {
        assert_eq!(
            vmm.read(0, 64 + sector, SECTOR).unwrap(),
            fresh(stripe(sector + 16)),
            "sector {sector} of the stripes"
        );
        let above = sector + 16;
        let below = if (above / 16).is_multiple_of(2) {
            above / 32 * 16 + above % 16
        } else {
            64 + above / 32 * 16 + above % 16
        };
        assert_eq!(
            vmm.read(0, 176 + sector, SECTOR).unwrap(),
            fresh(stripe(below)),
            "sector {sector} of stripes of stripes"
        );
    }
    assert_eq!(vmm.read(0, 5, SECTOR).unwrap(), fresh(517));
    served.must(&["message", "b", "0", "addbadblock", "72"]);
    served.must(&["message", "b", "0", "enable"]);
    // Sector 8 of b is sector 24 of the stripes.
    assert_eq!(vmm.read(0, 64 + 8, SECTOR), Err(Failed(IOERR)));
    drop(vmm);
    served.stop();
}
