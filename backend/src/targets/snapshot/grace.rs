//! Who is inside of something, and how to wait for all who are without keeping others out.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_lock::Mutex;
use event_listener::{Event, listener};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Grace {
    // The generation that is entered: 0 or 1.
    now: AtomicUsize,
    inside: [AtomicUsize; 2],
    left: Event,
    turn: Mutex<()>,
}

/// Someone inside; dropped, it leaves.
#[derive(Debug)]
pub struct Inside<'a> {
    grace: &'a Grace,
    generation: usize,
}

impl Grace {
    /// Goes in.
    #[inline]
    pub fn enter(&self) -> Inside<'_> {
        loop {
            let generation = self.now.load(SeqCst);
            self.inside[generation].fetch_add(1, SeqCst);
            let inside = Inside { grace: self, generation };
            // Whoever turns the generation after this sees who is in it.
            if self.now.load(SeqCst) == generation {
                return inside;
            }
        }
    }

    /// Waits for those who are inside now. Who enters meanwhile is not waited for.
    pub async fn drained(&self) {
        // One at a time: the other generation is empty when it is entered again.
        let _turn = self.turn.lock().await;
        let old = self.now.load(SeqCst);
        self.now.store(1 - old, SeqCst);
        while self.inside[old].load(SeqCst) > 0 {
            listener!(self.left => left);
            if self.inside[old].load(SeqCst) > 0 {
                left.await;
            }
        }
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.grace.inside[self.generation].fetch_sub(1, SeqCst) == 1 {
            self.grace.left.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn who_came_later_is_not_waited_for() {
        let grace = Grace::default();
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(pin!(grace.drained()).as_mut().poll(&mut cx), Poll::Ready(()));
        let first = grace.enter();
        let mut drained = pin!(grace.drained());
        assert_eq!(drained.as_mut().poll(&mut cx), Poll::Pending);
        let later = grace.enter();
        assert_eq!(drained.as_mut().poll(&mut cx), Poll::Pending);
        drop(first);
        assert_eq!(drained.as_mut().poll(&mut cx), Poll::Ready(()));
        let mut again = pin!(grace.drained());
        assert_eq!(again.as_mut().poll(&mut cx), Poll::Pending);
        drop(later);
        assert_eq!(again.as_mut().poll(&mut cx), Poll::Ready(()));
    }

    #[test]
    fn threads_that_come_and_go_are_all_seen() {
        let grace = Grace::default();
        // Who is waited for has seen what was before the wait, or has left.
        let phase = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while phase.load(SeqCst) < 200 {
                        let _inside = grace.enter();
                        let seen = phase.load(SeqCst);
                        std::thread::yield_now();
                        assert!(phase.load(SeqCst) <= seen + 1, "two waits ended while one was inside");
                    }
                });
            }
            for _ in 0..200 {
                let mut drained = pin!(grace.drained());
                while drained.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                    std::thread::yield_now();
                }
                phase.fetch_add(1, SeqCst);
            }
        });
    }
}
