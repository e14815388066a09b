//! The log of log-writes: what comes to it and when, as the kernel's transcript has it and as a model of bytes has it; and
//! what `replay` makes of it.
#![allow(missing_docs)]

mod ground;
mod oracle;
mod replay;
mod workload;

use std::time::Duration;

use dm_tests::blk::{IOERR, Segment, feature, kind};
use dm_tests::control::{Controlled, wait_until};
use dm_tests::vmm::{Failed, Setup};
use rustix::process::Signal;

use ground::{Ground, SECTOR};

/// Writes of 64 KiB without a flush, more than there is memory for.
const MANY: u64 = 1280;

#[test]
fn a_full_log_ends_and_the_disk_goes_on() {
    // The super block, an entry with seven sectors, and one sector that is never used.
    let ground = Ground::new(64, 10);
    let (served, mut vmm) = ground.serve();
    vmm.write(0, 0, &[1; 7 * SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    // The flush's entry has no place any more: the kernel gives it one all the same.
    assert_eq!(ground.status(&served), "1 9 logging_disabled");
    vmm.write(0, 0, &[2; 7 * SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    ground.message(&served, &["mark", "unheard"]);
    assert_eq!(ground.status(&served), "1 9 logging_disabled");
    assert_eq!(ground.disk()[..7 * SECTOR], [2; 7 * SECTOR]);
    drop(vmm);
    served.stop();
    // What is there was never counted.
    let (code, out, _) = ground.replay(&[]);
    assert_eq!((code, out.as_str()), (0, "Log version=1, sectorsize=512, entries=0\n0 flushes\n"));
}

#[test]
fn a_log_that_fails_ends_and_the_disk_goes_on() {
    let ground = Ground::new(64, 64);
    let bad =
        format!("log,,,,0 64 dust {} 0 512;disk,,,,0 64 log-writes {} /dev/mapper/log", ground.log(), ground.image());
    let (served, mut vmm) = ground.serve_table(&bad, &Setup::default());
    for word in [&["message", "log", "0", "addbadblock", "5", "99"][..], &["message", "log", "0", "enable"]] {
        served.must(word);
    }
    vmm.write(0, 0, &[1; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(ground.status(&served), "2 3");
    vmm.write(0, 1, &[2; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(ground.status(&served), "4 6 logging_disabled");
    vmm.write(0, 2, &[3; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(ground.disk()[..3 * SECTOR], [[1; SECTOR], [2; SECTOR], [3; SECTOR]].concat());
    drop(vmm);
    let log = served.daemon.log();
    assert!(log.contains("log-writes: Error writing log block, error=5"), "{log}");
    served.stop();
    let (code, out, err) = ground.replay(&[]);
    assert!(code == 0 && out.contains("entries=2\n1 flushes\n"), "{out}{err}");
}

#[test]
fn a_disk_that_is_not_written_has_no_log() {
    let ground = Ground::new(64, 64);
    ground.write_log(&[7; 64 * SECTOR]);
    let table = ground.table();
    let read_only_device = table.replacen(",,,,", ",,,ro,", 1);
    for (table, args) in [(&table, &["--read-only"][..]), (&read_only_device, &[])] {
        let mut served = Controlled::start(table, args);
        let mut vmm = served.vmm("disk", &Setup::default());
        assert_eq!(vmm.read_all(0).unwrap(), ground.disk());
        assert_eq!(vmm.write(0, 0, &[1; SECTOR]), Err(Failed(IOERR)));
        assert_eq!(ground.status(&served), "0 0");
        let refused = served.must_not(&["message", "disk", "0", "mark", "one"]);
        assert!(refused.contains("log-writes: the log is not written: the device is read-only"), "{refused}");
        served.must(&["suspend", "disk"]);
        served.must(&["resume", "disk"]);
        drop(vmm);
        served.daemon.signal(Signal::TERM);
        served.daemon.wait(Duration::from_secs(30)).expect("it ends");
        let log = served.daemon.log();
        assert!(!log.contains("ERROR"), "{log}");
        assert_eq!(ground.log_bytes(), [7; 64 * SECTOR]);
    }
}

#[test]
fn what_failed_is_not_in_the_log() {
    let ground = Ground::new(64, 64);
    let bad =
        format!("bad,,,,0 64 dust {} 0 512;disk,,,,0 64 log-writes /dev/mapper/bad {}", ground.image(), ground.log());
    let (served, mut vmm) = ground.serve_table(&bad, &Setup::default());
    for word in [&["message", "bad", "0", "addbadblock", "5", "1"][..], &["message", "bad", "0", "enable"]] {
        served.must(word);
    }
    assert_eq!(vmm.write(0, 5, &[1; SECTOR]), Err(Failed(IOERR)));
    vmm.write(0, 5, &[2; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(ground.status(&served), "2 3");
    drop(vmm);
    served.stop();
    assert_eq!(ground.replayed(&[])[5 * SECTOR..6 * SECTOR], [2; SECTOR]);
}

#[test]
fn a_guest_without_flushes_is_logged_write_by_write() {
    let ground = Ground::new(64, 256);
    let table = ground.table();
    // A driver that knows no flush has a disk that writes through.
    let (served, mut vmm) = ground.serve_table(&table, &Setup::default().without(feature::FLUSH | feature::CONFIG_WCE));
    for sector in 0..5 {
        vmm.write(0, sector, &[sector as u8 + 1; SECTOR]).unwrap();
    }
    assert_eq!(ground.status(&served), "5 10");
    let clear = Segment { sector: 1, sectors: 2, flags: 0 };
    vmm.ranges(0, kind::WRITE_ZEROES, &[clear]).unwrap();
    assert_eq!(ground.status(&served), "6 13");
    // It is counted: a kill now loses nothing.
    let (_, out, _) = ground.replay(&["--list"]);
    assert_eq!(out.lines().count(), 6, "{out}");
    assert!(out.ends_with("5@12: sector 1, size 1024, flags 0x2(FUA)\n"), "{out}");
    drop(vmm);
    served.stop();
    assert_eq!(ground.replayed(&[]), ground.disk());
}

#[test]
fn memory_has_a_bound() {
    // 64 MiB is held back at most.
    const PIECE: u64 = 64 << 10;
    let sectors = PIECE / SECTOR as u64;
    let ground = Ground::new(MANY * sectors, MANY * (sectors + 2) + 4096);
    let (served, mut vmm) = ground.serve();
    for n in 0..MANY {
        vmm.write((n % 2) as usize, n * sectors, &vec![n as u8; PIECE as usize]).unwrap();
    }
    let status = ground.status(&served);
    let logged: u64 = status.split(' ').next().unwrap().parse().unwrap();
    assert!((MANY / 5..MANY).contains(&logged), "what there was no room for came to the log: {status}");
    vmm.flush(0).unwrap();
    assert_eq!(ground.status(&served).split(' ').next().unwrap(), (MANY + 1).to_string());
    // Discards cost something, too.
    for n in 0..2000 {
        vmm.ranges(0, kind::DISCARD, &[Segment { sector: n, sectors: 1, flags: 0 }]).unwrap();
    }
    drop(vmm);
    served.stop();
    assert_eq!(ground.replayed(&[]), ground.disk());
}

#[test]
fn marks_come_to_the_log_by_themselves() {
    let ground = Ground::new(64, 64);
    let served = ground.start(&ground.table());
    assert_eq!(ground.status(&served), "0 0");
    ground.message(&served, &["MARK", "one"]);
    assert_eq!(ground.status(&served), "1 1");
    wait_until("the mark is in the log", || {
        ground.replay(&["--list"]).1 == "0@2: sector 0, size 0, flags 0x8(MARK) one\n"
    });
    // What is longer than a block is cut, as the kernel does.
    let long = "x".repeat(600);
    ground.message(&served, &["mark", &long]);
    // A suspended device takes marks, too.
    served.must(&["suspend", "disk"]);
    ground.message(&served, &["mark", "asleep"]);
    served.must(&["resume", "disk"]);
    wait_until("all marks are in the log", || ground.replay(&["--list"]).1.lines().count() == 3);
    served.stop();
    let (_, out, _) = ground.replay(&[]);
    let cut = &long[..479];
    let marks = format!(
        "mark one at entry 0\nmark {cut} at entry 1\nmark asleep at entry 2\nmark dm-log-writes-end at entry 3\n"
    );
    assert_eq!(out, format!("Log version=1, sectorsize=512, entries=4\n0 flushes\n{marks}"));
    assert_eq!(ground.replay(&["--to", &ground.fresh(), &format!("--until=mark:{long}")]).0, 0);
}

#[test]
fn a_table_on_the_same_log_begins_it_anew() {
    let ground = Ground::new(64, 256);
    let (served, mut vmm) = ground.serve();
    for sector in 0..6 {
        vmm.write(0, sector, &[1; SECTOR]).unwrap();
        vmm.flush(0).unwrap();
    }
    assert_eq!(ground.status(&served), "12 18");
    served.must(&["load", "disk", "--table", &ground.line()]);
    // A table that was never live leaves the log alone.
    served.must(&["clear", "disk"]);
    let (_, out, _) = ground.replay(&[]);
    assert!(out.contains("entries=12\n"), "{out}");
    served.must(&["load", "disk", "--table", &ground.line()]);
    served.must(&["resume", "disk"]);
    // The old one's end came before the new one's beginning.
    let (_, out, _) = ground.replay(&[]);
    assert!(out.contains("entries=13\n6 flushes\nmark dm-log-writes-end at entry 12\n"), "{out}");
    assert_eq!(ground.status(&served), "0 0");
    vmm.write(0, 9, &[2; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    drop(vmm);
    served.stop();
    let (_, out, _) = ground.replay(&[]);
    assert_eq!(out, "Log version=1, sectorsize=512, entries=3\n1 flushes\nmark dm-log-writes-end at entry 2\n");
}

#[test]
fn sectors_are_those_of_the_device_not_of_the_line() {
    let ground = Ground::new(64, 256);
    let table = format!("disk,,,,0 16 zero,16 48 log-writes {} {}", ground.image(), ground.log());
    let (served, mut vmm) = ground.serve_table(&table, &Setup::default());
    vmm.write(0, 20, &[7; SECTOR]).unwrap();
    vmm.flush(0).unwrap();
    assert_eq!(ground.disk()[20 * SECTOR..21 * SECTOR], [7; SECTOR]);
    drop(vmm);
    served.stop();
    assert!(ground.replay(&["--list"]).1.starts_with("0@2: sector 20, size 512, flags 0x0(NONE)\n"));
    // The kernel loads that, and fails what is behind the device's end.
    let beyond = format!("disk,,,,0 32 zero,32 48 log-writes {} {}", ground.image(), ground.log());
    let refused = ground.refused(&beyond);
    assert!(refused.contains("too small for target: start=32, len=48, dev_size=64"), "{refused}");
    // It takes a log on the device itself, too, which writes over what the guest writes.
    let image = ground.image();
    for table in [
        format!("disk,,,,0 64 log-writes {image} {image}"),
        format!("log,,,,0 8 linear {image} 56;disk,,,,0 64 log-writes {image} /dev/mapper/log"),
    ] {
        let refused = ground.refused(&table);
        assert!(refused.contains("refused[overlap]"), "{refused}");
    }
}
