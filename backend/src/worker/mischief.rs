//! What a target may make a task wait for, before any task of a test that asks for it: time, buffers, locks, and one
//! another, on whatever worker.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use event_listener::Event;
use fastrand::Rng;

use crate::targets::{Cx, LONGEST};

struct Place {
    rng: Mutex<Rng>,
    lock: async_lock::Mutex<()>,
    shared: async_lock::RwLock<()>,
    ended: Event,
    // Tasks that are in here, and those of them that wait for others to leave.
    active: AtomicU32,
    waiting: AtomicU32,
}

thread_local! {
    static PLACE: RefCell<Option<Arc<Place>>> = const { RefCell::new(None) };
}

/// From here on tasks of this thread's workers meet it, until this is dropped.
pub(crate) struct Mischief(Arc<Place>);

impl Mischief {
    pub fn new(seed: u64) -> Mischief {
        let place = Place {
            rng: Mutex::new(Rng::with_seed(seed)),
            lock: async_lock::Mutex::new(()),
            shared: async_lock::RwLock::new(()),
            ended: Event::new(),
            active: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        };
        let mischief = Mischief(Arc::new(place));
        Mischief::enter(Some(&mischief));
        mischief
    }

    /// It is this one that tasks meet from here on, of several that there are; or none.
    pub fn enter(which: Option<&Mischief>) {
        PLACE.with(|here| *here.borrow_mut() = which.map(|mischief| mischief.0.clone()));
    }
}

impl Drop for Mischief {
    fn drop(&mut self) {
        PLACE.with(|here| *here.borrow_mut() = None);
    }
}

/// One more, while this is there.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU32) -> (Counted<'a>, u32) {
        (Counted(count), count.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for something.
pub(crate) async fn before(cx: &Cx) {
    let Some(place) = PLACE.with(|here| here.borrow().clone()) else { return };
    let active = Counted::new(&place.active);
    place.meet(cx).await;
    drop(active);
    place.ended.notify(usize::MAX);
}

impl Place {
    async fn meet(&self, cx: &Cx) {
        let (what, time, len) = {
            let mut rng = self.rng.lock().expect("no panic");
            (rng.u8(..10), rng.u64(..30_000), rng.usize(1..=LONGEST))
        };
        let soon = || cx.nap(cx.now() + time);
        match what {
            0 => soon().await,
            1 => {
                let buffer = cx.buffer(len).await.expect("a buffer");
                soon().await;
                drop(buffer);
            }
            2 => {
                let _lock = self.lock.lock().await;
                soon().await;
            }
            3 => {
                // Not for a time: readers behind a writer that waits for one wake each other without end (async-lock 3.5), and
                // simulated time stands still while anybody is awake.
                drop(self.shared.read().await);
            }
            4 => drop(self.shared.write().await),
            5 => {
                let ended = self.ended.listen();
                let (_waiting, waiting) = Counted::new(&self.waiting);
                // Not if all others do, too.
                if waiting < self.active.load(Ordering::Relaxed) {
                    ended.await;
                }
            }
            _ => {}
        }
    }
}
