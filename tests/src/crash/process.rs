//! The back end as a process that comes and goes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::daemon::{Daemon, flag};

/// Nothing here takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_micros(200);

/// How to start a back end, and the one that runs.
#[derive(Debug)]
pub struct BackEnd {
    args: Vec<String>,
    socket: PathBuf,
    daemon: Option<Daemon>,
}

impl BackEnd {
    /// Serves device `top` of a concise table, with further arguments, from files in `dir`. Starts it.
    pub fn new(dir: &Path, table: &str, more: &[&str]) -> Self {
        let file = dir.join("table");
        fs::write(&file, table).expect("write the table");
        let socket = dir.join("socket");
        let mut args = vec![flag("--socket-path", &socket), flag("--table", &file), "--device=top".to_owned()];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let mut back_end = BackEnd { args, socket, daemon: None };
        back_end.start();
        back_end
    }

    /// Starts it where the last one was.
    pub fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.args));
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("test bug: no back end was started")
    }

    /// Connects as soon as it listens; None if it has ended.
    pub fn try_connect(&mut self) -> Option<UnixStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(&self.socket) {
                return Some(stream);
            }
            if !self.daemon().is_running() {
                return None;
            }
            assert!(Instant::now() < deadline, "the back end runs and does not listen");
            sleep(TICK);
        }
    }

    /// Connects to a back end that has to come up.
    pub fn connect(&mut self) -> UnixStream {
        match self.try_connect() {
            Some(stream) => stream,
            None => panic!("the back end ended by itself instead of serving:\n{}", self.daemon().log()),
        }
    }

    /// Ends it by SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let daemon = self.daemon();
        assert!(daemon.is_running(), "the back end had ended by itself:\n{}", daemon.log());
        daemon.signal(Signal::KILL);
        self.is_killed();
    }

    fn is_killed(&mut self) {
        let daemon = self.daemon();
        let status = daemon.wait(PATIENCE).expect("the back end outlives SIGKILL");
        assert_eq!(status.signal(), Some(9), "the back end ended by itself: {status}\n{}", daemon.log());
    }

    /// Does something during which it is killed.
    pub fn kill_during<T>(&mut self, delay: Duration, act: impl FnOnce(&mut Self) -> T) -> T {
        let pid = Pid::from_raw(self.daemon().pid().cast_signed()).expect("a process id");
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("the back end's process");
        thread::scope(|scope| {
            let killer = scope.spawn(move || {
                sleep(delay);
                pidfd_send_signal(process, Signal::KILL)
            });
            let result = act(self);
            let sent = killer.join().expect("the killing thread");
            self.is_killed();
            sent.expect("kill the back end");
            result
        })
    }

    /// Ends it by SIGTERM, which it must do well.
    pub fn terminate(&mut self) {
        let daemon = self.daemon();
        daemon.signal(Signal::TERM);
        let status = daemon.wait(PATIENCE);
        assert_eq!(status.and_then(|s| s.code()), Some(0), "after SIGTERM: {status:?}\n{}", daemon.log());
    }
}
