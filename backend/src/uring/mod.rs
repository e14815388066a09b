//! The engine that does the work: one io_uring per worker, submitted and reaped by one system call a turn
//! (a few, where there is much to submit).
//!
//! The ring belongs to the thread that makes it (single issuer, deferred task work), holds the component devices as fixed
//! files and is restricted to the operations used here.
#![allow(unsafe_code)]

mod memory;
mod probe;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};

use crate::engine::{Command, Engine, Event, FileIx, MAX_SLICES, Wait};
use crate::guest::{Guest, HostSlice};
use crate::stats;
use memory::Memory;
pub use probe::{Support, probe};

/// Submission entries; more are submitted in several system calls.
const ENTRIES: u32 = 256;
/// Entries of a large submission of which the device hears before the others are prepared.
const FIRST_PART: usize = 4;
/// Completion entries; the kernel keeps what overflows (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 4096;
/// Places in the fixed-file table; files past it are used by descriptor.
const FIXED_FILES: u32 = 256;
/// A [`FileIx`] with this bit is a plain descriptor.
const PLAIN: u32 = 1 << 31;
/// Slices that wait for their submission.
const ARENA: usize = 4 * MAX_SLICES;
/// Linux transfers at most this many bytes at once (MAX_RW_COUNT).
const MAX_TRANSFER: usize = 0x7fff_f000;

/// `_IO(0x12, 0)`, include/uapi/linux/blkdev.h.
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// `IORING_ENTER_GETEVENTS`, include/uapi/linux/io_uring.h.
const ENTER_GETEVENTS: u32 = 1;

const KIND_WATCH: u64 = 1 << 32;
const KIND_CANCEL: u64 = 2 << 32;

#[derive(Clone, Copy)]
struct Watch {
    fd: RawFd,
    leaving: bool,
    dead: bool,
}

/// See the module's text.
pub struct Uring {
    ring: IoUring,
    free_files: Vec<u32>,
    arena: Vec<HostSlice>,
    watches: Vec<Option<Watch>>,
    early: Vec<Event>,
    memory: Option<Box<Memory>>,
}

impl Uring {
    /// Sets up a ring for the calling thread; `registers`: with the memory of its guests registered.
    ///
    /// # Errors
    /// The system's: no memory, no descriptors, io_uring forbidden.
    pub fn new(registers: bool) -> io::Result<Uring> {
        // Kernels before 6.1 know neither of the first two; the ring works without them.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_r_disabled()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(ENTRIES)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => {
                    IoUring::builder().setup_r_disabled().setup_cqsize(COMPLETIONS).dontfork().build(ENTRIES)
                }
                _ => Err(error),
            })
            .map_err(what_helps)?;
        let support = probe::support();
        ring.submitter().register_restrictions(&mut support.allowed())?;
        // Without the table (RLIMIT_NOFILE below its size) files are used by descriptor.
        let fixed = ring.submitter().register_files_sparse(FIXED_FILES).is_ok();
        let memory = match registers {
            true => Memory::new(&ring, support.lists)?.map(Box::new),
            false => None,
        };
        ring.submitter().register_enable_rings()?;
        Ok(Uring {
            memory,
            ring,
            free_files: if fixed { (0..FIXED_FILES).rev().collect() } else { Vec::new() },
            arena: Vec::with_capacity(ARENA),
            watches: Vec::new(),
            early: Vec::new(),
        })
    }

    /// Makes room for an entry and a list of so many slices. To be called before the list is kept: making room later would
    /// submit the entries of other lists and take the place of this one for free.
    #[inline]
    fn make_room(&mut self, slices: usize) {
        while self.ring.submission().is_full() || self.arena.len() + slices > ARENA {
            self.submit(0, None);
            if !self.ring.submission().is_empty() {
                // The kernel refuses more while completions wait to be taken.
                let mut early = std::mem::take(&mut self.early);
                self.reap(&mut early);
                // To arm a watch again may have made room, too.
                early.append(&mut self.early);
                self.early = early;
            }
        }
    }

    /// Queues an entry for which there is room.
    #[inline]
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: every entry that gets here refers to memory that stays valid until its completion: data by the contract of
        // `Engine::start`, lists of slices in `arena`, which is not touched before they are submitted.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "no room was made");
    }

    /// Submits the first entries of many in parts, each twice as large as the one before.
    ///
    /// The kernel tells a device of what one system call submits when it has prepared all of it (a block plug); until then
    /// the device has nothing to do.
    fn begin(&mut self) {
        let mut part = FIRST_PART;
        while self.ring.submission().len() > part {
            // SAFETY: without a signal mask or a wait the call only takes entries, which are those of `push`.
            match unsafe { self.ring.submitter().enter::<libc::sigset_t>(part as u32, 0, 0, None) } {
                Ok(1..) => part *= 2,
                _ => return,
            }
        }
    }

    /// What it cannot do now (EINTR, EBUSY, EAGAIN) the next turn does.
    fn submit(&mut self, want: usize, until: Option<u64>) -> Option<io::Error> {
        self.begin();
        let submitter = self.ring.submitter();
        let result = match until {
            None => submitter.submit_and_wait(want),
            Some(until) => {
                let left = Duration::from_nanos(until.saturating_sub(stats::now()));
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&Timespec::from(left)))
            }
        };
        if self.ring.submission().is_empty() {
            // IORING_FEAT_SUBMIT_STABLE: the kernel has its own copy of the lists.
            self.arena.clear();
        }
        match result {
            Ok(_) => None,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME)) => None,
            Err(e) => Some(e),
        }
    }

    /// Takes what has completed, and submits nothing.
    fn gather(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        if self.ring.split().1.taskrun() {
            // SAFETY: without a signal mask or entries the call only has the kernel do what it has put off for this thread.
            let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) };
            match result {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(e) => return Err(e),
            }
        }
        self.reap(events);
        Ok(())
    }

    /// A copy of `data` that stays where it is until it is submitted.
    fn keep(&mut self, data: &[HostSlice]) -> (*const libc::iovec, u32) {
        let data = &data[..data.len().min(MAX_SLICES)];
        let start = self.arena.len();
        self.arena.extend_from_slice(data);
        // The arena never grows past its capacity (see `make_room`), so it never moves; HostSlice is laid out like an iovec.
        (self.arena[start..].as_ptr().cast(), data.len() as u32)
    }

    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut again = Vec::new();
        let watches = &mut self.watches;
        for cqe in self.ring.completion() {
            let data = cqe.user_data();
            let low = data as u32;
            match data & !u64::from(u32::MAX) {
                0 => events.push(Event::Done { token: low, result: cqe.result() }),
                KIND_WATCH => {
                    let more = io_uring::cqueue::more(cqe.flags());
                    let Some(slot) = watches.get_mut(low as usize) else { continue };
                    let Some(watch) = *slot else { continue };
                    if watch.leaving && !more {
                        *slot = None;
                        events.push(Event::Unwatched { watch: low });
                    } else if !watch.leaving {
                        if cqe.result() < 0 {
                            // Not a descriptor that can be waited for: it will never report anything.
                            *slot = Some(Watch { dead: true, ..watch });
                            continue;
                        }
                        events.push(Event::Ready { watch: low });
                        // A multishot poll ends when the kernel runs short (completion queue overflow).
                        if !more {
                            again.push(low);
                        }
                    }
                }
                _ => {}
            }
        }
        for watch in again {
            self.arm(watch);
        }
    }

    fn arm(&mut self, watch: u32) {
        if let Some(Some(Watch { fd, .. })) = self.watches.get(watch as usize) {
            let fd = *fd;
            self.make_room(0);
            let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build();
            self.push(&entry.user_data(KIND_WATCH | u64::from(watch)));
        }
    }

    fn build(
        file: FileIx,
        command: Command<'_>,
        registered: Option<u16>,
        keep: impl FnOnce(&[HostSlice]) -> (*const libc::iovec, u32),
    ) -> squeue::Entry {
        let fixed = file.0 & PLAIN == 0;
        let fd = types::Fd((file.0 & !PLAIN) as RawFd);
        let entry = match command {
            Command::Read { .. } | Command::Write { .. } if let Some(number) = registered => {
                memory::transfer(fd, command, number, keep)
            }
            Command::Read { data: [one], at } => {
                opcode::Read::new(fd, one.as_ptr(), one.len().min(MAX_TRANSFER) as u32).offset(at).build()
            }
            Command::Read { data, at } => {
                let (list, n) = keep(data);
                opcode::Readv::new(fd, list, n).offset(at).build()
            }
            Command::Write { data: [one], at, durable } => {
                opcode::Write::new(fd, one.as_ptr(), one.len().min(MAX_TRANSFER) as u32)
                    .offset(at)
                    .rw_flags(dsync(durable))
                    .build()
            }
            Command::Write { data, at, durable } => {
                let (list, n) = keep(data);
                opcode::Writev::new(fd, list, n).offset(at).rw_flags(dsync(durable)).build()
            }
            Command::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Command::PunchHole { at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, len).offset(at).mode(mode).build()
            }
            Command::ZeroRange { at, len } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, len).offset(at).mode(mode).build()
            }
            Command::BlockDiscard { at, len } => {
                // The kernel takes the start from `addr` and the length from `addr3`, the first half of the command area.
                let mut area = [0; 16];
                area[..8].copy_from_slice(&len.to_ne_bytes());
                opcode::UringCmd16::new(fd, BLOCK_URING_CMD_DISCARD).cmd(area).addr(Some(at)).build()
            }
        };
        if fixed { entry.flags(squeue::Flags::FIXED_FILE) } else { entry }
    }
}

/// Kernels count rings among what a user's processes lock (about 90 KiB each here).
fn what_helps(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => io::Error::new(
            error.kind(),
            format!(
                "{error}; without CAP_IPC_LOCK, RLIMIT_MEMLOCK limits the rings of all processes of a user (`ulimit -l`)"
            ),
        ),
        _ => error,
    }
}

fn dsync(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

impl Engine for Uring {
    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileIx> {
        let fd = file.as_raw_fd();
        let Some(place) = self.free_files.pop() else {
            return Ok(FileIx(fd as u32 | PLAIN));
        };
        match self.ring.submitter().register_files_update(place, &[fd]) {
            Ok(_) => Ok(FileIx(place)),
            Err(e) => {
                self.free_files.push(place);
                Err(e)
            }
        }
    }

    fn remove_file(&mut self, file: FileIx) {
        if file.0 & PLAIN == 0 {
            // The place is free either way: the next update writes over it.
            let _ = self.ring.submitter().register_files_update(file.0, &[-1]);
            self.free_files.push(file.0);
        }
    }

    #[inline]
    fn start(&mut self, file: FileIx, command: Command<'_>, token: u32) {
        let slices = match command {
            Command::Read { data, .. } | Command::Write { data, .. } => data.len().min(MAX_SLICES),
            _ => 0,
        };
        self.make_room(slices);
        let registered = self.memory.as_ref().and_then(|memory| memory.number(&command));
        let entry = Self::build(file, command, registered, |data| self.keep(data));
        self.push(&entry.user_data(u64::from(token)));
    }

    fn add_memory(&mut self, guest: &Arc<Guest>) {
        if let Some(memory) = &mut self.memory {
            memory.add(guest);
        }
    }

    fn remove_memory(&mut self, guest: &Arc<Guest>) {
        if let Some(memory) = &mut self.memory {
            memory.remove(guest);
        }
    }

    fn is_giving_back(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_giving_back())
    }

    fn watch(&mut self, fd: RawFd, watch: u32) {
        let index = watch as usize;
        if self.watches.len() <= index {
            self.watches.resize(index + 1, None);
        }
        self.watches[index] = Some(Watch { fd, leaving: false, dead: false });
        self.arm(watch);
    }

    fn unwatch(&mut self, watch: u32) {
        let Some(slot) = self.watches.get_mut(watch as usize) else { return };
        match slot {
            Some(w) if !w.dead => {
                w.leaving = true;
                let poll = KIND_WATCH | u64::from(watch);
                self.make_room(0);
                self.push(&opcode::AsyncCancel::new(poll).build().user_data(KIND_CANCEL));
            }
            _ => {
                *slot = None;
                self.early.push(Event::Unwatched { watch });
            }
        }
    }

    #[inline]
    fn now(&self) -> u64 {
        stats::now()
    }

    #[inline]
    fn has_unseen(&mut self) -> bool {
        let (_, sq, cq) = self.ring.split();
        sq.taskrun() || !cq.is_empty()
    }

    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        events.append(&mut self.early);
        if wait == Wait::Gather {
            return self.gather(events);
        }
        let due = self.memory.as_ref().and_then(|memory| memory.due());
        let step = due.is_some_and(|due| due == 0 || due <= stats::now());
        let sleep = wait != Wait::No && events.is_empty() && !step;
        let until = match wait {
            Wait::Until(until) => Some(due.map_or(until, |due| due.min(until))),
            Wait::No | Wait::Gather | Wait::Event => due,
        };
        let (idle, completed) = {
            let (_, sq, cq) = self.ring.split();
            (sq.is_empty() && !sq.taskrun() && !sq.cq_overflow(), !cq.is_empty())
        };
        let wait = sleep && !completed;
        if (wait || !idle)
            && let Some(error) = self.submit(usize::from(wait), until.filter(|_| wait))
        {
            return Err(error);
        }
        // What the kernel has not taken yet may name what would be released. It takes it in the next turns.
        if step
            && self.ring.submission().is_empty()
            && let Some(memory) = &mut self.memory
        {
            memory.step(stats::now(), |number, piece| memory::update(&self.ring, number, piece));
        }
        self.reap(events);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Buffer;
    use std::io::Write;
    use std::os::fd::AsFd;
    use vmm_sys_util::eventfd::EventFd;

    fn until(ring: &mut Uring, events: &mut Vec<Event>, n: usize) {
        while events.len() < n {
            ring.turn(Wait::Event, events).unwrap();
        }
    }

    #[test]
    fn reads_and_writes_with_one_and_many_slices() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = Uring::new(false).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        let buffer = Buffer::new(8192).unwrap();
        buffer.slice().write(&[7; 4096]);
        let mut events = Vec::new();
        ring.start(ix, Command::Write { data: &[buffer.slice().part(0, 4096)], at: 512, durable: true }, 1);
        until(&mut ring, &mut events, 1);
        assert_eq!(events, [Event::Done { token: 1, result: 4096 }]);
        let halves = [buffer.slice().part(4096, 100), buffer.slice().part(5000, 412)];
        ring.start(ix, Command::Read { data: &halves, at: 512 }, 2);
        ring.start(ix, Command::Sync, 3);
        until(&mut ring, &mut events, 3);
        assert!(events.contains(&Event::Done { token: 2, result: 512 }));
        let mut back = [0; 100];
        halves[0].read(&mut back);
        assert_eq!(back, [7; 100]);
        ring.remove_file(ix);
        assert_eq!(ring.free_files.len(), FIXED_FILES as usize);
    }

    #[test]
    fn more_commands_than_entries_all_complete_where_they_belong() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 0).unwrap();
        let mut ring = Uring::new(false).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        let n = COMPLETIONS as usize * 2;
        let is_long = |token: usize| token > n / 2 && token.is_multiple_of(5);
        let buffer = Buffer::new(n * 4).unwrap();
        let mut events = Vec::new();
        for token in 0..n {
            let here = buffer.slice().part(4 * token, 4);
            let few = [here.part(0, 1), here.part(1, 3)];
            let many = vec![here.part(0, 1); 700];
            // Short lists fill the queue of entries first, long ones the room for lists.
            ring.start(ix, Command::Read { data: if is_long(token) { &many } else { &few }, at: 0 }, token as u32);
        }
        until(&mut ring, &mut events, n);
        let mut tokens: Vec<usize> = events
            .iter()
            .map(|e| match e {
                Event::Done { token, result: 4 | 700 } => *token as usize,
                other => panic!("{other:?}"),
            })
            .collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..n));
        for token in 0..n {
            let mut bytes = [0; 4];
            buffer.slice().part(4 * token, 4).read(&mut bytes);
            assert_eq!(bytes, if is_long(token) { [7, 0, 0, 0] } else { [7; 4] }, "{token}");
        }
    }

    #[test]
    fn a_watch_reports_every_write_until_it_is_taken_back() {
        let kick = EventFd::new(0).unwrap();
        let mut ring = Uring::new(false).unwrap();
        ring.watch(kick.as_raw_fd(), 5);
        let mut events = Vec::new();
        ring.turn(Wait::No, &mut events).unwrap();
        for _ in 0..3 {
            kick.write(1).unwrap();
            events.clear();
            until(&mut ring, &mut events, 1);
            assert_eq!(events, [Event::Ready { watch: 5 }]);
        }
        ring.unwatch(5);
        events.clear();
        until(&mut ring, &mut events, 1);
        assert_eq!(events, [Event::Unwatched { watch: 5 }]);
    }

    #[test]
    fn operations_outside_the_list_are_refused_by_the_ring() {
        let mut ring = Uring::new(false).unwrap();
        ring.push(&opcode::Nop::new().build().user_data(9));
        let mut events = Vec::new();
        until(&mut ring, &mut events, 1);
        assert_eq!(events, [Event::Done { token: 9, result: -libc::EACCES }]);
    }

    #[test]
    fn ranges_are_punched_and_zeroed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 12288]).unwrap();
        let mut ring = Uring::new(false).unwrap();
        let ix = ring.add_file(file.as_fd()).unwrap();
        let mut events = Vec::new();
        ring.start(ix, Command::PunchHole { at: 4096, len: 4096 }, 0);
        until(&mut ring, &mut events, 1);
        assert_eq!(events, [Event::Done { token: 0, result: 0 }]);
        let mut bytes = [9; 12288];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert!(bytes[..4096].iter().all(|b| *b == 1) && bytes[4096..8192].iter().all(|b| *b == 0));
        assert!(bytes[8192..].iter().all(|b| *b == 1));
    }
}
