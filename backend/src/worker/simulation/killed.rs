//! The worker's process is killed between any two accesses to shared memory, and another takes its place.
//!
//! What the guest sees must not tell: every request comes back exactly once, and the bytes are right. Kills come in
//! recovery too. Once the region of the front end keeps the record, once the order of the used ring is the record.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::counts::Tally;
use super::{Core, Ground, Ops, Place, Poll, Repeat, Rig, SEEDS, seeds};
use crate::guest::Inflight;
use crate::sim::{Sim, Temper};
use crate::stats;

/// Largest ring of a simulated driver, in entries.
const ENTRIES: u16 = 32;

/// What unwinds a killed worker.
struct Killed;

/// A front end's region.
pub(super) fn region(queues: u16) -> Arc<Inflight> {
    let offer = Inflight::create(queues, ENTRIES).expect("an in-flight region");
    Arc::new(Inflight::map(offer.file, offer.size, 0, queues, ENTRIES).expect("an in-flight region"))
}

/// Devices that do not fail: a failure before a kill would be forgotten, as its request is done again.
pub(super) fn temper(rng: &mut Rng) -> Temper {
    let latency = Duration::from_micros(rng.u64(..60));
    Temper { latency, short: rng.u8(..3) * 10, again: rng.u8(..3) * 5, fail: 0 }
}

/// Kills the worker, from inside, when its time has come.
pub(super) fn burn(fuse: &Cell<u32>) {
    let left = fuse.get();
    fuse.set(left.saturating_sub(1));
    if left == 1 {
        resume_unwind(Box::new(Killed));
    }
}

impl Rig {
    /// What the worker does, unless it is killed while it does it: then another has taken its place.
    pub(super) fn alive<T>(&mut self, act: impl FnOnce(&mut Core<Sim>) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| act(&mut self.core))) {
            Ok(done) => Some(done),
            Err(payload) if payload.is::<Killed>() => {
                self.replace_worker();
                None
            }
            Err(payload) => resume_unwind(payload),
        }
    }

    pub(super) fn light_fuse(&mut self) {
        if self.fuse.get() == 0 && self.rng.u8(..60) == 0 {
            self.fuse.set(self.rng.u32(1..200));
        }
    }

    fn replace_worker(&mut self) {
        self.sim.kill();
        self.killed += 1;
        self.core = Core::new(self.sim.clone(), Ops::new().expect("bounce buffers"), Poll::fixed(0), None);
        // What it has counted dies with it.
        self.stats = stats::Disk::new();
        let mut side = self.side.borrow_mut();
        side.tally = Tally::default();
        for (q, place) in self.places.iter_mut().enumerate() {
            let used = side.used_idx(q);
            side.drivers[q].inherited = side.unseen(q);
            *place = Place::Stopped { next: used, used };
        }
        // Now and then the successor dies while it recovers.
        if self.rng.u8(..3) == 0 {
            self.fuse.set(self.rng.u32(1..60));
        }
        self.rung = true;
    }
}

#[test]
fn a_worker_that_is_killed_loses_no_request_and_does_none_twice_for_the_guest() {
    let ground = Ground::new();
    let mut killed = 0;
    let seeds = seeds(3_000_000, SEEDS);
    let enough = seeds.end - seeds.start;
    for seed in seeds {
        let mut rig = Rig::with_kills(seed, &ground, true);
        let _repeat = Repeat(seed, rig.side.clone());
        rig.run(u64::MAX);
        rig.check_end();
        killed += rig.killed;
    }
    assert!(killed > enough / 2, "only {killed} kills in {enough} seeds");
}
