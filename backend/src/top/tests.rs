//! Pictures of states, as text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::once::{Means, text};
use super::state::{Answer, State};
use super::{print, view};
use crate::stats::{Component, Counters, Device, Latency, Segment, Snapshot, Worker};

fn counters(ops: u64, sectors: u64, errors: u64, bucket: u64) -> Counters {
    let latency = Latency {
        count: ops,
        sum_ns: ops * bucket,
        p50_ns: bucket,
        p99_ns: bucket,
        p999_ns: bucket,
        max_ns: bucket,
        buckets: vec![(bucket, ops)],
    };
    Counters { ops, sectors, errors, latency }
}

fn segment(start: u64, len: u64, target: &str, to: &str) -> Segment {
    Segment { start, len, target: target.into(), to: to.into(), ..Segment::default() }
}

/// A disk of four segments after `n` seconds of reads and writes.
fn typical(n: u64) -> Snapshot {
    let mut snapshot = Snapshot { name: "disk".into(), minor: 0, at_ns: n * 1_000_000_000, ..Snapshot::default() };
    let device = &mut snapshot.device;
    (device.sectors, device.queues, device.in_flight) = (1 << 21, 4, 64);
    let kinds = [
        ("read", counters(120_000 * n, 960_000 * n, 0, 52_000)),
        ("write", counters(3_000 * n, 384_000 * n, 2 * n, 1_450_000)),
    ];
    device.kinds = kinds.map(|(kind, counters)| (kind.into(), counters)).into();
    snapshot.segments = vec![
        segment(0, 1 << 20, "linear", "vda1 384"),
        segment(1 << 20, 1 << 19, "striped", "2 128 vdb 0 vdc 0"),
        segment((1 << 20) + (1 << 19), 1 << 18, "zero", ""),
        segment((1 << 20) + (1 << 19) + (1 << 18), 1 << 18, "error", ""),
    ];
    snapshot.segments[0].read_sectors = 900_000 * n;
    snapshot.segments[1].read_sectors = 60_000 * n;
    snapshot.segments[1].written_sectors = 384_000 * n;
    snapshot.segments[3].errors = 2 * n;
    let component = |name: &str, reads| Component {
        name: name.into(),
        path: format!("/dev/{name}"),
        access: "direct".into(),
        in_flight: 7,
        kinds: BTreeMap::from([("read".into(), counters(reads * n, 8 * reads * n, 0, 48_000))]),
    };
    snapshot.components = vec![component("vda1", 112_500), component("vdb", 3_750), component("vdc", 3_750)];
    let worker = Worker { name: "q0".into(), total_ns: 1000 * n, asleep_ns: 200 * n, looking_ns: 50 * n, turns: n };
    snapshot.workers = vec![worker];
    snapshot
}

fn idle(minor: u32) -> Snapshot {
    let mut snapshot = Snapshot { name: format!("spare{minor}"), minor, ..Snapshot::default() };
    snapshot.device.sectors = 2048;
    snapshot.segments = vec![segment(0, 2048, "zero", "")];
    snapshot
}

fn state() -> State {
    State { socket: "/run/dm.sock".into(), interval: Duration::from_secs(1), ..State::default() }
}

/// After two answers.
fn after(old: Vec<Snapshot>, new: Vec<Snapshot>) -> State {
    let mut state = state();
    for devices in [old, new] {
        let detail = devices.first().cloned();
        state.take(Answer { devices, detail, missing: Vec::new() });
    }
    state
}

fn picture(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| view::render(state, frame.area(), frame.buffer_mut())).expect("drawn");
    text(terminal.backend().buffer(), Means { escapes: false, colour: false })
}

/// Compares with `pictures/NAME.txt`, or writes that if `WRITE_PICTURES` is set: then look at what changed.
fn assert_text(name: &str, shown: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/top/pictures").join(name).with_extension("txt");
    if std::env::var_os("WRITE_PICTURES").is_some() {
        std::fs::write(&path, shown).expect("write the picture");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(shown == expected, "{} is not\n{shown}", path.display());
}

fn assert_picture(name: &str, state: &State, (width, height): (u16, u16)) {
    assert_text(name, &picture(state, width, height));
}

fn typical_state() -> State {
    after(vec![typical(1), idle(1)], vec![typical(2), idle(1)])
}

#[test]
fn a_typical_process() {
    let state = typical_state();
    assert_picture("typical", &state, (80, 24));
    assert_picture("typical-wide", &state, (120, 30));
    assert_picture("typical-narrow", &state, (40, 12));
    assert_picture("typical-tiny", &state, (20, 5));
}

#[test]
fn nothing_to_show() {
    assert_picture("asking", &state(), (80, 4));
    let mut state = after(vec![], vec![]);
    assert_picture("no-devices", &state, (80, 4));
    state.problem = Some("cannot connect to the control socket /run/dm.sock".into());
    assert_picture("no-answer", &state, (80, 4));
}

#[test]
fn numbers_stay_while_nobody_answers() {
    let mut state = typical_state();
    state.problem = Some("the control socket /run/dm.sock: the process hung up".into());
    let shown = picture(&state, 80, 24);
    assert!(
        shown.contains(">disk")
            && shown.ends_with("\n trying again: the control socket /run/dm.sock: the process hung up\n"),
        "{shown}"
    );
    state.take(Answer { devices: vec![typical(4)], detail: None, missing: vec!["disc".into()] });
    let shown = picture(&state, 80, 24);
    assert!(shown.ends_with(" no such device: disc\n"), "{shown}");
}

/// Ten thousand segments, three hundred devices, sixty components; the hottest segments are listed.
#[test]
fn a_huge_process() {
    let huge = |n: u64| {
        let mut snapshot = typical(n);
        snapshot.device.sectors = 80_000_000;
        let kinds = ["linear", "linear", "striped", "zero"];
        snapshot.segments = (0..10_000u64).map(|i| segment(i * 8000, 8000, kinds[i as usize / 2500], "x 0")).collect();
        for (i, segment) in snapshot.segments.iter_mut().enumerate() {
            segment.read_sectors = if i < 5000 { (i as u64 % 1000) * n } else { 0 };
        }
        snapshot.segments[9_999].errors = n;
        snapshot.components = (0..60).map(|i| Component { name: format!("sd{i}"), ..Component::default() }).collect();
        let mut all = vec![snapshot];
        all.extend((1..300).map(idle));
        all
    };
    let mut state = after(huge(1), huge(2));
    assert_picture("huge", &state, (80, 24));
    state.selected = 200;
    state.detail = None;
    assert_picture("huge-other", &state, (80, 24));
}

#[test]
fn errors_everywhere() {
    let broken = |n: u64| {
        let mut snapshot = typical(n);
        snapshot.device.refused = 1_000_000 * n;
        let kinds = snapshot.components.iter_mut().flat_map(|component| component.kinds.values_mut());
        kinds.for_each(|counters| counters.errors = counters.ops);
        // One that has failed, and fails no more.
        snapshot.segments[0].errors = 7;
        snapshot.segments[1].errors = 12_345 * n;
        vec![snapshot]
    };
    assert_picture("errors", &after(broken(1), broken(2)), (80, 20));
}

#[test]
fn help_and_pause() {
    let mut state = typical_state();
    state.help = true;
    assert_picture("help", &state, (80, 24));
    state.help = false;
    state.paused = true;
    assert!(picture(&state, 80, 24).ends_with("\n paused   p go on   q quit\n"));
}

#[test]
fn colours_are_used_where_they_may_be() {
    let coloured = |colour| {
        let state = State { colour, ..typical_state() };
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
        view::render(&state, buffer.area, &mut buffer);
        text(&buffer, Means { escapes: true, colour })
    };
    assert!(coloured(true).contains("\x1b[38;5;"));
    let without = coloured(false);
    assert!(without.contains("\x1b[7m") && !without.contains("\x1b[38;5;"), "{without:?}");
}

#[test]
fn one_picture_has_no_keys_and_no_bar() {
    let state = State { once: true, ..typical_state() };
    let height = view::height(&state);
    let mut buffer = Buffer::empty(Rect::new(0, 0, 80, height));
    view::render(&state, buffer.area, &mut buffer);
    let shown = text(&buffer, Means { escapes: true, colour: false });
    assert!(!shown.contains("\x1b[7m") && !shown.contains("q quit") && shown.contains("\n>disk"), "{shown:?}");
    assert!(shown.contains("\n error "), "all segments: {shown}");
}

#[test]
fn stats_are_printed() {
    let hostile = Snapshot { name: "a\x1b[2J\n".into(), minor: 9, ..Snapshot::default() };
    assert_text("stats", &print::human(&[typical(2), idle(1), hostile]));
    assert_eq!(print::human(&[]), "");
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..100u64, any::<u64>(), Just(u64::MAX)]
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![Just("read".into()), Just("write".into()), Just("linear".into()), Just("error".into()), ".{0,12}"]
}

prop_compose! {
    fn any_counters()(ops in number(), sectors in number(), errors in number(), sum_ns in number(), count in number(),
        p50_ns in number(), buckets in prop::collection::vec((number(), number()), 0..4)) -> Counters {
        let latency = Latency { count, sum_ns, p50_ns, p99_ns: sum_ns, p999_ns: ops, max_ns: errors, buckets };
        Counters { ops, sectors, errors, latency }
    }
}

prop_compose! {
    fn any_segment()(start in number(), len in number(), target in word(), to in word(), read_sectors in number(),
        written_sectors in number(), errors in number()) -> Segment {
        Segment { start, len, target, to, reads: errors, read_sectors, writes: start, written_sectors, errors }
    }
}

prop_compose! {
    fn any_component()(name in word(), path in word(), access in word(), in_flight: u32,
        kinds in prop::collection::btree_map(word(), any_counters(), 0..3)) -> Component {
        Component { name, path, access, in_flight, kinds }
    }
}

prop_compose! {
    fn any_worker()(name in word(), total_ns in number(), asleep_ns in number(), looking_ns in number()) -> Worker {
        Worker { name, total_ns, asleep_ns, looking_ns, turns: total_ns }
    }
}

prop_compose! {
    fn any_snapshot()(name in "[ab]|.{0,20}", minor in 0..2u32, at_ns in number(), sectors in number(), queues: u32,
        in_flight: u32, refused in number(), kinds in prop::collection::btree_map(word(), any_counters(), 0..4),
        segments in prop::collection::vec(any_segment(), 0..12), components in prop::collection::vec(any_component(), 0..4),
        workers in prop::collection::vec(any_worker(), 0..3)) -> Snapshot {
        let device = Device { sectors, queues, in_flight, kinds, refused };
        Snapshot { name, minor, at_ns, device, segments, components, workers }
    }
}

prop_compose! {
    fn any_answer()(devices in prop::collection::vec(any_snapshot(), 0..4), detail in prop::option::of(any_snapshot()),
        missing in prop::collection::vec(word(), 0..2), own: bool) -> Answer {
        let detail = if own { devices.first().cloned() } else { detail };
        Answer { devices, detail, missing }
    }
}

proptest! {
    /// Whatever a process says, it is drawn on whatever there is, and no control character of it gets through.
    #[test]
    fn everything_can_be_drawn(first in any_answer(), second in any_answer(), width in 1..200u16, height in 1..60u16,
        x in 0..3u16, selected in 0..4usize, colour in any::<bool>(), help in any::<bool>()) {
        let mut state = State { colour, help, ..state() };
        state.take(first);
        state.selected = selected.min(state.devices.len().saturating_sub(1));
        state.take(second.clone());
        let mut buffer = Buffer::empty(Rect::new(0, 0, width + x, height));
        view::render(&state, Rect::new(x, 0, width, height), &mut buffer);
        let shown = text(&buffer, Means { escapes: false, colour: false });
        prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
        prop_assert!(x == 0 || shown.lines().all(|line| line.is_empty() || line.starts_with(' ')), "beside its place");
        prop_assert!(shown.lines().count() <= usize::from(height));
        prop_assert!(view::height(&state) > 0);
        let printed = print::human(&second.devices);
        prop_assert!(!printed.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn the_smallest_terminals(width in 1..12u16, height in 1..8u16, n in 1..4u64) {
        let mut state = typical_state();
        state.take(Answer { devices: vec![typical(n)], detail: Some(typical(n)), missing: vec![] });
        prop_assert!(!picture(&state, width, height).is_empty());
    }
}
