//! Guest memory that is registered with a ring: the kernel has looked up and pinned its pages once, and need not do so for
//! every command.
//!
//! A piece a turn is registered, so that no other queue of the worker waits for long; commands on memory that is not (or not
//! yet) registered name it by address as ever. Memory that is pinned cannot be given back: whatever the host takes away from
//! the guest later (balloon, virtio-mem, free page reporting, post-copy) would leave the kernel with pages that are no longer
//! the guest's. That is why only who starts us can ask for it. See io_uring_register(2), IORING_REGISTER_BUFFERS_UPDATE.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, LazyLock};

use io_uring::{IoUring, opcode, squeue, types};

use super::{MAX_TRANSFER, dsync};
use crate::engine::Command;
use crate::guest::{Guest, HostSlice};
use crate::limit::Limiter;
use crate::limited;

/// Bytes of a piece: about 4 ms of work for the kernel where pages are small.
#[cfg(not(test))]
const PIECE: usize = 64 << 20;
#[cfg(test)]
const PIECE: usize = 1 << 20;
/// Most pieces of a ring; memory past them is used by address.
#[cfg(not(test))]
const PIECES: u16 = 4096;
#[cfg(test)]
const PIECES: u16 = 16;
/// How often, and after how many nanoseconds each time, what no more memory may be locked for is tried again: the kernel
/// counts the memory of a ring that was closed for some time yet.
const TRIES: u32 = 50;
const PAUSE: u64 = 20_000_000;
/// In place of a number: not registered.
const NONE: u16 = u16::MAX;

/// See the module's text.
pub(super) struct Memory {
    regions: Vec<Region>,
    guests: Vec<Known>,
    // To be registered.
    todo: VecDeque<(Arc<Guest>, HostSlice)>,
    // To be released, which comes first: it may be what there is no room for.
    releases: Vec<u16>,
    free: Vec<u16>,
    // How often the first of `todo` has found no room, and when it is tried again.
    tries: u32,
    again_at: u64,
    // The kernel takes lists of slices of registered memory (Linux 6.15).
    pub lists: bool,
}

/// For all rings: whoever connects again and again makes new ones.
static LIMITER: LazyLock<Limiter> = LazyLock::new(Limiter::default);

/// Whether a kernel of this release puts transfers by registered memory in the wrong place where it found large pages that do
/// not begin at the memory's address (CVE-2025-40216: mended in 6.12.36 and 6.15.5). Releases of distributions that say less
/// count as affected.
fn misplaces(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+', '~']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next(), numbers.next().unwrap_or(0)) {
        (Some(6), Some(12), patch) => patch < 36,
        (Some(6), Some(13 | 14), _) => true,
        (Some(6), Some(15), patch) => patch < 5,
        _ => false,
    }
}

/// A generation of guest memory, and how many queues are in it. It is mapped at least as long as it is known here: nothing
/// else can be found at its addresses.
struct Known {
    guest: Arc<Guest>,
    users: usize,
}

impl Known {
    fn is(&self, guest: &Arc<Guest>) -> bool {
        Arc::ptr_eq(&self.guest, guest)
    }
}

struct Region {
    guest: Arc<Guest>,
    begin: usize,
    end: usize,
    // The numbers of its pieces.
    numbers: Box<[u16]>,
}

impl Memory {
    /// Makes room in a ring that does not run yet; nothing where this kernel does not do right by it.
    ///
    /// # Errors
    /// The kernel's: it has no tables that are filled later (before Linux 5.19), or no memory.
    pub fn new(ring: &IoUring, lists: bool) -> io::Result<Option<Memory>> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if misplaces(release.trim_end()) {
            limited!(
                LIMITER,
                warn,
                "--register-memory: Linux {} may put data in the wrong place (CVE-2025-40216), so guest memory is used \
                 without; Linux 6.12.36, 6.15.5 and later do not",
                release.trim_end()
            );
            return Ok(None);
        }
        ring.submitter().register_buffers_sparse(u32::from(PIECES)).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::new(error.kind(), format!("--register-memory needs Linux 5.19: {error}")),
            _ => error,
        })?;
        Ok(Some(Memory::empty(lists)))
    }

    fn empty(lists: bool) -> Memory {
        Memory {
            regions: Vec::new(),
            guests: Vec::new(),
            todo: VecDeque::new(),
            releases: Vec::new(),
            free: (0..PIECES).rev().collect(),
            tries: 0,
            again_at: 0,
            lists,
        }
    }

    /// One more queue is in `guest`.
    pub fn add(&mut self, guest: &Arc<Guest>) {
        if let Some(known) = self.guests.iter_mut().find(|known| known.is(guest)) {
            known.users += 1;
            return;
        }
        self.guests.push(Known { guest: guest.clone(), users: 1 });
        if let Some((size, allocated)) = guest.missing() {
            limited!(
                LIMITER,
                warn,
                "--register-memory: of {size} bytes of guest memory only {allocated} have been allocated, so it is used \
                 without; have the front end allocate it first (QEMU: prealloc=on, cloud-hypervisor: prefault=on), and give \
                 the guest no balloon"
            );
            return;
        }
        for region in guest.slices() {
            let begin = region.addr();
            let numbers = vec![NONE; region.len().div_ceil(PIECE)].into_boxed_slice();
            let pieces = (0..numbers.len()).map(|n| region.part(n * PIECE, PIECE));
            self.todo.extend(pieces.map(|piece| (guest.clone(), piece)));
            self.regions.push(Region { guest: guest.clone(), begin, end: begin + region.len(), numbers });
        }
        self.regions.sort_unstable_by_key(|region| region.begin);
        if self.free.is_empty() {
            self.tell();
        }
    }

    /// One less. No command of it may be under way.
    pub fn remove(&mut self, guest: &Arc<Guest>) {
        let Some(index) = self.guests.iter().position(|known| known.is(guest)) else { return };
        self.guests[index].users -= 1;
        if self.guests[index].users == 0 {
            self.forget(guest);
            self.guests.swap_remove(index);
        }
    }

    /// Has all of it used by address.
    fn forget(&mut self, guest: &Arc<Guest>) {
        self.todo.retain(|(its, _)| !Arc::ptr_eq(its, guest));
        (self.tries, self.again_at) = (0, 0);
        let releases = &mut self.releases;
        self.regions.retain(|region| {
            let goes = Arc::ptr_eq(&region.guest, guest);
            if goes {
                releases.extend(region.numbers.iter().filter(|number| **number != NONE));
            }
            !goes
        });
    }

    /// When [`Memory::step`] has something to do, if it has; 0: at once.
    #[inline]
    pub fn due(&self) -> Option<u64> {
        match (self.releases.is_empty(), self.todo.is_empty() || self.free.is_empty()) {
            (false, _) => Some(0),
            (true, false) => Some(self.again_at),
            (true, true) => None,
        }
    }

    /// Whether something is still registered that is not known any more.
    pub fn is_giving_back(&self) -> bool {
        !self.releases.is_empty()
    }

    /// Registers or releases a piece: `update` puts it at a number, or nothing. No entry that is not submitted may name what
    /// is released.
    pub fn step(&mut self, now: u64, update: impl FnOnce(u16, Option<HostSlice>) -> io::Result<()>) {
        if let Some(number) = self.releases.pop() {
            // A number that is still taken is not used again.
            if update(number, None).is_ok() {
                self.free.push(number);
            }
        } else if let Some(number) = self.free.pop() {
            match self.todo.pop_front() {
                Some((guest, piece)) => self.register(number, guest, piece, (now, update(number, Some(piece)))),
                None => self.free.push(number),
            }
        }
    }

    /// It has been tried to register a piece.
    fn register(&mut self, number: u16, guest: Arc<Guest>, piece: HostSlice, (now, result): (u64, io::Result<()>)) {
        if let Err(error) = result {
            self.free.push(number);
            if error.raw_os_error() == Some(libc::ENOMEM) && self.tries < TRIES {
                self.tries += 1;
                self.again_at = now + PAUSE;
                self.todo.push_front((guest, piece));
                return;
            }
            self.forget(&guest);
            limited!(
                LIMITER,
                warn,
                "--register-memory: the kernel does not pin guest memory: {error}{}; it is used without",
                what_helps(&error)
            );
            return;
        }
        (self.tries, self.again_at) = (0, 0);
        let begin = piece.addr();
        let mut regions = self.regions.iter_mut();
        if let Some(region) = regions.find(|region| Arc::ptr_eq(&region.guest, &guest) && region.has(begin)) {
            region.numbers[(begin - region.begin) / PIECE] = number;
        }
        self.tell();
    }

    /// Says so when all is registered that can be.
    fn tell(&self) {
        let pieces =
            || self.regions.iter().flat_map(|region| &region.numbers).filter(|number| **number != NONE).count();
        match self.todo.len() {
            0 => limited!(LIMITER, info, "guest memory is registered, in {} pieces", pieces()),
            others if self.free.is_empty() && self.releases.is_empty() => limited!(
                LIMITER,
                info,
                "guest memory is registered, in {} pieces; {others} others are used without, as a worker registers no more \
                 than {PIECES} of at most {} MiB",
                pieces(),
                PIECE >> 20
            ),
            _ => {}
        }
    }

    /// The number of the piece in which all data of a transfer lies wholly.
    #[inline]
    pub fn number(&self, command: &Command<'_>) -> Option<u16> {
        match command {
            Command::Read { data, .. } | Command::Write { data, .. } => match data {
                [one] => self.number_of(one),
                [first, others @ ..] if self.lists => {
                    let number = self.number_of(first)?;
                    others.iter().all(|slice| self.number_of(slice) == Some(number)).then_some(number)
                }
                _ => None,
            },
            _ => None,
        }
    }

    #[inline]
    fn number_of(&self, slice: &HostSlice) -> Option<u16> {
        let begin = slice.addr();
        let index = self.regions.partition_point(|region| region.begin <= begin).checked_sub(1)?;
        let region = self.regions.get(index).filter(|region| region.has(begin))?;
        let first = (begin - region.begin) / PIECE;
        let last = (begin - region.begin + slice.len().max(1) - 1) / PIECE;
        let number = *region.numbers.get(first)?;
        (number != NONE && first == last).then_some(number)
    }
}

/// Puts a piece of a known guest at a number of a ring, or nothing.
pub(super) fn update(ring: &IoUring, number: u16, piece: Option<HostSlice>) -> io::Result<()> {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let list = [piece.map_or(nothing, |piece| libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() })];
    // SAFETY: the piece is a part of a guest that stays mapped as long as it is known to `Memory`. What the kernel pins it
    // keeps until it is released; a command names it only between the two, and only through `number`, whose addresses are
    // checked by the kernel.
    unsafe { ring.submitter().register_buffers_update(u32::from(number), &list, None) }.map(drop)
}

/// The entry of a transfer whose data lies in piece `number`.
#[inline]
pub(super) fn transfer(
    fd: types::Fd,
    command: Command<'_>,
    number: u16,
    keep: impl FnOnce(&[HostSlice]) -> (*const libc::iovec, u32),
) -> squeue::Entry {
    let length = |one: &HostSlice| one.len().min(MAX_TRANSFER) as u32;
    match command {
        Command::Read { data: [one], at } => {
            opcode::ReadFixed::new(fd, one.as_ptr(), length(one), number).offset(at).build()
        }
        Command::Write { data: [one], at, durable } => {
            let entry = opcode::WriteFixed::new(fd, one.as_ptr(), length(one), number);
            entry.offset(at).rw_flags(dsync(durable)).build()
        }
        Command::Read { data, at } => {
            let (list, n) = keep(data);
            opcode::ReadvFixed::new(fd, list, n, number).offset(at).build()
        }
        Command::Write { data, at, durable } => {
            let (list, n) = keep(data);
            opcode::WritevFixed::new(fd, list, n, number).offset(at).rw_flags(dsync(durable)).build()
        }
        _ => opcode::Nop::new().build(),
    }
}

impl Region {
    #[inline]
    fn has(&self, addr: usize) -> bool {
        (self.begin..self.end).contains(&addr)
    }
}

fn what_helps(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EPERM) => {
            " (RLIMIT_MEMLOCK counts all processes of a user, and must be as large as the guests' memory for each worker that \
             serves them, and their rings: `ulimit -l`, LimitMEMLOCK= in systemd)"
        }
        Some(libc::EOPNOTSUPP | libc::EFAULT) => {
            " (memory in a file can be pinned on tmpfs and hugetlbfs, as memfd is)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
