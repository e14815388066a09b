//! The bytes of a persistent store (dm-snap-persistent.c), and the arithmetic of its layout.
//!
//! Chunk 0 is the header. Then come areas, each a chunk of metadata and behind it as many chunks of data as that has entries.
//! An entry is two little-endian numbers of chunks, of the origin and of the store; the list ends at the first entry whose
//! second number is 0.

use dm_table::SECTOR_SIZE;

/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
/// The only version that there is.
pub const VERSION: u32 = 1;
/// Bytes of an entry.
pub const ENTRY: u64 = 16;
/// Bytes of the header that mean something.
pub const HEADER: usize = 16;
/// Chunks before the first area.
const HEADERS: u64 = 1;
/// Largest chunk in sectors, a power of two: the kernel's bound is below 2^31 bytes.
const LARGEST: u64 = 1 << 21;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// False once the snapshot has lost something.
    pub valid: bool,
    /// See [`VERSION`].
    pub version: u32,
    /// Sectors of a chunk.
    pub chunk: u32,
}

/// What is where a header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeroes: the store is new.
    Nothing,
    /// A header.
    Header(Header),
    /// Something else.
    Foreign,
}

impl Header {
    /// Reads the first bytes of a store.
    pub fn find(bytes: &[u8; HEADER]) -> Found {
        let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        match word(0) {
            0 => Found::Nothing,
            MAGIC => Found::Header(Header { valid: word(4) != 0, version: word(8), chunk: word(12) }),
            _ => Found::Foreign,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let words = [MAGIC, u32::from(self.valid), self.version, self.chunk];
        let mut bytes = [0; HEADER];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A chunk of the origin that is kept in a chunk of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the chunk of the origin.
    pub old: u64,
    /// Number of the chunk of the store.
    pub new: u64,
}

impl Entry {
    /// Reads one; `None` where the list ends.
    pub fn read(bytes: &[u8]) -> Option<Entry> {
        let word = |n: usize| bytes.get(n..n + 8)?.try_into().ok().map(u64::from_le_bytes);
        let entry = Entry { old: word(0)?, new: word(8)? };
        (entry.new != 0).then_some(entry)
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&self.old.to_le_bytes());
        bytes[8..].copy_from_slice(&self.new.to_le_bytes());
        bytes
    }
}

/// Where things are in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    chunk: u64,
    size: u64,
    block: u64,
}

impl Layout {
    /// For chunks of so many sectors on a device of `size` sectors with blocks of `block` bytes.
    ///
    /// # Errors
    /// Why there can be no such store.
    pub fn new(chunk: u64, size: u64, block: u32) -> Result<Layout, &'static str> {
        // The texts are those of dm-exception-store.c.
        if chunk == 0 || !chunk.is_power_of_two() {
            return Err("Chunk size is not a power of 2");
        }
        let block = u64::from(block).max(SECTOR_SIZE);
        if !chunk.is_multiple_of(block / SECTOR_SIZE) {
            return Err("Chunk size is not a multiple of device blocksize");
        }
        if chunk > LARGEST {
            return Err("Chunk size is too high");
        }
        Ok(Layout { chunk, size, block })
    }

    /// Sectors of a chunk.
    #[inline]
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk * SECTOR_SIZE
    }

    /// Sectors of the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whole chunks of the device.
    pub fn chunks(&self) -> u64 {
        self.size / self.chunk
    }

    /// Entries of an area.
    pub fn entries(&self) -> u64 {
        self.chunk_bytes() / ENTRY
    }

    /// The chunk that has an area's metadata. Saturates beyond the device.
    pub fn area(&self, area: u64) -> u64 {
        HEADERS.saturating_add((self.entries() + 1).saturating_mul(area))
    }

    /// Whether an area's metadata is on the device.
    pub fn has_area(&self, area: u64) -> bool {
        area < self.areas()
    }

    /// Areas of which the metadata is on the device.
    pub fn areas(&self) -> u64 {
        self.chunks().saturating_sub(HEADERS).div_ceil(self.entries() + 1)
    }

    /// Whether a chunk is for data: neither the header nor metadata, and on the device.
    pub fn is_data(&self, chunk: u64) -> bool {
        chunk > HEADERS && chunk < self.chunks() && chunk % (self.entries() + 1) != HEADERS
    }

    /// The first chunk from `chunk` on that is no metadata.
    pub fn next(&self, chunk: u64) -> u64 {
        if chunk % (self.entries() + 1) == HEADERS { chunk + 1 } else { chunk }
    }

    /// The first chunk behind `chunk` that is metadata.
    pub fn metadata_after(&self, chunk: u64) -> u64 {
        let stride = self.entries() + 1;
        (chunk.saturating_sub(HEADERS) / stride + 1).saturating_mul(stride).saturating_add(HEADERS)
    }

    /// First chunk for data.
    pub fn first(&self) -> u64 {
        HEADERS + 1
    }

    /// Bytes that are read and written at a time of an area that entries are added to.
    pub fn unit(&self) -> u64 {
        self.block.max(4096).min(self.chunk_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_the_kernels() {
        // From a kernel's store: the transcript of the oracle, "cow sector 0".
        let bytes = *b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0";
        let header = Header { valid: true, version: 1, chunk: 8 };
        assert_eq!(Header::find(&bytes), Found::Header(header));
        assert_eq!(header.bytes(), bytes);
        assert_eq!(Header::find(&[0; 16]), Found::Nothing);
        assert_eq!(Header::find(&[1; 16]), Found::Foreign);
    }

    #[test]
    fn entries_are_two_numbers_and_end_at_a_chunk_0() {
        let bytes = [5, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(Entry::read(&bytes), Some(Entry { old: 5, new: 260 }));
        assert_eq!(Entry { old: 5, new: 260 }.bytes(), bytes);
        assert_eq!(Entry::read(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Entry::read(&bytes[..15]), None);
    }

    #[test]
    fn areas_follow_each_other_with_their_data_between() {
        let layout = Layout::new(8, 8 * 600, 512).unwrap();
        assert_eq!((layout.entries(), layout.chunks()), (256, 600));
        assert_eq!([0, 1, 2].map(|area| layout.area(area)), [1, 258, 515]);
        let data = |chunk| layout.is_data(chunk);
        assert!(!data(0) && !data(1) && data(2) && data(257) && !data(258) && data(259) && !data(515) && data(599));
        assert!(!data(600) && !data(u64::MAX));
        assert_eq!([2, 257, 259].map(|chunk| layout.metadata_after(chunk)), [258, 258, 515]);
        assert_eq!([257, 258, 259].map(|chunk| layout.next(chunk)), [257, 259, 259]);
        assert!(layout.has_area(2) && !layout.has_area(3) && !layout.has_area(u64::MAX));
        let areas = |chunks: u64| Layout::new(8, 8 * chunks, 512).unwrap().areas();
        assert_eq!([0, 1, 2, 258, 259, 515, 516].map(areas), [0, 0, 1, 1, 2, 2, 3]);
    }

    #[test]
    fn chunk_sizes_are_the_kernels() {
        for (chunk, block, reason) in [
            (0, 512, "Chunk size is not a power of 2"),
            (24, 512, "Chunk size is not a power of 2"),
            (4, 4096, "Chunk size is not a multiple of device blocksize"),
            (1 << 22, 512, "Chunk size is too high"),
        ] {
            assert_eq!(Layout::new(chunk, 1 << 30, block), Err(reason));
        }
        assert!(Layout::new(1 << 21, 1 << 30, 4096).is_ok());
        assert_eq!(Layout::new(1, 64, 512).unwrap().unit(), 512);
        assert_eq!(Layout::new(64, 640, 512).unwrap().unit(), 4096);
    }
}
