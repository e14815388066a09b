//! Waiting for what a killed process has left in the kernel. The window itself, with a write that hangs, is in
//! `tests/tests/medium/fence.rs`.

mod common;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Loop, Need, RO, RW, can_run, dir, image, open};
use vhost_user_dm::device::{OpenError, Options, Patience, Registry};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

fn patient(most: Duration, pause: fn(Duration)) -> Registry {
    Registry::patient(Patience::new(most, pause))
}

fn open_with(mut registry: Registry, path: &Path, opts: &Options) -> Result<(), OpenError> {
    registry.open(path.to_str().expect("UTF-8"), None, opts).map(drop)
}

/// A reference to an open file description that is in no process's table, as that of a request in flight whose process
/// is gone: it lies in a message that nobody has received.
struct InKernel(#[allow(dead_code, reason = "holds the message")] (UnixStream, UnixStream));

impl InKernel {
    fn keep(file: File) -> InKernel {
        use std::os::fd::AsRawFd;
        let pair = UnixStream::pair().expect("a pair of sockets");
        pair.0.send_with_fd(&[0_u8][..], file.as_raw_fd()).expect("a message");
        InKernel(pair)
    }
}

/// Holds `path` as a killed writer does.
fn killed_writer(path: &Path) -> InKernel {
    let writer = open(path, &RW).expect("nobody is there");
    InKernel::keep(writer.file().try_clone().expect("dup"))
}

#[test]
fn what_nobody_who_lives_has_is_waited_for() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    for opts in [RW, RO] {
        let left = killed_writer(&path);
        let error = open(&path, &opts).expect_err("it is taken");
        assert!(matches!(error, OpenError::Locked { .. }) && error.to_string().contains("another process"), "{error}");
        let (waits, waiting) = channel();
        let ends = std::thread::spawn(move || {
            waiting.recv().expect("it waits");
            drop(left);
        });
        std::thread::scope(|scope| {
            let successor = scope.spawn(|| open_with(patient(LONG, std::thread::sleep), &path, &opts));
            // However long: as long as the reference is there, so is the successor.
            std::thread::sleep(Duration::from_millis(300));
            assert!(!successor.is_finished(), "it does not wait");
            waits.send(()).expect("the other thread is there");
            successor.join().expect("a result").expect("free at last");
        });
        ends.join().expect("released");
    }
}

#[test]
fn what_never_becomes_free_is_refused_in_the_end() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let _left = killed_writer(&path);
    let error = open_with(patient(Duration::from_secs(3), |_| {}), &path, &RW).expect_err("it is taken");
    assert_eq!(error.errno_name(), "EBUSY");
    let text = error.to_string();
    assert!(
        text.contains("another process has it open for writing") && text.ends_with("not free after 3 seconds"),
        "{text}"
    );
    assert!(error.help().is_some_and(|help| help.contains("dmesg")));
}

/// The bound is for a process, not for each of its components.
#[test]
fn all_components_together_are_waited_for_only_so_long() {
    let dir = dir();
    let mut registry = patient(Duration::from_secs(3), |_| {});
    for name in ["one", "two"] {
        let path = image(dir.path(), name, 1 << 20);
        let left = killed_writer(&path);
        let text = registry.open(path.to_str().expect("UTF-8"), None, &RW).expect_err("it is taken").to_string();
        assert!(text.ends_with("not free after 3 seconds"), "{text}");
        drop(left);
    }
}

#[test]
fn one_that_lives_is_not_waited_for() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let writer = open(&path, &RW).expect("nobody is there");
    // A request in flight beside it makes no difference.
    for left in [None, Some(InKernel::keep(writer.file().try_clone().expect("dup")))] {
        let registry = patient(LONG, |_| panic!("it waits for one that lives"));
        let error = open_with(registry, &path, &RW).expect_err("it is taken");
        let own = format!("process {} (", std::process::id());
        assert!(matches!(error, OpenError::Locked { .. }) && error.to_string().contains(&own), "{error}");
        drop(left);
    }
}

#[test]
fn the_claim_on_a_block_device_is_waited_for_too() {
    if !can_run("the_claim_on_a_block_device_is_waited_for_too", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 << 20), &[]);
    let left = killed_writer(&device.node);
    let error = open(&device.node, &RW).expect_err("it is claimed");
    assert!(matches!(error, OpenError::Claimed { .. }), "{error}");
    std::thread::scope(|scope| {
        let successor = scope.spawn(|| open_with(patient(LONG, std::thread::sleep), &device.node, &RW));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!successor.is_finished(), "it does not wait");
        drop(left);
        successor.join().expect("a result").expect("free at last");
    });
    let _writer = open(&device.node, &RW).expect("nobody is there");
    let registry = patient(LONG, |_| panic!("it waits for one that lives"));
    let error = open_with(registry, &device.node, &RW).expect_err("it is claimed");
    assert!(matches!(error, OpenError::Claimed { .. }), "{error}");
}

/// The everyday case: a process that serves is killed, and its successor opens at once.
#[test]
fn a_successor_of_a_killed_process_is_never_refused() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let socket = dir.path().join("disk.sock");
    for _ in 0..20 {
        let mut served = Command::new(env!("CARGO_BIN_EXE_vhost-user-dm"))
            .arg(format!("--socket-path={}", socket.display()))
            .arg(format!("--blk-file={}", path.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("vhost-user-dm");
        let deadline = Instant::now() + LONG;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline && served.try_wait().expect("wait").is_none(), "it does not serve");
            std::thread::sleep(Duration::from_millis(2));
        }
        served.kill().expect("SIGKILL");
        open_with(patient(LONG, std::thread::sleep), &path, &RW).expect("the killed process's locks end");
        served.wait().expect("wait");
        fs::remove_file(&socket).expect("a socket");
    }
}
