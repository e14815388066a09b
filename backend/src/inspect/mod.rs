//! What pieces of a disk contain, and what is doubtful about making a disk of them.
//!
//! [`look`] reads the superblock or label at the beginning of a piece (and, for md, at its end). It believes nothing that
//! it reads: sizes and offsets on the medium are numbers that somebody else wrote. [`findings`] tells what speaks against
//! giving pieces to a guest.

mod assembled;
pub(crate) mod bytes;
pub mod commands;
pub mod export;
mod fat;
mod findings;
mod labels;
mod layout;
mod linux;
mod ntfs;
mod show;
mod snippets;
mod svg;
mod verdict;
mod xfs;

use std::fs::File;
use std::io;
use std::path::Path;

use serde::Serialize;

pub use assembled::Assembled;
use bytes::{Begun, Medium};
pub use bytes::{Bytes, Window};
pub use findings::{Finding, IDS, Inside, Piece, Severity, findings, force};
pub use layout::{Layout, Part};
pub(crate) use ntfs::busy as busy_of_ntfs;
pub(crate) use verdict::components;
pub use verdict::{Judging, Verdict, doubts, judge};

/// What the beginning of a piece says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// ext2: without a journal.
    Ext2,
    /// ext3: with a journal, without what ext4 brought.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    Exfat,
    /// A device of a btrfs.
    Btrfs,
    /// Swap of Linux.
    Swap,
    /// LUKS, version 1 or 2.
    Luks,
    /// A physical volume of LVM2.
    Lvm,
    /// A member of an md array.
    Md,
    /// ISO 9660, with a partition table or without.
    Iso9660,
    /// A GUID partition table.
    Gpt,
    /// The copy of a GUID partition table that the end of a disk has.
    GptCopy,
    /// A DOS partition table.
    Mbr,
    /// A BSD disklabel.
    Disklabel,
    /// Nothing but zeroes where any of the above would be.
    Blank,
    /// Something else.
    #[default]
    Unknown,
}

/// What a piece contains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// File system, label or member of something.
    pub kind: Kind,
    /// Bytes that it takes by its own account, from the piece's first.
    pub size: Option<u64>,
    /// Its name.
    pub label: Option<String>,
    /// Its UUID or serial number, as blkid prints it; for a partition table, the disk's GUID or signature.
    pub uuid: Option<String>,
    /// Its journal is to be replayed, or it was not unmounted, as far as the superblock tells.
    pub dirty: bool,
    /// It holds the memory of a system that sleeps, and that system thinks that it still has it mounted.
    pub hibernated: bool,
    /// Of a partition table, the partitions in the order of their numbers.
    pub partitions: Vec<Partition>,
    /// Of a partition table, the sectors of 512 bytes at the beginning that it takes and that no partition may.
    pub reserved: u64,
    /// And those at the end, of its copy.
    pub reserved_end: u64,
}

/// An entry of a partition table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// First sector of 512 bytes.
    pub start: u64,
    /// Length in sectors of 512 bytes.
    pub len: u64,
    /// Type: a GUID, or two hexadecimal digits.
    pub kind: String,
    /// Name in a GPT.
    pub name: Option<String>,
    /// GUID in a GPT.
    pub uuid: Option<String>,
}

impl Kind {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "XFS",
            Kind::Ntfs => "NTFS",
            Kind::Fat => "FAT",
            Kind::Exfat => "exFAT",
            Kind::Btrfs => "btrfs",
            Kind::Swap => "swap",
            Kind::Luks => "LUKS",
            Kind::Lvm => "LVM2 physical volume",
            Kind::Md => "md array member",
            Kind::Iso9660 => "ISO 9660",
            Kind::Gpt => "GPT",
            Kind::GptCopy => "copy of a GPT",
            Kind::Mbr => "MBR partition table",
            Kind::Disklabel => "BSD disklabel",
            Kind::Blank => "blank",
            Kind::Unknown => "unknown data",
        }
    }

    /// Whether it divides a disk into partitions.
    pub fn is_partition_table(self) -> bool {
        matches!(self, Kind::Gpt | Kind::Mbr | Kind::Disklabel)
    }
}

impl Contents {
    fn of(kind: Kind) -> Contents {
        Contents { kind, ..Contents::default() }
    }

    /// One line for people: `ext4 "root", 10.0 GiB, journal to be replayed`.
    pub fn describe(&self) -> String {
        let mut text = self.kind.name().to_owned();
        if let Some(label) = self.label.as_ref().filter(|label| !label.is_empty()) {
            text.push_str(&format!(" {label:?}"));
        }
        if self.kind.is_partition_table() {
            text.push_str(&format!(" of {}", crate::check::count(self.partitions.len(), "partition")));
        } else if let Some(size) = self.size {
            text.push_str(&format!(", {}", crate::check::human(size)));
        }
        if self.hibernated {
            text.push_str(", hibernated");
        } else if self.dirty {
            text.push_str(", not cleanly unmounted");
        }
        text
    }
}

/// A reader of one kind of contents.
type Probe = fn(&Medium<'_>) -> io::Result<Option<Contents>>;

/// In this order: what wraps other contents, and what has a magic of its own, before what resembles much (FAT) and what is
/// at the beginning of file systems too (a master boot record).
const PROBES: [Probe; 15] = [
    linux::luks,
    lvm,
    linux::md,
    linux::swap,
    xfs::xfs,
    linux::btrfs,
    linux::ext,
    ntfs::ntfs,
    fat::exfat,
    linux::iso,
    fat::fat,
    labels::gpt,
    labels::disklabel,
    labels::mbr,
    labels::gpt_copy,
];

/// A physical volume. One with a damaged label is none.
fn lvm(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let header = match crate::lvm::label::header(medium.bytes, medium.size) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        header => header?,
    };
    let as_contents = |header: crate::lvm::label::Header| Contents {
        size: Some(header.size),
        uuid: Some(header.uuid),
        ..Contents::of(Kind::Lvm)
    };
    Ok(header.map(as_contents))
}

/// Bytes at the beginning that hold one of all the marks that are looked for there.
const MARKED: u64 = 68 << 10;

/// What the `size` bytes behind `reader` contain.
///
/// # Errors
/// The reader's. That nothing is recognised is none.
pub fn look(reader: &dyn Bytes, size: u64) -> io::Result<Contents> {
    let begin = Begun::new(reader, size.min(MARKED) as usize);
    let medium = Medium { bytes: &begin, size };
    for probe in PROBES {
        if let Some(contents) = probe(&medium)? {
            return Ok(contents);
        }
    }
    let begin = medium.get(0, size.min(MARKED) as usize)?.unwrap_or_default();
    let zeroes = [0; 4096];
    let blank = begin.chunks(zeroes.len()).all(|chunk| zeroes.get(..chunk.len()) == Some(chunk));
    Ok(Contents::of(if blank { Kind::Blank } else { Kind::Unknown }))
}

/// What `len` bytes at byte `at` of a file or block device contain. It is opened for reading, without locks, and only for
/// this moment.
///
/// # Errors
/// The system's.
pub fn look_at_path(path: &Path, at: u64, len: u64) -> io::Result<Contents> {
    let file = File::open(path)?;
    look(&Window { bytes: &file, start: at, len }, len)
}
