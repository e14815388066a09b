//! How long something took, counted in buckets that are an eighth of a power of two wide.
//!
//! One thread adds, others read meanwhile: what they see may be an operation short, never torn.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Latency;

/// Buckets of each power of two: values of one bucket are at most an eighth apart.
const PARTS: u64 = 8;
/// Powers of two that have buckets. The last bucket takes what is longer, from 18 minutes on.
const POWERS: u64 = 38;
const BUCKETS: usize = (PARTS * POWERS) as usize;

/// Adds to a counter that no other thread writes: without a locked instruction, which would cost more than all else here.
#[inline]
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// See the module's text. Times are in nanoseconds.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }
}

/// The bucket of a time: the first 16 have one each, then eight share a power of two.
#[inline]
fn bucket(ns: u64) -> usize {
    let power = (ns | PARTS).ilog2() - PARTS.ilog2();
    let part = ns >> power;
    ((u64::from(power) * PARTS + part) as usize).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn bound(bucket: usize) -> u64 {
    let (power, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    match power.checked_sub(1) {
        None => part,
        Some(power) => ((PARTS + part + 1) << power) - 1,
    }
}

impl Histogram {
    /// Counts something that took so long, `weight` times. For one thread only.
    #[inline]
    pub fn add(&self, ns: u64, weight: u64) {
        if let Some(counter) = self.buckets.get(bucket(ns)) {
            add(counter, weight);
        }
        add(&self.sum, ns.wrapping_mul(weight));
        if ns > self.max.load(Ordering::Relaxed) {
            self.max.store(ns, Ordering::Relaxed);
        }
    }
}

/// Histograms put together.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    buckets: Box<[u64]>,
    sum: u64,
    max: u64,
}

impl Default for Sum {
    fn default() -> Sum {
        Sum { buckets: vec![0; BUCKETS].into(), sum: 0, max: 0 }
    }
}

impl Sum {
    pub fn take(&mut self, histogram: &Histogram) {
        for (to, from) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *to += from.load(Ordering::Relaxed);
        }
        self.sum = self.sum.wrapping_add(histogram.sum.load(Ordering::Relaxed));
        self.max = self.max.max(histogram.max.load(Ordering::Relaxed));
    }

    pub fn latency(&self) -> Latency {
        let count = self.buckets.iter().sum();
        let at = |thousandths: u64| self.quantile(count, thousandths);
        let full = (0..).zip(&self.buckets).filter(|(_, count)| **count > 0);
        Latency {
            count,
            sum_ns: self.sum,
            p50_ns: at(500),
            p99_ns: at(990),
            p999_ns: at(999),
            max_ns: self.max,
            buckets: full.map(|(bucket, count)| (bound(bucket), *count)).collect(),
        }
    }

    /// The time that so many thousandths did not exceed, to within a bucket.
    fn quantile(&self, count: u64, thousandths: u64) -> u64 {
        let rank = (u128::from(count) * u128::from(thousandths)).div_ceil(1000) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return bound(bucket).min(self.max);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_where_the_next_one_begins() {
        for n in 0..BUCKETS - 1 {
            assert_eq!(bucket(bound(n)), n, "{}", bound(n));
            assert_eq!(bucket(bound(n) + 1), n + 1, "{}", bound(n) + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for ns in [17, 1000, 123_456, 987_654_321] {
            let longest = bound(bucket(ns));
            assert!(longest >= ns && longest - ns <= ns / PARTS, "{ns} counts as {longest}");
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.add(us * 1000, 1));
        let mut sum = Sum::default();
        assert_eq!(sum.latency(), Latency::default());
        sum.take(&histogram);
        let latency = sum.latency();
        assert_eq!((latency.count, latency.sum_ns, latency.max_ns), (1000, 500_500_000, 1_000_000));
        for (is, should) in [(latency.p50_ns, 500_000), (latency.p99_ns, 990_000), (latency.p999_ns, 999_000)] {
            assert!((should..=should + should / PARTS).contains(&is), "{is} for {should}");
        }
        assert_eq!(latency.buckets.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(latency.buckets.is_sorted());
        sum.take(&histogram);
        assert_eq!((sum.latency().count, sum.latency().p50_ns), (2000, latency.p50_ns));
    }

    #[test]
    fn a_weight_stands_for_so_many() {
        let histogram = Histogram::default();
        histogram.add(100, 61);
        histogram.add(10_000, 1);
        let mut sum = Sum::default();
        sum.take(&histogram);
        let latency = sum.latency();
        assert_eq!((latency.count, latency.sum_ns, latency.max_ns), (62, 16_100, 10_000));
        assert!(latency.p50_ns < 120 && latency.p99_ns == 10_000);
    }
}
