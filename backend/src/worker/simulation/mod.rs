//! Simulation: drivers, rings, a worker and devices in one thread, and every choice follows from a seed.
//!
//! Random requests run over random tables while devices reorder, cut short, refuse, fail and forget. The drivers act
//! between any two accesses of the worker to a ring. Held against a naive model: what each request gives back, the
//! bytes of components and of guest memory, what is durable, that nobody sleeps while there is work, and that in the
//! end everything is back in its place.
//!
//! A failing seed is printed. `DM_TEST_SEED` repeats one, `DM_TEST_SEEDS` asks for more of them, `DM_TEST_OPS` sets the
//! number of requests of a seed.

mod counts;
mod driver;
mod killed;
mod operations;
mod patience;
mod traffic;
mod world;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use fastrand::Rng;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::Core;
use super::mischief::Mischief;
use super::ops::Ops;
use super::poll::Poll;
use super::queue::Setup;
use crate::chain::Chain;
use crate::guest::{Guest, Inflight, Record, SplitRing};
use crate::sim::Sim;
use crate::sim::pause::OtherSide;
use crate::stats;
use counts::Tally;
use driver::{REGIONS, Side, places};
use traffic::SERIAL;
use world::World;

/// Seeds of one run of the tests, and requests of one seed.
const SEEDS: u64 = 2000;
const REQUESTS: u32 = 40;
/// Turns in which something must have gone on.
const PATIENCE: u64 = 20_000;

/// What seeds share: it is costly to make, and no seed depends on what another has left in it.
#[derive(Clone)]
struct Ground {
    memory: Arc<GuestMemoryMmap<()>>,
    guest: Arc<Guest>,
    // Random bytes that contents are cut from.
    pool: Rc<Vec<u8>>,
    null: Rc<File>,
}

impl Ground {
    fn new() -> Ground {
        let regions: Vec<_> = REGIONS.iter().map(|&(at, len)| (GuestAddress(at), len)).collect();
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("guest memory"));
        let guest = Arc::new(Guest::new(memory.clone()).expect("guest memory"));
        let mut pool = vec![0; 1 << 16];
        Rng::with_seed(1).fill(&mut pool);
        let null = Rc::new(File::open("/dev/null").expect("/dev/null"));
        Ground { memory, guest, pool: Rc::new(pool), null }
    }
}

enum Place {
    Running(u32),
    // With the available index that the driver had published when it was stopped.
    Stopping(Receiver<u16>, u16),
    Stopped { next: u16, used: u16 },
}

struct Rig {
    core: Core<Sim>,
    sim: Sim,
    chain: Arc<Chain>,
    // Of the process that lives now.
    stats: stats::Disk,
    ground: Ground,
    // The front end's in-flight region.
    inflight: Option<Arc<Inflight>>,
    // After so many accesses to shared memory the process is killed; 0: it lives.
    fuse: Rc<Cell<u32>>,
    killed: u64,
    side: Rc<RefCell<Side>>,
    places: Vec<Place>,
    // A message has been sent to the worker: it has a turn even if its devices leave it asleep.
    rung: bool,
    // Whether anything happens from outside.
    meddles: bool,
    rng: Rng,
    // Tasks wait for each other and for more.
    _mischief: Option<Mischief>,
    _other_side: OtherSide,
}

/// Says on a failing test how to repeat it.
struct Repeat(u64, Rc<RefCell<Side>>);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with DM_TEST_SEED={}", self.0);
            if let Ok(side) = self.1.try_borrow() {
                eprintln!("{}", side.world.text);
            }
        }
    }
}

impl Rig {
    fn new(seed: u64, ground: &Ground) -> Rig {
        Rig::with_kills(seed, ground, false)
    }

    fn with_kills(seed: u64, ground: &Ground, kills: bool) -> Rig {
        let mut rng = Rng::with_seed(seed);
        let temper = if kills { killed::temper(&mut rng) } else { world::temper(&mut rng) };
        let sim = Sim::new(rng.u64(..), temper);
        let (world, chain) = World::new(&mut rng, &ground.pool, &sim);
        let place_size = if world.large { 0x8_8000 } else { 0x1_a000 };
        let mut side = Side {
            rng: rng.fork(),
            world,
            sim: sim.clone(),
            memory: ground.memory.clone(),
            pool: ground.pool.clone(),
            drivers: Vec::new(),
            clock: 0,
            kicks: 0,
            left: number("DM_TEST_OPS").map_or(REQUESTS, |n| n as u32),
            kills,
            write_through: Arc::new(AtomicBool::new(rng.u8(..4) == 0)),
            epoch: 0,
            tally: Tally::default(),
            places: places(place_size),
            place_size,
        };
        let queues = if rng.u8(..3) == 0 { rng.usize(2..=3) } else { 1 };
        let recorded = rng.bool();
        (0..queues).for_each(|_| side.add_driver(recorded));
        let inflight = recorded.then(|| killed::region(queues as u16));
        let first =
            side.drivers.iter().map(|d| Place::Stopped { next: d.shown, used: d.shown.wrapping_sub(d.lost) }).collect();
        let side = Rc::new(RefCell::new(side));
        let other = side.clone();
        let fuse = Rc::new(Cell::new(0));
        let its_fuse = fuse.clone();
        let other_side = OtherSide::new(move || {
            killed::burn(&its_fuse);
            if let Ok(mut side) = other.try_borrow_mut() {
                side.act();
            }
        });
        let core = Core::new(sim.clone(), Ops::new().expect("bounce buffers"), Poll::fixed(0), None);
        let chain = Arc::new(chain);
        let ground = ground.clone();
        let mut rig = Rig {
            core,
            sim,
            chain,
            stats: stats::Disk::new(),
            ground,
            inflight,
            fuse,
            killed: 0,
            side,
            places: first,
            rung: false,
            meddles: true,
            _mischief: rng.bool().then(|| Mischief::new(seed)),
            rng,
            _other_side: other_side,
        };
        (0..queues).for_each(|q| rig.start(q));
        rig
    }

    fn start(&mut self, q: usize) {
        let Place::Stopped { next, used } = self.places[q] else { panic!("queue {q} runs") };
        let (setup, published) = {
            let mut side = self.side.borrow_mut();
            let kick = self.ground.null.try_clone().expect("a descriptor");
            let published = side.used_idx(q);
            let write_through = side.write_through.clone();
            let driver = &mut side.drivers[q];
            driver.kick_fd = kick.as_raw_fd();
            let ring =
                SplitRing::new(&self.ground.guest, driver.size, driver.desc(), driver.avail(), driver.used_ring());
            let call = driver.call.try_clone().expect("a descriptor");
            let setup = Setup {
                name: format!("disk.{q}"),
                chain: self.chain.clone(),
                lane: self.stats.lane(q, &self.chain),
                serial: SERIAL,
                guest: self.ground.guest.clone(),
                ring: ring.expect("a ring in guest memory"),
                base: next,
                record: self
                    .inflight
                    .as_ref()
                    .map(|region| Record::new(region, q, driver.size).expect("a place for each queue")),
                event_idx: driver.event_idx,
                kick,
                call: Some(call),
                err: None,
                write_through,
            };
            (setup, published)
        };
        assert_eq!(used, published, "queue {q} gave back requests after it was stopped");
        if let Some(started) = self.alive(|core| core.start(setup)) {
            self.places[q] = Place::Running(started.expect("a queue"));
            self.rung = true;
        }
    }

    fn stop(&mut self, q: usize) {
        let Place::Running(index) = self.places[q] else { return };
        let (answer, stopped) = channel();
        self.core.stop(index, answer);
        self.places[q] = Place::Stopping(stopped, self.side.borrow().drivers[q].shown);
    }

    /// Takes the answers of queues that were stopped.
    fn take_answers(&mut self) {
        for (q, place) in self.places.iter_mut().enumerate() {
            let Place::Stopping(stopped, limit) = place else { continue };
            let Ok(next) = stopped.try_recv() else { continue };
            let mut side = self.side.borrow_mut();
            side.drivers[q].kick_fd = -1;
            let used = side.used_idx(q);
            // Whatever it took it gave back: the two indices have gone the same way.
            let given_back = used.wrapping_add(side.drivers[q].lost);
            assert_eq!(given_back, next, "queue {q} stopped with requests taken and not given back");
            let ahead = limit.wrapping_sub(next);
            assert!(ahead <= side.drivers[q].size, "queue {q} took requests that came after it was stopped");
            *place = Place::Stopped { next, used };
        }
    }

    /// The worker's loop, without its thread; `false` when it sleeps and nothing will wake it.
    fn turn(&mut self) -> bool {
        if self.sim.asleep() && !std::mem::take(&mut self.rung) {
            return false;
        }
        let Some(turned) = self.alive(Core::turn) else { return true };
        turned.expect("the simulated engine never fails");
        self.core.finish_stops();
        self.take_answers();
        assert!(
            self.core.queues.iter().flatten().all(|p| p.queue.is_published()),
            "a turn ends with hidden used entries"
        );
        if self.rng.u8(..4) == 0 {
            let places = &self.places;
            self.side.borrow_mut().check_told(|q| !matches!(places[q], Place::Stopped { .. }));
        }
        true
    }

    /// What happens from outside now and then.
    fn meddle(&mut self) {
        if !self.meddles {
            return;
        }
        if self.side.borrow().kills {
            self.light_fuse();
        }
        match self.rng.u16(..600) {
            0..6 => {
                let q = self.rng.usize(..self.places.len());
                self.stop(q);
            }
            6..20 => {
                let stopped = self.places.iter().position(|p| matches!(p, Place::Stopped { .. }));
                stopped.into_iter().for_each(|q| self.start(q));
            }
            20..24 => {
                let mut side = self.side.borrow_mut();
                side.write_through.fetch_xor(true, Ordering::Relaxed);
                side.epoch += 1;
            }
            24..40 => self.core.poll = Poll::fixed(self.rng.u8(..3)),
            50..54 => {
                // A suspend that is taken back before it has come to anything.
                self.chain.map.targets().iter().for_each(|target| target.presuspend());
                self.core.tasks.wake_all();
                self.rung = true;
            }
            54..60 => self.chain.map.targets().iter().for_each(|target| target.resume()),
            40..50 if !self.side.borrow().kills => self.sim.set_temper(world::temper(&mut self.rng)),
            _ => {}
        }
    }

    /// Runs until all requests are done, or for so many turns.
    fn run(&mut self, most: u64) {
        let mut progress = (0, 0);
        for turn in 0..most {
            self.meddle();
            let ran = self.turn();
            let mut side = self.side.borrow_mut();
            if side.done() {
                return;
            }
            if side.clock > progress.0 {
                progress = (side.clock, turn);
            }
            assert!(turn - progress.1 < PATIENCE, "{} requests under way, and nothing goes on", side.under_way());
            let queues = side.drivers.len();
            if ran {
                let q = side.rng.usize(..queues);
                side.step(q, false);
                continue;
            }
            // The worker sleeps: the drivers do what they can.
            if (0..queues).filter(|q| side.step(*q, true)).count() > 0 {
                continue;
            }
            let under_way = side.under_way();
            drop(side);
            match self.places.iter().position(|p| matches!(p, Place::Stopped { .. })) {
                Some(q) => self.start(q),
                None => panic!("worker and drivers sleep with {under_way} requests under way: a wake-up was lost"),
            }
        }
    }

    /// Everything is back in its place.
    fn check_end(&mut self) {
        self.fuse.set(0);
        for q in 0..self.places.len() {
            self.stop(q);
        }
        for _ in 0..PATIENCE {
            if self.places.iter().all(|p| matches!(p, Place::Stopped { .. })) {
                break;
            }
            self.turn();
        }
        assert!(self.places.iter().all(|p| matches!(p, Place::Stopped { .. })), "a queue does not stop");
        assert_eq!(self.sim.in_flight(), 0);
        self.core.ops.check_idle();
        self.core.tasks.check_idle();
        self.core.local.0.borrow().check_idle();
        self.check_counts();
        let side = self.side.borrow();
        side.world.check_now(&self.sim);
    }

    /// The power goes.
    fn crash(&mut self) {
        self.sim.crash();
        let mut side = self.side.borrow_mut();
        for number in 0..side.world.parts.len() {
            self.sim.look(number, |image| side.world.check_durable(number, image));
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a decimal number")))
}

fn seeds(base: u64, count: u64) -> std::ops::Range<u64> {
    match number("DM_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => base..base + number("DM_TEST_SEEDS").unwrap_or(count),
    }
}

#[test]
fn requests_do_what_they_say_on_any_table_over_any_devices() {
    let ground = Ground::new();
    for seed in seeds(0, SEEDS) {
        let mut rig = Rig::new(seed, &ground);
        let _repeat = Repeat(seed, rig.side.clone());
        rig.run(u64::MAX);
        rig.check_end();
        rig.crash();
    }
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    let ground = Ground::new();
    let story = |seed| {
        let mut rig = Rig::new(seed, &ground);
        rig.run(u64::MAX);
        let clock = rig.side.borrow().clock;
        (rig.sim.started(), rig.sim.now(), rig.sim.failure_count(), clock, rig.rng.u64(..))
    };
    for seed in 5000..5040 {
        assert_eq!(story(seed), story(seed), "seed {seed}");
    }
}

#[test]
fn a_worker_that_looks_is_not_kicked_and_one_that_does_not_sleeps() {
    let ground = Ground::new();
    for seed in seeds(2_000_000, 50) {
        let mut rig = Rig::new(seed, &ground);
        let _repeat = Repeat(seed, rig.side.clone());
        rig.meddles = false;
        rig.core.poll = Poll::fixed(2);
        // The first requests come before the worker has looked at anything.
        rig.turn();
        let before = rig.side.borrow().kicks;
        rig.run(u64::MAX);
        // With EVENT_IDX a ring that was never asked for a kick still kicks once in 65,536, and a kick may be under way.
        let (kicks, queues) = (rig.side.borrow().kicks - before, rig.places.len() as u64);
        assert!(kicks <= 2 * queues, "{kicks} kicks on {queues} queues");
        rig.core.poll = Poll::fixed(0);
        let turns = (0..PATIENCE).take_while(|_| rig.turn()).count();
        assert!(turns < 1000, "an idle worker does not sleep");
    }
}

#[test]
fn a_crash_at_any_moment_keeps_what_was_promised() {
    let ground = Ground::new();
    for seed in seeds(1_000_000, SEEDS / 2) {
        let mut rig = Rig::new(seed, &ground);
        let _repeat = Repeat(seed, rig.side.clone());
        let turns = rig.rng.u64(1..400);
        rig.run(turns);
        rig.crash();
    }
}
