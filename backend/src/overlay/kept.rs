//! The file or device that an overlay is kept in, seen from outside: made, recognised, emptied.
//!
//! What is in it is the business of `targets::snapshot`; here only its first bytes and its end count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::mark::Mark;
use super::{OverlayError, size};

/// `SnAp` in the kernel's byte order (dm-snap-persistent.c).
const MAGIC: u32 = 0x7041_6e53;
/// Bytes that must be zero in a block device that is to become an overlay: all marks of file systems lie there.
const BLANK: usize = 68 << 10;

/// What is at the beginning of a file or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: it will be written when it is served first.
    New,
    /// A store.
    Store {
        /// Sectors of a chunk.
        chunk: u64,
        /// False: it overflowed, or could not be written, and what is in it is not whole.
        valid: bool,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Kept {
    /// Where it is, from the root.
    pub path: PathBuf,
    file: File,
    /// Its bytes.
    pub size: u64,
    is_block: bool,
    /// Its beginning.
    pub head: Head,
    /// Its end.
    pub mark: Option<Mark>,
}

impl Kept {
    /// Opens what is there.
    ///
    /// # Errors
    /// The system's (`NotFound` where there is nothing), or it is no overlay.
    pub fn open(path: &Path, write: bool) -> Result<Kept, OverlayError> {
        let wrong = |what| move |source| OverlayError::System { path: path.to_owned(), what, source };
        let absolute = std::path::absolute(path).map_err(wrong("no path"))?;
        // Another process's lease on the file must not make us wait, nor a pipe.
        let opened = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(&absolute);
        let file = opened.map_err(wrong("cannot be opened"))?;
        let kind = file.metadata().map_err(wrong("cannot be looked at"))?.file_type();
        let is_block = kind.is_block_device();
        if !is_block && !kind.is_file() {
            return Err(OverlayError::NotOne { path: path.to_owned(), why: "is neither a file nor a block device" });
        }
        let size = (&file).seek(SeekFrom::End(0)).map_err(wrong("does not tell its size"))?;
        let mark = Mark::read(&file, size).map_err(wrong("cannot be read"))?;
        let head = head(&file, size, is_block).map_err(wrong("cannot be read"))?;
        let head = head.ok_or_else(|| OverlayError::NotOne {
            path: path.to_owned(),
            why: if is_block {
                "has something on it that is no overlay; one that is to become an overlay begins with zeroes"
            } else {
                "is a file that is no overlay, and is not overwritten"
            },
        })?;
        Ok(Kept { path: absolute, file, size, is_block, head, mark })
    }

    /// Makes a file that has room for a copy of every chunk of a disk, and takes none yet.
    ///
    /// # Errors
    /// The system's, `AlreadyExists` among them.
    pub fn create(path: &Path, disk: u64, logical_block: u32, mark: &Mark) -> Result<Kept, OverlayError> {
        let wrong = |what| move |source| OverlayError::System { path: path.to_owned(), what, source };
        let absolute = std::path::absolute(path).map_err(wrong("no path"))?;
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&absolute);
        let file = made.map_err(wrong("cannot be made"))?;
        let mut kept = Kept { path: absolute, file, size: 0, is_block: false, head: Head::New, mark: None };
        let chunk = size::chunk(disk, logical_block);
        let sized = kept.renew(size::file(disk, chunk), Some(mark)).and_then(|()| sync_parent(&kept.path));
        match sized {
            Ok(()) => Ok(kept),
            Err(error) => {
                let _ = fs::remove_file(&kept.path);
                Err(wrong("cannot have the size that it needs")(error))
            }
        }
    }

    /// Gives a new store its size and its mark.
    ///
    /// # Errors
    /// The system's.
    pub fn renew(&mut self, size: u64, mark: Option<&Mark>) -> io::Result<()> {
        if !self.is_block && self.size < size {
            self.file.set_len(size)?;
            self.size = size;
        }
        self.set_mark(mark)
    }

    /// Whether it has a size that nobody can change.
    pub fn is_block(&self) -> bool {
        self.is_block
    }

    /// Sectors of its chunks: those that it has, or is to have over a disk of so many sectors.
    pub fn chunk(&self, disk: u64, logical_block: u32) -> u64 {
        match self.head {
            Head::Store { chunk, .. } => chunk,
            Head::New => size::chunk(disk, logical_block),
        }
    }

    /// Whether it can become full before every chunk of a disk has been copied.
    pub fn may_overflow(&self, disk: u64, chunk: u64) -> bool {
        self.size < size::store(disk, chunk)
    }

    /// Writes the mark, durably, where the store can never reach it.
    ///
    /// # Errors
    /// The system's.
    pub fn set_mark(&mut self, mark: Option<&Mark>) -> io::Result<()> {
        Mark::write(mark, &self.file, self.size)?;
        self.mark = mark.cloned();
        Ok(())
    }

    /// Whether a mark has a place behind all that the store may use.
    pub fn has_room_for_mark(&self, disk: u64, chunk: u64) -> bool {
        size::trailer(self.size).is_some_and(|at| at >= size::store(disk, chunk))
    }

    /// Forgets all that is in it, durably. Its mark is gone, too.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.is_block {
            // First what makes it a store, so that no half of it is ever one.
            self.file.write_all_at(&[0; 4096], 0)?;
            self.file.sync_all()?;
            if size::trailer(self.size).is_some() && self.mark.is_some() {
                Mark::write(None, &self.file, self.size)?;
            }
        } else {
            self.file.set_len(0)?;
            self.file.set_len(self.size)?;
            self.file.sync_all()?;
        }
        (self.head, self.mark) = (Head::New, None);
        Ok(())
    }

    /// Removes the file; a block device forgets what is in it.
    ///
    /// # Errors
    /// The system's.
    pub fn discard(mut self) -> io::Result<()> {
        if self.is_block {
            return self.clear();
        }
        fs::remove_file(&self.path)?;
        sync_parent(&self.path)
    }

    /// Bytes that it takes on its file system; all of a block device.
    pub fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let blocks = self.file.metadata().map_or(0, |meta| meta.blocks() * 512);
        if self.is_block { self.size } else { blocks }
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}

/// What the beginning of a file is; nothing where it is something else.
fn head(file: &File, size: u64, is_block: bool) -> io::Result<Option<Head>> {
    let mut start = vec![0; BLANK.min(size as usize)];
    file.read_exact_at(&mut start, 0)?;
    let word = |n: usize| Some(u32::from_le_bytes(start.get(4 * n..4 * n + 4)?.try_into().ok()?));
    if word(0) == Some(MAGIC) {
        let chunk = u64::from(word(3).unwrap_or(0));
        // The target says more of a version that nobody knows, and of a chunk that cannot be.
        let valid = word(1) != Some(0);
        return Ok(Some(Head::Store { chunk, valid }));
    }
    if start.iter().any(|byte| *byte != 0) {
        return Ok(None);
    }
    // An image may well begin with zeroes; one that was made here has nothing but its mark.
    let empty = is_block || is_hole(file, size::trailer(size).unwrap_or(size))?;
    Ok(empty.then_some(Head::New))
}

/// Whether a file has no data before a byte.
fn is_hole(file: &File, end: u64) -> io::Result<bool> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)) {
        Ok(data) => Ok(data >= end || only_zeroes(file, data, end)?),
        Err(rustix::io::Errno::NXIO) => Ok(true),
        // A file system that does not tell: what is there must be read.
        Err(rustix::io::Errno::INVAL) => only_zeroes(file, 0, end),
        Err(error) => Err(error.into()),
    }
}

fn only_zeroes(file: &File, from: u64, end: u64) -> io::Result<bool> {
    // What has more data than this at its beginning is not looked through: it is not new.
    const MOST: u64 = 1 << 20;
    if end.saturating_sub(from) > MOST {
        return Ok(false);
    }
    let mut bytes = vec![0; end.saturating_sub(from) as usize];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(chunk: u32, valid: u32) -> Vec<u8> {
        [MAGIC, valid, 1, chunk].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_no_overlay_is_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cow");
        let open = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Kept::open(&path, false).map(|kept| kept.head)
        };
        assert_eq!(open(&[]).unwrap(), Head::New);
        let mut store = header(16, 1);
        store.resize(100_000, 7);
        assert_eq!(open(&store).unwrap(), Head::Store { chunk: 16, valid: true });
        store[4] = 0;
        assert_eq!(open(&store).unwrap(), Head::Store { chunk: 16, valid: false });
        store[0] = 0;
        assert!(matches!(open(&store), Err(OverlayError::NotOne { .. })));
        // An ext file system leaves its first sectors alone, and a disk may have nothing for longer than that.
        for first in [1024, 600 << 10, 2 << 20] {
            let mut image = vec![0; 3 << 20];
            image[first] = 1;
            assert!(matches!(open(&image), Err(OverlayError::NotOne { .. })), "{first}");
        }
        assert!(matches!(Kept::open(dir.path(), false), Err(OverlayError::NotOne { .. })));
        fs::remove_file(&path).unwrap();
        let gone = Kept::open(&path, false).unwrap_err();
        assert!(matches!(gone, OverlayError::System { source, .. } if source.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn a_new_one_is_sparse_and_a_cleared_one_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cow");
        let mark: Mark = serde_json::from_str(r#"{"base":{"sectors":1000000,"ranges":[],"sha256":""}}"#).unwrap();
        let made = Kept::create(&path, 1_000_000, 512, &mark).unwrap();
        assert!(made.size > 1_000_000 * 512 && made.allocated() < 1 << 20, "{} of {}", made.allocated(), made.size);
        assert!(!made.may_overflow(1_000_000, 8) && made.has_room_for_mark(1_000_000, 8));
        assert!(Kept::create(&path, 1, 512, &mark).is_err());
        let kept = Kept::open(&path, true).unwrap();
        assert_eq!((kept.head, kept.mark.as_ref()), (Head::New, Some(&mark)));
        kept.file.write_all_at(&header(8, 1), 0).unwrap();
        kept.file.write_all_at(&[1; 8192], 8192).unwrap();
        let mut kept = Kept::open(&path, true).unwrap();
        assert_eq!(kept.head, Head::Store { chunk: 8, valid: true });
        kept.clear().unwrap();
        let kept = Kept::open(&path, true).unwrap();
        assert_eq!((kept.head, kept.mark.as_ref(), kept.size), (Head::New, None, made.size));
        kept.discard().unwrap();
        assert!(!path.exists());
    }
}
