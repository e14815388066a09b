//! Guest memory that is registered with the kernel (`--register-memory`).

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dm_tests::daemon::{Daemon, Served, binary, flag};
use dm_tests::memory::RegionSpec;
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::{files, skip};
use rustix::process::Signal;

use crate::{Piece, SECTOR, pattern};

const LONG: Duration = Duration::from_secs(60);

/// What the kernel has pinned for a process, in KiB.
fn pinned(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("VmPin");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

/// Whether memory of memfds may be in large pages.
fn has_large_pages() -> bool {
    let modes = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    ["[always]", "[within_size]", "[force]"].iter().any(|mode| modes.contains(mode))
}

/// Waits until so much is pinned: all of it, and where pages are large perhaps the rest of some.
fn wait_for(daemon: &Daemon, kib: u64) {
    let started = Instant::now();
    let most = if kib > 0 && has_large_pages() { kib + (6 << 10) } else { kib };
    while !(kib..=most).contains(&pinned(daemon)) {
        assert!(started.elapsed() < LONG, "{} KiB are pinned, not {kib}", pinned(daemon));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Guest memory of a front end, in KiB.
fn memory(vmm: &Vmm) -> u64 {
    vmm.memory.regions().iter().map(|region| region.size).sum::<u64>() >> 10
}

fn write_and_read(vmm: &mut Vmm, piece: &Piece, salt: u8) {
    vmm.write(0, 8, &pattern(64, salt)).expect("write");
    assert!(vmm.read(0, 0, 128 * SECTOR) == Ok(piece.now()[..128 * SECTOR].to_vec()));
    assert!(piece.now()[8 * SECTOR..72 * SECTOR] == pattern(64, salt));
}

#[test]
fn it_is_pinned_while_a_front_end_is_served_and_no_longer() {
    if !skip::can_pin_memory() {
        return skip::skip("it_is_pinned_while_a_front_end_is_served_and_no_longer", "it has to pin memory");
    }
    let piece = Piece::new(512);
    for workers in [&["--register-memory"][..], &["--register-memory", "--workers=1"]] {
        let mut served = Served::table(&piece.table(), workers);
        let mut vmm = served.vmm(&Setup::default());
        wait_for(&served.daemon, memory(&vmm));
        write_and_read(&mut vmm, &piece, 3);
        // Memory that comes and goes while the disk is in use.
        vmm.add_region(RegionSpec { gpa: 1 << 40, size: 8 << 20 }).expect("add a region");
        wait_for(&served.daemon, memory(&vmm));
        write_and_read(&mut vmm, &piece, 4);
        vmm.remove_region(1 << 40).expect("remove a region");
        wait_for(&served.daemon, memory(&vmm));
        write_and_read(&mut vmm, &piece, 5);
        drop(vmm);
        wait_for(&served.daemon, 0);
        let mut vmm = served.vmm(&Setup::default());
        wait_for(&served.daemon, memory(&vmm));
        write_and_read(&mut vmm, &piece, 6);
        drop(vmm);
        let log = served.daemon.log();
        assert!(log.contains("guest memory is registered") && !log.contains("used without"), "{log}");
        served.daemon.stop();
    }
}

#[test]
fn memory_that_has_not_been_allocated_stays_so() {
    let piece = Piece::new(512);
    let mut served = Served::table(&piece.table(), &["--register-memory"]);
    let mut vmm = served.vmm(&Setup { sparse: true, ..Setup::default() });
    write_and_read(&mut vmm, &piece, 3);
    assert_eq!(pinned(&served.daemon), 0);
    let log = served.daemon.log();
    assert!(log.contains("--register-memory: of ") && log.contains("prealloc=on"), "{log}");
    drop(vmm);
    served.daemon.stop();
}

/// The kernel counts what all processes of a user have locked whom it limits.
static ACCOUNT: Mutex<()> = Mutex::new(());

/// A disk for back ends that may lock only so much.
struct Limited {
    piece: Piece,
    socket: PathBuf,
    table: PathBuf,
    _dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Limited {
    /// `None`, and that is said, where it cannot be.
    fn new(test: &str) -> Option<Limited> {
        if !skip::is_root() || !skip::can_pin_memory() {
            skip::skip(test, "to drop a capability needs root");
            return None;
        }
        let alone = ACCOUNT.lock().unwrap_or_else(PoisonError::into_inner);
        let (piece, dir) = (Piece::new(512), files::disk_dir());
        let (socket, table) = (dir.path().join("socket"), dir.path().join("table"));
        std::fs::write(&table, piece.table()).expect("write the table");
        Some(Limited { piece, socket, table, _dir: dir, _alone: alone })
    }

    fn daemon(&self, bytes: u64) -> Daemon {
        let mut command = Command::new("prlimit");
        command.arg(format!("--memlock={bytes}:{bytes}"));
        command.args(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
        command.arg(binary()).args([flag("--socket-path", &self.socket), flag("--table", &self.table)]);
        command.arg("--register-memory");
        Daemon::spawn(command)
    }
}

#[test]
fn where_the_limit_of_locked_memory_is_low_it_is_served_without() {
    let Some(limited) = Limited::new("where_the_limit_of_locked_memory_is_low_it_is_served_without") else { return };
    let mut daemon = limited.daemon(4 << 20);
    let mut vmm = daemon.vmm(&limited.socket, &Setup { slots: 64, ..Setup::default() });
    write_and_read(&mut vmm, &limited.piece, 3);
    let started = Instant::now();
    while !daemon.log().contains("RLIMIT_MEMLOCK") {
        assert!(started.elapsed() < LONG, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    write_and_read(&mut vmm, &limited.piece, 4);
    wait_for(&daemon, 0);
    drop(vmm);
    daemon.stop();
}

#[test]
fn what_a_session_or_a_killed_process_had_locked_is_not_in_the_way_of_the_next() {
    const NAME: &str = "what_a_session_or_a_killed_process_had_locked_is_not_in_the_way_of_the_next";
    if has_large_pages() {
        return skip::skip(NAME, "each of its few pages counts as large as a large one");
    }
    let Some(limited) = Limited::new(NAME) else { return };
    // There is room for one such guest, and not for two.
    let setup = Setup { slots: 40, ..Setup::default() };
    for _ in 0..3 {
        let mut daemon = limited.daemon(8 << 20);
        for session in 0..4 {
            let mut vmm = daemon.vmm(&limited.socket, &setup);
            assert!((5 << 10..6 << 10).contains(&memory(&vmm)));
            let started = Instant::now();
            while pinned(&daemon) < memory(&vmm) {
                let log = daemon.log();
                assert!(!log.contains("used without") && !log.contains("queue cannot be served"), "{log}");
                assert!(started.elapsed() < LONG, "{log}");
                std::thread::sleep(Duration::from_millis(1));
            }
            write_and_read(&mut vmm, &limited.piece, session);
            if session == 3 {
                daemon.signal(Signal::KILL);
                daemon.wait(LONG).expect("it is killed");
            }
        }
        std::fs::remove_file(&limited.socket).expect("the socket of the killed one");
    }
}
