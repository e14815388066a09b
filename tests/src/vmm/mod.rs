//! A whole front end: connection, guest memory and rings, driven as a VMM and its guest drive them.

mod connect;
mod inflight;
mod io;

use std::io::Result;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::blk::{Arena, Config, Prepared, feature};
use crate::memory::{GuestMemory, PAGE, RegionSpec};
use crate::ring::{Place, Ring};
use crate::wire::{Connection, protocol, request, single_region};

pub use inflight::Inflight;
pub use io::{Done, Failed};

/// Whose order of messages to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// QEMU 7.2: regions one by one, hardly any acknowledgement, ring: NUM, BASE, ADDR, KICK, CALL, ENABLE.
    Qemu,
    /// cloud-hypervisor 54: one memory table, everything acknowledged, ring: NUM, ADDR, BASE, CALL, KICK,
    /// ENABLE, and ENABLE more than once.
    CloudHypervisor,
}

/// How a front end sets itself up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Order of messages.
    pub order: Order,
    /// Queues to set up and enable.
    pub queues: u16,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// Feature bits to take if offered.
    pub features: u64,
    /// Requests in flight on a queue.
    pub slots: usize,
    /// Guest memory for each request, bytes.
    pub slot_bytes: u64,
    /// No call eventfd, as for a device without an interrupt vector.
    pub no_call: bool,
    /// Wait for completions on the call eventfd; else watch the ring.
    pub interrupts: bool,
    /// Come back as cloud-hypervisor does: without asking for protocol features and configuration.
    pub reconnect: bool,
    /// Have the back end track requests in flight, if it can.
    pub inflight: bool,
    /// Give the back end a channel for requests of its own, if it takes one.
    pub channel: bool,
    /// Guest memory is allocated when it is touched, and not before.
    pub sparse: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            order: Order::Qemu,
            queues: 1,
            queue_size: 128,
            features: !(feature::RING_PACKED | feature::LOG_ALL),
            slots: 8,
            slot_bytes: 128 << 10,
            no_call: false,
            interrupts: true,
            reconnect: false,
            inflight: true,
            channel: false,
            sparse: false,
        }
    }
}

impl Setup {
    /// Without these feature bits.
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }
}

/// One virtqueue with the guest memory of its requests.
#[derive(Debug)]
pub struct Queue {
    /// The ring.
    pub ring: Ring,
    /// Guest memory of each slot.
    pub arenas: Vec<Arena>,
    requests: Vec<Option<Prepared>>,
    slot_of_head: Vec<Option<usize>>,
}

/// A front end that is connected.
#[derive(Debug)]
pub struct Vmm {
    /// How it was set up.
    pub setup: Setup,
    /// The control connection.
    pub conn: Connection,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Feature bits the back end offered.
    pub offered: u64,
    /// Feature bits in use.
    pub features: u64,
    /// Protocol features in use.
    pub protocol: u64,
    /// Queues the back end says it has.
    pub queue_num: u64,
    /// Configuration space at connect.
    pub config: Config,
    /// The region in which the back end tracks requests in flight.
    pub inflight: Option<Inflight>,
    /// The channel of the back end's own requests.
    pub channel: Option<Connection>,
    rng: fastrand::Rng,
}

/// Protocol features that this front end can use.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::LOG_SHMFD
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::INFLIGHT_SHMFD
    | protocol::BACKEND_REQ
    | protocol::RESET_DEVICE;

/// Guest address of the first ring.
const RINGS: u64 = 0;

/// Where data regions begin, so that the first two touch each other and the third lies above 4 GiB.
fn data_regions(bytes: u64) -> [RegionSpec; 3] {
    let size = bytes.next_multiple_of(PAGE);
    [RegionSpec { gpa: 1 << 20, size }, RegionSpec { gpa: (1 << 20) + size, size }, RegionSpec { gpa: 1 << 32, size }]
}

impl Vmm {
    /// Connects to the socket and sets everything up until the rings run.
    pub fn connect(socket: &Path, setup: &Setup) -> Result<Self> {
        Self::over(UnixStream::connect(socket)?, setup)
    }

    /// The same over a socket that is connected already.
    pub fn over(stream: UnixStream, setup: &Setup) -> Result<Self> {
        let mut vmm = Self::handshake(stream, setup)?;
        vmm.start()?;
        Ok(vmm)
    }

    /// Connects and negotiates; leaves memory and rings to [`start`](Self::start).
    pub fn handshake(stream: UnixStream, setup: &Setup) -> Result<Self> {
        let slots = setup.slots as u64 * u64::from(setup.queues);
        let data = data_regions((slots * setup.slot_bytes).div_ceil(3) + setup.slot_bytes);
        let rings =
            RegionSpec { gpa: RINGS, size: (u64::from(setup.queues) * Place::MAX_BYTES).next_multiple_of(PAGE) };
        let memory = GuestMemory::new(&[rings, data[0], data[1], data[2]], setup.sparse)?;
        let mut vmm = Vmm {
            setup: setup.clone(),
            conn: Connection::new(stream)?,
            memory,
            queues: Vec::new(),
            offered: 0,
            features: 0,
            protocol: 0,
            queue_num: 1,
            config: Config::default(),
            inflight: None,
            channel: None,
            rng: fastrand::Rng::with_seed(7),
        };
        vmm.negotiate()?;
        let mut arenas = carve(&data, setup.slot_bytes);
        for index in 0..setup.queues {
            let place = Place::at(RINGS + u64::from(index) * Place::MAX_BYTES, setup.queue_size);
            let event_idx = vmm.has(feature::EVENT_IDX);
            vmm.queues.push(Queue {
                ring: Ring::new(&vmm.memory, place, event_idx)?,
                arenas: arenas.by_ref().take(setup.slots).collect(),
                requests: vec![None; setup.slots],
                slot_of_head: vec![None; usize::from(setup.queue_size)],
            });
        }
        let interrupts = setup.interrupts && !setup.no_call;
        for queue in &mut vmm.queues {
            queue.ring.want_interrupts(interrupts);
        }
        Ok(vmm)
    }

    /// What a front end does when its guest resets the device: rings off and stopped, then, when the guest's
    /// driver is back, everything again over the same connection.
    pub fn reset(&mut self) -> Result<()> {
        for index in 0..self.setup.queues {
            self.enable(index, false)?;
            self.stop_ring(index)?;
        }
        if self.protocol & protocol::RESET_DEVICE != 0 {
            self.conn.tell(request::RESET_DEVICE, &[], &[])?;
        }
        // Both front ends ask for another one when the next driver starts the device.
        self.inflight = None;
        for index in 0..usize::from(self.setup.queues) {
            let event_idx = self.has(feature::EVENT_IDX);
            let queue = &mut self.queues[index];
            queue.ring = Ring::new(&self.memory, queue.ring.place, event_idx)?;
            queue.requests.fill(None);
            queue.slot_of_head.fill(None);
            let interrupts = self.setup.interrupts && !self.setup.no_call;
            queue.ring.want_interrupts(interrupts);
        }
        self.start_again()
    }

    /// Whether a feature is in use.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// GET_VRING_BASE: stops a ring; the index of the next request that the device would have taken.
    pub fn stop_ring(&self, index: u16) -> Result<u16> {
        let reply = self.conn.ask(request::GET_VRING_BASE, &crate::wire::state(u32::from(index), 0), &[])?;
        Ok((reply.u64()? >> 32) as u16)
    }

    /// Starts a ring that [`stop_ring`](Self::stop_ring) stopped, at `base`; what was in flight is forgotten.
    pub fn restart_ring(&mut self, index: u16, base: u16) -> Result<()> {
        let queue = &mut self.queues[usize::from(index)];
        queue.ring.resume_at(base);
        queue.requests.fill(None);
        queue.slot_of_head.fill(None);
        self.start_ring(index, base)?;
        self.enable(index, true)
    }

    /// Starts a ring that was stopped, at `base`, with all that is in flight or not yet taken left as it is.
    pub fn continue_ring(&self, index: u16, base: u16) -> Result<()> {
        self.start_ring(index, base)?;
        self.enable(index, true)
    }

    /// SET_VRING_ENABLE.
    pub fn enable(&self, index: u16, on: bool) -> Result<()> {
        self.conn.tell_state(request::SET_VRING_ENABLE, u32::from(index), u32::from(on))
    }

    /// Gives the ring another call eventfd while it runs.
    pub fn change_call(&mut self, index: u16) -> Result<()> {
        let ring = &mut self.queues[usize::from(index)].ring;
        ring.renew_call()?;
        self.conn.tell_fd(request::SET_VRING_CALL, u64::from(index), Some(ring.call_fd()))
    }

    /// Adds a region of guest memory at run time (ADD_MEM_REG).
    pub fn add_region(&mut self, spec: RegionSpec) -> Result<()> {
        let region = self.memory.add(spec)?;
        let body = single_region(region.gpa, region.size, region.user_addr, region.mmap_offset);
        self.conn.tell(request::ADD_MEM_REG, &body, &[region.fd().as_fd()])
    }

    /// Removes the region at `gpa` at run time (REM_MEM_REG).
    pub fn remove_region(&mut self, gpa: u64) -> Result<()> {
        let region = self.memory.remove(gpa);
        let body = single_region(region.gpa, region.size, region.user_addr, 0);
        self.conn.tell(request::REM_MEM_REG, &body, &[])
    }

    /// Acknowledged round trip: everything sent before has been handled.
    pub fn sync(&self) -> Result<()> {
        self.conn.ask_u64(request::GET_FEATURES).map(drop)
    }
}

/// Cuts arenas out of the data regions; those that touch count as one, so some arenas lie across a border.
fn carve(regions: &[RegionSpec; 3], bytes: u64) -> impl Iterator<Item = Arena> + use<> {
    let [first, second, third] = *regions;
    let spans = [(first.gpa, first.size + second.size), (third.gpa, third.size)];
    spans
        .into_iter()
        .flat_map(move |(gpa, size)| (0..size / bytes).map(move |i| Arena { gpa: gpa + i * bytes, len: bytes }))
}
