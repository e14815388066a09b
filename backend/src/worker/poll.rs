//! How long a worker looks for work before it sleeps.
//!
//! A sleep costs a wake-up: some microseconds of CPU and, on most machines, tens of microseconds until the thread runs.
//! So after work a worker goes on looking for a while, in user space, with notifications switched off. How long depends
//! on what it finds, like the kernel's halt polling: a short sleep says that looking a little longer would have paid,
//! a long one that it would not.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The first window after a short sleep.
const SMALLEST: Duration = Duration::from_micros(8);
/// How long a worker looks that has many operations under way, before it sleeps until the device has some done: long
/// enough for a driver to answer completions with new requests, which then need no kick and go down together.
const BRIEF: Duration = Duration::from_micros(25);
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// Workers that look at this moment. Fewer do than there are CPUs, so that whoever they wait for has one.
#[derive(Debug)]
pub struct Lookers {
    now: AtomicUsize,
    most: usize,
}

impl Lookers {
    /// Those of this process.
    pub fn of_process() -> &'static Lookers {
        static LOOKERS: LazyLock<Lookers> = LazyLock::new(|| Lookers {
            now: AtomicUsize::new(0),
            most: std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1)),
        });
        &LOOKERS
    }

    fn enter(&self) -> bool {
        let entered = self.now.fetch_add(1, Ordering::Relaxed) < self.most;
        if !entered {
            self.leave();
        }
        entered
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker's patience.
#[derive(Debug)]
pub struct Poll {
    lookers: &'static Lookers,
    most: Duration,
    // See `BRIEF`.
    brief: Duration,
    window: Duration,
    // Since when the worker has been looking in vain, while it is.
    since: Option<Instant>,
    looks: u32,
    // How long it looked in vain before it went to sleep.
    looked: Duration,
}

impl Poll {
    /// Looks at most for `most`; zero: never.
    pub fn new(most: Duration, lookers: &'static Lookers) -> Poll {
        Poll {
            lookers,
            most,
            brief: most.min(BRIEF),
            window: Duration::ZERO,
            since: None,
            looks: 0,
            looked: Duration::ZERO,
        }
    }

    /// There was work.
    #[inline]
    pub fn found(&mut self) {
        if self.since.take().is_some() {
            self.lookers.leave();
        }
    }

    /// There was none: whether to look again rather than sleep; with many operations under way (`deep`) only briefly.
    #[inline]
    pub fn again(&mut self, deep: bool) -> bool {
        let window = if deep { self.brief } else { self.window };
        if window.is_zero() {
            return false;
        }
        let Some(since) = self.since else {
            if !self.lookers.enter() {
                return false;
            }
            self.since = Some(Instant::now());
            self.looks = 0;
            return true;
        };
        std::hint::spin_loop();
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) || since.elapsed() < window {
            return true;
        }
        self.found();
        self.looked = window;
        false
    }

    /// Whether sleeps are to be timed for [`Poll::slept`].
    #[inline]
    pub fn adapts(&self) -> bool {
        !self.most.is_zero()
    }

    /// Whether looking pays at the moment.
    #[inline]
    pub fn pays(&self, deep: bool) -> bool {
        !self.window.is_zero() || (deep && !self.most.is_zero())
    }

    /// The worker has slept so long. What it looked before that counts too: where the two together are longer than it may
    /// look, looking was in vain and will be.
    pub fn slept(&mut self, time: Duration) {
        let time = time + std::mem::take(&mut self.looked);
        if time < self.most {
            self.window = (self.window * 2).max(time + time / 2).max(SMALLEST).min(self.most);
        } else {
            self.window /= 2;
            if self.window < SMALLEST {
                self.window = Duration::ZERO;
            }
        }
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.found();
    }
}

#[cfg(test)]
impl Poll {
    /// Looks never, a few times, or for ever: nothing that a simulation does may be a matter of time.
    pub(crate) fn fixed(patience: u8) -> Poll {
        static LOOKERS: Lookers = Lookers { now: AtomicUsize::new(0), most: usize::MAX };
        let window = match patience {
            0 => Duration::ZERO,
            // Over by the first look at the clock, also in the next window.
            1 => Duration::from_nanos(1),
            _ => Duration::from_secs(1 << 30),
        };
        Poll { lookers: &LOOKERS, most: window, brief: window, window, since: None, looks: 0, looked: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn poll(most: Duration) -> Poll {
        Poll::new(most, Box::leak(Box::new(Lookers { now: AtomicUsize::new(0), most: 1 })))
    }

    #[test]
    fn short_sleeps_make_it_look_and_long_ones_give_up() {
        let mut poll = poll(100 * US);
        assert!(!poll.again(false), "nothing says yet that looking pays");
        poll.slept(20 * US);
        assert_eq!(poll.window, 30 * US);
        poll.slept(20 * US);
        assert_eq!(poll.window, 60 * US);
        for _ in 0..5 {
            poll.slept(90 * US);
        }
        assert_eq!(poll.window, 100 * US);
        for _ in 0..10 {
            poll.slept(Duration::from_secs(1));
        }
        assert_eq!(poll.window, Duration::ZERO);
        assert!(!poll.again(false));
    }

    #[test]
    fn the_longest_window_may_be_shorter_than_the_first() {
        let mut poll = poll(US);
        poll.slept(US / 2);
        assert_eq!(poll.window, US);
    }

    #[test]
    fn a_look_in_vain_counts_with_the_sleep_after_it() {
        let mut poll = poll(100 * US);
        poll.slept(20 * US);
        assert_eq!(poll.window, 30 * US);
        while poll.again(false) {}
        poll.slept(80 * US);
        assert_eq!(poll.window, 15 * US);
        poll.slept(80 * US);
        assert_eq!(poll.window, 100 * US, "without a look before it the same sleep is short");
    }

    #[test]
    fn zero_never_looks() {
        let mut poll = poll(Duration::ZERO);
        assert!(!poll.adapts() && !poll.pays(false) && !poll.pays(true));
        assert!(!poll.again(false));
    }

    #[test]
    fn looking_ends_when_the_window_does() {
        let mut poll = poll(1000 * US);
        poll.slept(600 * US);
        let start = Instant::now();
        while poll.again(false) {}
        assert!(start.elapsed() >= 900 * US);
        assert_eq!(poll.lookers.now.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_so_many_look_at_once() {
        let mut one = poll(1000 * US);
        let mut other = Poll::new(1000 * US, one.lookers);
        one.slept(900 * US);
        other.slept(900 * US);
        assert!(one.again(false));
        assert!(!other.again(false));
        one.found();
        assert!(other.again(false));
        drop(other);
        assert!(one.again(false));
    }
}
