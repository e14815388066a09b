//! What is wrong with a table, where, and what would be right.

use std::fmt;

use unicode_width::UnicodeWidthChar;

use crate::source::{Source, Span};

/// Longest piece of a source line that is shown, in terminal columns.
const LINE_COLUMNS: usize = 120;
/// How much of a long line is shown before the place.
const BEFORE_COLUMNS: usize = 48;
/// Longest reason, name or remark that is shown, in characters.
const REMARK_CHARS: usize = 600;
/// Stands for what was cut away.
const CUT: char = '…';

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The table cannot be served.
    Error,
    /// The table is served, but the user should know.
    Warning,
}

/// One thing to tell the user about a table.
///
/// Owns all that it shows. [`Display`](fmt::Display) prints several lines, without a line end after the last:
///
/// ```text
/// error: linear: Invalid device sector
///   --> disk.table:3:30
///    |
///  3 | 2048 409600 linear /dev/sda1 0x10
///    |                              ^^^^ found "0x10"
///    = expected: a decimal number of sectors, without sign, unit or 0x
/// ```
///
/// Control and invisible characters of the source are shown escaped, long lines and remarks are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    severity: Severity,
    reason: String,
    file: String,
    line: usize,
    column: usize,
    snippet: Snippet,
    found: Option<String>,
    expected: Vec<String>,
    help: Vec<String>,
}

impl Diagnostic {
    /// A refusal at `span` of `source`. `reason` is the text that dmsetup or the kernel has for it, where
    /// they have one.
    pub fn error(source: &Source, span: Span, reason: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, source, span, reason.into())
    }

    /// A warning at `span` of `source`.
    pub fn warning(source: &Source, span: Span, reason: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, source, span, reason.into())
    }

    fn new(severity: Severity, source: &Source, span: Span, reason: String) -> Diagnostic {
        let (line, column) = source.line_col(span.start);
        Diagnostic(Box::new(Inner {
            severity,
            reason,
            file: source.name().to_owned(),
            line,
            column,
            snippet: Snippet::new(source, span),
            found: None,
            expected: Vec::new(),
            help: Vec::new(),
        }))
    }

    /// What stands at the place: shown beside the caret after the word "found". Put words of the source in
    /// quotes; what needs escaping is escaped when it is shown.
    pub fn found(mut self, found: impl Into<String>) -> Diagnostic {
        self.0.found = Some(found.into());
        self
    }

    /// What would be right there. May be called more than once.
    pub fn expected(mut self, expected: impl Into<String>) -> Diagnostic {
        self.0.expected.push(expected.into());
        self
    }

    /// What the user can do. May be called more than once.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.0.help.push(help.into());
        self
    }

    /// Whether this refuses the table or only warns.
    pub fn severity(&self) -> Severity {
        self.0.severity
    }

    /// The reason in the words of dmsetup or the kernel: what the kernel log has after
    /// `device-mapper: table: MAJOR:MINOR: ` without a closing ` (-EINVAL)`, or dmsetup's line.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The name of the source it is about.
    pub fn file(&self) -> &str {
        &self.0.file
    }

    /// The line, counted from 1.
    pub fn line(&self) -> usize {
        self.0.line
    }

    /// The column in characters, counted from 1.
    pub fn column(&self) -> usize {
        self.0.column
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { severity, reason, file, line, column, snippet, found, expected, help } = &*self.0;
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let gutter = line.to_string().len() + 1;
        writeln!(f, "{severity}: {}", Shown(reason))?;
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", Shown(file))?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line:>gutter$} | {}", snippet.text)?;
        write!(f, "{:gutter$} | {:2$}{3}", "", "", snippet.caret_at, "^".repeat(snippet.caret_len))?;
        if let Some(found) = found {
            write!(f, " found {}", Shown(found))?;
        }
        for expected in expected {
            write!(f, "\n{:gutter$} = expected: {}", "", Shown(expected))?;
        }
        for help in help {
            write!(f, "\n{:gutter$} = help: {}", "", Shown(help))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// The piece of a source line that is shown, ready for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snippet {
    text: String,
    /// In terminal columns from the start of `text`.
    caret_at: usize,
    /// In terminal columns, at least 1.
    caret_len: usize,
}

impl Snippet {
    fn new(source: &Source, span: Span) -> Snippet {
        let range = source.line_range(span.start);
        let line = &source.text()[range.clone()];
        let within = |at: usize| source.floor(at).clamp(range.start, range.end) - range.start;
        let (place, place_end) = (within(span.start), within(span.end));

        // A short line is shown whole; of a long one, a window that has the place near its start.
        let whole = fitting(line.chars(), LINE_COLUMNS) == line.len();
        let skipped = if whole { 0 } else { place - fitting(line[..place].chars().rev(), BEFORE_COLUMNS) };

        let mut snippet = Snippet { text: String::new(), caret_at: 0, caret_len: 0 };
        if skipped > 0 {
            snippet.text.push(CUT);
            snippet.caret_at = 1;
        }
        let mut shown = 0;
        for (at, c) in line[skipped..].char_indices().map(|(at, c)| (skipped + at, c)) {
            let (escaped, columns) = columns(c);
            shown += columns;
            if shown > LINE_COLUMNS {
                snippet.text.push(CUT);
                break;
            }
            snippet.text.push_str(&escaped);
            if at + c.len_utf8() <= place {
                snippet.caret_at += columns;
            } else if at < place_end {
                snippet.caret_len += columns;
            }
        }
        snippet.caret_len = snippet.caret_len.max(1);
        snippet
    }
}

/// How many bytes of `chars` fit into `width` terminal columns.
fn fitting(chars: impl Iterator<Item = char>, width: usize) -> usize {
    let mut used = 0;
    let fits = chars.take_while(|&c| {
        used += columns(c).1;
        used <= width
    });
    fits.map(char::len_utf8).sum()
}

/// A character as it is shown in a source line, and its width in terminal columns.
fn columns(c: char) -> (String, usize) {
    if c == '\t' {
        return ("    ".to_owned(), 4);
    }
    let mut shown = String::new();
    push_shown(c, &mut shown);
    let width = shown.chars().map(|c| c.width().unwrap_or(1)).sum();
    (shown, width)
}

/// Control characters could drive the terminal, invisible and reordering ones could hide what stands there.
fn push_shown(c: char, out: &mut String) {
    match c {
        '\\' | '"' | '\'' => out.push(c),
        _ => out.extend(c.escape_debug()),
    }
}

/// A remark, escaped, and cut in its middle where it is too long to read.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = REMARK_CHARS / 2;
        let cut = self.0.char_indices().nth(REMARK_CHARS).is_some();
        let mut shown = String::new();
        if cut {
            let head = self.0.char_indices().nth(half).map_or(0, |(at, _)| at);
            let tail = self.0.char_indices().rev().nth(half - 1).map_or(0, |(at, _)| at);
            self.0[..head].chars().for_each(|c| push_shown(c, &mut shown));
            shown.push(CUT);
            self.0[tail..].chars().for_each(|c| push_shown(c, &mut shown));
        } else {
            self.0.chars().for_each(|c| push_shown(c, &mut shown));
        }
        f.write_str(&shown)
    }
}
