//! One disk on one socket: front ends are taken one after the other, each for a session of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::Error::Disconnected;
use vhost_user_backend::Error::HandleRequest;
use vhost_user_backend::VhostUserDaemon;

use crate::disk::Disk;
use crate::frontend::Session;
use crate::frontend::interposer::Interposer;
use crate::frontend::private::Private;
use crate::limited;
use crate::socket::SocketError;
use crate::worker::pool::Pool;

/// Time after which what failed for want of descriptors or memory is tried again.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

type Daemon = VhostUserDaemon<Arc<Session>>;

/// See the module's text.
pub struct Server {
    disk: Arc<Disk>,
    pool: Arc<Pool>,
    private: Private,
    current: Mutex<Current>,
    // Wakes the thread that waits for a connection when there will be none.
    end: OwnedFd,
    // Called when a front end has left.
    left: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Current {
    // The front end that is being served.
    session: Option<Arc<Session>>,
    // No other may follow.
    closed: bool,
}

impl Server {
    /// `left` is called whenever a front end has left.
    ///
    /// # Errors
    /// No place for the socket to the protocol's daemon.
    pub fn new(disk: Arc<Disk>, pool: Arc<Pool>, left: Box<dyn Fn() + Send + Sync>) -> Result<Server, SocketError> {
        let failed = |source: io::Error| SocketError::Io { doing: "wait on", path: "an eventfd".into(), source };
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| failed(errno.into()))?;
        Ok(Server { disk, pool, private: Private::new()?, current: Mutex::default(), end, left })
    }

    /// The session of the front end that is being served.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.current().session.clone()
    }

    /// Serves whoever connects to `listener`, until [`Server::close`].
    pub fn accept(&self, listener: &UnixListener) {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.end, PollFlags::IN)];
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                self.nap("wait for a connection", &error.into());
            }
            let mut failed = None;
            // Whoever shares the socket with us may have changed that, and this must not wait for a connection that another
            // process was faster to take.
            let accept = || match listener.set_nonblocking(true).and_then(|()| listener.accept()) {
                Ok((front, _)) => Some(front),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            };
            match self.begin(accept) {
                Ok(Some((front, session))) if !self.serve(&front, &session) => return,
                Ok(_) => {}
                Err(Closed) => return,
            }
            match failed {
                // Another process that has the socket was faster, or nobody is there any more.
                Some(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Some(error) => self.nap("take a connection", &error),
                None => {}
            }
        }
    }

    /// Serves the front end that is connected already, to its end; `false` if it was ended by [`Server::close`].
    pub fn connected(&self, front: UnixStream) -> bool {
        matches!(self.begin(|| Some(front)), Ok(Some((front, session))) if self.serve(&front, &session))
    }

    /// No connection is taken any more: one that waits is there for whoever has the socket next. Returns the session of the
    /// front end that is being served; whoever closes ends it, and nothing of this server is served then.
    pub fn close(&self) -> Option<Arc<Session>> {
        let mut current = self.current();
        current.closed = true;
        self.wake();
        current.session.take()
    }

    /// The same if nobody is being served; `false` if somebody is.
    pub fn close_if_idle(&self) -> bool {
        let mut current = self.current();
        let idle = current.session.is_none();
        if idle {
            current.closed = true;
            self.wake();
        }
        idle
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for the front end that `accept` takes, which is not called after [`Server::close`] and must not wait.
    fn begin(&self, accept: impl FnOnce() -> Option<UnixStream>) -> Result<Option<(UnixStream, Arc<Session>)>, Closed> {
        let mut current = self.current();
        if current.closed {
            return Err(Closed);
        }
        let Some(front) = accept() else { return Ok(None) };
        let session = Session::new(self.disk.clone(), self.pool.clone());
        current.session = Some(session.clone());
        Ok(Some((front, session)))
    }

    /// Serves a front end to its end; `false` when no other may follow.
    fn serve(&self, front: &UnixStream, session: &Arc<Session>) -> bool {
        let name = self.disk.name();
        let limiters = &self.disk.limiters;
        let ended = self.start(front, session).map(|(mut daemon, back)| {
            limited!(limiters.visits, info, "{name}: a front end has connected");
            let interposed = Interposer::new(front, &back, session).run();
            (interposed, daemon.wait())
        });
        // The front end sees us hang up when this function's caller lets go of it, and nothing touches its memory then.
        session.end();
        if self.current().session.take().is_none() {
            return false;
        }
        (self.left)();
        match ended {
            Some((Err(error), _)) => {
                limited!(limiters.control, warn, "{name}: the front end was disconnected: {error}")
            }
            None | Some((Ok(()), Ok(()) | Err(HandleRequest(Disconnected)))) => {
                limited!(limiters.visits, info, "{name}: the front end has disconnected");
            }
            Some((_, Err(error))) => {
                limited!(limiters.control, warn, "{name}: the front end was disconnected: {error}")
            }
        }
        true
    }

    /// The protocol's daemon for a session, and our end of the connection to it; `None` when the front end does not wait
    /// until there is one.
    fn start(&self, front: &UnixStream, session: &Arc<Session>) -> Option<(Daemon, UnixStream)> {
        loop {
            let started =
                session.daemon().map_err(|error| io::Error::other(error.to_string())).and_then(|mut daemon| {
                    let connect =
                        |at: &str| daemon.start_client(at).map_err(|error| io::Error::other(error.to_string()));
                    let ((), back) = self.private.connect(connect)?;
                    Ok((daemon, back))
                });
            match started {
                Ok(started) => return Some(started),
                Err(error) => {
                    let name = self.disk.name();
                    limited!(
                        self.disk.limiters.control,
                        error,
                        "{name}: cannot serve a front end: {error}; trying again"
                    );
                }
            }
            if matches!(poll(&mut [PollFd::new(front, PollFlags::RDHUP)], Some(&AGAIN)), Ok(1)) {
                return None;
            }
        }
    }

    fn nap(&self, doing: &str, error: &io::Error) {
        limited!(self.disk.limiters.control, error, "{}: cannot {doing}: {error}; trying again", self.disk.name());
        let _ = poll(&mut [], Some(&AGAIN));
    }
}

/// The server takes nobody any more.
struct Closed;
