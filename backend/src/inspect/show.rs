//! `vhost-user-dm show`: a picture of a disk for a terminal.

use console::{Color, Style, measure_text_width, pad_str};

use super::{Kind, Layout, Part};
use crate::check::{count, human};

/// Narrowest and widest picture, in columns.
const WIDTHS: std::ops::RangeInclusive<usize> = 40..=160;
/// Segments that have a line of their own.
const MOST_LINES: usize = 200;
/// Columns of a segment in the bar: a border and a letter.
const LEAST: usize = 2;

/// Columns in which a part of a name is worth something.
const LEAST_NAME: usize = 4;

/// The picture: a bar in which each segment has its share, and a legend below. In `width` columns, with colours or without.
pub(super) fn picture(title: &str, layout: &Layout, width: usize, colours: bool) -> String {
    let width = width.clamp(*WIDTHS.start(), *WIDTHS.end());
    let mut text = format!("{title}\n");
    let cells = shares(&layout.parts, layout.sectors, width - 1);
    if let Some(cells) = &cells {
        text.push_str(&bar(&layout.parts, cells, colours));
    }
    text.push_str(&legend(layout, colours));
    if cells.is_none() {
        let parts = count(layout.parts.len(), "segment");
        text.push_str(&format!("  (no bar: {parts} are more than {width} columns can show)\n"));
    }
    text
}

/// Columns of each segment: its share, but two at least. None where there are too many.
fn shares(parts: &[Part], sectors: u64, width: usize) -> Option<Vec<usize>> {
    if parts.is_empty() || parts.len() * LEAST > width {
        return None;
    }
    let share = |part: &Part| {
        let exact = u128::from(part.len) * width as u128 / u128::from(sectors.max(1));
        usize::try_from(exact).unwrap_or(width).max(LEAST)
    };
    let mut cells: Vec<usize> = parts.iter().map(share).collect();
    loop {
        let sum: usize = cells.iter().sum();
        // The widest gives or takes, where it is seen least.
        let widest = cells.iter_mut().rev().max_by_key(|cell| **cell)?;
        match sum.cmp(&width) {
            std::cmp::Ordering::Equal => return Some(cells),
            std::cmp::Ordering::Less => *widest += width - sum,
            std::cmp::Ordering::Greater => *widest -= (sum - width).min(*widest - LEAST).max(1),
        }
    }
}

fn bar(parts: &[Part], cells: &[usize], colours: bool) -> String {
    let border: String = cells.iter().map(|cell| format!("+{}", "-".repeat(cell - 1))).collect();
    let row = |text: &dyn Fn(usize, &Part) -> String| {
        let cell = |(index, (part, cell)): (usize, (&Part, &usize))| {
            // A letter or two of a name say nothing.
            let text =
                Some(text(index, part)).filter(|text| cell > &LEAST_NAME || text.len() < *cell).unwrap_or_default();
            let text = pad_str(&text, cell - 1, console::Alignment::Center, Some("")).into_owned();
            format!("|{}", style(part, colours).apply_to(text))
        };
        let row: String = parts.iter().zip(cells).enumerate().map(cell).collect();
        format!("{row}|\n")
    };
    let letters = row(&|index, _| letter(index));
    let names = row(&|_, part| short(part));
    format!("{border}+\n{letters}{names}{border}+\n")
}

fn legend(layout: &Layout, colours: bool) -> String {
    let parts = layout.parts.iter().take(MOST_LINES).enumerate();
    let rows: Vec<[String; 6]> = parts
        .map(|(index, part)| {
            [
                letter(index),
                part.start.to_string(),
                part.len.to_string(),
                human(part.len.saturating_mul(512)),
                format!("{} {}{}", part.target, part.to, access(part)).trim_end().to_owned(),
                holds(part),
            ]
        })
        .collect();
    let heads = ["", "start", "length", "", "segment", "contains"].map(str::to_owned);
    let wide = |column: usize| {
        let cells = rows.iter().map(|row| &row[column]).chain([&heads[column]]);
        cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(wide);
    let mut text = String::new();
    for (index, row) in [&heads].into_iter().chain(&rows).enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let side = if matches!(column, 1..=3) { console::Alignment::Right } else { console::Alignment::Left };
            let padded = pad_str(cell, widths[column], side, None).into_owned();
            let part = index.checked_sub(1).and_then(|index| layout.parts.get(index)).filter(|_| column == 0);
            line.push_str("  ");
            match part {
                Some(part) => line.push_str(&style(part, colours).apply_to(padded).to_string()),
                None => line.push_str(&padded),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if layout.parts.len() > MOST_LINES {
        text.push_str(&format!("  and {} more\n", layout.parts.len() - MOST_LINES));
    }
    text
}

/// A, B, ... Z, AA, AB, ...
pub(super) fn letter(index: usize) -> String {
    let last = char::from(b'A' + (index % 26) as u8);
    if index < 26 { last.to_string() } else { format!("{}{last}", letter(index / 26 - 1)) }
}

/// What a segment contains, and which partition it is.
pub(super) fn holds(part: &Part) -> String {
    let contents = match (&part.contents, part.continues) {
        (Some(contents), _) => contents.describe(),
        (None, true) => "goes on".to_owned(),
        (None, false) => String::new(),
    };
    let partition = part.partition.as_ref().map(|partition| format!("partition {partition}"));
    [partition, Some(contents).filter(|text| !text.is_empty())].into_iter().flatten().collect::<Vec<_>>().join(": ")
}

/// What of it is not as for the rest of the disk.
pub(super) fn access(part: &Part) -> &'static str {
    if part.read_only { ", read-only" } else { "" }
}

/// The few words that a narrow place has room for.
pub(super) fn short(part: &Part) -> String {
    match &part.contents {
        Some(contents) if !matches!(contents.kind, Kind::Unknown | Kind::Blank) => {
            contents.label.clone().unwrap_or_else(|| contents.kind.name().to_owned())
        }
        _ => part.target.clone(),
    }
}

/// A colour for what a segment is.
pub(super) fn colour(part: &Part) -> Color {
    match (part.target.as_str(), part.contents.as_ref().map(|contents| contents.kind)) {
        ("zero", _) => Color::White,
        ("error", _) => Color::Red,
        (_, Some(kind)) if kind.is_partition_table() => Color::Yellow,
        (_, Some(Kind::Fat | Kind::Exfat | Kind::Iso9660)) => Color::Cyan,
        (_, Some(Kind::Ntfs)) => Color::Blue,
        (_, Some(Kind::Swap | Kind::Lvm | Kind::Luks | Kind::Md)) => Color::Magenta,
        (_, Some(Kind::Unknown | Kind::Blank) | None) => Color::Yellow,
        _ => Color::Green,
    }
}

fn style(part: &Part, colours: bool) -> Style {
    Style::new().fg(Color::Black).bg(colour(part)).force_styling(colours)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::inspect::Contents;

    fn part(start: u64, len: u64, target: &str, to: &str, contents: Option<Contents>) -> Part {
        let (target, to) = (target.to_owned(), to.to_owned());
        Part { start, len, target, to, contents, partition: None, continues: false, read_only: false }
    }

    fn layout() -> Layout {
        let fat = Contents { label: Some("ESP".into()), size: Some(32 << 20), ..Contents::of(Kind::Fat) };
        let mut esp = part(2048, 65536, "linear", "sda1 0", Some(fat));
        esp.partition = Some("1 \"EFI\"".into());
        let mut more = part(4_261_888, 2048, "linear", "sdb1 4194304", None);
        more.continues = true;
        let parts = vec![
            part(0, 2048, "linear", "disk.head 0", Some(Contents::of(Kind::Gpt))),
            esp,
            part(67584, 4_194_304, "linear", "sdb1 0", Some(Contents { dirty: true, ..Contents::of(Kind::Ext4) })),
            more,
            part(4_263_936, 100, "zero", "", None),
            part(4_264_036, 8, "error", "", None),
        ];
        Layout { sectors: 4_264_044, disk: None, parts }
    }

    #[test]
    fn the_picture_is_this() {
        expect![[r#"
            disk: 2.0 GiB
            +-+-+------------------------------------------------------------+-+-+-+
            |A|B|                             C                              |D|E|F|
            | | |                            ext4                            | | | |
            +-+-+------------------------------------------------------------+-+-+-+
                   start   length            segment              contains
              A        0     2048   1.0 MiB  linear disk.head 0   GPT of 0 partitions
              B     2048    65536  32.0 MiB  linear sda1 0        partition 1 "EFI": FAT "ESP", 32.0 MiB
              C    67584  4194304   2.0 GiB  linear sdb1 0        ext4, not cleanly unmounted
              D  4261888     2048   1.0 MiB  linear sdb1 4194304  goes on
              E  4263936      100  50.0 KiB  zero
              F  4264036        8   4.0 KiB  error
        "#]]
        .assert_eq(&picture("disk: 2.0 GiB", &layout(), 72, false));
    }

    #[test]
    fn every_width_is_kept() {
        for width in 0..200 {
            let text = picture("x", &layout(), width, false);
            let bar: Vec<&str> = text.lines().skip(1).take(4).collect();
            let asked = width.clamp(*WIDTHS.start(), *WIDTHS.end());
            assert!(bar.iter().all(|line| line.chars().count() == asked), "{width}\n{text}");
        }
        let narrow = Layout { parts: vec![part(0, 1, "zero", "", None); 100], sectors: 100, disk: None };
        assert!(picture("x", &narrow, 80, false).contains("no bar: 100 segments"));
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        assert!(!picture("x", &layout(), 80, false).contains('\x1b'));
        assert!(picture("x", &layout(), 80, true).contains("\x1b[41m"), "an error segment is red");
        let plain = console::strip_ansi_codes(&picture("x", &layout(), 80, true)).into_owned();
        assert_eq!(plain.lines().count(), picture("x", &layout(), 80, false).lines().count());
    }

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!([0, 25, 26, 51, 52, 701, 702].map(letter), ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]);
    }
}
