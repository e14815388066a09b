//! Takes clients, and does for each what it asks for, one request after the other.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Uid;

use super::connection::{Client, Connection, End, Input, wait};
use super::dispatch::Handler;
use super::wire::{self, Fault};
use super::{MAX_CLIENTS, MAX_LINE};
use crate::limit::Limiter;
use crate::limited;
use crate::mapper::Mapper;
use crate::socket::{self, OwnedPath, SocketError};

/// Time after which what failed for want of descriptors or memory is tried again.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Longest time that the end of a server waits for the verbs of its clients, which are asked to give up. A thread that does
/// not answer then (in an open(2) that hangs, say) does not keep the process.
const PARTING: Duration = Duration::from_secs(2);

/// The control socket of a process. Dropped, it ends: the socket is removed and clients are hung up on.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    path: Option<OwnedPath>,
}

struct Shared {
    handler: Box<dyn Handler>,
    end: Arc<End>,
    // Clients that are there.
    clients: Mutex<usize>,
    left: Condvar,
    limiter: Limiter,
    // For what clients ask in vain.
    refusals: Limiter,
}

impl Handler for Arc<Mapper> {
    fn call(
        &self,
        method: &str,
        params: Option<&serde_json::value::RawValue>,
        client: &Client<'_>,
    ) -> Result<Box<serde_json::value::RawValue>, Fault> {
        self.as_ref().call(method, params, client)
    }
}

impl Server {
    /// Listens on `path`, which only this process's user and root can use.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn start(mapper: Arc<Mapper>, path: &Path) -> Result<Server, SocketError> {
        Server::serve(Box::new(mapper), path)
    }

    pub(super) fn serve(handler: Box<dyn Handler>, path: &Path) -> Result<Server, SocketError> {
        let (listener, owned) = socket::listen_private(path)?;
        let failed = |doing, source| SocketError::Io { doing, path: PathBuf::from(path), source };
        let end = End::new().map_err(|error| failed("make an eventfd for", error.into()))?;
        let (clients, left) = (Mutex::default(), Condvar::new());
        let (limiter, refusals) = (Limiter::default(), Limiter::default());
        let shared = Arc::new(Shared { handler, end: Arc::new(end), clients, left, limiter, refusals });
        let accepting = std::thread::Builder::new().name("control".into()).spawn({
            let shared = shared.clone();
            move || accept(&shared, &listener)
        });
        let accepting = accepting.map_err(|error| failed("start a thread for", error))?;
        log::info!("control socket: {}", path.display());
        Ok(Server { shared, accepting: Some(accepting), path: Some(owned) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.path.take());
        self.shared.end.announce();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let clients = self.shared.clients();
        let still_there = |clients: &mut usize| *clients > 0;
        if let Ok((clients, late)) = self.shared.left.wait_timeout_while(clients, PARTING, still_there)
            && late.timed_out()
        {
            log::warn!("control socket: {} verbs have not ended; leaving them", *clients);
        }
    }
}

impl Shared {
    fn clients(&self) -> std::sync::MutexGuard<'_, usize> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among those that are there.
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Option<Seat> {
        let mut clients = shared.clients();
        if *clients == MAX_CLIENTS {
            return None;
        }
        *clients += 1;
        Some(Seat(shared.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.clients() -= 1;
        self.0.left.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), shared.end.poll_fd()];
        let polled = wait(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        let accepted = polled.map_err(io::Error::from).and_then(|_| listener.accept());
        let admitted = match accepted {
            Ok((stream, _)) => admit(shared, stream),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = admitted {
            limited!(shared.limiter, error, "control socket: cannot take a client: {error}; trying again");
            let _ = wait(&mut [shared.end.poll_fd()], Some(&AGAIN));
        }
    }
}

/// Whoever may do what the process may.
fn may(peer: Uid, ours: Uid) -> bool {
    peer == ours || peer.is_root()
}

fn admit(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let mut connection = Connection::new(stream, shared.end.clone())?;
    let ours = rustix::process::geteuid();
    if !may(peer.uid, ours) {
        let (peer, ours) = (peer.uid.as_raw(), ours.as_raw());
        limited!(shared.limiter, warn, "control socket: refused a client of user {peer}");
        let text =
            format!("only root and user {ours}, whose process this is, may use this socket; you are user {peer}");
        connection.offer(&wire::answer(Err(&Fault::new(wire::NOT_PERMITTED, text)), None));
        return Ok(());
    }
    let Some(seat) = Seat::take(shared) else {
        limited!(shared.limiter, warn, "control socket: refused a client, as there are {MAX_CLIENTS}");
        let text = format!("there are {MAX_CLIENTS} clients already; try again when one has left");
        connection.offer(&wire::answer(Err(&Fault::new(wire::TOO_MANY_CLIENTS, text)), None));
        return Ok(());
    };
    let serve = move || {
        while answer_next(&seat.0, &mut connection) {}
        // The client sees the end before its place is another's.
        drop(connection);
        drop(seat);
    };
    std::thread::Builder::new().name("control-client".into()).spawn(serve).map(drop)
}

/// Does the next request; `false` at the end of the connection.
fn answer_next(shared: &Shared, connection: &mut Connection) -> bool {
    let refuse = |connection: &Connection, code, text: &str| {
        let _ = connection.send(&wire::answer(Err(&Fault::new(code, text)), None));
        false
    };
    let line = match connection.line() {
        Input::Line(line) => line,
        Input::End => return false,
        Input::Half => return refuse(connection, wire::PARSE_ERROR, "the last line has no end; it was not looked at"),
        Input::TooLong => {
            let text = format!("a line of more than {MAX_LINE} bytes");
            return refuse(connection, wire::LINE_TOO_LONG, &text);
        }
    };
    let bytes = connection.bytes(line);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return true;
    }
    match wire::parse(bytes) {
        Ok(request) => {
            let client = Client { connection, silent: request.id.is_none() };
            let outcome = shared.handler.call(&request.method, request.params, &client);
            if let Err(fault) = &outcome {
                let method: String = request.method.escape_debug().take(32).collect();
                limited!(shared.refusals, debug, "control socket: {method}: {}", fault.message.escape_debug());
            }
            match request.id {
                Some(id) => connection.send(&wire::answer(outcome.as_deref(), Some(id))).is_ok(),
                None => true,
            }
        }
        Err((fault, id)) => connection.send(&wire::answer(Err(&fault), id)).is_ok(),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
