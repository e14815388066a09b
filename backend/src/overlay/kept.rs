//! The file or device that an overlay is kept in, seen from outside: made, recognised, emptied.
//!
//! What is in it is the business of `targets::snapshot`; here only its first bytes and its end count.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dm_table::SECTOR_SIZE;

use super::mark::Mark;
use super::{OverlayError, size};
use crate::device::{self, Identity};
use crate::targets::snapshot::format::{ENTRY, Entry, Found, HEADER, Header, Layout};
use crate::targets::snapshot::store;

/// Behind a header of zeroes: see [`emptying`].
const EMPTIED: &[u8] = b"vhost-user-dm: an overlay that was emptied";
/// Bytes of a list of exceptions that are read at a time.
const PART: u64 = 64 << 10;
/// Bytes that must be zero in a block device that is to become an overlay: all marks of file systems lie there.
const BLANK: usize = 68 << 10;

/// What is at the beginning of a file or device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Nothing: it will be written when it is served first.
    New,
    /// A store that was being emptied: it counts for nothing, and the rest of it must go first.
    Emptied,
    /// A store.
    Store {
        /// Sectors of a chunk, as a store can have them.
        chunk: u64,
        /// False: it overflowed, or could not be written, and what is in it is not whole.
        valid: bool,
    },
    /// The header of a store that cannot be, and why not.
    Unusable(String),
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
    /// Opens what is there. What it tells is true for as long as it is locked, and no longer: see [`super::hold`].
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
        Kept::read(absolute, file, is_block).map_err(wrong("cannot be read"))?.ok_or_else(|| OverlayError::NotOne {
            path: path.to_owned(),
            why: if is_block {
                "has something on it that is no overlay; one that is to become an overlay begins with zeroes"
            } else {
                "is a file that is no overlay, and is not overwritten"
            },
        })
    }

    fn read(path: PathBuf, file: File, is_block: bool) -> io::Result<Option<Kept>> {
        let size = (&file).seek(SeekFrom::End(0))?;
        let mark = Mark::read(&file, size)?;
        let head = head(&file, size, is_block)?;
        Ok(head.map(|head| Kept { path, file, size, is_block, head, mark }))
    }

    /// Gives a new store its size and its mark.
    ///
    /// # Errors
    /// The system's.
    pub fn renew(&mut self, size: u64, mark: Mark) -> io::Result<()> {
        if !self.is_block && self.size < size {
            // A mark in the midst of it would be taken for somebody's data, should the new one or the store not come to be.
            if Mark::begun(&self.file, self.size)? {
                self.clear()?;
            }
            self.file.set_len(size)?;
            self.size = size;
        }
        self.set_mark(mark)
    }

    /// Whether nothing was ever written to it, or all of that is gone.
    pub fn is_empty(&self) -> bool {
        matches!(self.head, Head::New | Head::Emptied)
    }

    /// Whether nobody else has it, as long as this is open. Nothing of it is changed: not even its times, as by those who open
    /// it for writing and try what it can do.
    ///
    /// # Errors
    /// Who has it, or that it must not be written.
    pub fn lock_alone(&self) -> Result<(), OverlayError> {
        let taken = |why: String| OverlayError::Taken { path: self.path.clone(), why };
        let survey = device::survey(&self.path.to_string_lossy(), None).map_err(OverlayError::Open)?;
        if let Some(its) = survey.uses.first() {
            return Err(taken(its.what.clone()));
        }
        rustix::fs::access(&self.path, rustix::fs::Access::WRITE_OK).map_err(|errno| taken(errno.to_string()))?;
        device::lock_alone(&self.file).map_err(taken)
    }

    /// What makes it the same as what another path leads to.
    pub fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.file.metadata()?))
    }

    /// Tells of each chunk that it has, in the order in which they came. Returns their number.
    ///
    /// # Errors
    /// The system's, or no store can be so (`InvalidData`).
    pub fn each(&self, tell: &mut dyn FnMut(Entry)) -> io::Result<u64> {
        let Head::Store { chunk, valid: true } = self.head else { return Ok(0) };
        let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let layout = Layout::new(chunk, self.size / SECTOR_SIZE, SECTOR_SIZE as u32).map_err(wrong)?;
        let mut part = vec![0; layout.chunk_bytes().min(PART) as usize];
        let mut number = 0;
        for area in (0..).take_while(|area| layout.has_area(*area)) {
            let from = layout.area(area) * layout.chunk_bytes();
            for at in (from..from + layout.chunk_bytes()).step_by(part.len()) {
                self.file.read_exact_at(&mut part, at)?;
                for bytes in part.chunks_exact(ENTRY as usize) {
                    let Some(entry) = Entry::read(bytes) else { return Ok(number) };
                    if !layout.is_data(entry.new) {
                        return Err(wrong("an exception of the store leads out of its data"));
                    }
                    number += 1;
                    tell(entry);
                }
            }
        }
        Ok(number)
    }

    /// Whether it has a size that nobody can change.
    pub fn is_block(&self) -> bool {
        self.is_block
    }

    /// Sectors of its chunks: those that it has, or is to have over a disk of so many sectors.
    pub fn chunk(&self, disk: u64, logical_block: u32) -> u64 {
        match self.head {
            Head::Store { chunk, .. } => chunk,
            Head::New | Head::Emptied | Head::Unusable(_) => size::chunk(disk, logical_block),
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
    pub fn set_mark(&mut self, mut mark: Mark) -> io::Result<()> {
        mark.write(&self.file, self.size)?;
        self.mark = Some(mark);
        Ok(())
    }

    /// Whether a mark has a place behind all that the store may use.
    pub fn has_room_for_mark(&self, disk: u64, chunk: u64) -> bool {
        size::trailer(self.size).is_some_and(|at| at >= size::store(disk, chunk))
    }

    /// Forgets all that is in it, durably. Its mark is gone, too. Killed at any moment it is what it was, or empty.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.is_block {
            emptying(self.size).iter().try_for_each(|step| step.perform(&self.file))?;
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
        // The file, not a link to it.
        let path = fs::canonicalize(&self.path)?;
        fs::remove_file(&path)?;
        sync_parent(&path)
    }

    /// Bytes that it takes on its file system; all of a block device.
    pub fn allocated(&self) -> u64 {
        let blocks = self.file.metadata().map_or(0, |meta| meta.blocks() * 512);
        if self.is_block { self.size } else { blocks }
    }
}

/// Makes a file, or has what is there be one that can be locked: not empty. It grows to `size` then, and takes no space. Tells
/// whether it was made.
///
/// # Errors
/// The system's; `WouldBlock` where another process is about to do the same.
pub(super) fn make(path: &Path, size: u64) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let (file, made) = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?, true)
        }
        file => (file?, false),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > 0 {
        return Ok(false);
    }
    // Who serves it would lose what is in it.
    if device::lock_alone(&file).is_err() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    if file.metadata()?.len() == 0 {
        let grown = file.set_len(size).and_then(|()| sync_parent(path));
        if grown.is_err() && made && leads_to(path, identity(&meta)) {
            let _ = fs::remove_file(path);
        }
        grown?;
    }
    Ok(made)
}

/// Whether a path leads to this and nothing else.
pub(super) fn leads_to(path: &Path, wanted: Identity) -> bool {
    fs::metadata(path).is_ok_and(|meta| identity(&meta) == wanted)
}

fn identity(meta: &Metadata) -> Identity {
    match meta.file_type().is_block_device() {
        true => Identity::Block { rdev: meta.rdev() },
        false => Identity::File { dev: meta.dev(), inode: meta.ino() },
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}

/// A step on the way to an empty device.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Sync,
}

impl Step {
    fn perform(&self, file: &File) -> io::Result<()> {
        match self {
            Step::Write(at, bytes) => file.write_all_at(bytes, *at),
            Step::Sync => file.sync_all(),
        }
    }
}

/// How a device is emptied. One sector, which is written as a whole or not at all, takes the place of the header: from then on
/// the store is no more, for the kernel too, and we know that what lies behind it is what is left of one. It goes when that has.
fn emptying(size: u64) -> Vec<Step> {
    let sector = |mut bytes: Vec<u8>| {
        bytes.resize(SECTOR_SIZE as usize, 0);
        bytes
    };
    let rest = (BLANK as u64).min(size).saturating_sub(SECTOR_SIZE) as usize;
    let mut steps = vec![
        Step::Write(0, sector([&[0; HEADER][..], EMPTIED].concat())),
        Step::Sync,
        Step::Write(SECTOR_SIZE, vec![0; rest]),
    ];
    steps.extend(size::trailer(size).map(|at| Step::Write(at, vec![0; size::TRAILER as usize])));
    // The trailer of a very small device lies at its beginning.
    let keeps_first = |step: &Step| !matches!(step, Step::Write(0, bytes) if bytes.len() > SECTOR_SIZE as usize);
    steps.retain(keeps_first);
    steps.extend([Step::Sync, Step::Write(0, sector(Vec::new())), Step::Sync]);
    steps
}

/// What the beginning of a file is; nothing where it is something else.
fn head(file: &File, size: u64, is_block: bool) -> io::Result<Option<Head>> {
    let mut start = vec![0; BLANK.min(size as usize)];
    file.read_exact_at(&mut start, 0)?;
    if let Some(Found::Header(header)) = start.first_chunk::<HEADER>().map(Header::find) {
        return Ok(Some(match store::layout(&header, size / SECTOR_SIZE, SECTOR_SIZE as u32) {
            Ok(layout) => Head::Store { chunk: layout.chunk(), valid: header.valid },
            Err(why) => Head::Unusable(why.to_string()),
        }));
    }
    let emptied = start.get(HEADER..).is_some_and(|rest| rest.starts_with(EMPTIED));
    if is_block && emptied && start[..HEADER] == [0; HEADER] {
        return Ok(Some(Head::Emptied));
    }
    if start.iter().any(|byte| *byte != 0) {
        return Ok(None);
    }
    // An image may well begin with zeroes; one that was made here has nothing but its mark.
    let empty = is_block || is_hole(file, size::trailer(size).unwrap_or(size))?;
    Ok(empty.then_some(Head::New))
}

/// Whether a file has nothing but zeroes before a byte. One that was killed while its store was made has some.
fn is_hole(file: &File, end: u64) -> io::Result<bool> {
    // What has more data than this is not looked through: it is not new.
    const MOST: u64 = 1 << 20;
    let (mut at, mut seen) = (0, 0);
    while at < end {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            // A file system that does not tell: what is there must be read.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).map_or(end, |hole| hole.min(end));
        at = if hole > data { hole } else { end };
        seen += at - data;
        if seen > MOST {
            return Ok(false);
        }
        let mut bytes = vec![0; (at - data) as usize];
        file.read_exact_at(&mut bytes, data)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::mark::Base;

    fn header(chunk: u32, valid: u32) -> Vec<u8> {
        Header { valid: valid != 0, version: 1, chunk }.bytes().to_vec()
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

    const SIZE: u64 = 600 << 10;

    fn base(sectors: u64) -> Base {
        serde_json::from_str(&format!(r#"{{"sectors":{sectors},"ranges":[],"sha256":""}}"#)).unwrap()
    }

    #[test]
    fn a_new_one_is_sparse_and_a_cleared_one_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cow");
        let mark = Mark::of(base(1_000_000));
        let size = size::file(1_000_000, 8);
        assert!(make(&path, size).unwrap() && !make(&path, 1).unwrap());
        let mut made = Kept::open(&path, true).unwrap();
        assert!(made.is_empty() && made.mark.is_none());
        made.renew(size, mark.clone()).unwrap();
        assert!(made.size > 1_000_000 * 512 && made.allocated() < 1 << 20, "{} of {}", made.allocated(), made.size);
        assert!(!made.may_overflow(1_000_000, 8) && made.has_room_for_mark(1_000_000, 8));
        let kept = Kept::open(&path, true).unwrap();
        assert_eq!((kept.head, kept.mark.as_ref()), (Head::New, Some(&mark)));
        // The store's zeroes, and the process is killed before its header.
        kept.file.write_all_at(&[0; 8192], 0).unwrap();
        assert_eq!(Kept::open(&path, true).unwrap().head, Head::New);
        kept.file.write_all_at(&header(8, 1), 0).unwrap();
        kept.file.write_all_at(&Entry { old: 3, new: 2 }.bytes(), 4096).unwrap();
        let mut kept = Kept::open(&path, true).unwrap();
        assert_eq!(kept.head, Head::Store { chunk: 8, valid: true });
        let mut entries = Vec::new();
        assert_eq!(kept.each(&mut |entry| entries.push(entry)).unwrap(), 1);
        assert_eq!(entries, [Entry { old: 3, new: 2 }]);
        kept.clear().unwrap();
        let kept = Kept::open(&path, true).unwrap();
        assert_eq!((&kept.head, kept.mark.as_ref(), kept.size), (&Head::New, None, made.size));
        kept.discard().unwrap();
        assert!(!path.exists());
    }

    /// The base of an empty overlay has grown: its mark, or what was written of one, must not stay in the midst of the file.
    #[test]
    fn one_that_grows_is_new_whenever_its_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        for torn in [false, true] {
            let path = dir.path().join(format!("cow-{torn}"));
            let (small, large) = (size::file(1000, 8), size::file(2_000_000, 8));
            make(&path, small).unwrap();
            Kept::open(&path, true).unwrap().renew(small, Mark::of(base(1000))).unwrap();
            if torn {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&[0xa5], size::trailer(small).unwrap() + 30).unwrap();
            }
            let mut kept = Kept::open(&path, true).unwrap();
            assert_eq!((&kept.head, kept.mark.is_none()), (&Head::New, torn));
            kept.renew(large, Mark::of(base(2_000_000))).unwrap();
            let kept = Kept::open(&path, true).unwrap();
            assert_eq!((kept.head, kept.size), (Head::New, large));
            assert_eq!(kept.mark.map(|mark| mark.base), Some(base(2_000_000)));
            // Killed before it had its mark.
            File::options().write(true).open(&path).unwrap().set_len(large - size::TRAILER).unwrap();
            assert_eq!(Kept::open(&path, true).unwrap().head, Head::New);
        }
    }

    /// A device with a store, all of which is in use.
    fn full(chunk: u32) -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xa5; SIZE as usize], 0).unwrap();
        let bytes = u64::from(chunk) * SECTOR_SIZE;
        file.write_all_at(&vec![0; bytes as usize], 0).unwrap();
        file.write_all_at(&header(chunk, 1), 0).unwrap();
        let entries: Vec<u8> = (0..bytes / ENTRY).flat_map(|n| Entry { old: n, new: 2 + n }.bytes()).collect();
        file.write_all_at(&entries, bytes).unwrap();
        let mut kept = Kept::read("cow".into(), file, true).unwrap().unwrap();
        kept.set_mark(Mark { committing: true, ..Mark::of(base(7)) }).unwrap();
        let mut image = vec![0; SIZE as usize];
        kept.file.read_exact_at(&mut image, 0).unwrap();
        image
    }

    fn on_device(image: &[u8]) -> Kept {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(image, 0).unwrap();
        Kept::read("cow".into(), file, true).unwrap().expect("neither an overlay nor an empty one")
    }

    /// Loses its power at every moment of being emptied: of what was not synced each sector may be on the medium or not.
    #[test]
    fn a_device_that_is_emptied_is_the_old_overlay_or_an_empty_one() {
        let mut random = fastrand::Rng::with_seed(3);
        for chunk in [8, 32, 128] {
            let old = full(chunk);
            let (mut durable, mut pending) = (old.clone(), Vec::<(usize, Vec<u8>)>::new());
            let mut emptied = 0;
            for step in emptying(SIZE) {
                match step {
                    Step::Write(at, bytes) => {
                        let sectors = bytes.chunks(512).enumerate();
                        pending.extend(sectors.map(|(n, sector)| (at as usize + n * 512, sector.to_vec())));
                    }
                    Step::Sync => {
                        for (at, sector) in pending.drain(..) {
                            durable[at..at + sector.len()].copy_from_slice(&sector);
                        }
                    }
                }
                for round in 0..12 {
                    let mut image = durable.clone();
                    for (number, (at, sector)) in pending.iter().enumerate() {
                        // Those at the front, those at the end, or any.
                        let there = match round % 3 {
                            0 => number < pending.len() * (1 + round / 3) / 4,
                            1 => number >= pending.len() * (1 + round / 3) / 4,
                            _ => random.bool(),
                        };
                        if there {
                            image[*at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                    let mut kept = on_device(&image);
                    if matches!(kept.head, Head::Store { .. }) {
                        assert!(image == old, "a store that is neither the old one nor none");
                        continue;
                    }
                    emptied += 1;
                    // Whoever takes it next brings it to its end.
                    kept.clear().unwrap();
                    let mut image = vec![0; SIZE as usize];
                    kept.file.read_exact_at(&mut image, 0).unwrap();
                    assert!(image[..BLANK].iter().all(|byte| *byte == 0));
                    assert_eq!((on_device(&image).head, on_device(&image).mark), (Head::New, None));
                    // As when a store is made on it, up to its header.
                    let bytes = chunk as usize * 512;
                    image[bytes..2 * bytes].fill(0);
                    image[..bytes].fill(0);
                    assert_eq!(on_device(&image).head, Head::New);
                }
            }
            assert!(emptied > 12);
            let kept = on_device(&durable);
            assert_eq!((kept.head, kept.mark), (Head::New, None));
        }
    }

    #[test]
    fn a_small_device_is_emptied_too() {
        for size in [512, 4096, 16 << 10, 20 << 10, 84 << 10] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![1; size], 0).unwrap();
            file.write_all_at(&header(1, 1), 0).unwrap();
            let mut kept = Kept::read("cow".into(), file, true).unwrap().unwrap();
            kept.clear().unwrap();
            assert_eq!(kept.file.metadata().unwrap().len(), size as u64);
            assert_eq!(Kept::read("cow".into(), kept.file, true).unwrap().unwrap().head, Head::New, "{size}");
        }
    }
}
