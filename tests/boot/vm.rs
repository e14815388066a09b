//! Virtual machines whose disks the daemon serves.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::host::{PATIENCE, Piece, Scratch, run, top};

/// The directory of the guest's kernel and initramfs.
fn guest_images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| run(&mut Command::new(top().join("vm-images/guest.sh"))).into())
}

/// The directory of the bootable disk's pieces.
pub fn disk_images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| run(&mut Command::new(top().join("vm-images/disk.sh"))).into())
}

/// The bootable disk's pieces, copied so that the guest may write them. `test` is what the booted system runs.
pub fn bootable_disk(scratch: &Scratch, test: &str) -> Vec<Piece> {
    let images = disk_images();
    let layout = fs::read_to_string(images.join("layout")).expect("the layout of the bootable disk");
    let pieces = layout
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let len = words[1].parse().expect("a number of sectors");
            if words[2] == "zero" {
                return Piece::Zero(len);
            }
            let copy = scratch.path(words[2]);
            run(Command::new("cp").arg("--sparse=always").arg(images.join(words[2])).arg(&copy));
            Piece::Linear(len, copy, 0)
        })
        .collect();
    let script = scratch.text("rc.test", test);
    let root = scratch.path("root.img");
    run(Command::new("debugfs").args(["-w", "-R"]).arg(format!("write {} /etc/rc.test", script.display())).arg(&root));
    pieces
}

/// What to start a virtual machine with.
pub struct Setup<'a> {
    scratch: &'a Scratch,
    args: Vec<OsString>,
}

impl<'a> Setup<'a> {
    pub fn new(scratch: &'a Scratch) -> Self {
        Setup { scratch, args: Vec::new() }
    }

    /// An option of `vm-images/vm.sh`, or of QEMU after all of those.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// A disk on a socket; `properties` are of QEMU's device, each with a comma before it.
    pub fn disk(self, socket: &Path, properties: &str) -> Self {
        let arg = format!("--disk={}{properties}", socket.display());
        self.arg(arg)
    }

    /// Boots QEMU's `-kernel` with the test initramfs, which runs `tests/boot/guest/TEST`.
    pub fn run_test(self, test: &str) -> Vm {
        self.run_parts(test, &["test.cpio"], &[])
    }

    /// As [`Setup::run_test`], in a guest that has fio.
    pub fn run_test_with_fio(self, test: &str) -> Vm {
        self.run_parts(test, &["test.cpio", "fio.cpio"], &[])
    }

    /// As [`Setup::run_test`], in a guest of these parts of `vm-images/guest.sh` and of further archives.
    pub fn run_parts(self, test: &str, parts: &[&str], more: &[PathBuf]) -> Vm {
        let images = guest_images();
        // An initramfs may be several archives, one after another.
        let mut initramfs = Vec::new();
        for part in parts.iter().map(|part| images.join(part)).chain(more.iter().cloned()) {
            initramfs.extend(fs::read(&part).unwrap_or_else(|e| panic!("{}: {e}", part.display())));
        }
        initramfs.extend(pack_guest_tests());
        let path = self.scratch.path("initramfs");
        fs::write(&path, initramfs).expect("write the initramfs");
        let append = format!("console=ttyS0 quiet panic=-1 test={test}");
        let kernel = images.join("vmlinuz");
        let console = self.scratch.path("console.log");
        let serial = format!("file:{}", console.display());
        self.arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(path)
            .arg("-append")
            .arg(append)
            .arg("-serial")
            .arg(serial)
            .arg("-serial")
            .arg("stdio")
            .start(Some(console))
    }

    /// Boots by firmware. What [`Vm`] reads is the console.
    pub fn boot(self) -> Vm {
        self.arg("-serial").arg("stdio").start(None)
    }

    fn start(self, console: Option<PathBuf>) -> Vm {
        let log = self.scratch.path("qemu.log");
        let mut child = Command::new(top().join("vm-images/vm.sh"))
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("create QEMU's log"))
            .spawn()
            .expect("start vm-images/vm.sh");
        let output = child.stdout.take().expect("QEMU's standard output");
        let (sender, lines) = channel();
        spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Vm { child, lines, seen: Vec::new(), console, log }
    }
}

/// `tests/boot/guest` as an initramfs archive, below `/test`.
fn pack_guest_tests() -> Vec<u8> {
    let pack = "find guest | cpio --quiet --create --format=newc --owner=0:0";
    let output = Command::new("sh")
        .args(["-c", pack])
        .current_dir(top().join("tests/boot"))
        .stderr(Stdio::inherit())
        .output()
        .expect("start cpio");
    assert!(output.status.success(), "cpio: {}", output.status);
    output.stdout
}

/// A running virtual machine. Dropping it kills it.
pub struct Vm {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    console: Option<PathBuf>,
    log: PathBuf,
}

impl Vm {
    /// Waits for a line that begins with the word `key`, and returns what follows it.
    pub fn wait_for(&mut self, key: &str) -> String {
        match self.listen(key, PATIENCE) {
            Some(value) => value,
            None => panic!("the guest never said {key:?}"),
        }
    }

    /// As [`Vm::wait_for`], for a time of its own; None if no such line came.
    pub fn listen(&mut self, key: &str, time: Duration) -> Option<String> {
        let start = Instant::now();
        loop {
            let line = match self.lines.recv_timeout(time.saturating_sub(start.elapsed())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("QEMU ended before the guest said {key:?}"),
            };
            let value = line.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(' '));
            let value = value.map(|rest| rest.trim_start().to_owned());
            let failed = line.starts_with("end failed");
            self.seen.push(line);
            match value {
                Some(value) => return Some(value),
                None => assert!(!failed, "the guest's test failed before it said {key:?}"),
            }
        }
    }

    /// Waits for the end of the guest's test, which must be a good one, and of QEMU.
    pub fn finish(mut self) {
        assert_eq!(self.wait_for("end"), "ok");
        self.power_off();
    }

    /// Waits until QEMU ends by itself. Returns all lines.
    pub fn power_off(&mut self) -> Vec<String> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("wait for QEMU") {
                assert!(status.success(), "QEMU ended with {status}");
                self.seen.extend(self.lines.iter());
                return self.seen.clone();
            }
            sleep(Duration::from_millis(10));
        }
        panic!("the guest does not power off");
    }

    /// Ends QEMU with SIGKILL, whatever the guest is doing.
    pub fn kill(mut self) {
        self.child.kill().expect("kill QEMU");
        self.child.wait().expect("wait for QEMU");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("the guest said:\n  {}", self.seen.join("\n  "));
            for log in [Some(&self.log), self.console.as_ref()].into_iter().flatten() {
                let text = fs::read(log).unwrap_or_default();
                eprintln!("{}:\n{}", log.display(), String::from_utf8_lossy(&text));
            }
        }
    }
}
