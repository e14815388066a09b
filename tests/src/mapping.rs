//! The only `unsafe` of this crate: a mapping of guest memory that another process reads and writes too.
//!
//! No reference into the mapping ever leaves this module. Everything is copied in or out by raw pointer or
//! goes through an atomic, and every access is checked against the length of the mapping.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared, readable and writable mapping of a part of a file.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory that lives until drop; all access goes through the checked
// methods below, which hand out no references.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent access is either atomic or a byte copy whose result the caller treats as
// arbitrary bytes, as it must anyway because the back end writes the same memory at any time.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from byte `offset` (a multiple of the page size) on.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no mapping of ours is replaced; the length is the
        // one that drop unmaps.
        let base =
            unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { base, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes (a mapping never does: `mmap` refuses it).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "test bug: access of {len} bytes at {offset:#x} in a mapping of {:#x} bytes",
            self.len
        );
        assert!(offset.is_multiple_of(align), "test bug: unaligned atomic");
        // SAFETY: offset + len <= self.len was just checked, so the result is inside the mapping or one
        // past its end (for len 0).
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len(), 1);
        // SAFETY: `from` is valid for out.len() bytes (checked in `at`), `out` is private memory and so
        // cannot overlap; a racing writer can only make the copied bytes arbitrary, and any byte is valid.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, data: &[u8]) {
        let to = self.at(offset, data.len(), 1);
        // SAFETY: as in `read`, with the direction reversed.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) }
    }

    /// Sets `len` bytes to `value`.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let to = self.at(offset, len, 1);
        // SAFETY: `to` is valid for len bytes, checked in `at`.
        unsafe { ptr::write_bytes(to, value, len) }
    }

    /// Reads a little-endian u16 (an index of a ring); what was stored before it by its writer is visible.
    pub fn load_u16(&self, offset: usize) -> u16 {
        let cell = self.at(offset, 2, 2).cast::<u16>();
        // SAFETY: in bounds and aligned (the mapping is page aligned, the offset was checked); every
        // concurrent access to a ring index is atomic on both sides.
        u16::from_le(unsafe { AtomicU16::from_ptr(cell) }.load(Ordering::Acquire))
    }

    /// Publishes a little-endian u16 after everything written before it.
    pub fn store_u16(&self, offset: usize, value: u16) {
        let cell = self.at(offset, 2, 2).cast::<u16>();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(cell) }.store(value.to_le(), Ordering::Release);
    }

    /// Reads a little-endian u64.
    pub fn load_u64(&self, offset: usize) -> u64 {
        let cell = self.at(offset, 8, 8).cast::<u64>();
        // SAFETY: as in `load_u16`.
        u64::from_le(unsafe { AtomicU64::from_ptr(cell) }.load(Ordering::Relaxed))
    }

    /// Writes a little-endian u64.
    pub fn store_u64(&self, offset: usize, value: u64) {
        let cell = self.at(offset, 8, 8).cast::<u64>();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU64::from_ptr(cell) }.store(value.to_le(), Ordering::Relaxed);
    }

    /// A full barrier: needed between publishing an index and looking at the other side's wish for a
    /// notification (virtio 1.2, 2.7.13.3.1).
    pub fn barrier() {
        fence(Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mmap above, and no pointer derived from it outlives self.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
