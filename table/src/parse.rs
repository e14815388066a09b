//! From text to devices: which form it has, and reading it.

use std::sync::Arc;

use crate::table::TableFile;
use crate::{Diagnostic, Source, Span, concise, line, plain};

/// Which of the two forms a text has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Found out from the first line that is neither empty nor a comment:
    ///
    /// * two numbers (`0 2048 …`) or `NAME: ` and two numbers begin a plain table;
    /// * else, a comma before the first blank, or four commas in the line, begin the concise form;
    /// * anything else is read, and refused, as a plain table.
    ///
    /// So no plain table that dmsetup reads is taken for the concise form. A concise text whose first name
    /// begins with two numbers is taken for a plain table and refused; say [`Format::Concise`] for it.
    #[default]
    Auto,
    /// One table, a line for each target: what `dmsetup create` reads. Where the first line has `NAME: ` in
    /// front, every line must, and lines with the same name are one device: what `dmsetup table` prints for
    /// several.
    Plain,
    /// `name,uuid,minor,flags,table[,table]…[;…]`: what `dmsetup create --concise` reads.
    Concise,
}

/// Parses a text. The first thing wrong with it is the error: first what dmsetup finds when it reads the
/// lines, then line by line what the kernel finds. In the concise form each device is checked whole before
/// the next.
///
/// Two things are refused that dmsetup lets pass: a zero byte (dmsetup forgets the rest of the line), and in
/// the concise form a minor number that is no number or a name with control characters.
pub fn parse(source: Arc<Source>, format: Format) -> Result<TableFile, Diagnostic> {
    if let Some(at) = source.text().find('\0') {
        let (number, _) = source.line_col(at);
        let place = line::Place { number, of: plain::table_name(&source) };
        let span = Span { start: at, end: at + 1 };
        return Err(Diagnostic::error(&source, span, format!("Invalid format on {place}."))
            .found("a zero byte")
            .expected("text")
            .help("a disk image is not a table: name it in a table's line"));
    }
    let guessed = format == Format::Auto;
    let concise = match format {
        Format::Auto => looks_concise(source.text()),
        Format::Plain => false,
        Format::Concise => true,
    };
    let parsed = if concise { concise::parse(&source, guessed) } else { plain::parse(&source, guessed) };
    parsed.map(|devices| TableFile { source, devices })
}

fn looks_concise(text: &str) -> bool {
    let Some(first) = plain::first_significant(text) else {
        return false;
    };
    if line::starts_with_numbers(text, first.start) || plain::split_name(text, first.clone()).is_some() {
        return false;
    }
    let mut commas = 0;
    let mut blank = false;
    let mut escaped = false;
    for byte in text[first].bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' if !blank || commas == 3 => return true,
            b',' => commas += 1,
            byte => blank |= crate::lexer::is_blank(byte),
        }
    }
    false
}
