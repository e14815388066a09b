//! A running guest that goes from one QEMU to another one, each with a back end of its own on the same files.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use dm_tests::daemon::{Daemon, flag};

use super::host::{PATIENCE, Piece, Scratch, disk_sha256, serve};
use super::vm::{Setup, Vm};

/// A connection to QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(socket: &Path) -> Monitor {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < PATIENCE, "QEMU's monitor: {error}"),
            }
            sleep(Duration::from_millis(10));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.run("qmp_capabilities", "{}");
        monitor
    }

    /// Runs a command; returns the line that answers it.
    fn run(&mut self, command: &str, arguments: &str) -> String {
        let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\n");
        self.0.get_mut().write_all(line.as_bytes()).expect("write to QEMU's monitor");
        loop {
            let mut answer = String::new();
            let read = self.0.read_line(&mut answer).expect("read from QEMU's monitor");
            assert!(read > 0, "QEMU ended at {line}");
            assert!(!answer.contains("\"error\""), "{line}{answer}");
            // The rest are greetings and events.
            if answer.contains("\"return\"") {
                return answer;
            }
        }
    }

    /// Asks how far migration is until `enough` of it has happened.
    fn migration(&mut self, enough: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let state = self.run("query-migrate", "{}");
            if enough(&state) {
                return;
            }
            assert!(!state.contains("\"failed\"") && !state.contains("\"cancelled\""), "{state}");
            assert!(start.elapsed() < PATIENCE, "migration does not get on: {state}");
            sleep(Duration::from_millis(50));
        }
    }
}

/// Passes over the guest's memory that were begun.
fn passes(state: &str) -> u32 {
    let (_, after) = state.split_once("\"dirty-sync-count\": ").unwrap_or_default();
    after.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Memory of the machines. QEMU before 9.0 loses what an emulated CPU writes while a machine migrates, whatever its disk,
/// where the size is a multiple of 256 KiB.
const MEMORY: &str = "--memory=524296K";

/// A machine with a monitor, on a disk.
fn start<'a>(scratch: &'a Scratch, disk: &Path, setup: impl FnOnce(Setup<'a>) -> Setup<'a>) -> (Vm, Monitor) {
    let socket = scratch.socket("monitor");
    let setup = setup(Setup::new(scratch).arg(MEMORY).disk(disk, ""));
    // Memory that the guest's kernel clears before the device writes there would be sent again for that alone.
    let vm = setup
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .run_test_with_fio("migrate init_on_alloc=0");
    (vm, Monitor::connect(&socket))
}

/// Waits until the guest has found its data right so many times.
fn rounds(vm: &mut Vm, count: u32) {
    for _ in 0..count {
        vm.wait_for("round");
    }
}

#[test]
fn a_guest_migrates_while_it_reads_and_writes() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let legs = ["b", "c"].map(|name| here.noise(name, 8192));
    // 16 MiB that are read, 4 MiB that fio writes, and the host's word.
    let pieces = [
        Piece::Linear(32768, here.noise("a", 40000), 7001),
        Piece::Striped(16384, 8, legs.to_vec()),
        Piece::Linear(8, here.noise("word", 8), 0),
    ];
    let source = serve(&here, &pieces, &["--serial=boot-test"]);
    let (mut from, mut monitor) = start(&here, &here.socket("disk"), |setup| setup);
    rounds(&mut from, 1);

    let socket = there.socket("disk");
    let args = [flag("--socket-path", &socket), flag("--table", &here.path("disk.table"))];
    let mut destination =
        Daemon::start(args.into_iter().chain(["--serial=boot-test", "--incoming"].map(str::to_owned)));
    destination.wait_listening(&socket);
    let (mut to, mut other) = start(&there, &socket, |setup| setup.arg("-incoming").arg("defer"));
    let way = format!("{{\"uri\": \"unix:{}\"}}", there.socket("way").display());
    other.run("migrate-incoming", &way);

    // Slowly, so that the back end writes into much of the memory that has been sent already, which must come again. Then
    // for as long as it takes.
    monitor.run("migrate-set-parameters", "{\"downtime-limit\": 1, \"max-bandwidth\": 67108864}");
    monitor.run("migrate", &way);
    let completed = |state: &str| state.contains("\"completed\"");
    monitor.migration(|state| passes(state) >= 4 || completed(state));
    monitor.run("migrate-set-parameters", "{\"downtime-limit\": 60000, \"max-bandwidth\": 1073741824}");
    monitor.migration(completed);
    rounds(&mut to, 3);

    let word = OpenOptions::new().write(true).open(here.path("word")).expect("open the host's word");
    word.write_all_at(b"stop", 7 * 512).and_then(|()| word.sync_all()).expect("say that it is enough");
    let sum = to.wait_for("sha256");
    to.finish();
    monitor.run("quit", "{}");
    from.power_off();
    let (gave, took) = (source.log(), destination.log());
    assert!(gave.contains("its components are free for the destination"), "{gave}");
    assert!(took.contains("its components are locked"), "{took}");
    source.stop();
    destination.stop();
    assert_eq!(disk_sha256(&here, &pieces), sum, "the components' bytes");
}
