//! `snapshot-merge`: a snapshot on its way back into its origin (dm-snap.c).
//!
//! In the background the last exceptions of the store are copied into the origin, the origin is flushed, and the exceptions
//! are taken off the store's list; and so on until there are none. A crash at any moment leaves each chunk in the store, in
//! the origin, or in both alike, so whoever opens the store again finds the same disk, and a merge goes on where it was.
//!
//! Meanwhile a chunk that is in the store is read and written there, another in the origin, whose other snapshots get their
//! copies first. Writes to chunks that are being copied wait, as whoever is in the midst of one is waited for.
//!
//! Two things are not as in the kernel. It merges chunks that follow each other and makes each such run durable on its own;
//! here all that is done at a time, up to [`MOST`] sectors of one area, has one flush and one commit. And where a commit fails, it
//! is not known whether the chunks are still in the store, so writes to them fail until the table is loaded anew; the kernel
//! takes them, and a crash may lose them.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use dm_table::SECTOR_SIZE;
use event_listener::{Event, listener};

use super::copy;
use super::exceptions::Run;
use super::grace::Grace;
use super::live::{Live, Seen, State as LiveState};
use super::origin::write_to;
use super::target::{MOST_PARTS, Snapshot, part_of};
use crate::event::Events;
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg};
use crate::targets::shared::{Origin, Shared};
use crate::targets::{Cx, Io, LONGEST, Refused, Target};
use crate::worker::ops::Action;

/// Sectors that are merged at a time: as long writes to them wait.
const MOST: u64 = 8192;

/// See the module's text.
pub struct SnapshotMerge {
    snapshot: Snapshot,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    origin: Mutex<Option<Arc<Origin>>>,
    chunks: Mutex<Chunks>,
    // Chunks are being merged no longer, or it is to rest no longer, or for good.
    changed: Event,
    // Who writes to a chunk in the store.
    writers: Grace,
    // No other chunks are to be begun with.
    stopping: AtomicBool,
    // Who waits for its device knows that there is nothing left to merge.
    told: AtomicBool,
}

/// Chunks of the origin that nobody writes now.
#[derive(Default)]
struct Chunks {
    merging: Vec<Range<u64>>,
    // Nobody knows whether these are still in the store on its device.
    uncertain: Vec<Range<u64>>,
}

/// What a write to a chunk has to do first.
enum Way {
    /// Nothing, for so many chunks.
    Free(u64),
    Wait,
    Fail,
}

impl Chunks {
    fn way(&self, old: u64, most: u64) -> Way {
        let has = |list: &[Range<u64>]| list.iter().any(|range| range.contains(&old));
        if has(&self.uncertain) {
            return Way::Fail;
        }
        if has(&self.merging) {
            return Way::Wait;
        }
        let starts = self.merging.iter().chain(&self.uncertain).map(|range| range.start);
        Way::Free(starts.filter(|start| *start > old).map(|start| start - old).min().unwrap_or(most).min(most))
    }
}

/// Why a merge goes no further.
enum Stop {
    /// It is to rest.
    Asked,
    /// As the kernel's log has it.
    Failed(&'static str),
}

impl SnapshotMerge {
    /// Of a snapshot that is not yet live.
    pub fn new(snapshot: Snapshot) -> SnapshotMerge {
        SnapshotMerge { snapshot, state: Arc::default() }
    }

    fn origin(&self) -> Option<Arc<Origin>> {
        self.state.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.state.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.state.stopping.load(Ordering::Acquire)
    }

    fn forget_origin(&self) {
        let known = self.state.origin.lock().unwrap_or_else(PoisonError::into_inner).take();
        known.into_iter().for_each(|origin| origin.unwatch());
    }

    async fn write(&self, cx: &Cx, live: &Live, io: Io) -> Result<(), i32> {
        let features = &self.snapshot.features;
        let (at, end) = (features.start + io.at, features.start + io.at + io.len);
        if end > features.origin_size {
            return Err(libc::EIO);
        }
        let (mut done, mut result) = (at, Ok(()));
        while done < end {
            let part = self.write_part(cx, live, &io, (at, done, end)).await;
            let (len, ended) =
                part.unwrap_or_else(|errno| (live.layout().chunk() - done % live.layout().chunk(), Err(errno)));
            result = result.and(ended);
            done += len;
        }
        result
    }

    /// Writes zeroes: a front end that was promised write-zeroes before the merge is not refused them during it.
    async fn zero(&self, cx: &Cx, live: &Live, io: &Io, durable: bool) -> Result<(), i32> {
        let (mut done, mut result) = (0, Ok(()));
        while done < io.len {
            let now = (io.len - done).min(copy::MOST_ZEROES);
            let part = Io { action: Action::Write { durable }, at: io.at + done, len: now, data: copy::zeroes(now)? };
            result = result.and(self.write(cx, live, part).await);
            done += now;
        }
        result
    }

    /// Writes what a request has for sector `done`, and some of what follows; how many sectors, and what came of it. None where
    /// it has waited. An error is one of the rest of the chunk.
    async fn write_part(
        &self,
        cx: &Cx,
        live: &Live,
        io: &Io,
        (at, done, end): (u64, u64, u64),
    ) -> Result<(u64, Result<(), i32>), i32> {
        let chunk = live.layout().chunk();
        let (first, within) = (done / chunk, done % chunk);
        // Before it is looked up: what is not being merged now is not begun with as long as this one is inside.
        let inside = self.state.writers.enter();
        let way = self.chunks().way(first, end.div_ceil(chunk) - first);
        let free = match way {
            Way::Free(free) => free,
            Way::Fail => return Err(libc::EIO),
            Way::Wait => {
                drop(inside);
                self.merged(first).await;
                return Ok((0, Ok(())));
            }
        };
        let (seen, chunks) = live.look(first, free)?;
        let len = (chunks * chunk - within).min(end - done);
        let data = part_of(&io.data, done - at, len);
        let written = match seen {
            Seen::Store(new) => cx.io(&self.snapshot.cow, io.action, new * chunk + within, len, data).await,
            Seen::Origin => {
                // It never comes into the store.
                drop(inside);
                self.write_origin(cx, io.action, (done, len), data).await
            }
        };
        Ok((len, written))
    }

    async fn write_origin(
        &self,
        cx: &Cx,
        action: Action,
        (at, len): (u64, u64),
        data: Vec<HostSlice>,
    ) -> Result<(), i32> {
        let write = || cx.io(&self.snapshot.origin, action, at, len, data);
        match self.origin() {
            Some(origin) => write_to(cx, &origin, at..at + len, write).await,
            None => write().await,
        }
    }

    /// Waits until a chunk is being merged no longer.
    async fn merged(&self, old: u64) {
        let merging = || matches!(self.chunks().way(old, 1), Way::Wait);
        while merging() {
            listener!(self.state.changed => changed);
            if merging() {
                changed.await;
            }
        }
    }

    fn set_merging(&self, chunks: Vec<Range<u64>>) {
        self.chunks().merging = chunks;
        self.state.changed.notify(usize::MAX);
    }

    /// What a future gives, or nothing once the device is being suspended; all tasks are polled then.
    async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let until = poll_fn(|context| match self.is_stopping() {
            true => Poll::Ready(None),
            false => future.as_mut().poll(context).map(Some),
        });
        until.await
    }

    /// Has the origin's other snapshots copy what is to be written over, as often as that takes. Nobody waits for this one yet.
    async fn protect(&self, cx: &Cx, sectors: &[Range<u64>]) -> Result<(), Stop> {
        let Some(origin) = self.origin() else { return Ok(()) };
        loop {
            if self.is_stopping() {
                return Err(Stop::Asked);
            }
            let waits = needed(&origin, sectors);
            if waits.is_empty() {
                return Ok(());
            }
            for (live, range) in waits {
                let ended = self.unless_stopping(live.protected(cx, &range)).await;
                ended.and_then(Result::ok).ok_or(Stop::Asked)?;
            }
        }
    }

    /// It is to rest: waits for what comes of that. True when it was taken back.
    async fn goes_on(&self) -> bool {
        loop {
            listener!(self.state.changed => changed);
            if self.snapshot.is_stopped() {
                return false;
            }
            if !self.is_stopping() {
                return true;
            }
            changed.await;
        }
    }

    /// Merges some. False when there is nothing left.
    async fn step(&self, cx: &Cx, live: &Live) -> Result<bool, Stop> {
        if self.is_stopping() {
            return Err(Stop::Asked);
        }
        let chunk = live.layout().chunk();
        let most = (MOST / chunk).max(1);
        let failed = |_| Stop::Failed("Read error in exception store: shutting down merge");
        let runs = live.merge_tail(cx, &self.snapshot.cow, most).await.map_err(failed)?;
        if runs.is_empty() {
            return Ok(false);
        }
        let moves: Vec<Move> = runs.iter().filter_map(|run| self.to_move(run, chunk)).collect();
        let sectors: Vec<Range<u64>> = moves.iter().map(|one| one.to..one.to + one.len).collect();
        let chunks: Vec<Range<u64>> = runs.iter().map(|run| run.old..run.old + run.len).collect();
        loop {
            self.protect(cx, &sectors).await?;
            self.set_merging(chunks.clone());
            self.state.writers.drained().await;
            let origin = self.origin();
            let writing = origin.as_ref().map(|origin| origin.writing.enter());
            // One may have become a snapshot of it meanwhile.
            if origin.as_ref().is_none_or(|origin| needed(origin, &sectors).is_empty()) {
                let merged = self.merge(cx, &moves).await;
                drop(writing);
                let committed = match merged {
                    Ok(()) => self.commit(cx, live, &runs, &chunks).await,
                    Err(stop) => Err(stop),
                };
                self.set_merging(Vec::new());
                return committed.map(|()| true);
            }
            drop(writing);
            self.set_merging(Vec::new());
        }
    }

    /// Where a run is copied, as far as the origin goes.
    fn to_move(&self, run: &Run, chunk: u64) -> Option<Move> {
        let (from, to) = (run.new * chunk, run.old.checked_mul(chunk)?);
        let len = (run.len * chunk).min(self.snapshot.features.origin_size.checked_sub(to)?);
        (len > 0).then_some(Move { from, to, len })
    }

    /// Copies into the origin, durably.
    async fn merge(&self, cx: &Cx, moves: &[Move]) -> Result<(), Stop> {
        let longest = LONGEST as u64 / SECTOR_SIZE;
        let all: u64 = moves.iter().map(|one| one.len).sum();
        if all == 0 {
            return Ok(());
        }
        let read = |_| Stop::Failed("Read error: shutting down merge.");
        let lease = cx.buffer((all.min(longest) * SECTOR_SIZE) as usize).await.map_err(read)?;
        let mut rest = VecDeque::from(moves.to_vec());
        while !rest.is_empty() {
            let now = take(&mut rest, longest);
            let len: u64 = now.iter().map(|one| one.len).sum();
            let buffer = || vec![lease.slice().part(0, (len * SECTOR_SIZE) as usize)];
            let (origin, cow) = (&self.snapshot.origin, &self.snapshot.cow);
            let from =
                cx.parts(Action::Read, buffer(), |cut| now.iter().for_each(|one| cut.add(cow, one.from, one.len)));
            from.await.map_err(read)?;
            let write = Action::Write { durable: false };
            let to = cx.parts(write, buffer(), |cut| now.iter().for_each(|one| cut.add(origin, one.to, one.len)));
            to.await.map_err(|_| Stop::Failed("Write error: shutting down merge."))?;
        }
        drop(lease);
        let flushed = cx.io(&self.snapshot.origin, Action::Flush, 0, 0, Vec::new()).await;
        flushed.map_err(|_| Stop::Failed("Flush after merge failed: shutting down merge"))
    }

    async fn commit(&self, cx: &Cx, live: &Live, runs: &[Run], chunks: &[Range<u64>]) -> Result<(), Stop> {
        let committed = live.merge_commit(cx, &self.snapshot.cow, runs).await;
        committed.map_err(|error| {
            log::error!("snapshots: {error}; writes to these chunks fail until the table is loaded anew");
            self.chunks().uncertain.extend_from_slice(chunks);
            Stop::Failed("Write error in exception store: shutting down merge")
        })
    }
}

/// Sectors of the store's device that go to sectors of the origin.
#[derive(Clone, Copy)]
struct Move {
    from: u64,
    to: u64,
    len: u64,
}

/// Takes the first sectors, at most `most`, and in no more places than should be asked for at a time.
fn take(rest: &mut VecDeque<Move>, most: u64) -> Vec<Move> {
    let (mut taken, mut left) = (Vec::new(), most);
    while left > 0
        && taken.len() < MOST_PARTS
        && let Some(one) = rest.pop_front()
    {
        let len = one.len.min(left);
        taken.push(Move { len, ..one });
        left -= len;
        if len < one.len {
            rest.push_front(Move { from: one.from + len, to: one.to + len, len: one.len - len });
        }
    }
    taken
}

/// The snapshots of an origin that need copies before some sectors of it are written; the copies are begun.
fn needed(origin: &Origin, sectors: &[Range<u64>]) -> Vec<(Arc<Live>, Range<u64>)> {
    let snapshots = origin.snapshots();
    let each = snapshots.iter().flat_map(|live| sectors.iter().map(move |range| (live, range)));
    each.filter(|(live, range)| live.protect(range)).map(|(live, range)| (live.clone(), range.clone())).collect()
}

impl Target for SnapshotMerge {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let live = self.snapshot.live().ok_or(libc::EIO)?;
        match io.action {
            Action::Flush => {
                let origin = cx.io(&self.snapshot.origin, Action::Flush, 0, 0, Vec::new()).await;
                origin.and(cx.io(&self.snapshot.cow, Action::Flush, 0, 0, Vec::new()).await)
            }
            Action::Read => self.snapshot.read(cx, &live, io).await,
            Action::Write { .. } => self.write(cx, &live, io).await,
            // It would change nothing for the better (snapshot_merge_map).
            Action::Discard => Ok(()),
            Action::Zero { durable, .. } => self.zero(cx, &live, &io, durable).await,
        }
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        self.snapshot.told()
    }

    async fn probe(&self, cx: &Cx) -> Result<(), Refused> {
        self.snapshot.probe(cx).await
    }

    async fn activate(&self, cx: &Cx, shared: &Arc<Shared>) -> Result<(), Refused> {
        self.snapshot.take_up(cx, shared, true).await?;
        if let Some(key) = self.snapshot.origin.key() {
            let origin = shared.origin(key);
            origin.watch().await;
            let before = self.state.origin.lock().unwrap_or_else(PoisonError::into_inner).replace(origin);
            before.into_iter().for_each(|before| before.unwatch());
        }
        *self.chunks() = Chunks::default();
        self.state.told.store(false, Ordering::Release);
        self.state.stopping.store(false, Ordering::Release);
        Ok(())
    }

    async fn background(&self, cx: &Cx) {
        let Some(live) = self.snapshot.begin() else { return };
        while live.state() != LiveState::Invalid {
            match self.step(cx, &live).await {
                Ok(true) => {}
                Ok(false) => {
                    if !self.state.told.swap(true, Ordering::AcqRel) {
                        live.raise();
                    }
                    return;
                }
                Err(Stop::Asked) => {
                    if !self.goes_on().await {
                        return;
                    }
                }
                Err(Stop::Failed(why)) => {
                    log::error!("snapshots: {why}");
                    live.merge_failed();
                    live.raise();
                    return;
                }
            }
        }
    }

    async fn retire(&self, _: &Cx) {
        self.snapshot.end();
        self.forget_origin();
    }

    fn printed(&self, line: &dm_table::Target) -> Option<dm_table::Target> {
        self.snapshot.printed(line)
    }

    fn presuspend(&self) {
        self.state.stopping.store(true, Ordering::Release);
    }

    fn postsuspend(&self) {
        self.snapshot.stop();
        self.state.changed.notify(usize::MAX);
    }

    fn resume(&self) {
        self.snapshot.go_on();
        self.state.stopping.store(false, Ordering::Release);
        self.state.changed.notify(usize::MAX);
    }

    fn events(&self, events: &Arc<Events>) {
        self.snapshot.hears(events);
    }

    fn again(&self, legs: Vec<Leg>) -> SnapshotMerge {
        SnapshotMerge { snapshot: self.snapshot.again(legs), state: self.state.clone() }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.snapshot.devices()
    }
}
