//! The fuzz targets' corpora on a stable toolchain: every input that was worth keeping, every one that once failed,
//! and seeded mutations of them. `ci/fuzz.sh` looks for new ones.
#![allow(missing_docs)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use dm_tests::{fuzz, rng};
use fastrand::Rng;

/// Mutated inputs for each target.
const MUTATIONS: u64 = 4000;
const SEED: u64 = 7;
const LONGEST: usize = 1024;

/// Files of `tests/fuzz/<kind>/<target>`, in an order that does not change.
fn inputs(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target);
    let Ok(entries) = fs::read_dir(&dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).expect("a readable input"))).collect()
}

fn replay(target: &str) {
    let (_, check) = fuzz::TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target of this name");
    let mut known = inputs("corpus", target);
    assert!(known.len() >= 20, "{} inputs are no corpus of {target}", known.len());
    known.extend(inputs("regressions", target));
    for (path, bytes) in &known {
        run(check, bytes, || format!("input {}", path.display()));
    }
    for seed in rng::seeds(SEED, 1) {
        let mut random = Rng::with_seed(seed);
        for number in 0..rng::operations(MUTATIONS) {
            let bytes = mutated(&mut random, &known);
            run(check, &bytes, || {
                let file = std::env::temp_dir().join(format!("dm-fuzz-{target}-{seed}-{number}"));
                let kept = fs::write(&file, &bytes);
                format!("mutation {number} with DM_TEST_SEED={seed}, in {} ({kept:?})", file.display())
            });
        }
    }
}

fn run(check: fn(&[u8]), bytes: &[u8], name: impl Fn() -> String) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
        eprintln!("failed on {}", name());
        resume_unwind(panic);
    }
}

/// One of the inputs, changed in one to eight places as fuzzers do.
fn mutated(random: &mut Rng, known: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'0', b' ', b'\n'];
    let any = |random: &mut Rng| &known[random.usize(..known.len())].1;
    let mut bytes = any(random).clone();
    for _ in 0..random.u8(1..=8) {
        let at = random.usize(..=bytes.len());
        let some = at..(at + random.usize(..=12)).min(bytes.len());
        match random.u8(..6) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            2 if at < bytes.len() => bytes[at] = random.choice(EDGES).expect("there are edges"),
            3 => bytes.insert(at, random.u8(..)),
            4 => drop(bytes.drain(some)),
            5 => {
                let other = any(random);
                let from = random.usize(..=other.len());
                let part = other[from..(from + random.usize(..=64)).min(other.len())].to_vec();
                drop(bytes.splice(some, part));
            }
            _ => bytes.push(random.u8(..)),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

#[test]
fn table() {
    replay("table");
}

#[test]
fn chain() {
    replay("chain");
}

#[test]
fn map() {
    replay("map");
}

#[test]
fn queue() {
    replay("queue");
}

#[test]
fn log() {
    replay("log");
}

#[test]
fn every_target_is_here_and_in_the_fuzzers_crate() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    let built: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
        .collect();
    assert_eq!(built, fuzz::TARGETS.map(|(name, _)| name));
    let replayed = include_str!("corpus.rs");
    for (name, _) in fuzz::TARGETS {
        assert!(replayed.contains(&format!("    replay(\"{name}\");")), "{name} is not replayed");
    }
}
