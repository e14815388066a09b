//! Verbs, and what a front end sees of them.

use std::path::PathBuf;
use std::time::Duration;

use dm_tests::blk::{Data, IOERR, OK, Request, Shape, kind};
use dm_tests::control::{Controlled, wait_until, which};
use dm_tests::files;
use dm_tests::vmm::{Failed, Setup, Vmm};
use dm_tests::wire::protocol;
use fastrand::Rng;
use serde_json::json;
use tempfile::TempDir;

use crate::SECTOR;

const SECTORS: u64 = 256;
const LEN: usize = 8 * SECTOR;

/// Files, each filled with its number.
struct Pieces {
    paths: Vec<PathBuf>,
    _dir: TempDir,
}

impl Pieces {
    fn new(count: u8) -> Pieces {
        let dir = files::disk_dir();
        let piece = |n: u8| {
            let path = dir.path().join(format!("piece{n}"));
            files::component(&path, &vec![n; SECTORS as usize * SECTOR]);
            path
        };
        Pieces { paths: (1..=count).map(piece).collect(), _dir: dir }
    }

    fn name(&self, n: u8) -> &str {
        self.paths[usize::from(n) - 1].to_str().expect("a path of ASCII")
    }

    /// A line over all of a piece.
    fn line(&self, n: u8) -> String {
        format!("0 {SECTORS} linear {} 0", self.name(n))
    }
}

/// A disk of 256 sectors in a file that is filled with 1, and files with 2 and 3.
fn one_disk(args: &[&str]) -> (Controlled, Pieces) {
    let pieces = Pieces::new(3);
    let controlled = Controlled::start(&format!("disk,,,rw,{}", pieces.line(1)), args);
    (controlled, pieces)
}

fn first(vmm: &mut Vmm) -> Result<u8, Failed> {
    let bytes = vmm.read(0, 0, LEN)?;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "of several pieces");
    Ok(bytes[0])
}

fn submit(vmm: &mut Vmm, slot: usize, sector: u64, bytes: &[u8]) {
    let request = Request { kind: kind::OUT, sector, data: Data::ToDevice(bytes) };
    vmm.submit(0, slot, &request, &Shape::PLAIN, &mut Rng::with_seed(1));
    vmm.kick(0);
}

#[test]
fn a_device_that_is_created_is_served_and_one_that_is_removed_is_not() {
    let pieces = Pieces::new(2);
    let mut controlled = Controlled::empty();
    assert_eq!(controlled.must(&["ls"]), "No devices found\n");
    controlled.must(&["create", "new", "--uuid", "U-7", "--table", &pieces.line(2)]);
    let mut vmm = controlled.vmm("new", &Setup::default());
    assert_eq!(first(&mut vmm), Ok(2));
    assert_eq!(vmm.get_id(0).expect("a serial number")[..3], *b"U-7");
    vmm.write(0, 8, &[9; LEN]).expect("write");
    assert_eq!(controlled.client().info("new")["open_count"], 1);

    assert!(controlled.must_not(&["remove", "new"]).contains("Device or resource busy"));
    assert_eq!(first(&mut vmm), Ok(2), "a removal that was refused changes nothing");
    drop(vmm);
    wait_until("it stays in use", || controlled.client().info("new")["open_count"] == 0);
    controlled.must(&["remove", "new"]);
    assert!(!controlled.socket("new").exists());
    assert_eq!(controlled.must(&["ls"]), "No devices found\n");
    // Its name, number and component are free.
    controlled.must(&["create", "new", "--table", &pieces.line(2)]);
    assert_eq!(controlled.client().info("new")["minor"], 0);
    let bytes = controlled.vmm("new", &Setup::default()).read(0, 8, LEN);
    assert!(bytes == Ok(vec![9; LEN]));
    controlled.stop();
}

#[test]
fn a_deferred_removal_waits_for_the_front_end() {
    let (mut controlled, _pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    controlled.must(&["remove", "--deferred", "disk"]);
    assert!(controlled.must(&["info", "disk"]).contains("ACTIVE (DEFERRED REMOVE)"));
    assert_eq!(first(&mut vmm), Ok(1));
    controlled.must(&["message", "disk", "0", "@cancel_deferred_remove"]);
    assert!(!controlled.must(&["info", "disk"]).contains("DEFERRED"));
    controlled.must(&["remove", "--deferred", "disk"]);
    drop(vmm);
    wait_until("it does not go", || controlled.must(&["ls"]) == "No devices found\n");
    // It goes before the name does: another device may have that at once.
    assert!(!controlled.socket("disk").exists());
    controlled.stop();
}

#[test]
fn a_forced_removal_answers_errors_first() {
    let (mut controlled, _pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    assert_eq!(first(&mut vmm), Ok(1));
    // As the kernel's does, it says that the device is in use, and has replaced its table.
    let output = controlled.dmsetup(&["remove", "--force", "disk"]);
    assert_eq!(first(&mut vmm), Err(Failed(IOERR)), "after {output:?}");
    assert_eq!(vmm.write(0, 0, &[1; LEN]), Err(Failed(IOERR)));
    drop(vmm);
    wait_until("it does not go", || {
        controlled.dmsetup(&["remove", "disk"]);
        controlled.must(&["ls"]) == "No devices found\n"
    });
    controlled.stop();
}

#[test]
fn a_device_that_is_renamed_keeps_its_front_end() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    controlled.must(&["rename", "disk", "other name"]);
    assert_eq!(first(&mut vmm), Ok(1));
    assert!(!controlled.socket("disk").exists());
    drop(vmm);
    let mut vmm = controlled.vmm("other\\x20name", &Setup::default());
    assert_eq!(first(&mut vmm), Ok(1));
    controlled.must(&["create", "disk", "--table", &pieces.line(2)]);
    assert_eq!(first(&mut controlled.vmm("disk", &Setup::default())), Ok(2));
    assert!(controlled.must_not(&["rename", "disk", "other name"]).contains("one that already exists"));
    // Where something else has the place of its socket it keeps its name.
    std::fs::write(controlled.socket("taken"), "a file").expect("write");
    controlled.must_not(&["rename", "disk", "taken"]);
    assert_eq!(controlled.must(&["ls"]), "disk\t(0:1)\nother name\t(0:0)\n");
    assert_eq!(first(&mut controlled.vmm("disk", &Setup::default())), Ok(2));
    drop(vmm);
    controlled.stop();
}

#[test]
fn what_lies_on_a_device_changes_with_it() {
    let pieces = Pieces::new(3);
    let top = format!("0 64 linear /dev/mapper/low 8,64 64 linear {} 0", pieces.name(3));
    let mut controlled = Controlled::start(&format!("top,,,rw,{top};low,,,rw,{}", pieces.line(1)), &[]);
    let mut vmm = controlled.vmm("top", &Setup::default());
    assert_eq!(first(&mut vmm), Ok(1));
    controlled.must(&["load", "low", "--table", &pieces.line(2)]);
    assert_eq!(first(&mut vmm), Ok(1), "not before it is resumed");
    controlled.must(&["resume", "low"]);
    assert_eq!(first(&mut vmm), Ok(2));
    assert!(vmm.read(0, 64, LEN) == Ok(vec![3; LEN]));

    // What is suspended takes what lies on it along.
    controlled.must(&["suspend", "low"]);
    submit(&mut vmm, 0, 0, &[7; LEN]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(vmm.complete(0).is_none(), "served while what it lies on is suspended");
    controlled.must(&["resume", "low"]);
    assert_eq!(vmm.wait(0).status, OK);
    assert_eq!(std::fs::read(&pieces.paths[1]).expect("read")[8 * SECTOR], 7);

    assert_eq!(
        controlled.must(&["deps", "-o", "devname", "top"]).trim_end(),
        format!("2 dependencies\t: (low) ({})", pieces.name(3))
    );
    let tree = controlled.must(&["ls", "--tree"]);
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[0].starts_with("top (0:") && lines.iter().any(|line| line.contains("low (0:")), "{tree}");
    assert!(!lines.iter().any(|line| line.starts_with("low")), "{tree}");

    assert!(controlled.must_not(&["remove", "low"]).contains("busy"));
    for cycle in ["low", "top"] {
        let refused = controlled.must_not(&["load", "low", "--table", &format!("0 8 linear /dev/mapper/{cycle} 0")]);
        assert!(refused.contains("Device lookup failed (-EINVAL)"), "{refused}");
    }
    assert_eq!(first(&mut vmm), Ok(7));
    drop(vmm);
    wait_until("it stays in use", || controlled.dmsetup(&["remove", "top"]).code == 0);
    controlled.must(&["remove", "low"]);
    controlled.stop();
}

#[test]
fn cycles_by_inactive_tables_are_refused_when_they_would_close() {
    let pieces = Pieces::new(2);
    let controlled = Controlled::start(&format!("a,,,rw,{};b,,,rw,{}", pieces.line(1), pieces.line(2)), &[]);
    controlled.must(&["load", "a", "--table", "0 8 linear /dev/mapper/b 0"]);
    let second = controlled.dmsetup(&["load", "b", "--table", "0 8 linear /dev/mapper/a 0"]);
    controlled.must(&["resume", "a"]);
    if second.code == 0 {
        controlled.must_not(&["resume", "b"]);
        controlled.must(&["resume", "b"]);
    }
    assert_eq!(controlled.must(&["table", "a"]).trim_end(), "0 8 linear 0:1 0");
    assert_eq!(controlled.must(&["table", "b"]).trim_end(), pieces.line(2));
    controlled.stop();
}

#[test]
fn wait_returns_when_something_happens() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    let mut waiter = controlled.client();
    let number = controlled.client().info("disk")["event_nr"].as_u64().expect("a number");
    // A swap.
    let id = waiter.begin("wait", &json!({"which": which("disk"), "event_nr": number})).expect("send");
    controlled.must(&["load", "disk", "--table", &pieces.line(2)]);
    controlled.must(&["resume", "disk"]);
    let info = waiter.end(id).expect("an answer").expect("an event");
    assert_eq!(info["event_nr"], number + 1);
    // The next one, whichever that is: nobody says when the call has begun to wait.
    let number = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let info = waiter.call("wait", json!({"which": which("disk")})).expect("an event");
            info["event_nr"].as_u64().expect("a number")
        });
        let mut swaps = 0;
        while !waiting.is_finished() {
            controlled.client().swap("disk", &pieces.line(2));
            swaps += 1;
        }
        let seen = waiting.join().expect("a number");
        assert!((number + 2..=number + 1 + swaps).contains(&seen), "{seen} after {number} and {swaps} swaps");
        number + 1 + swaps
    });
    // An error of a component.
    let id = waiter.begin("wait", &json!({"which": which("disk"), "event_nr": number})).expect("send");
    files::truncate(&pieces.paths[1], SECTORS / 2 * SECTOR as u64);
    assert_eq!(vmm.read(0, SECTORS - 8, LEN), Err(Failed(IOERR)));
    let info = waiter.end(id).expect("an answer").expect("an event");
    assert!(info["event_nr"].as_u64() > Some(number), "{info}");
    // One that has come already, and the client's own verb.
    controlled.must(&["wait", "disk", &number.to_string()]);
    // A device that goes.
    drop(vmm);
    let id = waiter.begin("wait", &json!({"which": which("disk")})).expect("send");
    wait_until("it stays in use", || controlled.dmsetup(&["remove", "disk"]).code == 0);
    let refusal = waiter.end(id).expect("an answer").expect_err("there is no such device any more");
    assert_eq!(refusal.code, 6, "{refusal:?}");
    controlled.stop();
}

#[test]
fn a_resume_that_fails_leaves_the_old_table_suspended() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    controlled.must(&["load", "disk", "--table", &pieces.line(2)]);
    files::truncate(&pieces.paths[1], SECTORS / 2 * SECTOR as u64);
    let refused = controlled.must_not(&["resume", "disk"]);
    assert!(refused.contains("device-mapper: resume ioctl on disk  failed: Invalid argument"), "{refused}");
    assert!(refused.contains("piece2 too small for target"), "{refused}");
    let attr = || controlled.must(&["info", "-c", "--noheadings", "-o", "attr", "disk"]);
    assert_eq!(attr().trim(), "L-sw");
    assert_eq!(controlled.must(&["table", "disk"]).trim_end(), pieces.line(1));
    submit(&mut vmm, 0, 0, &[5; LEN]);
    std::thread::sleep(Duration::from_millis(50));
    assert!(vmm.complete(0).is_none(), "served though suspended");
    controlled.must(&["resume", "disk"]);
    assert_eq!(attr().trim(), "L--w");
    assert_eq!(vmm.wait(0).status, OK);
    assert_eq!(first(&mut vmm), Ok(5));
    assert_eq!(std::fs::read(&pieces.paths[0]).expect("read")[0], 5);
    drop(vmm);
    controlled.stop();
}

#[test]
fn writes_of_a_suspended_device_are_the_next_tables() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup { queues: 4, ..Setup::default() });
    controlled.must(&["suspend", "disk"]);
    for queue in 0..4 {
        for slot in 0..8 {
            let bytes = vec![100 + queue as u8; LEN];
            let request =
                Request { kind: kind::OUT, sector: (queue * 8 + slot) as u64 * 8, data: Data::ToDevice(&bytes) };
            vmm.submit(queue, slot, &request, &Shape::PLAIN, &mut Rng::with_seed(1));
        }
        vmm.kick(queue);
    }
    controlled.must(&["load", "disk", "--table", &pieces.line(2)]);
    std::thread::sleep(Duration::from_millis(50));
    assert!((0..4).all(|queue| vmm.complete(queue).is_none()), "served though suspended");
    controlled.must(&["resume", "disk"]);
    for _ in 0..32 {
        assert_eq!(vmm.wait_any().1.status, OK);
    }
    assert!(
        std::fs::read(&pieces.paths[0]).expect("read").iter().all(|byte| *byte == 1),
        "the old table's piece changed"
    );
    let new = std::fs::read(&pieces.paths[1]).expect("read");
    assert!((0..32).all(|n| new[n * LEN..][..LEN].iter().all(|byte| usize::from(*byte) == 100 + n / 8)));
    drop(vmm);
    controlled.stop();
}

/// A front end that has the channel hears of it and asks; the others see it when they ask.
#[test]
fn a_disk_grows_under_its_front_end() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup { channel: true, ..Setup::default() });
    assert!(vmm.protocol & protocol::BACKEND_REQ != 0, "no channel for the back end's own requests");
    assert_eq!(vmm.config.capacity, SECTORS);
    assert_eq!(vmm.write(0, SECTORS, &[1; LEN]), Err(Failed(IOERR)), "past the end");
    // The file grows, and is found to have: it was opened when it was smaller.
    let file = std::fs::OpenOptions::new().write(true).open(&pieces.paths[0]).expect("open");
    file.set_len(2 * SECTORS * SECTOR as u64).expect("grow");
    let longer = format!("0 {} linear {} 0", 2 * SECTORS, pieces.name(1));
    controlled.must(&["load", "disk", "--table", &longer]);
    controlled.must(&["resume", "disk"]);
    assert_eq!(vmm.config_change().expect("a message").capacity, 2 * SECTORS);
    vmm.write(0, SECTORS, &[8; LEN]).expect("it has grown");
    assert!(vmm.read(0, SECTORS, LEN) == Ok(vec![8; LEN]));
    // By another component behind it.
    let longest = format!("{longer}\n{} {SECTORS} linear {} 0", 2 * SECTORS, pieces.name(3));
    controlled.must(&["load", "disk", "--table", &longest]);
    controlled.must(&["resume", "disk"]);
    assert_eq!(vmm.config_change().expect("a message").capacity, 3 * SECTORS);
    assert!(vmm.read(0, 3 * SECTORS - 8, LEN) == Ok(vec![3; LEN]));
    // A table of the same length is none of the front end's business.
    controlled.must(&["load", "disk", "--table", &longest]);
    controlled.must(&["resume", "disk"]);
    vmm.sync().expect("round trip");
    let channel = vmm.channel.as_ref().expect("a channel").stream();
    channel.set_nonblocking(true).expect("non-blocking");
    assert_eq!(
        vmm.channel.as_ref().expect("a channel").recv().map_err(|e| e.kind()).map(drop),
        Err(std::io::ErrorKind::WouldBlock)
    );
    drop(vmm);
    controlled.stop();
}

#[test]
fn a_disk_shrinks_by_force_alone() {
    let (mut controlled, pieces) = one_disk(&[]);
    let shorter = format!("0 64 linear {} 0", pieces.name(2));
    let mut vmm = controlled.vmm("disk", &Setup { channel: true, ..Setup::default() });
    controlled.must(&["load", "disk", "--table", &shorter]);
    let refused = controlled.must_not(&["resume", "disk"]);
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(first(&mut vmm), Ok(1));
    assert_eq!(controlled.client().info("disk")["suspended"], false, "a refusal of ours does no harm");
    controlled.must(&["resume", "--force", "disk"]);
    assert_eq!(vmm.config_change().expect("a message").capacity, 64);
    assert_eq!(first(&mut vmm), Ok(2));
    for beyond in [60, 64, SECTORS - 8] {
        assert_eq!(vmm.read(0, beyond, LEN).map(drop), Err(Failed(IOERR)), "sector {beyond}");
        assert_eq!(vmm.write(0, beyond, &[3; LEN]), Err(Failed(IOERR)), "sector {beyond}");
    }
    assert!(std::fs::read(&pieces.paths[1]).expect("read").iter().all(|byte| *byte == 2), "written past the end");
    drop(vmm);
    // Without a front end there is nobody to hurt.
    wait_until("it stays in use", || controlled.client().info("disk")["open_count"] == 0);
    controlled.must(&["load", "disk", "--table", &format!("0 8 linear {} 0", pieces.name(3))]);
    controlled.must(&["resume", "disk"]);
    assert_eq!(controlled.vmm("disk", &Setup::default()).config.capacity, 8);
    controlled.stop();
}

#[test]
fn read_only_tables_take_no_writes_and_come_and_go() {
    let (mut controlled, pieces) = one_disk(&[]);
    controlled.must(&["load", "-r", "disk", "--table", &pieces.line(2)]);
    controlled.must(&["resume", "disk"]);
    assert!(controlled.must(&["info", "disk"]).contains("READ-ONLY"));
    let mut vmm = controlled.vmm("disk", &Setup::default());
    assert!(vmm.has(dm_tests::blk::feature::RO));
    assert_eq!(first(&mut vmm), Ok(2));
    assert!(vmm.write(0, 0, &[1; LEN]).is_err());
    drop(vmm);
    wait_until("it stays in use", || controlled.client().info("disk")["open_count"] == 0);
    controlled.must(&["load", "disk", "--table", &pieces.line(2)]);
    controlled.must(&["resume", "disk"]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    vmm.write(0, 0, &[4; LEN]).expect("write");
    // A table that becomes read-only under a front end that was told otherwise: its writes fail.
    controlled.must(&["load", "-r", "disk", "--table", &pieces.line(2)]);
    if controlled.dmsetup(&["resume", "disk"]).code == 0 {
        assert!(vmm.write(0, 0, &[6; LEN]).is_err(), "a write through a read-only table");
    }
    assert_eq!(std::fs::read(&pieces.paths[1]).expect("read")[0], 4);
    drop(vmm);
    controlled.stop();
}

#[test]
fn wiping_and_clearing() {
    let (mut controlled, pieces) = one_disk(&[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    controlled.must(&["load", "disk", "--table", &pieces.line(2)]);
    controlled.must(&["clear", "disk"]);
    controlled.must(&["resume", "disk"]);
    assert_eq!(first(&mut vmm), Ok(1), "what was cleared is not resumed");
    controlled.must(&["wipe_table", "disk"]);
    assert_eq!(controlled.must(&["table", "disk"]), format!("0 {SECTORS} error \n"));
    assert_eq!(first(&mut vmm), Err(Failed(IOERR)));
    controlled.must(&["load", "disk", "--table", &pieces.line(3)]);
    controlled.must(&["resume", "disk"]);
    assert_eq!(first(&mut vmm), Ok(3));
    drop(vmm);
    controlled.stop();
}
