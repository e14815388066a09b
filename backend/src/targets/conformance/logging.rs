//! A log of writes beside requests.

use super::driver::{Op, What};
use super::{Case, PLAIN, checks};
use crate::log_writes::Super;
use crate::sim::SECTOR;

static LOGGED: Case = Case { parts: &[256, 8192], tables: &["0 256 log-writes c0 c1"], whole: &[1], ..PLAIN };

#[test]
fn a_mark_comes_to_the_log_after_a_suspend_that_was_taken_back() {
    checks::each_seed(20, |seed| {
        let mut bench = checks::bench(&LOGGED, seed);
        bench.submit(Op { what: What::Write, at: 8, len: 16, data: vec![7; 16 * SECTOR] });
        bench.suspend_and_take_back(seed as u32);
        bench.settle();
        bench.all_targets()[0].message(&["mark", "x"]).expect("there is room for a mark");
        // The write is no part of it: nothing has flushed that.
        let counted = Super { entries: 1, block: SECTOR as u32 }.encode();
        bench.until("the log does not count its mark", |bench| bench.sim.look(1, |log| log.starts_with(&counted)));
        bench.end();
    });
}
