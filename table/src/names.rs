//! Names and uuids of devices: libdm's rules, then the kernel's.

use std::collections::HashMap;
use std::fmt::Write;

use crate::{Diagnostic, Source, Span};

/// Longest name, in bytes of its mangled form.
const NAME_LEN: usize = 127;
/// Longest uuid, in bytes of its mangled form.
const UUID_LEN: usize = 128;

/// Why a string has no mangled form.
#[derive(Debug, PartialEq, Eq)]
struct Mixed;

/// The form that libdm gives to the kernel (its mode `auto`): bytes other than `0-9A-Za-z#+-.:=@_` become
/// `\xNN`; a string that has such parts already, and nothing else that needs them, stays as it is.
fn mangle(text: &str) -> Result<String, Mixed> {
    let mut mangled = String::with_capacity(text.len());
    let (mut had, mut made) = (false, false);
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if bytes[at..].starts_with(b"\\x") {
            let Some(part) = bytes.get(at..at + 4).and_then(|part| std::str::from_utf8(part).ok()) else {
                return Err(Mixed);
            };
            mangled.push_str(part);
            had = true;
            at += 4;
            continue;
        }
        if byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte) {
            mangled.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(mangled, "\\x{byte:02x}");
            made = true;
        }
        at += 1;
    }
    if had && made { Err(Mixed) } else { Ok(mangled) }
}

/// A name as it stands under `/dev/mapper/`, or `None` where it cannot stand there.
pub fn mapper_name(name: &str) -> Option<String> {
    mangle(name).ok()
}

/// A name as people write it: its parts `\xNN` as the bytes that they stand for, where those are text.
pub fn unmangle(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = name.get(at + 2..at + 4).filter(|_| bytes[at..].starts_with(b"\\x"));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(meant) => {
                plain.push(meant);
                at += 4;
            }
            None => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| name.to_owned())
}

/// The names and uuids that a file's devices have taken so far.
#[derive(Default)]
pub(crate) struct Names {
    names: HashMap<String, Span>,
    uuids: HashMap<String, Span>,
}

impl Names {
    /// What libdm refuses about a name before it reads the table.
    pub(crate) fn check(&self, source: &Source, name: &str, span: Span) -> Result<(), Diagnostic> {
        let refuse = |reason: String| Diagnostic::error(source, span, reason).found(quoted(name));
        if name.contains('/') {
            return Err(refuse(format!("Name \"{name}\" invalid. It contains \"/\"."))
                .expected("a name, not a path: the device is found as /dev/mapper/NAME"));
        }
        let too_long = format!("a name of at most {NAME_LEN} bytes");
        if name.len() > NAME_LEN {
            let found = format!("a name of {} bytes", name.len());
            return Err(refuse(format!("Name \"{name}\" too long.")).found(found).expected(too_long));
        }
        match mangle(name) {
            Err(Mixed) => Err(refuse(mixed("name", name)).help(MIXED_HELP)),
            Ok(mangled) if mangled.len() > NAME_LEN => {
                Err(refuse(format!("Mangled form of the name too long for \"{name}\"."))
                    .found(format!("{} bytes: {mangled}", mangled.len()))
                    .expected(too_long))
            }
            Ok(_) => readable("Name", name).map_err(|reason| refuse(reason).help(NO_COMMENTS)),
        }
    }

    /// What libdm refuses about a uuid before it reads the table.
    pub(crate) fn check_uuid(&self, source: &Source, uuid: &str, span: Span) -> Result<(), Diagnostic> {
        let refuse = |reason: String| Diagnostic::error(source, span, reason).found(quoted(uuid));
        match mangle(uuid) {
            Err(Mixed) => Err(refuse(mixed("UUID", uuid)).help(MIXED_HELP)),
            Ok(mangled) if mangled.len() > UUID_LEN => {
                Err(refuse(format!("Mangled form of the UUID too long for \"{uuid}\"."))
                    .found(format!("a uuid of {} bytes", mangled.len()))
                    .expected(format!("a uuid of at most {UUID_LEN} bytes")))
            }
            Ok(_) => readable("UUID", uuid).map_err(refuse),
        }
    }

    /// What the kernel refuses when it creates the device, after the table's text was read.
    pub(crate) fn claim(
        &mut self,
        source: &Source,
        (name, name_span): (&str, Span),
        uuid: Option<(&str, Span)>,
    ) -> Result<(), Diagnostic> {
        let refuse = |span, reason: String| Diagnostic::error(source, span, reason);
        if name.is_empty() {
            return Err(refuse(name_span, "name not supplied when creating device".to_owned())
                .found("an empty name")
                .expected("name,uuid,minor,flags,table"));
        }
        if matches!(name, "control" | "." | "..") {
            return Err(
                refuse(name_span, "device name cannot be \"control\", \".\", or \"..\"".to_owned()).found(quoted(name))
            );
        }
        let busy =
            format!("create ioctl on {name} {} failed: Device or resource busy", uuid.map_or("", |(uuid, _)| uuid));
        let taken = |span, what: &str, text: &str, first: Span| {
            let (line, column) = source.line_col(first.start);
            refuse(span, busy.clone())
                .found(format!("the {what} {} for a second time", quoted(text)))
                .expected(format!("a {what} that no other device of the file has"))
                .help(format!("the first is at line {line}, column {column}"))
        };
        let key = |text: &str| mangle(text).unwrap_or_else(|Mixed| text.to_owned());
        if let Some(first) = self.names.insert(key(name), name_span) {
            return Err(taken(name_span, "name", name, first));
        }
        if let Some((uuid, span)) = uuid
            && let Some(first) = self.uuids.insert(key(uuid), span)
        {
            return Err(taken(span, "uuid", uuid, first));
        }
        Ok(())
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

const MIXED_HELP: &str =
    "a part \\xNN stands for one byte; then every byte other than 0-9A-Za-z#+-.:=@_ must be written so";
const NO_COMMENTS: &str = "the concise form has no comments except inside of tables";

fn mixed(what: &str, text: &str) -> String {
    format!("The {what} \"{text}\" contains mixed mangled and unmangled characters or it's already mangled improperly.")
}

/// libdm takes control characters and mangles them; but a name with a line end in it is a comment, or half a
/// file, that was read as a name.
fn readable(what: &str, text: &str) -> Result<(), String> {
    let control = text.chars().any(char::is_control);
    if control { Err(format!("{what} {} invalid. It contains a control character.", quoted(text))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmangling() {
        assert_eq!(unmangle(r"sp\x20ace"), "sp ace");
        assert_eq!(unmangle(r"\xc3\xa9\x5c"), "é\\");
        assert_eq!(unmangle(r"\xff"), r"\xff");
        assert_eq!(unmangle(r"a\x2"), r"a\x2");
        assert_eq!(unmangle(r"\xé"), r"\xé");
    }

    #[test]
    fn mangling() {
        assert_eq!(mangle("vg-lv_1.2:=@#+"), Ok("vg-lv_1.2:=@#+".to_owned()));
        assert_eq!(mangle("sp ace"), Ok(r"sp\x20ace".to_owned()));
        assert_eq!(mangle("é\\"), Ok(r"\xc3\xa9\x5c".to_owned()));
        assert_eq!(mangle(r"sp\x20ace"), Ok(r"sp\x20ace".to_owned()));
        assert_eq!(mangle(r"a b\x20c"), Err(Mixed));
        assert_eq!(mangle(r"a\x2"), Err(Mixed));
        assert_eq!(mangle(r"a\xé"), Ok(r"a\xé".to_owned()));
        assert_eq!(mangle(r"a\x1é"), Err(Mixed));
    }
}
