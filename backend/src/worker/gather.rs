//! Requests that answer completions go down together.
//!
//! A driver that gets many completions at once answers with as many requests, one after another, while the worker looks on.
//! Sent down as they come, the first goes alone and the others wait for the device to ask for more. Disks of virtual
//! machines do best with whole waves; so a worker whose device has much to do waits for the rest, as long as it keeps
//! coming. A lone request never waits.

/// Requests that have just ended and operations under way, up to which requests are sent down as they come.
const FEW: usize = 4;
/// Looks in vain after which no more is expected: a microsecond or two.
const PATIENCE: u32 = 64;
/// Looks after which what has come first goes down, whatever else comes: another guest's may be among it.
const MOST: u32 = 4 * PATIENCE;

/// What a worker expects.
#[derive(Debug, Default)]
pub struct Gather {
    // Requests that may yet come in answer to completions.
    owed: usize,
    // The device has, or had, much to do.
    deep: bool,
    // Some have come, and have not been sent down.
    waiting: bool,
    looks: u32,
    vain: u32,
}

impl Gather {
    /// So many requests have ended in a turn, and so many operations are under way now.
    #[inline]
    pub fn ended(&mut self, ended: usize, under_way: usize) {
        if ended > 0 {
            self.deep = self.owed + ended + under_way > FEW;
            self.owed = if self.deep { self.owed + ended } else { 0 };
        }
    }

    /// So many requests have been taken off the rings, and there may be completions that have not been seen: whether what
    /// they ask of devices is to wait for more.
    #[inline]
    pub fn waits(&mut self, taken: usize, unseen: bool) -> bool {
        self.looks += u32::from(self.waiting);
        if taken > 0 {
            self.owed = self.owed.saturating_sub(taken);
            self.waiting = true;
            self.vain = 0;
        } else {
            self.vain += u32::from(self.waiting);
        }
        let come = (self.owed == 0 || self.vain >= PATIENCE) && !(self.deep && unseen);
        if self.waiting && (come || self.looks >= MOST) {
            self.forget();
        }
        self.waiting
    }

    /// Whoever was expected has not come.
    #[inline]
    pub fn forget(&mut self) {
        *self = Gather::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_waits_until_it_is_whole() {
        let mut gather = Gather::default();
        gather.ended(20, 0);
        gather.ended(12, 0);
        for _ in 0..10 {
            assert!(!gather.waits(0, false), "nothing has come yet, so nothing waits");
        }
        for _ in 0..31 {
            assert!(gather.waits(1, false));
        }
        assert!(!gather.waits(1, false), "all that was given back has been answered");
        assert!(!gather.waits(1, false), "what comes unasked does not wait");
    }

    #[test]
    fn the_rest_of_a_wave_that_does_not_come_is_not_waited_for() {
        let mut gather = Gather::default();
        gather.ended(32, 0);
        assert!(gather.waits(8, false));
        for _ in 1..PATIENCE {
            assert!(gather.waits(0, false));
        }
        assert!(!gather.waits(0, false));
        assert!(!gather.waits(1, false), "nor later");
    }

    #[test]
    fn a_wave_waits_for_completions_that_have_come_after_it_began() {
        let mut gather = Gather::default();
        gather.ended(2, 30);
        assert!(gather.waits(2, true));
        gather.ended(30, 0);
        assert!(gather.waits(0, false));
        assert!(!gather.waits(30, false));
    }

    #[test]
    fn nobody_can_make_it_wait_for_ever() {
        for unseen in [false, true] {
            let mut gather = Gather::default();
            gather.ended(1000, 0);
            assert!(gather.waits(1, unseen));
            let waits = (1..=MOST).take_while(|look| gather.waits(usize::from(look % 50 == 0), unseen)).count();
            assert!(waits < MOST as usize, "requests come one by one, {unseen}");
            gather.ended(8, 0);
            assert!(gather.waits(1, unseen));
            let waits = (1..=MOST).take_while(|_| gather.waits(0, true)).count();
            assert!(waits < MOST as usize, "completions are always about to come");
        }
    }

    #[test]
    fn few_requests_do_not_wait_nor_do_any_after_a_sleep() {
        let mut gather = Gather::default();
        gather.ended(1, 0);
        assert!(!gather.waits(1, false));
        gather.ended(2, 2);
        assert!(!gather.waits(1, false));
        gather.ended(1, FEW);
        assert!(!gather.waits(1, false), "one for one");
        gather.ended(3, 10);
        gather.forget();
        assert!(!gather.waits(1, false));
    }
}
