//! Stores with something behind the end of their lists, as a crash may leave it.

use std::os::unix::fs::FileExt;

use super::undone::Bench;
use super::*;
use crate::worker::ops::Action;

/// Bytes of a chunk, and of a block.
const CHUNK: usize = 4096;
const BLOCK: usize = 512;

/// Makes a store of a component: chunks 4 and 5 of the origin are in it, and in the list's second block are entries of a
/// commit whose first block was not written.
fn torn(bench: &Bench) {
    let mut store = vec![0; 4 * CHUNK];
    for (at, word) in [0x7041_6e53_u32, 1, 1, 8].iter().enumerate() {
        store[4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
    let entries = [(0, 4, 2), (1, 5, 3)].into_iter().chain((32..40).map(|n| (n, n - 22, n - 22)));
    for (n, old, new) in entries {
        let at = CHUNK + 16 * n as usize;
        store[at..][..8].copy_from_slice(&u64::to_le_bytes(old));
        store[at + 8..][..8].copy_from_slice(&u64::to_le_bytes(new));
    }
    store[2 * CHUNK..3 * CHUNK].fill(0x22);
    store[3 * CHUNK..].fill(0x33);
    let file = std::fs::OpenOptions::new().write(true).open(bench.path("b")).unwrap();
    file.write_all_at(&store, 0).unwrap();
}

/// Whether there is something behind the end of the list.
fn is_torn(store: &[u8]) -> bool {
    store[CHUNK + BLOCK..2 * CHUNK].iter().any(|byte| *byte != 0)
}

fn load_read_only(bench: &Bench, name: &str, text: &str) -> Verb<schema::Loaded> {
    let load = Load { which: named(name), table: bench.table(text), read_only: true, ..Load::default() };
    bench.mapper.load(&load, &Patient)
}

const TABLE: &str = "0 2048 snapshot {a} {b} P 8";

#[test]
fn a_disk_that_is_only_read_does_not_mend_its_store() {
    for again in [false, true] {
        let bench = Bench::new();
        let store = || std::fs::read(bench.path("b")).unwrap();
        torn(&bench);
        let before = store();
        create(&bench.mapper, "disk").unwrap();
        load_read_only(&bench, "disk", TABLE).unwrap();
        resume(&bench.mapper, "disk").unwrap();
        let shows =
            |when| [(32, 0x22), (40, 0x33), (80, 0)].iter().for_each(|(at, fill)| bench.reads(*at, *fill, when));
        shows("for reading alone");
        assert_eq!(bench.does(Action::Write { durable: false }, 0, 7), Some(Err(libc::EIO)));
        assert!(store() == before, "the store has changed");
        if again {
            load_read_only(&bench, "disk", TABLE).unwrap();
            resume(&bench.mapper, "disk").unwrap();
            assert!(store() == before, "the store has changed");
        } else {
            resume(&bench.mapper, "disk").unwrap();
        }
    }
}

#[test]
fn who_may_write_takes_a_torn_store_over_from_who_only_reads_it() {
    let bench = Bench::new();
    let store = || std::fs::read(bench.path("b")).unwrap();
    torn(&bench);
    create(&bench.mapper, "disk").unwrap();
    load_read_only(&bench, "disk", TABLE).unwrap();
    resume(&bench.mapper, "disk").unwrap();
    assert!(is_torn(&store()));
    load(&bench.mapper, "disk", &bench.table(TABLE)).unwrap();
    resume(&bench.mapper, "disk").unwrap();
    assert!(!is_torn(&store()), "the list would grow into what is behind its end");
    for chunk in 100..130 {
        bench.writes(8 * chunk, chunk as u8);
    }
    // The list ends where its first block does.
    suspend(&bench.mapper, "disk").unwrap();
    bench.mapper.remove(&Remove { which: named("disk"), ..Remove::default() }, &Patient).unwrap();
    made(&bench.mapper, "disk", &bench.table(TABLE));
    bench.reads(32, 0x22, "read anew");
    bench.reads(80, 0, "read anew");
    (100..130).for_each(|chunk| bench.reads(8 * chunk, chunk as u8, "read anew"));
}

#[test]
fn a_torn_store_is_mended_before_writes_to_the_origin_add_to_what_its_own_disk_only_reads() {
    /// Sectors of the devices and of a chunk, and entries that are written at a time: half an area.
    const LEN: u64 = 8192;
    const CHUNK: u64 = 16;
    const UNIT: u64 = 256;
    let bench = Bench::new();
    let of = |chunk: u64| (chunk % 251) as u8;
    let fill = |name, bytes: &[u8]| {
        let file = std::fs::OpenOptions::new().write(true).open(bench.path(name)).unwrap();
        file.set_len(LEN * 512).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    };
    let origin: Vec<u8> = (0..LEN / CHUNK).flat_map(|chunk| [of(chunk); CHUNK as usize * BLOCK]).collect();
    fill("a", &origin);
    let mut store = vec![0; 3 * CHUNK as usize * BLOCK];
    for (at, word) in [0x7041_6e53_u32, 1, 1, CHUNK as u32].iter().enumerate() {
        store[4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
    // Behind those that are there, the next unit is of a commit of which this one has not been written.
    for n in (0..UNIT - 6).chain(UNIT..UNIT + 8) {
        let at = CHUNK as usize * BLOCK + 16 * n as usize;
        store[at..][..8].copy_from_slice(&n.to_le_bytes());
        store[at + 8..][..8].copy_from_slice(&(n + 2).to_le_bytes());
    }
    store[2 * CHUNK as usize * BLOCK..].fill(0xfe);
    fill("b", &store);
    // What the store lies on is written for whoever lies on it.
    made(&bench.mapper, "low", &bench.table("0 8192 linear {b} 0"));
    create(&bench.mapper, "snap").unwrap();
    load_read_only(&bench, "snap", "0 8192 snapshot {a} /dev/mapper/low P 16").unwrap();
    resume(&bench.mapper, "snap").unwrap();
    let now = std::fs::read(bench.path("b")).unwrap();
    assert!(now[..store.len()] == store, "nothing has been added yet");
    made(&bench.mapper, "disk", &bench.table("0 8192 snapshot-origin {a}"));
    // The list ends where the unit does.
    (400..406).for_each(|chunk| bench.writes(CHUNK * chunk, 0xff));
    for name in ["snap", "disk", "low"] {
        bench.mapper.remove(&Remove { which: named(name), ..Remove::default() }, &Patient).unwrap();
    }
    made(&bench.mapper, "disk", &bench.table("0 8192 snapshot {a} {b} P 16"));
    bench.reads(0, 0xfe, "read anew");
    let kept = (UNIT..UNIT + 8).chain(400..406);
    kept.for_each(|chunk| bench.reads(CHUNK * chunk, of(chunk), "read anew"));
}
