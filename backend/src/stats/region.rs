//! A region of a device in which requests are counted, as the kernel's dm-stats does
//! (Documentation/admin-guide/device-mapper/statistics.rst): its areas, and the text that tells of them.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nanoseconds of the unit in which times are given without `precise_timestamps`.
const MS: u64 = 1_000_000;

/// Counters of one area; pairs are of reads and writes.
#[derive(Clone, Debug, Default)]
struct Area {
    done: [u64; 2],
    sectors: [u64; 2],
    ns: [u64; 2],
    in_flight: [u32; 2],
    // When the next four were brought up to date.
    stamp: u64,
    busy: [u64; 2],
    any_busy: u64,
    weighted: u64,
}

impl Area {
    /// Accounts for the time until now, in which as many requests were under way as now.
    fn round(&mut self, now: u64) {
        let passed = now.saturating_sub(self.stamp);
        self.stamp = self.stamp.max(now);
        for (busy, in_flight) in self.busy.iter_mut().zip(self.in_flight) {
            *busy += if in_flight > 0 { passed } else { 0 };
        }
        let all = u64::from(self.in_flight[0]) + u64::from(self.in_flight[1]);
        self.any_busy += if all > 0 { passed } else { 0 };
        self.weighted = self.weighted.saturating_add(passed.saturating_mul(all));
    }
}

/// What is asked for by `@stats_create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub start: u64,
    pub len: u64,
    /// Sectors of an area; the last one may be shorter.
    pub step: u64,
    pub precise: bool,
    /// Bounds of the histogram as they were given, in ms, or with `precise` in ns.
    pub bounds: Vec<u64>,
    pub program: String,
    pub aux: String,
}

impl Wanted {
    pub fn areas(&self) -> u64 {
        self.len.div_ceil(self.step)
    }

    /// Memory that its counters take.
    pub fn bytes(&self) -> u128 {
        let histogram = if self.bounds.is_empty() { 0 } else { self.bounds.len() + 1 };
        u128::from(self.areas()) * (size_of::<Area>() + histogram * size_of::<u64>()) as u128
    }
}

#[derive(Debug)]
struct Counted {
    areas: Vec<Area>,
    // So many for each area as there are bounds and one more, if there are bounds.
    histograms: Vec<u64>,
    aux: String,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Region {
    pub id: u32,
    wanted: Wanted,
    // Requests of all queues come here: who makes regions pays for them.
    counted: Mutex<Counted>,
}

impl Region {
    pub fn new(id: u32, wanted: Wanted, now: u64) -> Region {
        let areas = wanted.areas() as usize;
        let histogram = if wanted.bounds.is_empty() { 0 } else { wanted.bounds.len() + 1 };
        let counted = Mutex::new(Counted {
            areas: vec![Area { stamp: now, ..Area::default() }; areas],
            histograms: vec![0; areas * histogram],
            aux: wanted.aux.clone(),
        });
        Region { id, wanted, counted }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn program(&self) -> &str {
        &self.wanted.program
    }

    pub fn bytes(&self) -> u128 {
        self.wanted.bytes()
    }

    pub fn set_aux(&self, aux: &str) {
        aux.clone_into(&mut self.counted().aux);
    }

    /// The areas that sectors overlap, each with the number of sectors there.
    fn touched(&self, at: u64, len: u64) -> impl Iterator<Item = (usize, u64)> {
        let Wanted { start, len: own, step, .. } = self.wanted;
        let from = at.max(start);
        let to = at.saturating_add(len).min(start.saturating_add(own));
        let areas = if from < to { (from - start) / step..(to - start).div_ceil(step) } else { 0..0 };
        areas.map(move |area| {
            let begin = start + area * step;
            (area as usize, to.min(begin.saturating_add(step)) - from.max(begin))
        })
    }

    /// A request for sectors begins.
    pub fn begin(&self, write: bool, at: u64, len: u64, now: u64) {
        let mut counted = self.counted();
        for (area, _) in self.touched(at, len) {
            let area = &mut counted.areas[area];
            area.round(now);
            area.in_flight[usize::from(write)] += 1;
        }
    }

    /// And ends `ns` later.
    pub fn end(&self, write: bool, at: u64, len: u64, now: u64, ns: u64) {
        let unit = self.unit();
        let bucket = self.wanted.bounds.partition_point(|bound| ns >= bound.saturating_mul(unit));
        let side = usize::from(write);
        let mut counted = self.counted();
        let Counted { areas, histograms, .. } = &mut *counted;
        for (number, sectors) in self.touched(at, len) {
            let area = &mut areas[number];
            area.round(now);
            area.in_flight[side] = area.in_flight[side].saturating_sub(1);
            area.done[side] += 1;
            area.sectors[side] += sectors;
            area.ns[side] = area.ns[side].saturating_add(ns);
            if let Some(count) = histograms.get_mut(number * (self.wanted.bounds.len() + 1) + bucket) {
                *count += 1;
            }
        }
    }

    fn unit(&self) -> u64 {
        if self.wanted.precise { 1 } else { MS }
    }

    /// A line of `@stats_list`.
    pub fn list(&self, text: &mut String) {
        let Wanted { start, len, step, precise, bounds, program, .. } = &self.wanted;
        let _ = write!(text, "{}: {start}+{len} {step} {program} {}", self.id, self.counted().aux);
        if *precise {
            text.push_str(" precise_timestamps");
        }
        for (n, bound) in bounds.iter().enumerate() {
            let _ = write!(text, "{}{bound}", if n == 0 { " histogram:" } else { "," });
        }
        text.push('\n');
    }

    /// Lines of `@stats_print`, and afterwards nothing counted but what is under way if `clear`.
    pub fn print(&self, lines: Range<usize>, clear: bool, now: u64, text: &mut String) {
        let mut counted = self.counted();
        let Counted { areas, histograms, .. } = &mut *counted;
        let buckets = if histograms.is_empty() { 0 } else { self.wanted.bounds.len() + 1 };
        for number in lines.start.min(areas.len())..lines.end.min(areas.len()) {
            let histogram = &mut histograms[number * buckets..(number + 1) * buckets];
            let area = &mut areas[number];
            area.round(now);
            self.print_area(number as u64, area, histogram, text);
            if clear {
                *area = Area { in_flight: area.in_flight, stamp: area.stamp, ..Area::default() };
                histogram.fill(0);
            }
        }
    }

    fn print_area(&self, number: u64, area: &Area, histogram: &[u64], text: &mut String) {
        let unit = self.unit();
        let begin = self.wanted.start + number * self.wanted.step;
        let len = self.wanted.step.min(self.wanted.start + self.wanted.len - begin);
        let _ = write!(text, "{begin}+{len}");
        for side in 0..2 {
            // Merges, of which there are none, come second.
            let _ = write!(text, " {} 0 {} {}", area.done[side], area.sectors[side], area.ns[side] / unit);
        }
        let in_flight = u64::from(area.in_flight[0]) + u64::from(area.in_flight[1]);
        let _ = write!(text, " {in_flight} {} {}", area.any_busy / unit, area.weighted / unit);
        let _ = write!(text, " {} {}", area.busy[0] / unit, area.busy[1] / unit);
        for (n, count) in histogram.iter().enumerate() {
            let _ = write!(text, "{}{count}", if n == 0 { ' ' } else { ':' });
        }
        text.push('\n');
    }

    /// As [`Region::print`] with `clear`, without the text.
    pub fn clear(&self, now: u64) {
        self.print(0..usize::MAX, true, now, &mut String::new());
    }
}
