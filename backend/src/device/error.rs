//! Why a component device cannot be served.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// A component device that cannot be opened or must not be served.
///
/// `Display` says what was tried, on which device, and why it failed; [`OpenError::help`] says what would
/// work; [`OpenError::errno_name`] is the errno the kernel's device-mapper would give, for its own message
/// (`linear: Device lookup failed (-ENOENT)`).
#[derive(Debug, Error)]
pub enum OpenError {
    /// `major:minor` is beyond 4095:1048575 (dm's `dm_devt_from_path`).
    #[error("{text}: no device number, major is at most 4095 and minor at most 1048575")]
    NumberTooLarge {
        /// The device text.
        text: String,
    },
    /// No block device has this number.
    #[error("{text}: {why}")]
    NoSuchNumber {
        /// The device text.
        text: String,
        /// What was looked for and where.
        why: String,
    },
    /// The path leads nowhere.
    #[error("{}: {source}", path.display())]
    NotFound {
        /// The path as the user wrote it.
        path: PathBuf,
        /// The look-up's own error.
        source: io::Error,
    },
    /// Neither a block device nor a regular file.
    #[error("{}: is a {what}, not a block device or an image file", path.display())]
    NotStorage {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What it is: "directory", "character device", ...
        what: &'static str,
    },
    /// Permission is missing.
    #[error("{}: cannot open for {mode}: {source}", path.display())]
    Denied {
        /// The path as the user wrote it.
        path: PathBuf,
        /// "reading" or "reading and writing".
        mode: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// Whether the same open for reading alone would have worked.
        readable: bool,
    },
    /// Writing was asked for and the device, its file system or its mount is read-only.
    #[error("{}: cannot be written: {why}", path.display())]
    ReadOnly {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What is read-only.
        why: String,
    },
    /// It holds no sector.
    #[error("{}: {why}", path.display())]
    Empty {
        /// The path as the user wrote it.
        path: PathBuf,
        /// How it is empty.
        why: String,
    },
    /// This machine uses it: mounted, swap, held by another block device or behind a loop device.
    #[error("{}: cannot be served writable: {}", path.display(), reasons.join("; "))]
    Claimed {
        /// The path as the user wrote it.
        path: PathBuf,
        /// Each claim that was found, with the name of the mount or the holder.
        reasons: Vec<String>,
        /// What releases the claims.
        help: String,
        /// Whether no process that lives was found to have the claim.
        passing: bool,
    },
    /// Another process holds image locks that exclude this use.
    #[error("{}: cannot be served {mode}: {why}", path.display())]
    Locked {
        /// The path as the user wrote it.
        path: PathBuf,
        /// "writable" or "read-only".
        mode: &'static str,
        /// Which use of the other process excludes this one, and its name where it could be found.
        why: String,
        /// Whether read-only serving would be possible.
        readable: bool,
        /// Whether no process that lives was found to have the locks.
        passing: bool,
    },
    /// What no living process holds did not become free in time.
    #[error("{source}; it is not free after {:.0} seconds", waited.as_secs_f32())]
    StillTaken {
        /// The refusal.
        source: Box<OpenError>,
        /// How long was waited.
        waited: Duration,
    },
    /// Direct I/O was demanded and cannot be had.
    #[error("{}: direct I/O is not possible: {why}", path.display())]
    NoDirectIo {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What stands against it.
        why: String,
    },
    /// The process already serves it in a way that excludes this one.
    #[error("{}: {why}", path.display())]
    Conflict {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What conflicts.
        why: String,
    },
    /// A system call failed for another reason.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The path as the user wrote it.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl OpenError {
    /// The errno by name, as the kernel's `%pe` prints it without its sign: `"ENOENT"`.
    pub fn errno_name(&self) -> &'static str {
        match self {
            Self::NumberTooLarge { .. } => "EOVERFLOW",
            Self::NoSuchNumber { .. } => "ENXIO",
            Self::NotStorage { .. } => "ENOTBLK",
            Self::ReadOnly { .. } => "EROFS",
            Self::Empty { .. } | Self::NoDirectIo { .. } => "EINVAL",
            Self::Claimed { .. } | Self::Locked { .. } | Self::Conflict { .. } => "EBUSY",
            Self::StillTaken { source, .. } => source.errno_name(),
            Self::NotFound { source, .. } => name_of(source, "ENOENT"),
            Self::Denied { source, .. } => name_of(source, "EACCES"),
            Self::Io { source, .. } => name_of(source, "EIO"),
        }
    }

    /// Whether somebody else has it, as far as locks and claims tell.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Claimed { .. } | Self::Locked { .. })
    }

    /// Whether the refusal can be expected to end by itself: see `fence`.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Claimed { passing: true, .. } | Self::Locked { passing: true, .. })
    }

    /// What would work, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NumberTooLarge { text } | Self::NoSuchNumber { text, .. } => Some(format!(
                "`lsblk` lists the block devices with their numbers; a file named {text:?} is meant by \"./{text}\""
            )),
            Self::NotFound { path, .. } => not_found_help(path),
            Self::NotStorage { what: "directory", .. } => {
                Some("name an image file or a block device; a directory cannot be a component".into())
            }
            Self::NotStorage { .. } => None,
            Self::Denied { readable: true, .. } => Some(
                "--read-only or --overlay=tmp serves it without writing to it; or give this user write permission"
                    .into(),
            ),
            Self::Denied { .. } => {
                Some("give this user permission, for a block device by its group (often \"disk\")".into())
            }
            Self::ReadOnly { .. } => Some("--read-only or --overlay=tmp serves it without writing to it".into()),
            Self::Empty { .. } => Some(
                "a component needs at least one sector of 512 bytes; `truncate -s SIZE` makes a sparse image file"
                    .into(),
            ),
            Self::Claimed { help, .. } => Some(help.clone()),
            Self::StillTaken { .. } => Some(
                "if the process that had it was killed, the kernel still has I/O of it: see whether the disk answers \
                 (`dmesg`), then start again"
                    .into(),
            ),
            Self::Locked { readable: true, .. } => {
                Some("stop the other process, or use --read-only or --overlay=tmp".into())
            }
            Self::Locked { .. } => Some("stop the other process, or let both of them open it read-only".into()),
            Self::NoDirectIo { .. } => Some("--cache=auto or --cache=buffered uses the page cache".into()),
            Self::Conflict { .. } => Some("use one cache mode for all uses of a component".into()),
            Self::Io { .. } => None,
        }
    }
}

/// The prefixes that only an initramfs-less kernel resolves (dm-init), for which udev keeps links.
const EARLY_BOOT_TAGS: [(&str, &str); 4] =
    [("PARTUUID=", "by-partuuid"), ("PARTLABEL=", "by-partlabel"), ("UUID=", "by-uuid"), ("LABEL=", "by-label")];

fn not_found_help(path: &std::path::Path) -> Option<String> {
    let text = path.to_str()?;
    let found = EARLY_BOOT_TAGS.iter().find_map(|(tag, dir)| Some((dir, text.strip_prefix(tag)?)));
    if let Some((dir, value)) = found {
        return Some(format!("tags are not resolved, as in dmsetup; /dev/disk/{dir}/{value} names the same device"));
    }
    if text.starts_with("/dev/mapper/") {
        return Some("a device of the same table file is named /dev/mapper/NAME, with NAME as in the file".into());
    }
    None
}

/// Names of the errnos that opening and measuring a device can give.
fn name_of(error: &io::Error, otherwise: &'static str) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM",
        Some(libc::ENOENT) => "ENOENT",
        Some(libc::EIO) => "EIO",
        Some(libc::ENXIO) => "ENXIO",
        Some(libc::EAGAIN) => "EAGAIN",
        Some(libc::ENOMEM) => "ENOMEM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::EBUSY) => "EBUSY",
        Some(libc::ENODEV) => "ENODEV",
        Some(libc::ENOTDIR) => "ENOTDIR",
        Some(libc::EINVAL) => "EINVAL",
        Some(libc::ENFILE) => "ENFILE",
        Some(libc::EMFILE) => "EMFILE",
        Some(libc::ETXTBSY) => "ETXTBSY",
        Some(libc::EROFS) => "EROFS",
        Some(libc::ENAMETOOLONG) => "ENAMETOOLONG",
        Some(libc::ELOOP) => "ELOOP",
        Some(libc::EOVERFLOW) => "EOVERFLOW",
        Some(libc::ESTALE) => "ESTALE",
        Some(libc::ENOMEDIUM) => "ENOMEDIUM",
        _ => otherwise,
    }
}
