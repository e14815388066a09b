//! What a successor of this process needs to know of requests under way (vhost-user, "Inflight I/O tracking", split
//! virtqueue): written as requests come and go, read when a ring starts.
//!
//! A process that is killed leaves its stores in the order in which it made them. That order is the protocol:
//!
//! * A head's counter is stored, then the head is marked in flight; only then anything is done for it.
//! * The heads of a batch are chained by `next` from `last_batch_head`; then `used.idx` is published; then each head is
//!   marked as no longer in flight; then `used_idx` says that all of it is done.
//!
//! So a successor that finds its `used_idx` behind the ring's knows that the last batch was published and not cleared.
//! Whatever is marked after that has not been given back, and is done again, in the order of the counters.
//!
//! A head that is no index of the ring cannot be recorded. It is refused at once; a driver that sends one and sees us
//! killed in that moment may have confused its own ring, and no one else's.

use std::sync::atomic::{Ordering, fence};

use crate::guest::Record;

/// The layout that this is about.
const VERSION: u16 = 1;

/// Why a record and its ring do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Made by something else.
    #[error("the in-flight region has layout version {0}; only version 1 is known")]
    Version(u16),
    /// More than the driver can have under way.
    #[error(
        "the in-flight region has {marked} requests under way, while {offered} are offered on a ring of {size} \
         (available index {avail}, used index {used}): it belongs to another ring, or was written to"
    )]
    Marked {
        /// Heads marked as in flight.
        marked: u16,
        /// Available index minus used index.
        offered: u16,
        /// Entries of the ring.
        size: u16,
        /// `avail.idx`.
        avail: u16,
        /// `used.idx`.
        used: u16,
    },
    /// The list of the last batch leaves the ring.
    #[error(
        "the in-flight region's last batch of {batch} used entries cannot be followed on a ring of {size}: it belongs to \
         another ring, or was written to"
    )]
    Batch {
        /// Used entries that were published and not cleared.
        batch: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// Cut short while it was read.
    #[error("the in-flight region's file has been truncated")]
    Truncated,
}

/// Where a ring goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The next entry of the available ring to take; a region that no one has used yet does not know.
    pub next_avail: Option<u16>,
    /// Heads to be served before that, in this order.
    pub replay: Vec<u16>,
}

/// Keeps a queue's record.
#[derive(Debug)]
pub struct Tracker {
    record: Record,
    // What the next request is stored with.
    counter: u64,
    last_batch_head: u16,
    // Heads given back since the last batch was cleared.
    batch: Vec<u16>,
}

impl Tracker {
    /// Takes a record up for a ring that stands at `avail` and `used` (its indices in guest memory).
    ///
    /// # Errors
    /// It cannot be a record of this ring.
    pub fn recover(record: Record, avail: u16, used: u16) -> Result<(Tracker, Recovered), RecoveryError> {
        let version = record.version();
        match version {
            0 => {
                (0..record.entries()).for_each(|head| record.set_inflight(head, false));
                record.set_used_idx(used);
                record.set_version();
            }
            VERSION => clear_last_batch(&record, used)?,
            _ => return Err(RecoveryError::Version(version)),
        }
        let size = record.entries();
        let mut marked: Vec<(u64, u16)> =
            (0..size).filter(|head| record.inflight(*head)).map(|head| (record.counter(head), head)).collect();
        marked.sort_unstable();
        if record.broken() {
            return Err(RecoveryError::Truncated);
        }
        let (count, offered) = (marked.len() as u16, avail.wrapping_sub(used));
        if count > 0 && (offered > size || count > offered) {
            return Err(RecoveryError::Marked { marked: count, offered, size, avail, used });
        }
        let recovered = Recovered {
            next_avail: (version != 0).then(|| used.wrapping_add(count)),
            replay: marked.iter().map(|(_, head)| *head).collect(),
        };
        let counter = marked.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let last_batch_head = record.last_batch_head();
        let batch = Vec::with_capacity(usize::from(size));
        Ok((Tracker { record, counter, last_batch_head, batch }, recovered))
    }

    /// A head has been taken off the available ring: before anything is done for it.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        if head < self.record.entries() {
            self.record.set_counter(head, self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.record.set_inflight(head, true);
        }
    }

    /// A used entry has been written, which [`Tracker::seal`] and [`Tracker::clear`] will be about.
    #[inline]
    pub fn given_back(&mut self, head: u16) {
        if head < self.record.entries() {
            self.record.set_next(head, self.last_batch_head);
            self.last_batch_head = head;
            self.batch.push(head);
        }
    }

    /// Before the used index is published.
    #[inline]
    pub fn seal(&mut self) {
        self.record.set_last_batch_head(self.last_batch_head);
    }

    /// After the used index `used` has been published.
    #[inline]
    pub fn clear(&mut self, used: u16) {
        // The compiler, and with it the processor, keeps what stands above this line above it.
        fence(Ordering::Release);
        for head in self.batch.drain(..) {
            self.record.set_inflight(head, false);
        }
        self.record.set_used_idx(used);
    }

    /// Whether the region was found truncated: what is written to it is lost.
    #[inline]
    pub fn broken(&self) -> bool {
        self.record.broken()
    }
}

/// Clears what was published and not cleared, if there is such a batch.
fn clear_last_batch(record: &Record, used: u16) -> Result<(), RecoveryError> {
    let size = record.entries();
    let batch = used.wrapping_sub(record.used_idx());
    if batch == 0 {
        return Ok(());
    }
    let idle = || (0..size).all(|head| !record.inflight(head));
    // A driver that has set its ring up anew leaves an old used index behind, and nothing in flight.
    if !idle() {
        let mut head = record.last_batch_head();
        for _ in 0..batch {
            if batch > size || head >= size {
                return Err(RecoveryError::Batch { batch, size });
            }
            record.set_inflight(head, false);
            head = record.next(head);
        }
    }
    record.set_used_idx(used);
    Ok(())
}

#[cfg(test)]
mod tests;
