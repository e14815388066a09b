//! What targets of a process' different devices know of one another: the snapshots of each origin, and the stores in use.
//!
//! Devices are told apart by their [`Key`]. The rules are those of dm-snap.c:
//!
//! * A snapshot counts from the activation of its table until that is replaced or its device is removed. Whatever writes its
//!   origin by way of `snapshot-origin` or `snapshot-merge` has what it writes over copied first.
//! * A store belongs to one target. Another takes it over with all that it remembers when it is activated while the device of
//!   the first is suspended; at any other time it is refused.
//!
//! Other than in the kernel, a suspended snapshot makes no copies: whoever writes a chunk of the origin that it still needs waits
//! until it is resumed, or gone. (What it lies on may be exchanged while it is suspended.)

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::log_writes::Logs;
use super::snapshot::grace::Grace;
use super::snapshot::live::Live;
use crate::map::Key;

/// See the module's text. One for all devices of a process.
#[derive(Debug, Default)]
pub struct Shared {
    origins: Mutex<HashMap<Key, Arc<Origin>>>,
    stores: Mutex<HashMap<Key, Arc<Live>>>,
    // Stores of which somebody is about to see whether they can be had.
    opening: Mutex<HashSet<Key>>,
    /// Whose the logs of writes are.
    pub(super) logs: Logs,
}

/// Somebody who looks whether a store can be had; nobody else does until this is dropped.
#[derive(Debug)]
pub struct Opening<'a> {
    shared: &'a Shared,
    key: Key,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.shared.opening().remove(&self.key);
    }
}

/// A device that has snapshots, or is written by something that would have to know of them.
#[derive(Debug, Default)]
pub struct Origin {
    snapshots: RwLock<Arc<[Arc<Live>]>>,
    // Targets that write it.
    writers: Mutex<usize>,
    /// Who writes it, and has looked at the list of its snapshots.
    pub writing: Grace,
}

/// A number that no other target of this process has.
pub(super) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Shared {
    /// A device as an origin.
    pub fn origin(&self, key: Key) -> Arc<Origin> {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.retain(|_, origin| Arc::strong_count(origin) > 1);
        origins.entry(key).or_default().clone()
    }

    fn opening(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be had while a store is opened, and until it is [known](Shared::set_store) whose it is. None while another has it.
    pub fn open_store(&self, key: Key) -> Option<Opening<'_>> {
        self.opening().insert(key).then(|| Opening { shared: self, key })
    }

    fn stores(&self) -> MutexGuard<'_, HashMap<Key, Arc<Live>>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshot that has its store on a device.
    pub fn store(&self, key: Key) -> Option<Arc<Live>> {
        self.stores().get(&key).cloned()
    }

    /// A snapshot has its store on a device.
    pub fn set_store(&self, key: Key, live: Arc<Live>) {
        self.stores().insert(key, live);
    }

    /// It has it no longer.
    pub fn clear_store(&self, key: Key, live: &Arc<Live>) {
        let mut stores = self.stores();
        if stores.get(&key).is_some_and(|known| Arc::ptr_eq(known, live)) {
            stores.remove(&key);
        }
    }
}

impl Origin {
    /// Its snapshots.
    pub fn snapshots(&self) -> Arc<[Arc<Live>]> {
        self.snapshots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn writers(&self) -> MutexGuard<'_, usize> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has one more, in place of `old` if that is one. What it shows is constant when this ends: nothing writes the origin
    /// any more that did not know of it.
    pub async fn add(&self, live: &Arc<Live>, old: Option<&Arc<Live>>) {
        // In one go: there is no moment without either.
        self.change(old, Some(live));
        self.writing.drained().await;
    }

    /// It has one again that needs no copies, so nobody is waited for.
    pub fn put_back(&self, live: &Arc<Live>) {
        self.change(None, Some(live));
    }

    /// It has one less.
    pub fn remove(&self, live: &Arc<Live>) {
        self.change(Some(live), None);
    }

    /// A snapshot may be on the lists of two origins for a while, and is watched for each of them that is written: once,
    /// however often it is added.
    fn change(&self, less: Option<&Arc<Live>>, more: Option<&Arc<Live>>) {
        let writers = self.writers();
        let mut all = self.snapshots.write().unwrap_or_else(PoisonError::into_inner);
        let is = |one: Option<&Arc<Live>>, known: &Arc<Live>| one.is_some_and(|one| Arc::ptr_eq(one, known));
        let (gone, stay): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|known| is(less, known) || is(more, known));
        if *writers > 0 {
            // First, so that one that stays is watched at any time.
            more.into_iter().for_each(|live| live.watch());
            gone.iter().for_each(|live| live.unwatch());
        }
        *all = stay.into_iter().chain(more.cloned()).collect();
    }

    /// One more target writes it. None of the reads of its snapshots that did not know is under way when this ends.
    pub async fn watch(&self) {
        let snapshots = {
            let mut writers = self.writers();
            *writers += 1;
            let snapshots = self.snapshots();
            if *writers == 1 {
                snapshots.iter().for_each(|live| live.watch());
            }
            snapshots
        };
        for live in snapshots.iter() {
            live.readers.drained().await;
        }
    }

    /// One less does.
    pub fn unwatch(&self) {
        let mut writers = self.writers();
        if *writers == 1 {
            self.snapshots().iter().for_each(|live| live.unwatch());
        }
        *writers = writers.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::live::tests::live;
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn one_snapshot_takes_the_place_of_another_without_a_moment_without_either() {
        let (origin, mut context) = (Origin::default(), Context::from_waker(Waker::noop()));
        let (old, new) = (Arc::new(live(false)), Arc::new(live(false)));
        assert_eq!(pin!(origin.add(&old, None)).poll(&mut context), Poll::Ready(()));
        let writer = origin.writing.enter();
        let mut added = pin!(origin.add(&new, Some(&old)));
        assert_eq!(added.as_mut().poll(&mut context), Poll::Pending, "somebody writes who knows of the old one alone");
        assert!(matches!(&*origin.snapshots(), [one] if Arc::ptr_eq(one, &new)));
        drop(writer);
        assert_eq!(added.as_mut().poll(&mut context), Poll::Ready(()));
    }

    #[test]
    fn a_snapshot_is_watched_as_long_as_one_of_its_origins_is_written() {
        fn at_once(future: impl Future<Output = ()>) {
            assert_eq!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
        }
        let (written, other) = (Origin::default(), Origin::default());
        let (live, next) = (Arc::new(live(false)), Arc::new(live(false)));
        at_once(written.watch());
        at_once(written.add(&live, None));
        assert!(live.is_watched());
        // Its table is loaded with another origin, which nobody writes; the old one is left later, or never.
        at_once(other.add(&live, None));
        assert!(live.is_watched(), "somebody writes the first");
        at_once(other.watch());
        other.unwatch();
        assert!(live.is_watched(), "still");
        // Twice on a list is once.
        at_once(written.add(&live, None));
        written.remove(&live);
        written.remove(&live);
        assert!(!live.is_watched());
        written.unwatch();
        at_once(other.watch());
        assert!(live.is_watched());
        // Another takes its place there.
        at_once(other.add(&next, Some(&live)));
        assert!(next.is_watched() && !live.is_watched());
        other.unwatch();
        assert!(!next.is_watched());
    }

    #[test]
    fn nobody_else_looks_at_a_store_that_is_being_opened() {
        let (shared, key) = (Shared::default(), Key::Mapped(1));
        let opening = shared.open_store(key);
        assert!(opening.is_some() && shared.open_store(key).is_none() && shared.open_store(Key::Mapped(2)).is_some());
        drop(opening);
        assert!(shared.open_store(key).is_some());
    }
}
