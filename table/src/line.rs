//! One line of a table: dmsetup's reading of its front, then the kernel's checks.

use std::fmt;
use std::ops::Range;

use crate::lexer::{self, Text};
use crate::params::{self, Args, Fault, Type};
use crate::table::Line;
use crate::{Diagnostic, Sectors, Source};

/// Longest type, in bytes: the kernel's field has 16, one of them for the end mark.
const TYPE_LEN: usize = 15;
/// As much of a type as dmsetup reads, in bytes.
const TYPE_SCAN: usize = 4096;

/// A line that dmsetup would hand to the kernel. Ranges are of the [`Text`] it was read from.
pub(crate) struct RawLine {
    start: u64,
    len: u64,
    start_at: Range<usize>,
    len_at: Range<usize>,
    type_at: Range<usize>,
    params_at: Range<usize>,
}

/// What to do where a name stands in front of a line and should not, or the other way round.
pub(crate) const NAMES_IN_FRONT: &str =
    "either every line has a device's name in front, as `dmsetup table` prints them, or none has";

/// The conversions of dmsetup's `"%llu %llu %s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Start,
    Length,
    Type,
}

/// Whether a line starts with two numbers, as a table line does and nothing else.
pub(crate) fn starts_with_numbers(text: &str, at: usize) -> bool {
    let second = lexer::scan_u64(text, at).map(|(_, end)| lexer::skip_blanks(text, end));
    second.is_some_and(|at| lexer::scan_u64(text, at).is_some())
}

/// A line and its table as dmsetup names them: `line 3 of table disk.table`.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Counted from 1.
    pub(crate) number: usize,
    /// A file's name, `on stdin`, or nothing for a text from elsewhere.
    pub(crate) of: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of table {}", self.number, self.of)
    }
}

/// Reads the line in `range`, which has no blanks at its ends and is neither empty nor a comment.
pub(crate) fn scan(
    source: &Source,
    text: &Text<'_>,
    range: Range<usize>,
    place: Place<'_>,
) -> Result<RawLine, Diagnostic> {
    // The numbers' scanner must not look past the line: a line end is a blank to it.
    let line = &text.as_str()[..range.end];
    let refuse = |missing, at| Err(invalid_format(source, text, at..range.end, missing, place));

    let Some((start, start_end)) = lexer::scan_u64(line, range.start) else {
        return refuse(Missing::Start, range.start);
    };
    let len_start = lexer::skip_blanks(line, start_end);
    let Some((len, len_end)) = lexer::scan_u64(line, len_start) else {
        // `0x10`: the number ended within the word, so the word is what is wrong.
        let word_goes_on = len_start == start_end && len_start < range.end;
        return if word_goes_on { refuse(Missing::Start, range.start) } else { refuse(Missing::Length, len_start) };
    };
    let type_start = lexer::skip_blanks(line, len_end);
    let type_end = lexer::skip_word(line, type_start);
    if type_start == type_end {
        return refuse(Missing::Type, type_start);
    }
    let type_at = type_start..type_end;
    if type_at.len() > TYPE_LEN {
        let mut shown = type_at.clone();
        shown.end = shown.end.min(shown.start + TYPE_SCAN);
        while !line.is_char_boundary(shown.end) {
            shown.end -= 1;
        }
        let reason = format!("Target type name {} is too long.", &line[shown]);
        return Err(Diagnostic::error(source, text.span(type_at), reason)
            .found(format!("a type of {} bytes", type_end - type_start))
            .expected(format!("a type of at most {TYPE_LEN} bytes: {}", have())));
    }

    let params_start = lexer::skip_blanks(line, type_end);
    let params_end = line[params_start..].find('#').map_or(range.end, |at| params_start + at);
    Ok(RawLine {
        start,
        len,
        start_at: range.start..start_end,
        len_at: len_start..len_end,
        type_at,
        params_at: lexer::trim(line, params_start..params_end),
    })
}

fn invalid_format(
    source: &Source,
    text: &Text<'_>,
    rest: Range<usize>,
    missing: Missing,
    place: Place<'_>,
) -> Diagnostic {
    let line = &text.as_str()[..rest.end];
    let word_end = lexer::skip_word(line, rest.start);
    let word = &line[rest.start..word_end];
    let what = match missing {
        Missing::Start => "the line's first sector",
        Missing::Length => "the line's length in sectors",
        Missing::Type => "the target's type",
    };
    let found = if word.is_empty() { "the end of the line".to_owned() } else { format!("\"{word}\"") };
    let diagnostic = Diagnostic::error(source, text.span(rest.start..word_end), format!("Invalid format on {place}."))
        .found(found)
        .expected(format!("{what}: <start> <length> <type> [<arguments>]"));
    if word.starts_with('\u{feff}') {
        return diagnostic.help("the file begins with a byte order mark: save it without one");
    }
    if word.ends_with(':') {
        return diagnostic.help(NAMES_IN_FRONT);
    }
    let hex = word.strip_prefix("0x").or_else(|| word.strip_prefix('x'));
    match hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
        Some(number) => diagnostic.help(format!("numbers are decimal: 0x{number:x} is {number}")),
        None => diagnostic,
    }
}

/// The kernel's checks of one line, in its order (`dm_table_add_target`), and the target's own.
///
/// `end` is where the line before ended.
pub(crate) fn load(source: &Source, text: &Text<'_>, raw: &RawLine, end: Sectors) -> Result<Line, Diagnostic> {
    let RawLine { start, len, start_at, len_at, type_at, params_at } = raw;
    let (start_span, len_span) = (text.span(start_at.clone()), text.span(len_at.clone()));
    let type_span = text.span(type_at.clone());
    let name = &text.as_str()[type_at.clone()];

    if *len == 0 {
        let diagnostic = Diagnostic::error(source, len_span, "zero-length target")
            .found(format!("a length of {len} sectors"))
            .expected("a length of 1 sector or more");
        return Err(match name.strip_prefix('x').filter(|_| len_at.end == type_at.start) {
            Some(hex) => diagnostic.help(format!("numbers are decimal: 0x{hex} is read as 0 and the type x{hex}")),
            None => diagnostic,
        });
    }
    if start.checked_add(*len).is_none_or(|end| end > Sectors::MAX_DEVICE.get()) {
        return Err(too_large(source, text, raw));
    }
    let Some(kind) = params::find(name) else {
        return Err(unknown_type(source, text, raw));
    };
    if *start != end.get() {
        return Err(Diagnostic::error(source, start_span, format!("{name}: Gap in table"))
            .found(start.to_string())
            .expected(match end {
                Sectors::ZERO => "0: the first line starts at sector 0".to_owned(),
                end => format!("{end}, where the line before ends"),
            })
            .help(match start.checked_sub(end.get()) {
                Some(gap) => format!("sectors that nothing lies on need a line of their own: {end} {gap} error"),
                None => format!("the lines overlap by {} sectors, or are not in order", end.get() - start),
            }));
    }

    let args = Args::new(text, params_at.clone(), *len, len_span);
    let cut_by_comment = text.as_str().as_bytes().get(params_at.end) == Some(&b'#');
    let target = (kind.construct)(&args).map_err(|fault| {
        let refusal = wrong_arguments(source, kind, fault);
        if cut_by_comment { refusal.help("a # begins a comment, also within a word") } else { refusal }
    })?;
    let whole = start_at.start..if params_at.is_empty() { type_at.end } else { params_at.end };
    let (start, len) = (Sectors::new(*start), Sectors::new(*len));
    Ok(Line { start, len, target, span: text.span(whole), start_span, len_span, type_span })
}

fn too_large(source: &Source, text: &Text<'_>, raw: &RawLine) -> Diagnostic {
    let at = raw.start_at.start..raw.len_at.end;
    let max = Sectors::MAX_DEVICE;
    let minus = text.as_str()[at.clone()].contains('-');
    let diagnostic = Diagnostic::error(source, text.span(at), "too large device")
        .found(format!("a line of {} sectors from sector {} on", raw.len, raw.start))
        .expected(format!("an end at or before sector {max} (2^63 bytes)"));
    if minus { diagnostic.help("a number with a minus sign wraps around at 2^64") } else { diagnostic }
}

fn unknown_type(source: &Source, text: &Text<'_>, raw: &RawLine) -> Diagnostic {
    let name = &text.as_str()[raw.type_at.clone()];
    let diagnostic = Diagnostic::error(source, text.span(raw.type_at.clone()), format!("{name}: unknown target type"))
        .found(format!("\"{name}\""))
        .expected(have());
    if raw.len_at.end == raw.type_at.start {
        let number = &text.as_str()[raw.len_at.clone()];
        return diagnostic
            .help(format!("{number}{name} is read as the length {number} and the type {name}: numbers have no unit"));
    }
    if name.contains(',') {
        return diagnostic.help("a comma ends a line only in the concise form: name,uuid,minor,flags,table[,table]…");
    }
    match name.to_ascii_lowercase() {
        lower if params::find(&lower).is_some() => diagnostic.help(format!("did you mean {lower}?")),
        _ => diagnostic,
    }
}

fn wrong_arguments(source: &Source, kind: &Type, fault: Fault) -> Diagnostic {
    let Fault { reason, span, found, expected, help } = fault;
    let diagnostic = Diagnostic::error(source, span, format!("{}: {reason}", kind.name))
        .found(found)
        .expected(expected.as_deref().unwrap_or(kind.usage));
    help.into_iter().fold(diagnostic, Diagnostic::help)
}

/// The types there are, for people.
fn have() -> String {
    format!("one of the target types {}", params::target_types().collect::<Vec<_>>().join(", "))
}
