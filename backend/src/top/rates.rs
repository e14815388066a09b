//! What happened between two snapshots.

use std::collections::BTreeMap;

use crate::stats::{Counters, Segment, Snapshot, Worker};

/// What a counter has counted since. One that fell began anew in between, as after another table was resumed: then all that it
/// shows is of this interval.
fn since(new: u64, old: u64) -> u64 {
    new.checked_sub(old).unwrap_or(new)
}

/// Latencies of an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spread {
    buckets: BTreeMap<u64, u64>,
}

impl Spread {
    fn add(&mut self, new: &Counters, old: Option<&Counters>) {
        let before = old.map_or(&[][..], |old| &old.latency.buckets);
        let before: BTreeMap<u64, u64> = before.iter().copied().collect();
        for &(bound, count) in &new.latency.buckets {
            let count = since(count, before.get(&bound).copied().unwrap_or(0));
            if count > 0 {
                let sum = self.buckets.entry(bound).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }

    /// The upper bound of the bucket in which the quantile lies; None of nothing.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let total = self.buckets.values().fold(0u64, |sum, count| sum.saturating_add(*count));
        let rank = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0u64;
        let mut bounds = self.buckets.iter();
        bounds.find_map(|(bound, count)| {
            seen = seen.saturating_add(*count);
            (seen >= rank).then_some(*bound)
        })
    }
}

/// Operations of an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Flow {
    /// Operations.
    pub ops: u64,
    /// Sectors read.
    pub read: u64,
    /// Sectors written or zeroed; not those discarded.
    pub written: u64,
    /// Operations that failed.
    pub errors: u64,
    /// How long they took.
    pub spread: Spread,
}

impl Flow {
    fn between(new: &BTreeMap<String, Counters>, old: Option<&BTreeMap<String, Counters>>) -> Flow {
        let mut flow = Flow::default();
        for (kind, counters) in new {
            let old = old.and_then(|old| old.get(kind));
            let [ops, sectors, errors] = [|c: &Counters| c.ops, |c: &Counters| c.sectors, |c: &Counters| c.errors]
                .map(|get| since(get(counters), old.map_or(0, get)));
            flow.ops = flow.ops.saturating_add(ops);
            flow.errors = flow.errors.saturating_add(errors);
            match kind.as_str() {
                "read" => flow.read = flow.read.saturating_add(sectors),
                "write" | "write-zeroes" => flow.written = flow.written.saturating_add(sectors),
                _ => {}
            }
            flow.spread.add(counters, old);
        }
        flow
    }
}

/// How workers spent their time, in shares of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shares {
    pub busy: f64,
    pub looking: f64,
    pub asleep: f64,
}

impl Shares {
    fn between(new: &[Worker], old: &[Worker]) -> Option<Shares> {
        let (mut total, mut asleep, mut looking) = (0.0, 0.0, 0.0);
        for worker in new {
            let old = old.iter().find(|old| old.name == worker.name);
            let get = |get: fn(&Worker) -> u64| since(get(worker), old.map_or(0, get)) as f64;
            total += get(|worker| worker.total_ns);
            asleep += get(|worker| worker.asleep_ns);
            looking += get(|worker| worker.looking_ns);
        }
        if total == 0.0 {
            return None;
        }
        // An estimate by samples may be more than there was.
        let asleep = (asleep / total).clamp(0.0, 1.0);
        let looking = (looking / total).clamp(0.0, 1.0 - asleep);
        Some(Shares { busy: 1.0 - asleep - looking, looking, asleep })
    }
}

/// A component in an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ComponentRates {
    pub flow: Flow,
    /// Errors since its table was resumed.
    pub errors: u64,
}

/// A segment in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SegmentRates {
    /// Sectors read.
    pub read: u64,
    /// Sectors written.
    pub written: u64,
    /// Pieces that failed.
    pub errors: u64,
}

/// A device in an interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Its length in seconds.
    pub seconds: f64,
    pub flow: Flow,
    /// Requests that failed or were no valid ones, of the interval.
    pub errors: u64,
    /// Nothing where no worker serves it.
    pub shares: Option<Shares>,
    /// As [`Snapshot::components`].
    pub components: Vec<ComponentRates>,
    /// As [`Snapshot::segments`].
    pub segments: Vec<SegmentRates>,
}

impl Rates {
    /// None if no time lies between the two.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Option<Rates> {
        let ns = new.at_ns.checked_sub(old.at_ns).filter(|ns| *ns > 0)?;
        let flow = Flow::between(&new.device.kinds, Some(&old.device.kinds));
        Some(Rates {
            seconds: ns as f64 / 1e9,
            errors: flow.errors.saturating_add(since(new.device.refused, old.device.refused)),
            flow,
            shares: Shares::between(&new.workers, &old.workers),
            components: new
                .components
                .iter()
                .map(|component| {
                    let before =
                        old.components.iter().find(|old| old.path == component.path && old.access == component.access);
                    ComponentRates {
                        flow: Flow::between(&component.kinds, before.map(|before| &before.kinds)),
                        errors: component.kinds.values().fold(0, |sum, counters| sum.saturating_add(counters.errors)),
                    }
                })
                .collect(),
            segments: segments(&new.segments, &old.segments),
        })
    }

    /// So many in the interval, by the second.
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds
    }

    /// So many sectors in the interval, as bytes by the second.
    pub fn bytes_per_second(&self, sectors: u64) -> f64 {
        self.per_second(sectors) * dm_table::SECTOR_SIZE as f64
    }
}

fn segments(new: &[Segment], old: &[Segment]) -> Vec<SegmentRates> {
    let alike = |one: &Segment, other: &Segment| {
        one.start == other.start && one.len == other.len && one.target == other.target && one.to == other.to
    };
    // Those of another table have begun to count when it was resumed, which was in the interval.
    let same = new.len() == old.len() && new.iter().zip(old).all(|(new, old)| alike(new, old));
    let none = Segment::default();
    let rates = |(index, new): (usize, &Segment)| {
        let old = if same { &old[index] } else { &none };
        SegmentRates {
            read: since(new.read_sectors, old.read_sectors),
            written: since(new.written_sectors, old.written_sectors),
            errors: since(new.errors, old.errors),
        }
    };
    new.iter().enumerate().map(rates).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Latency;

    fn counters(ops: u64, buckets: &[(u64, u64)]) -> Counters {
        let latency = Latency { buckets: buckets.to_vec(), ..Latency::default() };
        Counters { ops, sectors: 8 * ops, errors: 0, latency }
    }

    fn snapshot(at_ns: u64, reads: Counters) -> Snapshot {
        let mut snapshot = Snapshot { at_ns, ..Snapshot::default() };
        snapshot.device.kinds.insert("read".into(), reads);
        snapshot
    }

    #[test]
    fn the_interval_alone_counts() {
        let old = snapshot(1_000_000_000, counters(1000, &[(10, 990), (1_000_000, 10)]));
        let new = snapshot(3_000_000_000, counters(1100, &[(10, 1040), (100, 49), (1_000_000, 11)]));
        let rates = Rates::between(&old, &new).expect("two seconds lie between them");
        assert_eq!(rates.per_second(rates.flow.ops), 50.0);
        assert_eq!(rates.bytes_per_second(rates.flow.read), 50.0 * 4096.0);
        let quantiles = [0.0, 0.5, 0.51, 0.99, 0.999].map(|quantile| rates.flow.spread.quantile(quantile));
        assert_eq!(quantiles, [Some(10), Some(10), Some(100), Some(100), Some(1_000_000)]);
        assert_eq!(Spread::default().quantile(0.5), None);
        assert_eq!(Rates::between(&new, &old), None);
        assert_eq!(Rates::between(&new, &new), None);
    }

    #[test]
    fn a_counter_that_fell_began_anew() {
        let old = snapshot(0, counters(1000, &[(10, 1000)]));
        let new = snapshot(1_000_000_000, counters(30, &[(10, 20), (20, 10)]));
        let rates = Rates::between(&old, &new).expect("a second lies between them");
        assert_eq!(rates.flow.ops, 30);
        assert_eq!(rates.flow.spread.quantile(0.99), Some(20));
    }

    #[test]
    fn segments_of_another_table_began_with_it() {
        let segment =
            |target: &str, read_sectors| Segment { len: 8, target: target.into(), read_sectors, ..Segment::default() };
        let old = Snapshot { segments: vec![segment("zero", 100)], ..Snapshot::default() };
        let same = Snapshot { at_ns: 1, segments: vec![segment("zero", 180)], ..Snapshot::default() };
        let other = Snapshot { at_ns: 1, segments: vec![segment("error", 180)], ..Snapshot::default() };
        let read = |new| Rates::between(&old, new).map(|rates| rates.segments[0].read);
        assert_eq!((read(&same), read(&other)), (Some(80), Some(180)));
    }

    #[test]
    fn workers_share_their_time() {
        let worker = |name: &str, total_ns, asleep_ns, looking_ns| Worker {
            name: name.into(),
            total_ns,
            asleep_ns,
            looking_ns,
            turns: 0,
        };
        let old = [worker("a", 1000, 1000, 0)];
        let new = [worker("a", 1100, 1025, 25), worker("b", 100, 75, 25)];
        assert_eq!(Shares::between(&new, &old), Some(Shares { busy: 0.25, looking: 0.25, asleep: 0.5 }));
        assert_eq!(Shares::between(&[], &old), None);
        let beyond = Shares::between(&[worker("a", 10, 8, 8)], &[]).expect("it has run");
        assert!(beyond.busy.abs() < 1e-9 && (beyond.looking - 0.2).abs() < 1e-9, "{beyond:?}");
    }
}
