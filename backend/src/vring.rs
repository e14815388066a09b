//! The protocol of a split virtqueue, device side (virtio 1.2, 2.7), over the checked memory of [`SplitRing`].
//!
//! One worker owns a vring. Heads are taken with [`Vring::pop`], given back with [`Vring::push_used`], and a turn's used
//! entries become visible together, with at most one notification, by [`Vring::publish`].

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::guest::{HostSlice, SplitRing};

/// The driver broke the ring itself; nothing can be served from it until it is set up anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "available index {avail} is {ahead} entries ahead of {next}, on a ring of {size}: \
     the driver broke its ring, which stays stopped until it is set up anew"
)]
pub struct Broken {
    /// `avail.idx` as it was read.
    pub avail: u16,
    /// How far that is from what was taken last.
    pub ahead: u16,
    /// Next index we would take.
    pub next: u16,
    /// Entries of the ring.
    pub size: u16,
}

/// Device side of a split virtqueue.
pub struct Vring {
    ring: SplitRing,
    next_avail: u16,
    // avail.idx as it was last read: the entries up to it can be taken without another look.
    seen_avail: u16,
    next_used: u16,
    published: u16,
    event_idx: bool,
    // Where the next request probably begins.
    expected: Option<HostSlice>,
    // The driver has been asked not to kick (without EVENT_IDX).
    quiet: bool,
    // The driver has been asked to kick for the very next entry.
    armed: bool,
}

impl Vring {
    /// Takes up a ring at available index `base`. The used index goes on where memory says it is.
    pub fn new(ring: SplitRing, base: u16, event_idx: bool) -> Vring {
        let used = ring.used_idx();
        // Flags may be left over from a back end before us.
        ring.set_used_flags(0);
        Vring {
            ring,
            next_avail: base,
            seen_avail: base,
            next_used: used,
            published: used,
            event_idx,
            expected: None,
            quiet: false,
            armed: false,
        }
    }

    /// The memory, for descriptors.
    #[inline]
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// Index of the next entry to take: what GET_VRING_BASE answers after a drain.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Index of the next used entry.
    #[inline]
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// A request began here. A driver with one request at a time has the next one begin there too: what it got back last it
    /// takes first (so do Linux's lists of free descriptors and requests).
    #[inline]
    pub fn expect(&mut self, beginning: Option<HostSlice>) {
        self.expected = beginning;
    }

    /// Takes the next head. It may be any 16-bit number: the descriptor table judges it.
    ///
    /// # Errors
    /// The available index is further ahead than the ring is long.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, Broken> {
        if self.next_avail == self.seen_avail {
            let avail = self.ring.avail_idx();
            let ahead = avail.wrapping_sub(self.next_avail);
            if ahead == 0 {
                return Ok(None);
            }
            if ahead > self.ring.size() {
                return Err(Broken { avail, ahead, next: self.next_avail, size: self.ring.size() });
            }
            self.seen_avail = avail;
            if ahead == 1
                && let Some(expected) = &self.expected
            {
                // While ring and descriptor, which say where it really is, are still on their way from the driver's CPU.
                expected.prefetch();
            }
        }
        let head = self.ring.avail_entry(self.next_avail);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.armed = false;
        if self.next_avail != self.seen_avail {
            self.ring.prefetch_desc(self.ring.avail_entry(self.next_avail));
        }
        Ok(Some(head))
    }

    /// Gives a head back, with the number of bytes written to its buffers. Visible after [`Vring::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) {
        self.ring.set_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Makes all given-back heads visible; `true` when the driver wants to be told (2.7.7.2, 2.7.10).
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.published {
            return false;
        }
        let old = self.published;
        self.ring.mark_entries(old, self.next_used);
        self.ring.set_used_idx(self.next_used);
        self.published = self.next_used;
        // The index must be visible before we look at what the driver asks for, or both sides could sleep.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.ring.used_event();
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old)
        } else {
            u32::from(self.ring.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether there are used entries that the driver cannot see yet.
    #[inline]
    pub fn unpublished(&self) -> bool {
        self.next_used != self.published
    }

    /// Tells the driver not to kick: we look by ourselves. Under EVENT_IDX an event index that has been passed says so.
    #[inline]
    pub fn stay_awake(&mut self) {
        if self.event_idx {
            if self.armed {
                self.ring.set_avail_event(self.next_avail.wrapping_sub(1));
            }
        } else if !self.quiet {
            self.quiet = true;
            self.ring.set_used_flags(VRING_USED_F_NO_NOTIFY as u16);
        }
        self.armed = false;
    }

    /// Asks for a kick; `false` when there is work already, so that sleeping would be wrong.
    #[inline]
    pub fn fall_asleep(&mut self) -> bool {
        if !self.armed {
            if self.event_idx {
                self.ring.set_avail_event(self.next_avail);
            } else {
                self.ring.set_used_flags(0);
                self.quiet = false;
            }
            self.armed = true;
            // The request for a kick must be visible before the last look, or both sides could sleep.
            fence(Ordering::SeqCst);
        }
        self.ring.avail_idx() == self.next_avail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn vring(base: u16, event_idx: bool) -> (Arc<GuestMemoryMmap<()>>, Vring) {
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        memory.write_obj(base, GuestAddress(AVAIL + 2)).unwrap();
        memory.write_obj(base, GuestAddress(USED + 2)).unwrap();
        let guest = Arc::new(Guest::new(memory.clone()).unwrap());
        let ring = SplitRing::new(&guest, 8, 0, AVAIL, USED).unwrap();
        (memory, Vring::new(ring, base, event_idx))
    }

    fn offer(memory: &GuestMemoryMmap<()>, at: u16, head: u16) {
        memory.write_obj(head, GuestAddress(AVAIL + 4 + 2 * u64::from(at % 8))).unwrap();
        memory.write_obj(at.wrapping_add(1), GuestAddress(AVAIL + 2)).unwrap();
    }

    #[test]
    fn indices_wrap_around_65536() {
        let (memory, mut vring) = vring(65534, false);
        for at in [65534u16, 65535, 0, 1] {
            assert_eq!(vring.pop(), Ok(None));
            offer(&memory, at, at % 8);
            assert_eq!(vring.pop(), Ok(Some(at % 8)));
            vring.push_used(at % 8, 5);
            assert!(vring.publish());
            assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), at.wrapping_add(1));
        }
        assert_eq!(vring.next_avail(), 2);
    }

    #[test]
    fn an_available_index_too_far_ahead_breaks_the_ring() {
        let (memory, mut vring) = vring(10, true);
        memory.write_obj(19u16, GuestAddress(AVAIL + 2)).unwrap();
        assert_eq!(vring.pop(), Err(Broken { avail: 19, ahead: 9, next: 10, size: 8 }));
        memory.write_obj(9u16, GuestAddress(AVAIL + 2)).unwrap();
        assert_eq!(vring.pop().unwrap_err().ahead, 65535);
        memory.write_obj(18u16, GuestAddress(AVAIL + 2)).unwrap();
        assert!(vring.pop().is_ok());
    }

    #[test]
    fn the_event_index_decides_who_is_told() {
        let (memory, mut vring) = vring(0, true);
        let used_event = GuestAddress(AVAIL + 4 + 16);
        // (used_event, entries published at once from index 0, told?): the driver wants to hear when its event is passed.
        for (event, n, told) in [(0u16, 1u16, true), (3, 2, false), (3, 2, true), (3, 1, false), (65535, 1, false)] {
            memory.write_obj(event, used_event).unwrap();
            for _ in 0..n {
                vring.push_used(0, 0);
            }
            assert_eq!(vring.publish(), told, "event {event} after {n}");
        }
        assert!(!vring.publish(), "nothing new, nobody is told");
    }

    #[test]
    fn without_event_index_the_flag_decides() {
        let (memory, mut vring) = vring(0, false);
        vring.push_used(0, 0);
        assert!(vring.publish());
        memory.write_obj(1u16, GuestAddress(AVAIL)).unwrap();
        vring.push_used(0, 0);
        assert!(!vring.publish());
    }

    #[test]
    fn falling_asleep_sees_work_that_came_in_between() {
        for event_idx in [false, true] {
            let (memory, mut vring) = vring(0, event_idx);
            vring.stay_awake();
            assert!(vring.fall_asleep());
            vring.stay_awake();
            offer(&memory, 0, 3);
            assert!(!vring.fall_asleep());
            assert_eq!(vring.pop(), Ok(Some(3)));
            assert!(vring.fall_asleep());
            if event_idx {
                assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 4 + 64)).unwrap(), 1);
            } else {
                assert_eq!(memory.read_obj::<u16>(GuestAddress(USED)).unwrap(), 0);
            }
        }
    }
}
