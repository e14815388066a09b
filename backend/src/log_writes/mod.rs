//! The log of `log-writes`: its format on the device, its reader, and the command that replays it.
//!
//! The format is that of Linux' `dm-log-writes.c`, so the kernel's logs are read here, and `replay-log` of xfstests reads
//! ours. All numbers are little-endian. A block is a logical block of the device whose writes are logged; `sector` and
//! `nr_sectors` count blocks.
//!
//! ```text
//! block 0   super   u64 magic, u64 version (1), u64 entries, u32 bytes of a block
//! block 1   entry   u64 sector, u64 nr_sectors, u64 flags, u64 data_len; of a mark, data_len bytes of text follow
//!           data    nr_sectors blocks; none of a discard
//!           entry   ...
//! ```

pub mod command;
mod image;
mod reader;
mod replay;

use std::fmt;

pub use image::Image;
pub use reader::{At, Entries, Log, LogError};
pub use replay::{Points, Replay, ReplayError, Until};

/// What block 0 begins with.
pub const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The one version that there is.
pub const VERSION: u64 = 1;
/// Bytes of an entry's header; the rest of its block is a mark's text, or zeroes.
pub const HEADER: usize = 32;
/// Bytes of the super block that mean something.
pub const SUPER: usize = 28;
/// Bytes of the smallest block, and of the largest: a page of the machines that have large ones.
pub const BLOCKS: std::ops::RangeInclusive<u32> = 512..=65536;
/// What the kernel, and [`crate::targets`], write when a log ends.
pub const END_MARK: &str = "dm-log-writes-end";

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u64);

impl Flags {
    /// A flush: what is before it in the log was complete before it began.
    pub const FLUSH: Flags = Flags(1);
    /// A write that was complete only when it was durable.
    pub const FUA: Flags = Flags(2);
    /// A discard.
    pub const DISCARD: Flags = Flags(4);
    /// A mark.
    pub const MARK: Flags = Flags(8);
    /// A write of a file system's metadata. Guests do not tell us; the kernel logs it.
    pub const METADATA: Flags = Flags(16);

    const NAMES: [(Flags, &str); 5] = [
        (Flags::FLUSH, "FLUSH"),
        (Flags::FUA, "FUA"),
        (Flags::DISCARD, "DISCARD"),
        (Flags::MARK, "MARK"),
        (Flags::METADATA, "METADATA"),
    ];

    /// Whether it has one of those.
    pub fn has(self, any: Flags) -> bool {
        self.0 & any.0 != 0
    }

    /// Those of both.
    pub fn with(self, more: Flags) -> Flags {
        Flags(self.0 | more.0)
    }

    /// Whether there are others than this version has.
    fn unknown(self) -> bool {
        self.0 & !Flags::NAMES.iter().fold(0, |all, (flag, _)| all | flag.0) != 0
    }
}

/// As `replay-log` prints them: `0x3(FLUSH|FUA)`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Flags::NAMES.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| *name).collect();
        let names = if names.is_empty() { "NONE".to_owned() } else { names.join("|") };
        write!(f, "{:#x}({names})", self.0)
    }
}

/// What block 0 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Super {
    /// Entries that are counted. What is behind them is not part of the log.
    pub entries: u64,
    /// Bytes of a block.
    pub block: u32,
}

impl Super {
    /// The beginning of its block.
    pub fn encode(&self) -> [u8; SUPER] {
        let mut bytes = [0; SUPER];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.entries.to_le_bytes());
        bytes[24..].copy_from_slice(&self.block.to_le_bytes());
        bytes
    }
}

/// An entry's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// First block of the device.
    pub sector: u64,
    /// Blocks.
    pub nr_sectors: u64,
    /// What it is.
    pub flags: Flags,
    /// Bytes of a mark's text.
    pub data_len: u64,
}

impl Header {
    /// The beginning of its block.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let numbers = [self.sector, self.nr_sectors, self.flags.0, self.data_len];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Out of the beginning of its block.
    pub fn decode(bytes: &[u8; HEADER]) -> Header {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Header { sector: number(0), nr_sectors: number(8), flags: Flags(number(16)), data_len: number(24) }
    }

    /// Blocks of data that follow its own.
    pub fn data_blocks(&self) -> u64 {
        if self.flags.has(Flags::DISCARD) { 0 } else { self.nr_sectors }
    }
}

/// What of a mark's name fits into a block, as the kernel cuts it.
pub fn cut(name: &str, block: u32) -> &[u8] {
    let most = (block as usize).saturating_sub(HEADER + 1);
    name.as_bytes().get(..most).unwrap_or(name.as_bytes())
}
