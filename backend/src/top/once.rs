//! One frame as text.

use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use ratatui::buffer::{Buffer, Cell};
use ratatui::crossterm::style::{Attribute, Color as Shown, SetAttribute, SetForegroundColor, force_color_output};
use ratatui::crossterm::{Command, terminal};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use ratatui::text::Span;

use super::source::Source;
use super::state::State;
use super::view;

/// Columns where neither the terminal nor `$COLUMNS` says another number.
const WIDTH: u16 = 80;

/// Whether escape sequences may be written, and colours: see <https://no-color.org> and <https://bixense.com/clicolors>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Means {
    pub escapes: bool,
    pub colour: bool,
}

impl Means {
    pub fn of_output() -> Means {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let forced = is_set("CLICOLOR_FORCE");
        let escapes = forced || io::stdout().is_terminal();
        Means { escapes, colour: escapes && (forced || !is_set("NO_COLOR")) }
    }
}

/// Prints what happens within the state's interval.
pub(super) fn print(mut source: Source, names: &[String], mut state: State) -> Result<(), String> {
    let mut ask = |selected| source.answer(names, selected).map_err(|error| error.to_string());
    state.take(ask(None)?);
    std::thread::sleep(state.interval.max(Duration::from_millis(1)));
    state.take(ask(state.selected_minor())?);
    if let Some(missing) = state.missing.first() {
        return Err(format!("no such device: {missing}"));
    }
    let means = Means::of_output();
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let size = terminal::size().ok().filter(|_| io::stdout().is_terminal());
    let width = columns.or(size.map(|(width, _)| width)).unwrap_or(WIDTH).clamp(1, 1000);
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, view::height(&state)));
    view::render(&state, buffer.area, &mut buffer);
    write(&text(&buffer, means))
}

/// Writes to standard output. A reader that has seen enough is no failure.
pub(super) fn write(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// The lines of a buffer, without blanks at their ends and without empty ones at the end.
pub(super) fn text(buffer: &Buffer, means: Means) -> String {
    force_color_output(true);
    let width = usize::from(buffer.area.width).max(1);
    let mut text = String::new();
    for row in buffer.content().chunks(width) {
        line(row, means, &mut text);
        text.push('\n');
    }
    let end = text.trim_end_matches('\n').len();
    text.truncate(end);
    text.push('\n');
    text
}

fn line(row: &[Cell], means: Means, text: &mut String) {
    let shows = |cell: &Cell| cell.symbol() != " " || (means.escapes && cell.modifier.contains(Modifier::REVERSED));
    let end = row.iter().rposition(shows).map_or(0, |last| last + 1);
    let mut style = (Color::Reset, Modifier::empty());
    let mut index = 0;
    while index < end {
        let cell = &row[index];
        let wanted = (if means.colour { cell.fg } else { Color::Reset }, cell.modifier);
        if means.escapes && wanted != style {
            escape(wanted, text);
            style = wanted;
        }
        text.push_str(cell.symbol());
        // What a wide character covers is no cell of its own.
        index += Span::raw(cell.symbol()).width().max(1);
    }
    if style != (Color::Reset, Modifier::empty()) {
        escape((Color::Reset, Modifier::empty()), text);
    }
}

fn escape((colour, modifier): (Color, Modifier), text: &mut String) {
    ansi(SetAttribute(Attribute::Reset), text);
    for (flag, attribute) in [(Modifier::BOLD, Attribute::Bold), (Modifier::REVERSED, Attribute::Reverse)] {
        if modifier.contains(flag) {
            ansi(SetAttribute(attribute), text);
        }
    }
    if colour != Color::Reset {
        ansi(SetForegroundColor(shown(colour)), text);
    }
}

/// The colours that [`super::grid::Theme`] and [`super::map`] use.
fn shown(colour: Color) -> Shown {
    use ratatui::backend::IntoCrossterm as _;
    colour.into_crossterm()
}

fn ansi(command: impl Command, text: &mut String) {
    // Writing to a String cannot fail.
    let _ = command.write_ansi(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::style::Style;

    #[test]
    fn a_buffer_is_text() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 8, 4));
        buffer.set_string(0, 0, "漢字 a", Style::new());
        buffer.set_string(2, 1, "red", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD));
        let plain = Means { escapes: false, colour: false };
        assert_eq!(text(&buffer, plain), "漢字 a\n  red\n");
        let colour = Means { escapes: true, colour: true };
        assert_eq!(text(&buffer, colour), "漢字 a\n  \x1b[0m\x1b[1m\x1b[38;5;1mred\x1b[0m\n");
        let none = Means { escapes: true, colour: false };
        assert_eq!(text(&buffer, none), "漢字 a\n  \x1b[0m\x1b[1mred\x1b[0m\n");
    }
}
