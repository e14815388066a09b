//! What writers of the origin want of a snapshot: that it has what they write over.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;

use super::exceptions::Run;
use super::live::{Inner, Live, MOST_PENDING, State};
use super::owner::Stage;
use crate::targets::Cx;

/// Runs that one look at a write enters as pending, at most: what is behind them has its turn when they are copied.
const MOST_RUNS: usize = 64;

/// See [`Live::errands`].
#[derive(Debug)]
pub struct Errands {
    /// There was no room for a copy: it is to be given up.
    pub doomed: bool,
    /// Runs to be copied from the origin, then completed.
    pub copies: Vec<Run>,
}

impl Live {
    /// Sectors `[start, end)` of the origin are to be written: begins copies that are needed first. True when there are
    /// some, or were already: [`Live::protected`] waits for them, and it is to be asked again.
    pub fn protect(&self, sectors: &Range<u64>) -> bool {
        let mut inner = self.inner();
        let chunk = self.layout().chunk();
        let Some(chunks) = inner.protected_chunks(sectors, chunk) else { return false };
        if inner.state == State::Invalid {
            // Until its device says so: who comes meanwhile waits as who was there before.
            return inner.holds_back(sectors, chunk);
        }
        let (mut at, mut wait, mut begun) = (chunks.start, inner.doomed, 0);
        while at < chunks.end && !inner.doomed && begun < MOST_RUNS {
            let free = match inner.pending_from(at) {
                Some((first, count)) if first <= at => {
                    (at, wait) = (first + count, true);
                    continue;
                }
                Some((first, _)) => first.min(chunks.end) - at,
                None => chunks.end - at,
            };
            let extent = inner.complete.extent(at, free);
            if extent.new.is_some() {
                at += extent.len;
                continue;
            }
            (wait, begun) = (true, begun + 1);
            match inner.enter(self.store(), at, extent.len.min(MOST_PENDING)) {
                Some(run) => {
                    inner.copies.push_back(run);
                    at += run.len;
                }
                None => inner.doomed = true,
            }
        }
        if begun > 0 {
            self.work.notify(usize::MAX);
        }
        wait
    }

    /// Waits until nothing of that is needed any more, as far as it was begun.
    ///
    /// # Errors
    /// EIO: the device of the snapshot is suspended, and the queue of the request is to end.
    pub async fn protected(&self, cx: &Cx, sectors: &Range<u64>) -> Result<(), i32> {
        loop {
            let mut changed = pin!(self.changed.listen());
            let ended = poll_fn(|context| {
                let inner = self.inner();
                if !inner.holds_back(sectors, self.layout().chunk()) {
                    return Poll::Ready(Some(Ok(())));
                }
                if inner.stage != Stage::Served && cx.is_hurried() {
                    return Poll::Ready(Some(Err(libc::EIO)));
                }
                drop(inner);
                changed.as_mut().poll(context).map(|()| None)
            });
            if let Some(ended) = ended.await {
                return ended;
            }
        }
    }

    /// What is to be done beside requests, up to `most` copies; all of it while its device is served.
    pub fn errands(&self, most: usize) -> Errands {
        let mut inner = self.inner();
        let most = most.min(inner.copies.len());
        Errands { doomed: std::mem::take(&mut inner.doomed), copies: inner.copies.drain(..most).collect() }
    }
}

impl Inner {
    /// Whether those sectors must not be written yet.
    fn holds_back(&self, sectors: &Range<u64>, chunk: u64) -> bool {
        let Some(chunks) = self.protected_chunks(sectors, chunk) else { return false };
        if self.doomed || self.state == State::Invalid {
            // Its device must say so before it can miss anything.
            return !self.buried;
        }
        self.pending_from(chunks.start).is_some_and(|(first, _)| first < chunks.end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::live::tests::live;
    use super::super::owner::Owner;
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// One that target 0 has, which is suspended.
    fn suspended(merges: bool) -> Live {
        let live = live(merges);
        live.suspend(0);
        live
    }

    fn owner(id: u64, end: u64, merges: bool) -> Owner {
        Owner { id, end, merges, ..Owner::default() }
    }

    #[test]
    fn the_origin_waits_until_the_device_says_that_the_snapshot_is_invalid() {
        let live = live(false);
        live.inner().state = State::Invalid;
        assert!(live.protect(&(0..8)));
        live.inner().buried = true;
        assert!(!live.protect(&(0..8)));
    }

    #[test]
    fn until_the_hand_over_is_certain_the_origin_waits_for_what_either_needs() {
        let live = suspended(false);
        assert!(live.protect(&(0..8)), "chunk 0 is not kept");
        assert!(live.hand_over(owner(1, 400, true)));
        assert!(live.protect(&(0..8)) && live.protect(&(792..800)) && !live.protect(&(800..808)));
        // It was not to be: what was waited for is still to be copied.
        assert!(live.give_back() && live.is_of(0) && live.stage() == Stage::Suspended);
        assert!(live.protect(&(0..8)));
        let copies = live.errands(9).copies;
        assert_eq!(copies.iter().map(|run| run.old).collect::<Vec<_>>(), [0, 99]);
        // Now it is.
        assert!(live.hand_over(owner(1, 400, true)));
        assert!(live.begin(1, &AtomicBool::new(false)));
        assert!(!live.protect(&(8..16)));
        assert!(!live.give_back() && live.is_of(1));
    }

    #[test]
    fn a_shorter_table_keeps_the_rest_of_the_origin_back_until_it_is_live() {
        let live = suspended(false);
        assert!(live.hand_over(owner(1, 80, false)));
        assert!(live.protect(&(400..408)));
        assert!(live.go_on(1));
        assert!(!live.protect(&(408..416)) && live.protect(&(72..80)));
    }

    #[test]
    fn what_was_asked_for_while_a_merge_should_have_become_a_snapshot_is_forgotten_with_that() {
        let live = suspended(true);
        let before = live.status();
        assert!(live.hand_over(owner(1, 800, false)));
        assert!(live.protect(&(0..80)));
        assert!(live.give_back());
        assert_eq!((live.status(), live.protect(&(0..80))), (before, false));
        assert!(live.inner().pending.is_empty());
    }

    #[test]
    fn one_for_which_there_was_no_room_is_not_given_up_when_nobody_waits_for_that_any_more() {
        let live = suspended(false);
        assert!(live.protect(&(0..u64::MAX)));
        while !live.inner().doomed {
            let all = live.errands(usize::MAX).copies;
            all.iter().for_each(|run| assert!(live.inner().pending.remove(&run.old).is_some()));
            live.inner().next += 100;
            assert!(live.protect(&(0..8)));
        }
        assert!(live.hand_over(owner(1, 800, true)) && live.begin(1, &AtomicBool::new(false)));
        live.suspend(1);
        assert!(live.hand_over(owner(2, 800, false)) && live.begin(2, &AtomicBool::new(false)));
        assert!(!live.errands(9).doomed);
    }

    #[test]
    fn who_has_gone_on_without_it_does_not_get_it_back() {
        let live = suspended(false);
        assert!(live.hand_over(owner(1, 800, false)));
        assert!(!live.hand_over(owner(2, 800, false)), "it is not certain whose it is");
        assert!(!live.go_on(0));
        assert!(!live.give_back() && live.is_of(1));
    }

    #[test]
    fn nobody_takes_one_whose_device_goes_on_and_who_is_stopped_first_does_not_serve() {
        let live = suspended(false);
        assert!(live.go_on(0));
        assert!(!live.hand_over(owner(1, 800, false)) && !live.release_suspended());
        live.suspend(0);
        assert!(live.begin(0, &AtomicBool::new(true)));
        assert_eq!(live.stage(), Stage::Suspended);
    }

    #[test]
    fn a_long_write_is_looked_at_in_parts() {
        let live = live(false);
        assert!(live.protect(&(0..u64::MAX)));
        assert!(live.inner().pending.len() <= MOST_RUNS);
    }
}
