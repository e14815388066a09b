//! A connected front end brought to a daemon that only takes listeners.
//!
//! `VhostUserDaemon` accepts its connection itself. For a socket that is connected already (`--fd`) a private listener
//! stands in; a thread passes the messages between the two, whole and with their descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Header of a vhost-user message: request, flags, size of the payload; each 4 bytes.
const HEADER: usize = 12;
/// The largest payload that is passed on; vhost-user's own are below 4 KiB and a half.
const MAX_PAYLOAD: usize = 64 << 10;
/// Descriptors of one message: SET_MEM_TABLE has 8, the vhost crate takes up to 32.
const MAX_FDS: usize = 32;

/// A listener from which one connection can be accepted: the one to `front`.
///
/// # Errors
/// No place for a socket, no thread.
pub fn listener_for(front: UnixStream) -> io::Result<UnixListener> {
    let dir = PrivateDir::new()?;
    let path = dir.0.join("s");
    let listener = UnixListener::bind(&path)?;
    let back = UnixStream::connect(&path)?;
    // Connected: neither name is needed any more.
    drop(dir);
    std::thread::Builder::new().name("relay".into()).spawn(move || {
        if let Err(error) = relay(&front, &back) {
            log::debug!("relay: {error}");
        }
        // Whoever is left sees the end.
        let _ = front.shutdown(Shutdown::Both);
        let _ = back.shutdown(Shutdown::Both);
    })?;
    Ok(listener)
}

struct PrivateDir(std::path::PathBuf);

impl PrivateDir {
    /// A directory that nobody else can look into.
    fn new() -> io::Result<PrivateDir> {
        use std::os::unix::fs::DirBuilderExt;
        let base = std::env::temp_dir();
        for n in 0..1000 {
            let path = base.join(format!("vhost-user-dm.{}.{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(PrivateDir(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("no free name for a directory in {}", base.display())))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn relay(front: &UnixStream, back: &UnixStream) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(front, PollFlags::IN), PollFd::new(back, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let readable: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Back end first: an answer is passed before the next question.
        if readable[1] && !pass(back, front)? {
            return Ok(());
        }
        if readable[0] && !pass(front, back)? {
            return Ok(());
        }
    }
}

/// Passes one message; `false` at the end of the connection.
fn pass(from: &UnixStream, to: &UnixStream) -> io::Result<bool> {
    let mut message = vec![0; HEADER];
    let mut fds = Vec::new();
    if !receive(from, &mut message, &mut fds)? {
        return Ok(false);
    }
    let size = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]) as usize;
    if size > MAX_PAYLOAD {
        return Err(io::Error::other(format!("a message announces {size} bytes")));
    }
    message.resize(HEADER + size, 0);
    if size > 0 && !receive(from, &mut message[HEADER..], &mut fds)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    send(to, &message, &fds)?;
    Ok(true)
}

/// Fills `buffer`; `false` when the connection ended before its first byte.
fn receive(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut done = 0;
    while done < buffer.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(&mut buffer[done..])];
        let received = match recvmsg(from, slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return if done == 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        done += received.bytes;
    }
    Ok(true)
}

fn send(to: &UnixStream, mut bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().take(MAX_FDS).map(AsFd::as_fd).collect();
    let mut first = true;
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if first && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("too many descriptors in one message"));
        }
        match sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) => return Err(error.into()),
        }
        first = false;
    }
    Ok(())
}
