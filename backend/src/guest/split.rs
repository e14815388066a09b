//! The memory of a split virtqueue (virtio 1.2, 2.7): bounds and alignment are checked once, when the ring starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{DirtyLog, Guest, HostSlice};

/// A descriptor as it was when it was read; the guest may have changed it since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// Next descriptor, where the flags say so.
    pub next: u16,
}

/// Size of a descriptor in guest memory, in bytes.
pub const DESC_SIZE: usize = 16;

/// Why a ring cannot be started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    /// virtio 1.2, 2.7: the queue size is a power of two.
    #[error("ring size {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// A part of the ring is not guest memory.
    #[error("{part} at guest address {gpa:#x} (ring size {size}) does not lie in one memory region")]
    Outside {
        /// Which part.
        part: &'static str,
        /// Where it was said to be.
        gpa: u64,
        /// The ring's size in entries.
        size: u16,
    },
    /// virtio 1.2, 2.7: alignment of the three parts.
    #[error("{part} at guest address {gpa:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Where it was said to be.
        gpa: u64,
        /// What the specification asks for, in bytes.
        align: usize,
    },
}

/// A split virtqueue in guest memory.
pub struct SplitRing {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    mask: u16,
    // While the front end migrates its guest: its log, and the guest-physical address of the used ring.
    log: Option<(Arc<DirtyLog>, u64)>,
    // Keeps the ring mapped.
    _guest: Arc<Guest>,
}

// SAFETY: one queue owns the ring; it moves to its worker's thread with its queue.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks that the three parts lie in guest memory, each in one region and aligned.
    ///
    /// # Errors
    /// What is wrong with which part.
    pub fn new(guest: &Arc<Guest>, size: u16, desc: u64, avail: u64, used: u64) -> Result<SplitRing, RingError> {
        if !size.is_power_of_two() {
            return Err(RingError::Size(size));
        }
        let n = usize::from(size);
        let part = |part: &'static str, gpa: u64, len: usize, align: usize| {
            let slice = guest.contiguous(gpa, len as u64).ok_or(RingError::Outside { part, gpa, size })?;
            if !gpa.is_multiple_of(align as u64) || !slice.addr().is_multiple_of(align) {
                return Err(RingError::Misaligned { part, gpa, align });
            }
            Ok(slice.as_ptr())
        };
        Ok(SplitRing {
            desc: part("descriptor table", desc, DESC_SIZE * n, 16)?,
            avail: part("available ring", avail, 6 + 2 * n, 2)?,
            used: part("used ring", used, 6 + 8 * n, 4)?,
            mask: size - 1,
            log: None,
            _guest: guest.clone(),
        })
    }

    /// What is written to the used ring, at guest-physical address `used`, is marked in `log` from now on.
    pub fn logged(self, log: Arc<DirtyLog>, used: u64) -> SplitRing {
        SplitRing { log: Some((log, used)), ..self }
    }

    /// Where writing to guest memory is to be marked, if it is.
    #[inline]
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().map(|(log, _)| log)
    }

    /// Notes that `len` bytes at `offset` of the used ring have been written.
    #[inline]
    fn mark_used(&self, offset: usize, len: usize) {
        if let Some((log, used)) = &self.log {
            log.mark(used + offset as u64, len as u64);
        }
    }

    /// Number of entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// A 16-bit field of one of the rings.
    #[inline]
    fn field(base: *mut u8, offset: usize) -> &'static AtomicU16 {
        // Between any two accesses the driver may have acted.
        #[cfg(test)]
        crate::sim::pause::reached();
        // SAFETY: the callers' offsets lie inside the part whose bounds `new` checked (2 bytes from an even offset, base
        // aligned to at least 2), and the region stays mapped as long as `self`, for which alone the reference is used:
        // it does not leave this file. Guest and device share the field, so it is only accessed atomically.
        unsafe { AtomicU16::from_ptr(base.add(offset).cast()) }
    }

    /// `avail.flags`.
    #[inline]
    pub fn avail_flags(&self) -> u16 {
        u16::from_le(Self::field(self.avail, 0).load(Ordering::Relaxed))
    }

    /// `avail.idx`; entries in front of it are visible after the call.
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(Self::field(self.avail, 2).load(Ordering::Acquire))
    }

    /// The head that stands at position `index` (modulo the size).
    #[inline]
    pub fn avail_entry(&self, index: u16) -> u16 {
        let slot = usize::from(index & self.mask);
        u16::from_le(Self::field(self.avail, 4 + 2 * slot).load(Ordering::Relaxed))
    }

    /// `used_event`: the used index after which the driver wants to be told (EVENT_IDX).
    #[inline]
    pub fn used_event(&self) -> u16 {
        let at = 4 + 2 * usize::from(self.size());
        u16::from_le(Self::field(self.avail, at).load(Ordering::Relaxed))
    }

    /// `used.idx` as it stands in memory.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        u16::from_le(Self::field(self.used, 2).load(Ordering::Acquire))
    }

    /// Publishes the used entries in front of `index`.
    #[inline]
    pub fn set_used_idx(&self, index: u16) {
        Self::field(self.used, 2).store(index.to_le(), Ordering::Release);
        self.mark_used(2, 2);
    }

    /// `used.flags`.
    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        Self::field(self.used, 0).store(flags.to_le(), Ordering::Relaxed);
        self.mark_used(0, 2);
    }

    /// `avail_event`: the available index after which we want to be told (EVENT_IDX).
    #[inline]
    pub fn set_avail_event(&self, index: u16) {
        let at = 4 + 8 * usize::from(self.size());
        Self::field(self.used, at).store(index.to_le(), Ordering::Relaxed);
        self.mark_used(at, 2);
    }

    /// Notes that the used entries from position `from` up to `to` (modulo the size) have been written: once for all that
    /// [`SplitRing::set_used_idx`] is about to publish, not once for each [`SplitRing::set_used`].
    #[inline]
    pub fn mark_entries(&self, from: u16, to: u16) {
        if self.log.is_none() {
            return;
        }
        let size = usize::from(self.size());
        let (first, count) = (usize::from(from & self.mask), usize::from(to.wrapping_sub(from)).min(size));
        let straight = count.min(size - first);
        self.mark_used(4 + 8 * first, 8 * straight);
        self.mark_used(4, 8 * (count - straight));
    }

    /// Writes the used entry at position `index` (modulo the size); not visible before [`SplitRing::set_used_idx`], and to
    /// be marked by [`SplitRing::mark_entries`].
    #[inline]
    pub fn set_used(&self, index: u16, head: u16, len: u32) {
        let slot = usize::from(index & self.mask);
        let entry = u64::from(head) | (u64::from(len) << 32);
        #[cfg(test)]
        crate::sim::pause::reached();
        // SAFETY: 8 bytes at 4 + 8 * slot, slot < size, inside the used ring whose bounds `new` checked. The used ring is
        // aligned to 4, so the entry may not be aligned to 8.
        unsafe { self.used.add(4 + 8 * slot).cast::<u64>().write_unaligned(entry.to_le()) }
    }

    /// Reads a descriptor of the ring's own table; `None` when the index is not in it.
    #[inline]
    pub fn desc(&self, index: u16) -> Option<Desc> {
        if index > self.mask {
            return None;
        }
        // SAFETY: index < size, so the 16 bytes lie inside the table whose bounds `new` checked; Desc is plain data and the
        // table is aligned to 16. Volatile: the guest may write at the same time, and what is judged must be one copy.
        let raw = unsafe { self.desc.add(DESC_SIZE * usize::from(index)).cast::<Desc>().read_volatile() };
        Some(raw.from_le())
    }

    /// Asks the CPU for the descriptor ahead of its use.
    #[inline]
    pub fn prefetch_desc(&self, index: u16) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint that never faults, and the masked index lies inside the table.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.desc.add(DESC_SIZE * usize::from(index & self.mask)).cast());
        }
    }
}

impl Desc {
    #[inline]
    #[allow(clippy::wrong_self_convention)]
    fn from_le(self) -> Desc {
        Desc {
            addr: u64::from_le(self.addr),
            len: u32::from_le(self.len),
            flags: u16::from_le(self.flags),
            next: u16::from_le(self.next),
        }
    }

    /// Reads entry `index` of an indirect table; `None` when the table ends before it.
    #[inline]
    pub fn in_table(table: &HostSlice, index: u16) -> Option<Desc> {
        let mut raw = [0u8; DESC_SIZE];
        let found = table.part(DESC_SIZE * usize::from(index), DESC_SIZE).read(&mut raw);
        (found == DESC_SIZE).then(|| Desc::from_bytes(&raw))
    }

    /// Reads a descriptor of an indirect table that runs over several memory regions; `None` outside guest memory.
    pub fn in_pieces(guest: &Guest, gpa: u64) -> Option<Desc> {
        let mut slices = Vec::new();
        if !guest.translate(gpa, DESC_SIZE as u64, &mut slices) {
            return None;
        }
        let mut raw = [0u8; DESC_SIZE];
        let mut at = 0;
        for slice in slices {
            at += slice.read(&mut raw[at..]);
        }
        Some(Desc::from_bytes(&raw))
    }

    #[inline]
    fn from_bytes(raw: &[u8; DESC_SIZE]) -> Desc {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = *raw;
        Desc {
            addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}
