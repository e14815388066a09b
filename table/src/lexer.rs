//! Blanks, numbers and words: the C library's rules for the front of a line, the kernel's for arguments.

use std::borrow::Cow;
use std::ops::Range;

use crate::source::Span;

/// Text of a table, with the way back to the source it was taken from.
///
/// In the concise form a backslash before a character is gone from the text, so places shift.
pub(crate) struct Text<'a> {
    text: Cow<'a, str>,
    /// Source offset of the first byte.
    base: usize,
    /// Offsets in `text` of the characters that had a backslash in front, ascending.
    escaped: Vec<usize>,
}

impl<'a> Text<'a> {
    /// Text as it stands in the source from `base` on.
    pub(crate) fn plain(text: &'a str, base: usize) -> Text<'a> {
        Text { text: Cow::Borrowed(text), base, escaped: Vec::new() }
    }

    /// An empty text to build from pieces.
    pub(crate) fn at(base: usize) -> Text<'a> {
        Text { text: Cow::Borrowed(""), base, escaped: Vec::new() }
    }

    pub(crate) fn push(&mut self, piece: &str) {
        self.text.to_mut().push_str(piece);
    }

    /// The next character that is pushed had a backslash in front.
    pub(crate) fn escape(&mut self) {
        self.escaped.push(self.text.len());
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The source's span for a range of this text; a backslash belongs to the character that it escapes.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        Span { start: self.offset(range.start), end: self.offset(range.end) }
    }

    pub(crate) fn whole_span(&self) -> Span {
        self.span(0..self.text.len())
    }

    fn offset(&self, at: usize) -> usize {
        self.base + at + self.escaped.partition_point(|&escaped| escaped < at)
    }
}

/// `isspace` in the C locale.
pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// The offset of the first byte from `at` on that is no blank.
pub(crate) fn skip_blanks(text: &str, at: usize) -> usize {
    at + text.as_bytes()[at..].iter().take_while(|&&byte| is_blank(byte)).count()
}

/// The offset of the first blank from `at` on.
pub(crate) fn skip_word(text: &str, at: usize) -> usize {
    at + text.as_bytes()[at..].iter().take_while(|&&byte| !is_blank(byte)).count()
}

/// Cuts blanks at both ends off a range of `text`.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let bytes = &text.as_bytes()[range.clone()];
    let end = range.end - bytes.iter().rev().take_while(|&&byte| is_blank(byte)).count();
    let start = range.start + bytes.iter().take_while(|&&byte| is_blank(byte)).count();
    start.min(end)..end
}

/// The C library's `sscanf("%llu")` at `at`, which must not be a blank: the number and where it ends.
///
/// One sign is taken, `-` negates modulo 2^64, what passes 2^64 − 1 becomes 2^64 − 1 whatever the sign, and
/// the number ends at the first character that is no digit.
pub(crate) fn scan_u64(text: &str, at: usize) -> Option<(u64, usize)> {
    let bytes = text.as_bytes();
    let sign = bytes.get(at).copied().filter(|byte| matches!(byte, b'+' | b'-'));
    let first = at + usize::from(sign.is_some());
    let digits = bytes[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let end = first + digits;
    // Digits only, so the one way to fail is overflow.
    let number = match text[first..end].parse::<u64>() {
        Ok(number) if sign == Some(b'-') => number.wrapping_neg(),
        Ok(number) => number,
        Err(_) => u64::MAX,
    };
    Some((number, end))
}

/// The kernel's `sscanf("%llu%c") == 1`: digits only, modulo 2^64 (Linux 6.12; 7.2 saturates).
pub(crate) fn kernel_u64(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(number.wrapping_mul(10).wrapping_add(digit))
    })
}

/// The kernel's `sscanf("%u%c") == 1`: digits only, modulo 2^32.
pub(crate) fn kernel_uint(text: &str) -> Option<u32> {
    kernel_u64(text).map(|number| number as u32)
}

/// The kernel's `sscanf("%hu%c") == 1`: digits only, modulo 2^16.
pub(crate) fn kernel_ushort(text: &str) -> Option<u16> {
    kernel_u64(text).map(|number| number as u16)
}

/// The kernel's `kstrtouint(text, 10)`: digits after at most one `+`, at most 2^32 − 1.
pub(crate) fn kernel_u32(text: &str) -> Option<u32> {
    strict(text)?.parse().ok()
}

/// The kernel's `kstrtoull(text, 10)`: digits after at most one `+`, at most 2^64 − 1.
pub(crate) fn kernel_strict_u64(text: &str) -> Option<u64> {
    strict(text)?.parse().ok()
}

fn strict(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(digits)
}

/// Ranges of the words of `text` in `range`, split as the kernel splits arguments: at ASCII blanks and at a
/// no-break space.
///
/// The kernel works on bytes and takes 0xA0, Latin-1's no-break space, for a blank also inside of a UTF-8
/// character such as `à`; here such a character stays whole. A backslash is no escape: libdm doubles it on
/// its way to the kernel, which makes it stand for itself.
pub(crate) fn split_args(text: &str, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
    let base = range.start;
    let text = &text[range];
    let words = text.split(|c: char| c == '\u{a0}' || u8::try_from(c).is_ok_and(is_blank));
    words.filter(|word| !word.is_empty()).map(move |word| {
        let start = base + (word.as_ptr() as usize - text.as_ptr() as usize);
        start..start + word.len()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scanf_numbers() {
        for (text, want) in [
            ("0", Some((0, 1))),
            ("010", Some((10, 3))),
            ("+7 ", Some((7, 2))),
            ("-1", Some((u64::MAX, 2))),
            ("-18446744073709551615", Some((1, 21))),
            ("18446744073709551615", Some((u64::MAX, 20))),
            ("18446744073709551616", Some((u64::MAX, 20))),
            ("-99999999999999999999999", Some((u64::MAX, 24))),
            ("0x10", Some((0, 1))),
            ("12zero", Some((12, 2))),
            ("+-1", None),
            ("+", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(scan_u64(text, 0), want, "{text:?}");
        }
    }

    #[test]
    fn kernel_numbers() {
        for (text, want) in [
            ("0", Some(0)),
            ("0010", Some(10)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", Some(0)),
            ("18446744073709551617", Some(1)),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1s", None),
            ("0x1", None),
            ("١", None),
        ] {
            assert_eq!(kernel_u64(text), want, "{text:?}");
        }
        for (text, want) in [
            ("+2", Some(2)),
            ("0002", Some(2)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("++2", None),
            ("+", None),
            ("", None),
            ("-2", None),
            ("2x", None),
        ] {
            assert_eq!(kernel_u32(text), want, "{text:?}");
        }
        for (text, uint, ushort) in [
            ("8", Some(8), Some(8)),
            ("65537", Some(65_537), Some(1)),
            ("4294967297", Some(1), Some(1)),
            ("18446744073709551617", Some(1), Some(1)),
            ("+8", None, None),
            ("8x", None, None),
            ("", None, None),
        ] {
            assert_eq!((kernel_uint(text), kernel_ushort(text)), (uint, ushort), "{text:?}");
        }
        for (text, want) in
            [("+18446744073709551615", Some(u64::MAX)), ("18446744073709551616", None), ("", None), ("-1", None)]
        {
            assert_eq!(kernel_strict_u64(text), want, "{text:?}");
        }
    }

    #[test]
    fn arguments_split_at_kernel_blanks() {
        let words = |text: &str| split_args(text, 0..text.len()).map(|r| text[r].to_owned()).collect::<Vec<_>>();
        assert_eq!(words(" a\tb\x0bc\x0cd\u{a0}e "), ["a", "b", "c", "d", "e"]);
        assert_eq!(words(r"/dev/v\ da \\"), [r"/dev/v\", "da", r"\\"]);
        assert_eq!(words("/à/\u{2003}"), ["/à/\u{2003}"]);
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn spans_lead_back_over_escapes() {
        // Source `a\,b\;` from offset 10 on.
        let mut text = Text::at(10);
        text.push("a");
        text.escape();
        text.push(",b");
        text.escape();
        text.push(";");
        assert_eq!(text.as_str(), "a,b;");
        assert_eq!(text.span(0..1), Span { start: 10, end: 11 });
        assert_eq!(text.span(1..2), Span { start: 11, end: 13 });
        assert_eq!(text.span(2..3), Span { start: 13, end: 14 });
        assert_eq!(text.whole_span(), Span { start: 10, end: 16 });
    }
}
