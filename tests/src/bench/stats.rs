//! What many rounds amount to.

use super::client::Sample;

/// The middle value; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Medians of one side.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Requests a second.
    pub iops: f64,
    /// Median latency, nanoseconds.
    pub p50: f64,
    /// 99th percentile of latency, nanoseconds.
    pub p99: f64,
    /// CPU time of the back end for each request, nanoseconds.
    pub cpu: f64,
}

impl Side {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Self {
        let of = |f: fn(&Sample) -> f64| median(samples.clone().map(f));
        Side { iops: of(|s| s.iops), p50: of(|s| s.p50 as f64), p99: of(|s| s.p99 as f64), cpu: of(|s| s.cpu) }
    }
}

/// Both sides of a round: ours, theirs.
pub type Round = (Sample, Sample);

/// All rounds of a row. A ratio is that of a round, ours/theirs, as what disturbs one side of a round often
/// disturbs the other.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// The first side.
    pub ours: Side,
    /// The second side.
    pub theirs: Side,
    /// Median of the ratios of requests a second.
    pub ratio: f64,
    /// The least and the greatest of them.
    pub spread: (f64, f64),
    /// Median of the ratios of CPU time for each request.
    pub cpu_ratio: f64,
}

impl Summary {
    /// Of the rounds of a row.
    pub fn of(pairs: &[Round]) -> Self {
        let ratios = pairs.iter().map(|(a, b)| a.iops / b.iops);
        let low = ratios.clone().fold(f64::INFINITY, f64::min);
        let high = ratios.clone().fold(0.0, f64::max);
        Summary {
            ours: Side::of(pairs.iter().map(|(ours, _)| ours)),
            theirs: Side::of(pairs.iter().map(|(_, theirs)| theirs)),
            ratio: median(ratios),
            spread: (low, high),
            cpu_ratio: median(pairs.iter().map(|(a, b)| a.cpu / b.cpu)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(iops: f64, cpu: f64) -> Sample {
        Sample { iops, p50: 10, p99: 20, cpu, operations: 1, kicks: 0.0 }
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median([f64::INFINITY, 1.0, 1.0]), 1.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn the_ratio_is_that_of_a_round_not_of_the_medians() {
        // The machine was three times as fast in one round and half as fast in another.
        let pairs = [
            (sample(200.0, 5.0), sample(100.0, 10.0)),
            (sample(600.0, 2.0), sample(300.0, 8.0)),
            (sample(90.0, 6.0), sample(50.0, 10.0)),
        ];
        let summary = Summary::of(&pairs);
        assert_eq!((summary.ratio, summary.spread), (2.0, (1.8, 2.0)));
        assert_eq!((summary.ours.iops, summary.theirs.iops), (200.0, 100.0));
        assert_eq!(summary.cpu_ratio, 0.5);
        assert_eq!((summary.ours.p50, summary.ours.p99), (10.0, 20.0));
    }
}
