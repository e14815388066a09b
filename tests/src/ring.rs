//! The driver's side of a split virtqueue (virtio 1.2, section 2.7), with every part of it open to misuse.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::mapping::Mapping;
use crate::memory::{GuestMemory, Window};

/// Descriptor flag: the chain goes on at `next`.
pub const F_NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const F_WRITE: u16 = 2;
/// Descriptor flag: the descriptor is a table of descriptors.
pub const F_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESC: usize = 16;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
}

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `F_*`.
    pub flags: u16,
    /// Index of the next descriptor, valid with `F_NEXT`.
    pub next: u16,
}

impl Desc {
    /// The descriptor's 16 bytes.
    pub fn bytes(&self) -> [u8; DESC] {
        let mut out = [0; DESC];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// Where the three parts of a ring lie (guest physical addresses) and how many descriptors it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Available ring, 2-byte aligned.
    pub avail: u64,
    /// Used ring, 4-byte aligned.
    pub used: u64,
}

impl Place {
    /// Bytes that [`Place::at`] takes for the largest ring (1,024 descriptors).
    pub const MAX_BYTES: u64 = 0x8000;

    /// A ring from `base` on. The parts are aligned to no more than the specification asks, so that a back
    /// end that asks for more is found out.
    pub fn at(base: u64, size: u16) -> Self {
        let desc = base + 16;
        let avail = desc + u64::from(size) * 16 + 2;
        let used = (avail + 6 + u64::from(size) * 2 + 4).next_multiple_of(8) + 4;
        Place { size, desc, avail, used }
    }
}

/// A request that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// The driver's half of one virtqueue.
#[derive(Debug)]
pub struct Ring {
    /// Where the ring lies.
    pub place: Place,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    desc: Window,
    avail: Window,
    used: Window,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    next_avail: u16,
    published: u16,
    seen_used: u16,
    interrupts: bool,
    kick: OwnedFd,
    call: OwnedFd,
    /// Kicks written so far.
    pub kicks: u64,
}

impl Ring {
    /// A fresh ring: clears its memory.
    pub fn new(memory: &GuestMemory, place: Place, event_idx: bool) -> io::Result<Self> {
        let size = usize::from(place.size);
        memory.fill(place.desc, size * DESC, 0);
        memory.fill(place.avail, 6 + 2 * size, 0);
        memory.fill(place.used, 6 + 8 * size, 0);
        Ok(Ring {
            place,
            event_idx,
            desc: memory.window(place.desc),
            avail: memory.window(place.avail),
            used: memory.window(place.used),
            free: (0..place.size).rev().collect(),
            chains: vec![Vec::with_capacity(4); size],
            next_avail: 0,
            published: 0,
            seen_used: 0,
            interrupts: true,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            kicks: 0,
        })
    }

    /// The eventfd that the driver writes.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The eventfd that the device writes.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Replaces the call eventfd with a new one; the back end must be told.
    pub fn renew_call(&mut self) -> io::Result<()> {
        self.call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(())
    }

    /// Descriptors not in use.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Requests the device has and has not given back.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.seen_used)
    }

    /// Available index as the driver counts it (not all of it need be published).
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Used index up to which the driver has looked.
    pub fn seen_used(&self) -> u16 {
        self.seen_used
    }

    /// Puts a chain into the descriptor table and its head into the available ring, unpublished. With
    /// `table`, an indirect descriptor at that guest address holds the chain. None if descriptors ran out.
    pub fn add(&mut self, memory: &GuestMemory, bufs: &[Buf], table: Option<u64>) -> Option<u16> {
        let slots = if table.is_some() { 1 } else { bufs.len() };
        if self.free.len() < slots || slots == 0 {
            return None;
        }
        let taken: Vec<u16> = (0..slots).filter_map(|_| self.free.pop()).collect();
        let head = taken[0];
        if let Some(gpa) = table {
            for (i, buf) in bufs.iter().enumerate() {
                let next = (i + 1 < bufs.len()).then_some(i as u16 + 1);
                memory.write(gpa + (i * DESC) as u64, &link(buf, next).bytes());
            }
            self.write_desc(head, Desc { addr: gpa, len: (bufs.len() * DESC) as u32, flags: F_INDIRECT, next: 0 });
        } else {
            for (i, buf) in bufs.iter().enumerate() {
                self.write_desc(taken[i], link(buf, taken.get(i + 1).copied()));
            }
        }
        self.chains[usize::from(head)] = taken;
        self.push_head(head);
        Some(head)
    }

    /// Writes one descriptor as it is.
    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.desc.write(usize::from(index) * DESC, &desc.bytes());
    }

    /// Puts a head into the available ring, unpublished, whatever it is.
    #[inline]
    pub fn push_head(&mut self, head: u16) {
        let slot = usize::from(self.next_avail % self.place.size);
        self.avail.store_u16(4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes what was pushed, without a notification.
    #[inline]
    pub fn publish(&mut self) {
        self.avail.store_u16(2, self.next_avail);
    }

    /// Writes any value into the available index, leaving the driver's own count alone.
    pub fn set_avail_idx(&self, value: u16) {
        self.avail.store_u16(2, value);
    }

    /// The available index as it was last published.
    pub fn avail_idx(&self) -> u16 {
        self.avail.load_u16(2)
    }

    /// The used index as the device last published it.
    pub fn used_idx(&self) -> u16 {
        self.used.load_u16(2)
    }

    /// Publishes, and notifies the device if it wants that. True if it was notified.
    #[inline]
    pub fn publish_and_kick(&mut self) -> bool {
        let before = self.published;
        self.publish();
        self.published = self.next_avail;
        Mapping::barrier();
        let wanted = if self.event_idx {
            let event = self.used.load_u16(4 + 8 * usize::from(self.place.size));
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(before)
        } else {
            self.used.load_u16(0) & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Notifies the device in any case.
    pub fn kick(&mut self) {
        self.kicks += 1;
        signal(self.kick.as_fd());
    }

    /// Takes the next request that the device gave back and frees its descriptors.
    pub fn pop(&mut self) -> Option<Used> {
        let used = self.pop_fixed()?;
        if let Some(chain) = self.chains.get_mut(usize::from(used.head)) {
            self.free.append(chain);
        }
        if self.interrupts {
            self.ask_interrupt();
        }
        Some(used)
    }

    /// Like [`pop`](Self::pop) for drivers that keep fixed chains in the table.
    #[inline]
    pub fn pop_fixed(&mut self) -> Option<Used> {
        if self.used.load_u16(2) == self.seen_used {
            return None;
        }
        let slot = usize::from(self.seen_used % self.place.size);
        let mut bytes = [0; 8];
        self.used.read(4 + 8 * slot, &mut bytes);
        self.seen_used = self.seen_used.wrapping_add(1);
        let [a, b, _, _, rest @ ..] = bytes;
        Some(Used { head: u16::from_le_bytes([a, b]), len: u32::from_le_bytes(rest) })
    }

    /// Says whether the device should signal the call eventfd at the next completion.
    pub fn want_interrupts(&mut self, wanted: bool) {
        self.interrupts = wanted;
        if wanted {
            self.ask_interrupt();
        } else {
            self.refuse_interrupt();
        }
    }

    /// Asks for a signal at the next completion that was not looked at yet.
    #[inline]
    pub fn ask_interrupt(&self) {
        if self.event_idx {
            self.avail.store_u16(4 + 2 * usize::from(self.place.size), self.seen_used);
        }
        self.avail.store_u16(0, 0);
        Mapping::barrier();
    }

    /// Asks for no signals. Under EVENT_IDX there is no such wish; an event index just behind comes next to it.
    #[inline]
    pub fn refuse_interrupt(&self) {
        if self.event_idx {
            self.avail.store_u16(4 + 2 * usize::from(self.place.size), self.seen_used.wrapping_sub(1));
        } else {
            self.avail.store_u16(0, AVAIL_NO_INTERRUPT);
        }
    }

    /// Whether completions wait to be popped.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.used.load_u16(2) != self.seen_used
    }

    /// Waits for the call eventfd, not looking at the ring before it fires. False if it did not in time.
    pub fn wait_call(&self, timeout: Duration) -> bool {
        wait_readable(self.call.as_fd(), timeout) && drain(self.call.as_fd())
    }

    /// Waits for a completion as a driver does: looks, asks for an interrupt, looks again, sleeps. False if
    /// none came in time.
    pub fn wait_used(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            self.ask_interrupt();
            if self.has_used() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait_call(left) {
                return self.has_used();
            }
        }
    }

    /// Watches the used index without interrupts until a completion is there. False if none came in time.
    pub fn spin_used(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.has_used() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// A fresh ring whose indexes begin here, as those of a driver that has used it for long.
    pub fn begin_at(&mut self, index: u16) {
        self.used.store_u16(2, index);
        self.resume_at(index);
        self.want_interrupts(self.interrupts);
    }

    /// Forgets what is in flight and starts counting at the device's used index: what a driver does with a
    /// ring that was stopped, when it will submit everything afresh.
    pub fn resume_at(&mut self, index: u16) {
        self.next_avail = index;
        self.published = index;
        self.seen_used = index;
        self.avail.store_u16(2, index);
        for chain in &mut self.chains {
            self.free.append(chain);
        }
    }
}

fn link(buf: &Buf, next: Option<u16>) -> Desc {
    Desc {
        addr: buf.gpa,
        len: buf.len,
        flags: if buf.device_writes { F_WRITE } else { 0 } | if next.is_some() { F_NEXT } else { 0 },
        next: next.unwrap_or(0),
    }
}

/// Adds one to an eventfd.
pub fn signal(fd: BorrowedFd<'_>) {
    // EAGAIN means the counter is full: the other side has a signal waiting anyway.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Empties an eventfd. True if there was something.
pub fn drain(fd: BorrowedFd<'_>) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

/// Waits until `fd` is readable.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    wait_any_readable(&[fd], timeout)
}

/// Waits until one of several is readable.
pub fn wait_any_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("test bug: timeout out of range");
        match poll(&mut fds, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}
