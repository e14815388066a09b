//! The picture of a state.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Span;

use super::grid::{Cell, Column, Theme, cell, left, put, right, table};
use super::rates::{Flow, Rates};
use super::state::{State, View};
use super::{map, units};
use crate::check::count;

const DEVICES: [Column; 11] = [
    left("DEVICE", 9, 0),
    right("IOPS", 5, 1),
    right("rdMB/s", 6, 2),
    right("wrMB/s", 6, 3),
    right("DEPTH", 5, 5),
    right("ERRORS", 6, 4),
    right("p50", 6, 6),
    right("p99", 6, 7),
    right("BUSY", 4, 8),
    right("LOOK", 4, 9),
    right("SLEEP", 5, 10),
];
const COMPONENTS: [Column; 9] = [
    left("COMPONENT", 11, 0),
    left("ACCESS", 8, 8),
    right("IOPS", 5, 1),
    right("rdMB/s", 6, 2),
    right("wrMB/s", 6, 3),
    right("DEPTH", 5, 5),
    right("ERRORS", 6, 4),
    right("p50", 6, 6),
    right("p99", 6, 7),
];
const SEGMENTS: [Column; 6] = [
    left("SEGMENT", 24, 0),
    right("START", 10, 5),
    right("SECTORS", 10, 4),
    right("rdMB/s", 6, 1),
    right("wrMB/s", 6, 2),
    right("ERRORS", 6, 3),
];
/// Without this many lines for it a device's map is not drawn.
const LEAST_DETAIL: u16 = 1 + map::HEIGHT;
const KEYS: &str = " q quit   ↑↓ select   p pause   +/- interval   ? help";
const HELP: [&str; 18] = [
    "↑ ↓ k j    select a device; PgUp PgDn Home End too",
    "p, space   pause, go on",
    "+ -        longer, shorter interval",
    "q, Ctrl-C  quit; Ctrl-Z stop",
    "",
    "IOPS, MB/s (10^6 bytes), p50, p99: of the last interval.",
    "DEPTH: requests or operations under way when asked.",
    "ERRORS: since the device was made (components and segments:",
    "  since its table was resumed); ! means new ones.",
    "BUSY LOOK SLEEP: shares of the workers' time: doing requests,",
    "  looking for some in vain, asleep.",
    "",
    "Map: left to right as on the disk. ━ linear ≡ striped · zero",
    "  ╳ error ? other. A column in which there is any error target",
    "  shows that, another what most of it is.",
    "Heat: bytes a second of the segments that touch a column: ▁ less",
    "  than 128 KiB, ▂ up to 512 KiB, each step four times as much.",
    "Errors: ! in the last interval, · earlier.",
];

/// Draws `state` on `area`.
pub fn render(state: &State, area: Rect, buf: &mut Buffer) {
    let area = area.intersection(buf.area);
    let theme = Theme { colour: state.colour, reverse: !state.once };
    if area.is_empty() {
        return;
    }
    title(state, theme, area, buf);
    let footer = area.height > 3 && !state.once;
    let body = below(area, 1, area.height - 1 - u16::from(footer));
    if footer {
        foot(state, theme, below(area, area.height - 1, 1), buf);
    }
    if state.help {
        return help(theme, body, buf);
    }
    if state.devices.is_empty() {
        let text = match (&state.problem, state.answered) {
            (Some(_), _) => "",
            (None, false) => "asking for numbers",
            (None, true) => "no devices",
        };
        return put(buf, body, (1, 1), body.width, text, theme.faint());
    }
    let rows = device_rows(state.devices.len(), body.height);
    devices(state, theme, below(body, 0, 1 + rows), buf);
    let rest = below(body, 1 + rows, body.height.saturating_sub(1 + rows));
    if rest.height >= LEAST_DETAIL {
        detail(state, theme, rest, buf);
    }
}

/// Components and segments that a picture has that is as high as it needs to be.
const MOST_LISTED: usize = 16;

/// Lines that a state needs.
pub(super) fn height(state: &State) -> u16 {
    let detail = state.detail.as_ref().map_or(0, |view| {
        let lists = view.now.components.len().clamp(1, MOST_LISTED) + view.now.segments.len().clamp(1, MOST_LISTED) + 2;
        usize::from(LEAST_DETAIL) + lists
    });
    // A share of the lines that is enough for all devices.
    u16::try_from((3 + detail + state.devices.len()).max(4 * state.devices.len() + 8)).unwrap_or(u16::MAX)
}

/// Lines `from` and following of `area`.
fn below(area: Rect, from: u16, lines: u16) -> Rect {
    let from = from.min(area.height);
    Rect { y: area.y + from, height: lines.min(area.height - from), ..area }
}

/// Lines for devices: a third, if others than they need the rest.
fn device_rows(devices: usize, height: u16) -> u16 {
    let all = u16::try_from(devices).unwrap_or(u16::MAX);
    let most = height.saturating_sub(1);
    match most < LEAST_DETAIL + 2 {
        true => all.min(most),
        false => all.min((height / 3).max(2)).min(most - LEAST_DETAIL),
    }
}

fn title(state: &State, theme: Theme, area: Rect, buf: &mut Buffer) {
    put(buf, area, (0, 0), area.width, " vhost-user-dm top", theme.title());
    let devices = count(state.devices.len(), "device");
    let every = state.interval.as_secs_f64();
    let text = format!("{devices}, every {every} s, {}", units::clean(&state.socket));
    put(buf, area, (20, 0), area.width, &text, theme.faint());
}

fn foot(state: &State, theme: Theme, area: Rect, buf: &mut Buffer) {
    match &state.problem {
        Some(problem) => {
            put(buf, area, (1, 0), area.width, &format!("trying again: {}", units::clean(problem)), theme.error())
        }
        None if state.paused => put(buf, area, (1, 0), area.width, "paused   p go on   q quit", theme.title()),
        None if !state.missing.is_empty() => {
            let text = format!("no such device: {}", units::clean(&state.missing.join(" ")));
            put(buf, area, (1, 0), area.width, &text, theme.error());
        }
        None => put(buf, area, (0, 0), area.width, KEYS, theme.faint()),
    }
}

fn help(theme: Theme, area: Rect, buf: &mut Buffer) {
    for (y, line) in (0..area.height).zip(HELP) {
        put(buf, area, (2, y), area.width, line, if y < 4 { theme.title() } else { Style::new() });
    }
}

/// Errors, marked if some of them are new.
fn errors(ever: u64, new: u64) -> Cell {
    let mark = if new > 0 { "!" } else { "" };
    (format!("{}{mark}", units::short(ever as f64)), new > 0)
}

/// A number of an interval, or that there is none.
fn of(rates: Option<&Rates>, text: impl FnOnce(&Rates) -> String) -> Cell {
    cell(rates.map_or_else(|| "-".into(), text))
}

/// IOPS, MB/s read and written; p50 and p99.
fn flow(rates: Option<&Rates>, flow: Option<&Flow>) -> ([Cell; 3], [Cell; 2]) {
    let number =
        |text: fn(&Rates, &Flow) -> String| cell(rates.zip(flow).map_or_else(|| "-".into(), |(r, f)| text(r, f)));
    let quantile = |quantile: f64| {
        cell(flow.and_then(|flow| flow.spread.quantile(quantile)).map_or_else(|| "-".into(), units::time))
    };
    let rates = [
        number(|rates, flow| units::short(rates.per_second(flow.ops))),
        number(|rates, flow| units::megabytes(rates.bytes_per_second(flow.read))),
        number(|rates, flow| units::megabytes(rates.bytes_per_second(flow.written))),
    ];
    (rates, [quantile(0.5), quantile(0.99)])
}

fn devices(state: &State, theme: Theme, area: Rect, buf: &mut Buffer) {
    let shown = usize::from(area.height.saturating_sub(1));
    let first = (state.selected + 1).saturating_sub(shown);
    let row = |view: &View| {
        let rates = view.rates.as_ref();
        let ([iops, read, written], [p50, p99]) = flow(rates, rates.map(|rates| &rates.flow));
        let share = |share: fn(&super::rates::Shares) -> f64| {
            let shares = rates.and_then(|rates| rates.shares.as_ref());
            cell(shares.map_or_else(|| "-".into(), |shares| units::percent(share(shares))))
        };
        vec![
            cell(units::clean(&view.now.name)),
            iops,
            read,
            written,
            cell(units::short(f64::from(view.now.device.in_flight))),
            errors(view.errors(), rates.map_or(0, |rates| rates.errors)),
            p50,
            p99,
            share(|shares| shares.busy),
            share(|shares| shares.looking),
            share(|shares| shares.asleep),
        ]
    };
    let rows = state.devices.iter().skip(first).take(shown).map(row);
    table(buf, area, theme, &DEVICES, rows, state.selected.checked_sub(first));
}

fn detail(state: &State, theme: Theme, area: Rect, buf: &mut Buffer) {
    let Some(view) = &state.detail else {
        return put(buf, area, (1, 1), area.width, "asking for segments", theme.faint());
    };
    rule(theme, view, area, buf);
    map::draw(buf, below(area, 1, map::HEIGHT), theme, view);
    let lists = below(area, LEAST_DETAIL, area.height);
    // Both with their heading; the components get at most half if there are more segments than fit.
    let needs = |n: usize| u16::try_from(n.max(1) + 1).unwrap_or(u16::MAX);
    let (components_need, segments_need) = (needs(view.now.components.len()), needs(view.now.segments.len()));
    let most = (lists.height / 2).max(lists.height.saturating_sub(segments_need));
    let lines = components_need.min(most);
    if lines >= 2 {
        components(theme, view, below(lists, 0, lines), buf);
        segments(theme, view, below(lists, lines, lists.height), buf);
    } else {
        segments(theme, view, lists, buf);
    }
}

fn rule(theme: Theme, view: &View, area: Rect, buf: &mut Buffer) {
    let device = &view.now.device;
    let text = format!(
        "── {}: {}, {}, {} ",
        units::clean(&view.now.name),
        units::size(device.sectors),
        count(view.now.segments.len(), "segment"),
        count(usize::try_from(device.queues).unwrap_or(usize::MAX), "queue")
    );
    put(buf, area, (0, 0), area.width, &"─".repeat(usize::from(area.width)), theme.faint());
    put(buf, area, (0, 0), area.width, &text, Theme::heading());
}

fn components(theme: Theme, view: &View, area: Rect, buf: &mut Buffer) {
    let rates = view.rates.as_ref();
    let rows = view.now.components.iter().enumerate().map(|(index, component)| {
        let of = rates.and_then(|rates| rates.components.get(index));
        let ([iops, read, written], [p50, p99]) = flow(rates, of.map(|of| &of.flow));
        let ever = component.kinds.values().fold(0u64, |sum, counters| sum.saturating_add(counters.errors));
        vec![
            cell(units::clean(&component.name)),
            cell(units::clean(&component.access)),
            iops,
            read,
            written,
            cell(units::short(f64::from(component.in_flight))),
            errors(ever, of.map_or(0, |of| of.flow.errors)),
            p50,
            p99,
        ]
    });
    let left_out = view.now.components.len().saturating_sub(usize::from(area.height.saturating_sub(1)));
    table(buf, area, theme, &COMPONENTS, rows, None);
    more(theme, left_out, area, buf);
}

/// Segments in their order, or those where most happens if not all fit.
fn segments(theme: Theme, view: &View, area: Rect, buf: &mut Buffer) {
    let rates = view.rates.as_ref();
    let fit = usize::from(area.height.saturating_sub(1));
    if fit == 0 {
        return;
    }
    let all = &view.now.segments;
    let of_segment = |index: usize| rates.and_then(|rates| rates.segments.get(index)).copied().unwrap_or_default();
    let mut order: Vec<usize> = (0..all.len()).collect();
    if all.len() > fit {
        order.sort_by_cached_key(|index| {
            let rates = of_segment(*index);
            std::cmp::Reverse((rates.errors, rates.read.saturating_add(rates.written), all[*index].errors))
        });
        order.truncate(fit);
        order.sort_unstable();
    }
    let rows = order.iter().map(|index| {
        let (segment, mine) = (&all[*index], of_segment(*index));
        let megabytes = |sectors: u64| of(rates, |rates| units::megabytes(rates.bytes_per_second(sectors)));
        vec![
            cell(units::clean(&format!("{} {}", segment.target, segment.to))),
            cell(segment.start.to_string()),
            cell(segment.len.to_string()),
            megabytes(mine.read),
            megabytes(mine.written),
            errors(segment.errors, mine.errors),
        ]
    });
    table(buf, area, theme, &SEGMENTS, rows, None);
    more(theme, all.len().saturating_sub(fit), area, buf);
}

/// Says in the heading how many a list has not room for.
fn more(theme: Theme, left_out: usize, area: Rect, buf: &mut Buffer) {
    // Where the first column is as wide as this needs.
    if left_out > 0 && area.width >= 72 {
        let text = format!(" ({left_out} more)");
        put(buf, area, (10, 0), area.width.min(Span::raw(&text).width() as u16), &text, theme.faint());
    }
}
