//! From a sector to its segment, in a step or two whatever the number of segments.

use super::Entry;

/// Buckets per segment. More of them would more often name the segment itself, but fewer of them would be in a near cache.
const BUCKETS: u64 = 2;

/// The disk cut into equal buckets, each with the segment that holds its first sector. Where segments are of much the
/// same length a look-up is one step or two; where they are not, it searches the segments of one bucket.
#[derive(Clone, Debug)]
pub(super) struct Index {
    /// Logarithm of the sectors of a bucket.
    shift: u32,
    /// One more entry than buckets: the last is the last segment.
    first: Box<[u32]>,
}

impl Index {
    /// The index of segments, of which there are at least one if the disk has any sectors.
    pub fn new(entries: &[Entry]) -> Index {
        let end = entries.last().map_or(0, |entry| entry.end);
        let wanted = (entries.len() as u64).saturating_mul(BUCKETS);
        let shift = (0..64).find(|shift| end >> shift <= wanted).unwrap_or(63);
        let last = entries.len().saturating_sub(1);
        let mut segment = 0;
        let mut first: Vec<u32> = (0..=end >> shift)
            .map(|bucket| {
                while segment < last && entries[segment].end <= bucket << shift {
                    segment += 1;
                }
                segment as u32
            })
            .collect();
        first.push(last as u32);
        Index { shift, first: first.into() }
    }

    /// The segment that holds sector `at`, which is below the end.
    #[inline]
    pub fn find(&self, entries: &[Entry], at: u64) -> usize {
        let bucket = (at >> self.shift) as usize;
        let low = self.first.get(bucket).map_or(0, |&first| first as usize);
        match entries.get(low) {
            Some(entry) if at < entry.end => low,
            _ => self.search(entries, at, low, bucket),
        }
    }

    /// The same, where it is one behind `low`, the first of its bucket.
    fn search(&self, entries: &[Entry], at: u64, low: usize, bucket: usize) -> usize {
        let high = self.first.get(bucket + 1).map_or(entries.len(), |&first| first as usize + 1);
        let behind = entries.get(low + 1..high).unwrap_or_default();
        low + 1 + behind.partition_point(|entry| entry.end <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Segment;
    use super::*;
    use proptest::prelude::*;

    fn entries(ends: impl IntoIterator<Item = u64>) -> Vec<Entry> {
        let mut start = 0;
        let entry = |end| Entry { start: std::mem::replace(&mut start, end), end, segment: Segment::Zero };
        ends.into_iter().map(entry).collect()
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            lengths in prop::collection::vec(prop_oneof![1u64..4, 1u64..5000, Just(1 << 40)], 1..300),
        ) {
            let mut end = 0;
            let ends = lengths.iter().map(|length| {
                end += length;
                end
            });
            let entries = entries(ends);
            let index = Index::new(&entries);
            prop_assert!(index.first.len() as u64 <= BUCKETS * entries.len() as u64 + 2);
            for (i, entry) in entries.iter().enumerate() {
                let (start, last) = (entry.start, entry.end - 1);
                for at in [start, start + (last - start) / 2, last] {
                    prop_assert_eq!(index.find(&entries, at), i);
                }
            }
        }
    }

    #[test]
    fn the_largest_disk_has_an_index() {
        let end = 18_014_398_509_481_983;
        let three = entries([1, 2, end]);
        let index = Index::new(&three);
        assert_eq!([0, 1, 2, end - 1].map(|at| index.find(&three, at)), [0, 1, 2, 2]);
        let one = entries([end]);
        assert_eq!(Index::new(&one).find(&one, end - 1), 0);
    }
}
