//! How a task is woken from anywhere: by another task of its worker, or by one of another's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::thread::ThreadId;

use vmm_sys_util::eventfd::EventFd;

/// The calling thread.
fn here() -> ThreadId {
    #[cfg(test)]
    if let Some(id) = super::hand::pretended() {
        return id;
    }
    std::thread::current().id()
}

/// A worker's list of tasks that were woken.
pub(crate) struct Bell {
    woken: Mutex<Vec<u32>>,
    // There is one, or was.
    any: AtomicBool,
    // Wakes the worker itself, which needs it only when another thread calls.
    ring: Option<Arc<EventFd>>,
    thread: ThreadId,
}

impl Bell {
    /// That of the calling thread, which sleeps no longer when `ring` is readable.
    pub fn new(ring: Option<Arc<EventFd>>) -> Arc<Bell> {
        let thread = here();
        Arc::new(Bell { woken: Mutex::default(), any: AtomicBool::new(false), ring, thread })
    }

    /// What wakes a task.
    pub fn waker(self: &Arc<Bell>, task: u32) -> Waker {
        Waker::from(Arc::new(Woken { bell: self.clone(), task }))
    }

    /// Moves those that were woken to `ready`. To be asked before the worker sleeps.
    #[inline]
    pub fn take(&self, ready: &mut Vec<u32>) {
        if self.any.swap(false, Ordering::AcqRel) {
            ready.append(&mut self.woken.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether there is one, or was.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn wake(&self, task: u32) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push(task);
        let first = woken.len() == 1;
        self.any.store(true, Ordering::Release);
        drop(woken);
        // Whoever was the first has rung, or is the worker itself, which looks before it sleeps.
        if first
            && here() != self.thread
            && let Some(ring) = &self.ring
        {
            // A counter that is full rings already.
            let _ = ring.write(1);
        }
    }
}

struct Woken {
    bell: Arc<Bell>,
    task: u32,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.bell.wake(self.task);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bell.wake(self.task);
    }
}
