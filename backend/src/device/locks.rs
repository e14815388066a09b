//! Image locks between processes, byte for byte as QEMU takes them on its image files.
//!
//! QEMU announces what it does with an image by shared open-file-description locks on single bytes: byte
//! 100 + n says "I use permission n", byte 200 + n says "nobody else may use permission n" (QEMU's
//! `block/file-posix.c` and `docs/system/qemu-block-drivers`, "Disk image file locking"). Whoever comes takes
//! its own bytes first and then looks for a byte of someone else that excludes it, so of two that come
//! together at least one gives way. No byte is ever locked for writing: a lock that is, by whatever program,
//! excludes us too.
//!
//! The locks belong to the open file description, which is also the one that I/O goes through. They end when
//! the kernel drops its last reference to it and not before, so a write that is still in flight after its
//! process died keeps the next owner out; how long that one waits is said in [`super::fence`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, fcntl};

use super::holder::{self, Holder};

const PERMISSION_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// A permission of QEMU's block layer (`BLK_PERM_*`), by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

impl Permission {
    fn used_byte(self) -> i64 {
        PERMISSION_BASE + self as i64
    }

    fn unshared_byte(self) -> i64 {
        UNSHARED_BASE + self as i64
    }

    fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "reading",
            Self::Write => "writing",
            Self::Resize => "resizing",
        }
    }
}

/// What nobody else may do while we serve an image, writable or not: a virtual machine's disk in QEMU
/// (share-rw=off) excludes writers, an export of qemu-storage-daemon excludes resizing; a map needs both.
const UNSHARED: [Permission; 2] = [Permission::Write, Permission::Resize];

/// What we do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

impl Use {
    fn permissions(self) -> &'static [Permission] {
        match self {
            Self::Read => &[Permission::ConsistentRead],
            Self::Write => &[Permission::ConsistentRead, Permission::Write],
        }
    }
}

/// Why the locks were not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Someone else's lock excludes our use.
    Held {
        /// What the other one does or forbids, and who it is where that could be found.
        why: String,
        /// Whether we may still read.
        readable: bool,
        /// Whether it can be expected to end by itself: nobody who lives has these locks.
        passing: bool,
    },
    /// The file system has no locks.
    Unsupported(io::Error),
}

/// Takes the locks for `usage` on the description of `file` and looks for others that exclude it. On a
/// refusal the caller closes the file, which gives back what was taken.
pub(super) fn acquire(file: &File, usage: Use) -> Result<(), Refusal> {
    announce(file, usage)?;
    check(file, usage)
}

/// The first half of [`acquire`]: takes the locks. From then on they exclude all who come later.
pub(super) fn announce(file: &File, usage: Use) -> Result<(), Refusal> {
    let used = usage.permissions().iter().map(|permission| permission.used_byte());
    let unshared = UNSHARED.iter().map(|permission| permission.unshared_byte());
    for byte in used.chain(unshared) {
        set(file, byte, libc::F_RDLCK).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => {
                let holder = holder(file, byte);
                let why = format!("the whole file is locked by {holder}");
                Refusal::Held { why, readable: false, passing: holder.is_passing() }
            }
            _ => Refusal::Unsupported(error),
        })?;
    }
    Ok(())
}

/// Takes the locks of a writer for as long as this description of the file is open; it need not be open for writing. On a file
/// system without locks nobody can be known to have it.
///
/// # Errors
/// Who else has it.
pub(crate) fn lock_alone(file: &File) -> Result<(), String> {
    match acquire(file, Use::Write) {
        Err(Refusal::Held { why, .. }) => Err(why),
        _ => Ok(()),
    }
}

/// The second half of [`acquire`]: looks for locks of other descriptions that exclude `usage`.
pub(super) fn check(file: &File, usage: Use) -> Result<(), Refusal> {
    for permission in UNSHARED {
        if is_locked(file, permission.used_byte())? {
            let holder = holder(file, permission.used_byte());
            let why = format!("{holder} has it open for {}", permission.name());
            return Err(Refusal::Held { why, readable: false, passing: holder.is_passing() });
        }
    }
    for permission in usage.permissions() {
        if is_locked(file, permission.unshared_byte())? {
            let holder = holder(file, permission.unshared_byte());
            let why = format!("{holder} has it open and allows no one else {}", permission.name());
            let readable = *permission == Permission::Write;
            return Err(Refusal::Held { why, readable, passing: holder.is_passing() });
        }
    }
    Ok(())
}

/// Who does with an image what the locks of its `reader` exclude.
pub(super) fn intruder(reader: &File) -> Option<String> {
    match check(reader, Use::Read) {
        Err(Refusal::Held { why, .. }) => Some(why),
        _ => None,
    }
}

/// Takes the locks of a reader beside a writer of this same process, whose locks exclude all others.
pub(super) fn join(reader: &File) -> Result<(), Refusal> {
    let used = Use::Read.permissions().iter();
    used.map(|permission| permission.used_byte())
        .try_for_each(|byte| set(reader, byte, libc::F_RDLCK))
        .map_err(Refusal::Unsupported)
}

/// Lets a writer of this same process come beside a reader: the reader's refusal of writers is given up.
pub(super) fn let_writer_in(reader: &File) -> io::Result<()> {
    UNSHARED.iter().try_for_each(|permission| set(reader, permission.unshared_byte(), libc::F_UNLCK))
}

/// Takes back [`let_writer_in`]. Shared locks cannot be refused for other shared ones, so this fails only
/// where the file system fails.
pub(super) fn shut_writers_out(reader: &File) -> io::Result<()> {
    UNSHARED.iter().try_for_each(|permission| set(reader, permission.unshared_byte(), libc::F_RDLCK))
}

/// Gives up all locks, and lets anyone in.
pub(super) fn release(file: &File) -> io::Result<()> {
    let all = [Permission::ConsistentRead, Permission::Write, Permission::Resize];
    let bytes = all.iter().flat_map(|permission| [permission.used_byte(), permission.unshared_byte()]);
    bytes.into_iter().try_for_each(|byte| set(file, byte, libc::F_UNLCK))
}

fn lock_of(byte: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // Open-file-description locks demand zero here.
        l_pid: 0,
    }
}

fn set(file: &File, byte: i64, kind: libc::c_int) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(byte, kind)))?;
    Ok(())
}

/// Whether another description has any lock on the byte.
fn is_locked(file: &File, byte: i64) -> Result<bool, Refusal> {
    let mut lock = lock_of(byte, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).map_err(|errno| Refusal::Unsupported(errno.into()))?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Who locks a byte of the file.
fn holder(file: &File, byte: i64) -> Holder {
    let Ok(meta) = file.metadata() else { return Holder::Unseen };
    holder::of_lock((meta.dev(), meta.ino()), byte, file.as_raw_fd())
}
