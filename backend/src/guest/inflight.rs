//! The record of requests under way that outlives this process (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! A front end keeps a shared file for us and gives it to whoever serves the ring next. Here is its layout and nothing
//! else: what the fields mean, and in which order they are written, is [`crate::inflight`]'s.
//!
//! The file comes from another process, which may write to it or cut it short at any time. So its fields are atomics,
//! every index is checked, and its holes are filled (see `fault`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{FileOffset, MmapRegion};

use super::fault::Guard;

/// Bytes in front of a queue's entries: features (8), version (2), number of entries (2), last batch head (2), used
/// index (2).
const HEADER: usize = 16;
/// Bytes of an entry: in flight (1), padding (5), next (2), counter (8).
const ENTRY: usize = 16;
/// Alignment of each queue's part, in bytes.
const ALIGN: u64 = 64;
/// What regions that we make have at their end, after the protocol's parts: this, and one word for the driver's choice of
/// cache mode (0: none, 1: write-through, 2: write-back). A front end does not repeat that choice to a successor of this
/// process, and a driver that believes in write-through never flushes. Others see a part that is a little longer.
const NOTE: u64 = u64::from_le_bytes(*b"dm-note1");
/// Bytes of the note.
const NOTE_SIZE: usize = 64;
/// More queues than a virtio device can have.
const MOST_QUEUES: u16 = 1024;

/// Why an in-flight region is refused.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// Numbers that describe no region.
    #[error("an in-flight region for {queues} queues of {entries} entries cannot be")]
    Numbers {
        /// Queues.
        queues: u16,
        /// Entries of each.
        entries: u16,
    },
    /// Too small for what it is to hold.
    #[error(
        "an in-flight region of {size} bytes is too small for {queues} queues of {entries} entries, which need {need}"
    )]
    TooSmall {
        /// Size that was given, in bytes.
        size: u64,
        /// Queues.
        queues: u16,
        /// Entries of each.
        entries: u16,
        /// Size that is needed, in bytes.
        need: u64,
    },
    /// Touching what is not there would raise SIGBUS.
    #[error("the in-flight region ends at byte {end} of its file, which has {have}")]
    FileTooSmall {
        /// End of the region in the file, in bytes.
        end: u64,
        /// Size of the file, in bytes.
        have: u64,
    },
    /// The system's refusal.
    #[error("cannot {0} the in-flight region: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Bytes of one queue's part.
fn stride(entries: u16) -> u64 {
    (HEADER as u64 + ENTRY as u64 * u64::from(entries)).next_multiple_of(ALIGN)
}

fn size(queues: u16, entries: u16) -> Result<u64, InflightError> {
    if queues == 0 || queues > MOST_QUEUES || entries == 0 || entries > 1 << 15 {
        return Err(InflightError::Numbers { queues, entries });
    }
    Ok(stride(entries) * u64::from(queues))
}

/// A region that was made for a front end.
#[derive(Debug)]
pub struct Offer {
    /// The file: zeroes, and a note at its end.
    pub file: File,
    /// Its size, in bytes.
    pub size: u64,
}

/// A front end's region, mapped.
#[derive(Debug)]
pub struct Inflight {
    stride: usize,
    queues: u16,
    // Where the note is, in bytes.
    note: Option<usize>,
    // Before `memory`: the range must not be guarded any more when it is unmapped.
    guard: Guard,
    memory: MmapRegion<()>,
}

impl Inflight {
    /// Makes a region for `queues` queues of up to `entries` entries (GET_INFLIGHT_FD).
    ///
    /// # Errors
    /// Numbers that cannot be, no memory, no descriptor.
    pub fn create(queues: u16, entries: u16) -> Result<Offer, InflightError> {
        let parts = size(queues, entries)?;
        let size = parts + NOTE_SIZE as u64;
        let failed = |error: rustix::io::Errno| InflightError::Io("make", error.into());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("vhost-user-dm-inflight", flags).map_err(failed)?);
        file.set_len(size)
            .and_then(|()| file.write_all_at(&NOTE.to_ne_bytes(), parts))
            .map_err(|error| InflightError::Io("make", error))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).map_err(failed)?;
        Ok(Offer { file, size })
    }

    /// Maps bytes `[offset, offset + size)` of a front end's file (SET_INFLIGHT_FD), which holds `queues` equal parts for
    /// at least `entries` entries each. The parts may be longer than that: front ends repeat the number of entries that
    /// they asked for, and [`Inflight::create`] may have been given a larger one.
    ///
    /// # Errors
    /// Numbers that do not fit together, or the system's.
    pub fn map(file: File, size: u64, offset: u64, queues: u16, entries: u16) -> Result<Inflight, InflightError> {
        let need = self::size(queues, entries)?;
        if size < need {
            return Err(InflightError::TooSmall { size, queues, entries, need });
        }
        let have = file.metadata().map_err(|error| InflightError::Io("look at", error))?.len();
        let end = offset.saturating_add(size);
        if end > have {
            return Err(InflightError::FileTooSmall { end, have });
        }
        let failed = |error| InflightError::Io("map", error);
        let len = usize::try_from(size).map_err(|error| failed(io::Error::other(error)))?;
        let page = super::page_size(&file);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let memory = MmapRegion::build(Some(FileOffset::new(file, offset)), len, prot, libc::MAP_SHARED)
            .map_err(|error| failed(io::Error::other(error)))?;
        let guard = Guard::new(memory.as_ptr() as usize, len, page).map_err(failed)?;
        let mut region = Inflight { stride: 0, queues, note: None, guard, memory };
        if len >= need as usize + NOTE_SIZE && len.is_multiple_of(NOTE_SIZE) {
            region.note = Some(len - NOTE_SIZE).filter(|at| region.word(*at).load(Ordering::Relaxed) == NOTE);
        }
        let parts = region.note.unwrap_or(len);
        region.stride = parts / usize::from(queues) / ALIGN as usize * ALIGN as usize;
        Ok(region)
    }

    /// 8 bytes of the mapping, at a multiple of 8.
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at.is_multiple_of(8) && at + 8 <= self.memory.size());
        // SAFETY: the 8 bytes lie inside the mapping, which lives as long as `self` and is aligned to a page; what is shared
        // is only accessed atomically.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }

    /// The cache mode that the driver has chosen, as far as is known here: `true` is write-through.
    pub fn choice(&self) -> Option<bool> {
        match self.word(self.note? + 8).load(Ordering::Relaxed) {
            1 => Some(true),
            2 => Some(false),
            _ => None,
        }
    }

    /// Notes the driver's choice for a successor of this process, where the region has a place for it.
    pub fn note_choice(&self, write_through: bool) {
        if let Some(at) = self.note {
            self.word(at + 8).store(if write_through { 1 } else { 2 }, Ordering::Relaxed);
        }
    }

    /// Entries of each queue's part.
    fn entries(&self) -> usize {
        (self.stride - HEADER) / ENTRY
    }
}

/// One queue's part of a region.
#[derive(Debug)]
pub struct Record {
    base: *mut u8,
    entries: u16,
    region: Arc<Inflight>,
}

// SAFETY: `base` points into memory that `region` keeps mapped and that is only accessed atomically, which any thread may.
unsafe impl Send for Record {}

impl Record {
    /// The part of queue `index`; `None` when the region has none for it or fewer than `entries` entries.
    pub fn new(region: &Arc<Inflight>, index: usize, entries: u16) -> Option<Record> {
        if index >= usize::from(region.queues) || region.entries() < usize::from(entries) {
            return None;
        }
        // SAFETY: index < queues, and queues parts of `stride` bytes lie inside the mapping.
        let base = unsafe { region.memory.as_ptr().add(index * region.stride) };
        Some(Record { base, entries, region: region.clone() })
    }

    /// Number of entries.
    #[inline]
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Whether a part of the file was found missing: what was read counts for nothing, what was written is lost.
    #[inline]
    pub fn broken(&self) -> bool {
        self.region.guard.hit()
    }

    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        // What is written until here is what a successor finds, if this process is killed now.
        #[cfg(test)]
        crate::sim::pause::reached();
        debug_assert!(offset < HEADER + ENTRY * usize::from(self.entries));
        // SAFETY: callers pass offsets of fields of the header or of an entry below `entries`, which `new` has found to
        // lie in the part.
        unsafe { self.base.add(offset) }
    }

    #[inline]
    fn field(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at`'s bytes stay mapped as long as `self`; the part is aligned to 64 bytes (a mapping to a page, or the
        // offset in its file, which mmap asks to be one) and the offset is even.
        unsafe { AtomicU16::from_ptr(self.at(offset).cast()) }
    }

    #[inline]
    fn entry(&self, head: u16) -> usize {
        HEADER + ENTRY * usize::from(head.min(self.entries - 1))
    }

    /// Layout version; 0 in a region that no one has used yet.
    pub fn version(&self) -> u16 {
        self.field(8).load(Ordering::Relaxed)
    }

    /// Marks the part as in use, with layout version 1.
    pub fn set_version(&self) {
        self.field(10).store(self.entries, Ordering::Relaxed);
        self.field(8).store(1, Ordering::Release);
    }

    /// First head of the last batch of used entries.
    pub fn last_batch_head(&self) -> u16 {
        self.field(12).load(Ordering::Relaxed)
    }

    /// See [`Record::last_batch_head`].
    #[inline]
    pub fn set_last_batch_head(&self, head: u16) {
        self.field(12).store(head, Ordering::Release);
    }

    /// Used index after the last batch that has been cleared.
    pub fn used_idx(&self) -> u16 {
        self.field(14).load(Ordering::Relaxed)
    }

    /// See [`Record::used_idx`].
    #[inline]
    pub fn set_used_idx(&self, index: u16) {
        self.field(14).store(index, Ordering::Release);
    }

    /// Whether the request with this head is under way.
    pub fn inflight(&self, head: u16) -> bool {
        // SAFETY: as in `field`; a byte needs no alignment.
        unsafe { AtomicU8::from_ptr(self.at(self.entry(head))) }.load(Ordering::Relaxed) == 1
    }

    /// See [`Record::inflight`].
    #[inline]
    pub fn set_inflight(&self, head: u16, under_way: bool) {
        // SAFETY: as in `field`; a byte needs no alignment.
        unsafe { AtomicU8::from_ptr(self.at(self.entry(head))) }.store(u8::from(under_way), Ordering::Release);
    }

    /// The head that follows in a batch.
    pub fn next(&self, head: u16) -> u16 {
        self.field(self.entry(head) + 6).load(Ordering::Relaxed)
    }

    /// See [`Record::next`].
    #[inline]
    pub fn set_next(&self, head: u16, next: u16) {
        self.field(self.entry(head) + 6).store(next, Ordering::Relaxed);
    }

    /// When the request was taken, in requests.
    pub fn counter(&self, head: u16) -> u64 {
        // SAFETY: as in `field`, at a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.at(self.entry(head) + 8).cast()) }.load(Ordering::Relaxed)
    }

    /// See [`Record::counter`].
    #[inline]
    pub fn set_counter(&self, head: u16, counter: u64) {
        // SAFETY: as in `field`, at a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.at(self.entry(head) + 8).cast()) }.store(counter, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(queues: u16, entries: u16) -> (File, Arc<Inflight>) {
        let offer = Inflight::create(queues, entries).unwrap();
        let file = offer.file.try_clone().unwrap();
        (file, Arc::new(Inflight::map(offer.file, offer.size, 0, queues, entries).unwrap()))
    }

    #[test]
    fn fields_lie_where_the_protocol_says() {
        let (file, region) = mapped(3, 5);
        // 16 + 5 * 16 = 96 bytes, rounded up to 128 for each queue.
        assert_eq!(file.metadata().unwrap().len(), 384 + 64);
        let record = Record::new(&region, 1, 5).unwrap();
        record.set_version();
        record.set_last_batch_head(0x0102);
        record.set_used_idx(0x0304);
        record.set_counter(4, 0x1122_3344_5566_7788);
        record.set_next(4, 0x0506);
        record.set_inflight(4, true);
        let mut bytes = [0; 384];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let mut expected = [0; 384];
        expected[128 + 8..128 + 16].copy_from_slice(&[1, 0, 5, 0, 2, 1, 4, 3]);
        expected[128 + 16 + 64..128 + 16 + 80]
            .copy_from_slice(&[1, 0, 0, 0, 0, 0, 6, 5, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes, expected);
        assert!(record.inflight(4) && record.counter(4) == 0x1122_3344_5566_7788 && record.next(4) == 0x0506);
        assert!((record.version(), record.last_batch_head(), record.used_idx()) == (1, 0x0102, 0x0304));
    }

    #[test]
    fn a_region_may_be_larger_than_what_is_said_of_it() {
        let offer = Inflight::create(2, 1024).unwrap();
        let region = Arc::new(Inflight::map(offer.file, offer.size, 0, 2, 128).unwrap());
        assert!(Record::new(&region, 1, 1024).is_some());
        assert!(Record::new(&region, 1, 2048).is_none());
        assert!(Record::new(&region, 2, 128).is_none());
    }

    #[test]
    fn the_note_is_there_only_where_we_made_the_region() {
        let (file, region) = mapped(2, 128);
        assert_eq!(region.choice(), None);
        region.note_choice(true);
        let size = file.metadata().unwrap().len();
        let again = Inflight::map(file, size, 0, 2, 64).unwrap();
        assert_eq!(again.choice(), Some(true));
        again.note_choice(false);
        assert_eq!(region.choice(), Some(false));
        let foreign = tempfile::tempfile_in("/dev/shm").unwrap();
        foreign.set_len(8192).unwrap();
        let foreign = Inflight::map(foreign, 8192, 0, 2, 128).unwrap();
        foreign.note_choice(true);
        assert_eq!(foreign.choice(), None);
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let file = |len: u64| {
            let file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.set_len(len).unwrap();
            file
        };
        for (len, size, offset, queues, entries) in [
            (4096, 4096, 0, 0, 128),
            (4096, 4096, 0, 1, 0),
            (4096, 4096, 0, 2000, 1),
            (4096, 4096, 0, 1, 40000),
            (4096, 0, 0, 1, 1),
            (4096, 63, 0, 1, 1),
            (4096, 4096, 0, 2, 128),
            (4096, 8192, 0, 1, 128),
            (8192, 4096, 8192, 1, 128),
            (8192, 4096, u64::MAX, 1, 128),
            (8192, 4096, 512, 1, 128),
            (8192, u64::MAX, 0, 1, 128),
        ] {
            let refused = Inflight::map(file(len), size, offset, queues, entries);
            assert!(refused.is_err(), "{len} {size} {offset} {queues} {entries}");
        }
        assert!(Inflight::map(file(8192), 4096, 4096, 1, 128).is_ok());
    }

    #[test]
    fn a_region_cut_short_is_noticed_and_harmless() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8192).unwrap();
        let region = Arc::new(Inflight::map(file.try_clone().unwrap(), 8192, 0, 1, 128).unwrap());
        let record = Record::new(&region, 0, 128).unwrap();
        record.set_inflight(3, true);
        assert!(!record.broken());
        file.set_len(0).unwrap();
        assert!(!record.inflight(3));
        assert!(record.broken());
    }
}
