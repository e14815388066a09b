//! A component file that lies in memory, mapped: a transfer is a copy, without a system call.
//!
//! Touching a hole of such a file allocates it, even by a read. So a read goes through the mapping only where the file is
//! known to have its pages ([`Mapping::readable`]); elsewhere it is left to the engine, to which a hole costs nothing.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{FileOffset, MmapRegion};

use super::HostSlice;
use super::fault::Guard;

/// Unit in which pages are looked for, in bytes.
const CHUNK: u64 = 64 << 10;
/// Chunks of one word of bits.
const BITS: u64 = u64::BITS as u64;
/// Larger files are not worth their bits.
const LARGEST: u64 = 16 << 40;

/// See the module's text. Safe against truncation: see [`Mapping::broken`].
#[derive(Debug)]
pub struct Mapping {
    // A bit for each chunk, set when all its pages have been seen.
    present: Box<[AtomicU64]>,
    // Before `memory`: the range must not be guarded any more when it is unmapped.
    guard: Guard,
    memory: MmapRegion<()>,
    writable: bool,
}

impl Mapping {
    /// Maps the first `len` bytes of a file with pages of `page` bytes.
    ///
    /// # Errors
    /// The system's, or a file that is too large.
    pub fn new(file: &File, len: u64, writable: bool, page: usize) -> io::Result<Mapping> {
        if len > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let words = len.div_ceil(CHUNK).div_ceil(BITS);
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let file = FileOffset::new(file.try_clone()?, 0);
        let memory = MmapRegion::build(Some(file), len, prot, flags).map_err(io::Error::other)?;
        let present = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Mapping { present, guard: Guard::new(memory.as_ptr() as usize, len, page)?, memory, writable })
    }

    /// Bytes `[at, at + len)` of the file; `None` when they are not all in it.
    #[inline]
    pub fn slice(&self, at: u64, len: u64) -> Option<HostSlice> {
        let size = self.memory.size() as u64;
        if at > size || len > size - at {
            return None;
        }
        // SAFETY: at <= size, so the pointer lies inside the mapping or at its end.
        let ptr = unsafe { self.memory.as_ptr().add(at as usize) };
        Some(HostSlice { ptr, len: len as usize })
    }

    /// Whether bytes `[at, at + len)` have their pages, so that reading them here allocates nothing.
    #[inline]
    pub fn readable(&self, at: u64, len: u64) -> bool {
        let (first, last) = (at / CHUNK, at.saturating_add(len.saturating_sub(1)) / CHUNK);
        (first..=last).all(|chunk| {
            let Some(word) = self.present.get((chunk / BITS) as usize) else { return false };
            let bit = 1 << (chunk % BITS);
            if word.load(Ordering::Relaxed) & bit != 0 {
                return true;
            }
            let there = self.look(chunk);
            if there {
                word.fetch_or(bit, Ordering::Relaxed);
            }
            there
        })
    }

    /// Asks the system whether all pages of a chunk are there.
    #[cold]
    fn look(&self, chunk: u64) -> bool {
        let Some(rest) = (self.memory.size() as u64).checked_sub(chunk * CHUNK) else { return false };
        let Some(slice) = self.slice(chunk * CHUNK, rest.min(CHUNK)) else { return false };
        let mut pages = [0u8; (CHUNK / 4096) as usize];
        // SAFETY: the range is mapped, starts at a page (the mapping does, chunks are multiples of pages), and there is a byte
        // for each page of at least 4 KiB in it.
        let asked = unsafe { libc::mincore(slice.ptr.cast(), slice.len, pages.as_mut_ptr()) };
        let page = rustix::param::page_size();
        asked == 0 && pages[..slice.len.div_ceil(page)].iter().all(|page| page & 1 != 0)
    }

    /// Pages of bytes `[at, at + len)` may be freed from now on.
    pub fn forget(&self, at: u64, len: u64) {
        let (first, last) = (at / CHUNK, at.saturating_add(len) / CHUNK);
        for index in first / BITS..=last / BITS {
            let Some(word) = self.present.get(index as usize) else { return };
            let below = if index == first / BITS { (1 << (first % BITS)) - 1 } else { 0 };
            let above = if index == last / BITS { (u64::MAX << (last % BITS)) << 1 } else { 0 };
            word.fetch_and(below | above, Ordering::Relaxed);
        }
    }

    /// Whether bytes of it may be changed; that of a file that is open for reading alone would be a crash.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether a part of the file was found missing (it was truncated, or its file system was full). From then on the
    /// mapping does not show the file, and transfers, the last one included, must go another way.
    #[inline]
    pub fn broken(&self) -> bool {
        self.guard.hit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_file_is_noticed_and_harmless() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(16384).unwrap();
        let mapping = Mapping::new(&file, 16384, true, 4096).unwrap();
        mapping.slice(8192, 4096).unwrap().write(&[5; 4096]);
        assert!(!mapping.broken());
        file.set_len(4096).unwrap();
        let mut bytes = [1; 4096];
        mapping.slice(8192, 4096).unwrap().read(&mut bytes);
        assert!(mapping.broken());
        assert_eq!(bytes, [0; 4096]);
        assert!(mapping.slice(16384, 1).is_none());
        assert!(mapping.slice(u64::MAX, u64::MAX).is_none());
    }

    #[test]
    fn reading_a_hole_is_left_to_others() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(10 * CHUNK + 512).unwrap();
        file.write_all_at(&vec![1; 2 * CHUNK as usize], CHUNK).unwrap();
        file.write_all_at(&[1; 512], 10 * CHUNK).unwrap();
        let allocated = file.metadata().unwrap().blocks();
        let mapping = Mapping::new(&file, 10 * CHUNK + 512, true, 4096).unwrap();
        assert!(mapping.readable(CHUNK, 2 * CHUNK));
        assert!(mapping.readable(2 * CHUNK - 512, 1024));
        assert!(mapping.readable(10 * CHUNK, 512));
        for (at, len) in [(0, 512), (CHUNK - 512, 1024), (3 * CHUNK - 512, 1024), (9 * CHUNK, CHUNK + 512)] {
            assert!(!mapping.readable(at, len), "{at}+{len}");
        }
        assert!(!mapping.readable(11 * CHUNK, 512));
        assert_eq!(file.metadata().unwrap().blocks(), allocated);
        let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, mode, CHUNK, CHUNK).unwrap();
        mapping.forget(CHUNK, CHUNK);
        assert!(!mapping.readable(CHUNK, 512));
    }

    #[test]
    fn forgetting_hits_the_chunks_of_a_range_and_no_others() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(200 * CHUNK).unwrap();
        let mapping = Mapping::new(&file, 200 * CHUNK, true, 4096).unwrap();
        for (at, len) in [(0u64, 1u64), (63, 1), (63, 2), (5, 150), (127, 64), (64, 64), (199, 1)] {
            mapping.present.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            mapping.forget(at * CHUNK, len * CHUNK - 1);
            for chunk in 0..200 {
                let set = mapping.present[(chunk / BITS) as usize].load(Ordering::Relaxed) & (1 << (chunk % BITS)) != 0;
                assert_eq!(set, chunk < at || chunk >= at + len, "{chunk} after {at}+{len}");
            }
        }
    }

    #[test]
    fn a_mapping_is_the_file() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8192).unwrap();
        let mapping = Mapping::new(&file, 8192, true, 4096).unwrap();
        mapping.slice(4095, 3).unwrap().write(b"abc");
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 4095).unwrap();
        assert_eq!(&bytes, b"abc");
    }
}
