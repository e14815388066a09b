//! How long the guest waits while the back end is replaced: the longest time without a completion around each restart.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use super::ground::{Ground, connect};
use super::report::{failure, head, line};
use super::rows::{Backing, Shape};
use super::stats::median;
use crate::blk::{self, Data, Request, kind};
use crate::daemon::{Daemon, flag};
use crate::vmm::{Setup, Vmm};

/// Load before and after each restart.
const STEADY: Duration = Duration::from_millis(20);
/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;

/// Where the front end finds the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    /// On a path that each process makes anew.
    Path,
    /// On a listening socket that this process keeps and passes on.
    Passed,
}

/// Measures and prints `restarts` restarts of each kind.
pub fn report(ground: &Ground, binary: &Path, restarts: usize, out: &mut dyn Write) -> io::Result<()> {
    ground.need_file(Backing::Direct)?;
    writeln!(
        out,
        "\n### Restarts under load\n\nReads of 4 KiB (O_DIRECT), {restarts} restarts of each kind one after another: a \
         signal, and when the process is gone the next is started. The pause is the longest time without a completion \
         around a restart. The front end connects as soon as it can; QEMU adds the time that it waits by \
         `reconnect=`.\n\n{}",
        head(&["end", "socket", "depth", "pause, ms: median", "worst", "best"])
    )?;
    for (signal, end) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        for (socket, name) in [(Socket::Path, "path, made anew"), (Socket::Passed, "listening, by `--fd`")] {
            for depth in [1, 32] {
                let what = format!("{end}, {name}, depth {depth}");
                let cells = match pauses(ground, binary, signal, socket, depth, restarts) {
                    Err(error) => vec![failure(&what, &error)],
                    Ok(pauses) => {
                        let best = pauses.iter().copied().fold(f64::INFINITY, f64::min);
                        let worst = pauses.iter().copied().fold(0.0, f64::max);
                        [median(pauses), worst, best].map(|pause| format!("{pause:.1}")).to_vec()
                    }
                };
                writeln!(out, "{}", line(&[vec![end.into(), name.into(), depth.to_string()], cells].concat()))?;
                out.flush()?;
            }
        }
    }
    Ok(())
}

/// The pauses in milliseconds.
fn pauses(
    ground: &Ground,
    binary: &Path,
    signal: Signal,
    socket: Socket,
    depth: usize,
    restarts: usize,
) -> io::Result<Vec<f64>> {
    let path = ground.scratch("restart.sock");
    let listener = match socket {
        Socket::Path => None,
        Socket::Passed => Some(UnixListener::bind(&path)?),
    };
    let place = Place { ground, binary, path, listener };
    let (mut daemon, stream) = place.start()?;
    let setup = Setup { slots: depth, slot_bytes: 32 << 10, interrupts: false, ..Setup::default() };
    let mut load = Load::new(Vmm::over(stream, &setup)?, depth);
    let mut pauses = Vec::with_capacity(restarts);
    for _ in 0..restarts {
        load.steady()?;
        load.longest = Duration::ZERO;
        daemon.signal(signal);
        while daemon.is_running() {
            load.turn()?;
        }
        let (successor, stream) = place.start()?;
        daemon = successor;
        let back = load.vmm.reconnect(stream);
        back.map_err(|e| io::Error::new(e.kind(), format!("cannot come back: {e}: {}", daemon.log())))?;
        load.steady()?;
        pauses.push(load.longest.as_secs_f64() * 1e3);
    }
    load.drain()?;
    drop(load);
    ground.end(daemon, &place.path);
    Ok(pauses)
}

/// How a back end is started, each time the same.
struct Place<'a> {
    ground: &'a Ground,
    binary: &'a Path,
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Place<'_> {
    fn start(&self) -> io::Result<(Daemon, UnixStream)> {
        let table = self.ground.scratch("restart.table");
        std::fs::write(&table, self.ground.table(Backing::Direct, Shape::Lines(1)))?;
        let table = flag("--table", &table);
        let Some(listener) = &self.listener else {
            let mut command = self.ground.ours(self.binary);
            command.args([flag("--socket-path", &self.path), table]);
            let mut daemon = self.ground.spawn(command)?;
            let stream = connect(&mut daemon, &self.path)?;
            return Ok((daemon, stream));
        };
        // A shell, as in `Daemon::start_with_fd`: an inheritable descriptor here would leak into other children.
        let ours = self.ground.ours(self.binary);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" --fd=3 3<&0 </dev/null"])
            .arg(ours.get_program())
            .args(ours.get_args())
            .arg(table)
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)));
        let daemon = self.ground.spawn(command)?;
        // It waits in the socket until the new process looks.
        Ok((daemon, UnixStream::connect(&self.path)?))
    }
}

/// Random reads at a constant depth, by looking.
struct Load {
    vmm: Vmm,
    blocks: u64,
    rng: Rng,
    last: Instant,
    longest: Duration,
}

impl Load {
    fn new(vmm: Vmm, depth: usize) -> Self {
        let blocks = vmm.config.capacity * blk::SECTOR / BLOCK as u64;
        let mut load = Load { vmm, blocks, rng: Rng::with_seed(1), last: Instant::now(), longest: Duration::ZERO };
        (0..depth).for_each(|slot| load.submit(slot));
        load.vmm.kick(0);
        load
    }

    fn submit(&mut self, slot: usize) {
        let sector = self.rng.u64(..self.blocks) * (BLOCK as u64 / blk::SECTOR);
        let request = Request { kind: kind::IN, sector, data: Data::FromDevice(BLOCK) };
        self.vmm.submit(0, slot, &request, &blk::Shape::PLAIN, &mut self.rng);
    }

    /// Takes one request that came back, if one did, and sends the next.
    fn turn(&mut self) -> io::Result<bool> {
        let done = self.vmm.complete(0);
        let since = self.last.elapsed();
        let Some(done) = done else {
            return if since < PATIENCE { Ok(false) } else { Err(io::Error::other("a request did not come back")) };
        };
        if done.status != blk::OK {
            return Err(io::Error::other(format!("a request failed with status {:#x}", done.status)));
        }
        self.longest = self.longest.max(since);
        self.last = Instant::now();
        self.submit(done.slot);
        self.vmm.kick(0);
        Ok(true)
    }

    /// Goes on until requests have come back for a while.
    fn steady(&mut self) -> io::Result<()> {
        while !self.turn()? {}
        let end = Instant::now() + STEADY;
        while Instant::now() < end {
            self.turn()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        while self.vmm.queues[0].ring.in_flight() > 0 {
            if self.vmm.complete(0).is_none() && self.last.elapsed() > PATIENCE {
                return Err(io::Error::other("a request did not come back"));
            }
        }
        Ok(())
    }
}
