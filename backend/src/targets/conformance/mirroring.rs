//! Legs of a mirror that fail a write over several regions.

use std::sync::Arc;

use super::bench::Bench;
use super::driver::{Op, What};
use super::{Case, PLAIN, checks};
use crate::event::Events;
use crate::sim::{Kind, SECTOR};

/// 256 regions.
static MIRROR: Case = Case {
    parts: &[2048, 2048],
    tables: &["0 2048 mirror core 2 8 nosync 2 c0 0 c1 0 1 handle_errors"],
    prepare: |images| images[1] = images[0].clone(),
    masks: true,
    ..PLAIN
};

fn status(bench: &Bench) -> String {
    bench.all_targets()[0].status(&str::to_owned)
}

/// One whose events are counted.
fn bench(seed: u64) -> (Bench, Arc<Events>) {
    let (bench, events) = (checks::bench(&MIRROR, seed), Arc::new(Events::default()));
    bench.all_targets()[0].events(&events);
    (bench, events)
}

#[test]
fn a_leg_that_fails_everything_is_not_asked_for_each_region() {
    let all = [
        Op { what: What::Zeroes, at: 0, len: 2048, data: Vec::new() },
        Op { what: What::Write, at: 4, len: 120, data: vec![7; 120 * SECTOR] },
    ];
    for (seed, op) in (0..8).flat_map(|seed| all.clone().map(|op| (seed, op))) {
        let (mut bench, events) = bench(seed);
        let regions = (op.at + op.len).div_ceil(8) - op.at / 8;
        let changes = |kind| !matches!(kind, Kind::Read | Kind::Sync);
        bench.sim.fail_range(1, 0..2048 * SECTOR as u64, changes, libc::EIO);
        assert!(bench.does(op), "the other leg has it");
        let failures = bench.sim.failure_count();
        assert!((1..=8).contains(&failures), "{failures} operations failed for {regions} regions");
        let lacks = format!(" {}/256 1 AD 1 core", 256 - regions);
        assert!(status(&bench).ends_with(&lacks), "seed {seed}: {}", status(&bench));
        assert_eq!(events.number(), 1);
        bench.sim.heal();
        bench.end();
    }
}

#[test]
fn an_error_is_told_of_though_the_regions_could_be_written_one_by_one() {
    let mut mended = 0;
    for (seed, nth) in (0..8).flat_map(|seed| (0..4).map(move |nth| (seed, nth))) {
        let (mut bench, events) = bench(seed);
        bench.sim.fail_command(bench.sim.started() + nth);
        let done = bench.does(Op { what: What::Write, at: 4, len: 120, data: vec![7; 120 * SECTOR] });
        let failures = bench.sim.failures(0);
        if let [failure] = failures[..]
            && failure.kind != Kind::Read
        {
            let letters = if failure.disk == 0 { "DA" } else { "AD" };
            assert!(done, "no region could not be written");
            let told = format!(" 256/256 1 {letters} 1 core");
            assert!(status(&bench).ends_with(&told), "seed {seed}: {}", status(&bench));
            assert_eq!(events.number(), 1);
            mended += 1;
        }
        bench.end();
    }
    assert!(mended > 8, "{mended} writes failed");
}
