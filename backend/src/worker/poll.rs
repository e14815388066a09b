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
/// Operations under way up to which looking for their end may beat sleeping.
const SHALLOW: usize = 4;
/// A device that takes longer is not worth looking for: the wake-up is a small part of what it takes.
const QUICK: Duration = Duration::from_micros(64);
/// How long a worker looks that has many operations under way, before it sleeps until the device has some done: long
/// enough for a driver that looks too to answer completions with new requests, which then need no kick and go down
/// together. Longer looks cost CPU time and gave no more requests a second.
const BRIEF: Duration = Duration::from_micros(4);
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// Workers that look at this moment. Fewer do than there are CPUs for this process, so that whoever they wait for has one;
/// but one may where there is only one, as a process that was put on a CPU of its own waits for others elsewhere.
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
            most: std::thread::available_parallelism().map_or(1, |n| (n.get() - 1).max(1)),
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

/// What a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The next request: nothing is under way.
    Idle,
    /// A device that has little to do, or the next request.
    Shallow,
    /// A device that has much to do and sets the pace.
    Deep,
}

impl Pace {
    /// With so many operations under way.
    #[inline]
    pub fn of(under_way: usize) -> Pace {
        match under_way {
            0 => Pace::Idle,
            1..=SHALLOW => Pace::Shallow,
            _ => Pace::Deep,
        }
    }
}

/// How long to look, by what was found.
#[derive(Debug)]
struct Window {
    now: Duration,
    most: Duration,
}

impl Window {
    fn new(most: Duration) -> Window {
        Window { now: Duration::ZERO, most }
    }

    /// What was waited for took so long to come.
    fn took(&mut self, time: Duration) {
        if time < self.most {
            self.now = (self.now * 2).max(time + time / 2).max(SMALLEST).min(self.most);
        } else {
            self.now /= 2;
            if self.now < SMALLEST {
                self.now = Duration::ZERO;
            }
        }
    }
}

/// One worker's patience.
#[derive(Debug)]
pub struct Poll {
    lookers: &'static Lookers,
    idle: Window,
    shallow: Window,
    // See `BRIEF`.
    deep: Duration,
    // Since when the worker has been looking in vain, while it is.
    since: Option<Instant>,
    looks: u32,
    // How long it looked in vain before it went to sleep.
    looked: Duration,
    // The same for statistics, in nanoseconds.
    vain: u64,
}

impl Poll {
    /// Looks at most for `most`; zero: never.
    pub fn new(most: Duration, lookers: &'static Lookers) -> Poll {
        Poll {
            lookers,
            idle: Window::new(most),
            shallow: Window::new(most.min(QUICK)),
            deep: most.min(BRIEF),
            since: None,
            looks: 0,
            looked: Duration::ZERO,
            vain: 0,
        }
    }

    /// There was work.
    #[inline]
    pub fn found(&mut self) {
        if self.since.take().is_some() {
            self.lookers.leave();
        }
    }

    #[inline]
    fn window(&self, pace: Pace) -> Duration {
        match pace {
            Pace::Idle => self.idle.now,
            Pace::Shallow => self.shallow.now,
            Pace::Deep => self.deep,
        }
    }

    /// There was none: whether to look again rather than sleep.
    #[inline]
    pub fn again(&mut self, pace: Pace) -> bool {
        let window = self.window(pace);
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
        if !self.looks.is_multiple_of(LOOKS) {
            return true;
        }
        let looked = since.elapsed();
        if looked < window {
            return true;
        }
        self.vain += looked.as_nanos() as u64;
        self.found();
        self.looked = window;
        false
    }

    /// Nanoseconds of looks that were given up since the last call.
    pub fn vain(&mut self) -> u64 {
        std::mem::take(&mut self.vain)
    }

    /// Nanoseconds that the present look has lasted; 0 if there is none.
    pub fn looking(&self) -> u64 {
        self.since.map_or(0, |since| since.elapsed().as_nanos() as u64)
    }

    /// Whether sleeps are to be timed for [`Poll::slept`].
    #[inline]
    pub fn adapts(&self, pace: Pace) -> bool {
        pace != Pace::Deep && !self.idle.most.is_zero()
    }

    /// Whether looking pays at the moment.
    #[inline]
    pub fn pays(&self, pace: Pace) -> bool {
        !self.window(pace).is_zero()
    }

    /// The worker has slept so long. What it looked before that counts too: where the two together are longer than it may
    /// look, looking was in vain and will be.
    pub fn slept(&mut self, pace: Pace, time: Duration) {
        let time = time + std::mem::take(&mut self.looked);
        match pace {
            Pace::Idle => self.idle.took(time),
            Pace::Shallow => self.shallow.took(time),
            Pace::Deep => {}
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
        let time = match patience {
            0 => Duration::ZERO,
            // Over by the first look at the clock, also in the next window.
            1 => Duration::from_nanos(1),
            _ => Duration::from_secs(1 << 30),
        };
        let window = || Window { now: time, most: time };
        let (idle, shallow) = (window(), window());
        Poll { lookers: &LOOKERS, idle, shallow, deep: time, since: None, looks: 0, looked: Duration::ZERO, vain: 0 }
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
        assert!(!poll.again(Pace::Idle), "nothing says yet that looking pays");
        poll.slept(Pace::Idle, 20 * US);
        assert_eq!(poll.idle.now, 30 * US);
        poll.slept(Pace::Idle, 20 * US);
        assert_eq!(poll.idle.now, 60 * US);
        for _ in 0..5 {
            poll.slept(Pace::Idle, 90 * US);
        }
        assert_eq!(poll.idle.now, 100 * US);
        for _ in 0..10 {
            poll.slept(Pace::Idle, Duration::from_secs(1));
        }
        assert_eq!(poll.idle.now, Duration::ZERO);
        assert!(!poll.again(Pace::Idle));
    }

    #[test]
    fn the_longest_window_may_be_shorter_than_the_first() {
        let mut poll = poll(US);
        poll.slept(Pace::Idle, US / 2);
        assert_eq!(poll.idle.now, US);
    }

    #[test]
    fn a_look_in_vain_counts_with_the_sleep_after_it() {
        let mut poll = poll(100 * US);
        poll.slept(Pace::Idle, 20 * US);
        assert_eq!(poll.idle.now, 30 * US);
        while poll.again(Pace::Idle) {}
        poll.slept(Pace::Idle, 80 * US);
        assert_eq!(poll.idle.now, 15 * US);
        poll.slept(Pace::Idle, 80 * US);
        assert_eq!(poll.idle.now, 100 * US, "without a look before it the same sleep is short");
    }

    #[test]
    fn a_slow_device_does_not_end_the_looks_for_a_quick_driver() {
        let mut poll = poll(1000 * US);
        for _ in 0..20 {
            poll.slept(Pace::Idle, 2 * US);
            poll.slept(Pace::Shallow, 150 * US);
        }
        assert!(poll.pays(Pace::Idle) && !poll.pays(Pace::Shallow));
        poll.slept(Pace::Shallow, 20 * US);
        assert!(poll.pays(Pace::Shallow));
        assert_eq!(Pace::of(0), Pace::Idle);
        assert_eq!((Pace::of(1), Pace::of(SHALLOW)), (Pace::Shallow, Pace::Shallow));
        assert_eq!(Pace::of(SHALLOW + 1), Pace::Deep);
    }

    #[test]
    fn zero_never_looks() {
        let mut poll = poll(Duration::ZERO);
        for pace in [Pace::Idle, Pace::Shallow, Pace::Deep] {
            poll.slept(pace, US);
            assert!(!poll.adapts(pace) && !poll.pays(pace) && !poll.again(pace));
        }
    }

    #[test]
    fn looking_ends_when_the_window_does() {
        let mut poll = poll(1000 * US);
        poll.slept(Pace::Idle, 600 * US);
        let start = Instant::now();
        while poll.again(Pace::Idle) {}
        assert!(start.elapsed() >= 900 * US);
        assert_eq!(poll.lookers.now.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_so_many_look_at_once() {
        let mut one = poll(1000 * US);
        let mut other = Poll::new(1000 * US, one.lookers);
        one.slept(Pace::Idle, 900 * US);
        other.slept(Pace::Idle, 900 * US);
        assert!(one.again(Pace::Idle));
        assert!(!other.again(Pace::Idle));
        one.found();
        assert!(other.again(Pace::Idle));
        drop(other);
        assert!(one.again(Pace::Idle));
    }
}
