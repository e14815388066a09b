//! A disk that was put together: its segments, the bytes of what lies around the partitions, and the table's text.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layout::Back;
use crate::inspect;

/// How the text of every table that was made here begins, but for the name of a device.
pub const MARK: &str = "# made by vhost-user-dm assemble";

/// How the name of a device ends that has what is read-only of another.
const BELOW: &str = "-ro";

/// What of a disk a guest may write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    All,
    Some,
    Nothing,
}

/// Where a segment's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// In the file of the header, from this sector on.
    Head(u64),
    /// In the file of what is at the end.
    Tail,
    /// Nowhere.
    Zero,
    /// It must not be used.
    Error,
    /// In a file or device of the host.
    Linear {
        /// Its path.
        path: String,
        /// First sector on it.
        start: u64,
        /// The guest may read it and not write it.
        frozen: bool,
    },
}

impl From {
    /// What is behind a partition, for a guest that may write it unless it is `frozen`.
    pub fn back(back: &Back, frozen: bool) -> From {
        match back {
            Back::Zero => From::Zero,
            Back::Linear { path, start } => From::Linear { path: path.clone(), start: *start, frozen },
        }
    }
}

/// A range of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sectors.
    pub len: u64,
    /// Where they are.
    pub from: From,
    /// What a comment says of it.
    pub comment: Option<String>,
}

/// A line of the report on a partition.
#[derive(Clone, Debug)]
pub struct Row {
    /// Number in the partition table.
    pub number: u32,
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// Name, type and where it is.
    pub what: String,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// The disk.
#[derive(Debug, Default)]
pub struct Product {
    /// What it is, in a few words.
    pub what: String,
    /// Segments in order, from sector 0 on.
    pub segments: Vec<Segment>,
    /// Bytes of the header's file.
    pub head: Vec<u8>,
    /// Bytes of the file of what is at the end; empty where there is none.
    pub tail: Vec<u8>,
    /// Its partitions.
    pub rows: Vec<Row>,
    /// Bytes in a logical block.
    pub block: u64,
    /// The parts of the host that the guest gets.
    pub doubted: Vec<inspect::Piece>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Whether there is something that UEFI firmware can start.
    pub uefi: bool,
}

/// The files of a disk.
#[derive(Clone, Debug)]
pub struct Files {
    /// The table.
    pub table: PathBuf,
    /// The header.
    pub head: PathBuf,
    /// What is at the end.
    pub tail: PathBuf,
}

impl Files {
    /// `NAME.head` and `NAME.tail` beside `NAME.table`.
    ///
    /// # Errors
    /// Why these names cannot be used.
    pub fn beside(table: &Path) -> Result<Files, String> {
        let shown = table.display();
        let absolute = std::path::absolute(table).map_err(|error| format!("{shown}: {error}"))?;
        let unfit = |c: char| c.is_whitespace() || c.is_control() || c == '#';
        match absolute.to_str() {
            Some(text) if !text.contains(unfit) => {}
            _ => {
                return Err(format!(
                    "{shown}: a table cannot name files there: their path has blanks, a # or characters that are not \
                     UTF-8; write it to another directory"
                ));
            }
        }
        if absolute.file_name().is_none() || absolute.is_dir() {
            return Err(format!("{shown}: it is a directory; give the name of a file: -o {shown}/disk.table"));
        }
        let stem = if absolute.extension().is_some_and(|e| e == "table") {
            absolute.with_extension("")
        } else {
            absolute.clone()
        };
        let with = |extension: &str| {
            let mut name = stem.clone().into_os_string();
            name.push(extension);
            PathBuf::from(name)
        };
        Ok(Files { head: with(".head"), tail: with(".tail"), table: absolute })
    }
}

impl Product {
    /// Appends a segment; zeroes that follow on zeroes are one.
    pub fn push(&mut self, len: u64, from: From, comment: Option<String>) {
        if len == 0 {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.from == from && comment.is_none() && matches!(from, From::Zero | From::Error) => {
                // A partition of zeroes stays apart from what is unused.
                match last.comment {
                    None => last.len += len,
                    Some(_) => self.segments.push(Segment { len, from, comment }),
                }
            }
            _ => self.segments.push(Segment { len, from, comment }),
        }
    }

    /// Makes all of it read-only.
    pub fn freeze(&mut self) {
        for segment in &mut self.segments {
            if let From::Linear { frozen, .. } = &mut segment.from {
                *frozen = true;
            }
        }
        self.doubted.iter_mut().for_each(|piece| piece.write = false);
    }

    /// What of the disk the guest may write.
    fn access(&self) -> Access {
        let is = |wanted: bool| {
            self.segments
                .iter()
                .any(|segment| matches!(&segment.from, From::Linear { frozen, .. } if *frozen == wanted))
        };
        match (is(true), is(false)) {
            (false, _) => Access::All,
            (true, false) => Access::Nothing,
            (true, true) => Access::Some,
        }
    }

    /// The table, made by `command`. Where the guest may not write all of it, in the concise form, which can say that of a
    /// device: of the disk, or of one below it that has all that is read-only, one piece behind the other.
    pub fn table(&self, files: &Files, command: &str) -> String {
        let access = self.access();
        let stem = files.table.file_stem().unwrap_or_default().to_string_lossy();
        let name = dm_table::mangle(&stem).unwrap_or_else(|| "disk".to_owned());
        let below = format!("{name}{BELOW}");
        let mut lines = vec![format!("{MARK}: {}", self.what), format!("# {command}")];
        for (path, bytes) in [(&files.head, &self.head), (&files.tail, &self.tail)] {
            if !bytes.is_empty() {
                lines.push(mark(path, bytes));
            }
        }
        let (mut start, mut lower, mut lower_len) = (0, Vec::new(), 0);
        for segment in &self.segments {
            if let Some(comment) = &segment.comment {
                lines.push(format!("# {comment}"));
            }
            let len = segment.len;
            lines.push(match &segment.from {
                From::Head(at) => format!("{start} {len} linear {} {at}", files.head.display()),
                From::Tail => format!("{start} {len} linear {} 0", files.tail.display()),
                From::Zero => format!("{start} {len} zero"),
                From::Error => format!("{start} {len} error"),
                From::Linear { path, start: at, frozen: true } if access == Access::Some => {
                    lower.push(format!("{lower_len} {len} linear {path} {at}"));
                    lower_len += len;
                    format!("{start} {len} linear /dev/mapper/{below} {}", lower_len - len)
                }
                From::Linear { path, start: at, .. } => format!("{start} {len} linear {path} {at}"),
            });
            start += len;
        }
        match access {
            Access::All => joined(&lines),
            Access::Nothing => device(&name, "ro", &lines),
            Access::Some => format!("{}{}", device(&name, "rw", &lines), device(&below, "ro", &lower)),
        }
    }
}

/// Nothing of what the host's tables say begins a line of its own.
fn joined(lines: &[String]) -> String {
    let line = |line: &String| line.replace(|c: char| c.is_control() && c != '\t', " ") + "\n";
    lines.iter().map(line).collect()
}

/// A device in the concise form.
fn device(name: &str, access: &str, lines: &[String]) -> String {
    let special = |c: char| matches!(c, '\\' | ',' | ';');
    let escape =
        |text: &str| text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect::<String>();
    format!("{},,,{access},\n{};\n", escape(name), escape(joined(lines).trim_end()))
}

/// A line that tells which bytes were written to a file.
pub fn mark(path: &Path, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("# {digest}  {}", path.file_name().unwrap_or_default().to_string_lossy())
}
