//! Tables on the screen: columns that fit, cut text, styles with and without colour.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

/// A column of a table. The first of a table takes the width that the others leave, and is never left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub title: &'static str,
    pub width: u16,
    pub right: bool,
    /// Columns of the highest rank are left out first where there is no room.
    pub rank: u8,
}

pub(super) const fn left(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, right: false, rank }
}

pub(super) const fn right(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, right: true, rank }
}

/// A cell's text and whether it is to be marked as an error.
pub(super) type Cell = (String, bool);

pub(super) fn cell(text: impl Into<String>) -> Cell {
    (text.into(), false)
}

/// Styles, with colour or without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub colour: bool,
    /// The selection is shown by more than its mark.
    pub reverse: bool,
}

impl Theme {
    pub fn paint(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub fn title(self) -> Style {
        self.paint(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    pub fn heading() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn faint(self) -> Style {
        self.paint(Color::DarkGray)
    }

    pub fn error(self) -> Style {
        self.paint(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn selected(self) -> Style {
        if self.reverse { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() }
    }
}

/// Writes text at a place of `area`, cut at its edge and after `width` cells.
pub(super) fn put(buf: &mut Buffer, area: Rect, at: (u16, u16), width: u16, text: &str, style: Style) {
    let area = area.intersection(buf.area);
    if at.0 < area.width && at.1 < area.height {
        let width = width.min(area.width - at.0);
        buf.set_stringn(area.x + at.0, area.y + at.1, text, usize::from(width), style);
    }
}

/// Text in at most `width` cells, its end cut off visibly.
pub(super) fn cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if Span::raw(&kept).width() + 1 > width {
            kept.pop();
            break;
        }
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// Which columns are shown, where, and how wide.
fn fit(columns: &[Column], width: u16) -> Vec<(usize, u16, u16)> {
    let Some(first) = columns.first() else { return Vec::new() };
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    // A column and the space before it.
    let needs = |shown: &[usize]| shown.iter().map(|index| columns[*index].width + 1).sum::<u16>() - 1;
    while shown.len() > 1 && needs(&shown) > width {
        let last = shown.iter().enumerate().skip(1).max_by_key(|(_, index)| columns[**index].rank);
        let Some((position, _)) = last else { break };
        shown.remove(position);
    }
    let rest = width.saturating_sub(needs(&shown));
    let mut x = 0;
    let place = |index: usize| {
        let wide = if index == 0 { (first.width + rest).min(width) } else { columns[index].width };
        let placed = (index, x, wide);
        x += wide + 1;
        placed
    };
    shown.into_iter().map(place).collect()
}

/// Draws a heading and rows. `selected` is marked and gets the style of the selection.
pub(super) fn table(
    buf: &mut Buffer,
    area: Rect,
    theme: Theme,
    columns: &[Column],
    rows: impl Iterator<Item = Vec<Cell>>,
    selected: Option<usize>,
) {
    let places = fit(columns, area.width.saturating_sub(1));
    let aligned = |text: &str, index: usize, width: u16| {
        let text = cut(text, width);
        let blank = usize::from(width).saturating_sub(Span::raw(&text).width());
        let blank = " ".repeat(blank);
        if columns[index].right { blank + &text } else { text + &blank }
    };
    for (index, x, width) in &places {
        put(buf, area, (x + 1, 0), *width, &aligned(columns[*index].title, *index, *width), Theme::heading());
    }
    for (number, row) in (1..area.height).zip(rows) {
        let chosen = selected == Some(usize::from(number) - 1);
        let base = if chosen { theme.selected() } else { Style::new() };
        if chosen {
            put(buf, area, (0, number), area.width, &" ".repeat(usize::from(area.width)), base);
            put(buf, area, (0, number), 1, ">", base);
        }
        for (index, x, width) in &places {
            let Some((text, bad)) = row.get(*index) else { continue };
            let style = if *bad { base.patch(theme.error()) } else { base };
            put(buf, area, (x + 1, number), *width, &aligned(text, *index, *width), style);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_visibly() {
        for (text, width, shown) in
            [("disk", 4, "disk"), ("disks", 4, "dis…"), ("disk", 1, "…"), ("disk", 0, ""), ("漢字漢", 4, "漢…")]
        {
            assert_eq!(cut(text, width), shown);
        }
    }

    #[test]
    fn columns_of_the_highest_rank_go_first() {
        let columns = [left("a", 4, 0), right("b", 3, 1), right("c", 3, 3), right("d", 3, 2)];
        assert_eq!(fit(&columns, 20), [(0, 0, 8), (1, 9, 3), (2, 13, 3), (3, 17, 3)]);
        assert_eq!(fit(&columns, 15), [(0, 0, 7), (1, 8, 3), (3, 12, 3)]);
        assert_eq!(fit(&columns, 2), [(0, 0, 2)]);
        assert_eq!(fit(&[], 2), []);
    }
}
