//! From the device text of a table line to a file system object, as dm's `dm_devt_from_path` does it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::component::{Identity, Kind};
use super::error::OpenError;
use super::sysfs::Disk;

/// Most of a kernel dev_t: 12 bits of major, 20 of minor.
const MAX_MAJOR: u64 = (1 << 12) - 1;
const MAX_MINOR: u64 = (1 << 20) - 1;

/// Depth to which `/dev` is searched for a node that is not where the kernel says.
const DEV_DEPTH: u32 = 6;

/// An object that can be a component, found but not opened.
#[derive(Debug)]
pub(super) struct Located {
    /// As the user wrote it, or the node of the device with that number.
    pub path: PathBuf,
    /// An `O_PATH` descriptor: what is opened later is what was examined, whatever happens to the path, and
    /// nothing (a FIFO, a tape) is opened only to find out that it is not wanted.
    pub handle: OwnedFd,
    pub kind: Kind,
    pub identity: Identity,
    pub stat: Stat,
}

/// Finds the object that `text` names. `number` is the text's `major:minor` form where it has exactly that.
pub(super) fn locate(text: &str, number: Option<(u64, u64)>) -> Result<Located, OpenError> {
    let Some(number) = number else { return by_path(PathBuf::from(text)) };
    let (major, minor) = match number {
        (major @ ..=MAX_MAJOR, minor @ ..=MAX_MINOR) => (major as u32, minor as u32),
        _ => return Err(OpenError::NumberTooLarge { text: text.to_owned() }),
    };
    let missing = |why: String| OpenError::NoSuchNumber { text: text.to_owned(), why };
    let disk = Disk::numbered(major, minor);
    let node = disk.as_ref().and_then(Disk::node).filter(|node| is_node(node, major, minor));
    let node = node.or_else(|| search(Path::new("/dev"), major, minor, DEV_DEPTH));
    let node = node.ok_or_else(|| match &disk {
        Some(disk) => missing(format!("this is {}, but no node in /dev leads to it", disk.name())),
        None => missing("no block device has this number".into()),
    })?;
    let located = by_path(node)?;
    match located.kind {
        Kind::Block { major: found, minor: its } if (found, its) == (major, minor) => Ok(located),
        _ => Err(missing(format!("{} changed during the look-up", located.path.display()))),
    }
}

fn by_path(path: PathBuf) -> Result<Located, OpenError> {
    let handle = match rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::ACCESS) => {
            let source = io::Error::from_raw_os_error(libc::EACCES);
            return Err(OpenError::Denied { path, mode: "reading", source, readable: false });
        }
        // A path with a NUL inside cannot exist.
        Err(rustix::io::Errno::INVAL) => {
            return Err(OpenError::NotFound { path, source: io::Error::from_raw_os_error(libc::ENOENT) });
        }
        Err(errno) => return Err(OpenError::NotFound { path, source: errno.into() }),
    };
    let stat = match rustix::fs::fstat(&handle) {
        Ok(stat) => stat,
        Err(errno) => return Err(OpenError::Io { path, doing: "cannot be examined", source: errno.into() }),
    };
    let (kind, identity) = match classify(&stat) {
        Ok(found) => found,
        Err(what) => return Err(OpenError::NotStorage { path, what }),
    };
    Ok(Located { path, handle, kind, identity, stat })
}

/// What a file system object is as a component, or what else it is.
pub(super) fn classify(stat: &Stat) -> Result<(Kind, Identity), &'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((Kind::File, Identity::File { dev: stat.st_dev, inode: stat.st_ino })),
        FileType::BlockDevice => {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            Ok((Kind::Block { major, minor }, Identity::Block { rdev: stat.st_rdev }))
        }
        FileType::Directory => Err("directory"),
        FileType::CharacterDevice => Err("character device"),
        FileType::Fifo => Err("FIFO"),
        FileType::Socket => Err("socket"),
        FileType::Symlink => Err("symbolic link that leads nowhere"),
        FileType::Unknown => Err("file of an unknown type"),
    }
}

fn is_node(path: &Path, major: u32, minor: u32) -> bool {
    let number = rustix::fs::makedev(major, minor);
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() && meta.rdev() == number)
}

fn search(dir: &Path, major: u32, minor: u32, depth: u32) -> Option<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir).ok()?.flatten().collect();
    let node = entries.iter().map(fs::DirEntry::path).find(|path| is_node(path, major, minor));
    if node.is_some() || depth == 0 {
        return node;
    }
    let dirs = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| search(&entry.path(), major, minor, depth - 1)).next()
}
