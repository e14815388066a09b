//! Sockets that others made: passed by a service manager, or kept by whoever replaces one back end by the next.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, OK, Request, Shape, kind};
use dm_tests::daemon::{Daemon, binary, flag};
use dm_tests::skip;
use dm_tests::vmm::{Order, Setup, Vmm};
use fastrand::Rng;
use rustix::process::Signal;

use crate::{Piece, SECTOR, pattern};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two devices over one component, neither on the other.
fn two_devices(piece: &Piece) -> String {
    let table = piece.dir().join("two.table");
    let text = format!("low,,,rw,0 128 linear {0} 0;high,,,rw,0 128 linear {0} 128\n", piece.name());
    fs::write(&table, text).expect("write the table");
    flag("--table", &table)
}

fn refused(args: &[String], sockets: Vec<OwnedFd>, names: Option<&str>) -> String {
    let mut daemon = Daemon::activate(args, sockets, names);
    let status = daemon.wait(PATIENCE).and_then(|status| status.code());
    assert_eq!(status, Some(1), "{}", daemon.log());
    daemon.log()
}

#[test]
fn a_passed_socket_serves_the_only_disk() {
    let piece = Piece::new(256);
    let args = [flag("--blk-file", &piece.path)];
    for (number, name) in [None, Some(""), Some("disk.socket")].into_iter().enumerate() {
        let socket = piece.dir().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&socket).expect("bind");
        // As a service manager may have it, and change it.
        let kept = listener.try_clone().expect("duplicate");
        let mut daemon = Daemon::activate(&args, vec![listener.into()], name);
        for nonblocking in [true, false, true] {
            kept.set_nonblocking(nonblocking).expect("flags");
            let mut vmm = daemon.vmm(&socket, &Setup::default());
            assert!(vmm.read(0, 5, SECTOR).as_deref() == Ok(&piece.bytes[5 * SECTOR..][..SECTOR]));
        }
        daemon.stop();
        assert!(socket.exists(), "a socket that was passed is not ours to remove");
    }
}

#[test]
fn passed_sockets_go_by_the_names_of_devices() {
    let piece = Piece::new(256);
    let args = [two_devices(&piece)];
    let names = ["high", "low"];
    let sockets = names.map(|name| piece.dir().join(name));
    let listeners = sockets.iter().map(|path| UnixListener::bind(path).expect("bind").into()).collect();
    let mut daemon = Daemon::activate(&args, listeners, Some(&names.join(":")));
    for (socket, first) in sockets.iter().zip([128, 0]) {
        let mut vmm = daemon.vmm(socket, &Setup::default());
        assert!(vmm.read(0, 5, SECTOR).as_deref() == Ok(&piece.bytes[(first + 5) * SECTOR..][..SECTOR]));
    }
    daemon.stop();
    // One of them alone, by its name.
    let socket = piece.dir().join("one");
    let listener = UnixListener::bind(&socket).expect("bind");
    let mut daemon = Daemon::activate(&args, vec![listener.into()], Some("high"));
    let mut vmm = daemon.vmm(&socket, &Setup::default());
    assert!(vmm.read(0, 5, SECTOR).as_deref() == Ok(&piece.bytes[133 * SECTOR..][..SECTOR]));
    drop(vmm);
    assert!(daemon.log().contains("low: no socket is passed for it"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn a_passed_socket_may_be_connected_already() {
    let piece = Piece::new(256);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut daemon = Daemon::activate(&[flag("--blk-file", &piece.path)], vec![theirs.into()], None);
    let mut vmm = Vmm::over(ours, &Setup::default()).expect("set up");
    vmm.write(0, 3, &pattern(2, 8)).expect("write");
    drop(vmm);
    let status = daemon.wait(PATIENCE).and_then(|status| status.code());
    assert_eq!(status, Some(0), "it ends with its only connection: {}", daemon.log());
}

#[test]
fn passed_sockets_that_do_not_fit_are_refused_by_name() {
    let piece = Piece::new(256);
    let one = [flag("--blk-file", &piece.path)];
    let two = [two_devices(&piece)];
    let listener = |name: &str| OwnedFd::from(UnixListener::bind(piece.dir().join(name)).expect("bind"));
    let why = refused(&two, vec![listener("a"), listener("b")], Some("low:hihg"));
    assert!(why.contains("socket 4 is named \"hihg\"") && why.contains("low, high"), "{why}");
    let why = refused(&two, vec![listener("c"), listener("d")], None);
    assert!(why.contains("socket 3 is named \"\"") && why.contains("FileDescriptorName="), "{why}");
    let why = refused(&two, vec![listener("e"), listener("f")], Some("low:low"));
    assert!(why.contains("3 and 4 are both named \"low\""), "{why}");
    let why = refused(&two, vec![listener("g")], Some("disk.socket"));
    assert!(why.contains("several devices") && why.contains("--device"), "{why}");
    let why = refused(&one, vec![listener("h")], Some("a:b"));
    assert!(why.contains("LISTEN_FDNAMES=a:b has 2 names"), "{why}");
    let file = fs::File::open(&piece.path).expect("open");
    let why = refused(&one, vec![file.into()], None);
    assert!(why.contains("descriptor 3") && why.contains("pass a listening or connected Unix stream socket"), "{why}");
    let why = refused(&one, Vec::new(), None);
    assert!(why.contains("--socket-path") && why.contains("LISTEN_FDS"), "{why}");
}

#[test]
fn what_is_said_to_another_process_is_not_taken() {
    let piece = Piece::new(256);
    let output = Command::new(binary())
        .arg(flag("--blk-file", &piece.path))
        .envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")])
        .output()
        .expect("run");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && why.contains("--socket-path"), "{why}");
}

#[test]
fn systemd_starts_it_for_the_first_front_end() {
    const NAME: &str = "systemd_starts_it_for_the_first_front_end";
    let mut launcher = Command::new("systemd-socket-activate");
    if launcher.arg("--version").output().is_err() {
        return skip::skip(NAME, "there is no systemd-socket-activate");
    }
    let piece = Piece::new(256);
    let sockets = ["high", "low"].map(|name| piece.dir().join(name));
    let mut launcher = Command::new("systemd-socket-activate");
    for socket in &sockets {
        launcher.arg(format!("--listen={}", socket.display()));
    }
    launcher.arg("--fdname=high:low").arg(binary()).arg(two_devices(&piece));
    let mut daemon = Daemon::spawn(launcher);
    for (socket, first) in sockets.iter().zip([128, 0]) {
        let mut vmm = daemon.vmm(socket, &Setup::default());
        assert!(vmm.read(0, 5, SECTOR).as_deref() == Ok(&piece.bytes[(first + 5) * SECTOR..][..SECTOR]));
    }
    daemon.stop();
}

/// Slots of the guest's load, each with a place of its own on the disk.
const SLOTS: usize = 32;

/// A guest that writes, and knows what it wrote last in each place.
struct Load {
    rng: Rng,
    // What is written there, and whether that is under way.
    places: Vec<(u8, bool)>,
    completed: u64,
}

impl Load {
    fn new(seed: u64) -> Load {
        Load { rng: Rng::with_seed(seed), places: vec![(0, false); SLOTS], completed: 0 }
    }

    /// Puts a write into each slot that is free. Kicks nobody, if there is nobody.
    fn push(&mut self, vmm: &mut Vmm, kick: bool) {
        for (slot, (salt, busy)) in self.places.iter_mut().enumerate().filter(|(_, (_, busy))| !busy) {
            (*salt, *busy) = (salt.wrapping_add(1), true);
            let bytes = pattern(16, *salt);
            let request = Request { kind: kind::OUT, sector: 16 * slot as u64, data: Data::ToDevice(&bytes) };
            vmm.submit(0, slot, &request, &Shape::PLAIN, &mut self.rng);
        }
        match kick {
            true => vmm.kick(0),
            false => vmm.queues[0].ring.publish(),
        }
    }

    fn take(&mut self, vmm: &mut Vmm) {
        while let Some(done) = vmm.complete(0) {
            assert_eq!(done.status, OK);
            self.places[done.slot].1 = false;
            self.completed += 1;
        }
    }

    fn finish(&mut self, vmm: &mut Vmm) {
        let deadline = Instant::now() + PATIENCE;
        while self.places.iter().any(|(_, busy)| *busy) {
            self.take(vmm);
            assert!(Instant::now() < deadline, "requests are lost: {:?}", self.places);
        }
    }
}

/// The socket stays, back ends come and go; the guest sees a pause.
#[test]
fn one_back_end_takes_over_from_another_on_the_same_socket() {
    let piece = Piece::new(1024);
    let socket = piece.dir().join("socket");
    let listener = UnixListener::bind(&socket).expect("bind");
    let start = || {
        let listener = OwnedFd::from(listener.try_clone().expect("duplicate"));
        Daemon::start_with_fd(&[flag("--blk-file", &piece.path)], listener)
    };
    for (order, inflight) in
        [(Order::Qemu, true), (Order::Qemu, false), (Order::CloudHypervisor, true), (Order::CloudHypervisor, false)]
    {
        let mut daemon = start();
        let setup = Setup { order, inflight, slots: SLOTS, interrupts: false, ..Setup::default() };
        let mut vmm = daemon.vmm(&socket, &setup);
        let mut load = Load::new(11);
        for _ in 0..10 {
            let before = load.completed;
            while load.completed < before + 200 {
                load.push(&mut vmm, true);
                load.take(&mut vmm);
            }
            // Nobody stops the guest: it goes on while the back end drains, and when nobody is there.
            daemon.signal(Signal::TERM);
            while daemon.is_running() {
                load.push(&mut vmm, true);
                load.take(&mut vmm);
            }
            let status = daemon.wait(PATIENCE).and_then(|status| status.code());
            assert_eq!(status, Some(0), "{}", daemon.log());
            load.take(&mut vmm);
            load.push(&mut vmm, false);
            // The front end comes back at once, and waits at the socket for the successor.
            let stream = UnixStream::connect(&socket).expect("the socket is still there");
            daemon = start();
            vmm.reconnect(stream).expect("come back");
        }
        load.finish(&mut vmm);
        vmm.flush(0).expect("flush");
        for (slot, (salt, _)) in load.places.iter().enumerate() {
            assert!(vmm.read(0, 16 * slot as u64, 16 * SECTOR) == Ok(pattern(16, *salt)), "{order:?}, slot {slot}");
        }
        drop(vmm);
        daemon.stop();
    }
}
