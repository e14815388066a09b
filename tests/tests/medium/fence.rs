//! A write that a killed back end has left in the kernel: it must have ended before the next back end serves.
//!
//! What makes it hang is real: the file system under it is frozen. It arrives after the thaw, whatever has become of the
//! process (`the_write_of_a_killed_process_arrives` shows that, so that the others test something).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, OK, Request, Shape, kind};
use dm_tests::daemon::{self, Daemon, Served, flag};
use dm_tests::files;
use dm_tests::loops::{self, Loop, LoopFs, hangs};
use dm_tests::skip;
use dm_tests::vmm::{Setup, Vmm};
use rustix::process::Signal;

use crate::SECTOR;

const SECTORS: usize = 2048;
/// Where the writes go.
const AT: u64 = 8;
const LEN: usize = 8 * SECTOR;
const PATIENCE: Duration = Duration::from_secs(60);

fn table(component: &Path) -> String {
    format!("0 {SECTORS} linear {} 0\n", component.display())
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn submit(vmm: &mut Vmm, slot: usize, value: u8) {
    let bytes = [value; LEN];
    let request = Request { kind: kind::OUT, sector: AT, data: Data::ToDevice(&bytes) };
    vmm.submit(0, slot, &request, &Shape::PLAIN, &mut fastrand::Rng::with_seed(1));
    vmm.kick(0);
}

/// The bytes that a component holds where the writes go.
fn bytes(component: &Path) -> Vec<u8> {
    let all = std::fs::read(component).expect("read the component");
    all[AT as usize * SECTOR..][..LEN].to_vec()
}

/// A component on a file system that can be frozen.
struct Ground {
    component: PathBuf,
    // Detached before the file system is unmounted.
    device: Option<Loop>,
    fs: LoopFs,
}

impl Ground {
    /// `None`, which is said, where this machine does not let us.
    fn new(test: &str, block: bool) -> Option<Ground> {
        if let Some(why) = loops::missing() {
            skip::skip(test, why);
            return None;
        }
        let fs = LoopFs::mount(32 << 20).expect("an ext4");
        let file = fs.path().join("component");
        files::component(&file, &vec![1; SECTORS * SECTOR]);
        let device = block.then(|| Loop::attach(&file, true).expect("a loop device"));
        let component = device.as_ref().map_or(file, |device| device.node.clone());
        Some(Ground { component, device, fs })
    }

    /// Whether the write that was submitted hangs in the kernel: in the back end's own thread for a file, and with the
    /// driver for a device.
    fn hangs(&self, pid: u32) -> bool {
        self.device.as_ref().map_or_else(|| hangs(pid), Loop::hangs)
    }
}

#[test]
fn the_write_of_a_killed_process_arrives() {
    let Some(ground) = Ground::new("the_write_of_a_killed_process_arrives", false) else { return };
    let mut served = Served::table(&table(&ground.component), &[]);
    let mut vmm = served.vmm(&Setup::default());
    // The first direct write after the buffered ones that made the file is done by way of the page cache, and that one
    // does look at signals.
    vmm.write(0, AT, &[1; LEN]).expect("write");
    let frozen = ground.fs.freeze().expect("freeze");
    submit(&mut vmm, 0, 3);
    wait_until("the write does not hang", || ground.hangs(served.daemon.pid()));
    served.daemon.signal(Signal::KILL);
    // It has passed all that looks at signals: nobody can call it back.
    std::thread::sleep(Duration::from_millis(200));
    assert!(bytes(&ground.component) == [1; LEN]);
    drop(frozen);
    // Perhaps after its end: from the thread it goes to the device, and then nothing is left of the process.
    wait_until("the write of the killed process has not arrived", || bytes(&ground.component) == [3; LEN]);
    assert!(served.daemon.wait(PATIENCE).is_some(), "it does not end");
}

/// See the module's text.
fn no_stale_write(test: &str, block: bool) {
    for _ in 0..3 {
        let Some(ground) = Ground::new(test, block) else { return };
        let mut served = Served::table(&table(&ground.component), &[]);
        let mut vmm = served.vmm(&Setup::default());
        vmm.write(0, AT, &[2; LEN]).expect("write");
        let args = [flag("--socket-path", &served.socket), flag("--table", &served.dir().join("disk.table"))];
        let frozen = ground.fs.freeze().expect("freeze");
        submit(&mut vmm, 0, 3);
        wait_until("the write does not hang", || ground.hangs(served.daemon.pid()));
        served.daemon.signal(Signal::KILL);

        let mut successor = Daemon::start(&args);
        wait_until("no word of waiting", || successor.log().contains("; waiting up to 40 seconds"));
        std::thread::sleep(Duration::from_millis(500));
        assert!(successor.is_running(), "it gave up: {}", successor.log());
        // To connect would prove nothing: the killed process's listening socket is still there too, and takes connections.
        assert!(!successor.log().contains("serving") && !successor.log().contains("free after"), "{}", successor.log());
        assert_eq!(vmm.queues[0].ring.in_flight(), 1);

        drop(frozen);
        wait_until("it does not go on", || successor.log().contains("free after"));
        assert_eq!(successor.log().lines().filter(|line| line.contains("waiting up to")).count(), 1);
        let stream = successor.connect(&served.socket);
        vmm.reconnect(stream).expect("reconnect");
        assert_eq!(vmm.wait(0).status, OK);
        vmm.write(0, AT, &[4; LEN]).expect("overwrite");
        for _ in 0..20 {
            assert!(vmm.read(0, AT, LEN).as_deref() == Ok(&[4; LEN]), "a write came late");
            std::thread::sleep(Duration::from_millis(10));
        }
        vmm.flush(0).expect("flush");
        drop(vmm);
        successor.stop();
        assert!(bytes(&ground.component) == [4; LEN], "a write came late");
    }
}

#[test]
fn no_write_of_a_killed_process_comes_after_its_successors() {
    no_stale_write("no_write_of_a_killed_process_comes_after_its_successors", false);
}

#[test]
fn no_write_to_a_device_comes_after_those_of_the_successor() {
    no_stale_write("no_write_to_a_device_comes_after_those_of_the_successor", true);
}

#[test]
fn who_waits_ends_when_told_to_and_check_does_not_wait() {
    let Some(ground) = Ground::new("who_waits_ends_when_told_to_and_check_does_not_wait", false) else { return };
    let mut served = Served::table(&table(&ground.component), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let file = served.dir().join("disk.table");
    let socket = served.dir().join("other.sock");
    let args = [flag("--socket-path", &socket), flag("--table", &file)];
    // One that lives is not waited for.
    let (code, _, said) = daemon::run(&args).expect("run");
    assert!(code == 1 && said.contains("has it open for writing") && !said.contains("waiting"), "{said}");

    let frozen = ground.fs.freeze().expect("freeze");
    submit(&mut vmm, 0, 3);
    wait_until("the write does not hang", || ground.hangs(served.daemon.pid()));
    served.daemon.signal(Signal::KILL);
    let (code, _, said) = daemon::run(["check".as_ref(), file.as_os_str()]).expect("run");
    assert!(code == 1 && said.contains("which is ending but has I/O in the kernel"), "{said}");
    let mut successor = Daemon::start(&args);
    wait_until("no word of waiting", || successor.log().contains("; waiting up to"));
    assert!(successor.is_running());
    successor.signal(Signal::TERM);
    let status = successor.wait(PATIENCE);
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", successor.log());
    assert!(!socket.exists());
    drop(frozen);
}
