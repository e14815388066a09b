//! Sockets, signals and the life of the process.
//!
//! One thread for each socket takes front ends one after the other; the main thread waits for the signal to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::check;
use crate::disk::Disk;
use crate::place::Place;
use crate::server::Server;
use crate::socket::{self, Inherited, OwnedPath, SocketError};
use crate::worker::pool::Pool;

/// Signals that end the process. Blocked from the start, so that every thread inherits that and `wait` takes them.
pub struct Signals(SigSet);

impl Signals {
    /// To be called before any thread is started.
    ///
    /// # Errors
    /// The system's.
    pub fn block() -> nix::Result<Signals> {
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        set.thread_block()?;
        Ok(Signals(set))
    }

    /// Sleeps. One of the signals ends the process: as long as it serves nothing, there is nothing to drain.
    pub fn pause(duration: Duration) {
        let Ok(timeout) = Timespec::try_from(duration) else { return };
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        let Ok(signals) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
            return std::thread::sleep(duration);
        };
        let _ = rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], Some(&timeout));
        if let Ok(Some(_)) = signals.read_signal() {
            log::info!("asked to end before anything was served");
            std::process::exit(0);
        }
    }

    fn wait(&self) -> nix::Result<Signal> {
        self.0.wait()
    }
}

/// Serves disks until a signal ends the process; with a connected socket, until the front end hangs up.
///
/// # Errors
/// A socket that cannot be served on; then none of the disks has been served.
pub fn run(disks: Vec<(Disk, Place)>, pool: Pool, signals: &Signals) -> Result<(), SocketError> {
    let ready = sockets(disks, &Arc::new(pool))?;
    let mut servers = Vec::new();
    let mut owned_paths: Vec<OwnedPath> = Vec::new();
    for (server, source, owned) in ready {
        owned_paths.extend(owned);
        servers.push(server.clone());
        let name = format!("front-{}", server.disk().name);
        let started = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || match source {
            Inherited::Listening(listener) => server.accept(&listener),
            Inherited::Connected(stream) => server.connected(stream),
        });
        if let Err(source) = started {
            return Err(SocketError::Io { doing: "start a thread for", path: PathBuf::from("the socket"), source });
        }
    }
    match signals.wait() {
        Ok(signal) => log::info!("{signal}: draining"),
        Err(error) => log::error!("cannot wait for signals: {error}; stopping"),
    }
    // A component that never answers must not keep the process: a second signal ends it without the drain.
    let impatient = signals.0;
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Ok(signal) = impatient.wait() {
            log::error!("{signal} again: ending with requests under way");
            std::process::exit(1);
        }
    });
    // Nobody is taken any more while others drain.
    let sessions: Vec<_> = servers.iter().filter_map(|server| server.close()).collect();
    for session in sessions {
        session.end();
    }
    drop(owned_paths);
    log::info!("stopped");
    Ok(())
}

/// A server, what it serves on, and what to remove at the end.
type Ready = (Arc<Server>, Inherited, Option<OwnedPath>);

/// A server for each disk, and what it serves on. All sockets come first: a process that cannot serve one of its disks
/// serves none.
fn sockets(disks: Vec<(Disk, Place)>, pool: &Arc<Pool>) -> Result<Vec<Ready>, SocketError> {
    enum At {
        Path(PathBuf),
        Fd(i32, Inherited),
    }
    // Those that were passed before any is made, which might get the number of one that should have been passed.
    let adopt = |(disk, place)| match place {
        Place::Fd(fd) => Ok((disk, At::Fd(fd, socket::inherit(fd)?))),
        Place::Path(path) => Ok((disk, At::Path(path))),
    };
    let adopted: Vec<_> = disks.into_iter().map(adopt).collect::<Result<_, SocketError>>()?;
    let make = |(disk, at)| {
        let server = Arc::new(Server::new(disk, pool.clone())?);
        let (source, owned, shown) = match at {
            At::Fd(fd, source) => (source, None, format!("descriptor {fd}")),
            At::Path(path) => {
                let (listener, owned) = socket::listen(&path)?;
                (Inherited::Listening(listener), Some(owned), path.display().to_string())
            }
        };
        log_start(server.disk(), &shown);
        Ok((server, source, owned))
    };
    adopted.into_iter().map(make).collect()
}

fn log_start(disk: &Disk, place: &str) {
    let chain = &disk.chain;
    log::info!(
        "{}: serving {} sectors of {} bytes each ({}-byte blocks{}), {} on {}, up to {} of {} entries, on {place}",
        disk.name,
        chain.len(),
        dm_table::SECTOR_SIZE,
        chain.map.limits().logical_block,
        if chain.read_only { ", read-only" } else { "" },
        check::count(chain.map.segments(), "segment"),
        check::count(chain.map.flush_set().len(), "component"),
        check::count(usize::from(disk.offer.num_queues), "queue"),
        disk.offer.queue_size,
    );
}

/// Ends the process the way a signal does.
pub(crate) fn terminate() {
    if let Err(error) = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM) {
        log::error!("cannot signal ourselves: {error}");
        std::process::exit(1);
    }
}
