//! What is wrong with a table, where, and what would be right.

use std::fmt;

use crate::source::{Source, Span};

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The table cannot be served.
    Error,
    /// The table is served, but the user should know.
    Warning,
}

/// One thing to tell the user about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    severity: Severity,
    reason: String,
    file: String,
    line: usize,
    column: usize,
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
        let file = source.name().to_owned();
        Diagnostic(Box::new(Inner {
            severity,
            reason,
            file,
            line,
            column,
            found: None,
            expected: Vec::new(),
            help: Vec::new(),
        }))
    }

    /// What stands at the place, shown beside the caret.
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

    /// The reason in the words of dmsetup or the kernel, without place, prefix or errno in brackets.
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
        write!(f, "{}", self.0.reason)
    }
}

impl std::error::Error for Diagnostic {}
