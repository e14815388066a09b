//! A snapshot beside its requests: it takes up its store, copies what is to be written over in the origin, and ends.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Poll;

use dm_table::{Sectors, Snapshot as Params, SnapshotMerge};
use event_listener::EventListener;
use nix::errno::Errno;

use super::copy;
use super::exceptions::Run;
use super::live::{Live, State};
use super::owner::{Owner, Stage};
use super::store::{self, Store, StoreError};
use super::target::Snapshot;
use crate::event::Events;
use crate::map::{DevIx, Key, Leg};
use crate::targets::shared::{Origin, Shared};
use crate::targets::{Cx, Io, Refused, Target};

/// Copies for writes to the origin that are under way at a time.
const MOST_COPIES: usize = 16;

/// Where a snapshot is known.
#[derive(Default)]
pub struct Known {
    shared: Option<Arc<Shared>>,
    store: Option<Key>,
    origin: Option<Arc<Origin>>,
    // What another target had of the store, and how, until it is certain that this one has it now.
    replaced: Option<(Arc<Live>, Owner)>,
}

/// What the kernel's log has of a store that somebody else uses.
const IN_USE: &str = "snapshots: Unable to perform snapshot handover until source is suspended.";

impl Snapshot {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its device tells of what happens.
    pub(super) fn hears(&self, events: &Arc<Events>) {
        *self.state.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.clone());
    }

    fn refused(&self, error: &StoreError) -> Refused {
        log::warn!("persistent snapshot: {error}");
        format!("snapshot: {} (-{:?})", Params::NO_METADATA, Errno::from_raw(error.errno()))
    }

    async fn open(&self, cx: &Cx, owner: Owner) -> Result<Arc<Live>, Refused> {
        let opened = Store::open(cx, &self.cow, &self.wanted).await.map_err(|error| self.refused(&error))?;
        if opened.new {
            opened.store.format(cx, &self.cow).await.map_err(|error| self.refused(&error))?;
        }
        if !opened.valid {
            log::warn!("snapshots: Snapshot is marked invalid.");
        }
        Ok(Arc::new(Live::new(opened, owner)))
    }

    /// Takes up its store: from the target that has it, else from the device. `merges` for `snapshot-merge`.
    ///
    /// # Errors
    /// Somebody else has it; it cannot be used.
    pub(super) async fn take_up(&self, cx: &Cx, shared: &Arc<Shared>, merges: bool) -> Result<(), Refused> {
        let origin = self.origin.key();
        let events = self.state.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let end = self.features.start + self.features.len;
        let owner = Owner { id: self.state.id, end, merges, origin, events };
        let key = self.cow.key();
        // Nobody else looks at it until it is known whose it is.
        let opening = key.map(|key| shared.open_store(key).ok_or(IN_USE)).transpose()?;
        let (live, left) = match key.and_then(|key| shared.store(key)) {
            // What a store of this kind has is in memory alone.
            Some(live) if live.is_of(owner.id) && !live.is_persistent() => (live, None),
            Some(old) if old.is_of(owner.id) => (self.open(cx, owner).await?, Some(old)),
            // What it holds may be gone from the list on its device.
            Some(old)
                if old.stage() == Stage::Suspended && old.is_persistent() && old.state() == State::MergeFailed =>
            {
                (self.open(cx, owner).await?, Some(old))
            }
            Some(live) => {
                if !live.hand_over(owner) {
                    return Err(IN_USE.into());
                }
                (live, None)
            }
            None => (self.open(cx, owner).await?, None),
        };
        let before = left.as_ref().and_then(|old| old.owner());
        if let Some(old) = &left
            && !old.is_of(self.state.id)
            && !old.release_suspended()
        {
            return Err(IN_USE.into());
        }
        // Not before: it is still the other's until then.
        if !self.read_only
            && let Err(error) = live.clean(cx, &self.cow).await
        {
            match (left.filter(|old| !old.is_of(self.state.id)), before) {
                (Some(old), Some(before)) => old.have_again(before),
                _ => _ = live.give_back(),
            }
            return Err(self.refused(&error));
        }
        if let Some(key) = key {
            shared.set_store(key, live.clone());
        }
        drop(opening);
        let origin = origin.map(|key| shared.origin(key));
        let replaced = left.clone().zip(before.clone()).filter(|(_, owner)| owner.id != self.state.id);
        *self.known() = Known { shared: Some(shared.clone()), store: key, origin: origin.clone(), replaced };
        self.state.stopped.store(false, Ordering::SeqCst);
        self.has(live.clone());
        if let Some(origin) = origin {
            origin.add(&live, left.as_ref()).await;
        }
        if let Some(old) = left {
            // Who waits for it sees that there is another, and waits for that.
            old.release();
            let origin = before.and_then(|owner| owner.origin);
            origin.into_iter().for_each(|key| shared.origin(key).remove(&old));
        }
        Ok(())
    }

    /// Nobody is to know it any more; what it was to replace goes on.
    fn leave(&self, live: &Arc<Live>) {
        let mut known = self.known();
        let replaced = known.replaced.take();
        if let (Some(shared), Some(key)) = (&known.shared, known.store) {
            match replaced {
                Some((old, owner)) => {
                    // It merges, or did: `put_back` needs no more.
                    owner.origin.into_iter().for_each(|key| shared.origin(key).put_back(&old));
                    old.have_again(owner);
                    shared.set_store(key, old);
                }
                None => shared.clear_store(key, live),
            }
        }
        drop(known);
        live.release();
        self.leave_origin(live);
    }

    /// Its origin is no longer that of what it has had, unless it is that of whoever has it now, too.
    fn leave_origin(&self, live: &Arc<Live>) {
        let now = live.owner().and_then(|owner| owner.origin);
        if now != self.origin.key() {
            self.known().origin.iter().for_each(|origin| origin.remove(live));
        }
    }

    /// It is live no longer, or has not come to it.
    pub(super) fn end(&self) {
        let Some(live) = self.state.live() else { return };
        if !live.is_of(self.state.id) {
            live.forgo(self.state.id);
            self.leave_origin(&live);
        } else if live.give_back() {
            // The table that it should have replaced goes on.
            self.leave_origin(&live);
        } else {
            self.leave(&live);
        }
    }

    /// Its device goes on.
    pub(super) fn go_on(&self) {
        self.known().replaced = None;
        self.state.stopped.store(false, Ordering::SeqCst);
        let has = self.state.live().is_some_and(|live| live.go_on(self.state.id));
        self.state.lost.store(!has, Ordering::Release);
    }

    /// Its device is suspended, and none of its requests is under way.
    pub(super) fn stop(&self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        if let Some(live) = self.live() {
            live.suspend(self.state.id);
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state.stopped.load(Ordering::SeqCst)
    }

    /// Its device is served from now on.
    pub(super) fn begin(&self) -> Option<Arc<Live>> {
        self.known().replaced = None;
        self.live().filter(|live| live.begin(self.state.id, &self.state.stopped))
    }

    /// Copies what writers of the origin wait for, until its device is suspended.
    pub(super) async fn serve(&self, cx: &Cx) {
        let Some(live) = self.begin() else { return };
        let mut copies: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        let mut work: Option<Pin<Box<EventListener>>> = None;
        let serve = poll_fn(|context| {
            loop {
                let waiting = work.get_or_insert_with(|| Box::pin(live.work.listen()));
                let mut begun = false;
                if !self.is_stopped() {
                    let errands = live.errands(MOST_COPIES.saturating_sub(copies.len()));
                    begun = errands.doomed || !errands.copies.is_empty();
                    if errands.doomed {
                        copies.push(Box::pin(live.give_up(cx, &self.cow, "Unable to allocate exception")));
                    }
                    copies.extend(errands.copies.into_iter().map(|run| self.copy(cx, &live, run)));
                }
                let before = copies.len();
                copies.retain_mut(|copy| copy.as_mut().poll(context).is_pending());
                if begun || copies.len() < before {
                    continue;
                }
                if copies.is_empty() && self.is_stopped() {
                    return Poll::Ready(());
                }
                if waiting.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                work = None;
            }
        });
        pin!(serve).await;
    }

    /// Copies a run that a writer of the origin waits for.
    fn copy<'a>(&'a self, cx: &'a Cx, live: &'a Live, run: Run) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            let chunk = live.layout().chunk();
            let place = (run.old * chunk, run.new * chunk, run.len * chunk);
            let copied = copy::copy(cx, &self.places(), place, None, false).await;
            // Who waits is told, and the log too.
            let _ = live.complete(cx, &self.cow, run, copied).await;
        })
    }
}

impl Target for Snapshot {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        self.request(cx, io).await
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        self.told()
    }

    async fn probe(&self, cx: &Cx) -> Result<(), Refused> {
        let found = store::peek(cx, &self.cow, &self.wanted).await.map_err(|error| self.refused(&error))?;
        if let Some((_, layout)) = found {
            self.state.chunk.store(layout.chunk(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn activate(&self, cx: &Cx, shared: &Arc<Shared>) -> Result<(), Refused> {
        self.take_up(cx, shared, false).await
    }

    async fn background(&self, cx: &Cx) {
        self.serve(cx).await;
    }

    async fn retire(&self, _: &Cx) {
        self.end();
    }

    fn events(&self, events: &Arc<Events>) {
        self.hears(events);
    }

    fn postsuspend(&self) {
        self.stop();
    }

    fn resume(&self) {
        self.go_on();
    }

    fn printed(&self, line: &dm_table::Target) -> Option<dm_table::Target> {
        match (line, self.chunk()) {
            // That of the store counts.
            (dm_table::Target::Snapshot(params), Some(chunk)) => {
                let params = Params { chunk: Sectors::new(chunk), ..Params::clone(params) };
                Some(dm_table::Target::Snapshot(params.into()))
            }
            (dm_table::Target::SnapshotMerge(SnapshotMerge(params)), Some(chunk)) => {
                let params = Params { chunk: Sectors::new(chunk), ..Params::clone(params) };
                Some(dm_table::Target::SnapshotMerge(SnapshotMerge(params.into())))
            }
            _ => None,
        }
    }

    fn again(&self, legs: Vec<Leg>) -> Snapshot {
        let mut legs = legs.into_iter();
        let mut next = |old: &Leg| legs.next().unwrap_or_else(|| old.clone());
        let (origin, cow) = (next(&self.origin), next(&self.cow));
        Snapshot {
            origin,
            cow,
            wanted: self.wanted,
            features: self.features,
            read_only: self.read_only,
            state: self.state.clone(),
        }
    }

    fn devices(&self) -> Vec<DevIx> {
        [&self.origin, &self.cow].iter().flat_map(|leg| leg.devices().iter().copied()).collect()
    }
}
