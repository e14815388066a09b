//! A simulated engine: devices in memory, whose every whim follows a seed.
//!
//! Time is virtual. Commands take effect and are reported in an order of the seed's choosing, each at its own time:
//! data moves when the command takes effect, so memory that was let go or used for something else meanwhile shows.
//! Transfers end short, EAGAIN and EINTR come and go, faults strike by chance, by number or by place. Completed writes
//! are lost and torn by [`Sim::crash`] unless a [`Command::Sync`] or a durable write came to their rescue: each
//! device has a volatile and a durable image. A sync that fails may be the end of what it was for, as with Linux: it can
//! be read, and no later sync makes it durable.
//!
//! A [`Sim`] is a handle: a clone means the same engine, so that a test looks at the devices while a worker owns it.
//! [`Sim::another`] is a second engine over the same devices, for a second worker: turns of the two come one after the
//! other, in the order that the test chooses.
//! Misuse of the engine (a token used twice, a file forgotten while it is in use) is a panic: nothing but tests runs
//! on this engine.

mod disk;
mod effect;
#[cfg(test)]
pub(crate) mod pause;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;

use crate::engine::{Command, Engine, Event, FileIx, MAX_SLICES, Wait};
use crate::guest::HostSlice;
use disk::Disk;
pub use disk::{DISCARDED, SECTOR};

/// What a turn of the engine takes at least, in virtual nanoseconds.
const TURN: u64 = 1_000;

/// How the devices of a [`Sim`] behave.
#[derive(Clone, Copy, Debug)]
pub struct Temper {
    /// Longest time until a command takes effect, and again until that is reported.
    pub latency: Duration,
    /// Transfers that end early, in percent.
    pub short: u8,
    /// Commands that end with EAGAIN or EINTR and have done nothing, in percent.
    pub again: u8,
    /// Commands that fail with EIO, in per mille. What they leave behind of their data is a matter of chance.
    pub fail: u16,
}

impl Default for Temper {
    fn default() -> Temper {
        Temper { latency: Duration::from_micros(20), short: 0, again: 0, fail: 0 }
    }
}

/// What a simulated device takes and what it refuses.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Alignment that buffers must have, in bytes, or the device says EINVAL; 1 when anything goes.
    pub mem_align: u32,
    /// Alignment of offsets and lengths, in bytes; a short transfer ends at a multiple of it.
    pub unit: u32,
    /// The errno that [`Command::PunchHole`] is refused with.
    pub no_punch: Option<i32>,
    /// The errno that [`Command::ZeroRange`] is refused with.
    pub no_zero: Option<i32>,
    /// The errno that [`Command::BlockDiscard`] is refused with.
    pub no_discard: Option<i32>,
}

impl Default for Nature {
    /// A file behind the page cache that can do everything.
    fn default() -> Nature {
        Nature { mem_align: 1, unit: 1, no_punch: None, no_zero: None, no_discard: None }
    }
}

/// Index of a device, in the order of [`Sim::add_device`].
pub type DiskIx = usize;

/// A token or watch, and the engine that it is of.
type Of = (u8, u32);

/// A command without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Command::Read`].
    Read,
    /// [`Command::Write`].
    Write {
        /// On stable storage when it is reported.
        durable: bool,
    },
    /// [`Command::Sync`].
    Sync,
    /// [`Command::PunchHole`].
    PunchHole,
    /// [`Command::ZeroRange`].
    ZeroRange,
    /// [`Command::BlockDiscard`].
    BlockDiscard,
}

/// A failure that was made up: not the refusal of what a device cannot do, and not EAGAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which device.
    pub disk: DiskIx,
    /// What was asked for.
    pub kind: Kind,
    /// Offset of the command, in bytes.
    pub at: u64,
    /// Length of the command, in bytes; 0 for a sync.
    pub len: u64,
}

/// A standing order to fail.
struct Fault {
    disk: DiskIx,
    bytes: Range<u64>,
    applies: fn(Kind) -> bool,
    errno: i32,
}

/// Bytes of a device that may be read, and those that may be written.
struct Fence {
    reads: Vec<Range<u64>>,
    writes: Vec<Range<u64>>,
}

struct Running {
    file: u32,
    disk: DiskIx,
    kind: Kind,
    data: Vec<HostSlice>,
    at: u64,
    len: u64,
    // Which command this is, in the order of their starts.
    number: u64,
    // Reports made before it was started: what a sync must make durable.
    reports: u64,
    // Known once it has taken effect.
    result: Option<i32>,
    // It is a sync that has failed, so that the device forgets what it had not kept.
    forgets: bool,
}

#[derive(Clone, Copy)]
struct Watch {
    fd: RawFd,
    generation: u64,
}

#[derive(Clone, Copy)]
enum Item {
    Effect,
    Report,
    // If the watch is still of this generation.
    Ready(u64),
    Unwatched,
}

/// What one engine's user knows.
#[derive(Default)]
struct Side {
    asleep: bool,
    // What happened while another engine had its turn.
    events: Vec<Event>,
    // What was started and has not gone down.
    started: Vec<Of>,
}

struct State {
    rng: Rng,
    temper: Temper,
    now: u64,
    disks: Vec<Disk>,
    by_identity: HashMap<(u64, u64), DiskIx>,
    files: Vec<Option<DiskIx>>,
    running: HashMap<Of, Running>,
    // Due time, then a number by chance that makes the order among equals, then one that keeps keys apart.
    agenda: BTreeMap<(u64, u32, u64), (Of, Item)>,
    watches: HashMap<Of, Watch>,
    faults: Vec<Fault>,
    failures: Vec<Failure>,
    fail_number: Option<u64>,
    fences: HashMap<DiskIx, Fence>,
    // Counters: commands started, reports made, items put on the agenda and watches.
    started: u64,
    reported: u64,
    items: u64,
    sides: Vec<Side>,
}

/// See the module's text.
#[derive(Clone)]
pub struct Sim(Rc<RefCell<State>>, u8);

impl Sim {
    /// An engine without devices.
    pub fn new(seed: u64, temper: Temper) -> Sim {
        let state = Rc::new(RefCell::new(State {
            rng: Rng::with_seed(seed),
            temper,
            now: 0,
            disks: Vec::new(),
            by_identity: HashMap::new(),
            files: Vec::new(),
            running: HashMap::new(),
            agenda: BTreeMap::new(),
            watches: HashMap::new(),
            faults: Vec::new(),
            failures: Vec::new(),
            fail_number: None,
            fences: HashMap::new(),
            started: 0,
            reported: 0,
            items: 0,
            sides: vec![Side::default()],
        }));
        Sim(state, 0)
    }

    /// A second engine over the same devices, for a second worker. Files, tokens and watches are its own; time is the same.
    pub fn another(&self) -> Sim {
        let mut state = self.0.borrow_mut();
        state.sides.push(Side::default());
        Sim(self.0.clone(), (state.sides.len() - 1) as u8)
    }

    /// The clock goes on to `now`, unless it is later already: what was under way meanwhile happens with the next turn.
    pub fn advance(&self, now: u64) {
        let mut state = self.0.borrow_mut();
        state.now = state.now.max(now);
    }

    /// From now on a command that reads a device outside of `reads`, or changes it outside of `writes`, is a panic. In bytes.
    pub fn fence(&self, disk: DiskIx, reads: Vec<Range<u64>>, writes: Vec<Range<u64>>) {
        self.0.borrow_mut().fences.insert(disk, Fence { reads, writes });
    }

    /// Makes a device that holds `bytes`, durably, and that [`Engine::add_file`] finds by `file`: any file that is not
    /// yet a device's, told from others by its inode. It is never read or written.
    ///
    /// # Errors
    /// The file cannot be asked for its inode.
    ///
    /// # Panics
    /// `bytes` is no whole number of sectors.
    pub fn add_device(&self, file: impl AsFd, bytes: Vec<u8>, nature: Nature) -> io::Result<DiskIx> {
        assert!(bytes.len().is_multiple_of(SECTOR), "a device of {} bytes", bytes.len());
        let mut state = self.0.borrow_mut();
        let index = state.disks.len();
        state.disks.push(Disk::new(bytes, nature));
        state.by_identity.insert(identity(file.as_fd())?, index);
        Ok(index)
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.borrow().now)
    }

    /// Changes the devices' behaviour from here on.
    pub fn set_temper(&self, temper: Temper) {
        self.0.borrow_mut().temper = temper;
    }

    /// Makes a watched descriptor readable. [`Event::Ready`] follows, in its own time; what is rung while nobody watches
    /// is lost.
    pub fn ring(&self, fd: RawFd) {
        self.0.borrow_mut().ring(fd);
    }

    /// Whether the engine's user sleeps and nothing is under way that would wake it.
    pub fn asleep(&self) -> bool {
        let state = self.0.borrow();
        let side = &state.sides[usize::from(self.1)];
        let idle = side.events.is_empty() && side.started.is_empty();
        side.asleep && idle && !state.agenda.values().any(|((engine, _), _)| *engine == self.1)
    }

    /// Commands started and not yet reported.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().running.len()
    }

    /// Commands started so far.
    pub fn started(&self) -> u64 {
        self.0.borrow().started
    }

    /// Fails command number `number` (counted by [`Sim::started`] from 0) with EIO, whatever it is.
    pub fn fail_command(&self, number: u64) {
        self.0.borrow_mut().fail_number = Some(number);
    }

    /// Fails with `errno`, from now on, each command that `applies` accepts and that touches these bytes of a device. A
    /// transfer may do what lies before them first. A sync touches everything.
    pub fn fail_range(&self, disk: DiskIx, bytes: Range<u64>, applies: fn(Kind) -> bool, errno: i32) {
        self.0.borrow_mut().faults.push(Fault { disk, bytes, applies, errno });
    }

    /// Takes all orders of [`Sim::fail_range`] and [`Sim::fail_command`] back.
    pub fn heal(&self) {
        let mut state = self.0.borrow_mut();
        state.faults.clear();
        state.fail_number = None;
    }

    /// The failures made up since there were `since` of them.
    pub fn failures(&self, since: usize) -> Vec<Failure> {
        self.0.borrow().failures.get(since..).unwrap_or_default().to_vec()
    }

    /// How many failures were made up so far.
    pub fn failure_count(&self) -> usize {
        self.0.borrow().failures.len()
    }

    /// Shows what a read of the whole device would find now.
    ///
    /// # Panics
    /// There is no such device; so too in the other methods that take one.
    pub fn look<T>(&self, disk: DiskIx, f: impl FnOnce(&[u8]) -> T) -> T {
        f(self.0.borrow().disks[disk].bytes())
    }

    /// Shows what is durable for certain: what is left if a crash loses all it may.
    pub fn look_durable<T>(&self, disk: DiskIx, f: impl FnOnce(&[u8]) -> T) -> T {
        f(self.0.borrow().disks[disk].durable())
    }

    /// Cuts a device short: what lies behind `len` bytes is gone.
    pub fn truncate(&self, disk: DiskIx, len: u64) {
        self.0.borrow_mut().disks[disk].truncate(len);
    }

    /// The engine's process is killed, and not the machine: commands under way are done, done in part, or not, each before
    /// another process takes over. Afterwards nothing is under way, and no file and no watch is known.
    pub fn kill(&self) {
        self.0.borrow_mut().end();
    }

    /// The power goes. Of what was written and not synced, each sector keeps any of the contents it had since it was
    /// last durable; commands under way may have been done, done in part, or not. Afterwards nothing is under way, no
    /// file and no watch is known, and the devices hold what they kept.
    pub fn crash(&self) {
        let mut state = self.0.borrow_mut();
        state.end();
        let State { disks, rng, .. } = &mut *state;
        disks.iter_mut().for_each(|disk| disk.crash(rng));
    }
}

fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl State {
    /// Nothing is under way any more.
    fn end(&mut self) {
        let mut unfinished: Vec<Of> =
            self.running.iter().filter(|(_, r)| r.result.is_none()).map(|(token, _)| *token).collect();
        unfinished.sort_unstable();
        for token in unfinished {
            if self.rng.bool() {
                self.take_effect(token);
            }
        }
        self.running.clear();
        self.sides.iter_mut().for_each(|side| side.started.clear());
        self.agenda.clear();
        self.watches.clear();
        self.files.clear();
        self.sides.iter_mut().for_each(|side| *side = Side::default());
    }

    fn put(&mut self, latency: u64, of: Of, item: Item) {
        let delay = if latency == 0 { 0 } else { self.rng.u64(0..=latency) };
        let chance = self.rng.u32(..);
        self.items += 1;
        self.agenda.insert((self.now + delay, chance, self.items), (of, item));
    }

    /// What a side has started goes down.
    fn submit(&mut self, side: usize) {
        let latency = self.latency();
        for of in std::mem::take(&mut self.sides[side].started) {
            self.put(latency, of, Item::Effect);
        }
    }

    fn latency(&self) -> u64 {
        self.temper.latency.as_nanos() as u64
    }

    fn ring(&mut self, fd: RawFd) {
        let mut rung: Vec<_> =
            self.watches.iter().filter(|(_, w)| w.fd == fd).map(|(watch, w)| (*watch, w.generation)).collect();
        rung.sort_unstable();
        for (watch, generation) in rung {
            self.put(self.latency() / 4, watch, Item::Ready(generation));
        }
    }

    /// Stops a test whose user goes where it must not.
    fn judge(&self, disk: DiskIx, kind: Kind, bytes: Range<u64>) {
        let Some(fence) = self.fences.get(&disk) else { return };
        let (ranges, verb) = match kind {
            Kind::Sync => return,
            Kind::Read => (&fence.reads, "read"),
            _ => (&fence.writes, "change"),
        };
        let inside = |range: &Range<u64>| range.start <= bytes.start && bytes.end <= range.end;
        assert!(
            ranges.iter().any(inside),
            "{kind:?} of bytes {bytes:?} of device {disk}: it may {verb} {ranges:?} only"
        );
    }

    /// The agenda's first item, if it is due by now.
    fn next_due(&mut self) -> Option<(Of, Item)> {
        let first = self.agenda.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    fn happen(&mut self, of: Of, item: Item) {
        let (engine, number) = of;
        let event = match item {
            Item::Effect => {
                self.take_effect(of);
                return self.put(self.latency(), of, Item::Report);
            }
            Item::Report => {
                let Some(Running { disk, at, len, number: command, forgets, result: Some(result), .. }) =
                    self.running.remove(&of)
                else {
                    unreachable!("what is reported has been running and has taken effect");
                };
                self.reported += 1;
                self.disks[disk].reported(at, len, command, self.reported);
                if forgets {
                    self.disks[disk].drop_unsynced(&mut self.rng);
                }
                Event::Done { token: number, result }
            }
            Item::Ready(generation) => match self.watches.get(&of) {
                Some(watch) if watch.generation == generation => Event::Ready { watch: number },
                _ => return,
            },
            Item::Unwatched => {
                self.watches.remove(&of);
                Event::Unwatched { watch: number }
            }
        };
        self.sides[usize::from(engine)].events.push(event);
    }
}

impl Engine for Sim {
    fn now(&self) -> u64 {
        self.0.borrow().now
    }

    fn add_file(&mut self, file: BorrowedFd<'_>) -> io::Result<FileIx> {
        let identity = identity(file)?;
        let mut state = self.0.borrow_mut();
        let Some(&disk) = state.by_identity.get(&identity) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no simulated device was added for this file"));
        };
        state.files.push(Some(disk));
        Ok(FileIx(state.files.len() as u32 - 1))
    }

    fn remove_file(&mut self, file: FileIx) {
        let mut state = self.0.borrow_mut();
        let busy = state.running.values().find(|r| r.file == file.0);
        assert!(busy.is_none(), "{file:?} is removed during {:?}", busy.map(|r| r.kind));
        assert!(state.files[file.0 as usize].take().is_some(), "{file:?} is removed twice");
    }

    fn start(&mut self, file: FileIx, command: Command<'_>, token: u32) {
        let mut state = self.0.borrow_mut();
        let Some(disk) = state.files.get(file.0 as usize).copied().flatten() else {
            panic!("a command for {file:?}, which is not known");
        };
        let sum = |data: &[HostSlice]| data.iter().map(|s| s.len() as u64).sum();
        let kept = |data: &[HostSlice]| data[..data.len().min(MAX_SLICES)].to_vec();
        let (kind, at, len, data) = match command {
            Command::Read { data, at } => (Kind::Read, at, sum(&kept(data)), kept(data)),
            Command::Write { data, at, durable } => (Kind::Write { durable }, at, sum(&kept(data)), kept(data)),
            Command::Sync => (Kind::Sync, 0, 0, Vec::new()),
            Command::PunchHole { at, len } => (Kind::PunchHole, at, len, Vec::new()),
            Command::ZeroRange { at, len } => (Kind::ZeroRange, at, len, Vec::new()),
            Command::BlockDiscard { at, len } => (Kind::BlockDiscard, at, len, Vec::new()),
        };
        assert!(kind == Kind::Sync || len > 0, "an empty {kind:?} at {at}");
        state.judge(disk, kind, at..at + len);
        let (number, reports) = (state.started, state.reported);
        let running =
            Running { file: file.0, disk, kind, data, at, len, number, reports, result: None, forgets: false };
        let of = (self.1, token);
        assert!(state.running.insert(of, running).is_none(), "token {token} is used twice at a time");
        state.started += 1;
        state.sides[usize::from(self.1)].started.push(of);
    }

    fn watch(&mut self, fd: RawFd, watch: u32) {
        let mut state = self.0.borrow_mut();
        state.items += 1;
        let generation = state.items;
        let before = state.watches.insert((self.1, watch), Watch { fd, generation });
        assert!(before.is_none(), "watch {watch} is used twice");
    }

    fn unwatch(&mut self, watch: u32) {
        let (mut state, of) = (self.0.borrow_mut(), (self.1, watch));
        assert!(state.watches.contains_key(&of), "watch {watch} is not known");
        let latency = state.latency();
        state.put(latency, of, Item::Unwatched);
    }

    fn has_unseen(&mut self) -> bool {
        !self.0.borrow().sides[usize::from(self.1)].events.is_empty()
    }

    /// With nothing to wait for it returns at once, and [`Sim::asleep`] says so.
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        #[cfg(test)]
        pause::reached();
        let (mut state, own) = (self.0.borrow_mut(), usize::from(self.1));
        state.now += TURN;
        state.sides[own].asleep = false;
        if wait != Wait::Gather {
            state.submit(own);
        }
        loop {
            while let Some((of, item)) = state.next_due() {
                state.happen(of, item);
            }
            let mine = &mut state.sides[own].events;
            if matches!(wait, Wait::No | Wait::Gather) || !mine.is_empty() {
                events.append(mine);
                return Ok(());
            }
            let due = state.agenda.first_key_value().map(|((due, ..), _)| *due);
            match (due, wait) {
                (due, Wait::Until(at)) if due.is_none_or(|due| at < due) => {
                    state.now = state.now.max(at);
                    return Ok(());
                }
                (Some(due), _) => state.now = due,
                (None, _) => {
                    state.sides[own].asleep = true;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
