//! Any guest memory served: ring, chains, map and operations, on simulated devices.

use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dm_table::{Format, Source, parse};
use rustix::io::Errno;
use vhost_user_dm::chain::Chain;
use vhost_user_dm::device::{Access, Cache, Component, Discard, DiscardMethod, Limits, Options, Registry};
use vhost_user_dm::engine::{Command, Engine, Event, FileIx, Wait};
use vhost_user_dm::guest::{Guest, HostSlice, SplitRing};
use vhost_user_dm::map::{DevIx, LookupError, Lower, Map};
use vhost_user_dm::request::ID_LEN;
use vhost_user_dm::sim::{Nature, Sim, Temper};
use vhost_user_dm::stats::{Clock, Lane};
use vhost_user_dm::worker::ops::Ops;
use vhost_user_dm::worker::queue::{Queue, Setup};
use vhost_user_dm::worker::tasks::Tasks;

use super::guest::{Expected, Hostile, Marks};

/// Sectors of the devices.
const DEVICES: [u64; 2] = [64, 128];
/// All that a map can be made of; whole blocks of 4096 bytes.
const TABLE: &str = "0 16 linear d0 0
16 32 striped 2 8 d0 16 d1 0
48 8 zero
56 64 linear d1 16
120 8 error
";
/// Heads that are served of one input.
const HEADS: u16 = 24;
/// Turns in which everything must have come to its end.
const PATIENCE: u32 = 100_000;

thread_local! {
    static GROUND: Ground = Ground::new();
}

/// Serves the ring that `data` makes until everything offered has been given back.
///
/// # Panics
/// Where a device is asked for what it does not have, guest memory is touched that the chains do not give, a head is
/// lost or given back twice, or the queue does not drain.
pub fn queue(data: &[u8]) {
    let Some(hostile) = Hostile::new(data) else { return };
    let Some((guest, ring)) = hostile.ring() else { return };
    GROUND.with(|ground| Run::new(ground, &hostile, guest, ring).run());
}

/// What inputs share: disks over the same two files, which are never touched, as [`Sim`] has the data.
struct Ground {
    chains: [Arc<Chain>; 4],
    null: File,
}

impl Ground {
    fn new() -> Ground {
        let buffered = (Access::Buffered, DiscardMethod::PunchHole);
        let direct = (Access::Direct { mem_align: 512, offset_align: 512 }, DiscardMethod::BlockCommand);
        let null = File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
        Ground {
            chains: [
                disk(buffered, 512, false),
                disk(direct, 512, false),
                disk(direct, 4096, false),
                disk(buffered, 512, true),
            ],
            null,
        }
    }
}

fn disk((access, method): (Access, DiscardMethod), block: u32, read_only: bool) -> Arc<Chain> {
    let discard = Some(Discard { granularity: block, max_sectors: 1 << 20, method });
    let limits = Limits {
        logical_block: block,
        physical_block: block,
        alignment_offset: 0,
        io_min: block,
        io_opt: 0,
        discard,
        write_zeroes: true,
    };
    let components: Vec<_> = DEVICES.iter().map(|&sectors| component(sectors, access, limits)).collect();
    let source = Arc::new(Source::new("fuzz", TABLE));
    let file = parse(Arc::clone(&source), Format::Plain).unwrap_or_else(|refusal| panic!("{refusal}"));
    let mut resolve = |dev: &dm_table::DevRef| {
        let index = usize::from(dev.text == "d1");
        let (name, size) = (dev.text.clone(), components[index].size);
        Ok::<_, LookupError>(Lower::Device { ix: DevIx(index as u16), name, size, limits })
    };
    let (map, _) = Map::build(&source, &file.devices[0].table, read_only, &mut resolve)
        .unwrap_or_else(|refusal| panic!("{refusal}"));
    Arc::new(Chain {
        name: "fuzz".to_owned(),
        map: Arc::new(map),
        components: components.into_iter().collect(),
        read_only,
        limiters: Arc::default(),
        events: Arc::default(),
    })
}

/// A component that says of itself what it is told. Its file has no name any more when this returns.
fn component(sectors: u64, access: Access, limits: Limits) -> Arc<Component> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(sectors * dm_table::SECTOR_SIZE).expect("size a component");
    let options = Options { read_only: false, cache: Cache::Buffered, incoming: false };
    let path = file.path().to_str().expect("a path of UTF-8");
    let opened = Registry::new().open(path, None, &options).expect("open a component");
    let mut component = Arc::into_inner(opened).expect("the only user");
    (component.access, component.limits, component.mapping) = (access, limits, None);
    Arc::new(component)
}

/// The engine, which looks at what it is asked for.
struct Checked<'h> {
    sim: Sim,
    hostile: &'h Hostile,
    // Bytes that a chain has given for reading by the device, and for writing.
    readable: Marks,
    writable: Marks,
    // Not when a request may have changed the available index: more heads may be taken than were offered.
    strict: bool,
}

impl Checked<'_> {
    fn check(&self, file: FileIx, command: &Command<'_>) {
        let size = DEVICES[file.0 as usize] * dm_table::SECTOR_SIZE;
        let sum = |data: &[HostSlice]| data.iter().map(|slice| slice.len() as u64).sum();
        let (at, len) = match *command {
            Command::Read { data, at } => {
                self.check_slices(data, &self.writable);
                (at, sum(data))
            }
            Command::Write { data, at, .. } => {
                self.check_slices(data, &self.readable);
                (at, sum(data))
            }
            Command::Sync => (0, 0),
            Command::PunchHole { at, len } | Command::ZeroRange { at, len } | Command::BlockDiscard { at, len } => {
                (at, len)
            }
        };
        assert!(at + len <= size, "{command:?} on a device of {size} bytes");
    }

    /// What is not guest memory is a buffer of the worker's own.
    fn check_slices(&self, data: &[HostSlice], given: &Marks) {
        for slice in data {
            let place = self.hostile.region_of(slice.addr() as u64);
            let given = place.is_none_or(|place| given.all(place, slice.len()));
            assert!(given || !self.strict, "{slice:?} is not what a chain has given for this");
        }
    }
}

impl Engine for Checked<'_> {
    fn now(&self) -> u64 {
        Engine::now(&self.sim)
    }

    fn add_file(&mut self, file: BorrowedFd<'_>) -> std::io::Result<FileIx> {
        self.sim.add_file(file)
    }

    fn remove_file(&mut self, file: FileIx) {
        self.sim.remove_file(file);
    }

    fn start(&mut self, file: FileIx, command: Command<'_>, token: u32) {
        self.check(file, &command);
        self.sim.start(file, command, token);
    }

    fn watch(&mut self, fd: RawFd, watch: u32) {
        self.sim.watch(fd, watch);
    }

    fn unwatch(&mut self, watch: u32) {
        self.sim.unwatch(watch);
    }

    fn has_unseen(&mut self) -> bool {
        self.sim.has_unseen()
    }

    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> std::io::Result<()> {
        self.sim.turn(wait, events)
    }
}

/// A queue being served, and its driver.
struct Run<'h> {
    hostile: &'h Hostile,
    engine: Checked<'h>,
    ops: Ops,
    clock: Clock,
    tasks: Tasks,
    queue: Queue,
    events: Vec<Event>,
    // Used index at the start.
    used: u16,
}

impl<'h> Run<'h> {
    fn new(ground: &Ground, hostile: &'h Hostile, guest: Arc<Guest>, ring: SplitRing) -> Run<'h> {
        let chain = &ground.chains[usize::from(hostile.bits >> 5 & 3)];
        let seed = hostile.seed;
        let chance = |bit: u64, percent: u8| if seed >> bit & 1 != 0 { percent } else { 0 };
        let latency = Duration::from_micros(seed >> 14 & 1) * 20;
        let temper = Temper { latency, short: chance(8, 30), again: chance(9, 10), fail: u16::from(chance(10, 100)) };
        let sim = Sim::new(seed, temper);
        for ((_, component), sectors) in chain.components.iter().zip(DEVICES) {
            let refused = |bit: u64| (seed >> bit & 1 != 0).then_some(Errno::OPNOTSUPP.raw_os_error());
            let aligned = match component.access {
                Access::Direct { mem_align, .. } => mem_align,
                Access::Buffered | Access::Mapped => 1,
            };
            let nature = Nature {
                mem_align: aligned,
                unit: aligned,
                no_punch: refused(11),
                no_zero: refused(12),
                no_discard: refused(13),
            };
            let bytes = vec![0; (sectors * dm_table::SECTOR_SIZE) as usize];
            sim.add_device(component.file(), bytes, nature).expect("a device");
        }
        let (readable, writable) = (hostile.marks(), hostile.marks());
        let mut engine = Checked { sim, hostile, readable, writable, strict: true };
        let dup = || ground.null.try_clone().expect("a descriptor");
        let used = hostile.half(hostile.at.used + 2);
        let setup = Setup {
            name: "fuzz".to_owned(),
            chain: Arc::clone(chain),
            lane: Lane::detached(chain),
            serial: [b's'; ID_LEN],
            guest,
            ring,
            base: hostile.base,
            record: None,
            event_idx: hostile.event_idx,
            kick: dup(),
            call: Some(dup()),
            err: Some(dup()),
            write_through: Arc::new(AtomicBool::new(hostile.bits & 0x80 != 0)),
        };
        let mut ops = Ops::new().expect("bounce buffers");
        let queue = Queue::new(0, setup, &mut ops, &mut engine).expect("files that the engine knows");
        Run { hostile, engine, ops, clock: Clock::default(), tasks: Tasks::detached(), queue, events: Vec::new(), used }
    }

    fn run(mut self) {
        let before = self.hostile.snapshot();
        let (avail, base, size) = (self.hostile.at.avail, self.hostile.base, self.hostile.at.size);
        let offered = self.hostile.half(avail + 2).wrapping_sub(base);
        let mut heads = Vec::new();
        if offered > size {
            assert_eq!(self.queue.take(&mut self.ops, &mut self.tasks, &mut self.engine, &mut self.clock), 0);
            assert_eq!(self.queue.next_avail(), base, "nothing is taken from a broken ring");
        } else {
            for n in 0..offered.min(HEADS) {
                heads.push(self.offer(n));
                if !self.engine.strict {
                    break;
                }
            }
        }
        self.drain();
        if self.engine.strict {
            self.given_back(heads);
            // What the driver itself wrote.
            self.engine.writable.set(self.hostile, (avail + 2, 2));
            self.hostile.assert_untouched(&before, &self.engine.writable);
        }
        assert_eq!(self.ops.under_way(), 0);
        self.queue.end(&mut self.ops, &mut self.engine);
        assert_eq!(self.engine.sim.in_flight(), 0);
    }

    /// Offers entry `n`, and has it taken; returns its head.
    fn offer(&mut self, n: u16) -> u16 {
        let Hostile { at, base, .. } = *self.hostile;
        let next = base.wrapping_add(n);
        let head = self.hostile.half(at.avail + 4 + 2 * u64::from(next % at.size));
        self.give(&self.hostile.expect(head));
        let used = self.hostile.used_ring();
        for byte in [at.avail + 2, at.avail + 3] {
            self.engine.strict &= !self.engine.writable.has(self.hostile, byte) && byte.wrapping_sub(used.0) >= used.1;
        }
        self.hostile.put(at.avail + 2, &next.wrapping_add(1).to_le_bytes());
        for _ in 0..PATIENCE {
            self.queue.take(&mut self.ops, &mut self.tasks, &mut self.engine, &mut self.clock);
            if self.hostile.seed >> (n % 8) & 1 == 0 {
                self.turn(Wait::No);
            }
            self.queue.publish();
            if self.queue.next_avail() != next || !self.engine.strict {
                return head;
            }
            // A ring full of requests under way: one has to end first.
            self.turn(Wait::Event);
        }
        panic!("entry {n} is never taken");
    }

    /// Notes what a chain gives the device.
    fn give(&mut self, expected: &Expected) {
        let Checked { readable, writable, hostile, .. } = &mut self.engine;
        match expected {
            Expected::NoChain | Expected::NoStatus | Expected::Wrong(None) => {}
            Expected::Wrong(Some(status)) | Expected::NoHeader(status) => writable.set(hostile, (*status, 1)),
            Expected::Request(asked) => {
                asked.readable.iter().for_each(|&bytes| readable.set(hostile, bytes));
                asked.writable.iter().for_each(|&bytes| writable.set(hostile, bytes));
                writable.set(hostile, (asked.status, 1));
            }
        }
    }

    fn turn(&mut self, wait: Wait) {
        let mut events = std::mem::take(&mut self.events);
        self.engine.turn(wait, &mut events).expect("the simulation never fails");
        for event in events.drain(..) {
            if let Event::Done { token, result } = event
                && let Some(verdict) = self.ops.complete(&mut self.engine, token, result)
            {
                self.queue.complete(&verdict, &mut self.clock);
            }
        }
        self.events = events;
    }

    fn drain(&mut self) {
        self.queue.stop();
        for _ in 0..PATIENCE {
            self.queue.publish();
            if self.queue.drained() {
                return;
            }
            self.turn(Wait::Event);
        }
        panic!("the queue does not drain");
    }

    /// Every head is in the used ring as often as it was offered.
    fn given_back(&self, mut heads: Vec<u16>) {
        let at = self.hostile.at;
        let (start, len) = self.hostile.used_ring();
        assert_eq!(self.hostile.half(at.used + 2), self.used.wrapping_add(heads.len() as u16));
        let overwritten = (start..start + len).any(|gpa| self.engine.writable.has(self.hostile, gpa));
        if overwritten || heads.len() > usize::from(at.size) {
            return;
        }
        let entry = |n: u16| at.used + 4 + 8 * u64::from(self.used.wrapping_add(n) % at.size);
        let mut found: Vec<u16> = (0..heads.len() as u16).map(|n| self.hostile.half(entry(n))).collect();
        heads.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, heads);
    }
}
