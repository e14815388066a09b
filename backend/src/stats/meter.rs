//! What a worker thread does with its time.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Worker;
use super::clock::now;
use super::histogram::add;

/// Kept by the worker, read by others.
#[derive(Debug)]
// As in `lane`: what two workers write must lie apart.
#[repr(align(128))]
pub struct Meter {
    name: String,
    started: u64,
    // Since when it sleeps; 0: it is awake.
    asleep_since: AtomicU64,
    asleep: AtomicU64,
    looking: AtomicU64,
    turns: AtomicU64,
}

impl Meter {
    /// Of the calling thread, from now on.
    pub fn of_thread() -> Meter {
        Meter {
            name: std::thread::current().name().unwrap_or_default().to_owned(),
            started: now(),
            asleep_since: AtomicU64::new(0),
            asleep: AtomicU64::new(0),
            looking: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }
    }

    /// The worker goes to sleep.
    pub fn sleeps(&self, now: u64) {
        self.asleep_since.store(now, Ordering::Relaxed);
    }

    /// It has woken; returns how long it slept.
    pub fn woke(&self, now: u64) -> u64 {
        let slept = now.saturating_sub(self.asleep_since.load(Ordering::Relaxed));
        add(&self.asleep, slept);
        self.asleep_since.store(0, Ordering::Relaxed);
        slept
    }

    /// It has looked for work so long.
    #[inline]
    pub fn looked(&self, ns: u64) {
        add(&self.looking, ns);
    }

    /// It has worked, or slept, for another turn.
    #[inline]
    pub fn turned(&self) {
        add(&self.turns, 1);
    }

    /// What it has done until `now`.
    pub fn read(&self, now: u64) -> Worker {
        let total_ns = now.saturating_sub(self.started);
        let nap = match self.asleep_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        };
        let asleep_ns = (self.asleep.load(Ordering::Relaxed) + nap).min(total_ns);
        Worker {
            name: self.name.clone(),
            total_ns,
            asleep_ns,
            // Samples may say more than there is.
            looking_ns: self.looking.load(Ordering::Relaxed).min(total_ns - asleep_ns),
            turns: self.turns.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_that_goes_on_counts() {
        let meter = Meter::of_thread();
        let start = meter.started;
        meter.sleeps(start + 10);
        assert_eq!(meter.read(start + 100).asleep_ns, 90);
        assert_eq!(meter.woke(start + 110), 100);
        meter.looked(5_000);
        meter.turned();
        let worker = meter.read(start + 150);
        assert_eq!((worker.total_ns, worker.asleep_ns, worker.looking_ns, worker.turns), (150, 100, 50, 1));
    }
}
