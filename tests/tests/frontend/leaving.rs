//! What is left in the back end of front ends that went, in whatever way: nothing.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, Request, Shape, kind};
use dm_tests::daemon::{Daemon, Served};
use dm_tests::vmm::{Order, Setup, Vmm};
use dm_tests::wire::{Connection, request as rq};
use fastrand::Rng;

use crate::{Piece, pattern};

/// A session that is not over by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process has of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    /// What its descriptors lead to, sorted, without inode numbers.
    fds: Vec<String>,
    /// Files that it has mapped, as often as they are, sorted. Its own memory is not among them: allocator and threads
    /// keep some for their next use.
    maps: Vec<String>,
    threads: usize,
}

impl Holdings {
    fn of(daemon: &Daemon) -> Holdings {
        let proc = Path::new("/proc").join(daemon.pid().to_string());
        let links = fs::read_dir(proc.join("fd")).expect("list descriptors");
        // One that goes while it is looked at is not there.
        let mut fds: Vec<String> = links
            .filter_map(|link| fs::read_link(link.expect("a descriptor").path()).ok())
            .map(|to| to.to_string_lossy().split(":[").next().unwrap_or_default().to_owned())
            .collect();
        fds.sort();
        let text = fs::read_to_string(proc.join("maps")).expect("read the mappings");
        let file = |line: &str| line.split_whitespace().nth(5).filter(|name| !name.starts_with('[')).map(str::to_owned);
        let mut maps: Vec<String> = text.lines().filter_map(file).collect();
        maps.sort();
        let threads = fs::read_dir(proc.join("task")).expect("list threads").count();
        Holdings { fds, maps, threads }
    }

    /// With one front end that has said nothing of memory or rings; the ones before it are gone, as only one is served
    /// at a time.
    fn with_a_silent_front_end(served: &mut Served) -> (Holdings, Connection) {
        let conn = Connection::new(served.daemon.connect(&served.socket)).expect("a connection");
        conn.ask_u64(rq::GET_FEATURES).expect("served");
        (Holdings::of(&served.daemon), conn)
    }

    /// Asserts that the daemon has that again. A thread that has been waited for may be seen for a moment longer.
    fn assert_again(&self, served: &mut Served, after: &str) {
        let deadline = Instant::now() + PATIENCE;
        let (mut now, _conn) = Holdings::with_a_silent_front_end(served);
        while now != *self && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            now = Holdings::of(&served.daemon);
        }
        assert_eq!(now, *self, "after {after}");
    }
}

/// Resident memory of its own (not of files), in KiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read the status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Keeps every slot of every queue busy with writes and reads.
fn keep_busy(vmm: &mut Vmm, rounds: Option<u32>) {
    let mut rng = Rng::with_seed(1);
    let bytes = pattern(64, 3);
    let mut free: Vec<(usize, usize)> =
        (0..vmm.queues.len()).flat_map(|queue| (0..vmm.setup.slots).map(move |slot| (queue, slot))).collect();
    let mut round = 0;
    while rounds != Some(round) {
        for (queue, slot) in free.drain(..) {
            let sector = 64 * rng.u64(..60);
            let request = match rng.bool() {
                true => Request { kind: kind::OUT, sector, data: Data::ToDevice(&bytes) },
                false => Request { kind: kind::IN, sector, data: Data::FromDevice(bytes.len()) },
            };
            vmm.submit(queue, slot, &request, &Shape::PLAIN, &mut rng);
            vmm.kick(queue);
        }
        let (queue, done) = vmm.wait_any();
        free.push((queue, done.slot));
        round += 1;
    }
}

fn setup() -> Setup {
    Setup { queues: 4, slots: 16, interrupts: false, ..Setup::default() }
}

/// Set to the path of the socket in the process that plays the front end.
const FRONT_END: &str = "DM_TESTS_FRONT_END";

/// A process that does not outlive the test, whatever becomes of it.
struct FrontEnd(Child);

impl FrontEnd {
    fn kill(&mut self) {
        let _ = self.0.kill();
        self.0.wait().expect("wait for the front end");
    }
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// This test again in a process of its own, as a front end that does I/O until it is killed.
fn front_end_process(socket: &Path) -> FrontEnd {
    let mut command = Command::new(std::env::current_exe().expect("the test has an executable"));
    command.args(["--exact", "leaving::a_front_end_that_is_killed_leaves_nothing", "--nocapture"]);
    FrontEnd(command.env(FRONT_END, socket).stdout(Stdio::piped()).spawn().expect("start a front end"))
}

fn play_front_end(socket: &Path) -> ! {
    let stream = UnixStream::connect(socket).expect("connect");
    let mut vmm = Vmm::over(stream, &setup()).expect("set up");
    keep_busy(&mut vmm, Some(100));
    // All rings have been started by now, not only those that were first.
    vmm.sync().expect("round trip");
    println!("READY");
    keep_busy_for_ever(&mut vmm)
}

fn keep_busy_for_ever(vmm: &mut Vmm) -> ! {
    // What the first rounds have left in flight.
    while vmm.queues.iter().any(|queue| queue.ring.in_flight() > 0) {
        vmm.wait_any();
    }
    keep_busy(vmm, None);
    unreachable!("no number of rounds is given")
}

#[test]
fn a_front_end_that_is_killed_leaves_nothing() {
    if let Some(socket) = std::env::var_os(FRONT_END) {
        play_front_end(Path::new(&socket));
    }
    let piece = Piece::new(4096);
    let mut served = Served::table(&piece.table(), &[]);
    let (before, _) = Holdings::with_a_silent_front_end(&mut served);
    let mut rng = Rng::with_seed(7);
    for round in 0..20 {
        let mut front_end = front_end_process(&served.socket);
        let mut said = String::new();
        let mut output = front_end.0.stdout.take().expect("a pipe");
        while !said.contains("READY") {
            let mut some = [0; 256];
            let len = output.read(&mut some).expect("read what it says");
            assert!(len > 0, "the front end ended: {said}");
            said.push_str(&String::from_utf8_lossy(&some[..len]));
        }
        let busy = Holdings::of(&served.daemon);
        assert!(busy.threads >= before.threads + 4, "{busy:?}");
        assert!(busy.maps.iter().any(|name| name.contains("vhost-user-dm-inflight")), "{busy:?}");
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        front_end.kill();
        before.assert_again(&mut served, &format!("killing front end {round}"));
    }
    served.vmm(&setup()).read(3, 0, 512).expect("the next one is served");
    served.daemon.stop();
}

#[test]
fn a_thousand_front_ends_leave_nothing() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let round = |served: &mut Served, n: usize| {
        let order = [Order::Qemu, Order::CloudHypervisor][n % 2];
        let setup = Setup { order, slots: 2, slot_bytes: 16 << 10, queues: 2, ..Setup::default() };
        match n % 10 {
            // Gone before it said a word, or in the middle of one.
            8 => drop(served.daemon.connect(&served.socket)),
            9 => {
                let mut stream = served.daemon.connect(&served.socket);
                std::io::Write::write_all(&mut stream, &[1, 0, 0]).expect("send");
            }
            _ => {
                let mut vmm = served.vmm(&setup);
                vmm.read(n % 2, 0, 512).expect("read");
            }
        }
    };
    let (before, _) = Holdings::with_a_silent_front_end(&mut served);
    // The allocator takes what it needs for some front ends, and should not need more for many.
    for n in 0..200 {
        round(&mut served, n);
    }
    before.assert_again(&mut served, "some front ends");
    let memory_before = memory(&served.daemon);
    for n in 0..1000 {
        round(&mut served, n);
    }
    before.assert_again(&mut served, "a thousand front ends");
    let grown = memory(&served.daemon).saturating_sub(memory_before);
    // 1 KiB for each would be a leak.
    assert!(grown < 1024, "{grown} KiB more than the {memory_before} KiB before");
    let lines = served.daemon.log().lines().count();
    assert!(lines < 200, "{lines} lines of log");
    served.daemon.stop();
}
