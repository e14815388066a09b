//! Starting the processes under test, watching them, and ending them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use crate::vmm::{Setup, Vmm};

/// A daemon of ours that is not up by then never will be.
const START: Duration = Duration::from_secs(60);
/// Nor does one that is to end and has not by then, though a slow disk has to flush what it wrote.
const END: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(2);

/// The `vhost-user-dm` binary: `$VHOST_USER_DM` if set, else what cargo builds from this tree in the
/// profile of the running test (a binary that merely lies there may be older than the source).
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("VHOST_USER_DM") {
        Some(path) => PathBuf::from(path),
        None => built(),
    })
}

fn built() -> PathBuf {
    let exe = std::env::current_exe().expect("the test has an executable");
    let profile_dir = exe
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps"))
        .expect("test executables lie in a profile directory");
    let target_dir = profile_dir.parent().expect("profile in a target directory");
    let release = profile_dir.ends_with("release");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "-q", "-p", "vhost-user-dm", "--target-dir"])
        .arg(target_dir)
        .args(release.then_some("--release"));
    let status = cargo.status().expect("run cargo");
    assert!(status.success(), "cargo could not build vhost-user-dm");
    profile_dir.join("vhost-user-dm")
}

/// A process under test, killed on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: NamedTempFile,
    name: String,
}

impl Daemon {
    /// Starts `vhost-user-dm` with these arguments.
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(binary());
        command.args(args);
        Self::spawn(command)
    }

    /// Starts `vhost-user-dm ARGS --fd=3` with that descriptor as number 3.
    pub fn start_with_fd(args: &[String], fd: OwnedFd) -> Self {
        // The shell moves the descriptor from stdin to 3; to leave it inheritable in this process would
        // leak it into whatever other tests start meanwhile.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" --fd=3 3<&0 </dev/null"])
            .arg(binary())
            .args(args)
            .stdin(Stdio::from(fd));
        Self::spawn(command)
    }

    /// Starts `vhost-user-dm ARGS` as systemd does for .socket units: with one or two sockets as descriptors 3 and 4,
    /// and variables that tell of them. `names` is LISTEN_FDNAMES.
    pub fn activate(args: &[String], sockets: Vec<OwnedFd>, names: Option<&str>) -> Self {
        // As above; only the process itself knows its number.
        const SCRIPT: &str = "LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >&2";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT]).arg(binary()).args(args);
        command.env("LISTEN_FDS", sockets.len().to_string());
        if let Some(names) = names {
            command.env("LISTEN_FDNAMES", names);
        }
        let mut sockets = sockets.into_iter();
        command.stdin(sockets.next().map_or_else(Stdio::null, Stdio::from));
        let second = sockets.next().map_or_else(Stdio::null, Stdio::from);
        assert!(sockets.next().is_none(), "test bug: more than two sockets");
        Self::spawn_with(command, Some(second))
    }

    /// Starts any command, its output in a log.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with(command, None)
    }

    fn spawn_with(mut command: Command, stdout: Option<Stdio>) -> Self {
        let log = NamedTempFile::new().expect("a log file");
        let name = format!("{command:?}");
        let append = || fs::OpenOptions::new().append(true).open(log.path()).expect("a log file");
        command.stdout(stdout.unwrap_or_else(|| append().into())).stderr(append());
        let child = command.spawn().unwrap_or_else(|e| panic!("start {name}: {e}"));
        Daemon { child, log, name }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Connects to a socket of this daemon, waiting for it to come up.
    pub fn connect(&mut self, socket: &Path) -> UnixStream {
        let deadline = Instant::now() + START;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return stream,
                Err(e) if Instant::now() > deadline => panic!("connect to {socket:?}: {e}"),
                Err(_) => {}
            }
            assert!(self.is_running(), "ended instead of listening on {socket:?}");
            std::thread::sleep(TICK);
        }
    }

    /// Waits until the socket is there and answers.
    pub fn wait_listening(&mut self, socket: &Path) {
        drop(self.connect(socket));
    }

    /// A whole front end on a socket of this daemon.
    pub fn vmm(&mut self, socket: &Path, setup: &Setup) -> Vmm {
        let stream = self.connect(socket);
        Vmm::over(stream, setup).unwrap_or_else(|e| panic!("set up a front end: {e}"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signal the daemon");
    }

    /// Waits for the process to end by itself; None if it does not in time.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends it by SIGTERM and asserts that it exits with status 0.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(END);
        assert_eq!(status.and_then(|s| s.code()), Some(0), "after SIGTERM: {status:?}");
    }

    /// Asserts that the process runs: nothing that was done to it killed it.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
            panic!("the daemon died: {status}, signal {:?}", status.signal());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let skip = log.lines().count().saturating_sub(60);
            let tail: Vec<&str> = log.lines().skip(skip).collect();
            eprintln!("--- {}\n{}\n---", self.name, tail.join("\n"));
        }
    }
}

/// Runs `vhost-user-dm` to its end: exit code, standard output, standard error.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> io::Result<(i32, String, String)> {
    let output = Command::new(binary()).args(args).stdin(Stdio::null()).output()?;
    Ok((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

/// A daemon that serves one table on one socket in a directory of its own.
#[derive(Debug)]
pub struct Served {
    /// The process.
    pub daemon: Daemon,
    /// The socket.
    pub socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Served {
    /// Serves a plain table with further arguments.
    pub fn table(table: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("disk.sock");
        let file = dir.path().join("disk.table");
        fs::write(&file, table).expect("write the table");
        let daemon = Daemon::start(
            [flag("--socket-path", &socket), flag("--table", &file)]
                .into_iter()
                .chain(args.iter().map(|&arg| arg.to_owned())),
        );
        Served { daemon, socket, dir }
    }

    /// Where its socket and table lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A front end.
    pub fn vmm(&mut self, setup: &Setup) -> Vmm {
        self.daemon.vmm(&self.socket, setup)
    }
}

/// `--name=path` as one argument.
pub fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// qemu-storage-daemon serving one raw file.
pub fn qemu_storage_daemon(file: &Path, socket: &Path, aio: &str, direct: bool) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    let direct = if direct { "on" } else { "off" };
    command
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=file,filename={},aio={aio},cache.direct={direct},discard=unmap",
            file.display()
        ))
        .args(["--blockdev", "driver=raw,node-name=disk,file=file,discard=unmap"])
        .args(["--object", "iothread,id=io0", "--export"])
        .arg(format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=disk,writable=on,iothread=io0,num-queues=1",
            socket.display()
        ));
    command
}
