//! What a piece of the command line says.
//!
//! ```text
//! PIECE     = NAME "=" PATH [ "@" START "+" LENGTH ] { "," ATTRIBUTE }
//!           | "zero=" SIZE { "," ATTRIBUTE }         a partition of zeroes
//!           | "gap=" SIZE                            space between partitions
//! ATTRIBUTE = "type=" TYPE | "guid=" GUID | "label=" TEXT | "number=" NUMBER | "bootable" | "ro"
//! ```
//!
//! A backslash makes the character behind it stand for itself, as in dmsetup's concise format: `\=` in a NAME, `\@` and
//! `\,` in a PATH, `\,` in a TEXT, `\\` anywhere. So a partition that is to be called gap or zero is `\gap=PATH`.

use std::ops::Range;

use dm_table::{Diagnostic, Source, Span};
use uuid::Uuid;

use super::size;
use super::types::{self, Type};

/// Longest name of a partition in a GPT, in UTF-16 code units.
pub const LABEL_LEN: usize = 36;

/// A piece as it was asked for.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its text, for diagnostics.
    pub source: Source,
    /// Where the text before the first comma stands.
    pub span: Span,
    /// What it is made of.
    pub what: What,
    /// What else is said of the partition.
    pub attributes: Attributes,
}

/// What a piece is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// So many sectors that belong to no partition.
    Gap(u64),
    /// A partition of so many sectors of zeroes.
    Zero(u64),
    /// A partition.
    Part {
        /// Its name.
        name: String,
        /// A file or block device.
        path: String,
        /// First sector and length, where it is a part of that.
        range: Option<(u64, u64)>,
    },
}

/// Something that was given, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// What.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

/// What is said of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Its type.
    pub kind: Option<Given<Type>>,
    /// Its identity, which Linux calls PARTUUID.
    pub guid: Option<Given<Uuid>>,
    /// Its name in the partition table.
    pub label: Option<Given<String>>,
    /// Its number, from 1.
    pub number: Option<Given<u32>>,
    /// A BIOS's boot loader starts what is in it.
    pub bootable: Option<Given<()>>,
    /// The guest must not write it.
    pub read_only: Option<Given<()>>,
}

impl Spec {
    /// Reads a piece; `which` is what diagnostics call it.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(which: impl Into<String>, text: impl Into<String>) -> Result<Spec, Diagnostic> {
        let source = Source::new(which, text);
        let reader = Reader { source: &source };
        let name = reader.word(0, "=,@")?;
        if name.stop != Some('=') {
            let shape = "NAME=PATH, gap=SIZE or zero=SIZE";
            let found = if source.text().is_empty() { "nothing" } else { "no = behind the name" };
            return Err(reader.refuse(name.range, "not a piece of a disk").found(found).expected(shape));
        }
        let value = reader.word(name.range.end + 1, ",@")?;
        let plain = &source.text()[name.range.clone()];
        let (what, mut at) = match plain {
            "gap" | "zero" => {
                let (size, end) = reader.size(name.range.end + 1, ",", "no size")?;
                (if plain == "gap" { What::Gap(size) } else { What::Zero(size) }, end)
            }
            _ => reader.part(&name, &value)?,
        };
        let span = Span { start: 0, end: at };
        let mut attributes = Attributes::default();
        while at < source.text().len() {
            at = reader.attribute(at + 1, &mut attributes, &what)?;
        }
        Ok(Spec { what, attributes, span, source: source.clone() })
    }

    /// A diagnostic about the piece as a whole.
    pub fn refuse(&self, reason: impl Into<String>) -> Diagnostic {
        self.refuse_at(self.span, reason)
    }

    /// A diagnostic about a place in it.
    pub fn refuse_at(&self, span: Span, reason: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.source, span, reason)
    }

    /// What messages call the piece.
    pub fn name(&self) -> &str {
        match &self.what {
            What::Gap(_) => "gap",
            What::Zero(_) => self.attributes.label.as_ref().map_or("zero", |label| &label.value),
            What::Part { name, .. } => name,
        }
    }
}

struct Word {
    /// Without backslashes.
    text: String,
    range: Range<usize>,
    /// The character that ended it.
    stop: Option<char>,
}

struct Reader<'a> {
    source: &'a Source,
}

impl Reader<'_> {
    fn refuse(&self, range: Range<usize>, reason: &str) -> Diagnostic {
        Diagnostic::error(self.source, Span { start: range.start, end: range.end }, reason)
    }

    /// The text from `start` up to one of `stops` that has no backslash before it.
    fn word(&self, start: usize, stops: &str) -> Result<Word, Diagnostic> {
        let mut text = String::new();
        let mut chars = self.source.text().char_indices().skip_while(|(at, _)| *at < start);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some((_, c)) => text.push(c),
                    None => {
                        return Err(self
                            .refuse(at..at + 1, "a backslash at the end")
                            .expected("the character that is to stand for itself behind it; two for a backslash"));
                    }
                },
                c if stops.contains(c) => return Ok(Word { text, range: start..at, stop: Some(c) }),
                c => text.push(c),
            }
        }
        Ok(Word { text, range: start..self.source.text().len(), stop: None })
    }

    /// A size, which must not be 0, and where it ends.
    fn size(&self, start: usize, stops: &str, missing: &str) -> Result<(u64, usize), Diagnostic> {
        let (sectors, end) = self.sectors(start, stops, missing)?;
        if sectors == 0 {
            return Err(self.refuse(start..end, "a piece of no sectors").found("0").expected("1 sector or more"));
        }
        Ok((sectors, end))
    }

    fn sectors(&self, start: usize, stops: &str, missing: &str) -> Result<(u64, usize), Diagnostic> {
        let word = self.word(start, stops)?;
        let sectors = size::sectors(&word.text).map_err(|expected| match word.text.is_empty() {
            true => self.refuse(word.range.clone(), missing).expected(expected),
            false => {
                let found = format!("{:?}", word.text);
                self.refuse(word.range.clone(), "not a size").found(found).expected(expected)
            }
        })?;
        Ok((sectors, word.range.end))
    }

    fn part(&self, name: &Word, path: &Word) -> Result<(What, usize), Diagnostic> {
        if name.text.is_empty() {
            return Err(self.refuse(name.range.clone(), "no name before the =").expected("a name for the partition"));
        }
        if path.text.is_empty() {
            return Err(self.refuse(path.range.clone(), "no path").expected("a file or block device behind the ="));
        }
        // What a table line cannot name (see the lexer of table files).
        if let Some(c) = path.text.chars().find(|c| c.is_whitespace() || c.is_control() || *c == '#') {
            return Err(self
                .refuse(path.range.clone(), "a table cannot name this path")
                .found(format!("the character {c:?}"))
                .help("make a symbolic link to it whose path has no blanks and no #, and give that"));
        }
        let (range, end) = match path.stop {
            Some('@') => {
                let (start, end) = self.sectors(path.range.end + 1, "+,", "no start behind the @")?;
                if self.source.text()[end..].starts_with('+') {
                    let (len, end) = self.size(end + 1, ",", "no length behind the +")?;
                    (Some((start, len)), end)
                } else {
                    let help = "an @ that belongs to the path has a backslash before it: \\@";
                    let diagnostic = self.refuse(path.range.end..end, "a start without a length");
                    return Err(diagnostic.expected("@START+LENGTH").help(help));
                }
            }
            _ => (None, path.range.end),
        };
        Ok((What::Part { name: name.text.clone(), path: path.text.clone(), range }, end))
    }

    /// Reads the attribute at `start`; returns where it ends.
    fn attribute(&self, start: usize, into: &mut Attributes, what: &What) -> Result<usize, Diagnostic> {
        let key = self.word(start, "=,")?;
        let value = if key.stop == Some('=') { Some(self.word(key.range.end + 1, ",")?) } else { None };
        let whole = start..value.as_ref().map_or(key.range.end, |value| value.range.end);
        let end = whole.end;
        let span = Span { start, end };
        if matches!(what, What::Gap(_)) {
            let help = "a gap belongs to no partition; zero=SIZE makes one";
            return Err(self.refuse(whole, "a gap has no attributes").help(help));
        }
        let again = match (key.text.as_str(), &value) {
            ("type", Some(value)) => put(&mut into.kind, self.kind(value)?, span),
            ("guid", Some(value)) => put(&mut into.guid, self.guid(value)?, span),
            ("label", Some(value)) => put(&mut into.label, self.label(value)?, span),
            ("number", Some(value)) => put(&mut into.number, self.number(value)?, span),
            ("bootable", None) => put(&mut into.bootable, (), span),
            ("ro", None) => put(&mut into.read_only, (), span),
            _ => {
                let found = format!("{:?}", &self.source.text()[whole.clone()]);
                return Err(self
                    .refuse(whole, "no such attribute")
                    .found(found)
                    .expected("type=TYPE, guid=GUID, label=TEXT, number=NUMBER, bootable or ro")
                    .help("a comma that belongs to the path or text has a backslash before it: \\,"));
            }
        };
        match again {
            true => Err(self.refuse(whole, "the same attribute again").expected("each at most once")),
            false => Ok(end),
        }
    }

    fn kind(&self, value: &Word) -> Result<Type, Diagnostic> {
        Type::parse(&value.text).ok_or_else(|| {
            self.refuse(value.range.clone(), "no such type of partition")
                .found(format!("{:?}", value.text))
                .expected("a GUID, two hexadecimal digits (of an MBR), or a name")
                .help(format!("names are {}", types::names()))
        })
    }

    fn guid(&self, value: &Word) -> Result<Uuid, Diagnostic> {
        guid(&value.text).ok_or_else(|| {
            self.refuse(value.range.clone(), "not a GUID")
                .found(format!("{:?}", value.text))
                .expected("32 hexadecimal digits as 8-4-4-4-12, not all 0")
        })
    }

    fn label(&self, value: &Word) -> Result<String, Diagnostic> {
        let units = value.text.encode_utf16().count();
        if units > LABEL_LEN {
            let diagnostic = self.refuse(value.range.clone(), "the label is too long");
            return Err(diagnostic.found(format!("{units} units of UTF-16")).expected(format!("at most {LABEL_LEN}")));
        }
        Ok(value.text.clone())
    }

    fn number(&self, value: &Word) -> Result<u32, Diagnostic> {
        value.text.parse().ok().filter(|number| (1..=128).contains(number)).ok_or_else(|| {
            self.refuse(value.range.clone(), "no such number of a partition")
                .found(format!("{:?}", value.text))
                .expected("1 to 128 in a GPT, 1 to 4 in an MBR")
        })
    }
}

/// A GUID in its usual form.
pub fn guid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|guid| !guid.is_nil() && text.len() == 36)
}

/// Whether there was one already.
fn put<T>(place: &mut Option<Given<T>>, value: T, span: Span) -> bool {
    place.replace(Given { value, span }).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> (String, String, Option<(u64, u64)>) {
        match Spec::parse("piece 1", text).unwrap().what {
            What::Part { name, path, range } => (name, path, range),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn names_and_paths_may_have_any_character() {
        let owned = |name: &str, path: &str, range| (name.to_owned(), path.to_owned(), range);
        assert_eq!(part("root=/dev/sda3"), owned("root", "/dev/sda3", None));
        assert_eq!(part("root=disk.img@2048+409600"), owned("root", "disk.img", Some((2048, 409_600))));
        assert_eq!(part("root=disk.img@1MiB+2GiB,ro"), owned("root", "disk.img", Some((2048, 4 << 20))));
        assert_eq!(part(r"a\=b=c=d+e:f"), owned("a=b", "c=d+e:f", None));
        assert_eq!(part(r"a=x\@1+2\,y@3+4"), owned("a", "x@1+2,y", Some((3, 4))));
        assert_eq!(part(r"\gap=x\\y"), owned("gap", r"x\y", None));
    }

    #[test]
    fn attributes_are_read() {
        let spec = Spec::parse("piece 1", r"zero=1MiB,type=swap,label=a\,b,bootable,ro,number=7").unwrap();
        assert_eq!(spec.what, What::Zero(2048));
        assert_eq!(spec.name(), "a,b");
        assert_eq!(spec.attributes.number.unwrap().value, 7);
        assert!(spec.attributes.bootable.is_some() && spec.attributes.read_only.is_some());
    }
}
