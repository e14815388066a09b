//! A well-behaved driver of one ring: each request has a place in guest memory of its own, and comes back some time.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fastrand::Rng;
use virtio_bindings::bindings::virtio_blk as blk;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::chain::Chain;
use crate::guest::{Guest, SplitRing};
use crate::sim::{SECTOR, Sim};
use crate::stats::Lane;
use crate::worker::queue::Setup;

/// Requests that a driver has under way at most; each has four descriptors.
pub(super) const PLACES: u16 = 32;
const DESCRIPTORS: u16 = 4 * PLACES;
/// Bytes of a request's data at most.
pub(super) const LONGEST: u64 = 128 * SECTOR as u64;
const AVAIL: u64 = 16 * DESCRIPTORS as u64;
const USED: u64 = AVAIL + 0x400;
const FIRST: u64 = 0x4000;
const STRIDE: u64 = LONGEST + 0x2000;
/// Guest memory of one driver, in bytes.
const SIZE: u64 = FIRST + PLACES as u64 * STRIDE;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
}

/// A request: sectors `[at, at + len)`.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub what: What,
    pub at: u64,
    pub len: u64,
    /// Of a write.
    pub data: Vec<u8>,
}

impl Op {
    /// Sectors of it as a request of its own.
    pub fn part(&self, skip: u64, len: u64) -> Op {
        let data = match self.what {
            What::Write => self.data[skip as usize * SECTOR..][..len as usize * SECTOR].to_vec(),
            _ => Vec::new(),
        };
        Op { what: self.what, at: self.at + skip, len, data }
    }
}

/// How a request came back.
#[derive(Clone, Debug)]
pub(super) struct Back {
    pub place: u16,
    pub ok: bool,
    /// Of a read.
    pub data: Vec<u8>,
}

/// Guest memory; it is costly to make.
pub(super) struct Ground {
    memory: Arc<GuestMemoryMmap<()>>,
    guest: Arc<Guest>,
}

impl Ground {
    pub fn new(drivers: u64) -> Ground {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (drivers * SIZE) as usize)]);
        let memory = Arc::new(memory.expect("guest memory"));
        let guest = Arc::new(Guest::new(memory.clone()).expect("guest memory"));
        Ground { memory, guest }
    }
}

pub(super) struct Driver {
    ground: Arc<Ground>,
    base: u64,
    // The descriptor that the queue is woken by.
    kick: RawFd,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    // By place: where the data of a read will be.
    flights: Vec<Option<Vec<(u64, u64)>>>,
}

impl Driver {
    pub fn new(ground: &Arc<Ground>, number: u64) -> Driver {
        let base = number * SIZE;
        let driver = Driver {
            ground: ground.clone(),
            base,
            kick: -1,
            avail: 0,
            used: 0,
            free: (0..PLACES).collect(),
            flights: vec![None; PLACES.into()],
        };
        driver.put(base, &[0; FIRST as usize]);
        driver
    }

    /// What a worker needs to serve it from where it stands.
    pub fn setup(&mut self, chain: &Arc<Chain>, write_through: &Arc<AtomicBool>) -> Setup {
        let ring = SplitRing::new(&self.ground.guest, DESCRIPTORS, self.base, self.base + AVAIL, self.base + USED);
        let kick = File::open("/dev/null").expect("/dev/null");
        self.kick = kick.as_raw_fd();
        Setup {
            name: chain.name.clone(),
            chain: chain.clone(),
            lane: Lane::detached(chain),
            serial: [0; 20],
            guest: self.ground.guest.clone(),
            ring: ring.expect("a ring"),
            base: self.get16(USED + 2),
            record: None,
            event_idx: false,
            kick,
            call: None,
            err: None,
            write_through: write_through.clone(),
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ground.memory.write_slice(bytes, GuestAddress(at)).expect("guest memory");
    }

    fn get(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.ground.memory.read_slice(&mut bytes, GuestAddress(at)).expect("guest memory");
        bytes
    }

    fn get16(&self, at: u64) -> u16 {
        let bytes = self.get(self.base + at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn under_way(&self) -> usize {
        self.flights.iter().flatten().count()
    }

    /// Makes a request available; its place.
    pub fn submit(&mut self, op: &Op, rng: &mut Rng) -> u16 {
        let place = self.free.pop().expect("a place");
        let at = self.base + FIRST + u64::from(place) * STRIDE;
        let (code, sector) = match op.what {
            What::Read => (blk::VIRTIO_BLK_T_IN, op.at),
            What::Write => (blk::VIRTIO_BLK_T_OUT, op.at),
            What::Flush => (blk::VIRTIO_BLK_T_FLUSH, 0),
            What::Discard => (blk::VIRTIO_BLK_T_DISCARD, 0),
            What::Zeroes => (blk::VIRTIO_BLK_T_WRITE_ZEROES, 0),
        };
        self.put(at, &[&code.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        let range = [&op.at.to_le_bytes()[..], &(op.len as u32).to_le_bytes(), &[0; 4]].concat();
        let (data, len) = match op.what {
            What::Read => (Vec::new(), op.len * SECTOR as u64),
            What::Write => (op.data.clone(), op.data.len() as u64),
            What::Flush => (Vec::new(), 0),
            What::Discard | What::Zeroes => (range, 16),
        };
        // Aligned as a guest does it, or not; in one stretch or in two that do not adjoin.
        let from = at + if rng.bool() { 0x1000 } else { rng.u64(64..0x1000) };
        let cut = if rng.bool() { len } else { rng.u64(0..=len) };
        let gap = if cut < len && rng.bool() { 512 } else { 0 };
        self.put(from, &data[..data.len().min(cut as usize)]);
        self.put(from + cut + gap, &data[data.len().min(cut as usize)..]);
        let status = at + STRIDE - 16;
        self.put(status, &[0xff]);
        let write = if op.what == What::Read { 2 } else { 0 };
        let stretches = [(at, 16, 0), (from, cut, write), (from + cut + gap, len - cut, write), (status, 1, 2)];
        let stretches: Vec<_> = stretches.into_iter().filter(|(_, len, _)| *len > 0).collect();
        for (i, (addr, len, flags)) in (0u16..).zip(&stretches) {
            let last = usize::from(i) + 1 == stretches.len();
            let (len, next) = (*len as u32, 4 * place + i + 1);
            let flags: u16 = flags | u16::from(!last);
            let entry = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            self.put(self.base + 16 * u64::from(4 * place + i), &entry.concat());
        }
        let read = stretches.iter().filter(|(at, _, flags)| *flags == 2 && *at != status);
        self.flights[usize::from(place)] = Some(read.map(|(at, len, _)| (*at, *len)).collect());
        self.put(self.base + AVAIL + 4 + 2 * u64::from(self.avail % DESCRIPTORS), &(4 * place).to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(self.base + AVAIL + 2, &self.avail.to_le_bytes());
        place
    }

    /// Tells the device that there is work.
    pub fn kick(&self, sim: &Sim) {
        sim.ring(self.kick);
    }

    /// A request that has come back.
    pub fn take(&mut self) -> Option<Back> {
        if self.get16(USED + 2) == self.used {
            return None;
        }
        let entry = self.get(self.base + USED + 4 + 8 * u64::from(self.used % DESCRIPTORS), 4);
        let place = u16::from_le_bytes([entry[0], entry[1]]) / 4;
        self.used = self.used.wrapping_add(1);
        let read = self.flights[usize::from(place)].take().expect("a request that is under way");
        self.free.push(place);
        let at = self.base + FIRST + u64::from(place) * STRIDE;
        let status = self.get(at + STRIDE - 16, 1)[0];
        assert_ne!(status, 0xff, "a request came back without a status");
        let data = read.into_iter().map(|(at, len)| self.get(at, len)).collect::<Vec<_>>().concat();
        Some(Back { place, ok: status == 0, data })
    }
}
