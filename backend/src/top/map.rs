//! The map of a device, drawn in proportion, with its heat.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};

use super::grid::{Theme, put};
use super::state::View;
use super::units;
use crate::stats::Segment;

/// Lines that [`draw`] fills.
pub(super) const HEIGHT: u16 = 5;
/// Cells of what stands before each line.
const LABEL: u16 = 7;
/// Targets: name, what fills their columns, colour. The last is for all others.
const TARGETS: [(&str, &str, Color); 5] = [
    ("linear", "━", Color::Green),
    ("striped", "≡", Color::Cyan),
    ("zero", "·", Color::DarkGray),
    ("error", "╳", Color::Red),
    ("", "?", Color::Magenta),
];
const ERROR: usize = 3;
/// Heat, by [`level`].
const BLOCKS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
const HEAT: [Color; 9] = [
    Color::DarkGray,
    Color::Blue,
    Color::Blue,
    Color::Cyan,
    Color::Green,
    Color::Green,
    Color::Yellow,
    Color::LightRed,
    Color::Red,
];

/// A column of the picture: what all segments that touch it have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Column {
    /// Sectors of each of [`TARGETS`].
    sectors: [u64; TARGETS.len()],
    /// A segment to such a target begins here; the last one that does.
    begins: Option<usize>,
    /// Sectors read in the interval.
    pub read: u64,
    /// Sectors written.
    pub written: u64,
    /// Pieces that failed in the interval.
    pub errors: u64,
    /// And since the table was resumed.
    pub errors_ever: u64,
}

impl Column {
    /// Index in [`TARGETS`] of what most of it is; of `error` if any of it is that.
    fn target(&self) -> Option<usize> {
        if self.sectors[ERROR] > 0 {
            return Some(ERROR);
        }
        let most = self.sectors.iter().enumerate().rev().max_by_key(|(_, sectors)| **sectors);
        most.filter(|(_, sectors)| **sectors > 0).map(|(index, _)| index)
    }
}

fn target(segment: &Segment) -> usize {
    TARGETS.iter().position(|(name, ..)| *name == segment.target).unwrap_or(TARGETS.len() - 1)
}

/// Sums segments up to columns: a segment counts in each that it touches. One look at each segment, however many there are.
pub(super) fn columns(view: &View, width: u16) -> Vec<Column> {
    let mut columns = vec![Column::default(); usize::from(width)];
    let total = u128::from(view.now.device.sectors);
    if total == 0 || columns.is_empty() {
        return columns;
    }
    let wide = u128::from(width);
    let last = columns.len() - 1;
    for (index, segment) in view.now.segments.iter().enumerate().filter(|(_, segment)| segment.len > 0) {
        let (start, len) = (u128::from(segment.start), u128::from(segment.len));
        let end = (start + len).min(total);
        if start >= end {
            continue;
        }
        let of = |sector: u128| usize::try_from(sector * wide / total).unwrap_or(last).min(last);
        let (from, to) = (of(start), of(end - 1));
        let rates = view.rates.as_ref().and_then(|rates| rates.segments.get(index)).copied().unwrap_or_default();
        let kind = target(segment);
        columns[from].begins = Some(kind);
        for (number, column) in columns.iter_mut().enumerate().take(to + 1).skip(from) {
            let first = start.max((number as u128 * total).div_ceil(wide));
            let behind = end.min(((number as u128 + 1) * total).div_ceil(wide));
            let part = u64::try_from(behind.saturating_sub(first)).unwrap_or(u64::MAX).max(1);
            column.sectors[kind] = column.sectors[kind].saturating_add(part);
            column.read = column.read.saturating_add(rates.read);
            column.written = column.written.saturating_add(rates.written);
            column.errors = column.errors.saturating_add(rates.errors);
            column.errors_ever = column.errors_ever.saturating_add(segment.errors);
        }
    }
    columns
}

/// Heat of so many bytes a second: 0 is none, 1 less than 128 KiB, and each step stands for four times as much, up to 8 from
/// 512 MiB. The same at all times, so that pictures can be compared.
fn level(bytes_per_second: f64) -> usize {
    match bytes_per_second / f64::from(1 << 17) {
        r if r.is_nan() || r <= 0.0 => 0,
        r if r < 1.0 => 1,
        r => 2 + (r.log2() / 2.0).floor().clamp(0.0, 6.0) as usize,
    }
}

/// What one column of the first line shows.
fn band(columns: &[Column]) -> Vec<(String, Option<usize>)> {
    let mut cells: Vec<(String, Option<usize>)> = columns
        .iter()
        .map(|column| {
            let target = column.target();
            (target.map_or(" ", |target| TARGETS[target].1).to_owned(), target)
        })
        .collect();
    // Each segment that is wide enough begins with its target's name, and one that is not with its letter.
    let begins: Vec<(usize, usize)> =
        columns.iter().enumerate().filter_map(|(index, column)| Some((index, column.begins?))).collect();
    for (position, (from, kind)) in begins.iter().enumerate() {
        let to = begins.get(position + 1).map_or(columns.len(), |(index, _)| *index);
        let is_its = |index: &usize| cells[*index].1 == Some(*kind);
        // The column in which it begins may be mostly its predecessor's.
        let from = if is_its(from) { *from } else { from + 1 };
        let name = TARGETS[*kind].0;
        let shown = match (from..to).take_while(is_its).count() {
            n if n > name.len() => name,
            n if n > 1 => name.get(..1).unwrap_or(""),
            _ => "",
        };
        for (letter, index) in shown.chars().zip(from..) {
            cells[index].0 = letter.into();
        }
    }
    cells
}

/// Draws the map of a device over the width of `area`.
pub(super) fn draw(buf: &mut Buffer, area: Rect, theme: Theme, view: &View) {
    let label = if area.width > 3 * LABEL { LABEL } else { 0 };
    let width = area.width.saturating_sub(label);
    let columns = columns(view, width);
    let labels = ["", "read", "write", "errors", ""];
    for (y, text) in (0..HEIGHT).zip(labels) {
        put(buf, area, (0, y), label.saturating_sub(1), text, theme.faint());
    }
    for (x, (symbol, target)) in (label..).zip(band(&columns)) {
        put(buf, area, (x, 0), 1, &symbol, target.map_or(Style::new(), |target| theme.paint(TARGETS[target].2)));
    }
    for (x, column) in (label..).zip(&columns) {
        if let Some(rates) = &view.rates {
            for (y, sectors) in [(1, column.read), (2, column.written)] {
                let level = level(rates.bytes_per_second(sectors));
                put(buf, area, (x, y), 1, BLOCKS[level], theme.paint(HEAT[level]));
            }
        }
        match (column.errors, column.errors_ever) {
            (0, 0) => {}
            (0, _) => put(buf, area, (x, 3), 1, "·", theme.faint()),
            _ => put(buf, area, (x, 3), 1, "!", theme.error()),
        }
    }
    scale(buf, area, theme, (label, width), view.now.device.sectors);
}

/// Where on the device a column is.
fn scale(buf: &mut Buffer, area: Rect, theme: Theme, (label, width): (u16, u16), sectors: u64) {
    let marks = (width / 16).clamp(1, 4);
    for mark in 0..=marks {
        let x = u32::from(width) * u32::from(mark) / u32::from(marks);
        let at = u128::from(sectors) * u128::from(mark) / u128::from(marks);
        let text = if mark == 0 { "0".into() } else { units::size(u64::try_from(at).unwrap_or(u64::MAX)) };
        // The last one ends where the map does.
        let x = u16::try_from(x).unwrap_or(width);
        let x = if mark == marks { width.saturating_sub(text.len() as u16) } else { x };
        put(buf, area, (label + x, 4), width, &text, theme.faint());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Snapshot;
    use crate::top::rates::{Rates, SegmentRates};

    fn view(total: u64, segments: &[(u64, u64, &str)]) -> View {
        let segment = |(start, len, target): &(u64, u64, &str)| Segment {
            start: *start,
            len: *len,
            target: (*target).into(),
            ..Segment::default()
        };
        let mut now = Snapshot { segments: segments.iter().map(segment).collect(), ..Snapshot::default() };
        now.device.sectors = total;
        View { now, rates: None }
    }

    fn text(view: &View, width: u16) -> String {
        band(&columns(view, width)).into_iter().map(|(symbol, _)| symbol).collect()
    }

    #[test]
    fn segments_have_their_share_of_the_width() {
        let view = view(100, &[(0, 50, "linear"), (50, 25, "zero"), (75, 25, "linear")]);
        assert_eq!(text(&view, 40), "linear━━━━━━━━━━━━━━zero······linear━━━━");
        assert_eq!(text(&view, 8), "l━━━z·l━");
        assert_eq!(text(&view, 4), "l━·━");
        assert_eq!(text(&view, 1), "━");
        assert_eq!(text(&view, 0), "");
        let uneven = self::view(1000, &[(0, 535, "linear"), (535, 465, "zero")]);
        assert_eq!(text(&uneven, 20), "linear━━━━━zero·····");
    }

    #[test]
    fn the_smallest_error_segment_is_seen() {
        let view =
            view(1 << 40, &[(0, 1 << 39, "linear"), (1 << 39, 1, "error"), ((1 << 39) + 1, (1 << 39) - 1, "striped")]);
        assert_eq!(text(&view, 20), "linear━━━━╳striped≡≡");
    }

    #[test]
    fn a_column_has_the_sum_of_its_segments() {
        let segments: Vec<_> = (0..10_000).map(|n| (n * 8, 8, "linear")).collect();
        let mut view = view(80_000, &segments);
        let each = SegmentRates { read: 2, written: 1, errors: 0 };
        view.rates = Some(Rates { seconds: 1.0, segments: vec![each; 10_000], ..Rates::default() });
        let columns = columns(&view, 100);
        assert!(columns.iter().all(|column| column.read == 200 && column.written == 100), "{columns:?}");
    }

    #[test]
    fn heat_has_nine_levels() {
        let levels = [0.0, 1.0, 131_071.0, 131_072.0, 524_287.0, 524_288.0, 1e9, 1e12, f64::NAN, f64::INFINITY];
        assert_eq!(levels.map(level), [0, 1, 1, 2, 2, 3, 8, 8, 0, 8]);
    }
}
