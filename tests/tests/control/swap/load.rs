//! Requests on four queues at depth 64, each checked against the tables that may have been live while it was under way.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, OK, Request, Segment, Shape, kind, segments};
use dm_tests::vmm::{Done, Setup, Vmm};
use fastrand::Rng;

use super::ground::{Ground, IMAGES, Place, SECTOR, SECTORS, Stamp, Table, ZEROES, bytes_of};

pub const QUEUES: usize = 4;
pub const DEPTH: usize = 64;
const LONGEST: u64 = 48;
/// Far beyond what a request takes: it only finds those that are lost.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITER: u16 = u16::MAX;

/// What load and swaps know of each other.
#[derive(Default)]
pub struct Shared {
    pub tables: Mutex<Vec<Arc<Table>>>,
    /// The generation whose resume was asked for last.
    pub begun: AtomicU64,
    /// The generation whose resume has been answered last.
    pub live: AtomicU64,
    /// The generation that was live when the oldest request under way was submitted.
    pub oldest: AtomicU64,
    /// Requests done.
    pub done: AtomicU64,
    pub stop: AtomicBool,
}

impl Shared {
    fn table(&self, generation: u64) -> Arc<Table> {
        self.tables.lock().expect("tables")[generation as usize].clone()
    }

    /// Waits until a next generation shares no place with one that a request under way may still go through.
    pub fn wait_for_room(&self, next: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.oldest.load(Ordering::SeqCst) + (IMAGES - 2) < next && !self.stop.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "a request is lost");
            std::thread::yield_now();
        }
    }
}

#[derive(Clone, Debug)]
struct Flight {
    kind: u32,
    sector: u64,
    sectors: u64,
    /// Stamps of what is written.
    stamps: Vec<Stamp>,
    since: u64,
}

/// See the module's text.
pub struct Load<'a> {
    vmm: Vmm,
    shared: &'a Shared,
    pub ground: Ground,
    rng: Rng,
    flights: Vec<Vec<Option<Flight>>>,
    // For each sector: the requests that read it, or that one writes it.
    users: Vec<u16>,
    writes: u64,
    last: Instant,
    /// Longest time without a completion around each swap.
    pub gaps: Vec<Duration>,
    /// Requests that two tables came into question for.
    pub between: u64,
}

impl<'a> Load<'a> {
    pub fn new(vmm: Vmm, shared: &'a Shared, ground: Ground, seed: u64) -> Load<'a> {
        Load {
            vmm,
            shared,
            ground,
            rng: Rng::with_seed(seed),
            flights: vec![vec![None; DEPTH]; QUEUES],
            users: vec![0; SECTORS as usize],
            writes: 0,
            last: Instant::now(),
            gaps: Vec::new(),
            between: 0,
        }
    }

    pub fn setup() -> Setup {
        Setup {
            queues: QUEUES as u16,
            queue_size: 256,
            slots: DEPTH,
            slot_bytes: 64 << 10,
            interrupts: false,
            ..Setup::default()
        }
    }

    /// Runs until it is told to stop, and then until the last request has come back.
    pub fn run(&mut self) {
        let mut heard = Instant::now();
        loop {
            let stopping = self.shared.stop.load(Ordering::SeqCst);
            if self.step(!stopping) {
                heard = Instant::now();
            } else if stopping && self.under_way() == 0 {
                break;
            } else {
                assert!(heard.elapsed() < PATIENCE, "{} requests are lost", self.under_way());
                std::thread::yield_now();
            }
        }
    }

    /// Submits requests, if it may, and looks at what has come back; whether anything has.
    pub fn step(&mut self, submit: bool) -> bool {
        if submit {
            (0..QUEUES).for_each(|queue| self.fill(queue));
        }
        let mut any = false;
        for queue in 0..QUEUES {
            while let Some(done) = self.vmm.complete(queue) {
                self.finish(queue, done);
                any = true;
            }
        }
        let oldest = self.flights.iter().flatten().flatten().map(|flight| flight.since).min();
        self.shared.oldest.store(oldest.unwrap_or(self.shared.live.load(Ordering::SeqCst)), Ordering::SeqCst);
        any
    }

    fn under_way(&self) -> usize {
        self.flights.iter().flatten().flatten().count()
    }

    /// Comes back to a back end that has been started again, which has its queues again after this: what was under way at
    /// the kill, and may be on the components already, is done again before any other table comes.
    pub fn reconnect(&mut self, stream: UnixStream) {
        self.vmm.reconnect(stream).expect("reconnect");
        self.vmm.sync().expect("round trip");
    }

    fn fill(&mut self, queue: usize) {
        let mut any = false;
        for slot in 0..DEPTH {
            if self.flights[queue][slot].is_some() {
                continue;
            }
            let Some(flight) = self.next() else { continue };
            let segment = Segment { sector: flight.sector, sectors: flight.sectors as u32, flags: 0 };
            let payload = match flight.kind {
                kind::WRITE_ZEROES => segments(&[segment]),
                _ => bytes_of(&flight.stamps),
            };
            let data = match flight.kind {
                kind::IN => Data::FromDevice(flight.sectors as usize * SECTOR),
                kind::FLUSH => Data::None,
                _ => Data::ToDevice(&payload),
            };
            let sector = if flight.kind == kind::WRITE_ZEROES { 0 } else { flight.sector };
            let request = Request { kind: flight.kind, sector, data };
            let shape = Shape::random(&mut self.rng, 4, true);
            self.vmm.submit(queue, slot, &request, &shape, &mut self.rng);
            self.flights[queue][slot] = Some(flight);
            any = true;
        }
        if any {
            self.vmm.kick(queue);
        }
    }

    /// A request for sectors that no other is about to change; `None` where chance finds none.
    fn next(&mut self) -> Option<Flight> {
        let since = self.shared.live.load(Ordering::SeqCst);
        let kind = match self.rng.u8(..100) {
            0..3 => return Some(Flight { kind: kind::FLUSH, sector: 0, sectors: 0, stamps: Vec::new(), since }),
            3..8 => kind::WRITE_ZEROES,
            8..54 => kind::IN,
            _ => kind::OUT,
        };
        let sectors = if self.rng.bool() { 8 } else { self.rng.u64(1..=LONGEST) };
        let sector = self.rng.u64(..=SECTORS - sectors);
        let users = &mut self.users[sector as usize..][..sectors as usize];
        let (taken, with) = if kind == kind::IN { (WRITER, 1) } else { (0, WRITER) };
        let free = |user: &u16| if kind == kind::IN { *user != taken } else { *user == taken };
        if !users.iter().all(free) {
            return None;
        }
        users.iter_mut().for_each(|user| *user = if with == 1 { *user + 1 } else { with });
        self.writes += 1;
        let stamp = |n| self.writes << 8 | n;
        let stamps = match kind {
            kind::OUT => (0..sectors).map(stamp).collect(),
            kind::WRITE_ZEROES => vec![ZEROES; sectors as usize],
            _ => Vec::new(),
        };
        Some(Flight { kind, sector, sectors, stamps, since })
    }

    fn finish(&mut self, queue: usize, done: Done) {
        let flight = self.flights[queue][done.slot].take().expect("it is under way");
        let (live, begun) = (self.shared.live.load(Ordering::SeqCst), self.shared.begun.load(Ordering::SeqCst));
        assert_eq!(done.status, OK, "{flight:?} failed in generations {}..={begun}", flight.since);
        self.note_gap(live, begun);
        let generations: Vec<u64> = (flight.since..=begun).collect();
        self.between += u64::from(generations.len() > 1);
        match flight.kind {
            kind::IN => self.check_read(&flight, &generations, &done.data),
            kind::FLUSH => {}
            _ => self.check_write(&flight, &generations),
        }
        let users = &mut self.users[flight.sector as usize..][..flight.sectors as usize];
        users.iter_mut().for_each(|user| *user = if *user == WRITER { 0 } else { *user - 1 });
        self.shared.done.fetch_add(1, Ordering::SeqCst);
    }

    fn note_gap(&mut self, live: u64, begun: u64) {
        let gap = self.last.elapsed();
        self.last = Instant::now();
        self.gaps.resize(self.gaps.len().max(begun as usize + 1), Duration::ZERO);
        // The swap of this generation began, is under way, or has ended since the last completion.
        let swap = &mut self.gaps[begun as usize];
        if live != begun || swap.is_zero() {
            *swap = gap.max(*swap);
        }
    }

    fn places(&self, flight: &Flight, generation: u64) -> Vec<Place> {
        let from = flight.sector as usize;
        self.shared.table(generation).places[from..from + flight.sectors as usize].to_vec()
    }

    /// All of it is what one of the tables had there.
    fn check_read(&self, flight: &Flight, generations: &[u64], data: &[u8]) {
        let expected = |generation: &u64| {
            let places = self.places(flight, *generation);
            bytes_of(&places.iter().map(|place| self.ground.held(*place)).collect::<Vec<_>>())
        };
        assert!(
            generations.iter().any(|generation| expected(generation) == data),
            "{flight:?}: not what any of the tables {generations:?} has there"
        );
    }

    /// All of it went through one of the tables, and where the others have these sectors nothing has changed.
    fn check_write(&mut self, flight: &Flight, generations: &[u64]) {
        let all: Vec<Vec<Place>> = generations.iter().map(|generation| self.places(flight, *generation)).collect();
        let mut look = self.ground.look();
        let mut through = |chosen: &Vec<Place>| {
            let new = |place: &Place| chosen.iter().position(|other| other == place).map(|at| flight.stamps[at]);
            let expected = |place: &Place| new(place).unwrap_or_else(|| self.ground.held(*place));
            all.iter().flatten().all(|place| look.holds(*place, expected(place)))
        };
        let chosen = match &all[..] {
            // The whole of it is looked at in the end.
            [only] => only.clone(),
            _ => all.iter().find(|places| through(places)).cloned().unwrap_or_else(|| {
                panic!("{flight:?}: it is in none of the places of the tables {generations:?}, or in several")
            }),
        };
        for (place, stamp) in chosen.into_iter().zip(&flight.stamps) {
            self.ground.set(place, *stamp);
        }
    }
}
