//! Tables as `dmsetup create` reads them, one line per target, and as `dmsetup table` prints several.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::lexer::{self, Text};
use crate::line::{self, Place, RawLine};
use crate::names::Names;
use crate::table::{Device, Line, Table};
use crate::{Diagnostic, Sectors, Source, Span};

/// The lines of `text` that hold something, without blanks around them, and their numbers from 1.
fn significant<'a>(text: &'a str) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
    let mut next = 0;
    let lines = text.split('\n').map(move |line| {
        let start = next;
        next += line.len() + 1;
        lexer::trim(text, start..start + line.len())
    });
    let numbered = lines.enumerate().map(|(index, range)| (index + 1, range));
    numbered.filter(move |(_, range)| !range.is_empty() && text.as_bytes()[range.start] != b'#')
}

/// The first line of `text` that holds something.
pub(crate) fn first_significant(text: &str) -> Option<Range<usize>> {
    significant(text).next().map(|(_, range)| range)
}

/// A table of which lines are being read. dmsetup reads all of them before it goes to the kernel: what the kernel refuses of
/// one waits for what dmsetup refuses of a later one. No list of lines that are read and not checked, as a long one that is
/// freed has malloc keep more of what is freed after it.
pub(crate) struct Loading {
    lines: Vec<Line>,
    end: Sectors,
    refused: Option<Diagnostic>,
}

impl Loading {
    fn new() -> Loading {
        Loading { lines: Vec::new(), end: Sectors::ZERO, refused: None }
    }

    fn add(&mut self, source: &Source, text: &Text<'_>, raw: &RawLine) {
        if self.refused.is_some() {
            return;
        }
        match line::load(source, text, raw, self.end) {
            Ok(line) => {
                self.end = line.start.checked_add(line.len).unwrap_or(Sectors::MAX_DEVICE);
                self.lines.push(line);
            }
            Err(refused) => self.refused = Some(refused),
        }
    }

    /// What the kernel says to it.
    pub(crate) fn load(mut self) -> Result<Arc<Table>, Diagnostic> {
        self.lines.shrink_to_fit();
        self.refused.map_or_else(|| Ok(Arc::new(Table { lines: self.lines })), Err)
    }
}

/// Reads all lines of one table; what is refused is what dmsetup does not read.
///
/// `of` names the table in messages: a file's name, `on stdin`, or nothing.
pub(crate) fn read_table(source: &Source, text: &Text<'_>, of: &str) -> Result<Loading, Diagnostic> {
    let mut loading = Loading::new();
    for (number, range) in significant(text.as_str()) {
        loading.add(source, text, &line::scan(source, text, range, Place { number, of })?);
    }
    Ok(loading)
}

/// A table's name in dmsetup's messages.
pub(crate) fn table_name(source: &Source) -> &str {
    if source.name() == "<stdin>" { "on stdin" } else { source.name() }
}

/// Reads a plain source; whether each line has a device's name in front is seen from the first one.
pub(crate) fn parse(source: &Source, guessed: bool) -> Result<Vec<Device>, Diagnostic> {
    let text = Text::plain(source.text(), 0);
    let of = table_name(source);
    let first = first_significant(text.as_str());
    let named = first.as_ref().is_some_and(|first| split_name(text.as_str(), first.clone()).is_some());
    if named {
        return parse_named(source, &text, of);
    }
    let loading = read_table(source, &text, of).map_err(|refusal| {
        let first = first.map_or("", |first| &text.as_str()[first]);
        let unreadable = guessed && lexer::scan_u64(first, 0).is_none() && !first.starts_with('\u{feff}');
        if unreadable { refusal.help("the concise form begins with name,uuid,minor,flags,table") } else { refusal }
    })?;
    let table = loading.load()?;
    let (name, name_span, uuid) = (None, Span::default(), None);
    Ok(vec![Device { name, name_span, uuid, minor: None, read_only: false, table }])
}

/// Lines of `dmsetup table` for several devices: each with `NAME: ` in front.
fn parse_named(source: &Source, text: &Text<'_>, of: &str) -> Result<Vec<Device>, Diagnostic> {
    let mut names = Names::default();
    let mut indices: HashMap<&str, usize> = HashMap::new();
    let mut devices: Vec<(Range<usize>, Loading)> = Vec::new();
    for (number, range) in significant(text.as_str()) {
        let place = Place { number, of };
        let Some((name, rest)) = split_name(text.as_str(), range.clone()) else {
            let reason = format!("Invalid format on {place}.");
            return Err(Diagnostic::error(source, text.span(range), reason)
                .found("no device's name")
                .expected("NAME: <start> <length> <type> [<arguments>]")
                .help(line::NAMES_IN_FRONT));
        };
        let index = *indices.entry(&text.as_str()[name.clone()]).or_insert_with(|| {
            devices.push((name.clone(), Loading::new()));
            devices.len() - 1
        });
        if !rest.is_empty() {
            devices[index].1.add(source, text, &line::scan(source, text, rest, place)?);
        }
    }
    let load = |(name, loading): (Range<usize>, Loading)| {
        let name_span = text.span(name.clone());
        let name = text.as_str()[name].to_owned();
        names.check(source, &name, name_span)?;
        names.claim(source, (&name, name_span), None)?;
        let table = loading.load()?;
        Ok(Device { name: Some(name), name_span, uuid: None, minor: None, read_only: false, table })
    };
    devices.into_iter().map(load).collect()
}

/// Splits `NAME: <start> <length> …` into name and line; a device without a table has nothing after the colon.
pub(crate) fn split_name(text: &str, range: Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let line = &text[..range.end];
    if line::starts_with_numbers(line, range.start) {
        return None;
    }
    let colons = line[range.start..].match_indices(':').map(|(at, _)| range.start + at);
    let mut rests = colons.map(|at| (at, lexer::skip_blanks(line, at + 1)));
    let is_line = |&(at, rest): &(usize, usize)| {
        at > range.start && (rest == range.end || (rest > at + 1 && line::starts_with_numbers(line, rest)))
    };
    rests.find(is_line).map(|(at, rest)| (range.start..at, rest..range.end))
}
