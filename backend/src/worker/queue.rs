//! One virtqueue being served: heads come off the ring, become operations, and go back with a status.
//!
//! A queue holds its generation of guest memory until it has drained: every slice in a slot or an operation comes from
//! it, and [`Queue::drained`] is what lets go of it.

mod ranges;
mod tasks;
mod transfer;

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use super::devices::{Devices, User};
use super::dirty::Dirty;
use super::ops::{Action, Ops, Verdict};
use super::returns::{Order, Returns, Ticket};
use super::tasks::Tasks;
use crate::chain::Chain;
use crate::engine::Engine;
use crate::guest::{Guest, HostSlice, Record, SplitRing};
use crate::inflight::Tracker;
use crate::limited;
use crate::map::DevIx;
use crate::request::{self, ChainError, ID_LEN, Kind};
use crate::stats::{self, Clock, Lane, Watch};
use crate::vring::{Broken, Vring};

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Longest discard or write-zeroes range that is taken, in sectors; offered to the driver in the configuration space.
pub const MAX_RANGE_SECTORS: u32 = 0x7f_ffff;

/// Largest segment of a request, in bytes; offered to the driver.
pub const SIZE_MAX: u32 = 1 << 20;
/// Most segments of a request; offered to the driver. With header and status they fit in a ring of 128 entries, which is
/// what front ends set up unless they are told otherwise (QEMU).
pub const SEG_MAX: u32 = 126;
/// Longest transfer that a driver that keeps to the two can ask for, in bytes. Longer ones are refused: one head must not
/// mean any amount of work.
const MAX_TRANSFER: u64 = SIZE_MAX as u64 * SEG_MAX as u64;
/// Bytes of requests after which a turn takes no more, so that nothing else waits for long.
const TURN: u64 = 64 << 20;
/// Operations under way in a worker at which it takes no more requests.
const MOST_OPERATIONS: usize = 4096;

/// Everything a worker needs to serve a queue.
pub struct Setup {
    /// `disk.queue`, for the log.
    pub name: String,
    /// What is served.
    pub chain: Arc<Chain>,
    /// Where it is counted.
    pub lane: Arc<Lane>,
    /// Answer to GET_ID.
    pub serial: [u8; ID_LEN],
    /// The guest's memory.
    pub guest: Arc<Guest>,
    /// The ring in it.
    pub ring: SplitRing,
    /// Available index to start at, where no record knows better.
    pub base: u16,
    /// Where requests under way are recorded for a successor; without, they end in the order in which they came.
    pub record: Option<Record>,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Written to by the driver when there is work.
    pub kick: File,
    /// Where the driver is told of used entries, not blocking; a driver without interrupts has none.
    pub call: Option<File>,
    /// Where the front end is told that the ring is broken, not blocking, if it wants to know.
    pub err: Option<File>,
    /// Whether a write is complete only when it is on stable storage; the driver may change it (CONFIG_WCE).
    pub write_through: Arc<AtomicBool>,
}

#[derive(Clone, Copy)]
struct Slot {
    head: u16,
    status: u8,
    // Bytes that a success writes to the guest, without the status byte.
    written: u32,
    pending: u32,
    ticket: Ticket,
    status_byte: HostSlice,
    kind: stats::Kind,
    sectors: u32,
    // When it was taken; of a request that a device has a part in.
    began: u64,
    // It is counted in regions.
    watched: bool,
}

/// See the module's text.
pub struct Queue {
    index: u32,
    name: String,
    chain: Arc<Chain>,
    lane: Arc<Lane>,
    watch: Watch,
    // There are regions.
    watches: bool,
    serial: [u8; ID_LEN],
    guest: Arc<Guest>,
    vring: Vring,
    returns: Returns,
    // Heads that a predecessor has left, the first one last.
    replay: Vec<u16>,
    // While the front end migrates its guest.
    dirty: Option<Box<Dirty>>,
    call: Option<File>,
    err: Option<File>,
    write_through: Arc<AtomicBool>,
    devices: Devices,
    request: request::Chain,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: u32,
    // Nothing more can be taken before something that is under way has ended.
    full: bool,
    // No more heads are taken off the ring.
    stopped: bool,
    // Nor while this is set.
    held: bool,
    // Keeps the descriptor alive that the engine watches.
    _kick: File,
}

impl Queue {
    /// Makes the chain's files known to the engine, and takes up what a predecessor has left.
    ///
    /// # Errors
    /// The engine's, or a record that cannot be this ring's.
    pub fn new(index: u32, setup: Setup, ops: &mut Ops, engine: &mut impl Engine) -> std::io::Result<Queue> {
        let (returns, base, mut replay) = match setup.record {
            None => (Returns::InOrder(Order::default()), setup.base, Vec::new()),
            Some(record) => {
                let found = Tracker::recover(record, setup.ring.avail_idx(), setup.ring.used_idx());
                let (tracker, recovered) = found.map_err(std::io::Error::other)?;
                let base = recovered.next_avail.unwrap_or(setup.base);
                (Returns::Recorded(tracker), base, recovered.replay)
            }
        };
        replay.reverse();
        if !replay.is_empty() {
            let limiter = &setup.chain.limiters.control;
            limited!(limiter, info, "{}: {} requests of a predecessor are done again", setup.name, replay.len());
        }
        let devices = Devices::new(&setup.chain, ops, engine)?;
        engine.add_memory(&setup.guest);
        Ok(Queue {
            index,
            name: setup.name,
            chain: setup.chain,
            lane: setup.lane,
            watch: Watch::default(),
            watches: false,
            serial: setup.serial,
            dirty: setup.ring.log().map(|log| Box::new(Dirty::new(log.clone(), setup.guest.clone()))),
            vring: Vring::new(setup.ring, base, setup.event_idx),
            returns,
            replay,
            guest: setup.guest,
            call: setup.call,
            err: setup.err,
            write_through: setup.write_through,
            devices,
            request: request::Chain::default(),
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            full: false,
            stopped: false,
            held: false,
            _kick: setup.kick,
        })
    }

    /// Takes every head that is there; returns how many there were.
    #[inline]
    pub fn take(&mut self, ops: &mut Ops, tasks: &mut Tasks, engine: &mut impl Engine, clock: &mut Clock) -> usize {
        if (self.stopped || self.held) && self.replay.is_empty() {
            return 0;
        }
        let mut taken = 0;
        // A driver has at most as many requests under way as its ring has entries; one that repeats heads waits. A turn takes
        // one ring full at most, and so many bytes, so that no driver can keep the worker from anything else.
        let mut bytes = 0;
        self.full = false;
        self.watches = self.watch.look(&self.lane.regions);
        for _ in 0..self.vring.ring().size() {
            let most = self.vring.ring().size();
            if self.in_flight >= u32::from(most)
                || self.returns.held_back() >= usize::from(most)
                || ops.under_way() >= MOST_OPERATIONS
            {
                self.full = true;
                break;
            }
            if bytes > TURN {
                break;
            }
            match self.next() {
                Ok(Some(head)) => {
                    taken += 1;
                    self.serve(head, ops, tasks, engine, clock);
                    bytes += self.request.data_len;
                }
                Ok(None) => break,
                Err(broken) => {
                    limited!(self.chain.limiters.requests, error, "{}: {broken}", self.name);
                    signal_error(self.err.as_ref());
                    self.stopped = true;
                    break;
                }
            }
        }
        if taken > 0 {
            self.vring.stay_awake();
            self.lane.set_in_flight(self.in_flight);
        }
        taken
    }

    #[inline]
    fn next(&mut self) -> Result<Option<u16>, Broken> {
        if let Some(head) = self.replay.pop() {
            return Ok(Some(head));
        }
        if self.stopped || self.held {
            return Ok(None);
        }
        let next = self.vring.pop();
        if let Ok(Some(head)) = next {
            self.returns.taken(head);
        }
        next
    }

    #[inline]
    fn serve(&mut self, head: u16, ops: &mut Ops, tasks: &mut Tasks, engine: &mut impl Engine, clock: &mut Clock) {
        let began = if clock.weight() == 0 { 0 } else { clock.taken() };
        match self.request.parse(self.vring.ring(), &self.guest, head) {
            Ok((kind, status_byte)) => {
                self.vring.expect(self.request.beginning());
                let slot = self.open(head, status_byte, kind);
                if let Some(dirty) = &mut self.dirty
                    && matches!(kind, Kind::Read | Kind::GetId)
                {
                    dirty.begin(slot, &self.request.data);
                }
                match kind {
                    Kind::Read | Kind::Write => self.transfer(kind, slot, ops, tasks, engine),
                    Kind::Flush => self.flush(slot, ops, tasks, engine),
                    Kind::GetId => self.get_id(slot),
                    Kind::Discard | Kind::WriteZeroes => self.ranges(kind, slot, ops, tasks, engine),
                    Kind::Unknown => self.slots[slot as usize].status = UNSUPP,
                }
                if !self.settle(slot, OK) {
                    let ticket = self.returns.postpone(head);
                    let slot = &mut self.slots[slot as usize];
                    (slot.ticket, slot.began) = (ticket, clock.now());
                } else if clock.weight() > 0 {
                    self.lane.took(counted(kind), clock.ended().saturating_sub(began), clock.weight());
                }
            }
            Err(error) => self.refuse(head, error),
        }
    }

    /// A slot with one operation pending: the request itself, until it has been cut into pieces.
    #[inline]
    fn open(&mut self, head: u16, status_byte: HostSlice, kind: Kind) -> u32 {
        self.in_flight += 1;
        let slot = Slot {
            head,
            status: OK,
            written: 0,
            pending: 1,
            ticket: Ticket::NONE,
            status_byte,
            kind: counted(kind),
            sectors: 0,
            began: 0,
            watched: false,
        };
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Counts one operation of a request down; the first error wins, the last one ends the request (`true`).
    #[inline]
    fn settle(&mut self, index: u32, status: u8) -> bool {
        let slot = &mut self.slots[index as usize];
        if slot.status == OK {
            slot.status = status;
        }
        slot.pending -= 1;
        if slot.pending > 0 {
            return false;
        }
        // Of a failed read nothing is known but the status byte (virtio 1.2, 2.7.8.2).
        let written = if slot.status == OK { slot.written + 1 } else { 1 };
        slot.status_byte.set_first(slot.status);
        self.lane.ended(slot.kind, slot.sectors, slot.status != OK);
        if let Some(dirty) = &mut self.dirty {
            dirty.end(index, &slot.status_byte);
        }
        let (head, ticket) = (slot.head, slot.ticket);
        if slot.watched {
            self.watch.end(index);
        }
        self.free.push(index);
        self.in_flight -= 1;
        self.returns.ended(&mut self.vring, ticket, head, written);
        true
    }

    #[cold]
    fn refuse(&mut self, head: u16, error: ChainError) {
        limited!(self.chain.limiters.requests, warn, "{}: request {head} is not served: {error}", self.name);
        let written = match self.request.status {
            Some(byte) => byte.write(&[IOERR]) as u32,
            None => 0,
        };
        if let (Some(dirty), Some(byte)) = (&self.dirty, &self.request.status) {
            dirty.wrote(byte);
        }
        self.lane.ended(stats::Kind::Refused, 0, true);
        self.returns.ended(&mut self.vring, Ticket::NONE, head, written);
    }

    /// Whether `[at, at + len)` sectors can be asked for at all.
    #[inline]
    fn in_range(&self, at: u64, len: u64) -> bool {
        let block = self.chain.block_sectors();
        at.checked_add(len).is_some_and(|end| end <= self.chain.len().get())
            && (block == 1 || (at.is_multiple_of(block) && len.is_multiple_of(block)))
    }

    /// Takes an operation's verdict; whether its request has ended with it.
    #[inline]
    pub fn complete(&mut self, verdict: &Verdict, clock: &mut Clock) -> bool {
        let status = if verdict.errno == 0 { OK } else { self.failed(verdict) };
        let slot = &self.slots[verdict.owner.slot as usize];
        let (kind, ns) = (slot.kind, clock.now().saturating_sub(slot.began));
        let sectors = verdict.len / dm_table::SECTOR_SIZE;
        let dev = DevIx(verdict.device);
        self.lane.device_ended(dev, verdict.action.kind(), sectors, status != OK, ns);
        let ended = self.settle(verdict.owner.slot, status);
        if ended {
            self.lane.took(kind, ns, 1);
        }
        ended
    }

    #[cold]
    fn failed(&self, verdict: &Verdict) -> u8 {
        self.user().failed(verdict);
        match (verdict.action, verdict.errno) {
            (Action::Discard, libc::EOPNOTSUPP) => UNSUPP,
            _ => IOERR,
        }
    }

    fn user(&self) -> User<'_> {
        User { name: &self.name, chain: &self.chain, lane: &self.lane }
    }

    /// Makes what has been given back visible, and tells the driver if it asked to be told.
    #[inline]
    pub fn publish(&mut self) {
        if !self.vring.unpublished() {
            return;
        }
        self.lane.set_in_flight(self.in_flight);
        let unlogged = self.dirty.as_ref().is_some_and(|dirty| dirty.broken());
        if (self.guest.broken() || self.returns.broken() || unlogged) && !self.stopped {
            // What was read of requests and rings may be zeroes that are not the guest's, and what is not logged does not
            // migrate.
            self.stopped = true;
            self.replay.clear();
            let limiter = &self.chain.limiters.control;
            limited!(
                limiter,
                error,
                "{}: the front end has truncated memory that it shares; the queue stays stopped",
                self.name
            );
            signal_error(self.err.as_ref());
        }
        if self.returns.publish(&mut self.vring) {
            self.notify();
        }
    }

    /// Tells the driver, whatever it asked for.
    pub fn notify(&mut self) {
        let Some(mut call) = self.call.as_ref() else { return };
        match call.write(&1u64.to_ne_bytes()) {
            Ok(_) => {}
            // A full counter is a notification that nobody has taken yet.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                limited!(self.chain.limiters.requests, warn, "{}: cannot notify the front end: {error}", self.name)
            }
        }
    }

    /// Asks the driver not to kick: the worker looks.
    #[inline]
    pub fn stay_awake(&mut self) {
        self.vring.stay_awake();
    }

    /// Asks the driver to kick; `false` when there is work already.
    #[inline]
    pub fn fall_asleep(&mut self) -> bool {
        // Where no more can be taken, the end of an operation wakes the worker.
        if self.full {
            return true;
        }
        if !self.replay.is_empty() {
            return false;
        }
        self.stopped || self.held || self.vring.fall_asleep()
    }

    /// Takes no more heads off the ring.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Takes no heads off the ring until [`Queue::go`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Takes heads off the ring again.
    pub fn go(&mut self) {
        self.held = false;
    }

    /// Whether its chain has stateful targets.
    pub fn is_stateful(&self) -> bool {
        !self.chain.map.targets().is_empty()
    }

    /// Whether nothing is under way.
    pub fn drained(&self) -> bool {
        self.in_flight == 0 && self.replay.is_empty()
    }

    /// Where the ring goes on: the answer to GET_VRING_BASE.
    pub fn next_avail(&self) -> u16 {
        self.vring.next_avail()
    }

    /// Another descriptor to notify by. The driver is told once, for what the old one may have swallowed.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        self.notify();
    }

    /// Ends the queue: its files are forgotten and its memory is let go. It must have drained.
    pub fn end(self, ops: &mut Ops, engine: &mut impl Engine) {
        debug_assert!(self.drained());
        debug_assert_eq!(self.free.len(), self.slots.len());
        self.devices.forget(ops, engine);
        engine.remove_memory(&self.guest);
        self.lane.end();
    }
}

/// What a request is counted as.
#[inline]
fn counted(kind: Kind) -> stats::Kind {
    match kind {
        Kind::Read => stats::Kind::Read,
        Kind::Write => stats::Kind::Write,
        Kind::Flush => stats::Kind::Flush,
        Kind::GetId => stats::Kind::Other,
        Kind::Discard => stats::Kind::Discard,
        Kind::WriteZeroes => stats::Kind::WriteZeroes,
        Kind::Unknown => stats::Kind::Refused,
    }
}

#[cfg(test)]
impl Queue {
    /// Requests that wait for those before them.
    pub(crate) fn held_back(&self) -> usize {
        self.returns.held_back()
    }

    /// Whether the driver can see all that has been given back.
    pub(crate) fn is_published(&self) -> bool {
        !self.vring.unpublished()
    }
}

/// Tells the front end by the descriptor it has set for that (SET_VRING_ERR). One that is not listened to is no harm.
pub fn signal_error(err: Option<&File>) {
    let _ = err.map(|mut err| err.write(&1u64.to_ne_bytes()));
}
