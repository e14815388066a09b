use super::*;

const K: u64 = 1024;

fn unflushed() -> Unflushed {
    Unflushed::new("c0", true)
}

fn write(ledger: &Unflushed, bytes: Range<u64>) {
    ledger.written(bytes, ledger.stamp());
}

/// A whole flush: what the guest is told.
fn flush(ledger: &Unflushed, success: bool) -> bool {
    let flush = ledger.begin();
    let believed = ledger.end(flush, success);
    believed && !flush.began().lost()
}

fn lost(ledger: &Unflushed) -> Vec<Range<u64>> {
    ledger.lock().lost.iter().cloned().collect()
}

#[test]
fn flushes_fail_until_what_was_lost_is_written_again() {
    let ledger = unflushed();
    write(&ledger, 0..4 * K);
    assert!(flush(&ledger, true));
    write(&ledger, 8 * K..16 * K);
    write(&ledger, 100 * K..100 * K + 512);
    assert!(!flush(&ledger, false));
    assert_eq!(lost(&ledger), [8 * K..16 * K, 100 * K..100 * K + 512], "what the first flush kept is not among it");
    assert!(!flush(&ledger, true) && !flush(&ledger, true));
    write(&ledger, 8 * K..15 * K);
    assert!(!flush(&ledger, true));
    write(&ledger, 90 * K..200 * K);
    assert_eq!(lost(&ledger), [Range { start: 15 * K, end: 16 * K }]);
    assert!(!flush(&ledger, true));
    // A durable write writes too.
    ledger.written_durably(15 * K..16 * K, ledger.stamp());
    assert!(flush(&ledger, true));
    assert!(!flush(&ledger, false), "nothing was lost by this one, but it failed");
    assert!(flush(&ledger, true));
}

#[test]
fn a_write_again_must_itself_be_flushed() {
    let ledger = unflushed();
    write(&ledger, 0..4 * K);
    assert!(!flush(&ledger, false));
    write(&ledger, 0..4 * K);
    assert!(!flush(&ledger, false));
    assert_eq!(lost(&ledger), [Range { start: 0, end: 4 * K }]);
    assert!(!flush(&ledger, true));
}

#[test]
fn a_durable_write_that_fails_may_have_been_told_of_others() {
    for (cached, kept) in [(true, false), (false, true)] {
        let ledger = Unflushed::new("c0", cached);
        write(&ledger, 0..4 * K);
        ledger.failed_durably();
        assert_eq!(flush(&ledger, true), kept);
    }
}

#[test]
fn a_write_during_a_flush_is_for_the_next_one() {
    let ledger = unflushed();
    let first = ledger.begin();
    write(&ledger, 0..4 * K);
    assert!(ledger.end(first, true));
    assert!(!flush(&ledger, false));
    assert_eq!(lost(&ledger), [Range { start: 0, end: 4 * K }]);
}

/// The kernel tells the error to the second, and the first does not know.
#[test]
fn an_error_that_another_flush_is_told_is_everyones() {
    for leader_ends_first in [false, true] {
        let ledger = unflushed();
        write(&ledger, 0..4 * K);
        let (leader, follower) = (ledger.begin(), ledger.begin());
        if leader_ends_first {
            // This one cannot know yet; but it has not been forgotten what it was for.
            assert!(ledger.end(leader, true));
            assert!(!ledger.end(follower, false));
        } else {
            assert!(!ledger.end(follower, false));
            assert!(!ledger.end(leader, true), "its success is not to be believed");
        }
        assert_eq!(lost(&ledger), [Range { start: 0, end: 4 * K }]);
        assert!(!flush(&ledger, true));
    }
}

#[test]
fn flushes_that_never_stop_overlapping_do_not_keep_everything() {
    let ledger = unflushed();
    let mut before = ledger.begin();
    for n in 0..100 {
        write(&ledger, 4 * K * n..4 * K * (n + 1));
        let next = ledger.begin();
        assert!(ledger.end(before, true));
        before = next;
    }
    assert!(!ledger.end(before, false));
    let kept: u64 = lost(&ledger).iter().map(|range| range.end - range.start).sum();
    assert!(kept <= 4 * 4 * K, "{kept} bytes are said to be lost, most of them were flushed");
    assert!(lost(&ledger).last().is_some_and(|range| range.end == 400 * K));
}

#[test]
fn a_write_that_was_under_way_when_the_flush_failed_is_lost_too() {
    let ledger = unflushed();
    let (early, durable) = (ledger.stamp(), ledger.stamp());
    assert!(!flush(&ledger, false));
    assert!(flush(&ledger, true), "nothing was written");
    ledger.written(0..512, early);
    assert_eq!(lost(&ledger), [Range { start: 0, end: 512 }]);
    assert!(!flush(&ledger, true));
    ledger.written_durably(0..512, durable);
    assert!(!flush(&ledger, true), "its error may have been told to the flush");
    write(&ledger, 0..512);
    assert!(flush(&ledger, true));
}

/// Writers, flushers that fail now and then, and at last a look at what is lost: all that no flush covered.
#[test]
fn threads_lose_nothing() {
    for seed in 0..20 {
        let ledger = unflushed();
        let end = 300;
        std::thread::scope(|scope| {
            for n in 0..3 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for i in 0..end {
                        write(ledger, (3 * i + n) * 512..(3 * i + n + 1) * 512);
                    }
                });
            }
            for n in 0..2 {
                let ledger = &ledger;
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed * 2 + n);
                    (0..100).for_each(|_| {
                        flush(ledger, rng.u8(..8) != 0);
                    });
                });
            }
        });
        write(&ledger, 1 << 20..(1 << 20) + 512);
        let believed = flush(&ledger, true);
        assert_eq!(believed, lost(&ledger).is_empty(), "seed {seed}");
        // Whatever it was, to write everything again ends it.
        write(&ledger, 0..1 << 21);
        assert!(lost(&ledger).is_empty() && flush(&ledger, true), "seed {seed}");
    }
}
