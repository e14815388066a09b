//! A table's text and places in it.

use std::ops::Range;
use std::sync::OnceLock;

/// A table text and the name to call it by in diagnostics.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Byte offset of each line's start; found when the first place is asked for, as most texts have no
    /// mistake to show.
    line_starts: OnceLock<Vec<usize>>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.name == other.name && self.text == other.text
    }
}

impl Eq for Source {}

impl Source {
    /// Text that came from `name`: a file's path as the user wrote it, or `<stdin>`.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        Source { name: name.into(), text: text.into(), line_starts: OnceLock::new() }
    }

    /// Where the text came from, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text, as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte offset, both counted from 1, the column in characters.
    ///
    /// An offset past the end means the end, one inside a character means that character.
    pub fn line_col(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.line_index(offset);
        let column = self.text[self.line_starts()[line]..offset].chars().count();
        (line + 1, column + 1)
    }

    /// The byte range of the line that holds `offset`, without its line end (`\n` or `\r\n`).
    pub(crate) fn line_range(&self, offset: usize) -> Range<usize> {
        let offset = self.floor(offset);
        let line = self.line_index(offset);
        let start = self.line_starts()[line];
        let end = self.line_starts().get(line + 1).map_or(self.text.len(), |next| next - 1);
        let text = &self.text[start..end];
        start..start + text.strip_suffix('\r').unwrap_or(text).len()
    }

    /// `offset` brought inside the text and back to the start of a character.
    pub(crate) fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    fn line_index(&self, offset: usize) -> usize {
        self.line_starts().partition_point(|&start| start <= offset).saturating_sub(1)
    }

    fn line_starts(&self) -> &[usize] {
        self.line_starts.get_or_init(|| {
            let after_ends = self.text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
            std::iter::once(0).chain(after_ends).collect()
        })
    }
}

/// A byte range of [`Source::text`]; an empty one marks a place between two characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Byte offset of the first byte.
    pub start: usize,
    /// Byte offset just past the last byte.
    pub end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        let source = Source::new("t", "aé\r\nçb\n");
        assert_eq!(source.line_col(0), (1, 1));
        assert_eq!(source.line_col(3), (1, 3));
        assert_eq!(source.line_col(5), (2, 1));
        assert_eq!(source.line_col(6), (2, 1), "inside a character");
        assert_eq!(source.line_col(7), (2, 2));
        assert_eq!(source.line_col(9), (3, 1));
        assert_eq!(source.line_col(usize::MAX), (3, 1));
        assert_eq!(source.line_range(1), 0..3, "CR is not part of the line");
        assert_eq!(source.line_range(5), 5..8);
        assert_eq!(source.line_range(9), 9..9);
    }

    #[test]
    fn an_empty_text_has_one_place() {
        let source = Source::new("t", "");
        assert_eq!(source.line_col(7), (1, 1));
        assert_eq!(source.line_range(7), 0..0);
    }
}
