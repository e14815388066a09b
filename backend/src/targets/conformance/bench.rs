//! Components, tables and workers of a case, all in one thread, and every choice follows from a seed.

mod life;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use dm_table::{Format, Sectors, Source, TableFile, Target, parse};
use fastrand::Rng;

use super::Case;
use super::driver::{Driver, Ground, Op, PLACES, What};
use super::model::{Model, Ticket};
use crate::chain::Chain;
use crate::device::{Access, Component, Discard, DiscardMethod, Limits};
use crate::event::Events;
use crate::map::{DevIx, LookupError, Lower, Map, positions, reach};
use crate::sim::{Nature, SECTOR, Sim, Temper};
use crate::targets::{Shared, Stateful};
use crate::worker::hand::Hand;
use crate::worker::mischief::Mischief;

/// Turns in which something must have gone on.
const PATIENCE: u32 = 100_000;
/// Workers, each with a queue of the disk.
const WORKERS: u64 = 2;

/// A device of the case: its table, and what was made of it.
struct Layer {
    file: TableFile,
    chain: Arc<Chain>,
}

struct Part {
    file: File,
    access: Access,
    limits: Limits,
    size: u64,
}

struct Background {
    layer: usize,
    over: Receiver<Result<(), String>>,
}

/// See the module's text.
pub(super) struct Bench {
    pub case: &'static Case,
    pub sim: Sim,
    rng: Rng,
    ground: Arc<Ground>,
    parts: Vec<Part>,
    /// What the components held at first.
    pub images: Vec<Vec<u8>>,
    layers: Vec<Layer>,
    hands: Vec<Hand>,
    // The first is where jobs are done; the others have a queue each, of these numbers.
    queues: Vec<u32>,
    drivers: Vec<Driver>,
    // By driver and place.
    tickets: Vec<Vec<Option<(Ticket, bool)>>>,
    shared: Arc<Shared>,
    // Of all layers.
    events: Arc<Events>,
    backgrounds: Vec<Background>,
    mischief: Option<Mischief>,
    pub write_through: Arc<AtomicBool>,
    pub model: Model,
    /// Requests that have come back with an error.
    pub errors: u64,
    /// What reads have given, in the order in which they came back: first sector, data.
    pub reads: Vec<(u64, Vec<u8>)>,
    /// Operations that were under way at a time, at most.
    pub most_under_way: usize,
}

/// Devices of all sorts that do not fail.
pub(super) fn temper(rng: &mut Rng) -> Temper {
    Temper {
        latency: Duration::from_micros([0, 2, 20, 200][rng.usize(..4)]),
        short: [0, 0, 30][rng.usize(..3)],
        again: [0, 0, 10][rng.usize(..3)],
        fail: 0,
    }
}

fn part(rng: &mut Rng, sim: &Sim, case: &Case, size: u64, bytes: Vec<u8>) -> Part {
    let unit = SECTOR as u32 * case.block as u32;
    let (access, mem_align, unit) = match rng.u8(..3) {
        0 => (Access::Buffered, 1, 1),
        1 => (Access::Direct { mem_align: 512, offset_align: unit }, 512, unit),
        _ => (Access::Direct { mem_align: 4096, offset_align: unit }, 4096.max(unit), unit),
    };
    let block = case.block as u32 * SECTOR as u32;
    let limits = Limits {
        logical_block: block,
        physical_block: block,
        alignment_offset: 0,
        io_min: 0,
        io_opt: 0,
        discard: rng.bool().then_some(Discard {
            granularity: 512,
            max_sectors: 1 << 20,
            method: DiscardMethod::PunchHole,
        }),
        write_zeroes: rng.bool(),
    };
    let nature = Nature { mem_align, unit, ..Nature::default() };
    let file = File::from(rustix::fs::memfd_create("component", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd"));
    sim.add_device(&file, bytes, nature).expect("a simulated device");
    Part { file, access, limits, size }
}

/// Contents that tell which sector of which component they are of.
fn contents(part: usize, size: u64) -> Vec<u8> {
    let sector = |at: u64| [(at as u32).to_le_bytes(), [0xc0 + part as u8, 0, 0, 0x11]].concat().repeat(SECTOR / 8);
    (0..size).map(sector).collect::<Vec<_>>().concat()
}

impl Bench {
    /// The case's disk, served.
    pub fn new(case: &'static Case, seed: u64, ground: &Arc<Ground>) -> Bench {
        let mut rng = Rng::with_seed(seed);
        let sim = Sim::new(rng.u64(..), temper(&mut rng));
        let mut images: Vec<Vec<u8>> = (0..).zip(case.parts).map(|(n, size)| contents(n, *size)).collect();
        (case.prepare)(&mut images);
        let parts = case.parts.iter().zip(&images);
        let parts = parts.map(|(size, bytes)| part(&mut rng, &sim, case, *size, bytes.clone())).collect();
        let mut bench = Bench {
            case,
            sim,
            rng,
            ground: ground.clone(),
            parts,
            images,
            layers: Vec::new(),
            hands: Vec::new(),
            queues: Vec::new(),
            drivers: Vec::new(),
            tickets: Vec::new(),
            shared: Arc::default(),
            events: Arc::default(),
            backgrounds: Vec::new(),
            // Its workers' tasks wait for each other.
            mischief: seed.is_multiple_of(3).then(|| Mischief::new(seed)),
            write_through: Arc::default(),
            model: Model::new(&[]),
            errors: 0,
            reads: Vec::new(),
            most_under_way: 0,
        };
        bench.tables();
        bench.fence();
        bench.workers();
        bench.live();
        let len = bench.layers.last().expect("a table").chain.len().get();
        let initial = (0..len).map(|sector| match (case.place)(sector) {
            Some((part, at)) => bench.images[part][at as usize * SECTOR..][..SECTOR].to_vec(),
            None => vec![0; SECTOR],
        });
        bench.model = Model::new(&initial.collect::<Vec<_>>().concat());
        bench
    }

    /// Builds all tables anew; in place of those that there are, if there are.
    fn tables(&mut self) {
        let components: Vec<Arc<Component>> = match self.layers.last() {
            Some(layer) => layer.chain.components.iter().map(|(_, component)| component.clone()).collect(),
            None => (0..).zip(&self.parts).map(|(n, part)| Arc::new(self.component(n, part))).collect(),
        };
        let previous = std::mem::take(&mut self.layers);
        for (number, text) in self.case.tables.iter().enumerate() {
            let file = parse(Arc::new(Source::new("t", *text)), Format::Plain).unwrap_or_else(|e| panic!("{text}{e}"));
            let lower = |name: &str| match name.strip_prefix('t') {
                Some(number) => Some(Lower::Map(self.layers.get(number.parse::<usize>().ok()?)?.chain.map.clone())),
                None => {
                    let number: usize = name.strip_prefix('c')?.parse().ok()?;
                    let c = components.get(number)?;
                    Some(Lower::Device {
                        ix: DevIx(number as u16),
                        name: c.name.clone(),
                        size: c.size,
                        limits: c.limits,
                    })
                }
            };
            let mut resolve = |dev: &dm_table::DevRef| {
                let why = dev.text.clone();
                lower(dev.mapper_name().unwrap_or(&dev.text)).ok_or(LookupError { errno: "ENOENT", why, help: None })
            };
            let table = &file.devices[0].table;
            let built = match previous.get(number) {
                Some(layer) => Map::rebuild(&file.source, table, false, &mut resolve, &layer.chain.map),
                None => Map::build(&file.source, table, false, &mut resolve),
            };
            let (map, _) = built.unwrap_or_else(|error| panic!("{text}{error}"));
            let chain = Chain {
                name: format!("t{number}"),
                map: Arc::new(map.of_device(number as u32)),
                components: components.iter().cloned().collect(),
                read_only: false,
                limiters: Arc::default(),
                events: self.events.clone(),
            };
            chain.map.own_targets().for_each(|target| target.events(&self.events));
            self.layers.push(Layer { file, chain: Arc::new(chain) });
        }
    }

    fn component(&self, number: usize, part: &Part) -> Component {
        let file = part.file.try_clone().expect("a descriptor");
        Component::simulated(file, number, Sectors::new(part.size), part.limits, part.access)
    }

    /// Nobody may leave the ranges that the tables name.
    fn fence(&self) {
        let mut reads: Vec<Vec<Range<u64>>> = vec![Vec::new(); self.parts.len()];
        let mut writes = reads.clone();
        for line in self.layers.iter().flat_map(|layer| &layer.file.devices[0].table.lines) {
            let len = line.len.get();
            let areas: Vec<(&dm_table::DevRef, u64, u64, bool)> = match &line.target {
                Target::Linear(linear) => vec![(&linear.dev, linear.start.get(), len, true)],
                Target::Striped(striped) => {
                    let len = len / striped.stripes.len() as u64;
                    striped.stripes.iter().map(|stripe| (&stripe.dev, stripe.start.get(), len, true)).collect()
                }
                other => {
                    let len = reach(other, line.len).get();
                    positions(other).iter().map(|p| (p.dev, p.start.get(), len, p.write)).collect()
                }
            };
            for (dev, start, len, write) in areas {
                let number = dev.text.strip_prefix('c').and_then(|number| number.parse::<usize>().ok());
                let Some(number) = number else { continue };
                let range = match self.case.whole.contains(&number) {
                    true => 0..self.parts[number].size * SECTOR as u64,
                    false => start * SECTOR as u64..(start + len) * SECTOR as u64,
                };
                reads[number].push(range.clone());
                if write {
                    writes[number].push(range);
                }
            }
        }
        for (number, (reads, writes)) in reads.into_iter().zip(writes).enumerate() {
            self.sim.fence(number, reads, writes);
        }
    }

    /// Workers, and the queues of the disk.
    fn workers(&mut self) {
        let sims: Vec<Sim> = match self.hands.is_empty() {
            true => (0..=WORKERS).map(|n| if n == 0 { self.sim.clone() } else { self.sim.another() }).collect(),
            false => self.hands.drain(..).map(Hand::engine).collect(),
        };
        self.hands = sims.into_iter().map(Hand::new).collect();
        self.drivers = (0..WORKERS).map(|n| Driver::new(&self.ground, n)).collect();
        self.tickets = (0..WORKERS).map(|_| (0..PLACES).map(|_| None).collect()).collect();
        self.queues.clear();
        self.start();
    }

    fn start(&mut self) {
        let chain = self.layers.last().expect("a table").chain.clone();
        for (hand, driver) in self.hands[1..].iter_mut().zip(&mut self.drivers) {
            self.queues.push(hand.start(driver.setup(&chain, &self.write_through)));
        }
    }

    /// One turn of a worker that has something to do; `false` if all sleep.
    fn turn(&mut self) -> bool {
        // There may be another bench, whose tasks have a turn at other times.
        Mischief::enter(self.mischief.as_ref());
        let first = self.rng.usize(..self.hands.len());
        let count = self.hands.len();
        let turned = (0..count).any(|n| self.hands[(first + n) % count].turn());
        self.most_under_way = self.most_under_way.max(self.sim.in_flight());
        for driver in 0..self.drivers.len() {
            while let Some(back) = self.drivers[driver].take() {
                let place = &mut self.tickets[driver][usize::from(back.place)];
                let (ticket, durable) = place.take().expect("a request that is under way");
                let durable = durable && self.write_through.load(Ordering::Relaxed);
                self.errors += u64::from(!back.ok);
                if back.ok && ticket.op.what == What::Read {
                    self.reads.push((ticket.op.at, back.data.clone()));
                }
                self.model.end(ticket, back.ok, &back.data, durable);
            }
        }
        turned
    }

    /// Goes on until it is so.
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&mut Bench) -> bool) {
        for _ in 0..PATIENCE {
            if so(self) {
                return;
            }
            if !self.turn() {
                assert!(so(self), "all sleep, and {what}: a wake-up was lost");
                return;
            }
        }
        panic!("{what}, and there is no end to it");
    }

    /// So many turns, fewer if all sleep.
    pub fn turns(&mut self, count: u32) {
        for _ in 0..count {
            if !self.turn() {
                return;
            }
        }
    }

    /// Asks for something by any of the queues. Waits while there is no room, or another request is in the way.
    pub fn submit(&mut self, mut op: Op) {
        if op.what == What::Discard && self.layers.last().is_none_or(|layer| layer.chain.map.limits().discard.is_none())
        {
            // The guest does not know how to.
            op.what = What::Zeroes;
        }
        let driver = self.rng.usize(..self.drivers.len());
        self.until("no request comes back to make room", |bench| {
            bench.drivers[driver].has_room() && !bench.model.busy(&op)
        });
        let place = self.drivers[driver].submit(&op, &mut self.rng);
        let durable = self.write_through.load(Ordering::Relaxed);
        self.tickets[driver][usize::from(place)] = Some((self.model.begin(op), durable));
        self.drivers[driver].kick(&self.sim);
    }

    /// Waits for all requests.
    pub fn settle(&mut self) {
        self.until("requests are under way", |bench| bench.drivers.iter().all(|driver| driver.under_way() == 0));
    }

    /// The same of one request; whether it succeeded.
    pub fn does(&mut self, op: Op) -> bool {
        self.settle();
        let before = self.errors;
        self.submit(op);
        self.settle();
        self.errors == before
    }

    /// Sectors of a logical block of the disk.
    pub fn block(&self) -> u64 {
        self.layers.last().map_or(1, |layer| layer.chain.block_sectors())
    }

    /// Requests that have not come back.
    pub fn waiting(&self) -> usize {
        self.drivers.iter().map(Driver::under_way).sum()
    }

    /// The whole disk, read, as the first that is done with it after a crash.
    pub fn found(&mut self) -> Vec<u8> {
        // Whatever it gives is to be judged as a whole.
        let unknown = Model::anything(self.model.len());
        let model = std::mem::replace(&mut self.model, unknown);
        let found = self.read_all();
        self.model = model;
        found
    }

    /// The whole disk, read; the model judges it, too.
    pub fn read_all(&mut self) -> Vec<u8> {
        self.settle();
        let (len, errors) = (self.model.len(), self.errors);
        self.reads.clear();
        for at in (0..len).step_by(64) {
            self.submit(Op { what: What::Read, at, len: (len - at).min(64), data: Vec::new() });
        }
        self.settle();
        assert_eq!(self.errors, errors, "reads fail");
        let mut reads = std::mem::take(&mut self.reads);
        reads.sort();
        reads.into_iter().map(|(_, data)| data).collect::<Vec<_>>().concat()
    }

    fn targets(&self, layer: usize) -> Vec<Arc<Stateful>> {
        self.layers[layer].chain.map.own_targets().cloned().collect()
    }

    /// Targets of all layers, from the bottom up.
    pub fn all_targets(&self) -> Vec<Arc<Stateful>> {
        (0..self.layers.len()).flat_map(|layer| self.targets(layer)).collect()
    }
}
