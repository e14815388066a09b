//! The picture of a disk as an SVG file.

use std::fmt::Write as _;

use console::Color;

use super::show::{colour, holds, letter, short};
use super::{Layout, Part};
use crate::check::human;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 16.0;
const BAR: f64 = 64.0;
const LINE: f64 = 20.0;
/// Width of a character of the text, near enough to know whether it has room.
const CHARACTER: f64 = 8.0;
/// Narrowest segment.
const LEAST: f64 = 3.0;
/// Segments that are drawn and told of.
const MOST_PARTS: usize = 200;

/// The whole file.
pub(super) fn svg(title: &str, layout: &Layout) -> String {
    let parts: Vec<&Part> = layout.parts.iter().take(MOST_PARTS).collect();
    let top = MARGIN + LINE + 8.0;
    let height = top + BAR + LINE * (parts.len() as f64 + 1.0) + MARGIN;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{}</text>",
        MARGIN + 12.0,
        escaped(title),
    );
    let mut x = MARGIN;
    for ((index, part), width) in parts.iter().enumerate().zip(widths(&parts, layout.sectors)) {
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\" stroke=\"black\">\
             <title>{}</title></rect>",
            fill(part),
            escaped(&line(part)),
        );
        for (row, label) in [letter(index), short(part)].into_iter().enumerate() {
            if label.chars().count() as f64 * CHARACTER < width {
                let (middle, y) = (x + width / 2.0, top + BAR / 2.0 - 4.0 + row as f64 * LINE);
                let label = escaped(&label);
                let _ = writeln!(text, "<text x=\"{middle:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{label}</text>");
            }
        }
        let y = top + BAR + LINE * (index as f64 + 1.5);
        let _ = writeln!(
            text,
            "<rect x=\"{MARGIN}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\" stroke=\"black\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{} {}</text>",
            y - 11.0,
            fill(part),
            MARGIN + 20.0,
            letter(index),
            escaped(&line(part)),
        );
        x += width;
    }
    text.push_str("</svg>\n");
    text
}

fn line(part: &Part) -> String {
    let size = human(part.len.saturating_mul(512));
    let (target, to, access) = (&part.target, &part.to, super::show::access(part));
    let text = format!("{}+{} ({size}) {target} {to}{access}  {}", part.start, part.len, holds(part));
    text.trim_end().to_owned()
}

/// Widths in proportion, none too small to be seen, together as wide as there is room.
fn widths(parts: &[&Part], sectors: u64) -> Vec<f64> {
    let room = WIDTH - 2.0 * MARGIN;
    let least = LEAST.min(room / parts.len().max(1) as f64);
    let rest = room - least * parts.len() as f64;
    parts.iter().map(|part| least + rest * (part.len as f64 / sectors.max(1) as f64)).collect()
}

fn fill(part: &Part) -> &'static str {
    match colour(part) {
        Color::White => "#eeeeee",
        Color::Red => "#f4a0a0",
        Color::Yellow => "#f6e3a1",
        Color::Cyan => "#a8e0e6",
        Color::Blue => "#a9c4f5",
        Color::Magenta => "#dcb6ee",
        _ => "#b5e2b0",
    }
}

/// Text of XML. What XML has no character for, a name on a disk may still have.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
