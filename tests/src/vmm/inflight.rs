//! In-flight tracking and coming back after a crash: what a front end does so that requests which a dead back end
//! had taken are completed by its successor.

use std::io::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{Order, Vmm};
use crate::mapping::Mapping;
use crate::wire::{Connection, Message, inflight, protocol, request};

/// The in-flight region as a front end keeps it: handed out by the first back end, given back to each later one.
#[derive(Debug)]
pub struct Inflight {
    /// Bytes of the region.
    pub size: u64,
    /// Where it begins in its file, bytes.
    pub offset: u64,
    /// Queues it has room for.
    pub queues: u16,
    /// Descriptors of each queue it has room for.
    pub queue_size: u16,
    /// The file.
    pub fd: OwnedFd,
}

impl Inflight {
    fn of_reply(reply: Message) -> Result<Self> {
        let wrong = |what: &str| Error::other(format!("GET_INFLIGHT_FD: the reply has {what}"));
        let u64_at = |at: usize| {
            let bytes = reply.body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or_else(|| wrong("too few bytes"))
        };
        let u16_at = |at: usize| {
            let bytes = reply.body.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u16::from_le_bytes).ok_or_else(|| wrong("too few bytes"))
        };
        let (size, offset, queues, queue_size) = (u64_at(0)?, u64_at(8)?, u16_at(16)?, u16_at(18)?);
        let fd = reply.fds.into_iter().next().ok_or_else(|| wrong("no descriptor"))?;
        if size == 0 {
            return Err(wrong("no bytes of memory"));
        }
        Ok(Inflight { size, offset, queues, queue_size, fd })
    }

    /// The payload of SET_INFLIGHT_FD.
    pub fn body(&self) -> [u8; 24] {
        inflight(self.size, self.offset, self.queues, self.queue_size)
    }

    /// Maps the region, to look at it or to spoil it.
    pub fn map(&self) -> Result<Mapping> {
        let len = usize::try_from(self.size).map_err(Error::other)?;
        Mapping::new(self.fd.as_fd(), self.offset, len)
    }
}

impl Vmm {
    /// Comes back over another connection with the guest's memory and rings as they are: the front end stayed
    /// alive and the back end did not, or the other way about. What was outstanding stays so, and nothing is kicked:
    /// the back end has to look by itself. After an error it can be tried again over a further connection.
    pub fn reconnect(&mut self, stream: UnixStream) -> Result<()> {
        self.conn = Connection::new(stream)?;
        self.setup.reconnect = true;
        self.negotiate()?;
        self.start()
    }

    /// GET_INFLIGHT_FD for the queues and ring size of the setup.
    pub fn get_inflight(&self) -> Result<Inflight> {
        let ask = inflight(0, 0, self.setup.queues, self.setup.queue_size);
        Inflight::of_reply(self.conn.ask(request::GET_INFLIGHT_FD, &ask, &[])?)
    }

    /// SET_INFLIGHT_FD.
    pub fn set_inflight(&self, region: &Inflight) -> Result<()> {
        self.conn.tell(request::SET_INFLIGHT_FD, &region.body(), &[region.fd.as_fd()])
    }

    /// Gives the back end the region, which it is asked for if this device has none yet.
    pub(super) fn track(&mut self) -> Result<()> {
        if self.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        if self.inflight.is_none() {
            self.inflight = Some(self.get_inflight()?);
        }
        self.inflight.as_ref().map_or(Ok(()), |region| self.set_inflight(region))
    }

    /// Whether requests in flight are tracked.
    pub fn tracks(&self) -> bool {
        self.inflight.is_some()
    }

    /// The index at which a front end starts a ring. Nobody could ask a back end that crashed: QEMU then says what was
    /// given back (used.idx), cloud-hypervisor what was made available (avail.idx).
    pub fn base(&self, index: u16) -> u16 {
        let ring = &self.queues[usize::from(index)].ring;
        match self.setup.order {
            Order::Qemu => ring.used_idx(),
            Order::CloudHypervisor => ring.avail_idx(),
        }
    }
}
