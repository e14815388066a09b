//! After the reply nothing moves: memory regions that go, rings that stop and devices that are reset, all under load.

use std::path::PathBuf;
use std::time::Duration;

use dm_tests::blk::{Arena, Data, OK, Request, Shape, kind};
use dm_tests::daemon::Served;
use dm_tests::files;
use dm_tests::memory::RegionSpec;
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::{request, single_region};
use fastrand::Rng;
use tempfile::TempDir;

use crate::SECTOR;

const QUEUES: usize = 4;
const SLOTS: usize = 8;
const SECTORS: u64 = 8192;
const LEN: usize = 32 * SECTOR;
/// How long it is looked whether anything moves.
const LOOK: Duration = Duration::from_millis(20);

/// Random requests on four queues, each slot of each queue with sectors of its own.
struct Load {
    vmm: Vmm,
    rng: Rng,
    busy: [[bool; SLOTS]; QUEUES],
    done: u64,
    path: PathBuf,
    served: Served,
    _dir: TempDir,
}

impl Load {
    fn new(seed: u64) -> Load {
        let dir = files::disk_dir();
        let path = dir.path().join("component");
        files::component(&path, &vec![7; SECTORS as usize * SECTOR]);
        let mut served = Served::table(&format!("0 {SECTORS} linear {} 0\n", path.display()), &["--num-queues=4"]);
        let setup = Setup { queues: QUEUES as u16, slots: SLOTS, interrupts: false, ..Setup::default() };
        let vmm = served.vmm(&setup);
        let rng = Rng::with_seed(seed);
        Load { vmm, rng, busy: [[false; SLOTS]; QUEUES], done: 0, path, served, _dir: dir }
    }

    /// Puts requests into all free slots below `slots`.
    fn fill(&mut self, slots: std::ops::Range<usize>) {
        for queue in 0..QUEUES {
            for slot in slots.clone() {
                if self.busy[queue][slot] {
                    continue;
                }
                let bytes = [self.rng.u8(..); LEN];
                let sector = ((queue * SLOTS + slot) * 128) as u64 + self.rng.u64(..96);
                let (kind, data) = match self.rng.bool() {
                    true => (kind::OUT, Data::ToDevice(&bytes)),
                    false => (kind::IN, Data::FromDevice(LEN)),
                };
                let request = Request { kind, sector, data };
                self.vmm.submit(queue, slot, &request, &Shape::PLAIN, &mut self.rng);
                self.busy[queue][slot] = true;
            }
            self.vmm.kick(queue);
        }
    }

    /// Takes what has come back. Slots that are `hot` may have failed.
    fn take(&mut self, hot: Option<usize>) {
        for queue in 0..QUEUES {
            while let Some(done) = self.vmm.complete(queue) {
                assert!(self.busy[queue][done.slot], "slot {} of queue {queue} came back twice", done.slot);
                assert!(done.status == OK || hot == Some(done.slot), "queue {queue}: {done:?}");
                self.busy[queue][done.slot] = false;
                self.done += 1;
            }
        }
    }

    /// Waits until all have come back: none is lost.
    fn finish(&mut self, hot: Option<usize>) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while self.busy.iter().flatten().any(|busy| *busy) {
            assert!(std::time::Instant::now() < deadline, "requests are lost: {:?}", self.busy);
            self.take(hot);
            std::thread::yield_now();
        }
    }

    /// Nothing of guest memory or component changes.
    fn check_still(&self, what: &str) {
        let look = || (self.vmm.memory.snapshot(), std::fs::read(&self.path).expect("read the component"));
        let before = look();
        std::thread::sleep(LOOK);
        let after = look();
        assert!(before.0 == after.0, "guest memory changed after the reply to {what}");
        assert!(before.1 == after.1, "the component changed after the reply to {what}");
    }

    fn end(self) {
        drop(self.vmm);
        self.served.daemon.stop();
    }
}

#[test]
fn memory_comes_and_goes_under_load() {
    const HOT: usize = SLOTS - 1;
    let mut load = Load::new(1);
    let spec = RegionSpec { gpa: 8 << 30, size: QUEUES as u64 * (128 << 10) };
    let mut served = 0;
    for round in 0..40 {
        load.vmm.add_region(spec).expect("ADD_MEM_REG");
        let usual: Vec<Arena> = load.vmm.queues.iter().map(|queue| queue.arenas[HOT]).collect();
        for (n, queue) in load.vmm.queues.iter_mut().enumerate() {
            queue.arenas[HOT] = Arena { gpa: spec.gpa + n as u64 * (128 << 10), len: 128 << 10 };
        }
        // Every second time the region goes while requests are at it.
        load.fill(0..SLOTS);
        if round % 2 == 0 {
            load.finish(None);
            load.fill(0..HOT);
        }
        let region = load.vmm.memory.regions().last().expect("the region").clone();
        let body = single_region(region.gpa, region.size, region.user_addr, region.mmap_offset);
        load.vmm.conn.tell(request::REM_MEM_REG, &body, &[]).expect("REM_MEM_REG");
        // Whatever comes to the region now shows.
        let kept = load.vmm.memory.read_vec(spec.gpa, spec.size as usize);
        load.vmm.memory.fill(spec.gpa, spec.size as usize, 0x5c);
        let until = std::time::Instant::now() + LOOK;
        let before = load.done;
        while std::time::Instant::now() < until {
            let hot = load.busy.map(|queue| queue[HOT]);
            if !hot.contains(&true) {
                load.take(None);
                load.fill(0..HOT);
            }
        }
        let now = load.vmm.memory.read_vec(spec.gpa, spec.size as usize);
        assert!(now.iter().all(|byte| *byte == 0x5c), "round {round}: a region that is gone was written to");
        served += load.done - before;
        load.vmm.memory.write(spec.gpa, &kept);
        load.finish(Some(HOT));
        load.vmm.memory.remove(spec.gpa);
        for (queue, arena) in load.vmm.queues.iter_mut().zip(usual) {
            queue.arenas[HOT] = arena;
        }
    }
    assert!(served > 0, "the other regions were not served meanwhile");
    load.end();
}

#[test]
fn after_get_vring_base_nothing_moves() {
    let mut load = Load::new(2);
    for _ in 0..20 {
        load.fill(0..SLOTS);
        std::thread::sleep(Duration::from_micros(load.rng.u64(..300)));
        let bases: Vec<u16> = (0..QUEUES as u16).map(|q| load.vmm.stop_ring(q).expect("GET_VRING_BASE")).collect();
        load.check_still("GET_VRING_BASE");
        for (queue, base) in (0..).zip(bases) {
            load.vmm.continue_ring(queue, base).expect("start");
            load.vmm.kick(usize::from(queue));
        }
        load.finish(None);
    }
    load.end();
}

#[test]
fn after_a_ring_is_disabled_nothing_moves() {
    let mut load = Load::new(3);
    for _ in 0..20 {
        load.fill(0..SLOTS);
        std::thread::sleep(Duration::from_micros(load.rng.u64(..300)));
        (0..QUEUES as u16).for_each(|queue| load.vmm.enable(queue, false).expect("SET_VRING_ENABLE 0"));
        load.check_still("SET_VRING_ENABLE 0");
        (0..QUEUES as u16).for_each(|queue| load.vmm.enable(queue, true).expect("SET_VRING_ENABLE 1"));
        load.finish(None);
    }
    load.end();
}

#[test]
fn after_a_reset_nothing_moves() {
    for round in 0..8 {
        let mut load = Load::new(4 + round);
        load.fill(0..SLOTS);
        std::thread::sleep(Duration::from_micros(load.rng.u64(..300)));
        load.vmm.conn.tell(request::RESET_DEVICE, &[], &[]).expect("RESET_DEVICE");
        load.check_still("RESET_DEVICE");
        load.end();
    }
}
