//! A sparse set of ranges of a component, to which any number of threads add without a lock.
//!
//! Whole blocks of 4 KiB, which nearly all writes consist of, have a bit each; for writes of less there is a second set of
//! bits, one for each sector. The tables that hold the bits are made when they are first used: 4 KiB of them for 128 MiB
//! of whole blocks, or 16 MiB of sectors. There is no end to them, as a component may grow. What has been added is found again by summaries: bits for the words and tables
//! that may have some set. Bits are set from the word up to the summaries and taken from the summaries down to the word,
//! so that what is added during a drain is found by that one or the next.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Words of a leaf, and leaves of a branch.
const FAN: usize = 512;
const BITS: u64 = FAN as u64 * 64;
/// log2 of the bytes of a whole block, and of a sector.
const BLOCK: u32 = 12;
const SECTOR: u32 = 9;

/// Which of the things below have something.
struct Summary([AtomicU64; FAN / 64]);

impl Summary {
    fn empty() -> Summary {
        Summary([const { AtomicU64::new(0) }; FAN / 64])
    }

    #[inline]
    fn set(&self, index: usize) {
        add(&self.0[index / 64], 1 << (index % 64));
    }

    fn take(&self, mut f: impl FnMut(usize)) {
        for (i, word) in self.0.iter().enumerate() {
            let mut bits = word.swap(0, SeqCst);
            while bits != 0 {
                f(64 * i + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }
}

struct Leaf {
    words: [AtomicU64; FAN],
    some: Summary,
}

struct Branch {
    leaves: [OnceLock<Box<Leaf>>; FAN],
    some: Summary,
}

/// Branches that lie side by side.
type Bough = Box<[OnceLock<Box<Branch>>]>;

/// Boughs for every branch that a byte address can lead to, whatever the unit.
const BOUGHS: usize = 32;

/// Bits for units of `1 << shift` bytes.
struct Bits {
    shift: u32,
    // Each has twice as many branches as the one before, so that they need not be moved for more of them.
    boughs: [OnceLock<Bough>; BOUGHS],
}

/// The bough of a branch, and its place there.
#[inline]
fn place(branch: usize) -> (usize, usize) {
    let bough = (branch + 1).ilog2();
    (bough as usize, branch + 1 - (1 << bough))
}

/// Sets bits, without a store where they are set.
#[inline]
fn add(word: &AtomicU64, mask: u64) {
    if word.load(SeqCst) & mask != mask {
        word.fetch_or(mask, SeqCst);
    }
}

impl Bits {
    fn new(shift: u32) -> Bits {
        Bits { shift, boughs: [const { OnceLock::new() }; BOUGHS] }
    }

    #[inline]
    fn set(&self, bytes: Range<u64>) {
        let (mut unit, end) = (bytes.start >> self.shift, bytes.end >> self.shift);
        while unit < end {
            let bit = unit % 64;
            let here = (64 - bit).min(end - unit);
            let mask = (u64::MAX >> (64 - here)) << bit;
            let (leaf, word) = ((unit / BITS) as usize, (unit % BITS / 64) as usize);
            unit += here;
            let (bough, at) = place(leaf / FAN);
            let branches = || (0..1 << bough).map(|_| OnceLock::new()).collect::<Bough>();
            // Every place is inside.
            let Some(bough) = self.boughs.get(bough) else { return };
            let Some(branch) = bough.get_or_init(branches).get(at) else { return };
            let branch = branch
                .get_or_init(|| Box::new(Branch { leaves: [const { OnceLock::new() }; FAN], some: Summary::empty() }));
            let empty = || Box::new(Leaf { words: [const { AtomicU64::new(0) }; FAN], some: Summary::empty() });
            let place = branch.leaves[leaf % FAN].get_or_init(empty);
            add(&place.words[word], mask);
            place.some.set(word);
            branch.some.set(leaf % FAN);
        }
    }

    fn drain(&self, f: &mut impl FnMut(Range<u64>)) {
        let branches = self.boughs.iter().enumerate().filter_map(|(bough, branches)| {
            let first = (1 << bough) - 1;
            Some(branches.get()?.iter().enumerate().filter_map(move |(at, branch)| Some((first + at, branch.get()?))))
        });
        for (i, branch) in branches.flatten() {
            branch.some.take(|leaf| {
                let Some(place) = branch.leaves[leaf].get() else { return };
                let first = (i * FAN + leaf) as u64 * BITS;
                place.some.take(|word| {
                    let bits = place.words[word].swap(0, SeqCst);
                    runs(bits, |run| {
                        let at = first + 64 * word as u64;
                        f((at + run.start) << self.shift..(at + run.end) << self.shift);
                    });
                });
            });
        }
    }
}

/// The runs of ones in a word.
fn runs(mut bits: u64, mut f: impl FnMut(Range<u64>)) {
    while bits != 0 {
        let start = bits.trailing_zeros();
        let len = (bits >> start).trailing_ones();
        f(start.into()..(start + len).into());
        bits &= !((u64::MAX >> (64 - len)) << start);
    }
}

/// See the module's text.
pub(super) struct Marks {
    blocks: Bits,
    sectors: Bits,
}

impl Marks {
    /// None.
    pub fn new() -> Marks {
        Marks { blocks: Bits::new(BLOCK), sectors: Bits::new(SECTOR) }
    }

    /// Adds a range of whole sectors.
    #[inline]
    pub fn add(&self, range: Range<u64>) {
        const MASK: u64 = (1 << BLOCK) - 1;
        if (range.start | range.end) & MASK == 0 {
            return self.blocks.set(range);
        }
        let sectors = &self.sectors;
        let (from, to) = ((range.start + MASK) & !MASK, range.end & !MASK);
        if from >= to {
            return sectors.set(range);
        }
        sectors.set(range.start..from);
        self.blocks.set(from..to);
        sectors.set(to..range.end);
    }

    /// Takes everything out. What is added meanwhile is in this drain or in the next.
    pub fn drain(&self, mut f: impl FnMut(Range<u64>)) {
        self.blocks.drain(&mut f);
        self.sectors.drain(&mut f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn sectors(ranges: impl IntoIterator<Item = Range<u64>>) -> BTreeSet<u64> {
        let sectors = |range: Range<u64>| (range.start..range.end).step_by(512).map(|at| at / 512);
        ranges.into_iter().flat_map(sectors).collect()
    }

    fn drained(marks: &Marks) -> BTreeSet<u64> {
        let mut ranges = Vec::new();
        marks.drain(|range| ranges.push(range));
        sectors(ranges)
    }

    #[test]
    fn what_was_added_comes_out_once_and_exactly() {
        let size = 400 << 30;
        let marks = Marks::new();
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let mut ranges = Vec::new();
            for _ in 0..rng.usize(..20) {
                let unit = if rng.bool() { 4096 } else { 512 };
                let (near, most) = ([1 << 20, 300 << 20, size][rng.usize(..3)], [8, 300, 5000][rng.usize(..3)]);
                let (at, len) = (rng.u64(..near / unit) * unit, rng.u64(1..=most) * unit);
                ranges.push(at..(at + len).min(size));
            }
            ranges.iter().cloned().for_each(|range| marks.add(range));
            assert!(drained(&marks) == sectors(ranges));
            assert!(drained(&marks).is_empty());
        }
    }

    #[test]
    fn branches_are_side_by_side_and_all_have_a_place() {
        assert_eq!([0, 1, 2, 3, 6, 7].map(place), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 3), (3, 0)]);
        let last = (u64::MAX >> SECTOR) / (BITS * FAN as u64);
        assert!(place(last as usize).0 < BOUGHS);
    }

    #[test]
    fn what_lies_where_no_component_has_been_yet_counts() {
        let marks = Marks::new();
        for at in [0, 5 << 30, 40 << 30, 900 << 30, 1 << 47] {
            marks.add(at + 4 * 512..at + 5 * 512);
            assert!(drained(&marks) == BTreeSet::from([at / 512 + 4]));
            marks.add(at..at + 4096);
            assert!(drained(&marks) == (at / 512..at / 512 + 8).collect());
        }
    }

    #[test]
    fn nothing_gets_lost_between_threads() {
        let marks = Marks::new();
        let found = std::sync::Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3_u64)
                .map(|n| {
                    let marks = &marks;
                    scope.spawn(move || (0..5000).for_each(|i| marks.add((3 * i + n) * 512..(3 * i + n + 1) * 512)))
                })
                .collect();
            while !threads.iter().all(|thread| thread.is_finished()) {
                found.lock().unwrap().append(&mut drained(&marks));
            }
        });
        found.lock().unwrap().append(&mut drained(&marks));
        assert!(found.into_inner().unwrap() == (0..15_000).collect());
    }
}
