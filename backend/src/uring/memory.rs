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
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

    use super::super::Uring;
    use super::*;
    use crate::engine::{Engine, Event, Wait};

    /// Memory in a memfd of `size` bytes, of which `allocated` are there; two regions with a hole between.
    fn guest(size: usize, allocated: usize) -> Arc<Guest> {
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

    fn settle(ring: &mut Uring) {
        while ring.memory.as_ref().unwrap().due().is_some() {
            ring.turn(Wait::No, &mut Vec::new()).unwrap();
        }
    }

    fn run(ring: &mut Uring, file: crate::engine::FileIx, command: Command<'_>) -> i32 {
        ring.start(file, command, 1);
        let mut events = Vec::new();
        while events.is_empty() {
            ring.turn(Wait::Event, &mut events).unwrap();
        }
        match events[..] {
            [Event::Done { token: 1, result }] => result,
            _ => panic!("{events:?}"),
        }
    }

    fn number(ring: &Uring, data: &[HostSlice]) -> Option<u16> {
        ring.memory.as_ref().unwrap().number(&Command::Read { data, at: 0 })
    }

    #[test]
    fn bytes_are_the_same_with_and_without_it() {
        let guest = guest(4 * PIECE, 4 * PIECE);
        let at = |gpa, len| guest.contiguous(gpa, len).unwrap();
        let high = 1u64 << 32;
        let lists: &[(&[HostSlice], bool)] = &[
            (&[at(0, 4096)], true),
            (&[at(high + 512, 9000)], true),
            (&[at(0, 512), at(8192, 100), at(5000, 412)], true),
            // Over the border between two pieces, and in two regions.
            (&[at(PIECE as u64 - 512, 1024)], false),
            (&[at(0, 512), at(high, 512)], false),
        ];
        let file = tempfile::tempfile().unwrap();
        let mut ring = Uring::new(true).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        for registered in [false, true, false] {
            if registered {
                ring.add_memory(&guest);
                settle(&mut ring);
            }
            for (round, (data, expected)) in (1u8..).zip(lists) {
                let lists = ring.memory.as_ref().unwrap().lists;
                assert_eq!(number(&ring, data).is_some(), registered && *expected && (lists || data.len() == 1));
                let len: usize = data.iter().map(HostSlice::len).sum();
                let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8 ^ round).collect();
                file.write_all_at(&bytes, 4096).unwrap();
                assert_eq!(run(&mut ring, ix, Command::Read { data, at: 4096 }), len as i32);
                assert_eq!(run(&mut ring, ix, Command::Write { data, at: 1 << 20, durable: true }), len as i32);
                let mut back = vec![0; len];
                file.read_exact_at(&mut back, 1 << 20).unwrap();
                assert_eq!(back, bytes);
                let mut from = 0;
                for slice in *data {
                    let mut there = vec![0; slice.len()];
                    slice.read(&mut there);
                    assert_eq!(there, bytes[from..from + slice.len()]);
                    from += slice.len();
                }
            }
            if registered {
                ring.remove_memory(&guest);
                settle(&mut ring);
            }
        }
        assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
    }

    #[test]
    fn kernels_that_misplace_data_are_known() {
        for bad in ["6.12.0", "6.12.35-1-lts", "6.13.7", "6.14.0-29-generic", "6.15.4", "6.15-rc1", "6.12.0+deb13"] {
            assert!(misplaces(bad), "{bad}");
        }
        for good in
            ["6.12.36", "6.12.48+deb13-amd64", "6.15.5", "6.16.0-rc1", "6.18.44-fc", "6.1.0-13", "5.15.0", "7.0.1", ""]
        {
            assert!(!misplaces(good), "{good}");
        }
    }

    #[test]
    fn it_is_registered_as_long_as_a_queue_is_in_it() {
        let mut ring = Uring::new(true).unwrap();
        let (one, other) = (guest(1 << 20, 1 << 20), guest(1 << 20, 1 << 20));
        for known in [&one, &other, &one] {
            ring.add_memory(known);
        }
        let slices = [one.contiguous(0, 512).unwrap(), other.contiguous(0, 512).unwrap()];
        settle(&mut ring);
        let registered = |ring: &Uring| slices.map(|slice| number(ring, &[slice]).is_some());
        assert_eq!(registered(&ring), [true, true]);
        ring.remove_memory(&one);
        assert_eq!(registered(&ring), [true, true]);
        ring.remove_memory(&one);
        assert_eq!(registered(&ring), [false, true]);
        // What has not been begun is not begun any more.
        ring.remove_memory(&other);
        ring.add_memory(&one);
        ring.remove_memory(&one);
        settle(&mut ring);
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (1, 1));
        assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
    }

    #[test]
    fn memory_that_is_not_there_is_not_made_to_be() {
        let mut ring = Uring::new(true).unwrap();
        let guest = guest(4 << 20, 2 << 20);
        assert_eq!(guest.missing(), Some((4 << 20, 2 << 20)));
        ring.add_memory(&guest);
        settle(&mut ring);
        assert_eq!(number(&ring, &[guest.contiguous(0, 512).unwrap()]), None);
        assert_eq!(guest.missing(), Some((4 << 20, 2 << 20)));
        ring.remove_memory(&guest);
        assert_eq!(Arc::strong_count(&guest), 1);
    }

    #[test]
    fn memory_that_cannot_be_pinned_is_used_by_address() {
        // A file system of a disk.
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 1 << 20).unwrap();
        let region = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
        let guest = Arc::new(Guest::new(Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())).unwrap());
        let mut ring = Uring::new(true).unwrap();
        ring.add_memory(&guest);
        settle(&mut ring);
        let slice = guest.contiguous(0, 512).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        assert_eq!(run(&mut ring, ix, Command::Read { data: &[slice], at: 0 }), 512);
        ring.remove_memory(&guest);
        settle(&mut ring);
        assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
    }

    #[test]
    fn no_piece_is_released_before_what_names_it_is_submitted() {
        let guest = guest(1 << 20, 1 << 20);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        let mut ring = Uring::new(true).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        ring.add_memory(&guest);
        settle(&mut ring);
        // One that is refused has the kernel leave the others for the next call.
        ring.push(&opcode::Nop::new().build().user_data(7));
        let data = guest.contiguous(0, 4096).unwrap();
        assert!(number(&ring, &[data]).is_some());
        ring.start(ix, Command::Read { data: &[data], at: 0 }, 8);
        // As where a later piece cannot be pinned.
        ring.memory.as_mut().unwrap().forget(&guest);
        let mut events = Vec::new();
        while events.len() < 2 {
            ring.turn(Wait::Event, &mut events).unwrap();
        }
        assert_eq!(events, [Event::Done { token: 7, result: -libc::EACCES }, Event::Done { token: 8, result: 4096 }]);
        settle(&mut ring);
        assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
    }

    /// Has it try again and again, on a kernel that locks so many pieces, until there is nothing to do before `until`.
    fn drive(memory: &mut Memory, locked: &mut usize, most: usize, now: &mut u64, until: u64) -> usize {
        let mut steps = 0;
        while let Some(due) = memory.due().filter(|due| *due <= until) {
            *now = due.max(*now);
            memory.step(*now, |_, piece| match piece {
                Some(_) if *locked == most => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
                Some(_) => {
                    *locked += 1;
                    Ok(())
                }
                None => {
                    *locked -= 1;
                    Ok(())
                }
            });
            steps += 1;
        }
        steps
    }

    fn registered(memory: &Memory) -> usize {
        memory.regions.iter().flat_map(|region| &region.numbers).filter(|number| **number != NONE).count()
    }

    #[test]
    fn what_finds_no_room_is_tried_again_for_some_time() {
        let guest = guest(4 * PIECE, 4 * PIECE);
        let (mut memory, mut locked, mut now) = (Memory::empty(true), 0, 1);
        memory.add(&guest);
        // Two that fit, one that does not, and again twice.
        assert_eq!(drive(&mut memory, &mut locked, 2, &mut now, 1 + 2 * PAUSE), 5);
        assert_eq!((registered(&memory), memory.due()), (2, Some(1 + 3 * PAUSE)));
        // Somebody else's is counted no more.
        assert_eq!(drive(&mut memory, &mut locked, 3, &mut now, 1 + 3 * PAUSE), 2);
        assert_eq!((registered(&memory), memory.due()), (3, Some(1 + 4 * PAUSE)));
        // Each has that time, and then all are done without.
        assert_eq!(drive(&mut memory, &mut locked, 3, &mut now, u64::MAX), TRIES as usize + 3);
        assert_eq!((registered(&memory), locked, memory.due(), now), (0, 0, None, 1 + (3 + u64::from(TRIES)) * PAUSE));
        assert_eq!(memory.free.len(), usize::from(PIECES));
        memory.remove(&guest);
        assert_eq!(Arc::strong_count(&guest), 1);
    }

    #[test]
    fn what_finds_no_number_is_registered_when_one_is_free() {
        let pieces = usize::from(PIECES);
        let (large, small) = (guest((pieces + 4) * PIECE, (pieces + 4) * PIECE), guest(2 * PIECE, 2 * PIECE));
        let (mut memory, mut locked, mut now) = (Memory::empty(true), 0, 1);
        memory.add(&small);
        memory.add(&large);
        // It does not go on trying.
        assert_eq!(drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX), pieces);
        assert_eq!((registered(&memory), memory.todo.len(), memory.due()), (pieces, 6, None));
        memory.remove(&small);
        assert_eq!(drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX), 2 + 2);
        assert_eq!((registered(&memory), memory.todo.len(), memory.due()), (pieces, 4, None));
        memory.remove(&large);
        drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX);
        assert_eq!((locked, memory.todo.len(), memory.free.len()), (0, 0, pieces));
        assert_eq!((Arc::strong_count(&large), Arc::strong_count(&small)), (1, 1));
    }
}
