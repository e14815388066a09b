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
use super::live::{Live, Owner, Stage, State};
use super::store::{self, Store, StoreError};
use super::target::Snapshot;
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
    // Whom it has taken its store over from, until it is live.
    before: Option<Owner>,
}

impl Snapshot {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.state.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        let owner = Owner { id: self.state.id, end: self.features.start + self.features.len, merges };
        let key = self.cow.key();
        let used = key.and_then(|key| shared.store(key));
        let mut before = None;
        let live = match &used {
            // What a store of this kind has is in memory alone.
            Some(live) if live.is_of(owner.id) && !live.is_persistent() => live.clone(),
            Some(live) if live.is_of(owner.id) => {
                let new = self.open(cx, owner).await?;
                self.leave(live);
                new
            }
            // What it holds may be gone from the list on its device.
            Some(live)
                if live.stage() == Stage::Suspended && live.is_persistent() && live.state() == State::MergeFailed =>
            {
                let new = self.open(cx, owner).await?;
                if let Some(key) = self.origin.key() {
                    shared.origin(key).remove(live);
                }
                live.hand_over(None);
                new
            }
            Some(live) if live.stage() == Stage::Suspended => {
                before = live.owner();
                live.hand_over(Some(owner));
                live.clone()
            }
            Some(_) => {
                return Err("snapshots: Unable to perform snapshot handover until source is suspended.".into());
            }
            None => self.open(cx, owner).await?,
        };
        let origin = self.origin.key().map(|key| shared.origin(key));
        if let Some(key) = key {
            shared.set_store(key, live.clone());
        }
        *self.known() = Known { shared: Some(shared.clone()), store: key, origin: origin.clone(), before };
        self.state.stopped.store(false, Ordering::Release);
        self.has(live.clone());
        if let Some(origin) = origin {
            origin.add(&live).await;
        }
        Ok(())
    }

    /// Nobody is to know it any more.
    fn leave(&self, live: &Arc<Live>) {
        let known = self.known();
        if let (Some(shared), Some(key)) = (&known.shared, known.store) {
            shared.clear_store(key, live);
        }
        if let Some(origin) = &known.origin {
            origin.remove(live);
        }
        drop(known);
        live.hand_over(None);
    }

    /// It is live no longer, or has not come to it.
    pub(super) fn end(&self) {
        let Some(live) = self.live().filter(|live| live.is_of(self.state.id)) else { return };
        let before = self.known().before.take();
        match before {
            // The table that it should have replaced goes on.
            Some(before) => {
                live.hand_over(Some(before));
                live.enter_stage(Stage::Suspended);
            }
            None => self.leave(&live),
        }
    }

    /// Its device goes on.
    pub(super) fn go_on(&self) {
        self.state.stopped.store(false, Ordering::Release);
        let live = self.state.live();
        let lost = !live.is_some_and(|live| live.is_of(self.state.id));
        self.state.lost.store(lost, Ordering::Release);
    }

    /// Its device is suspended, and none of its requests is under way.
    pub(super) fn stop(&self) {
        self.state.stopped.store(true, Ordering::Release);
        if let Some(live) = self.live().filter(|live| live.is_of(self.state.id)) {
            live.enter_stage(Stage::Suspended);
        }
    }

    fn is_stopped(&self) -> bool {
        self.state.stopped.load(Ordering::Acquire)
    }

    /// Its device is served from now on.
    pub(super) fn begin(&self) -> Option<Arc<Live>> {
        let live = self.live().filter(|live| live.is_of(self.state.id))?;
        self.known().before = None;
        live.enter_stage(Stage::Served);
        Some(live)
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
                Some(dm_table::Target::Snapshot(Params { chunk: Sectors::new(chunk), ..params.clone() }))
            }
            (dm_table::Target::SnapshotMerge(SnapshotMerge(params)), Some(chunk)) => {
                let params = Params { chunk: Sectors::new(chunk), ..params.clone() };
                Some(dm_table::Target::SnapshotMerge(SnapshotMerge(params)))
            }
            _ => None,
        }
    }

    fn again(&self, legs: Vec<Leg>) -> Snapshot {
        let mut legs = legs.into_iter();
        let mut next = |old: &Leg| legs.next().unwrap_or_else(|| old.clone());
        let (origin, cow) = (next(&self.origin), next(&self.cow));
        Snapshot { origin, cow, wanted: self.wanted, features: self.features, state: self.state.clone() }
    }

    fn devices(&self) -> Vec<DevIx> {
        [&self.origin, &self.cow].iter().flat_map(|leg| leg.devices().iter().copied()).collect()
    }
}
