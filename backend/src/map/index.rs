//! From a sector to its segment, in a step or two whatever the number of segments.

/// Buckets per segment: most then hold the border of one segment at most.
const BUCKETS: u64 = 4;

/// The disk cut into equal buckets, each with the segment that holds its first sector. Where segments are of much the
/// same length a look-up is one step; where they are not, it searches the segments of one bucket.
#[derive(Clone, Debug)]
pub(super) struct Index {
    /// Logarithm of the sectors of a bucket.
    shift: u32,
    /// One more entry than buckets: the last is the last segment.
    first: Box<[u32]>,
}

impl Index {
    /// The index of segments that begin at `starts`, of which there are at least one, on a disk of `end` sectors.
    pub fn new(starts: &[u64], end: u64) -> Index {
        let wanted = (starts.len() as u64).saturating_mul(BUCKETS);
        let shift = (0..64).find(|shift| end >> shift <= wanted).unwrap_or(63);
        let last = starts.len().saturating_sub(1);
        let mut segment = 0;
        let mut first: Vec<u32> = (0..=end >> shift)
            .map(|bucket| {
                while segment < last && starts[segment + 1] <= bucket << shift {
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
    pub fn find(&self, starts: &[u64], at: u64) -> usize {
        let bucket = (at >> self.shift) as usize;
        let (Some(&low), Some(&high)) = (self.first.get(bucket), self.first.get(bucket + 1)) else {
            return starts.len() - 1;
        };
        let (low, high) = (low as usize, high as usize);
        if low == high {
            return low;
        }
        low + starts[low + 1..=high].partition_point(|&start| start <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            lengths in prop::collection::vec(prop_oneof![1u64..4, 1u64..5000, Just(1 << 40)], 1..300),
        ) {
            let mut starts = Vec::new();
            let mut end = 0;
            for length in lengths {
                starts.push(end);
                end += length;
            }
            let index = Index::new(&starts, end);
            prop_assert!(index.first.len() as u64 <= BUCKETS * starts.len() as u64 + 2);
            for (i, &start) in starts.iter().enumerate() {
                let last = starts.get(i + 1).copied().unwrap_or(end) - 1;
                for at in [start, start + (last - start) / 2, last] {
                    prop_assert_eq!(index.find(&starts, at), i);
                }
            }
        }
    }

    #[test]
    fn the_largest_disk_has_an_index() {
        let end = 18_014_398_509_481_983;
        let index = Index::new(&[0, 1, 2], end);
        assert_eq!(index.find(&[0, 1, 2], end - 1), 2);
        assert_eq!(index.find(&[0, 1, 2], 1), 1);
        assert_eq!(Index::new(&[0], end).find(&[0], end - 1), 0);
    }
}
