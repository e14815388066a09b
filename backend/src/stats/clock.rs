//! The clock that requests are timed by, read as seldom as may be.

use nix::time::{ClockId, clock_gettime};

/// Turns with work of which one is timed, where nothing else calls for a look at the clock. A prime, so that no rhythm of
/// turns keeps step with it.
const EVERY: u64 = 127;

/// Nanoseconds of the monotonic clock.
// Not inline: where it is called seldom its caller is better off small.
#[inline(never)]
pub fn now() -> u64 {
    match clock_gettime(ClockId::CLOCK_MONOTONIC) {
        Ok(time) => time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64,
        Err(_) => 0,
    }
}

/// A worker's. A look at it takes as long as a tenth of a small request, so:
///
/// - what a device has to do is timed by one look at the end of the worker's round of requests, and one when completions
///   come: a system call lies between them as a rule;
/// - what is done at once is timed in turns after a sleep, and in one of `EVERY` others, where it stands for all of them.
#[derive(Debug, Default)]
pub struct Clock {
    // 0: not looked at in this part of the turn.
    now: u64,
    weight: u64,
    asleep: bool,
    turns: u64,
    // When the last request of a turn that is timed had ended; 0: none has.
    mark: u64,
}

impl Clock {
    /// A turn begins.
    #[inline]
    pub fn begin(&mut self) {
        self.now = 0;
        self.mark = 0;
        self.weight = match (std::mem::take(&mut self.asleep), self.turns) {
            (true, _) => 1,
            (false, 0) => EVERY,
            (false, _) => 0,
        };
    }

    /// The worker has slept until now.
    #[inline]
    pub fn woke(&mut self, now: u64) {
        self.now = now;
        self.asleep = true;
    }

    /// Time may have passed: what comes next looks again.
    #[inline]
    pub fn pass(&mut self) {
        self.now = 0;
    }

    /// The turn had work.
    #[inline]
    pub fn worked(&mut self) {
        self.turns = if self.turns + 1 == EVERY { 0 } else { self.turns + 1 };
    }

    /// How many like it a request of this turn stands for that is done at once; 0: it is not timed.
    #[inline]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// When a request is taken of a turn that is timed: when the one before it had ended.
    #[cold]
    pub fn taken(&mut self) -> u64 {
        if self.mark == 0 { now() } else { self.mark }
    }

    /// When such a request has ended.
    #[cold]
    pub fn ended(&mut self) -> u64 {
        self.mark = now();
        self.mark
    }

    /// The time of this part of the turn.
    #[inline]
    pub fn now(&mut self) -> u64 {
        if self.now == 0 {
            self.now = now();
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_all_turns_are_as_many_as_the_turns() {
        let mut clock = Clock::default();
        let mut weights = 0;
        for _ in 0..EVERY * 10 {
            // A look in vain in between changes nothing.
            clock.begin();
            clock.begin();
            weights += clock.weight();
            clock.worked();
        }
        assert_eq!(weights, EVERY * 10);
    }

    #[test]
    fn a_turn_after_a_sleep_stands_for_itself() {
        let mut clock = Clock::default();
        clock.begin();
        clock.woke(7);
        assert_eq!(clock.now(), 7);
        clock.begin();
        assert_eq!(clock.weight(), 1);
        assert_ne!(clock.now(), 7);
        let now = clock.now();
        assert_eq!(clock.now(), now, "one look is enough");
        clock.pass();
        assert!(clock.now() > now);
    }
}
