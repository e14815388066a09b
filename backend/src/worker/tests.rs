//! A worker's end.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::poll::{Lookers, Poll};
use super::{Core, Ops};
use crate::engine::Engine;
use crate::guest::Guest;
use crate::uring::Uring;

/// As a memfd, in many pieces.
fn guest() -> Arc<Guest> {
    let size = 8 << 20;
    let file = std::fs::File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size as u64).unwrap();
    let map = MmapRegion::from_file(FileOffset::new(file, 0), size).unwrap();
    let region = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
    Arc::new(Guest::new(Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())).unwrap())
}

#[test]
fn a_worker_that_ends_has_given_back_the_memory_that_it_registered() {
    let guest = guest();
    let engine = Uring::new(true).unwrap();
    let poll = Poll::new(Duration::ZERO, Lookers::of_process());
    let mut core = Core::new(engine, Ops::new().unwrap(), poll, None);
    core.engine.add_memory(&guest);
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    // More than there are pieces.
    for _ in 0..20 {
        core.engine.turn(crate::engine::Wait::No, &mut Vec::new()).unwrap();
    }
    core.engine.remove_memory(&guest);
    assert!(core.engine.is_giving_back());
    core.ending = true;
    core.run(&channel().1, &bell);
    assert!(!core.engine.is_giving_back());
    drop(core);
    assert_eq!(Arc::strong_count(&guest), 1);
}
