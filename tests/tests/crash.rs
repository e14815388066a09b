//! The short form of `ci/crash.sh`: the back end is killed under load, and nothing that was acknowledged is lost.
#![allow(missing_docs)]

use dm_tests::crash::{Mode, Report, run};
use dm_tests::{files, rng, skip};

fn rounds(name: &str, base: u64, mode: Mode) {
    if files::memory_dir().is_none() {
        skip::skip(name, "no tmpfs at /dev/shm; disk only");
    }
    let mut report = Report::default();
    for seed in rng::seeds(base, 10) {
        report += run(seed, mode);
    }
    assert!(report.kills >= report.rounds, "{report}");
    assert!(report.outstanding > 0, "nothing was outstanding at a kill, so this shows nothing: {report}");
}

#[test]
fn nothing_is_lost_with_in_flight_tracking() {
    rounds("nothing_is_lost_with_in_flight_tracking", 5000, Mode::Tracked);
}

#[test]
fn nothing_is_lost_in_order() {
    rounds("nothing_is_lost_in_order", 6000, Mode::InOrder);
}
