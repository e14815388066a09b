//! `ebs`: a device of large blocks, shown as one of small blocks (dm-ebs-target.c).
//!
//! Where a write covers a part of an underlying block, the block is read, changed and written; until that is done nobody
//! else writes to it, so that of two writes to one block neither loses what the other has written.

use std::sync::Arc;

use super::ranges::Ranges;
use super::{Cx, Io, LONGEST, Target};
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;
use dm_table::SECTOR_SIZE;

/// Sectors that are copied at a time, if blocks are not larger.
const BITE: u64 = 512;

/// See the module's text.
pub struct Ebs {
    leg: Leg,
    // Sectors of the line: the last block may be a part of one.
    len: u64,
    // Sectors of an underlying block: a power of two.
    block: u64,
    // What is read and written as a whole: a block, or as much of a huge one as there are buffers for.
    unit: u64,
    busy: Arc<Ranges>,
}

fn bytes(sectors: u64) -> usize {
    (sectors * SECTOR_SIZE) as usize
}

impl Ebs {
    /// A line of `len` sectors over blocks of so many sectors, a power of two. `leg` begins on one, and ends on one or where
    /// its device's own, smaller blocks do.
    pub fn new(leg: Leg, len: u64, block: u64) -> Ebs {
        let unit = block.min(LONGEST as u64 / SECTOR_SIZE);
        Ebs { leg, len, block, unit, busy: Arc::default() }
    }

    fn is_whole(&self, at: u64, len: u64) -> bool {
        let end = at + len;
        at.is_multiple_of(self.unit) && (end.is_multiple_of(self.unit) || end == self.len)
    }

    /// Of `at..end`, what is copied next: whole units, in sectors.
    fn bite(&self, at: u64, end: u64) -> (u64, u64) {
        let first = at - at % self.unit;
        let last = end.next_multiple_of(self.unit).min(first + self.unit.max(BITE));
        (first, last.min(self.len))
    }

    async fn read(&self, cx: &Cx, at: u64, len: u64, data: &[HostSlice]) -> Result<(), i32> {
        let (mut cursor, mut next, end, mut result) = (Cursor::new(data), at, at + len, Ok(()));
        while next < end {
            let (first, last) = self.bite(next, end);
            let take = end.min(last) - next;
            let lease = cx.buffer(bytes(last - first)).await?;
            let all = lease.slice().part(0, bytes(last - first));
            match cx.io(&self.leg, Action::Read, first, last - first, vec![all]).await {
                Ok(()) => {
                    let mut from = all.part(bytes(next - first), bytes(take));
                    cursor.take(bytes(take) as u64, |to| from = from.part(to.copy_from(&from), from.len()));
                }
                Err(errno) => {
                    result = result.and(Err(errno));
                    cursor.skip(bytes(take) as u64);
                }
            }
            next += take;
        }
        result
    }

    /// Writes `data`, or zeros without.
    async fn write(&self, cx: &Cx, at: u64, len: u64, data: Option<&[HostSlice]>, durable: bool) -> Result<(), i32> {
        let (mut cursor, mut next, end, mut result) = (data.map(Cursor::new), at, at + len, Ok(()));
        while next < end {
            let (first, last) = self.bite(next, end);
            let take = end.min(last) - next;
            let lease = cx.buffer(bytes(last - first)).await?;
            let all = lease.slice().part(0, bytes(last - first));
            let there = self.edges(cx, &all, (first, last), (next, next + take)).await;
            let mut to = all.part(bytes(next - first), bytes(take));
            match &mut cursor {
                Some(cursor) => cursor.take(bytes(take) as u64, |from| to = to.part(to.copy_from(&from), to.len())),
                None => to.fill_zero(),
            }
            let written = match there {
                Ok(()) => cx.io(&self.leg, Action::Write { durable }, first, last - first, vec![all]).await,
                failed => failed,
            };
            result = result.and(written);
            next += take;
        }
        result
    }

    /// Reads the units at the ends of `first..last` of which `from..to` leaves something as it is.
    async fn edges(&self, cx: &Cx, all: &HostSlice, cover: (u64, u64), kept: (u64, u64)) -> Result<(), i32> {
        let ((first, last), (from, to)) = (cover, kept);
        let tail = (last - 1) - (last - 1) % self.unit;
        let head = from > first || (to < last && tail == first);
        let tail = (to < last && tail > first).then_some(tail);
        if !head && tail.is_none() {
            return Ok(());
        }
        let head = head.then(|| (first, last.min(first + self.unit)));
        let ends = [head, tail.map(|tail| (tail, last))];
        let ends = || ends.iter().flatten().map(|(from, to)| (*from, to - from));
        let data = ends().map(|(at, len)| all.part(bytes(at - first), bytes(len))).collect();
        cx.parts(Action::Read, data, |parts| ends().for_each(|(at, len)| parts.add(&self.leg, at, len))).await
    }

    async fn zero(&self, cx: &Cx, at: u64, len: u64, action: Action, durable: bool) -> Result<(), i32> {
        let end = at + len;
        let first = at.next_multiple_of(self.unit).min(end);
        let last = if end == self.len { end } else { end - end % self.unit }.max(first);
        let before = self.write(cx, at, first - at, None, durable).await;
        let within = match last - first {
            0 => Ok(()),
            len => cx.io(&self.leg, action, first, len, Vec::new()).await,
        };
        let after = self.write(cx, last, end - last, None, durable).await;
        before.and(within).and(after)
    }
}

impl Target for Ebs {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let Io { action, mut at, mut len, data } = io;
        if action == Action::Discard {
            // What is not the whole of a block keeps what is in it.
            let (first, last) = (at.next_multiple_of(self.block), (at + len) / self.block * self.block);
            if first >= last {
                return Ok(());
            }
            (at, len) = (first, last - first);
        }
        let whole = self.is_whole(at, len);
        if action == Action::Flush || action == Action::Read && whole {
            return cx.io(&self.leg, action, at, len, data).await;
        }
        if action == Action::Read {
            return self.read(cx, at, len, &data).await;
        }
        // Writes of whole blocks get along with each other as well as on any disk.
        let _held = self.busy.hold(at / self.unit, (at + len - 1) / self.unit, !whole).await;
        match action {
            Action::Write { durable } if !whole => self.write(cx, at, len, Some(&data), durable).await,
            Action::Zero { durable, .. } if !whole => self.zero(cx, at, len, action, durable).await,
            _ => cx.io(&self.leg, action, at, len, data).await,
        }
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        String::new()
    }

    fn again(&self, legs: Vec<Leg>) -> Ebs {
        let leg = legs.into_iter().next().unwrap_or_else(|| self.leg.clone());
        Ebs { leg, busy: self.busy.clone(), ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.leg.devices().to_vec()
    }
}
