//! Whose a snapshot is, and how it goes from the target of one table to that of another.
//!
//! A table that is to be live has it from its activation on. Until it is certain that this table takes the place of the other,
//! the snapshot may have to go back, and must be then what it was: so the origin's writers wait meanwhile for what either of
//! the two needs, though nothing is copied before the new one is served.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::live::{Inner, Live};
use crate::event::Events;
use crate::map::Key;

/// The target that has a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Owner {
    /// Its number among all targets.
    pub id: u64,
    /// Sectors of the origin that it shows: what is behind them needs no copies.
    pub end: u64,
    /// It merges: nothing is copied for it.
    pub merges: bool,
    /// The origin, where it is a device that others may write.
    pub origin: Option<Key>,
    /// Where its device tells that something has happened.
    pub events: Option<Arc<Events>>,
}

/// Who had it, until it is certain that another has it now.
#[derive(Debug)]
pub(super) struct Before {
    owner: Owner,
    // The store's next chunk then.
    next: u64,
}

/// How far the device is that shows a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is about to be live.
    New,
    /// It is live: what the origin's writers need is copied.
    Served,
    /// It is suspended: the origin's writers wait, and another table may have the snapshot.
    Suspended,
}

impl Live {
    /// Whose it is.
    pub fn owner(&self) -> Option<Owner> {
        self.inner().owner.clone()
    }

    /// Whether it is that target's.
    pub fn is_of(&self, id: u64) -> bool {
        self.inner().is_of(id)
    }

    /// How far its device is.
    pub fn stage(&self) -> Stage {
        self.inner().stage
    }

    /// Something has happened that who waits for its device is to see.
    pub fn raise(&self) {
        let events = self.inner().owner.as_ref().and_then(|owner| owner.events.clone());
        events.into_iter().for_each(|events| events.raise());
    }

    fn tell(&self) {
        self.changed.notify(usize::MAX);
        self.work.notify(usize::MAX);
    }

    /// It goes to another target, unless its device is not suspended: false then. It may [go back](Live::give_back) until the
    /// new one goes on, or begins.
    pub fn hand_over(&self, owner: Owner) -> bool {
        let mut inner = self.inner();
        if inner.stage != Stage::Suspended {
            return false;
        }
        let next = inner.next;
        if self.is_persistent() && !owner.merges && inner.owner.as_ref().is_some_and(|owner| owner.merges) {
            // While it merges that is for the status alone, and may be a chunk that is in use.
            let used = inner.complete.runs().map(|run| run.new + run.len).max();
            inner.next = self.layout().next(used.unwrap_or(self.layout().first()));
        }
        inner.before = inner.owner.replace(owner).map(|owner| Before { owner, next });
        inner.stage = Stage::New;
        drop(inner);
        self.tell();
        true
    }

    /// It goes back to the target that had it. False when there is none.
    pub fn give_back(&self) -> bool {
        let mut inner = self.inner();
        let Some(Before { owner, next }) = inner.before.take() else { return false };
        if owner.merges {
            // As if nobody had asked for copies; none has been made.
            inner.drop_copies();
            inner.next = next;
        }
        inner.owner = Some(owner);
        inner.stage = Stage::Suspended;
        drop(inner);
        self.tell();
        true
    }

    /// A target ends, or goes on without it: it does not go back to that one.
    pub fn forgo(&self, id: u64) {
        let mut inner = self.inner();
        if inner.before.as_ref().is_some_and(|before| before.owner.id == id) {
            inner.settle();
        }
        drop(inner);
        self.tell();
    }

    /// It is no one's: nobody waits for it any more.
    pub fn release(&self) {
        self.inner().release();
        self.tell();
    }

    /// The same, unless its device is not suspended: false then.
    pub fn release_suspended(&self) -> bool {
        let mut inner = self.inner();
        let suspended = inner.stage == Stage::Suspended;
        if suspended {
            inner.release();
        }
        drop(inner);
        self.tell();
        suspended
    }

    /// Who had it when it was [released](Live::release_suspended) has it again; that target's device is still suspended.
    pub fn have_again(&self, owner: Owner) {
        let mut inner = self.inner();
        (inner.owner, inner.stage) = (Some(owner), Stage::Suspended);
        drop(inner);
        self.tell();
    }

    /// The device of that target goes on. False when it has the snapshot no longer, and it will not have it again.
    pub fn go_on(&self, id: u64) -> bool {
        let mut inner = self.inner();
        if !inner.is_of(id) {
            drop(inner);
            self.forgo(id);
            return false;
        }
        inner.settle();
        if inner.stage == Stage::Suspended {
            // Nobody may take it from here on, though nothing is copied yet.
            inner.stage = Stage::New;
        }
        drop(inner);
        self.tell();
        true
    }

    /// That target begins to make copies, unless it was `stopped` before it came to it. False when it has it no longer.
    pub fn begin(&self, id: u64, stopped: &AtomicBool) -> bool {
        let mut inner = self.inner();
        if !inner.is_of(id) {
            return false;
        }
        inner.settle();
        if !stopped.load(Ordering::SeqCst) {
            inner.stage = Stage::Served;
        }
        drop(inner);
        self.tell();
        true
    }

    /// The device of that target is suspended, and was `stopped` before.
    pub fn suspend(&self, id: u64) {
        let mut inner = self.inner();
        if inner.is_of(id) {
            inner.stage = Stage::Suspended;
        }
        drop(inner);
        self.tell();
    }
}

impl Inner {
    fn is_of(&self, id: u64) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.id == id)
    }

    fn release(&mut self) {
        (self.owner, self.stage) = (None, Stage::New);
        self.settle();
    }

    /// It stays whose it is.
    fn settle(&mut self) {
        self.before = None;
        if self.owner.as_ref().is_none_or(|owner| owner.merges) {
            // What they were for is no more.
            self.drop_copies();
        }
    }

    /// Nobody makes the copies that nobody has begun to make.
    pub(super) fn drop_copies(&mut self) {
        for run in self.copies.drain(..) {
            self.pending.remove(&run.old);
        }
        // Who still needs one finds anew that there is no room.
        self.doomed = false;
    }

    /// Up to which sector of the origin it matters what is written there; 0 where nothing does.
    pub(super) fn protected_end(&self) -> u64 {
        let both = self.owner.iter().chain(self.before.iter().map(|before| &before.owner));
        both.filter(|owner| !owner.merges).map(|owner| owner.end).max().unwrap_or(0)
    }

    /// The chunks of the snapshot that some sectors of the origin are in, if they matter to it.
    pub(super) fn protected_chunks(&self, sectors: &Range<u64>, chunk: u64) -> Option<Range<u64>> {
        let end = sectors.end.min(self.protected_end());
        (sectors.start < end).then(|| sectors.start / chunk..end.div_ceil(chunk))
    }
}
