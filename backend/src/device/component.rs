//! An open component device and what is known about it.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use dm_table::Sectors;

use crate::guest::Mapping;

use super::error::OpenError;
use super::facts;
use super::limits::{DiscardMethod, Limits};
use super::opening::Opening;
use super::unflushed::Unflushed;

/// How the data of components may be cached on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Direct where the file system and the alignment allow it, else through the page cache.
    #[default]
    Auto,
    /// Direct, or refused.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// How a component's file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// With `O_DIRECT`.
    Direct {
        /// Alignment that buffers need, in bytes; a power of two.
        mem_align: u32,
        /// Alignment that offsets and lengths need, in bytes; at most the logical block.
        offset_align: u32,
    },
    /// Through the page cache.
    Buffered,
    /// The file lies in memory (tmpfs, ramfs, hugetlbfs) and is mapped: transfers are copies.
    Mapped,
}

/// What a component device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file (an extension: dmsetup takes block devices only).
    File,
    /// A block device or partition.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// What makes two opened paths the same component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A regular file, by file system and inode, whatever path or link leads to it.
    File {
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        inode: u64,
    },
    /// A block device, by its number, whatever node or link leads to it.
    Block {
        /// `st_rdev`.
        rdev: u64,
    },
}

/// How components are to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Open for reading alone; nothing is ever written and other readers are welcome.
    pub read_only: bool,
    /// Caching of the data on this machine.
    pub cache: Cache,
    /// The process that serves it now hands it over later: see `handover`. Meaningless for reading alone.
    pub incoming: bool,
}

/// An open component device as it was at one moment. Opened by [`super::Registry::open`], closed when its last user drops
/// it.
///
/// A device that has grown or shrunk, or whose limits have changed, is another `Component` for who opens it afterwards;
/// this one goes on as it is. Both have the same open file, locks, claim and memory of what is not flushed.
#[derive(Debug)]
pub struct Component {
    pub(super) opening: Arc<Opening>,
    /// The kernel's disk name (`vda1`) or the file's name (`disk.img`).
    pub name: String,
    /// The path as the user wrote it; for `major:minor` the device node that was found.
    pub path: PathBuf,
    /// File or block device.
    pub kind: Kind,
    /// What makes another path the same component.
    pub identity: Identity,
    /// Whole sectors of the device, when this was made of it.
    pub size: Sectors,
    /// What the device can do.
    pub limits: Limits,
    /// Whether the file is open for reading alone.
    pub read_only: bool,
    /// Direct, buffered or mapped.
    pub access: Access,
    /// The mapping of a file that is mapped.
    pub mapping: Option<Mapping>,
    /// What was written and is not flushed. `None` for files that are mapped, and for those that are not written.
    pub unflushed: Option<Arc<Unflushed>>,
    /// What the user should know although it refuses nothing, to be printed after the path.
    pub warnings: Vec<String>,
}

impl Component {
    /// The open file. Image locks and an exclusive claim belong to its open file description, so they last until the
    /// kernel has dropped the last reference to it, including that of a write in flight. It is another one after a
    /// block device has been handed over.
    pub fn file(&self) -> Arc<File> {
        self.opening.file()
    }

    /// A disk that leads to the component starts to be served: locks it for the use that it was opened for, and claims it for
    /// writing, unless that was done before. Tells whether it was not.
    ///
    /// # Errors
    /// Who else has it. It is to be tried again only as long as there is hope.
    pub(crate) fn take(&self) -> Result<bool, OpenError> {
        self.opening.take()
    }

    /// A disk does not lead to the component any more, because its table has changed. Nothing of it is under way. Locks and
    /// claim stay, for whoever else has the component; they go with the open file.
    pub(crate) fn leave(&self) {
        self.opening.leave();
    }

    /// A disk that leads to the component is not served any more, and another process will take it. Nothing of the disk is
    /// under way. Locks and claim go with the last such disk. Disks that only read the component, or write it, are in the way
    /// of who takes it as long as one of them is served: tells whether none is.
    pub(crate) fn give_up(&self) -> bool {
        self.opening.give_up()
    }

    /// The same of a disk that was not served after all, and whose taking the component locked it: all is as before that.
    pub(crate) fn put_back(&self) {
        self.opening.put_back();
    }

    /// Brings to the disk what this process has written to the component: all writes that have ended. Waits for the
    /// device, so it is not for a worker.
    ///
    /// # Errors
    /// What was written is lost, or may be, now or since an earlier flush: as a guest's flush is told.
    pub fn sync(&self) -> io::Result<()> {
        self.opening.sync()
    }

    /// Brings what was written to where another process, perhaps on another machine, will find it, as QEMU does before it
    /// hands an image over.
    ///
    /// # Errors
    /// What was written is lost, or may be: the next owner would not know.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.opening.settle()
    }

    /// Whole sectors of the device now; `size` is what it had when it was opened.
    ///
    /// # Errors
    /// The system's.
    pub fn current_size(&self) -> io::Result<Sectors> {
        facts::size_in_bytes(&self.file()).map(Sectors::from_bytes_floor)
    }

    /// One line for people: `disk.img: file, 40960 sectors, 512-byte blocks, direct (512-byte buffers),
    /// discard by hole punching, read-write`.
    pub fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::File => "file".to_owned(),
            Kind::Block { major, minor } => format!("block device {major}:{minor}"),
        };
        let mut line = format!(
            "{}: {kind}, {} sectors, {}-byte blocks",
            self.path.display(),
            self.size,
            self.limits.logical_block
        );
        // Writing to a String cannot fail.
        let _ = match self.access {
            Access::Direct { mem_align, .. } => write!(line, ", direct ({mem_align}-byte buffers)"),
            Access::Buffered => write!(line, ", buffered"),
            Access::Mapped => write!(line, ", mapped"),
        };
        line.push_str(match self.limits.discard.map(|discard| discard.method) {
            Some(DiscardMethod::PunchHole) => ", discard by hole punching",
            Some(DiscardMethod::BlockCommand) => ", discard by the device",
            None => ", no discard",
        });
        line.push_str(if self.read_only { ", read-only" } else { ", read-write" });
        line
    }
}
