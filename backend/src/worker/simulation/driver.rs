//! The other side of the rings: a driver for each, which acts in small steps at any time and sleeps for certain.
//!
//! A driver looks at the used ring only while it is awake. Before it sleeps it asks to be told and looks once more; then
//! nothing but a notification wakes it. It kicks only when it was asked to. So a wake-up lost by either side shows: both
//! sleep.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::counts::Tally;
use super::traffic::{End, Request, What, loses};
use super::world::World;
use crate::sim::Sim;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
/// What the device finds in memory that it is to write.
const CANARY: u8 = 0xa5;
/// Bytes around such memory that it must not touch.
const FENCE: u64 = 16;

/// Guest memory of all seeds: a page for the rings of each queue, then places for requests, in regions that adjoin each
/// other at odd places, and one apart from them.
pub(super) const REGIONS: [(u64, usize); 4] =
    [(0, 0x1_0000), (0x1_0000, 0x23_5000), (0x24_5000, 0x3b_b000), (1 << 32, 0x20_0000)];

/// Places for requests of at most `size` bytes.
pub(super) fn places(size: u64) -> Vec<u64> {
    let near = (0..0x5f_0000 / size).map(|n| 0x1_0000 + n * size);
    near.chain((0..0x20_0000 / size).map(|n| (1 << 32) + n * size)).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Awake,
    /// Has asked to be told once so many more are used.
    Arming(u16),
    /// Sleeps until it is told that so many more are used.
    Asleep(u16),
}

/// A stretch of guest memory.
#[derive(Clone, Copy)]
struct Stretch {
    at: u64,
    len: u64,
    writable: bool,
}

struct Flight {
    request: Request,
    descriptors: Vec<u16>,
    place: u64,
    stretches: Vec<Stretch>,
    submitted: u64,
    failures: usize,
    alone: bool,
    durable: bool,
    epoch: u64,
    doubt: bool,
    settled: bool,
}

pub(super) struct Driver {
    pub size: u16,
    pub event_idx: bool,
    base: u64,
    /// Next available index, and what of it the device can see.
    next: u16,
    pub shown: u16,
    used: u16,
    /// How far the used index is behind the available index when nothing is under way.
    pub lost: u16,
    free: Vec<u16>,
    flights: HashMap<u16, Flight>,
    /// Used entries that a predecessor of the device has left and the driver has not looked at.
    pub inherited: u16,
    // Heads in the order in which they were made available, where they must come back in it.
    order: Option<VecDeque<u16>>,
    mood: Mood,
    // Available index before the last publication, until the driver has looked whether to kick.
    kick: Option<u16>,
    pub kick_fd: RawFd,
    pub call: File,
    burst: u32,
}

impl Driver {
    pub fn desc(&self) -> u64 {
        self.base + 16
    }

    pub fn avail(&self) -> u64 {
        self.base + 0x802
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x1004
    }

    /// Whether there has been a notification since the last look.
    fn told(&self) -> bool {
        (&self.call).read(&mut [0; 8]).is_ok()
    }
}

/// Everything on the other side.
pub(super) struct Side {
    pub rng: Rng,
    pub world: World,
    pub sim: Sim,
    pub memory: Arc<GuestMemoryMmap<()>>,
    pub pool: Rc<Vec<u8>>,
    pub drivers: Vec<Driver>,
    pub clock: u64,
    pub kicks: u64,
    /// Requests still to be made.
    pub left: u32,
    /// Devices are killed now and then.
    pub kills: bool,
    pub write_through: Arc<AtomicBool>,
    /// Changes with `write_through`.
    pub epoch: u64,
    /// What came back from the process that lives now.
    pub tally: Tally,
    pub places: Vec<u64>,
    pub place_size: u64,
}

impl Side {
    fn get16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("ring memory");
        u16::from_le_bytes(bytes)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("guest memory");
    }

    fn get(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("guest memory");
        bytes
    }

    /// Another ring, at any index. `recorded`: its device keeps a record of what is under way; else heads come back in order.
    pub fn add_driver(&mut self, recorded: bool) {
        let base = self.drivers.len() as u64 * 0x4000;
        let size = 1 << self.rng.u32(0..=5);
        let start = if self.rng.bool() { 0 } else { 65530 + self.rng.u16(..6) };
        // A device that broke off has taken more than it gave back; the driver forgot about them.
        let lost = if recorded || self.kills || self.rng.bool() { 0 } else { self.rng.u16(..) };
        self.put(base, &[0; 0x2000]);
        let mut free: Vec<u16> = (0..size).collect();
        self.rng.shuffle(&mut free);
        let driver = Driver {
            size,
            event_idx: self.rng.bool(),
            base,
            next: start,
            shown: start,
            used: start.wrapping_sub(lost),
            lost,
            free,
            flights: HashMap::new(),
            inherited: 0,
            order: (!recorded).then(VecDeque::new),
            mood: Mood::Awake,
            kick: None,
            kick_fd: -1,
            call: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd").into(),
            burst: 0,
        };
        self.put(driver.avail() + 2, &start.to_le_bytes());
        self.put(driver.used_ring() + 2, &driver.used.to_le_bytes());
        self.drivers.push(driver);
    }

    /// Requests that the drivers have not got back.
    pub fn under_way(&self) -> usize {
        self.drivers.iter().map(|d| d.flights.len()).sum()
    }

    /// Whether all requests were made and have come back.
    pub fn done(&self) -> bool {
        self.left == 0 && self.drivers.iter().all(|d| d.flights.is_empty() && d.burst == 0)
    }

    /// The used index as the device has published it.
    pub fn used_idx(&self, q: usize) -> u16 {
        self.get16(self.drivers[q].used_ring() + 2)
    }

    /// Used entries that the driver has not looked at.
    pub fn unseen(&self, q: usize) -> u16 {
        self.used_idx(q).wrapping_sub(self.drivers[q].used)
    }

    /// Some driver does something, perhaps, or several things in a row: to look and then to sleep takes two.
    pub fn act(&mut self) {
        let steps = match self.rng.u8(..24) {
            0 => 4,
            1..6 => 1,
            _ => return,
        };
        let q = self.rng.usize(..self.drivers.len());
        for _ in 0..steps {
            self.step(q, false);
        }
    }

    /// Holds the device to its word when it has had its turn: who asked to be told has been told.
    pub fn check_told(&mut self, served: impl Fn(usize) -> bool) {
        for q in (0..self.drivers.len()).filter(|q| served(*q)) {
            if let Mood::Asleep(most) = self.drivers[q].mood
                && self.unseen(q) > most
            {
                assert!(self.drivers[q].told(), "queue {q} has used entries, and the driver that sleeps is not told");
                self.wake(q);
            }
        }
    }

    /// One step of a driver; `false` when there is none to do. What can wait is done at once when `now` says so.
    pub fn step(&mut self, q: usize, now: bool) -> bool {
        let driver = &self.drivers[q];
        if driver.kick.is_some() {
            self.look_whether_to_kick(q);
            return true;
        }
        let more = driver.burst > 0 || (driver.flights.is_empty() && self.left > 0);
        let coin = self.rng.bool();
        if driver.next != driver.shown && (now || coin || !more) {
            self.publish(q);
            return true;
        }
        if more && (now || coin) && self.submit(q) {
            return true;
        }
        match self.drivers[q].mood {
            Mood::Asleep(_) => {
                let woken = self.drivers[q].told();
                if woken {
                    self.wake(q);
                }
                woken
            }
            Mood::Arming(most) => {
                if self.unseen(q) > most {
                    self.wake(q);
                } else {
                    self.drivers[q].mood = Mood::Asleep(most);
                }
                true
            }
            Mood::Awake if self.unseen(q) > 0 => {
                self.take_used(q);
                true
            }
            Mood::Awake => self.arm(q),
        }
    }

    fn wake(&mut self, q: usize) {
        self.drivers[q].mood = Mood::Awake;
        if !self.drivers[q].event_idx {
            self.put(self.drivers[q].avail(), &1u16.to_le_bytes());
        }
    }

    /// Asks to be told: of the next used entry, or when most are used.
    fn arm(&mut self, q: usize) -> bool {
        let driver = &self.drivers[q];
        let shown = driver.shown.wrapping_sub(driver.used).wrapping_sub(driver.lost);
        if shown == 0 {
            return false;
        }
        // A notification that came while the driver was awake has had its handler run by now.
        driver.told();
        let delay = if self.rng.bool() { 0 } else { (shown - 1) * 3 / 4 };
        if driver.event_idx {
            let at = driver.avail() + 4 + 2 * u64::from(driver.size);
            self.put(at, &driver.used.wrapping_add(delay).to_le_bytes());
            self.drivers[q].mood = Mood::Arming(delay);
        } else {
            self.put(driver.avail(), &0u16.to_le_bytes());
            self.drivers[q].mood = Mood::Arming(0);
        }
        true
    }

    fn publish(&mut self, q: usize) {
        let driver = &mut self.drivers[q];
        driver.kick = Some(driver.shown);
        driver.shown = driver.next;
        let (at, index) = (driver.avail() + 2, driver.shown);
        self.put(at, &index.to_le_bytes());
    }

    fn look_whether_to_kick(&mut self, q: usize) {
        let Some(old) = self.drivers[q].kick.take() else { return };
        let driver = &self.drivers[q];
        let asked = if driver.event_idx {
            let event = self.get16(driver.used_ring() + 4 + 8 * u64::from(driver.size));
            driver.shown.wrapping_sub(event).wrapping_sub(1) < driver.shown.wrapping_sub(old)
        } else {
            self.get16(driver.used_ring()) & 1 == 0
        };
        if asked {
            self.kicks += 1;
            self.sim.ring(driver.kick_fd);
        }
    }

    fn take_used(&mut self, q: usize) {
        for _ in 0..self.rng.u16(1..=self.unseen(q)) {
            let driver = &self.drivers[q];
            let at = driver.used_ring() + 4 + 8 * u64::from(driver.used % driver.size);
            let entry = self.get(at, 8);
            let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            let (id, len) = (word(0), word(4));
            let driver = &mut self.drivers[q];
            driver.used = driver.used.wrapping_add(1);
            if let Some(order) = &mut driver.order {
                assert_eq!(order.pop_front().map(u32::from), Some(id), "queue {q} gives heads back out of order");
            }
            let flight = u16::try_from(id).ok().and_then(|head| driver.flights.remove(&head));
            let Some(flight) = flight else {
                panic!("queue {q}: the used ring gives back head {id}, which is not under way");
            };
            driver.free.extend(&flight.descriptors);
            let before = self.drivers[q].inherited > 0;
            self.drivers[q].inherited -= u16::from(before);
            self.finish(flight, len, !before);
        }
    }

    /// `tell`: it is one of the process that lives now.
    fn finish(&mut self, flight: Flight, used_len: u32, tell: bool) {
        self.clock += 1;
        let mut written = Vec::new();
        let mut read = Vec::new();
        for s in &flight.stretches {
            if s.writable {
                let around = self.get(s.at - FENCE, s.len + 2 * FENCE);
                let (data, after) = around[FENCE as usize..].split_at(s.len as usize);
                let intact = around[..FENCE as usize] == [CANARY; FENCE as usize] && *after == [CANARY; FENCE as usize];
                assert!(intact, "{:?} wrote beside its buffer", flight.request.what);
                written.extend_from_slice(data);
            } else {
                read.extend(self.get(s.at, s.len));
            }
        }
        assert!(read == flight.request.readable, "{:?} wrote where it may only read", flight.request.what);
        let failures = self.sim.failures(flight.failures);
        for failure in failures.iter().filter(|f| loses(f)) {
            self.world.parts[failure.disk].lost = Some(self.clock);
        }
        let end = End {
            status: written.last().copied().unwrap_or(CANARY),
            used_len,
            data: &written[..written.len().saturating_sub(1)],
            failures: &failures,
            alone: flight.alone,
            durable: flight.durable && flight.epoch == self.epoch,
            doubt: flight.doubt,
            settled: flight.settled,
            submitted: flight.submitted,
            now: self.clock,
        };
        if tell {
            self.tally.came_back(&flight.request, end.status);
        }
        flight.request.finish(&end, &mut self.world, &self.sim);
        self.places.push(flight.place);
    }

    /// Puts another request on the ring; the device sees it when it is published.
    fn submit(&mut self, q: usize) -> bool {
        let driver = &mut self.drivers[q];
        if driver.burst == 0 {
            driver.burst = if self.rng.bool() { 1 } else { self.rng.u32(1..=2 * u32::from(driver.size)) };
            driver.burst = driver.burst.min(self.left);
            self.left -= driver.burst;
        }
        if driver.free.is_empty() || self.places.is_empty() {
            return false;
        }
        let Some(request) = Request::plan(&mut self.rng, &mut self.world, &self.pool) else { return false };
        let place = self.places.swap_remove(self.rng.usize(..self.places.len()));
        let (stretches, end) = self.lay_out(&request, place);
        let (head, descriptors) = self.describe(q, &stretches, end, place);
        self.clock += 1;
        let doubt = self.doubt();
        let settled = self.settled();
        let mut alone = true;
        if request.syncs() {
            for other in self.drivers.iter_mut().flat_map(|d| d.flights.values_mut()).filter(|f| f.request.syncs()) {
                (other.alone, alone) = (false, false);
            }
        }
        let flight = Flight {
            request,
            descriptors,
            place,
            stretches,
            submitted: self.clock,
            failures: self.sim.failure_count(),
            alone,
            durable: self.write_through.load(Ordering::Relaxed),
            epoch: self.epoch,
            doubt,
            settled,
        };
        let driver = &mut self.drivers[q];
        driver.burst -= 1;
        driver.flights.insert(head, flight);
        driver.order.iter_mut().for_each(|order| order.push_back(head));
        let at = driver.avail() + 4 + 2 * u64::from(driver.next % driver.size);
        driver.next = driver.next.wrapping_add(1);
        self.put(at, &head.to_le_bytes());
        true
    }

    /// Whether a sync has failed of which not all is known or mended: what it was for may not be back yet.
    fn doubt(&self) -> bool {
        let mut flights = self.drivers.iter().flat_map(|d| d.flights.values());
        let unsynced = |f: &Flight| self.sim.failures(f.failures).iter().any(loses);
        self.world.has_lost() || flights.any(unsynced)
    }

    /// Whether nothing is under way that was when a failure was seen.
    fn settled(&self) -> bool {
        let last = self.world.parts.iter().filter_map(|part| part.lost).max().unwrap_or(0);
        self.drivers.iter().flat_map(|d| d.flights.values()).all(|f| f.submitted > last)
    }

    /// Cuts a request's bytes into stretches of guest memory and fills them; also returns where free memory begins.
    fn lay_out(&mut self, request: &Request, place: u64) -> (Vec<Stretch>, u64) {
        let mut cuts = Vec::new();
        let readable = request.readable.len() as u64;
        let writable = request.writable as u64 + u64::from(request.what != What::NoStatus);
        // Aligned as drivers do it, or any way the specification allows.
        let tidy = self.rng.u8(..5) < 3;
        let many = self.rng.u16(..400) == 0;
        self.cut(readable, if tidy { 16 } else { 0 }, false, tidy, many, &mut cuts);
        self.cut(writable, if tidy { writable.saturating_sub(1) } else { 0 }, true, tidy, many, &mut cuts);
        let page = if self.rng.bool() { 4096 } else { 512 };
        let mut at = place;
        let mut stretches = Vec::new();
        for (len, writable) in cuts {
            at += FENCE + if many { 0 } else { self.rng.u64(..40) };
            if tidy && len >= 512 {
                at = at.next_multiple_of(page);
            }
            stretches.push(Stretch { at, len, writable });
            at += len + FENCE;
        }
        assert!(at + 1100 * 16 < place + self.place_size, "a request of {} bytes has no room", at - place);
        let mut from = 0;
        for s in &stretches {
            if s.writable {
                self.put(s.at - FENCE, &vec![CANARY; (s.len + 2 * FENCE) as usize]);
            } else {
                self.put(s.at, &request.readable[from as usize..(from + s.len) as usize]);
                from += s.len;
            }
        }
        (stretches, at)
    }

    /// Lengths that make up `total`. `apart`: a border that a tidy driver keeps.
    fn cut(&mut self, total: u64, apart: u64, writable: bool, tidy: bool, many: bool, out: &mut Vec<(u64, bool)>) {
        let mut borders = vec![apart, total];
        if many && total > 1200 {
            borders.extend((1..=500).map(|n| n * 2));
        } else if tidy {
            let sectors = total / 512;
            let from = if writable { 0 } else { 16 };
            borders.extend((0..self.rng.u64(..4)).map(|_| from + self.rng.u64(0..=sectors) * 512));
        } else {
            borders.extend((0..self.rng.u64(..4)).map(|_| self.rng.u64(0..=total)));
        }
        borders.retain(|b| (1..=total).contains(b));
        borders.sort_unstable();
        borders.dedup();
        let mut from = 0;
        for border in borders {
            out.push((border - from, writable));
            from = border;
        }
    }

    /// Describes the stretches, in the ring's table or in one of the request's own; returns the head and what it takes.
    fn describe(&mut self, q: usize, stretches: &[Stretch], end: u64, place: u64) -> (u16, Vec<u16>) {
        let free = self.drivers[q].free.len();
        let indirect = stretches.len() > free || self.rng.u8(..5) < 2;
        let taken = if indirect { 1 } else { stretches.len() };
        let descriptors = self.drivers[q].free.split_off(free - taken);
        let table = end.next_multiple_of(16);
        assert!(table + 16 * stretches.len() as u64 <= place + self.place_size, "an indirect table has no room");
        let ring = self.drivers[q].desc();
        for (i, s) in stretches.iter().enumerate() {
            let (at, next) = match indirect {
                true => (table + 16 * i as u64, i as u16 + 1),
                false => (ring + 16 * u64::from(descriptors[i]), descriptors.get(i + 1).copied().unwrap_or(0)),
            };
            let last = i + 1 == stretches.len();
            let flags = if s.writable { F_WRITE } else { 0 } | if last { 0 } else { F_NEXT };
            self.put(at, &descriptor(s.at, s.len, flags, next));
        }
        if indirect {
            let at = ring + 16 * u64::from(descriptors[0]);
            self.put(at, &descriptor(table, 16 * stretches.len() as u64, F_INDIRECT, 0));
        }
        (descriptors[0], descriptors)
    }
}

fn descriptor(addr: u64, len: u64, flags: u16, next: u16) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&addr.to_le_bytes());
    out[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    out[12..14].copy_from_slice(&flags.to_le_bytes());
    out[14..].copy_from_slice(&next.to_le_bytes());
    out
}
