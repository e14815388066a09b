//! The concise form: `name,uuid,minor,flags,table[,table]…[;…]`, as `dmsetup create --concise` reads it.

use std::fmt;
use std::ops::Range;

use crate::lexer::{self, Text};
use crate::names::Names;
use crate::plain::read_table;
use crate::table::{Device, TableFile};
use crate::{DevRef, Diagnostic, Source, Span};

/// Largest minor number: the kernel has 20 bits for it.
const MAX_MINOR: u32 = (1 << 20) - 1;
const FIELDS: [&str; 5] = ["name", "uuid", "minor", "flags", "table"];
const FORM: &str = "name,uuid,minor,flags,table[,table]…[;name,…], of which uuid, minor and flags may be empty";

/// Reads a concise source, one device after the other, each checked whole before the next is looked at.
pub(crate) fn parse(source: &Source, guessed: bool) -> Result<Vec<Device>, Diagnostic> {
    let mut names = Names::default();
    let mut devices = Vec::new();
    let mut entries = Entries { source, at: 0, guessed };
    while let Some(fields) = entries.next()? {
        devices.push(device(source, &fields, &mut names)?);
    }
    Ok(devices)
}

fn device(source: &Source, fields: &[Text<'_>; 5], names: &mut Names) -> Result<Device, Diagnostic> {
    let [name, uuid, minor, flags, table] = fields;
    let minor = minor_number(source, minor)?;
    let read_only = match flags.as_str() {
        "ro" => true,
        "rw" | "" => false,
        other => {
            let reason = format!("Invalid flags parameter '{other}' must be 'ro' or 'rw' or empty.");
            return Err(Diagnostic::error(source, flags.whole_span(), reason)
                .found(format!("\"{other}\""))
                .expected("ro, rw or nothing, without a blank behind it"));
        }
    };
    let name_span = name.whole_span();
    names.check(source, name.as_str(), name_span)?;
    let uuid = (!uuid.as_str().is_empty()).then(|| (uuid.as_str(), uuid.whole_span()));
    if let Some((uuid, span)) = uuid {
        names.check_uuid(source, uuid, span)?;
    }
    // In dmsetup's order: it reads the table's text, has the device created, then loads the table into it.
    let loading = read_table(source, table, "")?;
    names.claim(source, (name.as_str(), name_span), uuid)?;
    let table = loading.load()?;
    let (name, uuid) = (Some(name.as_str().to_owned()), uuid.map(|(uuid, _)| uuid.to_owned()));
    Ok(Device { name, name_span, uuid, minor, read_only, table })
}

/// dmsetup takes anything here (`atoi`, so that a word is 0). A word is refused, because `disk,,ro,,…`, one
/// comma short, must not become a writable disk.
fn minor_number(source: &Source, field: &Text<'_>) -> Result<Option<u32>, Diagnostic> {
    let text = field.as_str();
    if text.is_empty() {
        return Ok(None);
    }
    let word = &text[lexer::trim(text, 0..text.len())];
    let number = word.strip_prefix('+').unwrap_or(word);
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    match number.parse() {
        Ok(minor) if digits && minor <= MAX_MINOR => Ok(Some(minor)),
        _ => {
            let reason = format!("Invalid minor parameter '{text}' must be a number or empty.");
            Err(Diagnostic::error(source, field.whole_span(), reason)
                .found(format!("\"{text}\""))
                .expected(format!("a decimal number up to {MAX_MINOR}, or nothing"))
                .help(format!("the fields are {FORM}")))
        }
    }
}

/// Cuts the text into devices of five fields each.
struct Entries<'a> {
    source: &'a Source,
    at: usize,
    guessed: bool,
}

impl<'a> Entries<'a> {
    fn next(&mut self) -> Result<Option<[Text<'a>; 5]>, Diagnostic> {
        let text = self.source.text();
        let start = self.at;
        let mut fields = Vec::with_capacity(FIELDS.len());
        let mut field = Text::at(start);
        while self.at < text.len() {
            let special = text[self.at..].find(['\\', ',', ';']);
            let run = special.map_or(text.len(), |at| self.at + at);
            field.push(&text[self.at..run]);
            self.at = run;
            match text.as_bytes().get(run) {
                Some(b'\\') => self.escaped(&mut field)?,
                Some(b',') if fields.len() + 1 < FIELDS.len() => {
                    self.at = lexer::skip_blanks(text, run + 1);
                    fields.push(std::mem::replace(&mut field, Text::at(self.at)));
                }
                Some(b',') => {
                    field.push("\n");
                    self.at = run + 1;
                }
                // A `;`, or the end of the text after a character that stands for itself.
                _ => {
                    fields.push(field);
                    self.at = lexer::skip_blanks(text, text.len().min(run + 1));
                    let five = fields.try_into().map_err(|fields: Vec<Text<'_>>| {
                        let reason = "Five comma-separated fields are required for each device";
                        self.incomplete(start..run, reason, &fields)
                    });
                    return five.map(Some);
                }
            }
        }
        if start == self.at {
            return Ok(None);
        }
        fields.push(field);
        let reason = "Incomplete entry: five comma-separated fields are required for each device";
        let refusal = self.incomplete(start..text.len(), reason, &fields);
        Err(if fields.len() == FIELDS.len() {
            refusal.help("nothing may end with a comma or with an escaped character: put a `;` behind it")
        } else {
            refusal
        })
    }

    /// Takes the character after a backslash as it is.
    fn escaped(&mut self, field: &mut Text<'a>) -> Result<(), Diagnostic> {
        let text = self.source.text();
        let next = self.at + 1;
        let Some(escaped) = text[next..].chars().next() else {
            let reason = "Backslash must be followed by another character at end of string.";
            let span = Span { start: self.at, end: next };
            return Err(Diagnostic::error(self.source, span, reason)
                .found("a backslash at the end")
                .expected("`\\,` `\\;` or `\\\\` for a comma, semicolon or backslash within a field"));
        };
        self.at = next + escaped.len_utf8();
        field.escape();
        field.push(&text[next..self.at]);
        Ok(())
    }

    fn incomplete(&self, entry: Range<usize>, reason: &str, fields: &[Text<'_>]) -> Diagnostic {
        let text = self.source.text();
        let entry = lexer::trim(text, entry);
        let parsed = FIELDS.iter().zip(fields).map(|(name, field)| format!("{name} \"{}\"", field.as_str()));
        let parsed = parsed.collect::<Vec<_>>().join(", ");
        let count = match fields.len() {
            1 => "1 field".to_owned(),
            count => format!("{count} fields"),
        };
        let span = Span { start: entry.start, end: entry.end };
        let refusal = Diagnostic::error(self.source, span, reason).found(format!("{count}: {parsed}")).expected(FORM);
        if self.guessed && entry.start == 0 {
            return refusal.help(
                "taken for the concise form, as it begins with a field and a comma; \
                 the lines of a plain table are <start> <length> <type> [<arguments>]",
            );
        }
        refusal
    }
}

/// A file's devices on one line.
pub(crate) struct Concise<'a>(pub(crate) &'a TableFile);

impl fmt::Display for Concise<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = &self.0.devices;
        for (index, device) in devices.iter().enumerate() {
            if index > 0 {
                f.write_str(";")?;
            }
            // Blanks at a field's start are skipped when it is read, but for the name that the text begins with.
            let name = escaped(device.name.as_deref().unwrap_or_default(), index > 0);
            let uuid = escaped(device.uuid.as_deref().unwrap_or_default(), true);
            write!(f, "{name},{uuid},")?;
            if let Some(minor) = device.minor {
                write!(f, "{minor}")?;
            }
            f.write_str(if device.read_only { ",ro" } else { ",rw" })?;
            for line in &device.table.lines {
                write!(f, ",{} {} {} ", line.start, line.len, line.target.type_name())?;
                line.target.print(f, &|dev: &DevRef| escaped(&dev.text, false))?;
            }
            if device.table.is_empty() {
                f.write_str(",")?;
            }
        }
        // A text must not end in the comma after which an empty table has nothing.
        let ends_empty = devices.last().is_some_and(|device| device.table.is_empty());
        f.write_str(if ends_empty { ";" } else { "" })
    }
}

fn escaped(text: &str, at_field_start: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    let blanks = if at_field_start { lexer::skip_blanks(text, 0) } else { 0 };
    for (at, c) in text.char_indices() {
        if at < blanks || matches!(c, ',' | ';' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
