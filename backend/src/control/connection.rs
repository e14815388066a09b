//! A client's connection: lines in, lines out, and whether it is still there.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::schema::Waiting;
use super::{MAX_LINE, wire};
use crate::mapper::Caller;

/// Time without progress after which a client that does not read its answers is hung up on.
const STALLED: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Tells all threads of a server that it ends.
pub(super) struct End(OwnedFd);

impl End {
    pub fn new() -> rustix::io::Result<End> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(End)
    }

    /// For good: nobody reads it back.
    pub fn announce(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&self.0, PollFlags::IN)
    }
}

/// What a client sends.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    /// A line, without its end; see [`Connection::bytes`].
    Line(Range<usize>),
    /// More than [`MAX_LINE`] bytes without a line end.
    TooLong,
    /// Half a line, and no more will come.
    Half,
    /// No more will come, or the server ends.
    End,
}

/// The client is gone, does not read, or the server ends.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) struct Connection {
    stream: UnixStream,
    end: Arc<End>,
    input: Vec<u8>,
    // Where the next line begins in `input`.
    next: usize,
    // What the client has not taken yet of the last lines.
    output: Mutex<Vec<u8>>,
}

impl Connection {
    pub fn new(stream: UnixStream, end: Arc<End>) -> std::io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, end, input: Vec::new(), next: 0, output: Mutex::default() })
    }

    /// Waits for the next line.
    pub fn line(&mut self) -> Input {
        let mut searched = self.next;
        loop {
            if let Some(at) = self.input[searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.next..searched + at;
                self.next = line.end + 1;
                // What came in one piece with its line end may be longer than the rest of a chunk.
                return if line.len() > MAX_LINE { Input::TooLong } else { Input::Line(line) };
            }
            self.input.drain(..self.next);
            self.next = 0;
            searched = self.input.len();
            if searched > MAX_LINE {
                return Input::TooLong;
            }
            match self.more() {
                Some(0) if self.input.is_empty() => return Input::End,
                Some(0) => return Input::Half,
                Some(_) => {}
                None => return Input::End,
            }
        }
    }

    /// The bytes of a line that was the last to be returned by [`Connection::line`].
    pub fn bytes(&self, line: Range<usize>) -> &[u8] {
        self.input.get(line).unwrap_or_default()
    }

    fn more(&mut self) -> Option<usize> {
        // A long line must not be paid for in memory as long as its client stays.
        if self.input.is_empty() && self.input.capacity() > 4 * CHUNK {
            self.input = Vec::new();
        }
        let filled = self.input.len();
        loop {
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN), self.end.poll_fd()];
            wait(&mut fds, None).ok()?;
            if !fds[1].revents().is_empty() {
                return None;
            }
            self.input.resize(filled + CHUNK, 0);
            let read = (&self.stream).read(&mut self.input[filled..]);
            self.input.truncate(filled + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(count) => return Some(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends a line, and waits as long as the client takes some of it now and then.
    pub fn send(&self, line: &[u8]) -> Result<(), Gone> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.extend_from_slice(line);
        loop {
            self.push(&mut output)?;
            if output.is_empty() {
                return Ok(());
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::OUT), self.end.poll_fd()];
            match wait(&mut fds, Some(&STALLED)) {
                Ok(1..) if fds[1].revents().is_empty() => {}
                _ => return Err(Gone),
            }
        }
    }

    /// Sends a line if the client has taken all before it. Does not wait.
    pub fn offer(&self, line: &[u8]) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if self.push(&mut output).is_ok() && output.is_empty() {
            output.extend_from_slice(line);
            let _ = self.push(&mut output);
        }
    }

    /// Writes what the client takes now.
    fn push(&self, output: &mut Vec<u8>) -> Result<(), Gone> {
        let mut done = 0;
        while done < output.len() {
            match (&self.stream).write(&output[done..]) {
                Ok(0) => return Err(Gone),
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone),
            }
        }
        output.drain(..done);
        Ok(())
    }

    /// Waits until `ready` is readable; `false` when the client or the server goes first.
    pub fn wait_for(&self, ready: &OwnedFd) -> bool {
        let mut fds = [self.hang_up(), self.end.poll_fd(), PollFd::new(ready, PollFlags::IN)];
        wait(&mut fds, None).is_ok() && fds[0].revents().is_empty() && fds[1].revents().is_empty()
    }

    /// Asks for nothing but the hang-up. A client that only says that it will send no more waits for its answer.
    fn hang_up(&self) -> PollFd<'_> {
        PollFd::new(&self.stream, PollFlags::empty())
    }
}

/// Polls, again if a signal comes between.
pub(super) fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> rustix::io::Result<usize> {
    loop {
        match rustix::event::poll(fds, timeout) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The one who waits for a verb.
pub(super) struct Client<'a> {
    pub connection: &'a Connection,
    /// A notification has no answer, so nothing is said while it is done either.
    pub silent: bool,
}

impl Caller for Client<'_> {
    fn gone(&self) -> bool {
        let mut fds = [self.connection.hang_up(), self.connection.end.poll_fd()];
        wait(&mut fds, Some(&NOW)) != Ok(0)
    }

    fn tell(&self, waiting: &Waiting) {
        if !self.silent {
            self.connection.offer(&wire::waiting(waiting));
        }
    }
}
