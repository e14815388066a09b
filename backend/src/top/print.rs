//! What was counted so far, as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use ratatui::text::Span;

use super::units;
use crate::check::count;
use crate::stats::{Counters, KINDS, Segment, Snapshot, Worker};

const KIND_HEADING: [&str; 9] = ["", "OPS", "DATA", "ERRORS", "MEAN", "p50", "p99", "p99.9", "WORST"];
const WORKER_HEADING: [&str; 5] = ["WORKER", "BUSY", "LOOKING", "ASLEEP", "TURNS"];
const SEGMENT_HEADING: [&str; 8] = ["SEGMENT", "START", "SECTORS", "READS", "DATA", "WRITES", "DATA", "ERRORS"];

/// A table with a heading: the first column to the left, the others to the right, each as wide as its widest cell.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

enum Row {
    Cells(Vec<String>),
    /// Over all columns.
    Line(String),
}

impl Table {
    fn headed(heading: &[&str]) -> Table {
        Table { rows: vec![Row::Cells(heading.iter().map(|&title| title.into()).collect())] }
    }

    fn print(&self, text: &mut String) {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(Span::raw(cell).width());
            }
        }
        for row in &self.rows {
            // Writing to a String cannot fail.
            let _ = match row {
                Row::Line(line) => writeln!(text, "{line}"),
                Row::Cells(cells) => writeln!(text, "  {}", aligned(cells, &widths).trim_end()),
            };
        }
    }
}

fn aligned(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let blank = " ".repeat(width.saturating_sub(Span::raw(cell).width()));
        match index {
            0 => line.extend([cell.as_str(), &blank]),
            _ => line.extend(["  ", blank.as_str(), cell]),
        }
    }
    line
}

/// All of it.
pub(super) fn human(snapshots: &[Snapshot]) -> String {
    let mut text = String::new();
    for (number, snapshot) in snapshots.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        device(snapshot, &mut text);
    }
    text
}

fn device(snapshot: &Snapshot, text: &mut String) {
    let device = &snapshot.device;
    let _ = writeln!(
        text,
        "{}: minor {}, {} sectors ({}), {}, {} under way, {} refused",
        units::clean(&snapshot.name),
        snapshot.minor,
        device.sectors,
        units::size(device.sectors),
        count(usize::try_from(device.queues).unwrap_or(usize::MAX), "queue"),
        count(usize::try_from(device.in_flight).unwrap_or(usize::MAX), "request"),
        device.refused
    );
    let mut table = Table::headed(&KIND_HEADING);
    kinds(&device.kinds, &mut table);
    for component in &snapshot.components {
        let (name, path) = (units::clean(&component.name), units::clean(&component.path));
        let access = units::clean(&component.access);
        table.rows.push(Row::Line(format!("  component {name}: {path}, {access}, {} under way", component.in_flight)));
        kinds(&component.kinds, &mut table);
    }
    table.print(text);
    if !snapshot.workers.is_empty() {
        workers(&snapshot.workers).print(text);
    }
    if !snapshot.segments.is_empty() {
        segments(&snapshot.segments).print(text);
    }
}

/// Rows of the kinds of which there was any.
fn kinds(kinds: &BTreeMap<String, Counters>, table: &mut Table) {
    let others = kinds.keys().map(String::as_str).filter(|kind| !KINDS.contains(kind));
    let mut any = false;
    for kind in KINDS.into_iter().chain(others) {
        let Some(counters) = kinds.get(kind).filter(|counters| counters.ops > 0 || counters.errors > 0) else {
            continue;
        };
        any = true;
        let latency = &counters.latency;
        let time = |ns: u64| if latency.count == 0 { "-".into() } else { units::time(ns) };
        let data = if kind == "flush" { "-".into() } else { units::size(counters.sectors) };
        table.rows.push(Row::Cells(vec![
            format!("  {}", units::clean(kind)),
            counters.ops.to_string(),
            data,
            counters.errors.to_string(),
            time(latency.sum_ns.checked_div(latency.count).unwrap_or(0)),
            time(latency.p50_ns),
            time(latency.p99_ns),
            time(latency.p999_ns),
            time(latency.max_ns),
        ]));
    }
    if !any {
        table.rows.push(Row::Line("    nothing yet".into()));
    }
}

fn workers(workers: &[Worker]) -> Table {
    let mut table = Table::headed(&WORKER_HEADING);
    for worker in workers {
        let share = |ns: u64| match worker.total_ns {
            0 => "-".into(),
            total => units::percent(ns as f64 / total as f64),
        };
        let idle = worker.asleep_ns.saturating_add(worker.looking_ns);
        table.rows.push(Row::Cells(vec![
            units::clean(&worker.name),
            share(worker.total_ns.saturating_sub(idle)),
            share(worker.looking_ns),
            share(worker.asleep_ns),
            worker.turns.to_string(),
        ]));
    }
    table
}

fn segments(segments: &[Segment]) -> Table {
    let mut table = Table::headed(&SEGMENT_HEADING);
    for segment in segments {
        table.rows.push(Row::Cells(vec![
            units::clean(format!("{} {}", segment.target, segment.to).trim_end()),
            segment.start.to_string(),
            segment.len.to_string(),
            segment.reads.to_string(),
            units::size(segment.read_sectors),
            segment.writes.to_string(),
            units::size(segment.written_sectors),
            segment.errors.to_string(),
        ]));
    }
    table
}
