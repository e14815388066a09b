//! Which chunks of the origin are kept in which chunks of the store.
//!
//! A map of runs: chunks that follow each other in the origin and in the store are one. A run takes 24 bytes, and less than 48
//! with what the map around it needs: a store of n exceptions takes at most 48 n bytes of memory, and one that was written in
//! order next to nothing.

use std::collections::BTreeMap;
use std::ops::Bound;

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

/// Chunks of the origin that are all kept in the store in order, or of which none is.
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
    // First chunk in the origin; first chunk in the store, and number of chunks.
    runs: BTreeMap<u64, (u64, u64)>,
    chunks: u64,
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
        if let Some((first, (new, len))) = self.runs.range(..=old).next_back()
            && old - first < *len
        {
            let into = old - first;
            return Extent { new: Some(new + into), len: (len - into).min(most) };
        }
        let next = self.runs.range((Bound::Excluded(old), Bound::Unbounded)).next();
        Extent { new: None, len: next.map_or(most, |(first, _)| (first - old).min(most)) }
    }

    /// Adds a run. False, and nothing is changed, when one of its chunks is kept already, or it has none, or numbers that
    /// there are not.
    pub fn insert(&mut self, run: Run) -> bool {
        let Run { mut old, mut new, mut len } = run;
        if len == 0 || old.checked_add(len).is_none() || new.checked_add(len).is_none() {
            return false;
        }
        if self.extent(old, len) != (Extent { new: None, len }) {
            return false;
        }
        self.chunks += len;
        if let Some((before, (kept, count))) = self.runs.range(..old).next_back()
            && before + count == old
            && kept + count == new
        {
            (old, new, len) = (*before, *kept, count + len);
        }
        if let Some((kept, count)) = self.runs.get(&(old + len)).copied()
            && kept == new + len
        {
            self.runs.remove(&(old + len));
            len += count;
        }
        self.runs.insert(old, (new, len));
        true
    }

    /// Forgets `len` chunks from `old` on, as far as they are kept.
    pub fn remove(&mut self, old: u64, len: u64) {
        let end = old.saturating_add(len);
        while let Some((first, (new, count))) = self.runs.range(..end).next_back().map(|(at, run)| (*at, *run)) {
            if first + count <= old {
                return;
            }
            self.runs.remove(&first);
            let (from, to) = (first.max(old), (first + count).min(end));
            self.chunks -= to - from;
            if to < first + count {
                self.runs.insert(to, (new + (to - first), first + count - to));
            }
            if first < from {
                self.runs.insert(first, (new, from - first));
                return;
            }
        }
    }

    /// The runs, in the order of the origin.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.iter().map(|(old, (new, len))| Run { old: *old, new: *new, len: *len })
    }

    /// Whether no chunk of the store is there for two of the origin.
    pub fn is_one_to_one(&self) -> bool {
        let mut kept: Vec<(u64, u64)> = self.runs.values().copied().collect();
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

    proptest! {
        #[test]
        fn it_is_a_map_of_chunks(steps in prop::collection::vec((any::<bool>(), 0..40u64, 0..60u64, 1..6u64), 0..60)) {
            let (mut exceptions, mut model) = (Exceptions::default(), BTreeMap::new());
            for (insert, old, new, len) in steps {
                if insert {
                    let fresh = (old..old + len).all(|chunk| !model.contains_key(&chunk));
                    prop_assert_eq!(exceptions.insert(run(old, new, len)), fresh);
                    if fresh {
                        model.extend((0..len).map(|n| (old + n, new + n)));
                    }
                } else {
                    exceptions.remove(old, len);
                    model.retain(|chunk, _| !(old..old + len).contains(chunk));
                }
                prop_assert_eq!(exceptions.len(), model.len() as u64);
                let flat: BTreeMap<u64, u64> =
                    exceptions.runs().flat_map(|run| (0..run.len).map(move |n| (run.old + n, run.new + n))).collect();
                prop_assert_eq!(&flat, &model);
                for chunk in 0..50 {
                    let extent = exceptions.extent(chunk, 7);
                    prop_assert_eq!(extent.new, model.get(&chunk).copied());
                    prop_assert!((1..=7).contains(&extent.len));
                    for n in 0..extent.len {
                        prop_assert_eq!(model.get(&(chunk + n)).copied(), extent.new.map(|new| new + n));
                    }
                }
            }
        }
    }
}
