//! Image locks between processes: this program with itself and with QEMU's tools.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Need, RO, RW, can_run, dir, image, open, try_run};
use nix::fcntl::{FcntlArg, fcntl};
use vhost_user_dm::device::{OpenError, Options, Registry};

fn locked(path: &Path, opts: &Options) -> OpenError {
    let error = open(path, opts).expect_err("it is locked");
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert_eq!(error.errno_name(), "EBUSY");
    error
}

/// The bytes on which anyone has a lock, from /proc/locks.
fn locked_bytes(path: &Path) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(path).expect("stat").ino().to_string();
    let locks = fs::read_to_string("/proc/locks").expect("/proc/locks");
    let mut bytes: Vec<u64> = Vec::new();
    for line in locks.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [.., place, start, end] = fields[..] else { continue };
        if fields[1..4] == ["OFDLCK", "ADVISORY", "READ"] && place.rsplit(':').next() == Some(&inode) {
            bytes.extend(start.parse::<u64>().expect("a byte")..=end.parse().expect("a byte"));
        }
    }
    bytes.sort_unstable();
    bytes
}

#[test]
fn a_writer_is_alone() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let writer = open(&path, &RW).expect("nobody is there");
    assert_eq!(locked_bytes(&path), [100, 101, 201, 203]);
    let own = format!("process {} (", std::process::id());
    for (opts, mode) in [(RW, "writable"), (RO, "read-only")] {
        let error = locked(&path, &opts).to_string();
        assert!(error.starts_with(&format!("{}: cannot be served {mode}: {own}", path.display())), "{error}");
        assert!(error.ends_with("has it open for writing"), "{error}");
    }
    // A refused opening leaves nothing behind.
    assert_eq!(locked_bytes(&path), [100, 101, 201, 203]);
    drop(writer);
    assert_eq!(locked_bytes(&path), [0_u64; 0]);
    open(&path, &RW).expect("free again");
}

#[test]
fn readers_share_and_keep_writers_out() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let readers = [open(&path, &RO).expect("first"), open(&path, &RO).expect("second")];
    let error = locked(&path, &RW);
    assert!(error.to_string().ends_with("has it open and allows no one else writing"), "{error}");
    assert!(error.help().is_some_and(|help| help.contains("--read-only")));
    drop(readers);
    open(&path, &RW).expect("free again");
}

/// What another open description of the file (a write still in flight, for one) holds, outlives the component.
#[test]
fn locks_last_as_long_as_the_description() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let writer = open(&path, &RW).expect("nobody is there");
    let reference = writer.file().try_clone().expect("dup");
    drop(writer);
    locked(&path, &RW);
    drop(reference);
    open(&path, &RW).expect("free again");
}

#[test]
fn a_lock_on_the_whole_file_by_any_program_keeps_us_out() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let file = File::options().read(true).write(true).open(&path).expect("a file");
    let whole = |kind: libc::c_int| libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))).expect("a lock");
    for opts in [RW, RO] {
        let error = locked(&path, &opts);
        assert!(error.to_string().contains("the whole file is locked by process"), "{error}");
    }
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_RDLCK))).expect("a lock");
    locked(&path, &RW);
}

#[test]
fn a_registry_does_not_meet_its_own_locks() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let text = path.to_str().expect("UTF-8");
    let mut registry = Registry::new();
    let _first = registry.open(text, None, &RW).expect("first disk");
    registry.open(text, None, &RW).expect("second disk");
    assert_eq!(locked_bytes(&path), [100, 101, 201, 203]);
}

/// qemu-io with the image open, until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, format: &str, read_only: bool) -> QemuIo {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]).args(read_only.then_some("-r")).arg(path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("qemu-io");
        // It answers once the image is open.
        child.stdin.as_mut().expect("a pipe").write_all(b"length\n").expect("a command");
        let mut answer = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        while !answer.contains("MiB") {
            answer.clear();
            assert_ne!(output.read_line(&mut answer).expect("output"), 0, "qemu-io could not open the image");
        }
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A qemu-storage-daemon that exports the image.
struct StorageDaemon(Child);

impl StorageDaemon {
    fn export(dir: &Path, path: &Path, writable: bool) -> StorageDaemon {
        let (pid_file, socket) = (dir.join("qsd.pid"), dir.join("qsd.sock"));
        let (read_only, writable) = if writable { ("off", "on") } else { ("on", "off") };
        let child = Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("file,filename={},node-name=f,locking=on,read-only={read_only}", path.display()),
            ])
            .args(["--blockdev", &format!("raw,file=f,node-name=r,read-only={read_only}")])
            .args([
                "--export",
                &format!(
                    "vhost-user-blk,id=e,node-name=r,writable={writable},addr.type=unix,addr.path={}",
                    socket.display()
                ),
            ])
            .args(["--pidfile".as_ref(), pid_file.as_os_str()])
            .spawn()
            .expect("qemu-storage-daemon");
        let mut daemon = StorageDaemon(child);
        // The file is written when everything is set up.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !fs::read(&pid_file).is_ok_and(|text| text.ends_with(b"\n")) {
            assert!(daemon.0.try_wait().expect("wait").is_none(), "qemu-storage-daemon ended");
            assert!(Instant::now() < deadline, "qemu-storage-daemon does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_io(path: &Path, arguments: &[&str]) -> Output {
    try_run("qemu-io", ["-f", "raw"].iter().chain(arguments).map(AsRef::as_ref).chain([path.as_os_str()]))
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn qemu_does_not_write_what_we_serve() {
    if !can_run("qemu_does_not_write_what_we_serve", &[Need::Qemu]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    for opts in [RW, RO] {
        let component = open(&path, &opts).expect("nobody is there");
        let write = qemu_io(&path, &["-c", "write -P 0x55 0 512"]);
        assert!(!write.status.success());
        assert!(text_of(&write).contains("lock"), "{}", text_of(&write));
        let resize =
            try_run("qemu-img", ["resize".as_ref(), "-f".as_ref(), "raw".as_ref(), path.as_os_str(), "2M".as_ref()]);
        assert!(!resize.status.success() && text_of(&resize).contains("lock"), "{}", text_of(&resize));
        drop(component);
    }
    assert_eq!(fs::read(&path).expect("data"), vec![0_u8; 1 << 20]);
    assert!(qemu_io(&path, &["-c", "write -P 0x55 0 512"]).status.success());
}

#[test]
fn a_writer_of_qemu_keeps_us_out_and_is_named() {
    if !can_run("a_writer_of_qemu_keeps_us_out_and_is_named", &[Need::Qemu]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let writer = QemuIo::open(&path, "raw", false);
    for opts in [RW, RO] {
        let error = locked(&path, &opts).to_string();
        let holder = format!("process {} (qemu-io) has it open for writing", writer.0.id());
        assert!(error.ends_with(&holder), "{error}");
    }
    drop(writer);
    open(&path, &RW).expect("free again");
}

#[test]
fn an_export_of_the_storage_daemon_keeps_us_out() {
    if !can_run("an_export_of_the_storage_daemon_keeps_us_out", &[Need::Qemu]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let daemon = StorageDaemon::export(dir.path(), &path, true);
    for opts in [RW, RO] {
        let error = locked(&path, &opts).to_string();
        // Names of processes are cut to 15 bytes by the kernel.
        assert!(error.contains(&format!("process {} (qemu-storage-da)", daemon.0.id())), "{error}");
    }
    drop(daemon);
    open(&path, &RW).expect("free again");
}

#[test]
fn readers_share_with_readers_of_qemu_both_ways() {
    if !can_run("readers_share_with_readers_of_qemu_both_ways", &[Need::Qemu]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let daemon = StorageDaemon::export(dir.path(), &path, false);
    let ours = open(&path, &RO).expect("beside a reader");
    drop(daemon);
    assert!(qemu_io(&path, &["-r", "-c", "read -P 0 0 512"]).status.success());
    let theirs = QemuIo::open(&path, "raw", true);
    drop(ours);
    open(&path, &RO).expect("beside a reader");
    drop(theirs);
}

/// A reader that, like a virtual machine with a read-only disk, cannot stand a writer: qcow2 needs its metadata
/// to stay as it is.
#[test]
fn a_reader_of_qemu_that_forbids_writers_keeps_our_writer_out_only() {
    if !can_run("a_reader_of_qemu_that_forbids_writers_keeps_our_writer_out_only", &[Need::Qemu]) {
        return;
    }
    let dir = dir();
    let path: PathBuf = dir.path().join("disk.qcow2");
    common::run(
        "qemu-img",
        ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str(), "1M".as_ref()],
    );
    let reader = QemuIo::open(&path, "qcow2", true);
    let error = locked(&path, &RW);
    let holder = format!("process {} (qemu-io) has it open and allows no one else writing", reader.0.id());
    assert!(error.to_string().ends_with(&holder), "{error}");
    assert!(error.help().is_some_and(|help| help.contains("--read-only")));
    open(&path, &RO).expect("beside a reader");
}
