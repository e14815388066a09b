//! Operations: one piece of a request on one component device, from its start to its last byte.
//!
//! Here short transfers go on where they stopped, transfers that a component cannot take from guest memory as it is go
//! through a bounce buffer, and a device that lacks an operation gets the next best one. What comes out is one verdict.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::device::{DiscardMethod, Flush, Stamp, Unflushed};
use crate::engine::{Command, Engine, FileIx, MAX_SLICES};
use crate::guest::{Buffer, HostSlice};
use crate::stats::Kind;

/// Size of a bounce buffer, in bytes: larger transfers take several turns.
const BOUNCE: usize = 256 << 10;
/// Bounce buffers of one worker; an operation that finds none waits for one.
const BOUNCES: usize = 16;
/// How often EAGAIN is taken for an answer that means "again".
const RETRIES: u8 = 100;

/// A component device as operations see it.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The file, known to the engine.
    pub file: FileIx,
    /// Addresses and lengths of transfers must have none of these bits set (O_DIRECT); 0 when anything goes.
    pub mask: usize,
    /// How it discards.
    pub discard: Option<DiscardMethod>,
    /// Where it is remembered what a flush must make durable.
    pub unflushed: Option<UnflushedIx>,
}

/// What [`Ops::remember`] gave.
#[derive(Clone, Copy, Debug)]
pub struct UnflushedIx(u32);

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Device to guest.
    Read,
    /// Guest to device.
    Write {
        /// Complete only when it is on stable storage.
        durable: bool,
    },
    /// Make completed writes durable.
    Flush,
    /// Free a range.
    Discard,
    /// Zero a range.
    Zero {
        /// Its space may be freed.
        unmap: bool,
        /// Complete only when it is on stable storage.
        durable: bool,
    },
}

impl Action {
    /// What it counts as.
    #[inline]
    pub fn kind(self) -> Kind {
        match self {
            Action::Read => Kind::Read,
            Action::Write { .. } => Kind::Write,
            Action::Flush => Kind::Flush,
            Action::Discard => Kind::Discard,
            Action::Zero { .. } => Kind::WriteZeroes,
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Action::Read => "read",
            Action::Write { .. } => "write",
            Action::Flush => "flush",
            Action::Discard => "discard",
            Action::Zero { .. } => "write-zeroes",
        })
    }
}

/// The request that an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index of the queue in its worker.
    pub queue: u32,
    /// Index of the slot in its queue.
    pub slot: u32,
    /// The segment that it concerns, as a place in the map; or [`NO_SEGMENT`].
    pub segment: u32,
}

impl Owner {
    /// In a slot number: it is not a request's, but that of an operation of one of the queue's tasks.
    const TASK: u32 = 1 << 31;

    /// An operation of a task.
    pub(super) fn task(queue: u32, join: u32) -> Owner {
        Owner { queue, slot: join | Owner::TASK, segment: NO_SEGMENT }
    }

    /// Its number, if it is one of a task.
    #[inline]
    pub(super) fn join(&self) -> Option<u32> {
        (self.slot & Owner::TASK != 0).then_some(self.slot & !Owner::TASK)
    }
}

/// Of an operation that concerns the device as a whole.
pub const NO_SEGMENT: u32 = u32::MAX;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whose it was.
    pub owner: Owner,
    /// What it did.
    pub action: Action,
    /// The device, as an index into the chain's components.
    pub device: u16,
    /// Where on the device it began, in bytes.
    pub at: u64,
    /// Bytes that it was for.
    pub len: u64,
    /// 0, or the errno it failed with.
    pub errno: i32,
}

/// An operation that its device has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// What it does.
    pub action: Action,
    /// The device, as an index into the chain's components.
    pub device: u16,
    /// Where on the device it goes on, in bytes.
    pub at: u64,
    /// Bytes that are left of it.
    pub left: u64,
}

/// The command an operation has at the device now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Transfer,
    Sync,
    BlockDiscard,
    PunchHole,
    ZeroRange,
    WriteZeroes,
}

struct Op {
    owner: Owner,
    action: Action,
    step: Step,
    index: u16,
    device: Device,
    begin: u64,
    at: u64,
    left: u64,
    // What is still to be transferred: data[first..].
    data: Vec<HostSlice>,
    first: usize,
    bounce: Option<Buffer>,
    bounced: bool,
    retries: u8,
    began: Stamp,
    flush: Option<Flush>,
}

/// All operations of a worker. Their places, and the lists in them, are used over and over.
pub struct Ops {
    ops: Vec<Op>,
    free: Vec<u32>,
    buffers: Vec<Buffer>,
    made: usize,
    waiting: VecDeque<u32>,
    zeroes: Buffer,
    unflushed: Vec<Option<Arc<Unflushed>>>,
}

/// A new operation on its way to [`Ops::start`]: the caller fills `data`.
pub struct Draft<'a> {
    token: u32,
    /// Slices of the transfer, in order.
    pub data: &'a mut Vec<HostSlice>,
}

impl Draft<'_> {
    /// For [`Ops::start`].
    pub fn token(&self) -> u32 {
        self.token
    }
}

impl Ops {
    /// None under way.
    ///
    /// # Errors
    /// No memory for the first buffers; with them, every operation gets its turn.
    pub fn new() -> std::io::Result<Ops> {
        Ok(Ops {
            ops: Vec::new(),
            free: Vec::new(),
            buffers: vec![Buffer::new(BOUNCE)?],
            made: 1,
            waiting: VecDeque::new(),
            zeroes: Buffer::new(BOUNCE)?,
            unflushed: Vec::new(),
        })
    }

    /// Takes part in the book-keeping of a component.
    pub fn remember(&mut self, unflushed: &Arc<Unflushed>) -> UnflushedIx {
        let free = self.unflushed.iter().position(Option::is_none);
        let index = free.unwrap_or(self.unflushed.len());
        self.unflushed.resize(self.unflushed.len().max(index + 1), None);
        self.unflushed[index] = Some(unflushed.clone());
        UnflushedIx(index as u32)
    }

    /// Ends that. No operation with it may be under way.
    pub fn forget(&mut self, index: UnflushedIx) {
        if let Some(unflushed) = self.unflushed.get_mut(index.0 as usize) {
            *unflushed = None;
        }
    }

    /// Operations that have been drafted and have no verdict yet.
    #[inline]
    pub fn under_way(&self) -> usize {
        self.ops.len() - self.free.len()
    }

    /// Those of a queue, in no order.
    pub fn list(&self, queue: u32) -> Vec<UnderWay> {
        let free: std::collections::HashSet<u32> = self.free.iter().copied().collect();
        let ops = (0..).zip(&self.ops).filter(|(token, op)| op.owner.queue == queue && !free.contains(token));
        let told = |(_, op): (u32, &Op)| UnderWay { action: op.action, device: op.index, at: op.at, left: op.left };
        ops.map(told).collect()
    }

    /// Takes a place for an operation on bytes `[at, at + len)` of a device.
    #[inline]
    pub fn draft(&mut self, owner: Owner, action: Action, index: u16, device: Device, at: u64, len: u64) -> Draft<'_> {
        let token = match self.free.pop() {
            Some(token) => token,
            None => {
                self.ops.push(Op {
                    owner,
                    action,
                    step: Step::Transfer,
                    index,
                    device,
                    begin: at,
                    at,
                    left: len,
                    data: Vec::new(),
                    first: 0,
                    bounce: None,
                    bounced: false,
                    retries: 0,
                    began: Stamp::default(),
                    flush: None,
                });
                (self.ops.len() - 1) as u32
            }
        };
        let op = &mut self.ops[token as usize];
        (op.owner, op.action, op.index, op.device) = (owner, action, index, device);
        (op.begin, op.at, op.left) = (at, at, len);
        (op.first, op.bounced, op.retries) = (0, false, 0);
        op.data.clear();
        op.flush = None;
        if let Some(unflushed) = of(&self.unflushed, device)
            && action != Action::Read
        {
            op.began = unflushed.stamp();
        }
        op.step = match action {
            Action::Read | Action::Write { .. } => Step::Transfer,
            Action::Flush => Step::Sync,
            Action::Discard if device.discard == Some(DiscardMethod::BlockCommand) => Step::BlockDiscard,
            Action::Discard | Action::Zero { unmap: true, .. } => Step::PunchHole,
            Action::Zero { unmap: false, .. } => Step::ZeroRange,
        };
        Draft { token, data: &mut op.data }
    }

    /// Starts a drafted operation.
    #[inline]
    pub fn start(&mut self, engine: &mut impl Engine, token: u32) {
        let op = &mut self.ops[token as usize];
        if op.step == Step::Transfer && op.device.mask != 0 {
            op.bounced = op.data.len() > MAX_SLICES || op.misaligned();
        }
        if op.step == Step::Sync {
            op.flush = of(&self.unflushed, op.device).map(|unflushed| unflushed.begin());
        }
        self.issue(engine, token);
    }

    /// Sends the command of the current step.
    fn issue(&mut self, engine: &mut impl Engine, token: u32) {
        if self.ops[token as usize].bounced && !self.bounce(token) {
            self.waiting.push_back(token);
            return;
        }
        if self.ops[token as usize].step == Step::WriteZeroes {
            self.lay_zeroes(token);
        }
        let op = &self.ops[token as usize];
        let (at, len) = (op.at, op.left);
        let durable = matches!(op.action, Action::Write { durable: true } | Action::Zero { durable: true, .. });
        let buffer;
        let data = match &op.bounce {
            Some(bounce) => {
                buffer = [bounce.slice().part(0, BOUNCE.min(len as usize))];
                &buffer[..]
            }
            None => &op.data[op.first..],
        };
        let command = match op.step {
            Step::Transfer if op.action == Action::Read => Command::Read { data, at },
            Step::Transfer | Step::WriteZeroes => Command::Write { data, at, durable },
            Step::Sync => Command::Sync,
            Step::BlockDiscard => Command::BlockDiscard { at, len },
            Step::PunchHole => Command::PunchHole { at, len },
            Step::ZeroRange => Command::ZeroRange { at, len },
        };
        engine.start(op.device.file, command, token);
    }

    /// Takes a bounce buffer, and fills it for a write; `false` when all are in use.
    fn bounce(&mut self, token: u32) -> bool {
        let op = &mut self.ops[token as usize];
        if op.bounce.is_none() {
            op.bounce = match self.buffers.pop() {
                Some(buffer) => Some(buffer),
                None if self.made < BOUNCES => Buffer::new(BOUNCE).ok().inspect(|_| self.made += 1),
                None => None,
            };
        }
        let Some(buffer) = &op.bounce else { return false };
        if op.action != Action::Read {
            let mut filled = 0;
            for slice in &op.data[op.first..] {
                if filled == BOUNCE {
                    break;
                }
                filled += buffer.slice().part(filled, BOUNCE).copy_from(slice);
            }
        }
        true
    }

    /// Points an operation at a buffer of zeroes as often as it takes.
    fn lay_zeroes(&mut self, token: u32) {
        let op = &mut self.ops[token as usize];
        op.data.clear();
        op.first = 0;
        let mut left = op.left;
        while left > 0 && op.data.len() < 16 {
            let slice = self.zeroes.slice().part(0, left.min(BOUNCE as u64) as usize);
            left -= slice.len() as u64;
            op.data.push(slice);
        }
    }

    /// Takes a command's result; the operation's verdict when that was its last command.
    #[inline]
    pub fn complete(&mut self, engine: &mut impl Engine, token: u32, result: i32) -> Option<Verdict> {
        let errno = match self.advance(token, result) {
            Next::Done => 0,
            Next::Failed(errno) => errno,
            Next::Again => {
                self.issue(engine, token);
                return None;
            }
        };
        let op = &mut self.ops[token as usize];
        let errno = match of(&self.unflushed, op.device) {
            Some(unflushed) if op.action != Action::Read => op.account(unflushed, errno),
            _ => errno,
        };
        let verdict = Verdict {
            owner: op.owner,
            action: op.action,
            device: op.index,
            at: op.begin,
            len: op.at + op.left - op.begin,
            errno,
        };
        if let Some(buffer) = op.bounce.take() {
            self.buffers.push(buffer);
            if let Some(next) = self.waiting.pop_front() {
                self.issue(engine, next);
            }
        }
        self.free.push(token);
        Some(verdict)
    }

    #[inline]
    fn advance(&mut self, token: u32, result: i32) -> Next {
        let op = &mut self.ops[token as usize];
        if result < 0 {
            return op.refused(-result);
        }
        match op.step {
            Step::Transfer | Step::WriteZeroes => {
                let n = (result as u64).min(op.left);
                if n == 0 {
                    // The device ends before the segment does: it has shrunk since it was opened.
                    return Next::Failed(libc::EIO);
                }
                op.retries = 0;
                op.at += n;
                op.left -= n;
                op.take(n as usize);
                if op.left == 0 {
                    return Next::Done;
                }
                // A short transfer may end where the next one must not begin.
                op.bounced |= op.step == Step::Transfer && op.device.mask != 0 && op.misaligned();
                Next::Again
            }
            Step::Sync => Next::Done,
            _ if matches!(op.action, Action::Zero { durable: true, .. }) => {
                op.step = Step::Sync;
                if let Some(unflushed) = of(&self.unflushed, op.device) {
                    unflushed.written(op.bytes(), op.began);
                    op.flush = Some(unflushed.begin());
                }
                Next::Again
            }
            _ => Next::Done,
        }
    }
}

#[inline]
fn of(all: &[Option<Arc<Unflushed>>], device: Device) -> Option<&Unflushed> {
    all.get(device.unflushed?.0 as usize)?.as_deref()
}

enum Next {
    Done,
    Again,
    Failed(i32),
}

impl Op {
    /// All that it is for.
    #[inline]
    fn bytes(&self) -> Range<u64> {
        self.begin..self.at + self.left
    }

    /// Remembers what it has written; the errno that it ends with, as a flush may succeed and not be believed.
    #[inline]
    fn account(&mut self, unflushed: &Unflushed, errno: i32) -> i32 {
        let durable = matches!(self.action, Action::Write { durable: true } | Action::Zero { durable: true, .. });
        let believed = match self.flush.take() {
            Some(flush) => {
                let believed = unflushed.end(flush, errno == 0);
                // What was zeroed before another flush failed may have been dropped by that: its own flush finds nothing to do.
                let believed = believed && !(durable && flush.began().failed_since(self.began));
                if believed && durable {
                    // Its own bytes are on the disk, whatever has become of others.
                    unflushed.written_durably(self.bytes(), flush.began());
                }
                believed && (durable || !flush.began().lost())
            }
            None => {
                match (durable, errno) {
                    (false, 0) => unflushed.written(self.bytes(), self.began),
                    (true, 0) => unflushed.written_durably(self.bytes(), self.began),
                    (true, _) if matches!(self.step, Step::Transfer | Step::WriteZeroes) => unflushed.failed_durably(),
                    _ => {}
                }
                true
            }
        };
        if errno == 0 && !believed { libc::EIO } else { errno }
    }

    /// Whether the device cannot take what is left from where it lies.
    fn misaligned(&self) -> bool {
        self.data[self.first..].iter().any(|s| (s.addr() | s.len()) & self.device.mask != 0)
    }

    /// Moves on by `n` transferred bytes; what was read by way of a bounce buffer goes to the guest.
    #[inline]
    fn take(&mut self, n: usize) {
        let mut taken = 0;
        while taken < n && self.first < self.data.len() {
            let slice = self.data[self.first];
            let here = slice.len().min(n - taken);
            if let (Some(bounce), Action::Read) = (&self.bounce, self.action) {
                slice.part(0, here).copy_from(&bounce.slice().part(taken, here));
            }
            taken += here;
            if here == slice.len() {
                self.first += 1;
            } else {
                self.data[self.first] = slice.part(here, slice.len());
            }
        }
    }

    /// What to do about an error: again, by other means, or nothing.
    #[cold]
    fn refused(&mut self, errno: i32) -> Next {
        if matches!(errno, libc::EAGAIN | libc::EINTR) && self.retries < RETRIES {
            self.retries += 1;
            return Next::Again;
        }
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::ENODEV);
        self.step = match (self.step, self.action) {
            (Step::BlockDiscard, _) if unsupported => Step::PunchHole,
            (Step::PunchHole, Action::Zero { .. }) if unsupported => Step::ZeroRange,
            (Step::ZeroRange, _) if unsupported => Step::WriteZeroes,
            _ => return Next::Failed(errno),
        };
        Next::Again
    }
}

#[cfg(test)]
impl Ops {
    /// Fails unless all places and bounce buffers have been given back.
    pub(crate) fn check_idle(&self) {
        assert_eq!(self.under_way(), 0, "operations without a verdict");
        assert_eq!(self.buffers.len(), self.made, "bounce buffers not given back");
        assert!(self.waiting.is_empty(), "operations wait for a bounce buffer");
    }
}
