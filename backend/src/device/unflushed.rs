//! What a component was given and may not have kept: no amnesia after a flush that failed.
//!
//! The kernel tells of an error of its write-back once. The pages that it could not write are then clean as if they were
//! on the disk, and the next fsync(2) succeeds. The same holds for a disk whose cache could not be written. So it is
//! remembered here which bytes were written since the last flush that succeeded, and when a flush fails they are *lost*
//! until they have been written again. As long as anything is lost, flushes fail.
//!
//! A write that was to be durable when it ended (RWF_DSYNC) and fails has the same effect where the page cache is in
//! between, as it may be the one that is told. Its own bytes are not lost: the guest knows that it failed.
//!
//! **Cost.** A write that has ended sets some bits ([`Marks`]), without a lock. A flush takes one, twice. Writes that are
//! durable when they end need not be remembered. Nor need writes to mapped files, which no flush concerns.
//!
//! **Generations.** A flush makes durable what was written when it began. So there are two sets: a flush that begins
//! alone (the leader) makes later writes go to the other one, and its success empties the first. A flush that begins
//! beside it (a follower) has no set of its own. The kernel tells an error to one of two that run at a time, whichever
//! looks first; therefore the leader's set is emptied when all have succeeded that ran beside it, and a failure of any
//! one loses both sets. A success is not believed, that is, becomes EIO, when another flush has failed while it ran, or
//! when something was lost as it began.
//!
//! **Rewriting.** A write takes its bytes out of what is lost if it began after the last failure was known. One that
//! began before may have been dropped with the rest, and is lost too if it ends after.
//!
//! **What remains.** Where two flushes run at a time in two workers, the one that the kernel tells of no error may end
//! first: then its success has been reported before the failure of the other is known. What it was for counts as lost all
//! the same, and the next flush fails. The same is true of a write that was to be durable. Of a range that a write failed to
//! write, nothing is expected to last. More is called lost than is: the kernel does not say which pages it dropped, and
//! some of them may well be on the disk. A guest that only reads has no way out of that, nor has one whose table does not
//! lead to what is lost any more, or whose component has become shorter than that; a restart of this process forgets it
//! (which is why the log says what was lost). A flush that failed for a predecessor is not known here.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rangemap::RangeSet;

use super::marks::Marks;
use crate::limit::Limiter;
use crate::limited;

/// How many flushes have failed, and whether anything is lost (the lowest bit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    const LOST: u64 = 1;

    fn failures(self) -> u64 {
        self.0 >> 1
    }

    /// Whether something is lost.
    pub fn lost(self) -> bool {
        self.0 & Stamp::LOST != 0
    }

    /// Whether a flush has failed since it was `before`.
    pub fn failed_since(self, before: Stamp) -> bool {
        self.failures() != before.failures()
    }
}

/// A flush that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    number: u64,
    began: Stamp,
}

impl Flush {
    /// What was known when it began.
    pub fn began(&self) -> Stamp {
        self.began
    }
}

/// See the module's text.
pub struct Unflushed {
    name: String,
    cached: bool,
    generations: [Marks; 2],
    // Writes go to the generation with the parity of this.
    current: AtomicU64,
    stamp: AtomicU64,
    flushes: Mutex<Flushes>,
}

#[derive(Default)]
struct Flushes {
    // Number of the next one.
    next: u64,
    running: BTreeSet<u64>,
    leader: Option<u64>,
    // The leader has succeeded, and so must those with a lower number before its generation is emptied.
    closing: Option<u64>,
    lost: RangeSet<u64>,
    limiter: Limiter,
}

impl std::fmt::Debug for Unflushed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unflushed").field("stamp", &self.stamp()).finish_non_exhaustive()
    }
}

impl Unflushed {
    /// Nothing is unflushed. The name is for the log; `cached`: the component's data goes through the page cache.
    pub fn new(name: &str, cached: bool) -> Unflushed {
        Unflushed {
            name: name.to_owned(),
            cached,
            generations: [Marks::new(), Marks::new()],
            current: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            flushes: Mutex::default(),
        }
    }

    /// To be kept by a write from its beginning.
    #[inline]
    pub fn stamp(&self) -> Stamp {
        Stamp(self.stamp.load(SeqCst))
    }

    /// A write of these bytes that began at `began` has ended well, and is not durable yet.
    #[inline]
    pub fn written(&self, bytes: Range<u64>, began: Stamp) {
        self.mark(bytes.clone());
        let now = self.stamp();
        if now != began || now.lost() {
            self.rewritten(bytes, began, false);
        }
    }

    /// A write that was to be durable has ended well.
    #[inline]
    pub fn written_durably(&self, bytes: Range<u64>, began: Stamp) {
        if self.stamp().lost() {
            self.rewritten(bytes, began, true);
        }
    }

    #[inline]
    fn mark(&self, bytes: Range<u64>) {
        loop {
            let current = self.current.load(SeqCst);
            self.generations[(current & 1) as usize].add(bytes.clone());
            // If a flush began meanwhile, it may not cover this write, and would empty the set of what it covers.
            if self.current.load(SeqCst) == current {
                return;
            }
        }
    }

    #[cold]
    fn rewritten(&self, bytes: Range<u64>, began: Stamp, durable: bool) {
        let mut flushes = self.lock();
        if bytes.is_empty() {
            return;
        }
        if began.failures() == self.stamp().failures() {
            flushes.lost.remove(bytes.clone());
            if !durable {
                // A failure may have taken the mark of this write before it came here.
                self.mark(bytes);
            }
        } else if !durable {
            flushes.lost.insert(bytes);
        }
        self.note(&mut flushes);
    }

    /// A flush begins: to be called before the component is told.
    pub fn begin(&self) -> Flush {
        let mut flushes = self.lock();
        let number = flushes.next;
        flushes.next += 1;
        flushes.running.insert(number);
        if flushes.leader.is_none() && flushes.closing.is_none() {
            flushes.leader = Some(number);
            self.current.fetch_add(1, SeqCst);
        }
        Flush { number, began: self.stamp() }
    }

    /// A flush has ended: whether its success is to be believed for what was written since the last failure.
    pub fn end(&self, flush: Flush, success: bool) -> bool {
        let mut flushes = self.lock();
        flushes.running.remove(&flush.number);
        if !success {
            self.lose(&mut flushes);
            return false;
        }
        if flushes.leader == Some(flush.number) {
            flushes.leader = None;
            flushes.closing = Some(flush.number.max(flushes.next));
        }
        if let Some(bound) = flushes.closing
            && flushes.running.range(..bound).next().is_none()
        {
            flushes.closing = None;
            let old = self.current.load(SeqCst).wrapping_sub(1);
            self.generations[(old & 1) as usize].drain(|_| {});
        }
        flush.began.failures() == self.stamp().failures()
    }

    /// A write that was to be durable has failed. By way of the page cache it may have been told of an error that was
    /// another's.
    pub fn failed_durably(&self) {
        if self.cached {
            self.lose(&mut self.lock());
        }
    }

    fn lose(&self, flushes: &mut Flushes) {
        // Before the sets are emptied: who sets a mark and finds the old number here is in them.
        self.stamp.fetch_add(2, SeqCst);
        (flushes.leader, flushes.closing) = (None, None);
        for generation in &self.generations {
            generation.drain(|bytes| flushes.lost.insert(bytes));
        }
        self.note(flushes);
    }

    /// Sets or clears the mark that something is lost, and says so.
    fn note(&self, flushes: &mut Flushes) {
        let lost = !flushes.lost.is_empty();
        if lost == self.stamp().lost() {
            return;
        }
        self.stamp.fetch_xor(Stamp::LOST, SeqCst);
        let name = &self.name;
        if lost {
            let bytes: u64 = flushes.lost.iter().map(|range| range.end - range.start).sum();
            let first = flushes.lost.first().map_or(0, |range| range.start / dm_table::SECTOR_SIZE);
            limited!(
                flushes.limiter,
                error,
                "{name}: a flush failed: {bytes} bytes written since the last good one, the first at sector {first}, may be \
                 lost; flushes fail until the guest has written them again, or this process is started anew"
            );
        } else {
            limited!(flushes.limiter, info, "{name}: all that a failed flush may have lost has been written again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flushes> {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
