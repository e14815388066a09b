//! The guest of a round: keeps every queue busy, and knows what each request has to become.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::check;
use super::load::{Load, Op};
use crate::blk::{self, Data, Request, SECTOR, kind, segments};
use crate::locks::Locks;
use crate::model::{Outcome, World};
use crate::ring::{drain, wait_any_readable};
use crate::vmm::{Done, Vmm};

/// A request that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests that wait because others hold their sectors or slots.
const BACKLOG: usize = 192;

/// See the module's text.
pub struct Driver {
    /// The front end.
    pub vmm: Vmm,
    /// Requests that came back.
    pub completed: u64,
    /// Of those, the ones that change the disk.
    pub acknowledged: u64,
    /// Comparisons of the files.
    pub checks: u64,
    world: World,
    device: usize,
    seed: u64,
    load: Load,
    backlog: VecDeque<Op>,
    busy: Vec<Vec<Option<Op>>>,
    locks: Locks,
    rng: Rng,
}

impl Driver {
    /// A guest of this front end, on the last device of the world, with the load of this seed.
    pub fn new(vmm: Vmm, world: World, seed: u64, pieces: usize) -> Self {
        let device = world.devices.len() - 1;
        assert_eq!(vmm.config.capacity, world.devices[device].len(), "capacity");
        let queues = vmm.queues.len();
        Driver {
            load: Load::new(seed, vmm.config, vmm.features, queues, pieces),
            backlog: VecDeque::new(),
            busy: (0..queues).map(|_| (0..vmm.setup.slots).map(|_| None).collect()).collect(),
            locks: Locks::new(&world),
            rng: Rng::with_seed(seed),
            vmm,
            completed: 0,
            acknowledged: 0,
            checks: 0,
            world,
            device,
            seed,
        }
    }

    /// Requests that are outstanding.
    pub fn outstanding(&self) -> usize {
        self.busy.iter().flatten().flatten().count()
    }

    /// Keeps the queues full until so many more requests have come back.
    pub fn run(&mut self, completions: u64) {
        let end = self.completed + completions;
        self.submit();
        while self.completed < end {
            self.wait();
            self.reap();
            self.submit();
        }
    }

    /// Waits until so few requests are outstanding, and submits none.
    pub fn drain(&mut self, left: usize) {
        while self.outstanding() > left {
            self.wait();
            self.reap();
        }
    }

    /// Takes what came back without waiting for it.
    pub fn reap(&mut self) {
        for queue in 0..self.busy.len() {
            while let Some(done) = self.vmm.complete(queue) {
                self.judge(queue, &done);
            }
        }
    }

    fn submit(&mut self) {
        while self.backlog.len() < BACKLOG {
            let op = self.load.next(&self.world, self.device);
            self.backlog.push_back(op);
        }
        let mut left = self.rng.usize(1..=BACKLOG);
        for _ in 0..BACKLOG {
            let Some(op) = self.backlog.pop_front().filter(|_| left > 0) else { break };
            let slot = self.busy[op.queue].iter().position(Option::is_none);
            let free = slot.filter(|_| self.locks.take(&op.touched, op.writes()));
            match free {
                None => self.backlog.push_back(op),
                Some(slot) => {
                    left -= 1;
                    self.send(slot, op);
                }
            }
        }
        for queue in 0..self.busy.len() {
            let ring = &self.vmm.queues[queue].ring;
            if ring.next_avail() != ring.avail_idx() {
                self.vmm.kick(queue);
            }
        }
    }

    fn send(&mut self, slot: usize, op: Op) {
        let mut rng = Rng::with_seed(op.number);
        let payload = if op.kind == kind::OUT { Vec::new() } else { segments(&op.ranges) };
        let (sector, data) = match op.kind {
            kind::IN => (op.ranges[0].sector, Data::FromDevice((op.sectors() * SECTOR) as usize)),
            kind::OUT => (op.ranges[0].sector, Data::ToDevice(&op.data)),
            kind::FLUSH => (0, Data::None),
            _ => (0, Data::ToDevice(&payload)),
        };
        self.vmm.submit(op.queue, slot, &Request { kind: op.kind, sector, data }, &op.shape, &mut rng);
        let queue = op.queue;
        self.busy[queue][slot] = Some(op);
    }

    fn judge(&mut self, queue: usize, done: &Done) {
        let op = self.busy[queue][done.slot].take().expect("the front end knows what is outstanding");
        self.locks.release(&op.touched, op.writes());
        let (number, sectors) = (op.number, op.sectors());
        let expected = match op.apply(&mut self.world, self.device) {
            Outcome::Done => blk::OK,
            Outcome::Failed => blk::IOERR,
        };
        assert_eq!(done.status, expected, "status of request {number} (type {}), queue {queue}", op.kind);
        if op.kind == kind::IN && expected == blk::OK {
            let sector = op.ranges[0].sector;
            let wrong = self.world.check_read(self.device, sector, &done.data);
            assert_eq!(wrong, None, "request {number} read wrong bytes in that sector");
            assert_eq!(u64::from(done.written), sectors * SECTOR + 1, "used length of request {number}");
        }
        self.completed += 1;
        self.acknowledged += u64::from(op.writes());
    }

    /// Waits for something to have come back, as the setup says: by interrupts or by looking.
    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.vmm.queues.iter().any(|queue| queue.ring.has_used()) {
            if Instant::now() > deadline {
                self.hangs("none came back");
            }
            if self.vmm.setup.interrupts {
                self.wait_for_call();
            } else {
                yield_now();
            }
        }
    }

    fn wait_for_call(&self) {
        let rings = || self.vmm.queues.iter().map(|queue| &queue.ring);
        rings().for_each(|ring| ring.ask_interrupt());
        if rings().any(|ring| ring.has_used()) {
            return;
        }
        let calls: Vec<BorrowedFd<'_>> = rings().map(|ring| ring.call_fd()).collect();
        if !wait_any_readable(&calls, PATIENCE) {
            let lost = rings().any(|ring| ring.has_used());
            self.hangs(if lost { "some came back without a notification" } else { "none came back" });
        }
        calls.iter().for_each(|call| {
            drain(call.as_fd());
        });
    }

    fn hangs(&self, how: &str) -> ! {
        let mut text = String::new();
        for (number, (queue, busy)) in self.vmm.queues.iter().zip(&self.busy).enumerate() {
            let ring = &queue.ring;
            let numbers: Vec<u64> = busy.iter().flatten().map(|op| op.number).collect();
            text += &format!(
                "\nqueue {number}: available {}, used {}, seen {}, outstanding requests {numbers:?}",
                ring.avail_idx(),
                ring.used_idx(),
                ring.seen_used()
            );
        }
        panic!("{} requests are outstanding and for {PATIENCE:?} {how}{text}", self.outstanding());
    }

    /// Compares the component files with the model.
    pub fn check(&mut self, when: &str) {
        let outstanding = self.busy.iter().flatten().flatten();
        check::components(&mut self.world, self.device, self.seed, when, outstanding);
        self.checks += 1;
    }

    /// Reads the whole disk.
    pub fn check_disk(&mut self) {
        let capacity = self.vmm.config.capacity;
        let mut sector = 0;
        while sector < capacity {
            let sectors = (capacity - sector).min(64);
            let expected = self.world.read_outcome(self.device, sector, sectors);
            match self.vmm.read(0, sector, (sectors * SECTOR) as usize) {
                Ok(seen) => {
                    assert_eq!(expected, Outcome::Done, "a read at sector {sector}");
                    let wrong = self.world.check_read(self.device, sector, &seen);
                    assert_eq!(wrong, None, "at the end the guest reads wrong bytes in that sector");
                }
                Err(_) => assert_eq!(expected, Outcome::Failed, "a read at sector {sector}"),
            }
            sector += sectors;
        }
        self.vmm.flush(0).expect("flush");
    }
}
