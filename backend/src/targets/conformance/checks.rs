//! The tests themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dm_table::{Format, Source, parse};
use fastrand::Rng;

use super::Case;
use super::bench::{Bench, temper};
use super::driver::{Ground, Op, What};
use crate::sim::SECTOR;

thread_local! {
    // For two that are there at a time.
    static GROUNDS: [Arc<Ground>; 2] = [Arc::new(Ground::new(2)), Arc::new(Ground::new(2))];
}

pub(super) const EVERYTHING: &[What] =
    &[What::Read, What::Read, What::Write, What::Write, What::Write, What::Flush, What::Discard, What::Zeroes];
const EXACT: &[What] = &[What::Read, What::Read, What::Write, What::Write, What::Zeroes];

/// Says on a failing test how to repeat it.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with DM_TEST_SEED={}", self.0);
        }
    }
}

pub(super) fn each_seed(count: u64, check: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let seeds = match number("DM_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DM_TEST_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let _repeat = Repeat(seed);
        check(seed);
    }
}

pub(super) fn bench(case: &'static Case, seed: u64) -> Bench {
    GROUNDS.with(|[ground, _]| Bench::new(case, seed, ground))
}

fn other_bench(case: &'static Case, seed: u64) -> Bench {
    GROUNDS.with(|[_, ground]| Bench::new(case, seed, ground))
}

/// Requests that are not in each other's way, in no order.
pub(super) fn some(rng: &mut Rng, len: u64, block: u64, kinds: &[What]) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut at = 0;
    loop {
        at += rng.u64(0..24) / block * block;
        let long = if rng.u8(..6) == 0 { 100 } else { 20 };
        let len = (rng.u64(1..=long).div_ceil(block) * block).min(len.saturating_sub(at));
        if len == 0 {
            break;
        }
        let what = kinds[rng.usize(..kinds.len())];
        let (from, len) = if what == What::Flush { (0, 0) } else { (at, len) };
        ops.push(Op { what, at: from, len, data: data(rng, what, len) });
        at += len;
    }
    rng.shuffle(&mut ops);
    ops
}

fn data(rng: &mut Rng, what: What, len: u64) -> Vec<u8> {
    let sectors = if what == What::Write { len } else { 0 };
    (0..sectors).map(|_| rng.u64(..).to_le_bytes().repeat(SECTOR / 8)).collect::<Vec<_>>().concat()
}

/// A request in pieces.
fn cut(rng: &mut Rng, op: &Op, block: u64) -> Vec<Op> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < op.len {
        let len = (rng.u64(1..=12).div_ceil(block) * block).min(op.len - done);
        pieces.push(op.part(done, len));
        done += len;
    }
    pieces
}

fn images(bench: &Bench) -> Vec<Vec<u8>> {
    (0..bench.case.parts.len()).map(|part| bench.sim.look(part, <[u8]>::to_vec)).collect()
}

/// Sectors that the disk has no use for are as they were.
fn nothing_else(bench: &Bench) {
    let used: BTreeSet<(usize, u64)> = (0..bench.model.len()).filter_map(bench.case.place).collect();
    for (part, (image, before)) in images(bench).iter().zip(&bench.images).enumerate() {
        let sectors = (0..).zip(image.chunks(SECTOR).zip(before.chunks(SECTOR)));
        for (at, (now, before)) in sectors.filter(|(at, _)| !used.contains(&(part, *at))) {
            assert!(now == before || bench.case.whole.contains(&part), "sector {at} of c{part} is none of the disk's");
        }
    }
}

/// The same requests, whole and one after the other; then in pieces, all at once, on devices of another mind.
pub(super) fn any_cut_in_any_order_gives_the_same_bytes(case: &'static Case) {
    each_seed(16, |seed| {
        let (mut whole, mut cuts) = (bench(case, seed), other_bench(case, seed + 1_000_000));
        let mut rng = Rng::with_seed(seed);
        for _ in 0..4 {
            let ops = some(&mut rng, whole.model.len(), whole.block(), EXACT);
            let mut pieces: Vec<Op> = ops.iter().flat_map(|op| cut(&mut rng, op, whole.block())).collect();
            rng.shuffle(&mut pieces);
            for op in ops {
                assert!(whole.does(op), "a request fails");
            }
            pieces.into_iter().for_each(|piece| cuts.submit(piece));
            cuts.settle();
        }
        assert_eq!(cuts.errors, 0, "a piece of a request fails");
        let (one, other) = (whole.read_all(), cuts.read_all());
        assert!(one == other, "the disks differ");
        whole.end();
        cuts.end();
        if !case.rewrites {
            assert!(images(&whole) == images(&cuts), "the components differ");
        }
        nothing_else(&cuts);
    });
}

/// One and the same list of requests as often as they take operations, each time with another one that fails.
pub(super) fn an_error_anywhere_reaches_the_guest_and_does_no_other_harm(case: &'static Case) {
    each_seed(2, |seed| {
        let mut failed = 0;
        for number in 0..400 {
            let mut bench = bench(case, seed);
            let mut rng = Rng::with_seed(seed);
            let began = bench.sim.started();
            bench.sim.fail_command(began + number);
            for _ in 0..2 {
                some(&mut rng, bench.model.len(), bench.block(), EVERYTHING)
                    .into_iter()
                    .for_each(|op| bench.submit(op));
                bench.settle();
            }
            let (failures, over) = (bench.sim.failure_count(), bench.sim.started() <= began + number);
            assert!(failures <= 1);
            failed += failures;
            bench.sim.heal();
            if !case.masks {
                assert_eq!(bench.errors > 0, failures > 0, "{} errors for {:?}", bench.errors, bench.sim.failures(0));
            }
            goes_on(&mut bench, &mut rng);
            bench.end();
            if over {
                break;
            }
        }
        assert!(failed >= 4, "only {failed} operations fail");
    });
}

/// After an error: the bytes are right, and what is written again is there.
fn goes_on(bench: &mut Bench, rng: &mut Rng) {
    let (len, errors) = (bench.model.len(), bench.errors);
    for what in [What::Read, What::Write, What::Read] {
        for at in (0..len).step_by(64) {
            let len = (len - at).min(64);
            bench.submit(Op { what, at, len, data: data(rng, what, len) });
        }
        bench.settle();
    }
    let flushed = bench.does(Op { what: What::Flush, at: 0, len: 0, data: Vec::new() });
    if !bench.case.breaks {
        assert!(flushed && bench.errors == errors, "requests fail though nothing else does any more");
    }
}

pub(super) fn what_was_acknowledged_survives_a_crash(case: &'static Case) {
    if !case.lasts {
        return;
    }
    each_seed(40, |seed| {
        let mut bench = bench(case, seed);
        let mut rng = Rng::with_seed(seed);
        for _ in 0..3 {
            bench.write_through.store(rng.u8(..3) == 0, Ordering::Relaxed);
            for _ in 0..rng.u8(1..4) {
                some(&mut rng, bench.model.len(), bench.block(), EVERYTHING)
                    .into_iter()
                    .for_each(|op| bench.submit(op));
                let temper = temper(&mut rng);
                bench.sim.set_temper(temper);
            }
            let turns = rng.u32(..120);
            bench.turns(turns);
            bench.crash();
            let found = bench.found();
            bench.model.crashed(&found);
        }
        bench.end();
    });
}

pub(super) fn a_suspend_in_the_middle_ends_and_everything_goes_on(case: &'static Case) {
    each_seed(24, |seed| {
        let mut bench = bench(case, seed);
        let mut rng = Rng::with_seed(seed);
        for round in 0..4 {
            some(&mut rng, bench.model.len(), bench.block(), EVERYTHING).into_iter().for_each(|op| bench.submit(op));
            let turns = rng.u32(..60);
            bench.turns(turns);
            let status = |bench: &Bench| -> Vec<String> {
                bench.all_targets().iter().map(|target| target.status(&str::to_owned)).collect()
            };
            bench.suspend();
            let before = status(&bench);
            bench.turns(50);
            let waiting = bench.waiting();
            // Those come when it goes on.
            let more = some(&mut rng, bench.model.len(), bench.block(), &[What::Flush, What::Flush]);
            more.into_iter().take(3).for_each(|op| bench.submit(op));
            bench.turns(200);
            assert!(bench.waiting() >= waiting, "a suspended disk gives requests back");
            bench.resume(round % 2 == 1);
            assert!(status(&bench) == before, "it has forgotten something: {before:?}, now {:?}", status(&bench));
            bench.settle();
        }
        assert_eq!(bench.errors, 0);
        let seen = bench.read_all();
        bench.model.check_now(&seen);
        bench.end();
    });
}

/// What a target holds back for no other reason than time, of requests and of what other targets do in the background, goes
/// on at once.
pub(super) fn a_suspend_waits_for_devices_alone(case: &'static Case) {
    // On the clock of the simulation, which goes on to the next look of a target at what it does whenever that one's worker
    // has a turn and nothing else to do.
    const MOST: Duration = Duration::from_secs(600);
    each_seed(16, |seed| {
        let mut bench = bench(case, seed);
        let mut rng = Rng::with_seed(seed);
        for round in 0..3 {
            some(&mut rng, bench.model.len(), bench.block(), EVERYTHING).into_iter().for_each(|op| bench.submit(op));
            let turns = rng.u32(..60);
            bench.turns(turns);
            let began = bench.sim.now();
            bench.suspend_at_once();
            let took = bench.sim.now() - began;
            assert!(took < MOST, "a suspend takes {took:?}");
            bench.resume(round % 2 == 1);
        }
        bench.settle();
        assert_eq!(bench.errors, 0);
        let seen = bench.read_all();
        bench.model.check_now(&seen);
        bench.end();
    });
}

pub(super) fn its_life_may_take_any_turn(case: &'static Case) {
    each_seed(20, |seed| {
        let mut bench = bench(case, seed);
        let mut rng = Rng::with_seed(seed);
        for _ in 0..10 {
            some(&mut rng, bench.model.len(), bench.block(), EVERYTHING).into_iter().for_each(|op| bench.submit(op));
            // What is in memory alone does not outlive its table.
            match rng.u8(..if case.lasts { 4 } else { 3 }) {
                // What comes to naught at once, and what ends as soon as it has begun.
                0 => {
                    bench.suspend();
                    bench.resume(rng.bool());
                    bench.suspend();
                    bench.resume(rng.bool());
                }
                // A table is checked while it is live.
                1 => bench.probe().expect("a probe"),
                // The components were away, for a migration.
                2 => {
                    bench.settle();
                    bench.suspend();
                    bench.activate().expect("another activation");
                    bench.resume(false);
                }
                // Another table took its place, and it takes that one's.
                _ => {
                    bench.settle();
                    bench.suspend();
                    bench.retire();
                    bench.probe().expect("a probe");
                    bench.activate().expect("another activation");
                    bench.resume(false);
                }
            }
            for target in bench.all_targets() {
                assert!(target.message(&["no such message"]).is_err());
                assert!(!target.status(&str::to_owned).contains('\n'));
            }
        }
        bench.settle();
        assert_eq!(bench.errors, 0);
        let seen = bench.read_all();
        bench.model.check_now(&seen);
        bench.end();
    });
}

pub(super) fn its_text_is_read_as_it_was_printed(case: &'static Case) {
    let table = |text: &str| {
        let file = parse(Arc::new(Source::new("t", text)), Format::Plain).unwrap_or_else(|e| panic!("{text}{e}"));
        file.devices[0].table.clone()
    };
    for text in case.tables {
        let printed = table(text).to_string();
        assert_eq!(table(&printed).to_string(), printed, "{text}");
        let targets = |text: &str| table(text).lines.iter().map(|line| line.target.type_name()).collect::<Vec<_>>();
        assert_eq!(targets(text), targets(&printed));
    }
}
