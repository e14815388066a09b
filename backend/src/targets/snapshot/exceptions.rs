//! Which chunks of the origin are kept in which chunks of the store.
//!
//! A map of runs: chunks that follow each other in the origin and in the store are one. Where there are many in a block of 256
//! chunks of the origin, that block has an array instead, of where each of its chunks is: a store that was filled at random
//! would else be a map of millions of runs, and a look-up in it a cache miss on each of its levels.
//!
//! A run takes 24 bytes, and about 48 at most with what the map around it needs. A block takes 1 KiB, and 4 bytes for each chunk
//! once all are kept; it is an array only while it has so many exceptions that runs would take as much. So a store of n
//! exceptions takes at most about 48 n bytes of memory, and one that was written in order next to nothing.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::{Bound, Range};

/// Chunks of a block. Blocks begin at multiples of it.
const BLOCK: u64 = 256;
/// From so many runs on, a block is an array: 1040 bytes, and two runs that it may cut off, for no more than 48 each.
const DENSE_FROM: usize = 32;
/// With fewer exceptions an array becomes runs again.
const SPARSE_BELOW: u32 = 24;
/// What an array has for a chunk that is not kept.
const ABSENT: u32 = u32::MAX;

/// Chunks that follow each other in the origin, and in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First chunk in the origin.
    pub old: u64,
    /// First chunk in the store.
    pub new: u64,
    /// Chunks.
    pub len: u64,
}

/// Chunks of the origin that are all kept in the store in order, or of which none is. What follows them may go on like them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the first is in the store.
    pub new: Option<u64>,
    /// How many they are; at least 1.
    pub len: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Exceptions {
    // By the first chunk in the origin. Where a block is an array, no run is in it.
    map: BTreeMap<u64, Kept>,
    chunks: u64,
}

#[derive(Debug)]
enum Kept {
    // First chunk in the store, and number of chunks.
    Run(u64, NonZeroU64),
    Block(Box<Block>),
}

// The length that no run has says which of the two it is.
const _: () = assert!(size_of::<Kept>() == 16);

#[derive(Debug)]
struct Block {
    kept: u32,
    slots: [u32; BLOCK as usize],
}

impl Block {
    #[inline]
    fn extent(&self, at: u64, most: u64) -> Extent {
        let slots = &self.slots[at as usize..];
        let slots = &slots[..slots.len().min(usize::try_from(most).unwrap_or(usize::MAX))];
        let first = slots.first().copied().unwrap_or(ABSENT);
        // An ABSENT is behind no number that is kept, and in front of none.
        let alike = |n: usize, slot: u32| match first {
            ABSENT => slot == ABSENT,
            _ => slot != ABSENT && u64::from(slot) == u64::from(first) + n as u64,
        };
        let len = slots.iter().enumerate().skip(1).take_while(|(n, slot)| alike(*n, **slot)).count() as u64 + 1;
        Extent { new: (first != ABSENT).then_some(first.into()), len }
    }

    /// Keeps a run; `at` is in the block. The store's chunks are below [`ABSENT`].
    fn keep(&mut self, at: u64, new: u64, len: u64) {
        let slots = &mut self.slots[at as usize..(at + len) as usize];
        slots.iter_mut().zip(new..).for_each(|(slot, new)| *slot = new as u32);
        self.kept += len as u32;
    }

    /// Forgets what it has there, and says how many chunks that were.
    fn forget(&mut self, range: Range<u64>) -> u32 {
        let slots = &mut self.slots[range.start as usize..range.end as usize];
        let gone = slots.iter().filter(|slot| **slot != ABSENT).count() as u32;
        slots.fill(ABSENT);
        self.kept -= gone;
        gone
    }

    /// Its runs, `first` being the number of its first chunk.
    fn runs(&self, first: u64) -> impl Iterator<Item = Run> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < BLOCK {
                let (old, Extent { new, len }) = (first + at, self.extent(at, BLOCK));
                at += len;
                if let Some(new) = new {
                    return Some(Run { old, new, len });
                }
            }
            None
        })
    }
}

impl Exceptions {
    /// How many chunks are kept.
    pub fn len(&self) -> u64 {
        self.chunks
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// What has become of chunk `old` and those behind it, of which at most `most` are looked at, and at least 1.
    #[inline]
    pub fn extent(&self, old: u64, most: u64) -> Extent {
        let most = most.max(1);
        if let Some((first, kept)) = self.map.range(..=old).next_back() {
            let into = old - first;
            match kept {
                Kept::Block(block) if into < BLOCK => return block.extent(into, most),
                Kept::Run(new, len) if into < len.get() => {
                    return Extent { new: Some(new + into), len: (len.get() - into).min(most) };
                }
                _ => {}
            }
        }
        let next = self.map.range((Bound::Excluded(old), Bound::Unbounded)).next();
        Extent { new: None, len: next.map_or(most, |(first, _)| (first - old).min(most)) }
    }

    /// Adds a run. False, and nothing is changed, when one of its chunks is kept already, or it has none, or numbers that
    /// there are not.
    pub fn insert(&mut self, run: Run) -> bool {
        let Run { old, new, len } = run;
        let (Some(end), Some(_)) = (old.checked_add(len), new.checked_add(len)) else { return false };
        if len == 0 || !self.is_free(old, end) {
            return false;
        }
        self.chunks += len;
        let mut at = old;
        while at < end {
            let (first, to) = (at - at % BLOCK, new + (at - old));
            let upto = if let Some(Kept::Block(block)) = self.map.get_mut(&first) {
                let upto = end.min(first.saturating_add(BLOCK));
                if to + (upto - at) > ABSENT.into() {
                    self.thin(first);
                    continue;
                }
                block.keep(at - first, to, upto - at);
                upto
            } else {
                // Nothing is kept before `end`, so what there is can only be blocks.
                let upto = self.map.range(at..end).next().map_or(end, |(first, _)| *first);
                self.join(Run { old: at, new: to, len: upto - at });
                self.thicken(first);
                self.thicken((upto - 1) - (upto - 1) % BLOCK);
                upto
            };
            at = upto;
        }
        true
    }

    fn is_free(&self, mut old: u64, end: u64) -> bool {
        while old < end {
            match self.extent(old, end - old) {
                Extent { new: Some(_), .. } => return false,
                Extent { new: None, len } => old += len,
            }
        }
        true
    }

    /// Adds a run where nothing is, and no block either: to what it follows, and what follows it.
    fn join(&mut self, run: Run) {
        let Run { mut old, mut new, mut len } = run;
        if let Some((before, Kept::Run(kept, count))) = self.map.range(..old).next_back()
            && before + count.get() == old
            && kept + count.get() == new
        {
            (old, new, len) = (*before, *kept, count.get() + len);
        }
        if let Some(Kept::Run(kept, count)) = self.map.get(&(old + len))
            && *kept == new + len
        {
            let count = count.get();
            self.map.remove(&(old + len));
            len += count;
        }
        if let Some(len) = NonZeroU64::new(len) {
            self.map.insert(old, Kept::Run(new, len));
        }
    }

    /// Makes an array of a block, if that takes no more memory.
    fn thicken(&mut self, first: u64) {
        let Some(end) = first.checked_add(BLOCK) else { return };
        if self.map.range(first..end).nth(DENSE_FROM - 1).is_none() {
            return;
        }
        let mut block = Box::new(Block { kept: 0, slots: [ABSENT; BLOCK as usize] });
        let mut at = first;
        while at < end {
            let Extent { new, len } = self.extent(at, end - at);
            if let Some(new) = new {
                if new + len > ABSENT.into() {
                    return;
                }
                block.keep(at - first, new, len);
            }
            at += len;
        }
        self.cut(first, end);
        self.map.insert(first, Kept::Block(block));
    }

    /// Makes runs of a block that is an array.
    fn thin(&mut self, first: u64) {
        if let Some(Kept::Block(block)) = self.map.remove(&first) {
            block.runs(first).for_each(|run| self.join(run));
        }
    }

    /// Forgets `len` chunks from `old` on, as far as they are kept.
    pub fn remove(&mut self, old: u64, len: u64) {
        let gone = self.cut(old, old.saturating_add(len));
        self.chunks -= gone;
    }

    /// Takes chunks `[old, end)` out of the map, and says how many there were.
    fn cut(&mut self, old: u64, mut end: u64) -> u64 {
        let mut gone = 0;
        while old < end
            && let Some((&first, kept)) = self.map.range_mut(..end).next_back()
        {
            match kept {
                Kept::Block(_) if first.saturating_add(BLOCK) <= old => break,
                Kept::Block(block) => {
                    let upto = (end - first).min(BLOCK);
                    gone += u64::from(block.forget(old.saturating_sub(first)..upto));
                    if block.kept < SPARSE_BELOW {
                        self.thin(first);
                    }
                }
                Kept::Run(new, len) => {
                    let (new, len) = (*new, len.get());
                    if first + len <= old {
                        break;
                    }
                    self.map.remove(&first);
                    let (from, to) = (first.max(old), (first + len).min(end));
                    gone += to - from;
                    let before = (first, new, from - first);
                    for (old, new, len) in [before, (to, new + (to - first), first + len - to)] {
                        if let Some(len) = NonZeroU64::new(len) {
                            self.map.insert(old, Kept::Run(new, len));
                        }
                    }
                }
            }
            end = first;
        }
        gone
    }

    /// The runs, in the order of the origin. In blocks that are arrays, one may go on in another.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.map.iter().flat_map(|(old, kept)| {
            let (run, block) = match kept {
                Kept::Run(new, len) => (Some(Run { old: *old, new: *new, len: len.get() }), None),
                Kept::Block(block) => (None, Some(block.runs(*old))),
            };
            run.into_iter().chain(block.into_iter().flatten())
        })
    }

    /// Whether no chunk of the store is there for two of the origin.
    pub fn is_one_to_one(&self) -> bool {
        let mut kept: Vec<(u64, u64)> = self.runs().map(|run| (run.new, run.len)).collect();
        kept.sort_unstable();
        kept.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    fn run(old: u64, new: u64, len: u64) -> Run {
        Run { old, new, len }
    }

    #[test]
    fn runs_that_meet_become_one() {
        let mut exceptions = Exceptions::default();
        assert!(
            exceptions.insert(run(10, 2, 1)) && exceptions.insert(run(12, 4, 1)) && exceptions.insert(run(11, 3, 1))
        );
        assert_eq!(exceptions.runs().collect::<Vec<_>>(), [run(10, 2, 3)]);
        // They meet in the origin alone.
        assert!(exceptions.insert(run(13, 6, 2)));
        assert_eq!(exceptions.runs().collect::<Vec<_>>(), [run(10, 2, 3), run(13, 6, 2)]);
        assert!(
            !exceptions.insert(run(14, 9, 1)) && !exceptions.insert(run(9, 9, 2)) && !exceptions.insert(run(0, 9, 0))
        );
        assert!(!exceptions.insert(run(u64::MAX, 9, 1)) && !exceptions.insert(run(100, u64::MAX, 2)));
        assert_eq!(exceptions.len(), 5);
        assert!(exceptions.is_one_to_one());
        assert!(exceptions.insert(run(100, 7, 1)));
        assert!(!exceptions.is_one_to_one());
    }

    fn blocks(exceptions: &Exceptions) -> usize {
        exceptions.map.values().filter(|kept| matches!(kept, Kept::Block(_))).count()
    }

    /// Numbers below `n`, a power of two, each once, hardly ever one behind the other.
    fn shuffled(n: u64) -> impl Iterator<Item = u64> {
        (0..n).map(move |at| (at * 40503 + 977) % n)
    }

    #[test]
    fn what_was_filled_at_random_is_arrays_and_what_was_filled_in_order_is_runs() {
        let mut exceptions = Exceptions::default();
        for (new, old) in shuffled(8192).enumerate() {
            assert!(exceptions.insert(run(old, new as u64, 1)) && !exceptions.insert(run(old, 9000, 1)));
        }
        assert_eq!((exceptions.len(), exceptions.map.len(), blocks(&exceptions)), (8192, 32, 32));
        for (new, old) in shuffled(8192).enumerate() {
            assert_eq!(exceptions.extent(old, 1), Extent { new: Some(new as u64), len: 1 });
        }
        assert!(exceptions.is_one_to_one());
        exceptions.remove(0, u64::MAX);
        assert!(exceptions.is_empty() && exceptions.map.is_empty());
        for old in 0..8192 {
            assert!(exceptions.insert(run(old, old + 5, 1)));
        }
        assert_eq!(exceptions.map.len(), 1);
    }

    #[test]
    fn an_array_is_there_only_where_it_takes_no_more_than_runs() {
        let mut exceptions = Exceptions::default();
        for n in 0..31 {
            assert!(exceptions.insert(run(512 + 8 * n, 3 * n, 1)));
        }
        assert_eq!((exceptions.map.len(), blocks(&exceptions)), (31, 0));
        // Begins in front of the block, and ends in it.
        assert!(exceptions.insert(run(760, 4_000, 1_000)));
        assert_eq!((exceptions.map.len(), blocks(&exceptions)), (2, 1));
        assert_eq!(exceptions.extent(768, 2_000), Extent { new: Some(4_008), len: 992 });
        // Numbers that an array has no room for.
        assert!(exceptions.insert(run(513, u64::from(ABSENT), 1)));
        assert_eq!(blocks(&exceptions), 0);
        assert_eq!(exceptions.extent(513, 9), Extent { new: Some(ABSENT.into()), len: 1 });
        exceptions.remove(513, 1);
        assert!(exceptions.insert(run(514, u64::from(ABSENT) - 1, 1)));
        assert_eq!(blocks(&exceptions), 1);
        exceptions.remove(512, 100);
        assert_eq!((exceptions.len(), blocks(&exceptions)), (18 + 1_000, 1));
        exceptions.remove(612, 40);
        exceptions.remove(760, 1);
        assert_eq!((exceptions.len(), blocks(&exceptions)), (13 + 999, 0));
    }

    #[test]
    fn the_last_chunks_there_are_can_be_kept() {
        let (mut exceptions, last) = (Exceptions::default(), u64::MAX - 1);
        for n in 0..100 {
            assert!(exceptions.insert(run(last - 2 * n, n, 1)));
        }
        assert_eq!(exceptions.extent(last, 9), Extent { new: Some(0), len: 1 });
        exceptions.remove(0, u64::MAX);
        assert!(exceptions.is_empty());
    }

    /// Inserts or removes chunks, each step checked against a plain map.
    #[derive(Default)]
    struct Both {
        exceptions: Exceptions,
        model: BTreeMap<u64, u64>,
    }

    impl Both {
        fn step(&mut self, insert: bool, old: u64, new: u64, len: u64) {
            if insert {
                let fresh = (old..old + len).all(|chunk| !self.model.contains_key(&chunk));
                assert_eq!(self.exceptions.insert(run(old, new, len)), fresh);
                if fresh {
                    self.model.extend((0..len).map(|n| (old + n, new + n)));
                }
            } else {
                self.exceptions.remove(old, len);
                self.model.retain(|chunk, _| !(old..old + len).contains(chunk));
            }
        }

        fn check(&self, chunks: u64, most: u64) {
            let Both { exceptions, model } = self;
            assert_eq!(exceptions.len(), model.len() as u64);
            let flat: BTreeMap<u64, u64> =
                exceptions.runs().flat_map(|run| (0..run.len).map(move |n| (run.old + n, run.new + n))).collect();
            assert_eq!(&flat, model);
            for chunk in 0..chunks {
                let extent = exceptions.extent(chunk, most);
                assert_eq!(extent.new, model.get(&chunk).copied());
                assert!((1..=most).contains(&extent.len));
                for n in 0..extent.len {
                    assert_eq!(model.get(&(chunk + n)).copied(), extent.new.map(|new| new + n));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_chunks_also_where_it_has_arrays(
            seeds in prop::collection::vec((0..600u64, 0..5u64), 60..400),
            steps in prop::collection::vec((any::<bool>(), 0..600u64, 0..3u64, 1..90u64), 0..30),
        ) {
            let mut both = Both::default();
            seeds.into_iter().for_each(|(old, new)| both.step(true, old, 100 * new + old % 2, 1));
            for (insert, old, new, len) in steps {
                // Around what an array has room for.
                both.step(insert, old, u64::from(ABSENT) * new / 2 - new, len);
            }
            both.check(700, 70);
        }

        #[test]
        fn it_is_a_map_of_chunks(steps in prop::collection::vec((any::<bool>(), 0..40u64, 0..60u64, 1..6u64), 0..60)) {
            let mut both = Both::default();
            for (insert, old, new, len) in steps {
                both.step(insert, old, new, len);
                both.check(50, 7);
            }
        }
    }
}
