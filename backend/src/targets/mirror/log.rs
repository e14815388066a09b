//! The log on a device: which regions of a mirror may differ between its legs, in the format of the kernel's dm-log.c.
//!
//! Sector 0 has a header, sectors from 2 on a bit for each region, set where the region is clean: the same on all legs. All
//! numbers are little-endian. The kernel has no use for sector 1 and leaves what is there; we keep a [`Record`] in it while the
//! newest data is not on the first leg. The rest of both sectors stays as it was found.

use std::collections::BTreeSet;

use crc32fast::hash as crc;

const MAGIC: u32 = 0x4D69_5272;
const VERSION: u32 = 2;
/// Bytes before the bits.
const BITS: usize = 1024;
/// Where the record is.
const RECORD: usize = 512;
const RECORD_MAGIC: &[u8; 8] = b"vudmMiRr";
const RECORD_LEN: usize = 32;

/// Most regions of a mirror. The kernel has its bound where memory ends.
pub const MOST_REGIONS: u64 = 1 << 26;

/// Bytes that the log of so many regions takes on a device with such blocks.
pub fn len(regions: u64, block: u32) -> u64 {
    let bits = regions.next_multiple_of(64) / 8;
    (BITS as u64 + bits).next_multiple_of(u64::from(block).max(dm_table::SECTOR_SIZE))
}

/// Which leg has the newest data, if it is not the first: at the next start the others are made like it. Without a record
/// it is the first, which is all that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place among the legs.
    pub source: u8,
    /// How many there are.
    pub legs: u8,
    /// [`names`] of the legs.
    pub names: u32,
}

/// A number that tells lists of legs apart.
pub fn names<'t>(legs: impl Iterator<Item = (&'t str, u64)>) -> u32 {
    let text: String = legs.map(|(dev, start)| format!("{dev} {start}\n")).collect();
    crc(text.as_bytes())
}

impl Record {
    fn read(bytes: &[u8]) -> Option<Record> {
        let bytes = bytes.get(..RECORD_LEN)?;
        let (said, sum) = bytes.split_at(RECORD_LEN - 4);
        if !said.starts_with(RECORD_MAGIC) || sum != crc(said).to_le_bytes() {
            return None;
        }
        Some(Record { source: said[8], legs: said[9], names: u32_at(said, 12)? })
    }

    fn bytes(self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..8].copy_from_slice(RECORD_MAGIC);
        (bytes[8], bytes[9]) = (self.source, self.legs);
        bytes[12..16].copy_from_slice(&self.names.to_le_bytes());
        let sum = crc(&bytes[..RECORD_LEN - 4]);
        bytes[RECORD_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What a log's header says that this program cannot deal with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("incompatible disk log version")]
pub struct Incompatible;

/// Checks the header of a log that is to be gone on with. One without the magic number is no log yet.
///
/// # Errors
/// It has another version.
pub fn check(sector: &[u8]) -> Result<(), Incompatible> {
    match (u32_at(sector, 0), u32_at(sector, 4)) {
        // Version 1 had the machine's byte order, which was this one where it matters.
        (Some(MAGIC), Some(1 | VERSION)) => Ok(()),
        (Some(MAGIC), _) => Err(Incompatible),
        _ => Ok(()),
    }
}

/// What a log begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// What it says; regions that it does not know are not clean.
    Logged,
    /// No region is clean.
    Dirty,
    /// All are.
    Clean,
}

/// A log as it is in memory: all of its bytes, and which of its blocks are still to be written.
pub struct Image {
    bytes: Vec<u8>,
    regions: u64,
    block: usize,
    touched: BTreeSet<usize>,
}

impl Image {
    /// Nothing but zeros, of so many regions, for a device with such blocks (bytes).
    pub fn new(regions: u64, block: u32) -> Image {
        let block = block.max(dm_table::SECTOR_SIZE as u32);
        let bytes = vec![0; len(regions, block) as usize];
        Image { bytes, regions, block: block as usize, touched: BTreeSet::new() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes over what is on the device at `at`.
    pub fn fill(&mut self, at: usize, read: impl FnOnce(&mut [u8])) {
        if let Some(bytes) = self.bytes.get_mut(at..) {
            read(bytes);
        }
    }

    /// Its bytes from `at` on.
    pub fn bytes(&self, at: usize) -> &[u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    /// Makes of what was found on the device the log of this mirror. All of it is to be written then.
    ///
    /// # Errors
    /// See [`check`].
    pub fn begin(&mut self, begin: Begin) -> Result<(), Incompatible> {
        let is_log = u32_at(&self.bytes, 0) == Some(MAGIC);
        let known = match begin {
            Begin::Logged if is_log => {
                check(&self.bytes)?;
                self.bytes.get(8..16).and_then(|n| n.try_into().ok()).map_or(0, u64::from_le_bytes)
            }
            _ => 0,
        };
        if !is_log || begin != Begin::Logged {
            self.set_record(None);
        }
        let bits = self.bytes.len() - BITS;
        let known = known.min(self.regions);
        for byte in 0..bits as u64 {
            // Bits of this byte that are told by the log, and those that stand for regions.
            let mask = |regions: u64| match regions.saturating_sub(byte * 8) {
                8.. => 0xff,
                n => (1u16 << n) as u8 - 1,
            };
            let (told, ours) = (mask(known), mask(self.regions));
            let new = if begin == Begin::Clean { 0xff } else { 0 };
            let place = &mut self.bytes[BITS + byte as usize];
            *place = ((*place & told) | (new & !told)) & ours;
        }
        self.bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&self.regions.to_le_bytes());
        self.touch_all();
        Ok(())
    }

    /// Whether a region is clean.
    pub fn is_clean(&self, region: u64) -> bool {
        self.bytes[BITS + (region / 8) as usize] & (1 << (region % 8)) != 0
    }

    /// Says of a region whether it is.
    pub fn set_clean(&mut self, region: u64, clean: bool) {
        let at = BITS + (region / 8) as usize;
        match clean {
            true => self.bytes[at] |= 1 << (region % 8),
            false => self.bytes[at] &= !(1 << (region % 8)),
        }
        self.touched.insert(at / self.block);
    }

    /// Which leg is not the first and has the newest data.
    pub fn record(&self) -> Option<Record> {
        Record::read(&self.bytes[RECORD..])
    }

    /// Says which.
    pub fn set_record(&mut self, record: Option<Record>) {
        let is_one = self.record().is_some();
        let place = &mut self.bytes[RECORD..RECORD + RECORD_LEN];
        match record {
            Some(record) => place.copy_from_slice(&record.bytes()),
            None if is_one => place.fill(0),
            None => return,
        }
        self.touched.insert(RECORD / self.block);
    }

    /// All of it is to be written.
    pub fn touch_all(&mut self) {
        self.touched.extend(0..self.bytes.len() / self.block);
    }

    /// A range of bytes that is to be written and is now taken for written; at most `most` bytes.
    pub fn take_touched(&mut self, most: usize) -> Option<std::ops::Range<usize>> {
        let first = self.touched.pop_first()?;
        let mut end = first + 1;
        while (end + 1 - first) * self.block <= most && self.touched.remove(&end) {
            end += 1;
        }
        Some(first * self.block..end * self.block)
    }

    /// It could not be written.
    pub fn touch(&mut self, bytes: std::ops::Range<usize>) {
        self.touched.extend(bytes.start / self.block..bytes.end.div_ceil(self.block));
    }

    /// Whether something is to be written.
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log as dm-log.c writes it on a little-endian machine.
    fn of_kernel(regions: u64, clean: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; len(regions, 512) as usize];
        bytes[..4].copy_from_slice(b"rRiM");
        bytes[4] = 2;
        bytes[8..16].copy_from_slice(&regions.to_le_bytes());
        clean.iter().for_each(|region| bytes[1024 + *region as usize / 8] |= 1 << (region % 8));
        bytes
    }

    fn image(bytes: &[u8], regions: u64) -> Image {
        let mut image = Image::new(regions, 512);
        image.fill(0, |place| {
            let n = place.len().min(bytes.len());
            place[..n].copy_from_slice(&bytes[..n]);
        });
        image
    }

    fn clean(image: &Image, regions: u64) -> Vec<u64> {
        (0..regions).filter(|region| image.is_clean(*region)).collect()
    }

    #[test]
    fn what_the_kernel_wrote_is_read_and_written_back_byte_for_byte() {
        let bytes = of_kernel(100, &[0, 7, 8, 63, 64, 99]);
        let mut image = image(&bytes, 100);
        image.begin(Begin::Logged).unwrap();
        assert_eq!(clean(&image, 100), [0, 7, 8, 63, 64, 99]);
        assert_eq!(image.bytes(0), bytes);
        image.set_clean(9, true);
        image.set_clean(99, false);
        assert_eq!(image.bytes(0), of_kernel(100, &[0, 7, 8, 9, 63, 64]));
    }

    #[test]
    fn a_mirror_that_has_grown_or_shrunk_keeps_what_is_known() {
        for (regions, known) in [(150, vec![0, 7, 99]), (60, vec![0, 7]), (8, vec![0, 7]), (7, vec![0])] {
            let mut grown = image(&of_kernel(100, &[0, 7, 99]), regions);
            grown.begin(Begin::Logged).unwrap();
            assert_eq!(clean(&grown, regions), known, "{regions} regions");
            // Bits behind the end count for a kernel that counts the bits that are set.
            let set: u32 = grown.bytes(1024).iter().map(|byte| byte.count_ones()).sum();
            assert_eq!(set as usize, known.len());
        }
    }

    #[test]
    fn begun_anew_it_is_of_one_mind() {
        for begin in [Begin::Dirty, Begin::Clean] {
            let mut image = image(&of_kernel(100, &[3]), 100);
            image.begin(begin).unwrap();
            assert_eq!(clean(&image, 100).len(), if begin == Begin::Clean { 100 } else { 0 });
        }
        let mut other = image(&[0xff; 4096], 100);
        other.begin(Begin::Logged).unwrap();
        assert_eq!(clean(&other, 100), [0u64; 0], "what is no log says nothing");
        let mut bytes = of_kernel(100, &[1]);
        bytes[4] = 3;
        assert_eq!(image(&bytes, 100).begin(Begin::Logged), Err(Incompatible));
        // As the kernel: one that is to be begun anew need not be understood.
        assert_eq!(image(&bytes, 100).begin(Begin::Dirty), Ok(()));
        bytes[4] = 1;
        assert_eq!(image(&bytes, 100).begin(Begin::Logged), Ok(()));
    }

    #[test]
    fn hostile_logs_are_taken_for_what_they_are() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let regions = rng.u64(1..5000);
            let mut bytes: Vec<u8> = (0..rng.usize(0..4096)).map(|_| rng.u8(..)).collect();
            if rng.bool() && bytes.len() > 16 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
            }
            let mut image = image(&bytes, regions);
            if image.begin(Begin::Logged).is_ok() {
                assert!(clean(&image, regions).len() as u64 <= regions);
                assert_eq!(image.record(), None);
            }
        }
    }

    #[test]
    fn a_record_is_beside_what_the_kernel_reads() {
        let mut image = image(&of_kernel(100, &[5]), 100);
        image.begin(Begin::Logged).unwrap();
        let record = Record { source: 1, legs: 2, names: names([("a", 0), ("b", 8)].into_iter()) };
        image.set_record(Some(record));
        assert_eq!(image.record(), Some(record));
        let mut bytes = image.bytes(0).to_vec();
        bytes[512..1024].fill(0);
        assert_eq!(bytes, of_kernel(100, &[5]));
        let mut other = image.bytes(0).to_vec();
        other[512 + 8] = 0;
        assert_eq!(super::tests::image(&other, 100).record(), None, "its sum is wrong");
        image.set_record(None);
        assert_eq!(image.bytes(0), of_kernel(100, &[5]));
        // A mirror that is synchronized from its first leg has nothing else that is newest.
        image.set_record(Some(record));
        image.begin(Begin::Dirty).unwrap();
        assert_eq!(image.record(), None);
    }

    #[test]
    fn what_was_touched_is_written_in_runs() {
        let mut image = Image::new(3 * 4096 * 8, 512);
        image.begin(Begin::Dirty).unwrap();
        assert_eq!(image.take_touched(4096), Some(0..4096));
        assert_eq!(image.take_touched(1 << 20), Some(4096..image.len()));
        assert!(!image.is_touched());
        image.set_clean(0, true);
        image.set_clean(4096, true);
        image.set_clean(3 * 4096, true);
        assert_eq!(image.take_touched(1 << 20), Some(1024..2048));
        image.touch(1024..2048);
        assert_eq!(image.take_touched(512), Some(1024..1536));
        assert_eq!(len(1, 512), 1536);
        assert_eq!(len(1, 4096), 4096);
        assert_eq!(len(8 * 512 + 1, 512), 2048);
    }
}
