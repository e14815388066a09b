//! Component sectors that can be reached in two ways: written through one, they change under the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use dm_table::{Diagnostic, Sectors, Source, Target, Unstriped};

use super::build::{Area, Resolved};
use super::stripe::Leg;
use super::{DevIx, Lower, Map, Segment};

/// Device ranges looked at before the search ends without a word. Stripes over stripes over one lower map
/// multiply without bound, and this only ever warns.
const MOST_RANGES: usize = 1 << 20;

/// Chunks of one unstriped line that are looked at; of a line with more, none.
const MOST_CHUNKS: u64 = 1 << 16;

/// Warnings given one by one; the rest is a number.
const MOST_WARNINGS: usize = 8;

/// Line and stripe of the table.
type Origin = (usize, usize);

/// Sectors of a device that a line or stripe reaches.
#[derive(Clone, Copy)]
struct Reach {
    dev: DevIx,
    start: u64,
    end: u64,
    origin: Origin,
}

/// Two ways to the same sectors.
struct Overlap {
    dev: DevIx,
    start: u64,
    end: u64,
    first: Origin,
    second: Origin,
}

pub(super) fn warn(
    source: &Source,
    lines: &[Resolved<'_>],
    names: &BTreeMap<DevIx, Arc<str>>,
    warnings: &mut Vec<Diagnostic>,
) {
    let mut overlaps = overlaps(reached(lines));
    overlaps.sort_by_key(|overlap| (overlap.second, overlap.first, overlap.dev, overlap.start));
    for overlap in overlaps.iter().take(MOST_WARNINGS) {
        warnings.push(warning(source, lines, names, overlap));
    }
    if let Some(next) = overlaps.get(MOST_WARNINGS) {
        let more = overlaps.len() - MOST_WARNINGS;
        let reason = format!("{more} more device ranges are reachable in two ways");
        let line = lines[next.second.0].line;
        warnings.push(Diagnostic::warning(source, line.span, reason));
    }
}

/// Sectors of a component that two disks reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The component.
    pub dev: DevIx,
    /// First sector.
    pub start: u64,
    /// One past the last sector.
    pub end: u64,
    /// The disks, as indices of the list that was given.
    pub disks: (usize, usize),
}

/// What several disks reach in common, a few ranges of it. `same` gives one number of all that mean the same device: a file
/// that has grown has several.
pub fn shared(maps: &[&Map], same: &dyn Fn(DevIx) -> DevIx) -> Vec<Shared> {
    let mut reach = Vec::new();
    for (disk, map) in maps.iter().enumerate() {
        device_ranges(map, 0, map.len().get(), &mut |dev, start, len| {
            reach.push(Reach { dev: same(dev), start, end: start + len, origin: (disk, 0) });
            reach.len() < MOST_RANGES
        });
    }
    let as_shared = |o: Overlap| Shared { dev: o.dev, start: o.start, end: o.end, disks: (o.first.0, o.second.0) };
    overlaps(reach).into_iter().take(MOST_WARNINGS).map(as_shared).collect()
}

fn reached(lines: &[Resolved<'_>]) -> Vec<Reach> {
    let mut reach = Vec::new();
    for (i, resolved) in lines.iter().enumerate() {
        if matches!(resolved.line.target, Target::Error(_)) {
            continue;
        }
        for (stripe, area) in resolved.areas.iter().enumerate() {
            // Only stripes, and a log, are meant to be apart: a delay may name one range for each class of requests.
            let apart = matches!(resolved.line.target, Target::Striped(_) | Target::LogWrites(_));
            let origin = (i, if apart { stripe } else { 0 });
            let mut add = |dev, start, len| {
                let end = start + len;
                reach.push(Reach { dev, start, end, origin });
                reach.len() < MOST_RANGES
            };
            if let Target::Unstriped(unstriped) = &resolved.line.target {
                if !of_stripe(unstriped, resolved.line.len.get(), area, &mut add) {
                    return reach;
                }
                continue;
            }
            let go_on = match &area.lower {
                Lower::Device { ix, .. } => add(*ix, area.start, area.len),
                Lower::Map(map) => device_ranges(map, area.start, area.len, &mut add),
            };
            if !go_on {
                return reach;
            }
        }
    }
    reach
}

/// The chunks of one stripe.
fn of_stripe(unstriped: &Unstriped, len: u64, area: &Area<'_>, add: &mut dyn FnMut(DevIx, u64, u64) -> bool) -> bool {
    let chunk = unstriped.chunk.get();
    if len / chunk > MOST_CHUNKS {
        return true;
    }
    let chunks = (0..len / chunk).filter_map(|n| unstriped.sector(Sectors::new(n * chunk)));
    let mut chunks = chunks.map(Sectors::get);
    match &area.lower {
        Lower::Device { ix, .. } => chunks.all(|at| add(*ix, at, chunk)),
        Lower::Map(map) => chunks.all(|at| device_ranges(map, at, chunk, add)),
    }
}

/// Gives every device range below `len` sectors of `map` at `at` to `add`, until it says to stop.
///
/// A walk of discard ranges would cut at every chunk of a lower striped map; this takes a stripe's part whole.
fn device_ranges(map: &Map, at: u64, len: u64, add: &mut dyn FnMut(DevIx, u64, u64) -> bool) -> bool {
    map.covered(at, len).all(|(segment, into, take)| match segment {
        // What lies under a stateful target is its own affair.
        // Nor does a place that is only read disturb another.
        Segment::Zero | Segment::Error | Segment::Target { .. } | Segment::ReadOnly(_) => true,
        Segment::Linear { dev, start } => add(*dev, start + into, take),
        Segment::Unstriped(unstriped) if take / unstriped.chunk > MOST_CHUNKS => true,
        Segment::Unstriped(unstriped) => unstriped.chunks(into, take).all(|(into, take)| match &unstriped.leg {
            Leg::Device { dev, start } => add(*dev, start + into, take),
            Leg::Map { map, start } => device_ranges(map, start + into, take, add),
        }),
        Segment::Striped(striped) => {
            let from = striped.place(striped.skip + into);
            let to = striped.place(striped.skip + into + take);
            striped.legs.iter().enumerate().all(|(i, leg)| {
                let (into, take) = striped.leg_range(i, from, to);
                match leg {
                    _ if take == 0 => true,
                    Leg::Device { dev, start } => add(*dev, start + into, take),
                    Leg::Map { map, start } => device_ranges(map, start + into, take, add),
                }
            })
        }
    })
}

/// One pass over the ranges in order of device and start.
///
/// At every start it knows the range that reaches furthest, and the one that reaches furthest of those with
/// another origin; one of the two answers whether the next range overlaps one of another origin.
fn overlaps(mut reach: Vec<Reach>) -> Vec<Overlap> {
    reach.sort_by_key(|reach| (reach.dev, reach.start, reach.origin));
    let mut found: Vec<Overlap> = Vec::new();
    let mut furthest: [Option<Reach>; 2] = [None, None];
    for next in reach {
        if furthest[0].is_some_and(|before| before.dev != next.dev) {
            furthest = [None, None];
        }
        let other = furthest.iter().flatten().find(|before| before.origin != next.origin);
        if let Some(before) = other.filter(|before| before.end > next.start) {
            note(&mut found, before, &next);
        }
        keep(&mut furthest, next);
    }
    found
}

fn note(found: &mut Vec<Overlap>, before: &Reach, next: &Reach) {
    let overlap = Overlap {
        dev: next.dev,
        start: next.start,
        end: before.end.min(next.end),
        first: before.origin.min(next.origin),
        second: before.origin.max(next.origin),
    };
    match found.last_mut() {
        // Many small segments of a lower map make one overlap.
        Some(last)
            if (last.dev, last.end) == (overlap.dev, overlap.start)
                && (last.first, last.second) == (overlap.first, overlap.second) =>
        {
            last.end = overlap.end;
        }
        _ => found.push(overlap),
    }
}

fn keep(furthest: &mut [Option<Reach>; 2], next: Reach) {
    let end = |slot: &Option<Reach>| slot.map_or(0, |reach| reach.end);
    let same = |slot: &Option<Reach>| slot.is_some_and(|reach| reach.origin == next.origin);
    if same(&furthest[0]) {
        if next.end > end(&furthest[0]) {
            furthest[0] = Some(next);
        }
    } else if next.end > end(&furthest[0]) {
        *furthest = [Some(next), furthest[0]];
    } else if next.end > end(&furthest[1]) {
        furthest[1] = Some(next);
    }
}

fn warning(
    source: &Source,
    lines: &[Resolved<'_>],
    names: &BTreeMap<DevIx, Arc<str>>,
    overlap: &Overlap,
) -> Diagnostic {
    let (first, second) = (overlap.first, overlap.second);
    let span = |origin: Origin| lines[origin.0].areas[origin.1].dev.span;
    let (line, column) = source.line_col(span(first).start);
    let (other_line, other_column) = source.line_col(span(second).start);
    let ways = if line != other_line {
        format!("lines {line} and {other_line}")
    } else {
        format!("line {line}, columns {column} and {other_column}")
    };
    let name = names.get(&overlap.dev).map_or("a device", |name| &**name);
    let reason = format!("sectors {}..{} of {name} are reachable through {ways}", overlap.start, overlap.end);
    Diagnostic::warning(source, span(second), reason)
        .found("a second way to the same sectors")
        .help("what is written through one place changes what the other reads; serve the disk read-only, or give each place its own sectors")
}
