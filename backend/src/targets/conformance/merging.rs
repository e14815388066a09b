//! Snapshots that lose their power, again and again, while they are written to and while they are merged.
//!
//! The same store is now a `snapshot`'s and now a `snapshot-merge`'s, under requests, over devices that lose and tear what was
//! not made durable. After each crash every sector is what one of the requests made it that the acknowledged flushes leave
//! possible; in the end all is merged, and the origin alone holds it.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use fastrand::Rng;

use super::bench::Bench;
use super::checks::{self, EVERYTHING};
use super::driver::{Op, What};
use super::{Case, PLAIN, stores};
use crate::sim::{Kind, SECTOR};

/// Seeds of one run; `DM_TEST_SEEDS` sets another number: 10,000 in the long form.
const SEEDS: u64 = 200;

/// Chunks that the prepared store has, in its order: alone, in runs, and backwards.
const KEPT: [u64; 19] = [3, 4, 5, 0, 9, 8, 7, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];
/// Sectors of a chunk of it.
const CHUNK: usize = 8;

/// Makes the second component a store with some exceptions, as the kernel writes it.
pub(super) fn prepare(images: &mut [Vec<u8>]) {
    let bytes = CHUNK * SECTOR;
    let store = &mut images[1];
    store[..2 * bytes].fill(0);
    for (at, word) in [0x7041_6e53_u32, 1, 1, CHUNK as u32].iter().enumerate() {
        store[4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
    for (n, old) in KEPT.iter().enumerate() {
        store[bytes + 16 * n..][..8].copy_from_slice(&old.to_le_bytes());
        store[bytes + 16 * n + 8..][..8].copy_from_slice(&(n as u64 + 2).to_le_bytes());
    }
}

/// Where a sector of that disk is.
pub(super) fn place(at: u64) -> Option<(usize, u64)> {
    let (chunk, within) = (at / CHUNK as u64, at % CHUNK as u64);
    Some(match KEPT.iter().position(|old| *old == chunk) {
        Some(n) => (1, (n as u64 + 2) * CHUNK as u64 + within),
        None => (0, at),
    })
}

/// A snapshot, and its merge.
static PAIRS: [[Case; 2]; 5] = [
    [
        Case { parts: &[160, 400], tables: &["0 160 snapshot c0 c1 P 8"], whole: &[1], ..PLAIN },
        Case { parts: &[160, 400], tables: &["0 160 snapshot-merge c0 c1 P 8"], whole: &[1], ..PLAIN },
    ],
    // Areas of 32 chunks, of which there are several.
    [
        Case { parts: &[100, 240], tables: &["0 100 snapshot c0 c1 P 1"], whole: &[1], ..PLAIN },
        Case { parts: &[100, 240], tables: &["0 100 snapshot-merge c0 c1 P 1"], whole: &[1], ..PLAIN },
    ],
    // The last chunk goes beyond the end of the origin.
    [
        Case { parts: &[150, 400], tables: &["0 150 snapshot c0 c1 PO 4"], whole: &[1], ..PLAIN },
        Case { parts: &[150, 400], tables: &["0 150 snapshot-merge c0 c1 PO 4"], whole: &[1], ..PLAIN },
    ],
    // Behind the end of the list is what a commit was to write that a crash has torn.
    [
        Case { tables: &["0 256 snapshot c0 c1 P 4"], ..TORN },
        Case { tables: &["0 256 snapshot-merge c0 c1 P 4"], ..TORN },
    ],
    // In all areas are the exceptions of an older store.
    [
        Case { tables: &["0 100 snapshot c0 c1 P 1"], ..stores::OLDER },
        Case { tables: &["0 100 snapshot-merge c0 c1 P 1"], ..stores::OLDER },
    ],
];

const TORN: Case =
    Case { parts: &[256, 600], whole: &[1], prepare: stores::prepare_torn, place: stores::torn_place, ..PLAIN };

#[test]
fn a_merge_goes_on_when_a_suspend_is_taken_back() {
    static MERGE: Case = Case {
        parts: &[256, 600],
        tables: &["0 256 snapshot-merge c0 c1 P 8"],
        place,
        prepare,
        whole: &[0, 1],
        ..PLAIN
    };
    checks::each_seed(20, |seed| {
        let mut bench = checks::bench(&MERGE, seed);
        bench.suspend_and_take_back(seed as u32);
        until_merged(&mut bench);
        bench.end();
    });
}

#[test]
fn a_full_snapshot_of_which_a_merge_fails_is_read_anew() {
    const FULL: Case = Case { parts: &[256, 8 * 24], place, prepare, whole: &[0, 1], ..PLAIN };
    static SNAPSHOT: Case = Case { tables: &["0 256 snapshot c0 c1 PO 8"], ..FULL };
    static MERGE: Case = Case { tables: &["0 256 snapshot-merge c0 c1 PO 8"], ..FULL };
    let status = |bench: &Bench| bench.all_targets()[0].status(&str::to_owned);
    checks::each_seed(60, |seed| {
        let mut bench = checks::bench(&SNAPSHOT, seed);
        let write = |bench: &mut Bench, at| bench.does(Op { what: What::Write, at, len: 1, data: vec![7; SECTOR] });
        while status(&bench) != "Overflow" {
            for chunk in 10..20 {
                write(&mut bench, chunk * CHUNK as u64);
            }
        }
        // What fails may have been done all the same, as the fault does not begin in the midst of it.
        let metadata = (CHUNK * SECTOR) as u64;
        bench.sim.fail_range(1, metadata - 1..metadata + 512, |kind| matches!(kind, Kind::Write { .. }), libc::EIO);
        bench.reload(&MERGE);
        bench.until("the merge does not fail", |bench| bench.sim.failure_count() > 0);
        bench.turns(1000);
        let told = status(&bench);
        bench.sim.heal();
        if seed % 2 == 1 {
            bench.reload_in_vain();
            bench.read_all();
            assert_eq!(status(&bench), told, "it is what it was");
        }
        bench.reload(&MERGE);
        assert!(write(&mut bench, KEPT[18] * CHUNK as u64), "nothing is uncertain when the list has been read anew");
        assert!(bench.does(Op { what: What::Flush, at: 0, len: 0, data: Vec::new() }));
        bench.crash();
        let found = bench.found();
        bench.model.crashed(&found);
        bench.end();
        assert_eq!(told, "Merge failed");
    });
}

#[test]
fn what_a_failed_merge_has_left_is_not_touched_before_its_owner_has_let_go() {
    /// Exceptions in two sectors of the list.
    const COUNT: u64 = 60;
    const STORE: Case = Case {
        parts: &[1024, 1024],
        place: |at| Some(if at < COUNT * CHUNK as u64 { (1, at + 2 * CHUNK as u64) } else { (0, at) }),
        prepare: |images| {
            prepare(images);
            for n in 0..COUNT {
                let at = CHUNK * SECTOR + 16 * n as usize;
                images[1][at..][..8].copy_from_slice(&n.to_le_bytes());
                images[1][at + 8..][..8].copy_from_slice(&(n + 2).to_le_bytes());
            }
        },
        whole: &[0, 1],
        block: CHUNK as u64,
        ..PLAIN
    };
    static MERGE: Case = Case { tables: &["0 1024 snapshot-merge c0 c1 P 8"], ..STORE };
    static SNAPSHOT: Case = Case { tables: &["0 1024 snapshot c0 c1 P 8"], ..STORE };
    let list = |bench: &Bench| bench.sim.look(1, |store| store[CHUNK * SECTOR..][..CHUNK * SECTOR].to_vec());
    let ended = [Cell::new(0), Cell::new(0)];
    checks::each_seed(120, |seed| {
        let mut bench = checks::bench(&SNAPSHOT, seed);
        // Of what takes the exceptions off the list the first sector comes to the device alone.
        let rest = ((CHUNK + 1) * SECTOR) as u64..(2 * CHUNK * SECTOR) as u64;
        bench.sim.fail_range(1, rest, |kind| matches!(kind, Kind::Write { .. }), libc::EIO);
        bench.reload(&MERGE);
        bench.until("the merge does not fail", |bench| bench.sim.failure_count() > 0);
        bench.turns(1000);
        bench.sim.heal();
        let before = list(&bench);
        match bench.reload_too_late(&SNAPSHOT, seed as u32 % 40) {
            Ok(()) => ended[0].update(|n| n + 1),
            Err(why) => {
                assert!(why.contains("handover"), "{why}");
                assert!(list(&bench) == before, "the list is somebody else's, and has changed");
                ended[1].update(|n| n + 1);
            }
        }
    });
    let ended = ended.map(Cell::into_inner);
    // Few seeds may all end alike.
    assert!(ended.iter().sum::<u32>() < 40 || !ended.contains(&0), "taken and refused: {ended:?}");
}

/// Waits until nothing is left in the store.
fn until_merged(bench: &mut Bench) {
    bench.until("the merge does not end", |bench| {
        let status = bench.all_targets()[0].status(&str::to_owned);
        let (allocated, rest) = status.split_once('/').unwrap_or_else(|| panic!("{status}"));
        rest.split_once(' ').is_some_and(|(_, metadata)| allocated == metadata)
    });
}

#[test]
fn every_chunk_is_old_or_new_as_the_flushes_demand() {
    checks::each_seed(SEEDS, |seed| {
        let mut rng = Rng::with_seed(seed);
        let pair = &PAIRS[rng.usize(..PAIRS.len())];
        let mut bench = checks::bench(&pair[0], seed);
        for _ in 0..rng.u8(2..6) {
            bench.write_through.store(rng.u8(..3) == 0, Ordering::Relaxed);
            for _ in 0..rng.u8(..4) {
                let ops = checks::some(&mut rng, bench.model.len(), 1, EVERYTHING);
                ops.into_iter().for_each(|op| bench.submit(op));
                let temper = super::bench::temper(&mut rng);
                bench.sim.set_temper(temper);
            }
            let turns = rng.u32(..200);
            bench.turns(turns);
            bench.case = &pair[rng.usize(..2)];
            bench.crash();
            let found = bench.found();
            bench.model.crashed(&found);
        }
        bench.case = &pair[1];
        bench.crash();
        let found = bench.found();
        bench.model.crashed(&found);
        bench.settle();
        until_merged(&mut bench);
        let seen = bench.read_all();
        bench.model.check_now(&seen);
        bench.end();
        bench.sim.look_durable(0, |origin| assert!(origin == seen, "the origin alone does not hold the disk"));
    });
}
