//! Stores as other programs, older stores and crashes leave them on a device.

use fastrand::Rng;

use super::bench::Bench;
use super::checks::{self, EVERYTHING};
use super::driver::{Op, What};
use super::{Case, PLAIN};
use crate::sim::{Kind, SECTOR};

/// Writes a header.
fn header(store: &mut [u8], chunk: u64) {
    for (at, word) in [0x7041_6e53_u32, 1, 1, chunk as u32].iter().enumerate() {
        store[4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Writes an entry of area `area`.
fn entry(store: &mut [u8], chunk: u64, (area, n): (u64, u64), (old, new): (u64, u64)) {
    let bytes = chunk * SECTOR as u64;
    let at = ((1 + area * (bytes / 16 + 1)) * bytes + 16 * n) as usize;
    store[at..][..8].copy_from_slice(&old.to_le_bytes());
    store[at + 8..][..8].copy_from_slice(&new.to_le_bytes());
}

/// Makes the second component a store of which nothing but the header and the first area is known: both are empty.
fn empty(images: &mut [Vec<u8>], chunk: u64) -> &mut [u8] {
    let store = &mut images[1];
    store[..2 * (chunk * SECTOR as u64) as usize].fill(0);
    header(store, chunk);
    store
}

/// Where entry `n` of a store is that was filled in order, and the chunk that it is for.
fn nth(n: u64, chunk: u64) -> ((u64, u64), u64) {
    let entries = chunk * SECTOR as u64 / 16;
    ((n / entries, n % entries), 2 + n / entries * (entries + 1) + n % entries)
}

/// Exceptions of chunks in order, each a sector, and zeroes behind them in the last area.
fn prepare_long(images: &mut [Vec<u8>], count: u64) {
    let store = empty(images, 1);
    for n in 0..=count {
        let (place, new) = nth(n, 1);
        if place.1 == 0 {
            let at = (1 + place.0 * 33) as usize * SECTOR;
            store[at..at + SECTOR].fill(0);
        }
        if n < count {
            entry(store, 1, place, (n, new));
        }
    }
}

/// Of a store that [`prepare_long`] has made.
fn long_place(at: u64, count: u64) -> Option<(usize, u64)> {
    Some(if at < count { (1, nth(at, 1).1) } else { (0, at) })
}

/// Exceptions of a store that has some areas.
const MANY: u64 = 32 * 100 + 7;
const FEW: u64 = 33;

static LONG: Case = Case {
    parts: &[3300, 3600],
    tables: &["0 3300 snapshot c0 c1 P 1"],
    whole: &[1],
    prepare: |images| prepare_long(images, MANY),
    place: |at| long_place(at, MANY),
    ..PLAIN
};

static SHORT: Case =
    Case { prepare: |images| prepare_long(images, FEW), place: |at| long_place(at, FEW), ..copy_of_long() };

const fn copy_of_long() -> Case {
    Case { parts: &[3300, 3600], tables: &["0 3300 snapshot c0 c1 P 1"], whole: &[1], ..PLAIN }
}

/// Activates it again, as when its components were away.
fn again(bench: &mut Bench) -> Result<(), String> {
    bench.settle();
    bench.suspend();
    let activated = bench.activate();
    bench.sim.heal();
    if activated.is_err() {
        bench.activate().expect("an activation when nothing fails any more");
    }
    bench.resume(false);
    activated
}

fn area(n: u64) -> std::ops::Range<u64> {
    let at = (1 + 33 * n) * SECTOR as u64;
    at..at + SECTOR as u64
}

#[test]
fn areas_are_read_ahead_and_an_error_counts_where_the_list_goes() {
    let mut bench = checks::bench(&LONG, 1);
    assert!(bench.most_under_way >= 32, "at most {} areas are read at a time", bench.most_under_way);
    let seen = bench.read_all();
    bench.model.check_now(&seen);
    for bad in [0, 1, 60, 100] {
        bench.sim.fail_range(1, area(bad), |kind| kind == Kind::Read, libc::EIO);
        let why = again(&mut bench).expect_err("area {bad} cannot be read");
        assert_eq!(why, "snapshot: Failed to read snapshot metadata (-EIO)");
    }
    let before = bench.sim.started();
    bench.sim.fail_range(1, area(101).start..3600 * SECTOR as u64, |kind| kind == Kind::Read, libc::EIO);
    again(&mut bench).expect("nobody needs what is behind the end");
    let reads = bench.sim.started() - before;
    assert!(reads < 250, "{reads} operations for 101 areas");
    let seen = bench.read_all();
    bench.model.check_now(&seen);
    bench.end();
}

#[test]
fn a_short_list_is_not_read_beyond_its_end_but_for_a_few_areas() {
    let mut bench = checks::bench(&SHORT, 1);
    let before = bench.sim.started();
    bench.sim.fail_range(1, area(2).start..3600 * SECTOR as u64, |kind| kind == Kind::Read, libc::EIO);
    again(&mut bench).expect("nobody needs what is behind the end");
    assert!(bench.sim.started() - before < 10);
    bench.end();
}

/// The first entries of a store with chunks of 4 sectors, and two of a commit of which the first sector was not written.
const WHOLE: u64 = 30;

pub(super) fn prepare_torn(images: &mut [Vec<u8>]) {
    let store = empty(images, 4);
    for n in 0..WHOLE {
        entry(store, 4, (0, n), (n, n + 2));
    }
    for n in 32..38 {
        entry(store, 4, (0, n), (n + 10, n + 12));
    }
}

pub(super) fn torn_place(at: u64) -> Option<(usize, u64)> {
    Some(if at < 4 * WHOLE { (1, at + 8) } else { (0, at) })
}

/// As the kernel's writes, which are as long as a chunk, may leave it: the list goes on behind a hole at the end of a block.
static HOLE: Case = Case {
    parts: &[4320, 9600],
    tables: &["0 4320 snapshot c0 c1 P 16"],
    whole: &[1],
    prepare: |images| {
        let store = empty(images, 16);
        (0..255).for_each(|n| entry(store, 16, (0, n), (n, n + 2)));
        (256..260).for_each(|n| entry(store, 16, (0, n), (n + 4, n + 44)));
    },
    place: |at| Some(if at < 255 * 16 { (1, at + 32) } else { (0, at) }),
    ..PLAIN
};

#[test]
fn a_list_does_not_grow_into_what_a_torn_commit_has_left() {
    let mut bench = checks::bench(&HOLE, 1);
    let data = vec![7; 16 * SECTOR];
    assert!(bench.does(Op { what: What::Write, at: 256 * 16, len: 16, data }));
    assert!(bench.does(Op { what: What::Flush, at: 0, len: 0, data: Vec::new() }));
    bench.crash();
    let found = bench.found();
    bench.model.crashed(&found);
    bench.end();
}

/// A new store where an older one was: in each of its areas are exceptions that could be.
pub(super) const OLDER: Case = Case {
    parts: &[100, 240],
    whole: &[1],
    prepare: |images| {
        let store = empty(images, 1);
        store[..SECTOR].fill(0);
        for n in 0..32 * 7 {
            let (place, new) = nth(n, 1);
            entry(store, 1, place, (99 - n % 100, if new < 239 { new + 1 - u64::from(new % 33 == 0) } else { new }));
        }
    },
    ..PLAIN
};

#[test]
fn a_store_over_an_older_one_has_nothing_of_it_wherever_a_crash_stops_it() {
    static CASE: Case = Case { tables: &["0 100 snapshot c0 c1 P 1"], ..OLDER };
    checks::each_seed(60, |seed| {
        let mut rng = Rng::with_seed(seed);
        let mut bench = checks::bench(&CASE, seed);
        for _ in 0..4 {
            let ops = checks::some(&mut rng, bench.model.len(), 1, EVERYTHING);
            ops.into_iter().for_each(|op| bench.submit(op));
            let turns = rng.u32(..150);
            bench.turns(turns);
            bench.crash();
            let found = bench.found();
            bench.model.crashed(&found);
        }
        bench.end();
    });
}
