//! Random requests against every device of a world, many in flight, each judged by the model.

use std::path::Path;

use dm_tests::blk::{self, Data, Request, SECTOR, Segment, Shape, feature, kind, segments};
use dm_tests::daemon::Daemon;
use dm_tests::locks::Locks;
use dm_tests::model::{Outcome, World};
use dm_tests::rng;
use dm_tests::vmm::{Done, Order, Setup, Vmm};
use fastrand::Rng;

/// Largest request, sectors (1 MiB).
const LARGEST: u64 = 2048;

/// An operation on one device.
#[derive(Clone, Debug)]
enum Op {
    Read {
        sector: u64,
        sectors: u64,
    },
    Write {
        sector: u64,
        data: Vec<u8>,
    },
    Flush,
    Discard(Vec<Segment>),
    WriteZeroes(Vec<Segment>),
    /// A read or write that begins or ends past the end of the disk.
    Outside {
        write: bool,
        sector: u64,
        len: usize,
    },
    Unknown(u32),
}

struct InFlight {
    op: Op,
    outcome: Outcome,
    touched: Vec<(usize, u64)>,
}

impl Op {
    fn writes(&self) -> bool {
        !matches!(self, Op::Read { .. })
    }

    fn touched(&self, world: &World, device: usize) -> Vec<(usize, u64)> {
        match self {
            Op::Read { sector, sectors } => world.footprint(device, *sector, *sectors),
            Op::Write { sector, data } => world.footprint(device, *sector, data.len() as u64 / SECTOR),
            Op::Discard(ranges) | Op::WriteZeroes(ranges) => {
                let mut all: Vec<_> =
                    ranges.iter().flat_map(|r| world.footprint(device, r.sector, u64::from(r.sectors))).collect();
                all.sort_unstable();
                all
            }
            Op::Flush | Op::Outside { .. } | Op::Unknown(_) => Vec::new(),
        }
    }

    /// Two sectors of one write on the same component sector: nobody says which one wins.
    fn fights_itself(&self, touched: &[(usize, u64)]) -> bool {
        matches!(self, Op::Write { .. }) && touched.windows(2).any(|pair| pair[0] == pair[1])
    }

    fn apply(&self, world: &mut World, device: usize) -> Outcome {
        let over = |outcomes: Vec<Outcome>| {
            let failed = outcomes.contains(&Outcome::Failed);
            if failed { Outcome::Failed } else { Outcome::Done }
        };
        match self {
            Op::Read { sector, sectors } => world.read_outcome(device, *sector, *sectors),
            Op::Write { sector, data } => world.write(device, *sector, data),
            Op::Flush => Outcome::Done,
            Op::Discard(ranges) => {
                over(ranges.iter().map(|r| world.discard(device, r.sector, r.sectors.into())).collect())
            }
            Op::WriteZeroes(ranges) => {
                over(ranges.iter().map(|r| world.write_zeroes(device, r.sector, r.sectors.into())).collect())
            }
            Op::Outside { .. } | Op::Unknown(_) => Outcome::Failed,
        }
    }
}

struct Disk {
    vmm: Vmm,
    busy: Vec<Vec<Option<InFlight>>>,
}

/// A world and front ends on all of its devices.
pub struct Driver {
    pub world: World,
    disks: Vec<Disk>,
    locks: Locks,
    rng: Rng,
}

impl Driver {
    /// Connects to the sockets of a daemon, one for each device.
    pub fn new(daemon: &mut Daemon, sockets: &[impl AsRef<Path>], world: World, mut rng: Rng) -> Self {
        let mut disks = Vec::new();
        for (device, socket) in sockets.iter().enumerate() {
            let setup = setup(&mut rng);
            let vmm = daemon.vmm(socket.as_ref(), &setup);
            assert_eq!(vmm.config.capacity, world.devices[device].len());
            let idle = || (0..setup.slots).map(|_| None).collect();
            let busy = (0..setup.queues).map(|_| idle()).collect();
            disks.push(Disk { vmm, busy });
        }
        Driver { locks: Locks::new(&world), world, disks, rng }
    }

    /// Runs so many operations with a comparison of every component byte now and then.
    pub fn run(&mut self, operations: u64) {
        for count in 0..operations {
            let device = self.rng.usize(..self.disks.len());
            self.submit_one(device);
            if self.rng.u8(..3) == 0 {
                self.kick_all();
                self.reap();
            }
            if count % 150 == 149 {
                self.checkpoint();
            }
        }
        self.checkpoint();
    }

    fn submit_one(&mut self, device: usize) {
        let queue = self.rng.usize(..self.disks[device].busy.len());
        while self.disks[device].busy[queue].iter().all(Option::is_some) {
            self.kick_all();
            self.reap();
            std::thread::yield_now();
        }
        let op = self.operation(device);
        let touched = op.touched(&self.world, device);
        let write = op.writes();
        if op.fights_itself(&touched) {
            return;
        }
        if !self.locks.take(&touched, write) {
            self.drain();
            assert!(self.locks.take(&touched, write));
        }
        let outcome = op.apply(&mut self.world, device);
        let disk = &mut self.disks[device];
        let slot = disk.busy[queue].iter().position(Option::is_none);
        let slot = slot.expect("a slot was free");
        send(&mut disk.vmm, queue, slot, &op, &mut self.rng);
        disk.busy[queue][slot] = Some(InFlight { op, outcome, touched });
    }

    fn operation(&mut self, device: usize) -> Op {
        let config = self.disks[device].vmm.config;
        let features = self.disks[device].vmm.features;
        let rng = &mut self.rng;
        let (sector, sectors) = range(rng, config.capacity, LARGEST);
        match rng.u8(..100) {
            0..38 => Op::Read { sector, sectors },
            38..74 => Op::Write { sector, data: rng::bytes(rng, (sectors * SECTOR) as usize) },
            74..78 => Op::Flush,
            78..86 if features & feature::DISCARD != 0 => {
                let (most, longest) = (config.max_discard_seg, config.max_discard_sectors);
                Op::Discard(ranges(rng, config.capacity, most, longest, 0))
            }
            86..97 if features & feature::WRITE_ZEROES != 0 => {
                let (most, longest) = (config.max_write_zeroes_seg, config.max_write_zeroes_sectors);
                Op::WriteZeroes(ranges(rng, config.capacity, most, longest, 1))
            }
            97 | 98 => Op::Outside {
                write: rng.bool(),
                sector: match rng.u8(..4) {
                    0 => u64::MAX,
                    1 => u64::MAX / SECTOR - 1,
                    2 => config.capacity,
                    _ => config.capacity - sectors.min(config.capacity),
                },
                len: ((sectors + 1).min(LARGEST) * SECTOR) as usize,
            }
            .unless_inside(config.capacity),
            99 => Op::Unknown(rng.u32(100..)),
            _ => Op::Flush,
        }
    }

    /// Takes every completion that is there.
    fn reap(&mut self) {
        for device in 0..self.disks.len() {
            for queue in 0..self.disks[device].busy.len() {
                while let Some(done) = self.disks[device].vmm.complete(queue) {
                    self.judge(device, queue, &done);
                }
            }
        }
    }

    fn judge(&mut self, device: usize, queue: usize, done: &Done) {
        let flight = self.disks[device].busy[queue][done.slot].take();
        let flight = flight.expect("the slot was busy");
        self.locks.release(&flight.touched, flight.op.writes());
        let expected = match (&flight.op, flight.outcome) {
            (_, Outcome::Done) => blk::OK,
            (Op::Unknown(_), _) => blk::UNSUPP,
            (_, Outcome::Failed) => blk::IOERR,
        };
        let what = brief(&flight.op);
        assert_eq!(done.status, expected, "status of {what} on device {device}");
        if let (Op::Read { sector, sectors }, blk::OK) = (&flight.op, expected) {
            let wrong = self.world.check_read(device, *sector, &done.data);
            assert_eq!(wrong, None, "{what} on device {device}: wrong bytes");
            assert_eq!(u64::from(done.written), sectors * SECTOR + 1, "used length");
        } else if expected == blk::OK {
            assert_eq!(done.written, 1, "used length of {what}");
        }
    }

    fn kick_all(&mut self) {
        for disk in &mut self.disks {
            for queue in 0..disk.busy.len() {
                disk.vmm.kick(queue);
            }
        }
    }

    fn drain(&mut self) {
        self.kick_all();
        for device in 0..self.disks.len() {
            for queue in 0..self.disks[device].busy.len() {
                while self.disks[device].busy[queue].iter().any(Option::is_some) {
                    let done = self.disks[device].vmm.wait(queue);
                    self.judge(device, queue, &done);
                }
            }
        }
    }

    /// With nothing in flight and all flushed, the files hold what the model holds.
    fn checkpoint(&mut self) {
        self.drain();
        for (device, disk) in self.disks.iter_mut().enumerate() {
            disk.vmm.flush(0).unwrap_or_else(|e| panic!("flush {device}: {e:?}"));
        }
        if let Some((component, sector)) = self.world.check_components() {
            let path = &self.world.components[component].path;
            panic!("{path}: wrong bytes in sector {sector}");
        }
        let device = self.rng.usize(..self.disks.len());
        let vmm = &mut self.disks[device].vmm;
        let queue = self.rng.usize(..vmm.queues.len());
        let used = vmm.queues[queue].ring.used_idx();
        let base = vmm.stop_ring(queue as u16).expect("stop a ring");
        assert_eq!(base, used, "an idle ring stops where it was");
        vmm.restart_ring(queue as u16, base).expect("start a ring");
    }
}

impl Op {
    /// The request as it is if it is outside indeed, else a flush.
    fn unless_inside(self, capacity: u64) -> Self {
        match self {
            Op::Outside { sector, len, .. }
                if sector.checked_add(len as u64 / SECTOR).is_some_and(|end| end <= capacity) =>
            {
                Op::Flush
            }
            op => op,
        }
    }
}

fn brief(op: &Op) -> String {
    match op {
        Op::Write { sector, data } => {
            format!("write of {} sectors at {sector}", data.len() as u64 / SECTOR)
        }
        op => format!("{op:?}"),
    }
}

fn setup(rng: &mut Rng) -> Setup {
    let mut setup = Setup {
        order: if rng.bool() { Order::Qemu } else { Order::CloudHypervisor },
        queues: if rng.bool() { 1 } else { 4 },
        queue_size: 256,
        slots: 8,
        slot_bytes: (LARGEST * SECTOR + (256 << 10)).next_multiple_of(4096) + 4096 * rng.u64(..3),
        interrupts: rng.bool(),
        ..Setup::default()
    };
    if rng.bool() {
        setup = setup.without(feature::EVENT_IDX);
    }
    setup
}

/// A range inside the disk, short ones more often than long ones.
fn range(rng: &mut Rng, capacity: u64, longest: u64) -> (u64, u64) {
    let most = (1 << rng.u32(0..=11)).min(longest).min(capacity);
    let sectors = rng.u64(1..=most);
    (rng.u64(0..=capacity - sectors), sectors)
}

fn ranges(rng: &mut Rng, capacity: u64, most: u32, longest: u32, flags: u32) -> Vec<Segment> {
    (0..rng.u32(1..=most.clamp(1, 5)))
        .map(|_| {
            let (sector, sectors) = range(rng, capacity, u64::from(longest.max(1)));
            Segment { sector, sectors: sectors as u32, flags: rng.u32(0..=flags) }
        })
        .collect()
}

fn send(vmm: &mut Vmm, queue: usize, slot: usize, op: &Op, rng: &mut Rng) {
    let payload;
    let (kind, sector, data) = match op {
        Op::Read { sector, sectors } => (kind::IN, *sector, Data::FromDevice((sectors * SECTOR) as usize)),
        Op::Write { sector, data } => (kind::OUT, *sector, Data::ToDevice(data)),
        Op::Flush => (kind::FLUSH, 0, Data::None),
        Op::Discard(ranges) => {
            payload = segments(ranges);
            (kind::DISCARD, 0, Data::ToDevice(&payload))
        }
        Op::WriteZeroes(ranges) => {
            payload = segments(ranges);
            (kind::WRITE_ZEROES, 0, Data::ToDevice(&payload))
        }
        Op::Outside { write: true, sector, len } => {
            payload = vec![0x55; *len];
            (kind::OUT, *sector, Data::ToDevice(&payload))
        }
        Op::Outside { sector, len, .. } => (kind::IN, *sector, Data::FromDevice(*len)),
        Op::Unknown(kind) => (*kind, 0, Data::None),
    };
    let indirect = vmm.has(feature::INDIRECT) && rng.bool();
    // Direct chains of all slots together have to fit into the ring.
    let most = if indirect { 100 } else { 14 };
    let most = most.min((vmm.config.seg_max as usize).saturating_sub(16)).max(1);
    let shape = Shape::random(rng, most, indirect);
    vmm.submit(queue, slot, &Request { kind, sector, data }, &shape, rng);
}
