//! vhost-user messages on a socket: read whole and with their descriptors, and sent on in the same way.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE, VhostUserHeaderFlag};

/// Bytes of a header: request, flags, size of the payload; each 4.
const HEADER: usize = 12;
/// The only version of the protocol that there is, in the lowest bits of the flags.
const VERSION: u32 = 1;
/// Most descriptors of a message, as the vhost crate takes them. SET_MEM_TABLE has 8.
const MAX_FDS: usize = 32;

/// A message that cannot be, or a socket that fails.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side is gone.
    #[error("it hung up")]
    HungUp,
    /// The same, between two bytes that belong together.
    #[error("it hung up in the middle of a message")]
    Cut,
    /// The flags are not those of a request.
    #[error("{} has flags {flags:#x}: expected version 1, not the reply bit, and no bits above", name(*.request))]
    Flags {
        /// Number of the request.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// No message is that large.
    #[error("{} announces {size} bytes, which is more than any message has ({MAX_MSG_SIZE})", name(*.request))]
    Size {
        /// Number of the request.
        request: u32,
        /// Bytes of the payload.
        size: u32,
    },
    /// The kernel has left some out.
    #[error("a message has more descriptors than the {MAX_FDS} that are taken, or than this process may have open")]
    Descriptors,
    /// The system's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for WireError {
    fn from(error: rustix::io::Errno) -> WireError {
        match error {
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => WireError::HungUp,
            other => WireError::Io(other.into()),
        }
    }
}

/// What a request is called in the protocol, with its number.
pub fn name(request: u32) -> String {
    match FrontendReq::try_from(request) {
        Ok(known) => format!("{known:?} ({request})"),
        Err(_) => format!("the unknown request {request}"),
    }
}

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Number of the request, in a reply that of the request it answers.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Payload.
    pub body: Vec<u8>,
    /// Descriptors that come along.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// A request.
    pub fn request(request: FrontendReq) -> Message {
        Message { request: request.into(), flags: VERSION, body: Vec::new(), fds: Vec::new() }
    }

    /// The reply to this message.
    pub fn reply(&self, body: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        Message { request: self.request, flags: VERSION | VhostUserHeaderFlag::REPLY.bits(), body, fds }
    }

    /// Whether this is that request, or its reply.
    pub fn is(&self, request: FrontendReq) -> bool {
        self.request == u32::from(request)
    }

    /// Whether the sender wants an acknowledgement; it counts only where REPLY_ACK is negotiated.
    pub fn needs_reply(&self) -> bool {
        self.flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
    }

    /// The payload as one number of 64 bits.
    pub fn u64(&self) -> Option<u64> {
        self.body.as_slice().try_into().ok().map(u64::from_ne_bytes)
    }

    /// Waits for the next message. What it asks for is not looked at, only whether it can be a message at all.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn receive(from: &UnixStream) -> Result<Message, WireError> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        receive(from, &mut header, &mut fds, WireError::HungUp)?;
        let [request, flags, size] = [0, 4, 8].map(|at| {
            let word = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_ne_bytes(word)
        });
        if flags & VhostUserHeaderFlag::VERSION.bits() != VERSION
            || flags & VhostUserHeaderFlag::RESERVED_BITS.bits() != 0
        {
            return Err(WireError::Flags { request, flags });
        }
        if size as usize > MAX_MSG_SIZE {
            return Err(WireError::Size { request, size });
        }
        let mut body = vec![0; size as usize];
        receive(from, &mut body, &mut fds, WireError::Cut)?;
        Ok(Message { request, flags, body, fds })
    }

    /// As [`Message::receive`], from someone who only asks.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn receive_request(from: &UnixStream) -> Result<Message, WireError> {
        let message = Message::receive(from)?;
        match message.flags & VhostUserHeaderFlag::REPLY.bits() {
            0 => Ok(message),
            _ => Err(WireError::Flags { request: message.request, flags: message.flags }),
        }
    }

    /// Sends it, with its descriptors at its first byte.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn send(&self, to: &UnixStream) -> Result<(), WireError> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        // Bounded by MAX_MSG_SIZE when it was read, or made by us.
        for word in [self.request, self.flags, self.body.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.body);
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(WireError::Descriptors);
            }
            match sendmsg(to, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(more) => sent += more,
            }
        }
        Ok(())
    }
}

/// Fills `buffer`; `at_start` is what it means that nothing more comes before its first byte.
fn receive(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>, at_start: WireError) -> Result<(), WireError> {
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
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(WireError::Descriptors);
        }
        if received.bytes == 0 {
            return Err(if done == 0 { at_start } else { WireError::Cut });
        }
        done += received.bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn raw(words: [u32; 3], body: &[u8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
    }

    fn received(bytes: &[u8]) -> Result<Message, WireError> {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(bytes).unwrap();
        drop(a);
        Message::receive_request(&b)
    }

    #[test]
    fn what_is_sent_is_received_with_its_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let fds = (0..MAX_FDS).map(|_| a.try_clone().unwrap().into()).collect();
        let message = Message { request: 7, flags: 9, body: (0..200).collect(), fds };
        message.send(&a).unwrap();
        message.reply(vec![1], Vec::new()).send(&a).unwrap();
        let first = Message::receive(&b).unwrap();
        assert_eq!((first.request, first.flags, first.fds.len()), (7, 9, MAX_FDS));
        assert_eq!(first.body, message.body);
        let second = Message::receive(&b).unwrap();
        assert_eq!((second.request, second.flags, second.body, second.fds.len()), (7, 5, vec![1], 0));
        drop((a, message, first));
        assert!(matches!(Message::receive(&b), Err(WireError::HungUp)));
    }

    #[test]
    fn what_cannot_be_a_message_is_refused_with_its_name() {
        assert!(received(&raw([8, 1, 8], &[0; 8])).is_ok());
        for flags in [0, 2, 3, 5, 17, u32::MAX] {
            assert!(matches!(received(&raw([8, flags, 0], &[])), Err(WireError::Flags { .. })), "{flags:#x}");
        }
        for size in [4097, 1 << 16, u32::MAX] {
            assert!(matches!(received(&raw([8, 1, size], &[])), Err(WireError::Size { .. })), "{size}");
        }
        for len in 1..20 {
            assert!(matches!(received(&raw([8, 1, 8], &[0; 8])[..len]), Err(WireError::Cut)), "{len}");
        }
        let text = received(&raw([32, 1, 5000], &[])).unwrap_err().to_string();
        assert!(text.starts_with("SET_INFLIGHT_FD (32) announces 5000 bytes"), "{text}");
        let text = received(&raw([99, 2, 0], &[])).unwrap_err().to_string();
        assert!(text.starts_with("the unknown request 99 has flags 0x2"), "{text}");
    }

    #[test]
    fn more_descriptors_than_are_taken_are_an_error_and_not_a_part_of_them() {
        let (a, b) = UnixStream::pair().unwrap();
        let fds: Vec<_> = (0..MAX_FDS + 1).map(|_| a.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = raw([5, 1, 0], &[]);
        sendmsg(&a, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(Message::receive(&b), Err(WireError::Descriptors)));
    }
}
