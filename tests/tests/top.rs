//! `top` on a terminal, and what scripts get of `top --once` and `stats`.
#![allow(missing_docs)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dm_tests::daemon::{Daemon, binary, flag, run};
use dm_tests::vmm::Setup;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// What does not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
const TABLE: &str = "disk,,,rw,0 2048 zero,2048 2048 error;spare,,,rw,0 64 zero";

/// A process with two devices.
struct Ground {
    dir: tempfile::TempDir,
    daemon: Daemon,
}

impl Ground {
    fn new() -> Ground {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("table"), TABLE).expect("write the table");
        let daemon = Ground::start(dir.path());
        Ground { dir, daemon }
    }

    fn start(dir: &Path) -> Daemon {
        let args = [
            flag("--socket-dir", dir),
            flag("--table", &dir.join("table")),
            flag("--control-path", &dir.join("control")),
        ];
        let mut daemon = Daemon::start(args);
        daemon.wait_listening(&dir.join("control"));
        daemon
    }

    fn control(&self) -> String {
        flag("--control-path", &self.dir.path().join("control"))
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    /// Eight reads, one of which fails.
    fn read(&mut self) {
        let disk = self.disk();
        let mut vmm = self.daemon.vmm(&disk, &Setup::default());
        (0..7).for_each(|n| drop(vmm.read(0, 8 * n, 4096).expect("a read of zeroes")));
        assert!(vmm.read(0, 2048, 512).is_err());
    }
}

/// `top` on a pseudo-terminal of 80 by 24.
struct Screen {
    top: Child,
    user: File,
    /// The terminal's own side, so that its settings can be looked at when `top` has ended.
    tty: OwnedFd,
    before: Termios,
    output: Receiver<Vec<u8>>,
    terminal: vt100::Parser,
    /// All of the output.
    seen: Vec<u8>,
}

impl Screen {
    fn new(ground: &Ground, variables: &[(&str, &str)]) -> Screen {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&user).expect("grantpt");
        unlockpt(&user).expect("unlockpt");
        let name = ptsname(&user, Vec::new()).expect("its name");
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())).to_owned();
        let tty = OpenOptions::new().read(true).write(true).open(name).expect("its other side");
        tcsetwinsize(&tty, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).expect("its size");
        let before = tcgetattr(&tty).expect("its settings");
        let side = || Stdio::from(tty.try_clone().expect("a descriptor"));
        let mut command = Command::new(binary());
        command
            .args(["top", &ground.control(), "--interval=0.1"])
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied());
        let top = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("start top");
        let user = File::from(user);
        let mut reader = user.try_clone().expect("a descriptor");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Screen { top, user, tty: tty.into(), before, output, terminal: vt100::Parser::new(24, 80, 0), seen: Vec::new() }
    }

    /// Waits until a text is on the screen.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.terminal.screen().contents().contains(text) {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.take(&bytes),
                Err(error) => panic!("no {text:?} on the screen: {error}\n{}", self.terminal.screen().contents()),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.terminal.process(bytes);
        self.seen.extend(bytes);
    }

    fn press(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).expect("press keys");
    }

    /// Waits for its end; the terminal must be as it was.
    fn end(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.top.try_wait().expect("wait for top") {
                break status;
            }
            assert!(Instant::now() < deadline, "top does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        while self.terminal.screen().alternate_screen() || self.terminal.screen().hide_cursor() {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.take(&bytes),
                Err(_) => panic!("the other screen or no cursor is left: {:?}", String::from_utf8_lossy(&self.seen)),
            }
        }
        let after = tcgetattr(&self.tty).expect("its settings");
        assert_eq!(format!("{after:?}"), format!("{:?}", self.before));
        status
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.top.kill();
        let _ = self.top.wait();
    }
}

/// Whether any output set a colour.
fn is_coloured(output: &[u8]) -> bool {
    output.windows(5).any(|bytes| bytes == b"\x1b[38;")
}

#[test]
fn keys_and_the_end() {
    let mut ground = Ground::new();
    ground.read();
    let mut screen = Screen::new(&ground, &[]);
    screen.wait_for("zero");
    assert!(screen.terminal.screen().alternate_screen());
    assert!(is_coloured(&screen.seen));
    screen.press("j");
    screen.wait_for("spare: 32.0 KiB");
    screen.press("k");
    screen.wait_for("disk: 2.0 MiB");
    screen.press("?");
    screen.wait_for("longer, shorter interval");
    screen.press("?p");
    screen.wait_for("paused");
    screen.press("q");
    assert!(screen.end().success());
}

#[test]
fn no_colour_where_none_is_wanted() {
    let ground = Ground::new();
    let mut screen = Screen::new(&ground, &[("NO_COLOR", "1")]);
    screen.wait_for("disk: 2.0 MiB");
    screen.wait_for("zero");
    assert!(!is_coloured(&screen.seen));
    screen.press("q");
    assert!(screen.end().success());
}

#[test]
fn signals_restore_the_terminal() {
    let ground = Ground::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut screen = Screen::new(&ground, &[]);
        screen.wait_for("spare");
        kill_process(Pid::from_child(&screen.top), signal).expect("signal top");
        assert!(screen.end().success(), "{signal:?}");
    }
}

#[test]
fn a_process_that_ends_is_waited_for() {
    let mut ground = Ground::new();
    let mut screen = Screen::new(&ground, &[]);
    screen.wait_for("spare");
    ground.daemon.stop();
    screen.wait_for("trying again");
    ground.daemon = Ground::start(ground.dir.path());
    screen.wait_for("q quit");
    // One that takes no calls any more.
    ground.daemon.signal(Signal::STOP);
    screen.wait_for("has not answered");
    screen.press("q");
    assert!(screen.end().success());
    ground.daemon.signal(Signal::CONT);
}

#[test]
fn scripts_get_text() {
    let mut ground = Ground::new();
    ground.read();
    let control = ground.control();
    let ours = |args: &[&str]| run(args.iter().copied().chain([control.as_str()])).expect("run");
    let (code, out, err) = ours(&["top", "--once", "--interval=0.1"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\n>disk ") && out.contains("\n spare ") && !out.contains('\x1b'), "{out}");
    let (code, out, _) = ours(&["top", "--once", "--interval=0.1", "spare"]);
    assert!(code == 0 && !out.contains("disk") && out.contains("── spare: 32.0 KiB"), "{out}");
    let (code, out, _) = ours(&["stats", "--segments", "disk"]);
    assert_eq!(code, 0);
    let reads = out.lines().find(|line| line.starts_with("    read ")).expect("a line of reads");
    let fields: Vec<_> = reads.split_whitespace().collect();
    assert_eq!(fields[..5], ["read", "8", "28.5", "KiB", "1"], "{out}");
    assert!(out.lines().any(|line| line.starts_with("  error ") && line.ends_with(" 1")), "{out}");
    let (code, out, _) = ours(&["stats", "--json", "spare", "disk"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json[0]["name"], &json[1]["name"]), (&"spare".into(), &"disk".into()));
    assert_eq!(json[1]["device"]["kinds"]["read"]["ops"], 8);
    assert_eq!(json[1]["device"]["kinds"]["read"]["errors"], 1);
    let (code, out, _) = ours(&["stats", "--openmetrics", "disk"]);
    assert_eq!(code, 0);
    assert!(out.contains("\"disk\"") && !out.contains("spare") && out.ends_with("# EOF\n"), "{out}");
}

#[test]
fn what_cannot_be_shown_is_said() {
    let ground = Ground::new();
    let control = ground.control();
    let nowhere = flag("--control-path", &ground.dir.path().join("nobody"));
    for (args, why) in [
        (vec!["top", &control], "standard output is no terminal; --once prints one picture as text"),
        (vec!["top", "--once", "--interval=0.1", &control, "disc"], "no such device: disc"),
        (vec!["top", "--once", &nowhere], "cannot connect to the control socket"),
        (vec!["top", "--interval=0", &control], "seconds, from 0.1 to 3600"),
        (vec!["top", "--interval=nan", &control], "seconds, from 0.1 to 3600"),
        (vec!["stats", &control, "disc"], "disc: No such device or address"),
        (vec!["stats", "--json", "--openmetrics", &control], "cannot be used with"),
        (vec!["stats", "--json", &nowhere], "cannot connect to the control socket"),
    ] {
        let (code, out, err) = run(&args).expect("run");
        assert!(code != 0 && out.is_empty() && err.contains(why), "{args:?}: {out}{err}");
        assert!(err.lines().count() <= 5, "{err}");
    }
}
