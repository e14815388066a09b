//! Latencies in buckets of constant relative width: no allocation, no sorting, 1.6 % error.

/// Buckets for each power of two.
const FINE: u32 = 64;
const FINE_BITS: u32 = FINE.trailing_zeros();
/// Values from 0 to 2^40 ns (18 minutes); longer ones count as that.
const BUCKETS: usize = ((40 - FINE_BITS + 1) * FINE) as usize;

/// A histogram of nanoseconds.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// Number of values.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The value below which this share (0 to 1) of all values lies, nanoseconds.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (self.total as f64 * share) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > rank {
                return middle(index);
            }
        }
        0
    }
}

#[inline]
fn bucket(nanos: u64) -> usize {
    let bits = 63 - (nanos | u64::from(FINE)).leading_zeros();
    let shift = bits - FINE_BITS;
    let index = u64::from(shift * FINE) + (nanos >> shift);
    (index as usize).min(BUCKETS - 1)
}

fn middle(index: usize) -> u64 {
    let index = index as u64;
    let fine = u64::from(FINE);
    if index < 2 * fine {
        return index;
    }
    let shift = index / fine - 1;
    let low = (index % fine + fine) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_stands_for() {
        for nanos in (0..300).chain([1000, 12_345, 1 << 20, 987_654_321, 1 << 39]) {
            let back = middle(bucket(nanos));
            let error = back.abs_diff(nanos) as f64 / nanos.max(1) as f64;
            assert!(error < 0.016, "{nanos} came back as {back}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_split_the_values() {
        let mut histogram = Histogram::default();
        for nanos in 1..=1000 {
            histogram.record(nanos * 100);
        }
        assert!(histogram.quantile(0.5).abs_diff(50_000) < 1_000);
        assert!(histogram.quantile(0.99).abs_diff(99_000) < 2_000);
    }
}
