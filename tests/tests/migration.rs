//! What a front end needs to migrate its guest: a log of the pages that the back end wrote, and a disk that goes from one
//! process to another without ever having two writers. `tests/boot.rs` migrates a real guest.
#![allow(missing_docs)]

use std::fs::File;
use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dm_tests::blk::{Data, OK, Request, SECTOR, Segment, Shape, feature, kind, segments};
use dm_tests::daemon::{Daemon, Served, flag};
use dm_tests::files;
use dm_tests::memory::{PAGE, RegionSpec, memfd};
use dm_tests::ring::Place;
use dm_tests::rng::{self, Repeat};
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::request as rq;
use fastrand::Rng;
use tempfile::TempDir;

const SECTORS: u64 = 2048;
/// No pages.
const NONE: [u64; 0] = [];

/// A front end's log of dirty pages.
struct Log(File);

impl Log {
    /// A log for all of the guest's memory.
    fn for_memory_of(vmm: &Vmm) -> Log {
        let end = vmm.memory.regions().iter().map(|region| region.gpa + region.size).max().expect("memory");
        Log::of(end.div_ceil(PAGE * 8))
    }

    fn of(size: u64) -> Log {
        Log(memfd(size).expect("a memfd").into())
    }

    fn size(&self) -> u64 {
        self.0.metadata().expect("the log's size").len()
    }

    /// Whether the page with this guest address is marked.
    fn has(&self, gpa: u64) -> bool {
        let page = gpa / PAGE;
        let mut byte = [0];
        self.0.read_exact_at(&mut byte, page / 8).expect("read the log");
        byte[0] & (1 << (page % 8)) != 0
    }

    fn clear(&self) {
        let size = self.size();
        self.0.write_all_at(&vec![0; size as usize], 0).expect("clear the log");
    }

    /// Guest addresses of the marked pages among those of guest memory.
    fn marked(&self, vmm: &Vmm) -> Vec<u64> {
        pages(vmm).into_iter().filter(|gpa| self.has(*gpa)).collect()
    }
}

/// All pages of guest memory.
fn pages(vmm: &Vmm) -> Vec<u64> {
    vmm.memory.regions().iter().flat_map(|r| (r.gpa..r.gpa + r.size).step_by(PAGE as usize)).collect()
}

/// SET_LOG_BASE with any size and offset.
fn set_log(vmm: &Vmm, log: &Log, size: u64, offset: u64) -> Result<()> {
    let body: Vec<u8> = [size, offset].iter().flat_map(|field| field.to_le_bytes()).collect();
    vmm.conn.ask(rq::SET_LOG_BASE, &body, &[log.0.as_fd()]).map(drop)
}

fn set_features(vmm: &Vmm, logging: bool) -> Result<()> {
    let log_all = if logging { feature::LOG_ALL } else { 0 };
    vmm.conn.tell_u64(rq::SET_FEATURES, vmm.features | log_all)
}

/// As QEMU does when migration begins.
fn start_logging(vmm: &Vmm) -> Log {
    assert_ne!(vmm.offered & feature::LOG_ALL, 0, "LOG_ALL is not offered");
    let log = Log::for_memory_of(vmm);
    set_log(vmm, &log, log.size(), 0).expect("SET_LOG_BASE");
    set_features(vmm, true).expect("SET_FEATURES");
    log
}

/// Stops or starts all rings; nothing is under way when it returns after stopping.
fn enable(vmm: &Vmm, on: bool) {
    for index in 0..vmm.setup.queues {
        vmm.enable(index, on).expect("SET_VRING_ENABLE");
    }
}

/// A disk with all targets, whose component is on `dir`.
fn mixed(dir: TempDir, args: &[&str]) -> (Served, TempDir) {
    let component = dir.path().join("component");
    let mut rng = Rng::with_seed(5);
    files::component(&component, &rng::bytes(&mut rng, (SECTORS * SECTOR) as usize));
    let name = component.display();
    let table = format!(
        "0 901 linear {name} 0\n901 64 zero\n965 16 error\n981 512 striped 2 8 {name} 1024 {name} 1536\n1493 200 linear {name} 801\n"
    );
    (Served::table(&table, args), dir)
}

/// A request that may also be wrong, or meet the error target.
fn any_request<'a>(rng: &mut Rng, payload: &'a mut Vec<u8>) -> Request<'a> {
    let sector = rng.u64(..1700);
    let most = if rng.u8(..4) == 0 { 120 } else { 16 };
    let sectors = rng.u64(1..=most);
    match rng.u8(..10) {
        0..=4 => Request { kind: kind::IN, sector, data: Data::FromDevice((sectors * SECTOR) as usize) },
        5 | 6 => {
            *payload = rng::bytes(rng, (sectors * SECTOR) as usize);
            Request { kind: kind::OUT, sector, data: Data::ToDevice(payload) }
        }
        7 => Request { kind: kind::GET_ID, sector: 0, data: Data::FromDevice(if rng.bool() { 20 } else { 512 }) },
        8 => {
            *payload = segments(&[Segment { sector, sectors: sectors as u32, flags: 0 }]);
            Request {
                kind: *rng.choice(&[kind::WRITE_ZEROES, kind::DISCARD, 77]).unwrap_or(&77),
                sector: 0,
                data: Data::ToDevice(payload),
            }
        }
        _ => Request { kind: kind::FLUSH, sector: 0, data: Data::None },
    }
}

/// What the driver itself writes in a ring while requests are under way: its available index and its wish to be told.
fn is_drivers(vmm: &Vmm, gpa: u64) -> bool {
    vmm.queues.iter().any(|queue| {
        let Place { size, avail, .. } = queue.ring.place;
        (avail..avail + 6 + 2 * u64::from(size)).contains(&gpa)
    })
}

/// Guest addresses at which memory is not as it was.
fn changed(vmm: &Vmm, before: &[Vec<u8>]) -> Vec<u64> {
    let after = vmm.memory.snapshot();
    let regions = vmm.memory.regions().iter().zip(before.iter().zip(&after));
    regions
        .flat_map(|(region, (before, after))| {
            let differs = before.iter().zip(after).enumerate().filter(|(_, (a, b))| a != b);
            differs.map(|(at, _)| region.gpa + at as u64).collect::<Vec<_>>()
        })
        .filter(|gpa| !is_drivers(vmm, *gpa))
        .collect()
}

/// Where the device may write while the requests in `arenas` are under way: those, and the used rings.
fn allowed(vmm: &Vmm, arenas: &[(u64, u64)], gpa: u64) -> bool {
    let used = vmm.queues.iter().map(|queue| {
        let Place { size, used, .. } = queue.ring.place;
        (used, used + 6 + 8 * u64::from(size))
    });
    used.chain(arenas.iter().copied()).any(|(from, to)| from / PAGE * PAGE <= gpa && gpa < to)
}

/// Requests of all kinds and shapes at once on all queues; afterwards, with all rings stopped, every byte that is not as
/// it was lies in a marked page, and marked pages are those that the device was to write.
fn compare(served: &mut Served, setup: &Setup, rounds: usize, rng: &mut Rng) {
    let mut vmm = served.vmm(setup);
    let log = start_logging(&vmm);
    for _ in 0..rounds {
        enable(&vmm, false);
        log.clear();
        let mut arenas = Vec::new();
        let mut laid_out = 0;
        for queue in 0..vmm.queues.len() {
            for slot in 0..setup.slots {
                let mut payload = Vec::new();
                let request = any_request(rng, &mut payload);
                let indirect = vmm.has(feature::INDIRECT) && rng.bool();
                let shape = Shape::random(rng, 6, indirect);
                if vmm.queues[queue].ring.free() < 32 {
                    break;
                }
                let arena = vmm.queues[queue].arenas[slot];
                arenas.push((arena.gpa, arena.gpa + arena.len));
                vmm.submit(queue, slot, &request, &shape, rng);
                laid_out += 1;
            }
        }
        let before = vmm.memory.snapshot();
        enable(&vmm, true);
        for queue in 0..vmm.queues.len() {
            vmm.kick(queue);
        }
        for _ in 0..laid_out {
            vmm.wait_any();
        }
        enable(&vmm, false);
        let changed = changed(&vmm, &before);
        assert!(changed.len() > laid_out, "nothing happened");
        for gpa in changed {
            assert!(log.has(gpa), "{gpa:#x} was written, and its page is not marked");
        }
        for gpa in log.marked(&vmm) {
            assert!(allowed(&vmm, &arenas, gpa), "the page at {gpa:#x} is marked, and no request is there");
        }
        enable(&vmm, true);
    }
}

#[test]
fn every_page_that_was_written_is_marked() {
    let places = [Some(files::disk_dir()), files::memory_dir()];
    for (number, dir) in places.into_iter().enumerate() {
        let Some(dir) = dir else { continue };
        let (mut served, _dir) = mixed(dir, &[]);
        for seed in rng::seeds(100 + number as u64, 6) {
            let _repeat = Repeat { seed, context: String::new() };
            let mut rng = Rng::with_seed(seed);
            let mut setup = Setup { queues: 2, slots: 4, queue_size: 128, ..Setup::default() };
            // A used ring of several pages.
            setup.queue_size = if rng.bool() { 1024 } else { 128 };
            setup.interrupts = rng.bool();
            let setup = if rng.bool() { setup } else { setup.without(feature::EVENT_IDX) };
            compare(&mut served, &setup, rng::operations(12) as usize, &mut rng);
        }
        served.daemon.stop();
    }
}

/// A disk of one file, whose sectors hold their numbers.
struct Plain {
    dir: TempDir,
    component: PathBuf,
    bytes: Vec<u8>,
}

impl Plain {
    fn new() -> Plain {
        let dir = files::disk_dir();
        let component = dir.path().join("component");
        let bytes: Vec<u8> = (0..SECTORS).flat_map(|n| n.to_le_bytes().repeat(SECTOR as usize / 8)).collect();
        files::component(&component, &bytes);
        Plain { dir, component, bytes }
    }

    fn start(&self, socket: &str, args: &[&str]) -> (Daemon, PathBuf) {
        let socket = self.dir.path().join(socket);
        let own = [flag("--socket-path", &socket), flag("--blk-file", &self.component)];
        let daemon = Daemon::start(own.into_iter().chain(args.iter().map(|&arg| arg.to_owned())));
        (daemon, socket)
    }

    fn served(&self) -> Served {
        Served::table(&format!("0 {SECTORS} linear {} 0\n", self.component.display()), &[])
    }

    fn check(&self, vmm: &mut Vmm, sector: u64) {
        let at = (sector * SECTOR) as usize;
        assert_eq!(vmm.read(0, sector, 4096).expect("a read"), self.bytes[at..at + 4096]);
    }
}

#[test]
fn nothing_is_marked_unless_the_front_end_asks() {
    let disk = Plain::new();
    let mut served = disk.served();
    let mut vmm = served.vmm(&Setup::default());
    let log = Log::for_memory_of(&vmm);
    // A log alone is not enough, nor is the feature.
    set_log(&vmm, &log, log.size(), 0).expect("SET_LOG_BASE");
    disk.check(&mut vmm, 0);
    enable(&vmm, false);
    assert_eq!(log.marked(&vmm), NONE, "before LOG_ALL");
    enable(&vmm, true);
    set_features(&vmm, true).expect("SET_FEATURES");
    disk.check(&mut vmm, 8);
    set_features(&vmm, false).expect("SET_FEATURES");
    assert_ne!(log.marked(&vmm), NONE, "with LOG_ALL");
    log.clear();
    disk.check(&mut vmm, 16);
    enable(&vmm, false);
    assert_eq!(log.marked(&vmm), NONE, "after LOG_ALL");
    // LOG_ALL once more, as in a second migration, whose log has yet to come.
    set_features(&vmm, true).expect("SET_FEATURES");
    enable(&vmm, true);
    disk.check(&mut vmm, 24);
    assert_eq!(log.marked(&vmm), NONE, "the log of the migration before");
    served.daemon.stop();
}

#[test]
fn logs_are_exchanged_under_load() {
    let disk = Plain::new();
    let mut served = disk.served();
    let mut vmm = served.vmm(&Setup { slots: 16, ..Setup::default() });
    let mut rng = Rng::with_seed(3);
    let mut log = start_logging(&vmm);
    for round in 0..200u64 {
        for slot in 0..16 {
            let sector = (round * 16 + slot) * 8 % SECTORS;
            let request = Request { kind: kind::IN, sector, data: Data::FromDevice(4096) };
            vmm.submit(0, slot as usize, &request, &Shape::PLAIN, &mut rng);
        }
        vmm.kick(0);
        match round % 3 {
            0 => {
                let next = Log::for_memory_of(&vmm);
                set_log(&vmm, &next, next.size(), 0).expect("SET_LOG_BASE");
                // The front end has this one's marks now, and looks at it no more.
                log.clear();
                let old = std::mem::replace(&mut log, next);
                for _ in 0..16 {
                    check_slot(&mut vmm, &disk, round);
                }
                assert_eq!(old.marked(&vmm), NONE, "a log that was exchanged");
                continue;
            }
            1 => set_features(&vmm, false).expect("SET_FEATURES"),
            _ => log = start_logging(&vmm),
        }
        for _ in 0..16 {
            check_slot(&mut vmm, &disk, round);
        }
    }
    served.daemon.stop();
}

fn check_slot(vmm: &mut Vmm, disk: &Plain, round: u64) {
    let done = vmm.wait(0);
    let at = (((round * 16 + done.slot as u64) * 8 % SECTORS) * SECTOR) as usize;
    assert_eq!((done.status, &done.data[..]), (OK, &disk.bytes[at..at + 4096]));
}

#[test]
fn memory_that_comes_while_it_is_logged_is_logged_too() {
    let disk = Plain::new();
    let mut served = disk.served();
    let mut vmm = served.vmm(&Setup::default());
    let log = start_logging(&vmm);
    // Below the last region: the log has bits for it.
    let gpa = 1 << 30;
    vmm.add_region(RegionSpec { gpa, size: 64 * PAGE }).expect("ADD_MEM_REG");
    for arena in &mut vmm.queues[0].arenas {
        arena.gpa = gpa;
    }
    disk.check(&mut vmm, 40);
    enable(&vmm, false);
    assert!(log.marked(&vmm).iter().any(|page| (gpa..gpa + 64 * PAGE).contains(page)), "the new region");

    // Behind it: its pages would be lost.
    let refused =
        vmm.add_region(RegionSpec { gpa: 1 << 40, size: PAGE }).expect_err("a region without bits in the log");
    assert!(served.daemon.log().contains("migration would lose pages"), "{refused}: {}", served.daemon.log());
    drop(vmm);
    let mut vmm = served.vmm(&Setup::default());
    disk.check(&mut vmm, 48);
    served.daemon.stop();
}

#[test]
fn logs_that_cannot_be_are_refused() {
    let disk = Plain::new();
    let mut served = disk.served();
    let whole = Log::for_memory_of(&served.vmm(&Setup::default())).size();
    served.daemon.stop();
    let cases = [
        ("its file has", whole, whole + 1, 0),
        ("its file has", whole, whole, PAGE),
        ("its file has", whole, u64::MAX, 0),
        ("its file has", whole, u64::MAX - PAGE + 1, PAGE),
        ("multiple of the page size", 2 * whole, whole, 1),
        ("no bytes", whole, 0, 0),
        ("migration would lose pages", whole, whole / 2, 0),
    ];
    for (why, file, size, offset) in cases {
        // A process of its own for each: the log is a limited one.
        let mut served = disk.served();
        let vmm = served.vmm(&Setup::default());
        set_features(&vmm, true).expect("SET_FEATURES");
        let refused = set_log(&vmm, &Log::of(file), size, offset).expect_err("a log that cannot be");
        assert!(vmm.conn.wait_hangup(), "the connection goes on after {refused}");
        let mut vmm = served.vmm(&Setup::default());
        disk.check(&mut vmm, 8);
        assert!(served.daemon.log().contains(why), "{size} at {offset}: {refused}, {}", served.daemon.log());
        served.daemon.stop();
    }
    let mut served = disk.served();
    // Without a file, with two, with a read-only one, with one that is no file.
    let log = Log::of(whole);
    let body: Vec<u8> = [whole, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    let read_only = File::open(&disk.component).expect("open the component");
    let (pipe, read_only) = (OwnedFd::from(pipe), OwnedFd::from(read_only));
    for fds in [&[][..], &[log.0.as_fd(), log.0.as_fd()], &[pipe.as_fd()], &[read_only.as_fd()]] {
        let vmm = served.vmm(&Setup::default());
        let _ = vmm.conn.send(rq::SET_LOG_BASE, 0, &body, fds);
        // An answer, or the end of the connection.
        let _ = vmm.conn.recv();
    }
    let mut vmm = served.vmm(&Setup::default());
    disk.check(&mut vmm, 16);
    served.daemon.assert_running();
    served.daemon.stop();
}

#[test]
fn a_log_that_is_cut_short_stops_the_queue_until_there_is_another_one() {
    let disk = Plain::new();
    let mut served = disk.served();
    let mut vmm = served.vmm(&Setup::default());
    let log = start_logging(&vmm);
    disk.check(&mut vmm, 0);
    log.0.set_len(0).expect("truncate the log");
    disk.check(&mut vmm, 8);
    let mut rng = Rng::with_seed(1);
    for slot in 0..4 {
        let request = Request { kind: kind::IN, sector: 8 * slot, data: Data::FromDevice(4096) };
        vmm.submit(0, slot as usize, &request, &Shape::PLAIN, &mut rng);
    }
    vmm.kick(0);
    let log = Log::for_memory_of(&vmm);
    set_log(&vmm, &log, log.size(), 0).expect("SET_LOG_BASE");
    for _ in 0..4 {
        assert_eq!(vmm.wait(0).status, OK);
    }
    assert!(served.daemon.log().contains("has truncated memory"), "{}", served.daemon.log());
    served.daemon.stop();
}

#[test]
fn a_disk_goes_to_another_process_and_never_has_two_writers() {
    let disk = Plain::new();
    let (mut source, at_source) = disk.start("source", &[]);
    let mut here = source.vmm(&at_source, &Setup { queues: 2, ..Setup::default() });
    disk.check(&mut here, 0);
    let (mut stranger, _) = disk.start("stranger", &[]);
    assert_ne!(stranger.wait(std::time::Duration::from_secs(60)).and_then(|status| status.code()), Some(0));
    assert!(stranger.log().contains("has it open for writing"), "{}", stranger.log());

    let (mut destination, at_destination) = disk.start("destination", &["--incoming"]);
    let mut there = Vmm::handshake(destination.connect(&at_destination), &Setup::default()).expect("a handshake");
    let _log = start_logging(&here);
    here.write(0, 8, &[0x5a; 4096]).expect("a write at the source");
    // One of two rings has stopped: not yet.
    here.enable(0, false).expect("SET_VRING_ENABLE");
    assert!(is_locked(&disk.component));
    here.enable(1, false).expect("SET_VRING_ENABLE");
    assert!(!is_locked(&disk.component));

    there.start().expect("the destination's rings start");
    there.sync().expect("they have started");
    assert!(is_locked(&disk.component));
    assert_eq!(there.read(0, 8, 4096).expect("a read at the destination"), [0x5a; 4096]);
    there.write(0, 8, &[0x77; 4096]).expect("a write at the destination");
    // The source's front end changes its mind, too late.
    here.enable(0, true).expect("SET_VRING_ENABLE");
    assert!(source.log().contains("has it open for writing"), "{}", source.log());
    here.enable(0, false).expect("SET_VRING_ENABLE");

    // The destination ends, and the source may go on.
    drop(there);
    destination.stop();
    enable(&here, true);
    assert_eq!(here.read(0, 8, 4096).expect("a read at the source"), [0x77; 4096]);
    assert!(is_locked(&disk.component));
    source.stop();
}

#[test]
fn a_disk_that_nobody_is_served_does_not_keep_another_from_going() {
    let disk = Plain::new();
    let component = disk.component.display();
    let table = format!("low,,,rw,0 {SECTORS} linear {component} 0;top,,,rw,0 {SECTORS} linear /dev/mapper/low 0\n");
    let mut source = Served::table(&table, &[]);
    let vmm = source.vmm(&Setup::default());
    let _log = start_logging(&vmm);
    assert!(is_locked(&disk.component));
    enable(&vmm, false);
    assert!(!is_locked(&disk.component), "{}", source.daemon.log());
    enable(&vmm, true);
    assert!(is_locked(&disk.component));
    drop(vmm);
    source.daemon.stop();
}

/// What a snapshot or a mirror remembers is on its components, and it writes there when the guest has stopped, too.
#[test]
fn a_table_that_keeps_state_on_its_components_stays_at_the_source() {
    let tables = [
        ("snapshot", "0 2048 snapshot A B P 8\n"),
        ("mirror", "0 2048 mirror core 2 64 nosync 2 A 0 B 0\n"),
        // Its resync has begun when the guest stops.
        ("mirror", "0 2048 mirror disk 2 C 64 2 A 0 B 0\n"),
        ("mirror", "low,,,rw,0 2048 mirror core 1 64 2 A 0 B 0;top,,,rw,0 1000 linear /dev/mapper/low 24\n"),
    ];
    for (kind, table) in tables {
        let disk = Plain::new();
        let paths = [disk.component.clone(), disk.dir.path().join("second"), disk.dir.path().join("log")];
        files::component(&paths[1], &vec![0; 2 * disk.bytes.len()]);
        files::component(&paths[2], &[0; 8 * SECTOR as usize]);
        let mut text = table.to_owned();
        for (letter, path) in [" A ", " B ", " C "].iter().zip(&paths) {
            text = text.replace(letter, &format!(" {} ", path.display()));
        }
        let mut source = Served::table(&text, &[]);
        let mut here = source.vmm(&Setup::default());
        here.write(0, 8, &[0x11; 4096]).expect("a write");
        let _log = start_logging(&here);
        here.write(0, 16, &[0x22; 4096]).expect("a write while it migrates");
        enable(&here, false);
        for path in paths.iter().filter(|path| text.contains(&path.display().to_string())) {
            // The origin of a snapshot is only read.
            assert!((kind, path) == ("snapshot", &paths[0]) || is_locked(path), "{table}: {}", path.display());
        }
        assert!(source.daemon.log().contains("the destination cannot have them"), "{table}: {}", source.daemon.log());

        // Neither as what comes nor as what begins.
        for (args, why) in [(&["--incoming"][..], "serve it without --incoming"), (&[], "cannot be served")] {
            let mut destination = Served::table(&text, args);
            let ended = destination.daemon.wait(std::time::Duration::from_secs(60)).expect("it ends");
            assert_ne!(ended.code(), Some(0), "{table}");
            assert!(destination.daemon.log().contains(why), "{table}: {}", destination.daemon.log());
        }

        // The guest goes on where it was.
        enable(&here, true);
        assert_eq!(here.read(0, 8, 4096).expect("a read"), [0x11; 4096], "{table}");
        assert_eq!(here.read(0, 16, 4096).expect("a read"), [0x22; 4096], "{table}");
        here.write(0, 24, &[0x33; 4096]).expect("a write after it");
        here.flush(0).expect("a flush");
        drop(here);
        source.daemon.stop();
        // It is all there for who serves it next.
        let mut next = Served::table(&text, &[]);
        let mut here = next.vmm(&Setup::default());
        for (sector, byte) in [(8, 0x11), (16, 0x22), (24, 0x33)] {
            assert_eq!(here.read(0, sector, 4096).expect("a read"), [byte; 4096], "{table}");
        }
        drop(here);
        next.daemon.stop();
    }
}

/// Whether some process says by QEMU's image locks that it writes the file: on byte 101.
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata(path).expect("stat the component").ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").expect("read /proc/locks");
    locks.lines().any(|line| {
        // 1: OFDLCK ADVISORY  READ -1 fe:00:1042 100 101
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "OFDLCK", _, _, _, place, start, end] = fields[..] else { return false };
        let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        place.rsplit(':').next() == Some(&inode) && number(start) <= 101 && 101 <= number(end)
    })
}
