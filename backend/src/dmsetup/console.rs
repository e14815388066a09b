//! Where a command writes.

use std::io::{self, BufWriter, Write};

/// A verb has failed, and has said so.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Result of a verb.
pub(super) type Done<T = ()> = Result<T, Failed>;

/// Standard output and standard error, in the order of writing where they are the same.
pub(super) struct Console {
    out: BufWriter<Box<dyn Write>>,
    err: Box<dyn Write>,
    broken: bool,
}

impl Console {
    pub fn new(out: Box<dyn Write>, err: Box<dyn Write>) -> Console {
        Console { out: BufWriter::new(out), err, broken: false }
    }

    pub fn standard() -> Console {
        Console::new(Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// To standard output, as it is.
    pub fn print(&mut self, text: &str) {
        self.broken |= self.out.write_all(text.as_bytes()).is_err();
    }

    /// A line to standard output.
    pub fn say(&mut self, line: &str) {
        self.print(line);
        self.print("\n");
    }

    /// Lines to standard error.
    pub fn complain(&mut self, lines: &str) {
        self.flush();
        // There is no place to say that this failed.
        let _ = writeln!(self.err, "{}", lines.trim_end_matches('\n'));
    }

    /// As [`Console::complain`], for the one who gives up with it.
    pub fn fail<T>(&mut self, lines: &str) -> Done<T> {
        self.complain(lines);
        Err(Failed)
    }

    pub fn flush(&mut self) {
        self.broken |= self.out.flush().is_err();
    }

    /// Whether nobody reads standard output any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether all that was printed could be written.
    pub fn finish(&mut self) -> bool {
        self.flush();
        !self.broken
    }
}
