//! Sockets, signals and the life of the process.
//!
//! One thread for each socket takes front ends one after the other; the main thread waits for the signal to end.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::Listener;

use crate::check;
use crate::disk::Disk;
use crate::frontend::{Session, relay};
use crate::limit::Limiter;
use crate::limited;
use crate::socket::{self, Inherited, OwnedPath, SocketError};
use crate::worker::pool::Pool;

/// Where a disk is served.
#[derive(Debug)]
pub enum Place {
    /// A socket that is made at this path.
    Path(PathBuf),
    /// A descriptor that was passed to us.
    Fd(i32),
}

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

struct Server {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    // The session that is being served, and whether no other may follow.
    current: Mutex<(Option<Arc<Session>>, bool)>,
}

/// Serves disks until a signal ends the process; with a connected socket, until the front end hangs up.
///
/// # Errors
/// A socket that cannot be served on; then none of the disks has been served.
pub fn run(disks: Vec<(Disk, Place)>, pool: Pool, signals: &Signals) -> Result<(), SocketError> {
    // All sockets first: a process that cannot serve one of its disks serves none.
    let pool = Arc::new(pool);
    let mut ready = Vec::new();
    for (disk, place) in disks {
        let server = Arc::new(Server { disk: Arc::new(disk), pool: pool.clone(), current: Mutex::default() });
        let (source, owned) = match place {
            Place::Path(path) => {
                let (listener, owned) = socket::listen(&path)?;
                log_start(&server.disk, &path.display().to_string());
                (Inherited::Listening(listener), Some(owned))
            }
            Place::Fd(fd) => {
                let source = socket::inherit(fd)?;
                log_start(&server.disk, &format!("descriptor {fd}"));
                (source, None)
            }
        };
        ready.push((server, source, owned));
    }
    let mut servers = Vec::new();
    let mut owned_paths: Vec<OwnedPath> = Vec::new();
    for (server, source, owned) in ready {
        owned_paths.extend(owned);
        servers.push(server.clone());
        let name = format!("front-{}", server.disk.name);
        let started = std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || match source {
            Inherited::Listening(listener) => server.accept(listener),
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
    for server in &servers {
        server.close();
    }
    drop(owned_paths);
    log::info!("stopped");
    Ok(())
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
fn terminate() {
    if let Err(error) = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM) {
        log::error!("cannot signal ourselves: {error}");
        std::process::exit(1);
    }
}

impl Server {
    fn accept(&self, listener: UnixListener) {
        let mut limiter = Limiter::default();
        let mut listener = Listener::from(listener);
        while self.serve(&mut listener, &mut limiter) {}
    }

    /// Serves the next front end from its connection to its end; `false` when no other may follow.
    fn serve(&self, listener: &mut Listener, limiter: &mut Limiter) -> bool {
        let session = Session::new(self.disk.clone(), self.pool.clone());
        let name = &self.disk.name;
        let mut daemon = match session.daemon() {
            Ok(daemon) => daemon,
            Err(error) => {
                log::error!("{name}: cannot serve: {error}");
                return false;
            }
        };
        if let Err(error) = daemon.start(listener) {
            // Out of descriptors or memory: a front end may come when there are some again.
            limited!(limiter, error, "{name}: cannot take a connection: {error}");
            std::thread::sleep(Duration::from_millis(100));
            return true;
        }
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.1 {
                session.end();
                return false;
            }
            current.0 = Some(session.clone());
        }
        limited!(limiter, info, "{name}: a front end has connected");
        let ended = daemon.wait();
        session.end();
        let closed = std::mem::take(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner).0).is_none();
        match ended {
            _ if closed => return false,
            Ok(()) | Err(vhost_user_backend::Error::HandleRequest(vhost::vhost_user::Error::Disconnected)) => {
                limited!(limiter, info, "{name}: the front end has disconnected");
            }
            Err(error) => limited!(limiter, warn, "{name}: the front end was disconnected: {error}"),
        }
        true
    }

    fn connected(&self, stream: UnixStream) {
        let served = relay::listener_for(stream).map(|listener| {
            let mut limiter = Limiter::default();
            self.serve(&mut Listener::from(listener), &mut limiter)
        });
        match served {
            // The process ends with its only connection.
            Ok(true) => terminate(),
            Ok(false) => {}
            Err(error) => {
                log::error!("{}: cannot serve the connected socket: {error}", self.disk.name);
                terminate();
            }
        }
    }

    /// Drains; no queue of this server starts afterwards.
    fn close(&self) {
        let session = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.1 = true;
            current.0.take()
        };
        if let Some(session) = session {
            session.end();
        }
    }
}
