//! What requests write into guest memory, marked in the front end's log while it migrates its guest.
//!
//! Operations use their slices up, and a request may fail after some of them have written, so a queue that is logged
//! remembers each request's writable slices from its start, and marks them all at its end. That comes after the last
//! byte, as a request ends with its last operation, and before its head goes back to the driver.

use std::sync::Arc;

use crate::guest::{DirtyLog, Guest, HostSlice};

/// The writable slices of a queue's requests. A queue that is not logged has none of this.
pub struct Dirty {
    log: Arc<DirtyLog>,
    guest: Arc<Guest>,
    // By slot.
    slices: Vec<Vec<HostSlice>>,
}

impl Dirty {
    /// Nothing remembered yet.
    pub fn new(log: Arc<DirtyLog>, guest: Arc<Guest>) -> Dirty {
        Dirty { log, guest, slices: Vec::new() }
    }

    /// The request in `slot` may write `data`.
    #[cold]
    pub fn begin(&mut self, slot: u32, data: &[HostSlice]) {
        let slot = slot as usize;
        if self.slices.len() <= slot {
            self.slices.resize_with(slot + 1, Vec::new);
        }
        self.slices[slot].clear();
        self.slices[slot].extend_from_slice(data);
    }

    /// The request in `slot` has written whatever it writes, and its status byte.
    #[cold]
    pub fn end(&mut self, slot: u32, status_byte: &HostSlice) {
        for slice in self.slices.get_mut(slot as usize).iter_mut().flat_map(|slices| slices.drain(..)) {
            self.guest.mark(&self.log, &slice);
        }
        self.wrote(status_byte);
    }

    /// A slice has been written.
    #[cold]
    pub fn wrote(&self, slice: &HostSlice) {
        self.guest.mark(&self.log, slice);
    }

    /// Whether marks have been lost.
    pub fn broken(&self) -> bool {
        self.log.broken()
    }
}
