//! The two orders of messages in which front ends really connect (seen on the wire of QEMU 7.2 and of
//! cloud-hypervisor 54).

use std::io::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::{Order, PROTOCOL, Vmm};
use crate::blk::Config;
use crate::memory::Region;
use crate::wire::{
    Connection, NEED_REPLY, PROTOCOL_FEATURES, REPLY, backend_request, config, memory_region, protocol, request,
    single_region, vring_addr,
};

impl Vmm {
    pub(super) fn negotiate(&mut self) -> Result<()> {
        match self.setup.order {
            Order::Qemu => self.negotiate_qemu(),
            Order::CloudHypervisor => self.negotiate_cloud_hypervisor(),
        }
    }

    fn negotiate_qemu(&mut self) -> Result<()> {
        self.ask_features()?;
        self.ask_protocol_features()?;
        self.ask_queue_num()?;
        if self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0 {
            self.conn.ask_u64(request::GET_MAX_MEM_SLOTS)?;
        }
        self.conn.tell(request::SET_OWNER, &[], &[])?;
        self.ask_features()?;
        self.config = Config::decode(&self.get_config(0, 57)?);
        Ok(())
    }

    fn negotiate_cloud_hypervisor(&mut self) -> Result<()> {
        self.conn.tell(request::SET_OWNER, &[], &[])?;
        self.ask_features()?;
        if self.setup.reconnect {
            // It says again what it chose at the first connection.
            self.conn.tell_u64(request::SET_PROTOCOL_FEATURES, self.protocol)?;
        } else {
            self.ask_protocol_features()?;
            self.ask_queue_num()?;
            self.config = Config::decode(&self.get_config(1, 60)?);
        }
        self.conn.set_acks(true);
        Ok(())
    }

    fn ask_features(&mut self) -> Result<()> {
        self.offered = self.conn.ask_u64(request::GET_FEATURES)?;
        self.features = self.offered & self.setup.features;
        Ok(())
    }

    fn ask_protocol_features(&mut self) -> Result<()> {
        if self.offered & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let offered = self.conn.ask_u64(request::GET_PROTOCOL_FEATURES)?;
        self.protocol = offered & PROTOCOL;
        if !self.setup.inflight {
            self.protocol &= !protocol::INFLIGHT_SHMFD;
        }
        if !self.setup.channel {
            self.protocol &= !protocol::BACKEND_REQ;
        }
        self.conn.tell_u64(request::SET_PROTOCOL_FEATURES, self.protocol)?;
        self.open_channel()
    }

    /// QEMU does so before it asks for the number of queues.
    fn open_channel(&mut self) -> Result<()> {
        if self.protocol & protocol::BACKEND_REQ == 0 {
            return Ok(());
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.conn.tell(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        self.channel = Some(Connection::new(ours)?);
        Ok(())
    }

    /// Waits until the back end says that its configuration space has changed, and asks for it.
    pub fn config_change(&mut self) -> Result<Config> {
        let channel = self.channel.as_ref().ok_or_else(|| Error::other("test bug: there is no channel"))?;
        let message = channel.recv()?;
        if message.request != backend_request::CONFIG_CHANGE || !message.body.is_empty() || !message.fds.is_empty() {
            return Err(Error::other(format!("not a config change: {message:?}")));
        }
        if message.flags & NEED_REPLY != 0 {
            channel.send(message.request, REPLY, &0u64.to_le_bytes(), &[])?;
        }
        self.config = Config::decode(&self.get_config(0, Config::BYTES as u32)?);
        Ok(self.config)
    }

    fn ask_queue_num(&mut self) -> Result<()> {
        if self.protocol & protocol::MQ != 0 {
            self.queue_num = self.conn.ask_u64(request::GET_QUEUE_NUM)?;
        }
        Ok(())
    }

    /// GET_CONFIG of `size` bytes from the start of the configuration space.
    pub fn get_config(&self, flags: u32, size: u32) -> Result<Vec<u8>> {
        let body = config(0, size, flags, &vec![0; size as usize]);
        let reply = self.conn.ask(request::GET_CONFIG, &body, &[])?;
        if reply.body.len() != 12 + size as usize {
            return Err(std::io::Error::other(format!("GET_CONFIG of {size} bytes: reply has {}", reply.body.len())));
        }
        Ok(reply.body[12..].to_vec())
    }

    /// SET_CONFIG.
    pub fn set_config(&self, offset: u32, data: &[u8]) -> Result<()> {
        let body = config(offset, data.len() as u32, 0, data);
        self.conn.tell(request::SET_CONFIG, &body, &[])
    }

    /// Tells the back end about memory and rings and starts them, in the order of the setup.
    pub fn start(&mut self) -> Result<()> {
        self.conn.tell_u64(request::SET_FEATURES, self.features)?;
        let one_by_one = self.setup.order == Order::Qemu && self.protocol & protocol::CONFIGURE_MEM_SLOTS != 0;
        if self.setup.order == Order::Qemu {
            self.track()?;
        }
        // QEMU too wants to know that the back end has mapped the memory.
        let acks = self.protocol & protocol::REPLY_ACK != 0;
        self.conn.set_acks(acks);
        if one_by_one {
            for region in self.memory.regions() {
                let body = single_region(region.gpa, region.size, region.user_addr, region.mmap_offset);
                self.conn.tell(request::ADD_MEM_REG, &body, &[region.fd()])?;
            }
        } else {
            self.set_mem_table()?;
        }
        self.conn.set_acks(acks && self.setup.order == Order::CloudHypervisor);
        if self.setup.order == Order::CloudHypervisor {
            self.track()?;
        }
        for index in 0..self.setup.queues {
            self.start_ring(index, self.base(index))?;
            if self.setup.order == Order::CloudHypervisor {
                self.enable(index, true)?;
            }
        }
        for index in 0..self.setup.queues {
            self.enable(index, true)?;
        }
        // From here on a test wants to know what became of each message.
        self.conn.set_acks(acks);
        Ok(())
    }

    /// Starts again over a connection on which the back end has the memory already.
    pub(super) fn start_again(&mut self) -> Result<()> {
        self.conn.tell_u64(request::SET_FEATURES, self.features)?;
        if self.setup.order == Order::CloudHypervisor {
            self.set_mem_table()?;
        }
        self.track()?;
        for index in 0..self.setup.queues {
            self.start_ring(index, 0)?;
            self.enable(index, true)?;
        }
        Ok(())
    }

    /// SET_MEM_TABLE with all regions.
    pub fn set_mem_table(&self) -> Result<()> {
        let regions = self.memory.regions();
        let mut body = (regions.len() as u64).to_le_bytes().to_vec();
        for r in regions {
            body.extend(memory_region(r.gpa, r.size, r.user_addr, r.mmap_offset));
        }
        let fds: Vec<BorrowedFd<'_>> = regions.iter().map(Region::fd).collect();
        self.conn.tell(request::SET_MEM_TABLE, &body, &fds)
    }

    pub(super) fn start_ring(&self, index: u16, base: u16) -> Result<()> {
        let ring = &self.queues[usize::from(index)].ring;
        let place = ring.place;
        let index = u32::from(index);
        let base = u32::from(base);
        let addr = vring_addr(
            index,
            self.memory.user_addr(place.desc),
            self.memory.user_addr(place.used),
            self.memory.user_addr(place.avail),
        );
        let wide = u64::from(index);
        let call = (!self.setup.no_call).then(|| ring.call_fd());
        let conn = &self.conn;
        conn.tell_state(request::SET_VRING_NUM, index, u32::from(place.size))?;
        match self.setup.order {
            Order::Qemu => {
                conn.tell_state(request::SET_VRING_BASE, index, base)?;
                conn.tell(request::SET_VRING_ADDR, &addr, &[])?;
                conn.tell_fd(request::SET_VRING_KICK, wide, Some(ring.kick_fd()))?;
                if call.is_some() {
                    conn.tell_fd(request::SET_VRING_CALL, wide, call)?;
                }
            }
            Order::CloudHypervisor => {
                conn.tell(request::SET_VRING_ADDR, &addr, &[])?;
                conn.tell_state(request::SET_VRING_BASE, index, base)?;
                if call.is_some() {
                    conn.tell_fd(request::SET_VRING_CALL, wide, call)?;
                }
                conn.tell_fd(request::SET_VRING_KICK, wide, Some(ring.kick_fd()))?;
            }
        }
        Ok(())
    }
}
