//! Ranges of a device of which some are one request's alone for a time.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Ranges that requests hold or wait for. Whoever comes first has it first, so nobody waits for ever; and as nobody waits for
/// one who came later, nobody waits in a circle, if each request has one range at a time.
#[derive(Default)]
pub(super) struct Ranges(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    // In the order in which they came.
    claims: Vec<Claim>,
    next: u64,
}

struct Claim {
    number: u64,
    first: u64,
    last: u64,
    alone: bool,
    waker: Option<Waker>,
}

impl Claim {
    fn meets(&self, other: &Claim) -> bool {
        self.first <= other.last && other.first <= self.last && (self.alone || other.alone)
    }
}

impl Ranges {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the range `first..=last` until it is dropped: alone, or together with others that do not want it alone.
    pub async fn hold(&self, first: u64, last: u64, alone: bool) -> Held<'_> {
        let number = {
            let mut inner = self.inner();
            let number = inner.next;
            inner.next += 1;
            inner.claims.push(Claim { number, first, last, alone, waker: None });
            number
        };
        // From here on it goes when the request does.
        let held = Held { ranges: self, number };
        poll_fn(|cx| {
            let mut inner = self.inner();
            let Some(at) = inner.claims.iter().position(|claim| claim.number == number) else { return Poll::Ready(()) };
            let (before, rest) = inner.claims.split_at_mut(at);
            if before.iter().any(|other| other.meets(&rest[0])) {
                rest[0].waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            rest[0].waker = None;
            Poll::Ready(())
        })
        .await;
        held
    }
}

/// See [`Ranges::hold`].
pub(super) struct Held<'r> {
    ranges: &'r Ranges,
    number: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut inner = self.ranges.inner();
        let Some(at) = inner.claims.iter().position(|claim| claim.number == self.number) else { return };
        let gone = inner.claims.remove(at);
        inner
            .claims
            .iter()
            .filter(|claim| claim.meets(&gone))
            .filter_map(|claim| claim.waker.as_ref())
            .for_each(Waker::wake_by_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_comes_first_has_it_first_and_the_next_is_woken() {
        let (ranges, count) = (Ranges::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let mut one = pin!(ranges.hold(0, 9, false));
        let mut two = pin!(ranges.hold(5, 5, false));
        let mut alone = pin!(ranges.hold(9, 20, true));
        let mut late = pin!(ranges.hold(20, 20, false));
        let mut far = pin!(ranges.hold(21, 30, true));
        let Poll::Ready(first) = one.as_mut().poll(&mut cx) else { panic!("nobody was before it") };
        assert!(two.as_mut().poll(&mut cx).is_ready(), "both want it together");
        assert!(alone.as_mut().poll(&mut cx).is_pending());
        assert!(late.as_mut().poll(&mut cx).is_pending(), "it came after one that waits");
        assert!(far.as_mut().poll(&mut cx).is_ready());
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        drop(first);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let Poll::Ready(held) = alone.as_mut().poll(&mut cx) else { panic!("it has been woken") };
        assert!(late.as_mut().poll(&mut cx).is_pending());
        drop(held);
        assert!(late.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn who_gives_up_waiting_is_waited_for_no_longer() {
        let (ranges, mut cx) = (Ranges::default(), Context::from_waker(Waker::noop()));
        let mut first = pin!(ranges.hold(0, 9, true));
        let held = first.as_mut().poll(&mut cx);
        assert!(held.is_ready());
        let mut last = pin!(ranges.hold(0, 9, true));
        {
            let mut gives_up = pin!(ranges.hold(0, 9, true));
            assert!(gives_up.as_mut().poll(&mut cx).is_pending());
            assert!(last.as_mut().poll(&mut cx).is_pending());
        }
        drop(held);
        assert!(last.as_mut().poll(&mut cx).is_ready());
    }
}
