//! Which base an overlay belongs to.
//!
//! The kernel's store (see `targets::snapshot`) says nothing of its origin, and an overlay over another base, or over its own
//! after that has changed, is garbage. So the end of an overlay's file, behind all that the store may ever use, says what
//! the base was: its size, and a digest of those of its places that change when somebody uses it (the beginning, the end,
//! where its segments and partitions begin, and what of a file system or container is written at each mount: `places`). That is
//! a sample: a change elsewhere is not noticed, be it by who writes to the middle of an image, or to a logical volume that is
//! not the first of its group. A file's time of modification would tell of more, and of too much: to ask what a file can do
//! (to `check` it, even) changes it. Overlays made by others have no mark, and are taken as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{places, size};
use crate::inspect::{self, Assembled, Bytes as _};

/// What a mark begins with; its length and its checksum follow, four bytes each.
const MAGIC: &[u8; 16] = b"vhost-user-dm ov";
const HEAD: usize = 24;
/// Bytes of a place for a mark. There are two, so that the last one is there until the next is whole.
const SLOT: usize = size::TRAILER as usize / 2;
/// Bytes of each place that is looked at: file systems have their superblocks there, that of btrfs included.
const PLACE: u64 = 128 << 10;
/// Places that are looked at: so many that a mark can say them all.
const MOST_PLACES: usize = 192;

/// A base as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its sectors.
    pub sectors: u64,
    /// Byte ranges of it: first, length.
    ranges: Vec<(u64, u64)>,
    /// Digest of what is in them, hexadecimal.
    sha256: String,
}

/// What the end of an overlay's file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The base.
    pub base: Base,
    /// How many were written before it: of two the later one counts.
    #[serde(default)]
    pub(super) number: u64,
    /// The overlay is being merged into it: the base is neither what it was nor what it will be, and only with the overlay
    /// over it a whole disk.
    #[serde(default)]
    pub committing: bool,
}

impl Base {
    /// What a disk is now.
    pub fn look(disk: &Assembled) -> Base {
        let size = disk.size();
        let map = &disk.chain().map;
        let mut starts = vec![0, size.saturating_sub(PLACE)];
        let places = map.places().filter(|place| matches!(place.target, "linear" | "striped"));
        starts.extend(places.take(MOST_PLACES / 2).map(|place| place.start.saturating_mul(512)));
        if let Ok(contents) = inspect::look(disk, size) {
            let partitions = contents.partitions.iter().take(MOST_PLACES / 2);
            starts.extend(partitions.map(|partition| partition.start.saturating_mul(512)));
        }
        let mut starts: Vec<u64> = starts.iter().flat_map(|start| places::places(disk, *start)).collect();
        starts.retain(|start| *start < size);
        starts.sort_unstable();
        starts.dedup();
        starts.truncate(MOST_PLACES);
        let mut ranges: Vec<(u64, u64)> = starts.iter().map(|start| (*start, PLACE.min(size - start))).collect();
        // Segments that fail, and those that only a guest can read, tell nothing.
        let mut buffer = Vec::new();
        ranges.retain(|range| read(disk, *range, &mut buffer).is_ok());
        let sha256 = digest(disk, &ranges).unwrap_or_default();
        Base { sectors: size / 512, ranges, sha256 }
    }

    /// Why a disk cannot be this base, whatever it holds.
    pub fn size_differs(&self, disk: &Assembled) -> Option<String> {
        let sectors = disk.size() / 512;
        let differs = sectors != self.sectors;
        differs.then(|| format!("it was made over a disk of {} sectors, and this one has {sectors}", self.sectors))
    }

    /// Why a disk is not this base, or is no longer what it was.
    pub fn differs(&self, disk: &Assembled) -> Option<String> {
        if let Some(why) = self.size_differs(disk) {
            return Some(why);
        }
        match digest(disk, &self.ranges) {
            Ok(sum) if sum == self.sha256 => None,
            Ok(_) => Some("it was made over another disk, or this one has been written to since".into()),
            Err(error) => Some(format!("the disk that it was made over could be read where this one cannot: {error}")),
        }
    }
}

fn read(disk: &Assembled, (start, len): (u64, u64), buffer: &mut Vec<u8>) -> io::Result<()> {
    let len = usize::try_from(len).ok().filter(|len| *len as u64 <= PLACE).ok_or(io::ErrorKind::InvalidData)?;
    buffer.resize(len, 0);
    disk.read(start, buffer)
}

fn digest(disk: &Assembled, ranges: &[(u64, u64)]) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut buffer = Vec::new();
    for range in ranges {
        read(disk, *range, &mut buffer)?;
        sum.update(&buffer);
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The bytes that a mark has its place in; none where that is too small for one.
fn trailer(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let Some(at) = size::trailer(size) else { return Ok(Vec::new()) };
    let mut bytes = vec![0; size::TRAILER as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

impl Mark {
    /// Of a base as it is.
    pub fn of(base: Base) -> Mark {
        Mark { base, number: 0, committing: false }
    }

    /// The mark of a file or device of `size` bytes, if it has one that is whole.
    ///
    /// # Errors
    /// The system's.
    pub fn read(file: &File, size: u64) -> io::Result<Option<Mark>> {
        let trailer = trailer(file, size)?;
        Ok(trailer.chunks(SLOT).filter_map(Mark::parse).max_by_key(|mark| mark.number))
    }

    /// Whether somebody has begun to write a mark there, be it whole or torn.
    ///
    /// # Errors
    /// The system's.
    pub fn begun(file: &File, size: u64) -> io::Result<bool> {
        Ok(trailer(file, size)?.chunks(SLOT).any(|slot| slot.starts_with(MAGIC)))
    }

    fn parse(bytes: &[u8]) -> Option<Mark> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let number = |from: usize| Some(u32::from_le_bytes(rest.get(from..from + 4)?.try_into().ok()?));
        let text = bytes.get(HEAD..HEAD.checked_add(number(0)? as usize)?)?;
        (crc32fast::hash(text) == number(4)?).then(|| serde_json::from_slice(text).ok())?
    }

    /// Writes it, durably. Where it is torn the one before it is there still.
    ///
    /// # Errors
    /// The system's, or it has no place.
    pub fn write(&mut self, file: &File, size: u64) -> io::Result<()> {
        let Some(at) = size::trailer(size) else { return Err(io::ErrorKind::InvalidInput.into()) };
        self.number = Mark::read(file, size)?.map_or(0, |last| last.number.saturating_add(1));
        let at = at + self.number % 2 * SLOT as u64;
        file.write_all_at(&self.bytes()?, at)?;
        file.sync_all()
    }

    /// A slot with JSON.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let text = serde_json::to_vec(self)?;
        if HEAD + text.len() > SLOT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what is to be said of the base is too long"));
        }
        let (len, sum) = ((text.len() as u32).to_le_bytes(), crc32fast::hash(&text).to_le_bytes());
        let mut bytes = [MAGIC, &len[..], &sum, &text].concat();
        bytes.resize(SLOT, 0);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(ranges: usize) -> Mark {
        let ranges = (0..ranges as u64).map(|n| (u64::MAX - n, PLACE)).collect();
        let base = Base { sectors: u64::MAX, ranges, sha256: "f".repeat(64) };
        Mark { committing: true, ..Mark::of(base) }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let file = tempfile::tempfile().unwrap();
        let size = 100 << 10;
        file.set_len(size).unwrap();
        assert_eq!(Mark::read(&file, size).unwrap(), None);
        // As many places as are ever looked at.
        let mut mark = mark(MOST_PLACES);
        mark.write(&file, size).unwrap();
        assert_eq!(Mark::read(&file, size).unwrap(), Some(mark));
        assert_eq!(Mark::read(&file, size - 4096).unwrap(), None);
    }

    /// Whatever part of a mark is written, there is the one before or the new one.
    #[test]
    fn a_mark_that_is_torn_leaves_the_one_before() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size::TRAILER).unwrap();
        let read = || Mark::read(&file, size::TRAILER).unwrap().unwrap();
        let image = || {
            let mut bytes = vec![0; size::TRAILER as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        mark(1).write(&file, size::TRAILER).unwrap();
        for ranges in 2..6 {
            let (before, old) = (image(), read());
            mark(ranges).write(&file, size::TRAILER).unwrap();
            let (after, new) = (image(), read());
            assert_eq!(new.base, mark(ranges).base);
            for sector in 0..before.len() / 512 {
                for (first, second) in [(&before, &after), (&after, &before)] {
                    let torn = [&first[..sector * 512], &second[sector * 512..]].concat();
                    file.write_all_at(&torn, 0).unwrap();
                    assert!([&old, &new].contains(&&read()), "torn at sector {sector}");
                }
            }
            file.write_all_at(&after, 0).unwrap();
        }
    }

    #[test]
    fn a_damaged_mark_is_none() {
        let bytes = mark(3).bytes().unwrap();
        assert!(Mark::parse(&bytes).is_some());
        let end = HEAD + serde_json::to_vec(&mark(3)).unwrap().len();
        for at in 0..end {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(Mark::parse(&wrong), None, "byte {at}");
        }
        assert_eq!(Mark::parse(&bytes[..end - 1]), None);
        assert_eq!(Mark::parse(&[]), None);
        let mut long = bytes;
        long[16..20].fill(0xff);
        assert_eq!(Mark::parse(&long), None);
    }
}
