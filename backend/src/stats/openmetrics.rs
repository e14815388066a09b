//! Snapshots as OpenMetrics text, for Prometheus and what reads its format.

use std::collections::HashMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{Counters, Latency, Snapshot};

/// Buckets of latencies end at powers of two: 2^10 ns, about a microsecond, to 2^34 ns, about 17 seconds. The same in each
/// text, whatever was measured.
const POWERS: std::ops::RangeInclusive<u32> = 10..=34;

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// What is true now of all snapshots, in the format of <https://prometheus.io/docs/specs/om/open_metrics_spec/>. Segments
/// are left out: a table may have a million.
pub fn openmetrics(snapshots: &[Snapshot]) -> String {
    let mut registry = Registry::with_prefix("vhost_user_dm");
    let mut all = snapshots.to_vec();
    all.iter_mut().for_each(distinct);
    registry.register_collector(Box::new(All(all)));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct All(Vec<Snapshot>);

/// Where metric families are written to, and what of.
struct Writer<'a, 'd> {
    encoder: DescriptorEncoder<'d>,
    all: &'a [Snapshot],
}

impl Collector for All {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut to = Writer { encoder, all: &self.0 };
        to.devices()?;
        to.components()?;
        to.workers()
    }
}

impl<'a> Writer<'a, '_> {
    fn family<T>(
        &mut self,
        (name, help, unit): (&str, &str, Option<&Unit>),
        kind: MetricType,
        samples: impl Iterator<Item = (Labels<'a>, T)>,
        mut write: impl FnMut(&mut MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            write(&mut metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    fn counter(
        &mut self,
        what: (&str, &str, Option<&Unit>),
        samples: impl Iterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        self.family(what, MetricType::Counter, samples, |to, value| {
            to.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn gauge(
        &mut self,
        what: (&str, &str, Option<&Unit>),
        samples: impl Iterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        self.family(what, MetricType::Gauge, samples, |to, value| to.encode_gauge(&value))
    }

    fn seconds(&mut self, name: &str, help: &str, samples: impl Iterator<Item = (Labels<'a>, u64)>) -> fmt::Result {
        let what = (name, help, Some(&Unit::Seconds));
        self.family(what, MetricType::Counter, samples, |to, ns| {
            to.encode_counter::<NoLabelSet, _, u64>(&(ns as f64 / 1e9), None)
        })
    }

    fn latency(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (Labels<'a>, &'a Counters)>,
    ) -> fmt::Result {
        let what = (name, help, Some(&Unit::Seconds));
        let timed = samples.filter(|(_, counters)| counters.latency.count > 0);
        self.family(what, MetricType::Histogram, timed, |to, counters| {
            let Latency { sum_ns, count, .. } = counters.latency;
            to.encode_histogram::<NoLabelSet>(sum_ns as f64 / 1e9, count, &buckets(&counters.latency), None)
        })
    }

    /// A sample for each device and kind of request.
    fn by_kind(&self) -> impl Iterator<Item = (Labels<'a>, &'a Counters)> + use<'a> {
        self.all.iter().flat_map(|device| {
            let labels = |kind: &'a str| vec![("device", device.name.as_str()), ("kind", kind)];
            device.device.kinds.iter().map(move |(kind, counters)| (labels(kind), counters))
        })
    }

    fn devices(&mut self) -> fmt::Result {
        let all = self.all;
        let each = |value: fn(&Snapshot) -> u64| {
            all.iter().map(move |device| (vec![("device", device.name.as_str())], value(device)))
        };
        let (bytes, of) = (Some(&Unit::Bytes), self.by_kind());
        self.counter(("operations", "Requests that have ended", None), of.map(|(labels, n)| (labels, n.ops)))?;
        let of = self.by_kind();
        self.counter(("data", "Data that they were for", bytes), of.map(|(labels, n)| (labels, n.sectors * 512)))?;
        let of = self.by_kind();
        self.counter(("errors", "Requests that failed", None), of.map(|(labels, n)| (labels, n.errors)))?;
        let of = self.by_kind();
        self.latency("latency", "Time from the moment a request was taken to its end", of)?;
        self.counter(
            ("refused", "What came from guests and was no valid request", None),
            each(|of| of.device.refused),
        )?;
        self.gauge(("in_flight", "Requests under way", None), each(|of| of.device.in_flight.into()))?;
        self.gauge(("queues", "Queues that are served", None), each(|of| of.device.queues.into()))?;
        self.gauge(("size", "Length of the device", bytes), each(|of| of.device.sectors * 512))
    }

    /// A sample for each component of each device and kind of operation.
    fn of_components(&self) -> impl Iterator<Item = (Labels<'a>, &'a Counters)> + use<'a> {
        self.all.iter().flat_map(|device| {
            device.components.iter().flat_map(move |component| {
                let labels = move |kind: &'a str| {
                    let (device, path) = (device.name.as_str(), component.path.as_str());
                    vec![("device", device), ("component", path), ("kind", kind)]
                };
                component.kinds.iter().map(move |(kind, counters)| (labels(kind), counters))
            })
        })
    }

    fn components(&mut self) -> fmt::Result {
        let since = "since the live table was resumed";
        let help = format!("Operations that a component device has ended, {since}");
        let of = self.of_components();
        self.counter(("component_operations", &help, None), of.map(|(labels, n)| (labels, n.ops)))?;
        let help = format!("Data that they were for, {since}");
        let of = self.of_components();
        let data = of.map(|(labels, n)| (labels, n.sectors * 512));
        self.counter(("component_data", &help, Some(&Unit::Bytes)), data)?;
        let help = format!("Operations that failed, {since}");
        let of = self.of_components();
        self.counter(("component_errors", &help, None), of.map(|(labels, n)| (labels, n.errors)))?;
        let of = self.of_components();
        self.latency("component_latency", "Time that operations took on a component device", of)?;
        let each = self.all.iter().flat_map(|device| {
            let labels = |path| vec![("device", device.name.as_str()), ("component", path)];
            device.components.iter().map(move |of| (labels(of.path.as_str()), of.in_flight.into()))
        });
        self.gauge(("component_in_flight", "Operations that a component device has to do", None), each)
    }

    fn workers(&mut self) -> fmt::Result {
        let each = || {
            self.all.iter().flat_map(|device| {
                device
                    .workers
                    .iter()
                    .map(|worker| (vec![("device", device.name.as_str()), ("worker", worker.name.as_str())], worker))
            })
        };
        let states = each().flat_map(|(labels, worker)| {
            let working = worker.total_ns.saturating_sub(worker.asleep_ns).saturating_sub(worker.looking_ns);
            [("asleep", worker.asleep_ns), ("looking", worker.looking_ns), ("working", working)].map(|(state, ns)| {
                let mut labels = labels.clone();
                labels.push(("state", state));
                (labels, ns)
            })
        });
        let states: Vec<_> = states.collect();
        let turns: Vec<_> = each().map(|(labels, worker)| (labels, worker.turns)).collect();
        let shared = "a worker that several devices share is told of with each";
        let help = format!("Time of worker threads: asleep, looking for work in vain, working; {shared}");
        self.seconds("worker_time", &help, states.into_iter())?;
        let help = format!("Turns of worker threads that had work; {shared}");
        self.counter(("worker_turns", &help, None), turns.into_iter())
    }
}

/// Upper bounds in seconds, and how many took longer than the bound before.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = POWERS.map(|power| (f64::from(power).exp2() / 1e9, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    let last = buckets.len() - 1;
    for (bound, count) in &latency.buckets {
        // Bounds of ours are one below a power of two where they are near one.
        let power = bound.checked_ilog2().map_or(0, |power| power + 1);
        buckets[(power.saturating_sub(*POWERS.start()) as usize).min(last)].1 += count;
    }
    // What was read in the middle of an addition: the buckets have to add up to the count.
    buckets[last].1 += latency.count.saturating_sub(buckets.iter().map(|(_, count)| count).sum());
    buckets
}

/// What several components, or workers, are called gets a number, so that no two samples have the same labels.
fn distinct(snapshot: &mut Snapshot) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let workers = snapshot.workers.iter_mut().map(|worker| &mut worker.name);
    for name in snapshot.components.iter_mut().map(|component| &mut component.path).chain(workers) {
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        if *times > 1 {
            *name = format!("{name}#{times}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Component, Device, Worker};

    fn snapshot() -> Snapshot {
        let latency = Latency {
            count: 7,
            sum_ns: 1_500_000_000,
            buckets: vec![(15, 1), (1023, 1), (1151, 2), (2047, 1), (1 << 36, 1)],
            ..Latency::default()
        };
        let counters = |ops| Counters { ops, sectors: 2 * ops, errors: 1, latency: latency.clone() };
        let component = Component {
            path: "/a \"b\"\\c\nd".into(),
            in_flight: 3,
            kinds: [("write".to_owned(), Counters { ops: 5, ..Counters::default() })].into(),
            ..Component::default()
        };
        Snapshot {
            name: "d".into(),
            device: Device {
                sectors: 8,
                queues: 2,
                in_flight: 4,
                kinds: [("read".to_owned(), counters(10))].into(),
                refused: 6,
            },
            components: vec![component.clone(), component],
            workers: vec![Worker {
                name: "queue-0".into(),
                total_ns: 3_500_000_000,
                asleep_ns: 1_000_000_000,
                looking_ns: 500_000_000,
                turns: 99,
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn each_number_has_its_line() {
        let text = openmetrics(&[snapshot()]);
        for line in [
            r#"vhost_user_dm_operations_total{device="d",kind="read"} 10"#,
            r#"vhost_user_dm_data_bytes_total{device="d",kind="read"} 10240"#,
            r#"vhost_user_dm_errors_total{device="d",kind="read"} 1"#,
            r#"vhost_user_dm_latency_seconds_sum{device="d",kind="read"} 1.5"#,
            r#"vhost_user_dm_latency_seconds_count{device="d",kind="read"} 7"#,
            r#"vhost_user_dm_refused_total{device="d"} 6"#,
            r#"vhost_user_dm_in_flight{device="d"} 4"#,
            r#"vhost_user_dm_queues{device="d"} 2"#,
            r#"vhost_user_dm_size_bytes{device="d"} 4096"#,
            r#"vhost_user_dm_component_operations_total{device="d",component="/a \"b\"\\c\nd",kind="write"} 5"#,
            r#"vhost_user_dm_component_in_flight{device="d",component="/a \"b\"\\c\nd#2"} 3"#,
            r#"vhost_user_dm_worker_time_seconds_total{device="d",worker="queue-0",state="working"} 2.0"#,
            r#"vhost_user_dm_worker_turns_total{device="d",worker="queue-0"} 99"#,
            "# UNIT vhost_user_dm_latency_seconds seconds",
            "# TYPE vhost_user_dm_latency_seconds histogram",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn buckets_add_up_and_end_where_they_say() {
        let text = openmetrics(&[snapshot()]);
        let buckets = text.lines().filter(|line| line.starts_with("vhost_user_dm_latency_seconds_bucket"));
        let counts: Vec<(&str, u64)> = buckets
            .map(|line| {
                let (labels, count) = line.rsplit_once(' ').unwrap();
                (labels.split("le=\"").nth(1).unwrap().split('"').next().unwrap(), count.parse().unwrap())
            })
            .collect();
        assert_eq!(counts[..2], [("0.000001024", 2), ("0.000002048", 5)]);
        assert_eq!(counts.last(), Some(&("+Inf", 7)));
        assert!(counts.is_sorted_by_key(|(_, count)| *count));
    }

    #[test]
    fn families_are_in_one_piece_and_samples_apart() {
        let mut other = snapshot();
        other.name = "e".into();
        let text = openmetrics(&[snapshot(), other]);
        let mut seen = std::collections::HashSet::new();
        let mut family = String::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            match line.strip_prefix("# HELP ") {
                Some(help) => {
                    family = help.split(' ').next().unwrap().to_owned();
                    assert!(seen.insert(family.clone()), "{family} comes twice");
                }
                None if line.starts_with('#') => assert!(line.contains(&family)),
                None => {
                    assert!(line.starts_with(&family), "{line} in {family}");
                    assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "{line} comes twice");
                }
            }
        }
        assert_eq!(openmetrics(&[]).lines().last(), Some("# EOF"));
    }
}
