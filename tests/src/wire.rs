//! The vhost-user protocol on the wire, written from its specification, with nothing in the way of sending
//! what a well-behaved front end never would.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Front-end requests.
#[allow(missing_docs)]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Requests of the back end, on the channel of SET_BACKEND_REQ_FD.
#[allow(missing_docs)]
pub mod backend_request {
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Bits of GET/SET_PROTOCOL_FEATURES.
#[allow(missing_docs)]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// Protocol version 1, in every header's flags.
pub const VERSION: u32 = 1;
/// Header flag of replies.
pub const REPLY: u32 = 1 << 2;
/// Header flag that asks for an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;
/// Bit of the payload of SET_VRING_KICK/CALL/ERR that says no descriptor comes along.
pub const NO_FD: u64 = 1 << 8;
/// Feature bit 30 of GET_FEATURES: GET_PROTOCOL_FEATURES may be sent.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

const HEADER: usize = 12;
/// A back end that has not answered by then hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Payload.
    pub body: Vec<u8>,
    /// File descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload as one u64.
    pub fn u64(&self) -> io::Result<u64> {
        let bytes = self.body.as_slice().try_into().map_err(|_| {
            io::Error::other(format!("reply to {} has {} bytes, expected 8", self.request, self.body.len()))
        })?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// A connection to a back end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    acks: bool,
}

impl Connection {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, acks: false })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Asks for an acknowledgement of every request from now on (REPLY_ACK must be negotiated).
    pub fn set_acks(&mut self, acks: bool) {
        self.acks = acks;
    }

    /// Sends these bytes and descriptors, whatever they are.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        if sent != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Sends one message with the given flags beside the version.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_raw(&message(request, VERSION | flags, body), fds)
    }

    /// Receives one message. A hang-up is `UnexpectedEof` or `ConnectionReset`.
    pub fn recv(&self) -> io::Result<Message> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        self.recv_exact(&mut header, &mut fds)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of twelve"));
        let mut body = vec![0; word(8).min(1 << 16) as usize];
        self.recv_exact(&mut body, &mut fds)?;
        Ok(Message { request: word(0), flags: word(4), body, fds })
    }

    fn recv_exact(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut have = 0;
        while have < out.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got =
                recvmsg(&self.stream, &mut [IoSliceMut::new(&mut out[have..])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = part {
                    fds.extend(received);
                }
            }
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += got.bytes;
        }
        Ok(())
    }

    /// Sends a request that always has a reply, and returns it.
    pub fn ask(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.send(request, 0, body, fds)?;
        let reply = self.recv()?;
        if reply.request != request || reply.flags & REPLY == 0 {
            return Err(io::Error::other(format!(
                "asked {request}, got {} with flags {:#x}",
                reply.request, reply.flags
            )));
        }
        Ok(reply)
    }

    /// Sends a request without a payload whose reply is one u64.
    pub fn ask_u64(&self, request: u32) -> io::Result<u64> {
        self.ask(request, &[], &[])?.u64()
    }

    /// Sends a request that has no reply of its own; waits for the acknowledgement where acks are on. A
    /// refusal is an error.
    pub fn tell(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !self.acks {
            return self.send(request, 0, body, fds);
        }
        self.send(request, NEED_REPLY, body, fds)?;
        let reply = self.recv()?;
        match (reply.request == request, reply.u64()?) {
            (true, 0) => Ok(()),
            (true, code) => Err(io::Error::other(format!("request {request}: nack {code}"))),
            (false, _) => Err(io::Error::other("acknowledgement of another request")),
        }
    }

    /// [`tell`](Self::tell) with one u64 as payload.
    pub fn tell_u64(&self, request: u32, value: u64) -> io::Result<()> {
        self.tell(request, &value.to_le_bytes(), &[])
    }

    /// `struct vhost_vring_state`: index and number.
    pub fn tell_state(&self, request: u32, index: u32, number: u32) -> io::Result<()> {
        self.tell(request, &state(index, number), &[])
    }

    /// SET_VRING_KICK, CALL or ERR, with a descriptor or without.
    pub fn tell_fd(&self, request: u32, index: u64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match fd {
            Some(fd) => self.tell(request, &index.to_le_bytes(), &[fd]),
            None => self.tell(request, &(index | NO_FD).to_le_bytes(), &[]),
        }
    }

    /// Waits until the back end closes its end. True if it did in time.
    pub fn wait_hangup(&self) -> bool {
        loop {
            match self.recv() {
                Ok(_) => {}
                Err(e) => {
                    return matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                }
            }
        }
    }
}

/// A whole message as bytes; `flags` with the version.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(request.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Payload `struct vhost_vring_state`.
pub fn state(index: u32, number: u32) -> [u8; 8] {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&index.to_le_bytes());
    body[4..].copy_from_slice(&number.to_le_bytes());
    body
}

/// Payload of SET_VRING_ADDR; addresses are the front end's own.
pub fn vring_addr(index: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(40);
    body.extend(index.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    for address in [desc, used, avail, 0] {
        body.extend(address.to_le_bytes());
    }
    body
}

/// `struct VhostUserMemoryRegion`.
pub fn memory_region(gpa: u64, size: u64, user_addr: u64, mmap_offset: u64) -> Vec<u8> {
    [gpa, size, user_addr, mmap_offset].iter().flat_map(|field| field.to_le_bytes()).collect()
}

/// Payload of ADD_MEM_REG and REM_MEM_REG.
pub fn single_region(gpa: u64, size: u64, user_addr: u64, mmap_offset: u64) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(memory_region(gpa, size, user_addr, mmap_offset));
    body
}

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, padded as the C structure that front ends send.
pub fn inflight(mmap_size: u64, mmap_offset: u64, queues: u16, queue_size: u16) -> [u8; 24] {
    let mut body = [0; 24];
    body[..8].copy_from_slice(&mmap_size.to_le_bytes());
    body[8..16].copy_from_slice(&mmap_offset.to_le_bytes());
    body[16..18].copy_from_slice(&queues.to_le_bytes());
    body[18..20].copy_from_slice(&queue_size.to_le_bytes());
    body
}

/// Payload of GET_CONFIG and SET_CONFIG.
pub fn config(offset: u32, size: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(12 + data.len());
    for field in [offset, size, flags] {
        body.extend(field.to_le_bytes());
    }
    body.extend(data);
    body
}
