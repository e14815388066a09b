//! Guest memory as a worker sees it.
//!
//! This module and `uring` are the only places with `unsafe`. What makes it sound:
//!
//! * A [`HostSlice`] is only made by [`Guest::translate`] and friends, from a region that [`Guest`] keeps mapped, or
//!   by [`Buffer`], which owns its mapping.
//! * A queue holds its `Arc<Guest>` until it has drained: no slot, no operation in the kernel and no bounce copy that
//!   was made from that generation is left when the `Arc` goes (see `worker::queue`). A [`Buffer`] goes back to its
//!   pool only when its operation has completed.
//! * Whoever shares a mapping may truncate its file: see `fault`.
//! * The guest may change its memory at any time, so memory is touched through raw pointers, atomics and copies, never
//!   through references; what is judged is copied first.
#![allow(unsafe_code)]

mod fault;
mod inflight;
mod log;
mod mapping;
mod split;
mod stream;

pub use inflight::{Inflight, InflightError, Offer, Record};
pub use log::{DirtyLog, LogError};
pub use mapping::Mapping;
pub use split::{Desc, RingError, SplitRing};

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use fault::Guard;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

/// A window of memory in this process: laid out like a C `iovec`, so that a list of them is one.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HostSlice {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a HostSlice is an address and a length; what may be done with it, and until when, is the same in every thread.
unsafe impl Send for HostSlice {}

impl HostSlice {
    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address in this process.
    #[inline]
    pub fn addr(&self) -> usize {
        self.ptr as usize
    }

    /// For an SQE.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The part that starts at byte `skip` and is at most `len` bytes long; shorter where the slice ends.
    #[inline]
    pub fn part(&self, skip: usize, len: usize) -> HostSlice {
        let skip = skip.min(self.len);
        HostSlice {
            // SAFETY: skip <= self.len, so the pointer stays inside (or one past the end of) the same mapping.
            ptr: unsafe { self.ptr.add(skip) },
            len: len.min(self.len - skip),
        }
    }

    /// Asks the CPU for the first line of the slice, which may soon be read and written.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint: it changes nothing and never faults. CPUs that do not know this one take it for a
        // no-op.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) self.ptr, options(nostack, preserves_flags));
        }
    }

    /// Writes zeroes over the whole slice.
    #[inline]
    pub fn fill_zero(&self) {
        // SAFETY: the slice lies inside a mapping that is alive (see the module's text).
        unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) }
    }

    /// Copies the first bytes of the slice out; returns how many (the shorter of the two lengths).
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let n = self.len.min(to.len());
        // SAFETY: source inside a live mapping, destination an exclusive reference of ours; they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, to.as_mut_ptr(), n) }
        n
    }

    /// The first `N` bytes; `None` when the slice is shorter.
    #[inline]
    pub fn first<const N: usize>(&self) -> Option<[u8; N]> {
        // SAFETY: N bytes from the start lie inside a live mapping; bytes need no alignment and have no invalid values.
        (self.len >= N).then(|| unsafe { self.ptr.cast::<[u8; N]>().read_volatile() })
    }

    /// Writes one byte at the start of the slice, if it has one.
    #[inline]
    pub fn set_first(&self, byte: u8) {
        if self.len > 0 {
            // SAFETY: the byte lies inside a live mapping.
            unsafe { self.ptr.write_volatile(byte) }
        }
    }

    /// Copies `from` to the start of the slice; returns how many bytes fitted.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = self.len.min(from.len());
        // SAFETY: destination inside a live mapping, source a reference of ours; they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr, n) }
        n
    }

    /// As [`HostSlice::copy_from`] of slices that do not overlap, for a destination that is not in the caches and need not
    /// be.
    #[inline]
    pub fn stream_from(&self, from: &HostSlice) -> usize {
        let n = self.len.min(from.len);
        // SAFETY: both have n bytes inside live mappings.
        let done = unsafe { stream::stream(from.ptr, self.ptr, n) };
        done + self.part(done, n - done).copy_from(&from.part(done, n - done))
    }

    /// Copies as much of `from` as fits; returns the number of bytes. The two may overlap: a guest may give us one
    /// buffer twice.
    #[inline]
    pub fn copy_from(&self, from: &HostSlice) -> usize {
        let n = self.len.min(from.len);
        // SAFETY: both inside live mappings; ptr::copy allows overlap.
        unsafe { std::ptr::copy(from.ptr, self.ptr, n) }
        n
    }
}

/// Why a set of memory regions was refused.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Touching such a region would raise SIGBUS.
    #[error(
        "memory region at guest address {gpa:#x} needs {need} bytes of its file, which has {have}; \
         the front end must share files at least as large as its regions"
    )]
    FileTooSmall {
        /// Guest-physical address of the region.
        gpa: u64,
        /// End of the mapping in its file, in bytes.
        need: u64,
        /// Size of the file, in bytes.
        have: u64,
    },
    /// The file's size cannot be asked for.
    #[error("memory region at guest address {gpa:#x}: cannot ask for the size of its file: {source}")]
    Stat {
        /// Guest-physical address of the region.
        gpa: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The region cannot be made safe against truncation.
    #[error("memory region at guest address {gpa:#x}: {source}")]
    Guard {
        /// Guest-physical address of the region.
        gpa: u64,
        /// Why.
        source: std::io::Error,
    },
}

struct Region {
    gpa: u64,
    len: u64,
    host: *mut u8,
}

/// One generation of guest memory: a set of regions that stays mapped as long as this lives.
pub struct Guest {
    regions: Box<[Region]>,
    // Before `memory`: the ranges must not be guarded any more when they are unmapped.
    guards: Box<[Guard]>,
    // Keeps the mappings of `regions` alive.
    memory: Arc<GuestMemoryMmap<()>>,
}

// SAFETY: `regions` is never changed, and its pointers are used for volatile access to shared memory only, which any
// thread may do.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

impl Guest {
    /// Takes over a memory map as the front end set it, after a check that every region is backed by its file.
    ///
    /// # Errors
    /// A region that ends behind its file's end.
    pub fn new(memory: Arc<GuestMemoryMmap<()>>) -> Result<Guest, GuestError> {
        let mut regions = Vec::new();
        let mut guards = Vec::new();
        for region in memory.iter() {
            let gpa = region.start_addr().0;
            if let Some(file) = region.file_offset() {
                let have = file.file().metadata().map_err(|source| GuestError::Stat { gpa, source })?.len();
                let need = file.start().saturating_add(region.len());
                if need > have {
                    return Err(GuestError::FileTooSmall { gpa, need, have });
                }
                let page = page_size(file.file());
                let guard = Guard::new(region.as_ptr() as usize, region.len() as usize, page);
                guards.push(guard.map_err(|source| GuestError::Guard { gpa, source })?);
            }
            regions.push(Region { gpa, len: region.len(), host: region.as_ptr() });
        }
        regions.sort_by_key(|r| r.gpa);
        Ok(Guest { regions: regions.into_boxed_slice(), guards: guards.into_boxed_slice(), memory })
    }

    /// Whether a part of the memory was found missing: its file was truncated. Nothing that is read from it counts.
    #[inline]
    pub fn broken(&self) -> bool {
        self.guards.iter().any(Guard::hit)
    }

    /// Everything that is mapped.
    pub(crate) fn slices(&self) -> impl Iterator<Item = HostSlice> {
        self.regions.iter().map(|region| HostSlice { ptr: region.host, len: region.len as usize })
    }

    /// The size of a file behind it, in bytes, and how many of them there are, where that is less: the rest is made when it is
    /// first touched.
    pub(crate) fn missing(&self) -> Option<(u64, u64)> {
        let files = self.memory.iter().filter_map(|region| region.file_offset());
        let sizes = files.filter_map(|file| file.file().metadata().ok()).map(|stat| (stat.size(), stat.blocks() * 512));
        sizes.into_iter().find(|(size, allocated)| allocated < size)
    }

    #[inline]
    fn region(&self, gpa: u64) -> Option<&Region> {
        // A guest has two or three regions, a memory-hotplug guest hundreds.
        let index = if self.regions.len() <= 4 {
            self.regions.iter().rposition(|r| r.gpa <= gpa)?
        } else {
            self.regions.partition_point(|r| r.gpa <= gpa).checked_sub(1)?
        };
        let region = &self.regions[index];
        (gpa - region.gpa < region.len).then_some(region)
    }

    /// Appends the host's slices of guest-physical `[gpa, gpa + len)` to `out`; more than one where the range runs over
    /// adjacent regions. Returns `false`, and appends nothing, when a part of it is not guest memory.
    #[inline]
    pub fn translate(&self, gpa: u64, len: u64, out: &mut Vec<HostSlice>) -> bool {
        if let Some(slice) = self.contiguous(gpa, len) {
            out.push(slice);
            return true;
        }
        self.translate_pieces(gpa, len, out)
    }

    #[cold]
    fn translate_pieces(&self, mut gpa: u64, mut len: u64, out: &mut Vec<HostSlice>) -> bool {
        let before = out.len();
        while len > 0 {
            let Some(region) = self.region(gpa) else {
                out.truncate(before);
                return false;
            };
            let n = (region.len - (gpa - region.gpa)).min(len);
            out.extend(self.contiguous(gpa, n));
            len -= n;
            // A range that wraps the address space runs out of regions on its next turn.
            gpa = gpa.wrapping_add(n);
        }
        true
    }

    /// The host's slice of a range that lies in one region.
    #[inline]
    pub fn contiguous(&self, gpa: u64, len: u64) -> Option<HostSlice> {
        let region = self.region(gpa)?;
        let offset = gpa - region.gpa;
        if len > region.len - offset {
            return None;
        }
        // SAFETY: offset < region.len, so the pointer stays inside the region's mapping.
        let ptr = unsafe { region.host.add(offset as usize) };
        Some(HostSlice { ptr, len: len as usize })
    }
}

/// Page size of a mapping of `file`, in bytes: huge ones on hugetlbfs.
pub fn page_size(file: &std::fs::File) -> usize {
    const HUGETLBFS: u32 = 0x9584_58f6;
    match rustix::fs::fstatfs(file) {
        Ok(stat) if stat.f_type as u32 == HUGETLBFS => stat.f_bsize as usize,
        _ => rustix::param::page_size(),
    }
}

/// Page-aligned memory of our own, for transfers that a component cannot take from guest memory as it is.
pub struct Buffer {
    memory: MmapRegion<()>,
}

impl Buffer {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// No memory.
    pub fn new(len: usize) -> std::io::Result<Buffer> {
        let memory = MmapRegion::new(len).map_err(std::io::Error::other)?;
        Ok(Buffer { memory })
    }

    /// The whole buffer as a slice.
    pub fn slice(&self) -> HostSlice {
        HostSlice { ptr: self.memory.as_ptr(), len: self.memory.size() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    fn guest(ranges: &[(u64, usize)]) -> Guest {
        let ranges: Vec<_> = ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect();
        Guest::new(Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())).unwrap()
    }

    #[test]
    fn translate_respects_region_borders() {
        let guest = guest(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]);
        let mut out = Vec::new();
        assert!(guest.translate(0x1ff0, 0x20, &mut out));
        assert_eq!(out.iter().map(HostSlice::len).collect::<Vec<_>>(), [0x10, 0x10]);
        for (gpa, len) in [(0xfff, 1), (0x2ff0, 0x11), (0x9000, 1), (u64::MAX, 2), (0x8000, u64::MAX), (0, 0x2000)] {
            assert!(!guest.translate(gpa, len, &mut out), "{gpa:#x}+{len:#x}");
            assert_eq!(out.len(), 2);
        }
        assert_eq!(guest.contiguous(0x8fff, 1).unwrap().len(), 1);
        assert!(guest.contiguous(0x1ff0, 0x20).is_none());
    }

    #[test]
    fn a_region_behind_the_end_of_its_file_is_refused() {
        use vm_memory::{FileOffset, GuestRegionMmap};
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        let map = MmapRegion::from_file(FileOffset::new(file, 0), 0x2000).unwrap();
        let region = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let error = Guest::new(Arc::new(memory)).err().unwrap().to_string();
        assert!(error.contains("needs 8192 bytes of its file, which has 4096"), "{error}");
    }

    #[test]
    fn truncated_guest_memory_is_noticed_and_harmless() {
        use vm_memory::{FileOffset, GuestRegionMmap};
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x4000).unwrap();
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 0x4000).unwrap();
        let region = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
        let guest = Guest::new(Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())).unwrap();
        guest.contiguous(0x3000, 16).unwrap().write(&[1; 16]);
        assert!(!guest.broken());
        file.set_len(0x1000).unwrap();
        guest.contiguous(0x2000, 16).unwrap().write(&[1; 16]);
        assert!(guest.broken());
    }

    #[test]
    fn parts_never_leave_their_slice() {
        let buffer = Buffer::new(4096).unwrap();
        let all = buffer.slice();
        assert_eq!(all.part(4000, 500).len(), 96);
        assert!(all.part(5000, 1).is_empty());
        assert_eq!(all.part(10, 4).write(b"abcdef"), 4);
        let mut back = [0; 8];
        assert_eq!(all.part(8, 8).read(&mut back), 8);
        assert_eq!(&back, b"\0\0abcd\0\0");
    }
}
