//! Statistics: a known load in, exact counts out, by `stats` and as OpenMetrics text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use dm_tests::blk::{Segment, kind};
use dm_tests::control::{Controlled, wait_until, which};
use dm_tests::daemon::flag;
use dm_tests::files;
use dm_tests::vmm::{Setup, Vmm};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SECTOR;

/// Two segments of 64 sectors, a pair of stripes of 64 sectors in chunks of 8, 32 sectors of zeroes and 32 that fail.
struct Ground {
    controlled: Controlled,
    metrics: PathBuf,
    _dir: TempDir,
}

impl Ground {
    fn new() -> Ground {
        let dir = files::disk_dir();
        let path = |name: &str| {
            let path = dir.path().join(name);
            files::component(&path, &vec![1; 256 * SECTOR]);
            path.display().to_string()
        };
        let (a, b) = (path("a"), path("b"));
        let lines = format!("0 64 linear {a} 0,64 64 striped 2 8 {a} 64 {b} 0,128 32 zero,160 32 error");
        let metrics = dir.path().join("metrics.prom");
        let args = [flag("--metrics-path", &metrics), "--metrics-interval=1".to_owned()];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Ground { controlled: Controlled::start(&format!("disk,,,rw,{lines}"), &args), metrics, _dir: dir }
    }

    fn snapshot(&self) -> Value {
        self.controlled.client().must("stats", json!({"which": which("disk"), "segments": true}))[0].take()
    }
}

fn load(vmm: &mut Vmm) {
    for n in 0..10 {
        vmm.read(0, n * 4, 8 * SECTOR).expect("of a");
    }
    for n in 0..3 {
        vmm.write(1, 64 + n * 16, &[2; 16 * SECTOR]).expect("a chunk on each leg");
    }
    vmm.read(1, 60, 8 * SECTOR).expect("of a, and of the first stripe");
    vmm.write(0, 130, &[3; 4 * SECTOR]).expect("forgotten");
    vmm.read(0, 128, SECTOR).expect("zeroes");
    for _ in 0..5 {
        vmm.read(0, 160, 2 * SECTOR).expect_err("an error");
    }
    vmm.write(0, 156, &[4; 8 * SECTOR]).expect_err("half of it");
    vmm.read(1, 192, SECTOR).expect_err("past the end");
    vmm.flush(0).expect("flush");
    vmm.flush(1).expect("flush");
    vmm.get_id(0).expect("a serial number");
    vmm.ranges(0, kind::WRITE_ZEROES, &[Segment { sector: 8, sectors: 16, flags: 0 }]).expect("write zeroes");
}

/// Operations, sectors and errors of a kind.
fn counted(kinds: &Value, kind: &str) -> [u64; 3] {
    ["ops", "sectors", "errors"].map(|what| kinds[kind][what].as_u64().unwrap_or(0))
}

#[test]
fn what_was_done_is_counted_exactly() {
    let mut ground = Ground::new();
    let mut vmm = ground.controlled.vmm("disk", &Setup { queues: 2, ..Setup::default() });
    load(&mut vmm);
    let snapshot = ground.snapshot();
    let device = &snapshot["device"];
    assert_eq!((&device["sectors"], &device["queues"], &device["in_flight"]), (&json!(192), &json!(2), &json!(0)));
    let kinds = |kinds: &Value| {
        let all = ["read", "write", "flush", "discard", "write-zeroes"];
        all.map(|kind| counted(kinds, kind))
    };
    // 10 + 1 + 1 reads that work, 5 that fail, and one past the end, of which no sector was there.
    let expected = [[18, 80 + 8 + 1 + 10, 6], [5, 48 + 4 + 8, 1], [2, 0, 0], [0, 0, 0], [1, 16, 0]];
    assert_eq!(kinds(&device["kinds"]), expected, "{device:#}");
    for (kind, [ops, ..]) in ["read", "write", "flush"].iter().zip(expected) {
        let latency = &device["kinds"][kind]["latency"];
        let [p50, p99, p999, max] = ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(|key| latency[key].as_u64());
        assert!(p50 > Some(0) && p50 <= p99 && p99 <= p999 && p999 <= max, "{kind} of {ops}: {latency}");
    }

    let segments: Vec<Value> = snapshot["segments"].as_array().expect("segments").clone();
    let keys = ["start", "len", "reads", "read_sectors", "writes", "written_sectors", "errors"];
    let found: Vec<[u64; 7]> =
        segments.iter().map(|segment| keys.map(|key| segment[key].as_u64().unwrap_or(0))).collect();
    let expected =
        [[0, 64, 11, 84, 1, 16, 0], [64, 64, 1, 4, 6, 48, 0], [128, 32, 1, 1, 2, 8, 0], [160, 32, 5, 10, 1, 4, 6]];
    assert_eq!(found, expected, "{:#}", snapshot["segments"]);

    let components = snapshot["components"].as_array().expect("components");
    assert_eq!(components.iter().map(|c| c["name"].as_str().unwrap_or("")).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        kinds(&components[0]["kinds"]),
        [[12, 88, 0], [3, 24, 0], [2, 0, 0], [0, 0, 0], [1, 16, 0]],
        "{:#}",
        components[0]
    );
    assert_eq!(
        kinds(&components[1]["kinds"]),
        [[0, 0, 0], [3, 24, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]],
        "{:#}",
        components[1]
    );

    // What the guest asked for outlasts tables and front ends; segments are those of the live table.
    ground.controlled.must(&["load", "disk", "--table", "0 192 zero"]);
    ground.controlled.must(&["resume", "disk"]);
    vmm.read(0, 0, 8 * SECTOR).expect("zeroes");
    drop(vmm);
    let mut vmm = ground.controlled.vmm("disk", &Setup::default());
    vmm.read(0, 0, 8 * SECTOR).expect("zeroes");
    let snapshot = ground.snapshot();
    assert_eq!(counted(&snapshot["device"]["kinds"], "read"), [20, 115, 6]);
    assert_eq!(snapshot["segments"].as_array().map(Vec::len), Some(1));
    assert!(snapshot["components"].as_array().is_some_and(Vec::is_empty));
    drop(vmm);
    ground.controlled.stop();
}

/// An error of a component is its own, its segment's and the request's.
#[test]
fn errors_are_counted_where_they_happen() {
    let dir = files::disk_dir();
    let component = dir.path().join("short");
    files::component(&component, &[1; 128 * SECTOR]);
    let concise = format!("disk,,,rw,0 64 linear {0} 0,64 64 linear {0} 64", component.display());
    let mut controlled = Controlled::start(&concise, &[]);
    let mut vmm = controlled.vmm("disk", &Setup::default());
    files::truncate(&component, 64 * SECTOR as u64);
    for _ in 0..7 {
        vmm.read(0, 64, 8 * SECTOR).expect_err("it is not there any more");
        vmm.read(0, 0, 8 * SECTOR).expect("it is there");
    }
    let snapshot = &controlled.client().must("stats", json!({"segments": true}))[0];
    assert_eq!(counted(&snapshot["device"]["kinds"], "read"), [14, 112, 7]);
    assert_eq!((&snapshot["segments"][0]["errors"], &snapshot["segments"][1]["errors"]), (&json!(0), &json!(7)));
    assert_eq!(snapshot["components"][0]["kinds"]["read"]["errors"], 7);
    assert!(controlled.client().info("disk")["event_nr"].as_u64() > Some(0));
    drop(vmm);
    controlled.stop();
}

/// Families and samples of an OpenMetrics text, which is checked on the way (the specification's section on the text format).
struct Metrics {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    fn parse(text: &str) -> Metrics {
        let mut metrics = Metrics { types: BTreeMap::new(), samples: BTreeMap::new() };
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let mut closed: BTreeSet<String> = BTreeSet::new();
        let mut family = String::new();
        for line in body.lines() {
            if let Some(meta) = line.strip_prefix("# ") {
                let mut words = meta.splitn(3, ' ');
                let [what, name, rest] = std::array::from_fn(|_| words.next().unwrap_or_else(|| panic!("{line}")));
                if family != name {
                    assert!(!closed.contains(name), "{name} comes in two places");
                    closed.insert(std::mem::replace(&mut family, name.to_owned()));
                }
                match what {
                    "TYPE" => assert!(metrics.types.insert(name.to_owned(), rest.to_owned()).is_none(), "{line}"),
                    "UNIT" => assert!(name.ends_with(rest), "{line}"),
                    _ => assert_eq!(what, "HELP", "{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let name = series.split('{').next().unwrap_or_default();
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line}: not of {family}"));
            let suffixes: &[&str] = match metrics.types.get(&family).map(String::as_str) {
                Some("counter") => &["_total"],
                Some("gauge") => &[""],
                Some("histogram") => &["_bucket", "_sum", "_count"],
                Some("info") => &["_info"],
                other => panic!("{family} is {other:?}"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(metrics.samples.insert(series.to_owned(), value).is_none(), "{line}: twice");
        }
        metrics
    }

    fn get(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }
}

#[test]
fn the_metrics_file_says_the_same() {
    let mut ground = Ground::new();
    let mut vmm = ground.controlled.vmm("disk", &Setup { queues: 2, ..Setup::default() });
    load(&mut vmm);
    let read = || std::fs::read_to_string(&ground.metrics).map(|text| Metrics::parse(&text)).ok();
    let operations = |kind: &str| format!("vhost_user_dm_operations_total{{device=\"disk\",kind=\"{kind}\"}}");
    wait_until("the file does not get on", || read().is_some_and(|now| now.get(&operations("flush")) == Some(2.0)));
    let metrics = read().expect("a text");
    let snapshot = ground.snapshot();
    for kind in ["read", "write", "flush", "write-zeroes"] {
        let [ops, sectors, errors] = counted(&snapshot["device"]["kinds"], kind);
        assert_eq!(metrics.get(&operations(kind)), Some(ops as f64));
        let series = |what: &str| format!("vhost_user_dm_{what}_total{{device=\"disk\",kind=\"{kind}\"}}");
        assert_eq!(metrics.get(&series("errors")), Some(errors as f64));
        assert!(sectors == 0 || metrics.get(&series("data_bytes")) == Some((sectors * 512) as f64), "{kind}");
    }
    assert_eq!(metrics.get("vhost_user_dm_size_bytes{device=\"disk\"}"), Some(192.0 * 512.0));
    // It is only ever replaced as a whole.
    for _ in 0..200 {
        read().expect("a text");
    }
    drop(vmm);
    ground.controlled.stop();
}
