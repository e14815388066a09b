//! The log of guest pages that were written, which a front end keeps while it migrates its guest (vhost-user, "Migration").
//!
//! One bit for each 4 KiB of guest-physical address space: page `n` is bit `n % 8` of byte `n / 8`. The front end takes
//! bits out, by exchanging whole words with zero, and sends the pages. So a bit is set after the bytes of its page have
//! been written, and always by an atomic OR: to leave out pages whose bit is seen set would need a full fence between
//! the bytes and the look, as the front end may have taken that bit, and copied the page, just before the bytes came.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion};

use super::fault::Guard;
use super::{Guest, HostSlice, page_size};

/// Bytes of guest memory that one bit stands for, whatever the page size of guest or host.
const PAGE: u64 = 4096;
/// Pages of one byte.
const BITS: u64 = u8::BITS as u64;

/// Why a log was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A log of nothing.
    #[error("dirty log: the front end says it has no bytes")]
    Empty,
    /// Where it should lie cannot be mapped.
    #[error("dirty log: it begins at byte {offset:#x} of its file, which is not a multiple of the page size ({page})")]
    Offset {
        /// What the front end said, in bytes.
        offset: u64,
        /// Page size of the file, in bytes.
        page: usize,
    },
    /// Touching it would raise SIGBUS.
    #[error(
        "dirty log: it has {size} bytes from byte {offset:#x} on, but its file has {have}; \
         the front end must share a file that holds all of it"
    )]
    FileTooSmall {
        /// What the front end said, in bytes.
        size: u64,
        /// What the front end said, in bytes.
        offset: u64,
        /// Size of the file, in bytes.
        have: u64,
    },
    /// Pages of guest memory have no bit in it.
    #[error(
        "dirty log: {size} bytes have bits for guest memory up to {:#x}, but the front end's regions end at {end:#x}; \
         {} bytes are needed, or migration would lose pages", size.saturating_mul(PAGE * BITS), bytes_for(*end)
    )]
    TooSmall {
        /// Size of the log, in bytes.
        size: u64,
        /// Guest-physical address behind the last region.
        end: u64,
    },
    /// The system's refusal.
    #[error("dirty log: {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Bytes of a log for guest memory that ends at `end`.
fn bytes_for(end: u64) -> u64 {
    end.div_ceil(PAGE).div_ceil(BITS)
}

/// A front end's log, mapped. Safe against truncation: see [`DirtyLog::broken`].
#[derive(Debug)]
pub struct DirtyLog {
    // Before `memory`: the range must not be guarded any more when it is unmapped.
    guard: Guard,
    memory: MmapRegion<()>,
}

impl DirtyLog {
    /// Maps the `size` bytes of a file from byte `offset` on.
    ///
    /// # Errors
    /// What is wrong with what the front end said, or the system's refusal.
    pub fn map(file: File, size: u64, offset: u64) -> Result<DirtyLog, LogError> {
        let system = |doing| move |source| LogError::System { doing, source };
        if size == 0 {
            return Err(LogError::Empty);
        }
        let page = page_size(&file);
        if !offset.is_multiple_of(page as u64) {
            return Err(LogError::Offset { offset, page });
        }
        let have = file.metadata().map_err(system("cannot ask for the size of its file"))?.len();
        if offset.checked_add(size).is_none_or(|end| end > have) {
            return Err(LogError::FileTooSmall { size, offset, have });
        }
        let len = usize::try_from(size).map_err(io::Error::other).map_err(system("it is too large"))?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        let memory = MmapRegion::build(Some(FileOffset::new(file, offset)), len, prot, flags)
            .map_err(io::Error::other)
            .map_err(system("it cannot be mapped for reading and writing"))?;
        let guard = Guard::new(memory.as_ptr() as usize, len, page).map_err(system("it cannot be guarded"))?;
        Ok(DirtyLog { guard, memory })
    }

    /// # Errors
    /// There is guest memory that has no bit in this log.
    pub fn check_covers(&self, guest: &Guest) -> Result<(), LogError> {
        let (size, end) = (self.memory.size() as u64, guest.end());
        if bytes_for(end) > size {
            return Err(LogError::TooSmall { size, end });
        }
        Ok(())
    }

    /// Notes that bytes `[gpa, gpa + len)` have been written. To be called after the writing, and before the driver is told
    /// of it, so that a process that dies in between does the request again.
    pub fn mark(&self, gpa: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (gpa / PAGE, gpa.saturating_add(len - 1) / PAGE);
        for at in first / BITS..=last / BITS {
            // Of this byte: the bits from the first page, up to the last one.
            let low = if at == first / BITS { u8::MAX << (first % BITS) } else { u8::MAX };
            let high = if at == last / BITS { u8::MAX >> (BITS - 1 - last % BITS) } else { u8::MAX };
            self.set(at, low & high);
        }
    }

    fn set(&self, at: u64, bits: u8) {
        if at >= self.memory.size() as u64 {
            // `check_covers` came first, so only an address that is no guest memory can lie here.
            debug_assert!(false, "page {at:#x} * 8 is not in the log");
            return;
        }
        // SAFETY: the byte lies inside the mapping, as was just checked, which lives as long as `self`; the front end shares
        // it, so it is only accessed atomically. A byte is always aligned.
        let byte = unsafe { AtomicU8::from_ptr(self.memory.as_ptr().add(at as usize)) };
        // Release: whoever takes the bit out sees the bytes it stands for.
        byte.fetch_or(bits, Ordering::Release);
    }

    /// Whether the front end has cut the log short. Bits have been lost then.
    #[inline]
    pub fn broken(&self) -> bool {
        self.guard.hit()
    }
}

impl Guest {
    /// Guest-physical address behind the last region.
    fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.gpa.saturating_add(region.len))
    }

    /// Notes in `log` that a slice of this memory has been written. Slices of other memory are none of the log's business.
    pub fn mark(&self, log: &DirtyLog, slice: &HostSlice) {
        let (start, mut left) = (slice.addr(), slice.len() as u64);
        for region in &self.regions {
            let Some(offset) = start.checked_sub(region.host as usize).map(|offset| offset as u64) else { continue };
            if offset < region.len {
                // A slice lies in one region.
                left = left.min(region.len - offset);
                return log.mark(region.gpa + offset, left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn log(size: u64, offset: u64) -> (File, DirtyLog) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(offset + size).unwrap();
        let log = DirtyLog::map(file.try_clone().unwrap(), size, offset).unwrap();
        (file, log)
    }

    /// Pages that are marked, and unmarks them.
    fn take(file: &File, offset: u64) -> Vec<u64> {
        let mut bytes = vec![0; (file.metadata().unwrap().len() - offset) as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        file.write_all_at(&vec![0; bytes.len()], offset).unwrap();
        (0..bytes.len() as u64 * 8).filter(|page| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0).collect()
    }

    fn guest(ranges: &[(u64, usize)]) -> Guest {
        let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
        Guest::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())).unwrap()
    }

    #[test]
    fn the_pages_of_a_range_are_marked_and_no_others() {
        let (file, log) = log(4096, 8192);
        log.mark(0, 0);
        assert!(take(&file, 8192).is_empty());
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let (gpa, len) = (rng.u64(0..100 << 12), rng.u64(1..200 << 12));
            log.mark(gpa, len);
            assert_eq!(take(&file, 8192), (gpa >> 12..=(gpa + len - 1) >> 12).collect::<Vec<_>>(), "{gpa:#x}+{len:#x}");
        }
        log.mark(4095, 1);
        log.mark(4096 * 32768 - 1, 1);
        assert_eq!(take(&file, 8192), [0, 32767]);
    }

    #[test]
    fn marks_add_up() {
        let (file, log) = log(8, 0);
        log.mark(0x3000, 1);
        log.mark(0x5000, 0x1001);
        log.mark(0x5000, 1);
        assert_eq!(take(&file, 0), [3, 5, 6]);
    }

    #[test]
    fn a_slice_is_marked_where_the_guest_has_it() {
        let (file, log) = log(64, 0);
        let guest = guest(&[(0x10000, 0x4000), (0x14000, 0x4000), (0x100000, 0x4000)]);
        log.check_covers(&guest).unwrap();
        for (gpa, len, pages) in [(0x10fff, 2, vec![16, 17]), (0x17000, 0x1000, vec![23]), (0x103fff, 1, vec![259])] {
            guest.mark(&log, &guest.contiguous(gpa, len).unwrap());
            assert_eq!(take(&file, 0), pages);
        }
        let elsewhere = super::super::Buffer::new(8192).unwrap();
        guest.mark(&log, &elsewhere.slice());
        guest.mark(&log, &guest.contiguous(0x10000, 0).unwrap());
        assert!(take(&file, 0).is_empty());
    }

    #[test]
    fn a_log_has_a_bit_for_every_page_of_guest_memory() {
        let (_file, log) = log(2, 0);
        for (end, fits) in [(0x1000, true), (0x10000, true), (0x11000, false)] {
            let guest = guest(&[(end - 0x1000, 0x1000)]);
            assert_eq!(log.check_covers(&guest).is_ok(), fits, "{end:#x}");
        }
        let error = log.check_covers(&guest(&[(1 << 40, 0x1000)])).unwrap_err().to_string();
        assert!(error.contains("2 bytes have bits for guest memory up to 0x10000"), "{error}");
        assert!(error.contains("33554433 bytes are needed"), "{error}");
    }

    #[test]
    fn what_a_front_end_may_get_wrong_is_refused() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8192).unwrap();
        let refused = |size, offset| DirtyLog::map(file.try_clone().unwrap(), size, offset).unwrap_err().to_string();
        assert!(refused(0, 0).contains("no bytes"));
        assert!(refused(4096, 8).contains("not a multiple of the page size"));
        for (size, offset) in
            [(8193, 0), (4097, 4096), (1, 8192), (u64::MAX, 4096), (u64::MAX - 4095, 4096), (1, 1 << 62)]
        {
            assert!(refused(size, offset).contains("its file has 8192"), "{size} at {offset}");
        }
        let (pipe, _end) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        assert!(DirtyLog::map(pipe, 1, 0).is_err());
        let read_only = tempfile::NamedTempFile::new().unwrap();
        read_only.as_file().set_len(4096).unwrap();
        let error = DirtyLog::map(File::open(read_only.path()).unwrap(), 4096, 0).unwrap_err().to_string();
        assert!(error.contains("cannot be mapped for reading and writing"), "{error}");
    }

    #[test]
    fn a_truncated_log_is_noticed_and_harmless() {
        let (file, log) = log(8192, 0);
        log.mark(0, 1);
        assert!(!log.broken());
        file.set_len(4096).unwrap();
        log.mark(0, 1);
        assert!(!log.broken());
        log.mark(5000 * 8 * 4096, 1);
        assert!(log.broken());
    }
}
