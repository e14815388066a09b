//! A snapshot that is in use: which chunks are in its store, which are on their way, and who waits for them.
//!
//! One of these belongs to one store. A table that is loaded over the same store takes it over with all that it remembers
//! (see [`crate::targets::Shared`]), so it knows nothing of the devices: whoever calls brings them along.
//!
//! **One copy for one chunk.** A chunk that is not in the store is entered as pending by the first who needs it there, under
//! the lock; that one writes it (the guest's data where that covers all of it, else a copy of the origin's), commits it and
//! takes it out of the list of the pending ones. Everybody else who wants to write it waits for that. Reads go on: as long as a
//! chunk is pending, the origin has it unchanged, as writes to the origin wait, too.
//!
//! **One commit for many.** Who has written its chunk puts it on a list and waits for the lock of the end of the list of
//! exceptions. Who gets it commits all that are there.
//!
//! **Reads of the origin.** Somebody who has looked up a chunk and reads it from the origin must have ended before the origin
//! is written. Readers are inside of a [`Grace`]; where something in this process writes the origin, a pending chunk is taken
//! off its list only after all readers have left who may have looked it up before it was in the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::{Event, listener};

use super::exceptions::{Exceptions, Run};
use super::format::Layout;
use super::grace::Grace;
use super::owner::{Before, Owner, Stage};
use super::store::{End, Opened, Store, StoreError};
use crate::map::Leg;
use crate::targets::Cx;

/// Chunks that one write enters as pending at a time, at most.
pub(super) const MOST_PENDING: u64 = 1024;

/// See the module's text.
#[derive(Debug)]
pub struct Live {
    store: Store,
    inner: Mutex<Inner>,
    area: AtomicU64,
    /// Who reads from the origin what is not in the store.
    pub readers: Grace,
    /// Origins that have it as their snapshot and that something in this process writes.
    watched: AtomicUsize,
    // A chunk is pending no longer, or the snapshot is worth waiting for no longer.
    pub(super) changed: Event,
    /// There is something to do beside requests.
    pub work: Event,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) complete: Exceptions,
    // First chunk of the origin, number of chunks.
    pub(super) pending: BTreeMap<u64, u64>,
    // The next chunk that the store can give.
    pub(super) next: u64,
    pub(super) state: State,
    // Written, and not committed.
    written: Vec<Run>,
    // Commits that were asked for, and those that are over.
    asked: u64,
    over: u64,
    // Chunks that wait to be copied because the origin is to be written.
    pub(super) copies: VecDeque<Run>,
    // There is no room for such a copy: to be given up by whoever works beside requests.
    pub(super) doomed: bool,
    // Its device says that it is not valid, or cannot be made to.
    pub(super) buried: bool,
    pub(super) owner: Option<Owner>,
    pub(super) before: Option<Before>,
    pub(super) stage: Stage,
    // See [`Opened::torn`]; nothing once that is cleaned.
    torn: Option<u64>,
}

/// What has become of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has all that it should.
    Valid,
    /// It has lost something: everything fails.
    Invalid,
    /// Its store is full, and it has lost nothing but writes: writes fail.
    Overflow,
    /// Merging has come to a device that fails: it goes on as it is.
    MergeFailed,
}

/// What a part of a write is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Write so many chunks, from this one on of the store.
    There {
        /// First chunk in the store.
        new: u64,
        /// Chunks.
        len: u64,
    },
    /// They are pending now: write them, then [`Live::complete`] them.
    Fresh(Run),
    /// The first is on its way: wait for it.
    Busy,
    /// There is no room.
    Full,
    /// It takes no writes.
    Dead,
}

/// How a request is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// In the store, from this chunk on.
    Store(u64),
    /// In the origin.
    Origin,
}

impl Live {
    /// One that has just been opened.
    pub fn new(opened: Opened, owner: Owner) -> Live {
        let Opened { mut store, exceptions, next, valid, torn, .. } = opened;
        let area = store.area_now();
        let inner = Inner {
            complete: exceptions,
            pending: BTreeMap::new(),
            next,
            state: if valid { State::Valid } else { State::Invalid },
            written: Vec::new(),
            asked: 0,
            over: 0,
            copies: VecDeque::new(),
            doomed: false,
            buried: !valid,
            owner: Some(owner),
            before: None,
            stage: Stage::New,
            torn,
        };
        Live {
            store,
            inner: Mutex::new(inner),
            area: AtomicU64::new(area),
            readers: Grace::default(),
            watched: AtomicUsize::new(0),
            changed: Event::new(),
            work: Event::new(),
        }
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Where things are in its store.
    pub fn layout(&self) -> Layout {
        self.store.layout()
    }

    /// Whether its store outlives the table.
    pub fn is_persistent(&self) -> bool {
        self.store.is_persistent()
    }

    /// What has become of it.
    pub fn state(&self) -> State {
        self.inner().state
    }

    /// Exceptions that are complete.
    pub fn exceptions(&self) -> u64 {
        self.inner().complete.len()
    }

    /// The status line: sectors in use, those of the store, those of metadata; or what has become of it.
    pub fn status(&self) -> String {
        let inner = self.inner();
        let (chunk, total) = (self.layout().chunk(), self.layout().size());
        match inner.state {
            State::Invalid => "Invalid".into(),
            State::MergeFailed => "Merge failed".into(),
            State::Overflow => "Overflow".into(),
            State::Valid => {
                // The header and an area are in front of the first data.
                let areas = if self.is_persistent() { self.area.load(Ordering::Relaxed) + 2 } else { 0 };
                format!("{}/{total} {}", inner.next * chunk, areas * chunk)
            }
        }
    }

    /// Makes that its list can grow: before anybody adds to it, or takes from it. See [`Opened::torn`].
    ///
    /// # Errors
    /// The store's.
    pub async fn clean(&self, cx: &Cx, cow: &Leg) -> Result<(), StoreError> {
        let end = self.store.end().await;
        self.clean_behind(cx, cow, &end).await
    }

    /// The same for who changes the list: what is torn is behind that end as long as nobody else can move it.
    async fn clean_behind(&self, cx: &Cx, cow: &Leg, end: &End) -> Result<(), StoreError> {
        let torn = self.inner().torn;
        if let Some(upto) = torn {
            self.store.clean(cx, cow, end, upto).await?;
            self.inner().torn = None;
        }
        Ok(())
    }

    /// Something in this process writes an origin of it.
    pub fn watch(&self) {
        self.watched.fetch_add(1, Ordering::SeqCst);
    }

    /// Nothing does any more, or it is no snapshot of that origin any more.
    pub fn unwatch(&self) {
        self.watched.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether something in this process writes an origin of it.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst) > 0
    }

    /// What has become of chunk `old` and at most `most` behind it, and how many that is true for. The caller is among the
    /// [readers](Live::readers) until it has read what is in the origin.
    ///
    /// # Errors
    /// EIO: it is not valid.
    #[inline]
    pub fn look(&self, old: u64, most: u64) -> Result<(Seen, u64), i32> {
        let inner = self.inner();
        if inner.state == State::Invalid {
            return Err(libc::EIO);
        }
        let extent = inner.complete.extent(old, most);
        Ok((extent.new.map_or(Seen::Origin, Seen::Store), extent.len))
    }

    /// What a write to `len` chunks from `old` on is to do with the first of them, and with how many; `whole` are written
    /// over completely.
    pub fn write(&self, old: u64, len: u64, whole: bool) -> Part {
        let mut inner = self.inner();
        if matches!(inner.state, State::Invalid | State::Overflow) {
            return Part::Dead;
        }
        let extent = inner.complete.extent(old, len);
        if let Some(new) = extent.new {
            return Part::There { new, len: extent.len };
        }
        let free = match inner.pending_from(old) {
            Some((first, _)) if first <= old => return Part::Busy,
            Some((first, _)) => extent.len.min(first - old),
            None => extent.len,
        };
        // What is copied is one chunk at a time.
        let most = if whole { free.min(MOST_PENDING) } else { 1 };
        inner.enter(&self.store, old, most).map_or(Part::Full, Part::Fresh)
    }

    /// Waits until a chunk is pending no longer.
    pub async fn settled(&self, old: u64) {
        let settled = || self.inner().pending_from(old).is_none_or(|(first, _)| first > old);
        while !settled() {
            listener!(self.changed => changed);
            if !settled() {
                changed.await;
            }
        }
    }

    /// Chunks that were pending are in the store now: commits them. Whatever comes of it, they are pending no longer.
    ///
    /// # Errors
    /// EIO: the snapshot is given up.
    pub async fn complete(&self, cx: &Cx, cow: &Leg, run: Run, written: Result<(), i32>) -> Result<(), i32> {
        let committed = match written {
            Ok(()) => self.commit(cx, cow, run).await,
            Err(errno) => Err(errno),
        };
        if committed.is_err() {
            self.give_up(cx, cow, "Error reading/writing").await;
        } else if self.is_watched() {
            self.readers.drained().await;
        }
        self.inner().pending.remove(&run.old);
        self.changed.notify(usize::MAX);
        committed.map_err(|_| libc::EIO)
    }

    async fn commit(&self, cx: &Cx, cow: &Leg, run: Run) -> Result<(), i32> {
        let ticket = {
            let mut inner = self.inner();
            if !self.is_persistent() {
                return inner.insert(run);
            }
            inner.written.push(run);
            inner.asked += 1;
            inner.asked
        };
        let mut end = self.store.end().await;
        let (mut batch, asked) = {
            let mut inner = self.inner();
            inner.usable()?;
            if inner.over >= ticket {
                return Ok(());
            }
            (std::mem::take(&mut inner.written), inner.asked)
        };
        // In the order of the store, so that a merge finds as long runs as there are.
        batch.sort_unstable_by_key(|run| run.new);
        // Writers of the origin add to what its own table only reads, and has left as it was.
        let committed = match self.clean_behind(cx, cow, &end).await {
            Ok(()) => self.store.commit(cx, cow, &mut end, &batch).await,
            Err(error) => Err(error.errno()),
        };
        self.area.store(end.area(), Ordering::Relaxed);
        let mut inner = self.inner();
        inner.over = asked;
        if committed.is_err() {
            // Before the lock of the end is free: it is not known where that is.
            inner.state = State::Invalid;
        }
        committed?;
        batch.into_iter().try_for_each(|run| inner.insert(run))
    }

    /// It is not what it was any more, or cannot take what it has to: it is invalid when this ends, also on its device. `why`
    /// is what the kernel says.
    pub async fn give_up(&self, cx: &Cx, cow: &Leg, why: &str) {
        {
            let mut inner = self.inner();
            inner.state = State::Invalid;
            inner.drop_copies();
        }
        // One at a time, and no commit beside it.
        let end = self.store.end().await;
        let news = !self.inner().buried;
        if news {
            log::error!("snapshots: Invalidating snapshot: {why}.");
            if let Err(errno) = self.store.header(cx, cow, false).await {
                let error = std::io::Error::from_raw_os_error(errno);
                log::error!("snapshots: the COW device does not take that the snapshot is invalid: {error}");
            }
        }
        if self.is_watched() {
            // Who looked for something while it was valid reads it in the origin, whose writers go on from here.
            self.readers.drained().await;
        }
        let mut inner = self.inner();
        (inner.buried, inner.doomed) = (true, false);
        drop((inner, end));
        self.changed.notify(usize::MAX);
        if news {
            self.raise();
        }
    }

    /// A write to the snapshot found no room. `overflows`: its table can live with that.
    pub async fn no_room(&self, cx: &Cx, cow: &Leg, overflows: bool) {
        if !overflows {
            return self.give_up(cx, cow, "Unable to allocate exception").await;
        }
        let mut inner = self.inner();
        if inner.state == State::Valid {
            inner.state = State::Overflow;
            log::error!("snapshots: Snapshot overflowed: Unable to allocate exception.");
        }
    }

    /// The last exceptions of the store, at most `most`: see [`Store::tail`].
    ///
    /// # Errors
    /// The store's.
    pub async fn merge_tail(&self, cx: &Cx, cow: &Leg, most: u64) -> Result<Vec<Run>, StoreError> {
        let end = self.store.end().await;
        self.store.tail(cx, cow, &end, most).await
    }

    /// What [`Live::merge_tail`] gave is in the origin durably: takes it out of the store, and out of what is looked up.
    ///
    /// # Errors
    /// The store's.
    pub async fn merge_commit(&self, cx: &Cx, cow: &Leg, runs: &[Run]) -> Result<(), StoreError> {
        let mut end = self.store.end().await;
        self.clean_behind(cx, cow, &end).await?;
        self.store.take_back(cx, cow, &mut end, runs.iter().map(|run| run.len).sum()).await?;
        self.area.store(end.area(), Ordering::Relaxed);
        let mut inner = self.inner();
        runs.iter().for_each(|run| inner.complete.remove(run.old, run.len));
        // As if they had been added in order (dm-snap-persistent.c): nothing is added any more.
        inner.next = self.layout().area(end.area()) + end.entries() + 1;
        Ok(())
    }

    /// Merging has met a device that fails: what the store holds is to be read anew by who takes it up, full or not.
    pub fn merge_failed(&self) {
        let mut inner = self.inner();
        if inner.state != State::Invalid {
            inner.state = State::MergeFailed;
        }
    }
}

impl Inner {
    /// The pending run that a chunk is in, else the next behind it.
    pub(super) fn pending_from(&self, old: u64) -> Option<(u64, u64)> {
        let before = self.pending.range(..=old).next_back().filter(|(first, count)| *first + **count > old);
        before.or_else(|| self.pending.range(old..).next()).map(|(first, count)| (*first, *count))
    }

    /// Makes chunks pending, as many of `most` as the store can give in one run; none if it is full.
    pub(super) fn enter(&mut self, store: &Store, old: u64, most: u64) -> Option<Run> {
        let (new, len) = store.give(self.next, most)?;
        self.next = store.after(new + len);
        self.pending.insert(old, len);
        Some(Run { old, new, len })
    }

    fn usable(&self) -> Result<(), i32> {
        if self.state == State::Invalid { Err(libc::EIO) } else { Ok(()) }
    }

    /// A run is in the store.
    fn insert(&mut self, run: Run) -> Result<(), i32> {
        self.usable()?;
        // Pending chunks are not complete, so there is no other.
        if self.complete.insert(run) { Ok(()) } else { Err(libc::EIO) }
    }
}

#[cfg(test)]
pub(in crate::targets) mod tests {
    use super::*;
    use crate::map::DevIx;
    use crate::targets::cx::Local;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Target 0's: of chunks of 8 sectors, the fifth of which is in the store.
    pub fn live(merges: bool) -> Live {
        let mut exceptions = Exceptions::default();
        assert!(exceptions.insert(Run { old: 5, new: 3, len: 1 }));
        let store = Store::new(Layout::new(8, 8 * 600, 512).unwrap(), true);
        let opened = Opened { store, exceptions, next: 3, valid: true, new: false, torn: None };
        Live::new(opened, Owner { id: 0, end: 800, merges, ..Owner::default() })
    }

    #[test]
    fn what_a_merge_has_left_is_not_given_again() {
        // Chunk 2 was the last of the list, and has been merged.
        let live = live(true);
        live.suspend(0);
        assert!(live.hand_over(Owner { id: 1, end: 800, ..Owner::default() }));
        assert_eq!(live.write(9, 1, true), Part::Fresh(Run { old: 9, new: 4, len: 1 }));
    }

    #[test]
    fn the_origin_waits_for_who_reads_it_for_a_snapshot_that_is_given_up() {
        let store = Store::new(Layout::new(8, 8 * 600, 512).unwrap(), false);
        let exceptions = Exceptions::default();
        let opened = Opened { store, exceptions, next: 0, valid: true, new: false, torn: None };
        let live = Live::new(opened, Owner { end: 800, ..Owner::default() });
        live.watch();
        let inside = live.readers.enter();
        assert_eq!(live.look(0, 1), Ok((Seen::Origin, 1)));
        let cx = Cx { local: Local::default(), task: 0, queue: 0, depth: 0 };
        let cow = Leg::Device { dev: DevIx(0), start: 0 };
        let mut given_up = pin!(live.give_up(&cx, &cow, "a test"));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(given_up.as_mut().poll(&mut context), Poll::Pending);
        assert!(live.look(0, 1).is_err() && live.protect(&(0..8)), "it reads chunk 0 in the origin");
        drop(inside);
        assert_eq!(given_up.as_mut().poll(&mut context), Poll::Ready(()));
        assert!(!live.protect(&(0..8)));
    }
}
