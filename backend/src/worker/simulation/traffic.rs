//! Requests, and what may become of them.

use fastrand::Rng;
use virtio_bindings::bindings::virtio_blk as blk;

use super::world::{Bytes, Spot, Version, World, content, mixed};
use crate::request::ID_LEN;
use crate::sim::{DISCARDED, Failure, Kind, SECTOR, Sim};

pub(super) const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
pub(super) const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
pub(super) const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

pub(super) const SERIAL: [u8; ID_LEN] = *b"twenty bytes of name";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Read,
    Write,
    Flush,
    Discard,
    Zeroes,
    GetId,
    Unknown,
    /// No place for a status.
    NoStatus,
    /// Half a header.
    NoHeader,
}

/// A sector of a component that a request is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch {
    pub part: usize,
    pub at: u64,
    /// See [`World::place`].
    pub piece: u64,
    /// Which of the request's sectors it is.
    pub index: usize,
}

#[derive(Debug)]
pub(super) struct Request {
    pub what: What,
    /// Header and data that the device reads.
    pub readable: Vec<u8>,
    /// Bytes that the device writes, without the status.
    pub writable: usize,
    pub touched: Vec<Touch>,
    /// Sectors of the disk that it is for: first sector, number.
    pub ranges: Vec<(u64, u64)>,
    /// Sectors that read as zeroes, by their index in the request.
    zero: Vec<usize>,
    fails: bool,
    /// The status, where the devices have no part in it.
    fixed: Option<u8>,
}

impl Request {
    fn new(what: What, code: u32, at: u64) -> Request {
        let mut readable = Vec::new();
        readable.extend(code.to_le_bytes());
        readable.extend([0; 4]);
        readable.extend(at.to_le_bytes());
        let (touched, ranges, zero) = (Vec::new(), Vec::new(), Vec::new());
        Request { what, readable, writable: 0, touched, ranges, zero, fails: false, fixed: None }
    }

    pub fn syncs(&self) -> bool {
        matches!(self.what, What::Flush | What::Zeroes)
    }

    fn touch(&mut self, world: &World, at: u64, sectors: u64) {
        let legs = matches!(self.what, What::Discard | What::Zeroes);
        self.ranges.push((at, sectors));
        let first = self.touched.len() + self.zero.len();
        for i in 0..sectors {
            let index = first + i as usize;
            match world.place(at + i, legs) {
                (Spot::Component(part, at), piece) => self.touched.push(Touch { part, at, piece, index }),
                (Spot::Zero, _) => self.zero.push(index),
                (Spot::Error, _) => self.fails = true,
            }
        }
    }

    /// A request that is in no other's way, or none.
    pub fn plan(rng: &mut Rng, world: &mut World, pool: &[u8]) -> Option<Request> {
        for _ in 0..6 {
            let request = match rng.u8(..40) {
                0..14 => transfer(rng, world, What::Read),
                14..27 => transfer(rng, world, What::Write),
                27..31 => Request::new(What::Flush, blk::VIRTIO_BLK_T_FLUSH, 0),
                31..34 => ranges(rng, world, What::Discard),
                34..37 => ranges(rng, world, What::Zeroes),
                37 => wrong(rng, world),
                _ => other(rng),
            };
            if request.touched.iter().all(|t| !world.sector((t.part, t.at)).busy) {
                let mut request = request;
                request.promise(rng, world, pool);
                return Some(request);
            }
        }
        None
    }

    /// Enters into the model what may come of it.
    fn promise(&mut self, rng: &mut Rng, world: &mut World, pool: &[u8]) {
        if self.what == What::Write && self.fixed.is_none() {
            let sectors = (self.readable.len() - 16) / SECTOR;
            for i in 0..sectors {
                self.readable[16 + i * SECTOR..][..SECTOR].copy_from_slice(&content(rng, pool)[..]);
            }
        }
        for touch in &self.touched {
            let may: &[Bytes] = match self.what {
                What::Write => {
                    let at = 16 + touch.index * SECTOR;
                    &[self.readable[at..at + SECTOR].try_into().expect("a sector")]
                }
                What::Zeroes => &[[0; SECTOR]],
                What::Discard => &[[0; SECTOR], [DISCARDED; SECTOR]],
                _ => &[],
            };
            let sector = world.sector((touch.part, touch.at));
            sector.busy = true;
            let may =
                may.iter().map(|bytes| Version { bytes: Box::new(*bytes), done: None, durable: false, failed: false });
            sector.versions.extend(may);
        }
    }

    /// Whether a failure that was made up is one of this request's.
    fn hit(&self, failure: &Failure, piece: Option<u64>) -> bool {
        failure.kind != Kind::Sync
            && self.touched.iter().any(|t| {
                let at = t.at * SECTOR as u64;
                let inside = failure.at < at + SECTOR as u64 && at < failure.at + failure.len;
                t.part == failure.disk && inside && piece.is_none_or(|piece| t.piece == piece)
            })
    }

    /// The statuses that are right. `alone`: no other request has synced meanwhile.
    fn statuses(&self, world: &World, end: &End<'_>) -> Vec<u8> {
        let (failures, alone) = (end.failures, end.alone);
        if let Some(status) = self.fixed {
            return vec![status];
        }
        let mut right = Vec::new();
        if self.fails || failures.iter().any(|f| self.hit(f, None)) {
            right.push(IOERR);
        }
        let refuses = |t: &Touch| !world.parts[t.part].discards().0;
        if self.what == What::Discard && self.touched.iter().any(refuses) {
            right.push(UNSUPP);
        }
        let sure = !right.is_empty();
        if self.syncs() {
            let mut unsynced = failures.iter().filter(|f| f.kind == Kind::Sync).map(|f| f.disk).peekable();
            // A flush may go to more devices than the disk's data can be on.
            let must = |disk: usize| match self.what {
                What::Flush => world.flush_set.contains(&disk),
                _ => self.touched.iter().any(|t| t.part == disk),
            };
            if unsynced.peek().is_some() && !world.read_only {
                right.push(IOERR);
                if !(sure || alone && unsynced.any(must)) {
                    right.push(OK);
                }
            }
        }
        // A flush fails as long as anything is lost, and is not believed where another has failed meanwhile.
        let unsure = end.doubt || failures.iter().any(loses);
        if unsure && self.syncs() && !world.read_only && !right.contains(&IOERR) {
            right.extend([IOERR, OK]);
        }
        if right.is_empty() {
            right.push(OK);
        }
        right
    }

    /// Bytes that the used entry must say were written.
    fn used_len(&self, status: u8) -> u32 {
        match (self.what, status) {
            (What::NoStatus, _) => 0,
            (What::Read, OK) => self.writable as u32 + 1,
            (What::GetId, OK) => ID_LEN as u32 + 1,
            _ => 1,
        }
    }

    /// Judges what the driver got, and moves the model on.
    pub fn finish(&self, end: &End<'_>, world: &mut World, sim: &Sim) {
        let right = self.statuses(world, end);
        assert!(
            self.what == What::NoStatus || right.contains(&end.status),
            "{:?} ended with status {}, right is {right:?}; failures made up: {:?}",
            self.what,
            end.status,
            end.failures
        );
        assert_eq!(end.used_len, self.used_len(end.status), "used length of {:?}, status {}", self.what, end.status);
        if end.status == OK {
            match self.what {
                What::Read => self.check_read(end.data, world),
                What::GetId => assert_eq!(end.data[..ID_LEN], SERIAL),
                What::Flush if !world.read_only => {
                    for number in world.flush_set.clone() {
                        let part = &mut world.parts[number];
                        part.flushed = part.flushed.max(end.submitted);
                        part.lost = part.lost.filter(|since| !end.settled || *since >= end.submitted);
                        sim.look_durable(number, |image| world.check_durable(number, image));
                    }
                }
                _ => {}
            }
        }
        for touch in &self.touched {
            let piece_failed = end.status != OK && end.failures.iter().any(|f| self.hit(f, Some(touch.piece)));
            self.finish_sector(touch, piece_failed, end, world, sim);
        }
    }

    fn check_read(&self, data: &[u8], world: &mut World) {
        for touch in &self.touched {
            let seen = &data[touch.index * SECTOR..][..SECTOR];
            let right = world.sector((touch.part, touch.at)).now() == seen;
            assert!(
                right,
                "a read of sector {} of c{} gave other bytes (sector {} of the request)",
                touch.at, touch.part, touch.index
            );
        }
        for index in &self.zero {
            assert!(data[index * SECTOR..][..SECTOR] == [0; SECTOR], "a zero sector does not read as zeroes");
        }
    }

    fn finish_sector(&self, touch: &Touch, failed: bool, end: &End<'_>, world: &mut World, sim: &Sim) {
        let (works, zeroes) = world.parts[touch.part].discards();
        let sector = world.sector((touch.part, touch.at));
        sector.busy = false;
        if self.what == What::Read {
            return;
        }
        let old = *sector.now();
        let seen: Bytes = sim
            .look(touch.part, |bytes| bytes[touch.at as usize * SECTOR..][..SECTOR].try_into())
            .expect("a whole sector");
        let new = *sector.versions.last().expect("what it was to become").bytes;
        let right = match self.what {
            What::Discard if !works => seen == old,
            What::Discard if failed || !zeroes => [old, [0; SECTOR], [DISCARDED; SECTOR]].contains(&seen),
            What::Discard => seen == [0; SECTOR],
            _ => seen == new || (failed && mixed(&old, &new, &seen)),
        };
        assert!(
            right,
            "sector {} of c{} after {:?} with status {} ({}) is wrong",
            touch.at,
            touch.part,
            self.what,
            end.status,
            if failed { "its operation failed" } else { "its operation did not fail" }
        );
        let durable = end.durable && end.status == OK && matches!(self.what, What::Write | What::Zeroes);
        sector.versions.push(Version { bytes: Box::new(seen), done: Some(end.now), durable, failed });
        if durable {
            let there = sim.look_durable(touch.part, |b| b[touch.at as usize * SECTOR..][..SECTOR] == seen);
            assert!(
                there,
                "sector {} of c{} is not durable after a write-through {:?}",
                touch.at, touch.part, self.what
            );
        }
    }
}

/// Whether a failure may mean that something is lost that was written before.
pub(super) fn loses(failure: &Failure) -> bool {
    matches!(failure.kind, Kind::Sync | Kind::Write { durable: true })
}

/// What the driver got, and what it knows about it.
pub(super) struct End<'a> {
    pub status: u8,
    pub used_len: u32,
    pub data: &'a [u8],
    pub failures: &'a [Failure],
    pub alone: bool,
    /// Write-through was on all the time.
    pub durable: bool,
    /// A sync may have failed before, of which the driver did not know all.
    pub doubt: bool,
    /// When it was submitted nothing was under way that had been when the last failure was seen.
    pub settled: bool,
    pub submitted: u64,
    pub now: u64,
}

/// A range of the disk, short ones preferred; without sectors where the disk has no whole block.
fn range(rng: &mut Rng, world: &World) -> (u64, u64) {
    let blocks = world.len / world.block;
    let most = match rng.u8(..16) {
        0 if world.large => 900,
        0..3 => 64,
        3..8 => 1,
        _ => 12,
    };
    let at = rng.u64(..blocks);
    let len = rng.u64(1..=most).div_ceil(world.block).min(blocks - at);
    (at * world.block, len * world.block)
}

fn transfer(rng: &mut Rng, world: &World, what: What) -> Request {
    let (at, mut sectors) = range(rng, world);
    if rng.u8(..50) == 0 {
        sectors = 0;
    }
    let bytes = sectors as usize * SECTOR;
    let mut request = if what == What::Read {
        let mut request = Request::new(what, blk::VIRTIO_BLK_T_IN, at);
        request.writable = bytes;
        request
    } else {
        let mut request = Request::new(what, blk::VIRTIO_BLK_T_OUT, at);
        request.readable.extend(vec![0; bytes]);
        request
    };
    if what == What::Write && world.read_only {
        request.fixed = Some(IOERR);
    } else {
        request.touch(world, at, sectors);
    }
    request
}

fn ranges(rng: &mut Rng, world: &World, what: What) -> Request {
    let code = if what == What::Discard { blk::VIRTIO_BLK_T_DISCARD } else { blk::VIRTIO_BLK_T_WRITE_ZEROES };
    let mut request = Request::new(what, code, 0);
    if world.read_only {
        request.fixed = Some(IOERR);
    } else if what == What::Discard && !world.discard {
        request.fixed = Some(UNSUPP);
    }
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for _ in 0..rng.usize(1..=3) {
        let (at, len) = range(rng, world);
        if taken.iter().any(|(a, l)| at < a + l && *a < at + len) {
            continue;
        }
        taken.push((at, len));
        let flags = u32::from(what == What::Zeroes && rng.bool());
        request.readable.extend(at.to_le_bytes());
        request.readable.extend((len as u32).to_le_bytes());
        request.readable.extend(flags.to_le_bytes());
        if request.fixed.is_none() {
            request.touch(world, at, len);
        }
    }
    request
}

/// A request that is refused as a whole.
fn wrong(rng: &mut Rng, world: &World) -> Request {
    let past = world.len - rng.u64(..world.len.min(4));
    let mut request = match rng.u8(..6) {
        0 => {
            let mut request = Request::new(What::Read, blk::VIRTIO_BLK_T_IN, past);
            request.writable = 5 * SECTOR;
            request
        }
        1 => {
            let mut request = Request::new(What::Write, blk::VIRTIO_BLK_T_OUT, past);
            request.readable.resize(16 + 5 * SECTOR, 7);
            request
        }
        2 => {
            let mut request = Request::new(What::Write, blk::VIRTIO_BLK_T_OUT, 0);
            request.readable.resize(16 + rng.usize(1..SECTOR), 7);
            request
        }
        3 => {
            let mut request = Request::new(What::Zeroes, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0);
            request.readable.extend(past.to_le_bytes());
            request.readable.extend([5, 0, 0, 0, 0, 0, 0, 0]);
            request
        }
        4 => {
            let mut request = Request::new(What::NoStatus, blk::VIRTIO_BLK_T_OUT, 0);
            request.readable.resize(16 + SECTOR, 7);
            request
        }
        _ => {
            let mut request = Request::new(What::NoHeader, blk::VIRTIO_BLK_T_OUT, 0);
            request.readable.truncate(rng.usize(1..16));
            request
        }
    };
    request.fixed = Some(IOERR);
    request
}

fn other(rng: &mut Rng) -> Request {
    match rng.u8(..3) {
        0 => {
            let mut request = Request::new(What::Unknown, 77, 0);
            request.fixed = Some(UNSUPP);
            request
        }
        _ => {
            let mut request = Request::new(What::GetId, blk::VIRTIO_BLK_T_GET_ID, 0);
            request.writable = ID_LEN + rng.usize(..10);
            request.fixed = Some(OK);
            request
        }
    }
}
