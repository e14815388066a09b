//! The words after a target's type, and what can be wrong with them.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use super::{DevRef, Position};
use crate::lexer::{self, Text};
use crate::{SECTOR_SIZE, Sectors, Span};

/// What is expected where a target has a start sector on a device.
const OFFSET: &str = "a decimal number of sectors, without sign, unit or 0x";

/// The arguments of one line, and what a constructor knows besides them.
pub(crate) struct Args<'a> {
    words: Vec<&'a str>,
    spans: Vec<Span>,
    /// The line's length in sectors.
    pub(crate) len: u64,
    /// Where the length stands.
    pub(crate) len_span: Span,
    /// Where a further argument would stand.
    end: Span,
}

impl<'a> Args<'a> {
    /// Splits `params` of `text`, as the kernel does.
    pub(crate) fn new(text: &'a Text<'_>, params: Range<usize>, len: u64, len_span: Span) -> Args<'a> {
        let end = text.span(params.end..params.end);
        let ranges = lexer::split_args(text.as_str(), params);
        let (words, spans) = ranges.map(|range| (&text.as_str()[range.clone()], text.span(range))).unzip();
        Args { words, spans, len, len_span, end }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.words.len()
    }

    /// The `n`th word; empty where there are not so many.
    pub(crate) fn word(&self, n: usize) -> &'a str {
        self.words.get(n).copied().unwrap_or_default()
    }

    /// Where the `n`th word stands, or the end where there are not so many.
    pub(crate) fn span(&self, n: usize) -> Span {
        self.spans.get(n).copied().unwrap_or(self.end)
    }

    /// The `n`th word as a device's name.
    pub(crate) fn device(&self, n: usize) -> DevRef {
        DevRef { text: self.word(n).to_owned(), span: self.span(n) }
    }

    /// The `n`th word as a start sector on a device.
    pub(crate) fn offset(&self, n: usize, reason: impl Display) -> Result<Sectors, Fault> {
        match lexer::kernel_u64(self.word(n)) {
            Some(sector) => Ok(Sectors::new(sector)),
            None => Err(self.sectors_fault(n, reason).expected(OFFSET)),
        }
    }

    /// The `n`th word as a device's name, and the next as the start sector on it.
    pub(crate) fn position(&self, n: usize, reason: impl Display) -> Result<Position, Fault> {
        Ok(Position { start: self.offset(n + 1, reason)?, dev: self.device(n), start_span: self.span(n + 1) })
    }

    /// The `n`th word as a number within a range: the kernel's `dm_read_arg`, which takes a number modulo 2^32.
    pub(crate) fn number(&self, n: usize, range: RangeInclusive<u32>, reason: impl Display) -> Result<u32, Fault> {
        match lexer::kernel_uint(self.word(n)) {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(self.fault(n, reason).expected(match (*range.start(), *range.end()) {
                (0, u32::MAX) => "a decimal number, without sign, unit or 0x".to_owned(),
                (least, most) => format!("a decimal number from {least} to {most}"),
            })),
        }
    }

    /// The `n`th word as the number of words that follow it: the kernel's `dm_read_arg_group`. There may be more.
    pub(crate) fn group(&self, n: usize, most: u32, reason: impl Display) -> Result<usize, Fault> {
        let reason = reason.to_string();
        let count = self.number(n, 0..=most, &reason).map_err(|fault| {
            fault.expected(format!("the number of feature arguments that follow, from 0 to {most}"))
        })?;
        let there = self.count().saturating_sub(n + 1);
        match usize::try_from(count) {
            Ok(count) if count <= there => Ok(count),
            _ => Err(self
                .fault(n, reason)
                .expected(format!("the number of feature arguments that follow: {}", there.min(most as usize)))),
        }
    }

    /// The `n`th word as a count: `kstrtouint`, and not 0.
    pub(crate) fn count_from_one(&self, n: usize, reason: impl Display) -> Result<u32, Fault> {
        match lexer::kernel_u32(self.word(n)) {
            Some(count) if count > 0 => Ok(count),
            _ => Err(self.fault(n, reason).expected("a decimal number from 1 to 4294967295")),
        }
    }

    /// The `n`th word is wrong as a number of sectors that is not 64 bits wide.
    pub(crate) fn sectors_fault(&self, n: usize, reason: impl Display) -> Fault {
        let fault = self.fault(n, reason);
        match meant(self.word(n)) {
            Some(sectors) => fault.help(format!("{} is {sectors} sectors of 512 bytes", self.word(n))),
            None => fault,
        }
    }

    /// The bytes that the `n`th word may mean, which is no number.
    pub(crate) fn meant_bytes(&self, n: usize) -> Option<u64> {
        meant(self.word(n)).map(|sectors| sectors.saturating_mul(SECTOR_SIZE))
    }

    /// The `n`th word is wrong.
    pub(crate) fn fault(&self, n: usize, reason: impl Display) -> Fault {
        Fault {
            reason: reason.to_string(),
            span: self.span(n),
            found: match self.words.get(n) {
                Some(word) => format!("\"{word}\""),
                None => "the end of the line".to_owned(),
            },
            expected: None,
            help: Vec::new(),
        }
    }

    /// There are not `want` words: points at the first one too many, or to where the first missing one belongs.
    pub(crate) fn wrong_count(&self, want: usize, reason: impl Display) -> Fault {
        let found = match self.count() {
            0 => "no arguments".to_owned(),
            1 => "1 argument".to_owned(),
            count => format!("{count} arguments"),
        };
        let mut span = self.span(want);
        if self.count() > want {
            span.end = self.end.end;
        }
        Fault { reason: reason.to_string(), span, found, expected: None, help: Vec::new() }
    }
}

/// The powers of two next to a number, for people.
pub(crate) fn nearest_powers_of_two(number: u64) -> String {
    let above = number.checked_next_power_of_two();
    match (number, above) {
        (0, _) => "the smallest is 1".to_owned(),
        (_, Some(above)) => format!("the nearest are {} and {above}", above >> 1),
        (_, None) => format!("the nearest is {}", 1u64 << 63),
    }
}

/// The sectors that a number may have meant which is none here: `10s`, `0x10`, `4K`, `1MiB`.
fn meant(word: &str) -> Option<u64> {
    if let Some(hex) = word.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = word[..digits].parse().ok()?;
    match word[digits..].to_ascii_lowercase().as_str() {
        "s" => Some(number),
        "k" | "kib" => number.checked_mul(2),
        "m" | "mib" => number.checked_mul(2 << 10),
        "g" | "gib" => number.checked_mul(2 << 20),
        "t" | "tib" => number.checked_mul(2 << 30),
        _ => None,
    }
}

/// Why a constructor refuses its arguments.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The kernel's text, without the type in front.
    pub(crate) reason: String,
    pub(crate) span: Span,
    pub(crate) found: String,
    /// Where it says more than the type's usage.
    pub(crate) expected: Option<String>,
    pub(crate) help: Vec<String>,
}

impl Fault {
    pub(crate) fn found(mut self, found: impl Into<String>) -> Fault {
        self.found = found.into();
        self
    }

    pub(crate) fn at(mut self, span: Span) -> Fault {
        self.span = span;
        self
    }

    pub(crate) fn expected(mut self, expected: impl Into<String>) -> Fault {
        self.expected = Some(expected.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Fault {
        self.help.push(help.into());
        self
    }
}
