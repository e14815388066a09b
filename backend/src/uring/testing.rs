//! What tests of registered memory share.

use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::Uring;
use crate::guest::Guest;

#[path = "../../../tests/src/skip.rs"]
#[allow(dead_code)]
mod skip;

/// A ring that registers memory; where that cannot be here, the test of that name says so.
pub(crate) fn registering(test: &str) -> Option<Uring> {
    if !skip::can_pin_memory() {
        skip::skip(test, "it has to pin memory");
        return None;
    }
    Some(Uring::new(true).unwrap())
}

/// Memory in a memfd of `size` bytes, of which `allocated` are there; two regions with a hole between.
pub(crate) fn guest(size: usize, allocated: usize) -> Arc<Guest> {
    let file = std::fs::File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size as u64).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, allocated as u64).unwrap();
    let half = size / 2;
    let region = |n: usize, at| {
        let file = FileOffset::new(file.try_clone().unwrap(), (n * half) as u64);
        GuestRegionMmap::new(MmapRegion::from_file(file, half).unwrap(), GuestAddress(at)).unwrap()
    };
    let regions = vec![region(0, 0), region(1, 1 << 32)];
    Arc::new(Guest::new(Arc::new(GuestMemoryMmap::from_regions(regions).unwrap())).unwrap())
}
