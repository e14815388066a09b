//! The vring type that `vhost-user-backend` steers: its own state, and a hand on the queue that a worker serves.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::control::{QueueControl, RingConfig};

/// Guest memory as `vhost-user-backend` holds it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

thread_local! {
    /// Queues that the vrings of a daemon under construction belong to, in order.
    static PENDING: RefCell<VecDeque<Arc<QueueControl>>> = const { RefCell::new(VecDeque::new()) };
}

/// Runs `make`, which constructs a `VhostUserDaemon`, so that its vrings belong to `queues` in their order. The crate
/// makes vrings by [`VringT::new`], which is told neither index nor back end; it does so in the calling thread.
pub fn with_queues<R>(queues: &[Arc<QueueControl>], make: impl FnOnce() -> R) -> R {
    PENDING.with_borrow_mut(|pending| *pending = queues.iter().cloned().collect());
    let made = make();
    PENDING.with_borrow_mut(VecDeque::clear);
    made
}

/// See the module's text.
#[derive(Clone)]
pub struct Vring {
    inner: VringMutex<Memory>,
    queue: Arc<QueueControl>,
}

impl Vring {
    fn config(&self) -> RingConfig {
        let state = self.inner.get_ref();
        let queue = state.get_queue();
        RingConfig {
            size: queue.size(),
            desc: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            base: queue.next_avail(),
            event_idx: queue.event_idx_enabled(),
        }
    }

    fn stopped_at(&self, next: Option<u16>) {
        if let Some(next) = next {
            self.inner.set_queue_next_avail(next);
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, Error> {
        let queue = PENDING.with_borrow_mut(VecDeque::pop_front).ok_or(Error::QueueNotReady)?;
        Ok(Vring { inner: VringMutex::new(mem, max_queue_size)?, queue })
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        self.stopped_at(self.queue.set_enabled(enabled, self.config()));
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        // The crate takes any ring size that is not above the maximum and then keeps the maximum; SET_VRING_ADDR comes
        // after SET_VRING_NUM and is the first call that can refuse.
        self.queue.check_size()?;
        self.inner.set_queue_info(desc_table, avail_ring, used_ring)?;
        self.queue.relocate(self.config());
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.queue.set_base();
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.queue.set_size(num);
        self.inner.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        self.stopped_at(self.queue.set_ready(ready, self.config()));
    }

    fn set_kick(&self, file: Option<File>) {
        self.queue.set_kick(self.queue.dup(file.as_ref()));
        self.inner.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        self.queue.set_call(self.queue.dup(file.as_ref()));
        self.inner.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.queue.set_err(self.queue.dup(file.as_ref()));
        self.inner.set_err(file);
    }
}
