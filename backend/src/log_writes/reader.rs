//! A log as untrusted bytes.

use std::io;

use super::{BLOCKS, Flags, HEADER, Header, MAGIC, SUPER, Super, VERSION};
use crate::inspect::Bytes;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes cannot be read.
    #[error("{what}, at byte {at} of the log: {source}")]
    Io {
        /// What is there.
        what: String,
        /// Where, in bytes.
        at: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// It does not begin as a log does.
    #[error("no log of log-writes: {0}")]
    NoLog(String),
    /// An entry that no log has.
    #[error("entry {entry}, at byte {at} of the log: {what}")]
    Entry {
        /// Its number, from 0.
        entry: u64,
        /// Where, in bytes.
        at: u64,
        /// What is wrong.
        what: String,
    },
}

/// A log that begins as one does. What follows is judged as it is read.
pub struct Log<'a> {
    bytes: &'a dyn Bytes,
    size: u64,
    /// What its first block says.
    pub head: Super,
}

/// An entry and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Its number, from 0.
    pub number: u64,
    /// Its first byte in the log.
    pub at: u64,
    /// Its numbers. They are inside the log, and their bytes on the device have 64-bit numbers.
    pub header: Header,
    block: u32,
}

impl At {
    /// Where its data begins in the log, in bytes.
    pub fn data(&self) -> u64 {
        self.at + u64::from(self.block)
    }

    /// Bytes of the device that it is about: the first, and how many.
    pub fn range(&self) -> (u64, u64) {
        let block = u64::from(self.block);
        (self.header.sector * block, self.header.nr_sectors * block)
    }

    /// Where the next entry begins, in bytes.
    pub fn end(&self) -> u64 {
        self.data() + self.header.data_blocks() * u64::from(self.block)
    }

    fn wrong(&self, what: impl Into<String>) -> LogError {
        LogError::Entry { entry: self.number, at: self.at, what: what.into() }
    }
}

impl<'a> Log<'a> {
    /// Reads the first block of a log of `size` bytes.
    ///
    /// # Errors
    /// It is no log.
    pub fn new(bytes: &'a dyn Bytes, size: u64) -> Result<Log<'a>, LogError> {
        let mut head = [0; SUPER];
        if size < SUPER as u64 {
            return Err(LogError::NoLog(format!("it has {size} bytes, fewer than a super block")));
        }
        let what = || "the super block".to_owned();
        bytes.read(0, &mut head).map_err(|source| LogError::Io { what: what(), at: 0, source })?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (magic, version, entries) = (number(0), number(8), number(16));
        let block = u32::from_le_bytes(std::array::from_fn(|i| head[24 + i]));
        if magic != MAGIC {
            let hint = "a log-writes target writes it with the first flush, FUA write or mark";
            return Err(LogError::NoLog(format!("its magic number is {magic:#x}, not {MAGIC:#x}; {hint}")));
        }
        if version != VERSION {
            return Err(LogError::NoLog(format!("its version is {version}, not {VERSION}")));
        }
        if !block.is_power_of_two() || !BLOCKS.contains(&block) {
            let (least, most) = (BLOCKS.start(), BLOCKS.end());
            let what = format!("its blocks have {block} bytes, not a power of two from {least} to {most}");
            return Err(LogError::NoLog(what));
        }
        Ok(Log { bytes, size, head: Super { entries, block } })
    }

    /// Its entries, from the first on.
    pub fn entries(&self) -> Entries<'_> {
        Entries { log: self, next: 0, at: u64::from(self.head.block), failed: false }
    }

    /// A mark's text.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(&self, entry: &At) -> Result<Vec<u8>, LogError> {
        if !entry.header.flags.has(Flags::MARK) {
            return Ok(Vec::new());
        }
        let mut text = vec![0; entry.header.data_len as usize];
        self.read(entry.number, entry.at + HEADER as u64, &mut text)?;
        Ok(text)
    }

    /// Bytes of an entry's data.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn data(&self, entry: &At, skip: u64, to: &mut [u8]) -> Result<(), LogError> {
        self.read(entry.number, entry.data() + skip, to)
    }

    fn read(&self, entry: u64, at: u64, to: &mut [u8]) -> Result<(), LogError> {
        let io = |source| LogError::Io { what: format!("entry {entry}"), at, source };
        self.bytes.read(at, to).map_err(io)
    }

    fn entry(&self, number: u64, at: u64) -> Result<At, LogError> {
        let block = u64::from(self.head.block);
        let bare = At { number, at, header: Header::default(), block: self.head.block };
        let Some(left) = self.size.checked_sub(at).and_then(|left| left.checked_sub(block)) else {
            let (entries, size) = (self.head.entries, self.size);
            return Err(
                bare.wrong(format!("the log ends at byte {size}, but has {entries} entries by its own account"))
            );
        };
        // One byte more: what tells a header from data, to some degree.
        let mut bytes = [0; HEADER + 1];
        self.read(number, at, &mut bytes)?;
        let header = Header::decode(&std::array::from_fn(|i| bytes[i]));
        let entry = At { header, ..bare };
        entry.judge(bytes[HEADER], left)?;
        Ok(entry)
    }
}

impl At {
    /// Whether it is one that a log can have, with so many bytes behind its block.
    fn judge(&self, padding: u8, left: u64) -> Result<(), LogError> {
        let Header { sector, nr_sectors, flags, data_len } = self.header;
        let block = u64::from(self.block);
        let data = nr_sectors.checked_mul(block);
        let end = sector.checked_add(nr_sectors).and_then(|end| end.checked_mul(block));
        let (Some(data), Some(_)) = (data, end) else {
            return Err(self.wrong(format!("it is about {nr_sectors} blocks from {sector} on, which no device has")));
        };
        if flags.unknown() {
            return Err(self.wrong(format!("its flags are {:#x}, of which some mean nothing in this version", flags.0)));
        }
        if flags.0 == 0 && nr_sectors == 0 {
            return Err(self.wrong("it is a write of nothing: there was never an entry here"));
        }
        if flags.has(Flags::MARK) {
            let most = block - HEADER as u64;
            return match (flags == Flags::MARK && nr_sectors == 0, data_len <= most) {
                (false, _) => {
                    Err(self.wrong(format!("it is a mark with {nr_sectors} blocks of data and flags {flags}")))
                }
                (_, false) => Err(self.wrong(format!("its text has {data_len} bytes, and its block room for {most}"))),
                (true, true) => Ok(()),
            };
        }
        if padding != 0 {
            return Err(self.wrong("its block holds more than an entry does: this is data"));
        }
        if data_len > data {
            return Err(self.wrong(format!("its data has {data_len} bytes in {nr_sectors} blocks")));
        }
        if !flags.has(Flags::DISCARD) && data > left {
            return Err(self.wrong(format!("its {data} bytes of data go {} bytes behind the log's end", data - left)));
        }
        Ok(())
    }
}

/// Entries in order. Nothing follows an error.
pub struct Entries<'a> {
    log: &'a Log<'a>,
    next: u64,
    at: u64,
    failed: bool,
}

impl Iterator for Entries<'_> {
    type Item = Result<At, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.next >= self.log.head.entries {
            return None;
        }
        let entry = self.log.entry(self.next, self.at);
        match &entry {
            Ok(entry) => (self.next, self.at) = (self.next + 1, entry.end()),
            Err(_) => self.failed = true,
        }
        Some(entry)
    }
}
