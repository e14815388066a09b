//! Control messages that pull things away from under requests in flight.

use std::time::Duration;

use dm_tests::blk::{Data, OK, Request, Shape, kind};
use dm_tests::memory::RegionSpec;
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::{self, request as rq};
use fastrand::Rng;

use crate::{PATIENCE, SECTORS, Victim};

const SLOTS: usize = 32;
const BYTES: usize = 32 << 10;

fn setup() -> Setup {
    Setup { slots: SLOTS, slot_bytes: 64 << 10, interrupts: false, ..Setup::default() }
}

/// Keeps every slot that is free busy with a read.
struct Load {
    rng: Rng,
    busy: [bool; SLOTS],
    completed: u64,
}

impl Load {
    fn new() -> Self {
        Load { rng: Rng::with_seed(3), busy: [false; SLOTS], completed: 0 }
    }

    fn push(&mut self, vmm: &mut Vmm) {
        for slot in 0..SLOTS {
            if !self.busy[slot] {
                let most = SECTORS - (BYTES / 512) as u64;
                let request = Request { kind: kind::IN, sector: self.rng.u64(..most), data: Data::FromDevice(BYTES) };
                vmm.submit(0, slot, &request, &Shape::PLAIN, &mut self.rng);
                self.busy[slot] = true;
            }
        }
        vmm.kick(0);
    }

    fn reap(&mut self, vmm: &mut Vmm) {
        while let Some(done) = vmm.complete(0) {
            assert_eq!(done.status, OK);
            self.busy[done.slot] = false;
            self.completed += 1;
        }
    }

    fn wait_for_one(&mut self, vmm: &mut Vmm) {
        let done = vmm.wait(0);
        assert_eq!(done.status, OK);
        self.busy[done.slot] = false;
        self.completed += 1;
    }

    fn drain(&mut self, vmm: &mut Vmm) {
        while self.busy.contains(&true) {
            self.wait_for_one(vmm);
        }
    }
}

#[test]
fn enabling_and_disabling_under_load_loses_nothing() {
    let mut victim = Victim::slow();
    let mut vmm = victim.vmm(&setup());
    let mut load = Load::new();
    for round in 0..300 {
        load.push(&mut vmm);
        let on = round % 2 == 1;
        vmm.enable(0, on).expect("SET_VRING_ENABLE");
        if round % 4 == 1 {
            // However soon it is off again, it has been served meanwhile, and more is under way. Other rounds wait for nothing.
            (0..4).for_each(|_| load.wait_for_one(&mut vmm));
        }
        load.reap(&mut vmm);
    }
    load.drain(&mut vmm);
    assert!(load.completed > 300, "{} requests", load.completed);
    drop(vmm);
    victim.assert_well("enable and disable");
    victim.stop();
}

#[test]
fn nothing_moves_after_a_ring_was_stopped_under_load() {
    let mut victim = Victim::slow();
    let mut vmm = victim.vmm(&setup());
    let mut load = Load::new();
    for round in 0..40 {
        load.push(&mut vmm);
        let base = vmm.stop_ring(0).expect("GET_VRING_BASE");
        let frozen = vmm.memory.snapshot();
        assert_eq!(base, vmm.queues[0].ring.used_idx(), "taken from the ring but not given back");
        if round % 8 == 0 {
            std::thread::sleep(Duration::from_millis(60));
        }
        assert!(vmm.memory.snapshot() == frozen, "guest memory changed after the ring was stopped");
        vmm.continue_ring(0, base).expect("start");
        load.reap(&mut vmm);
    }
    load.drain(&mut vmm);
    drop(vmm);
    victim.assert_well("stopping under load");
    victim.stop();
}

#[test]
fn nothing_is_written_into_a_region_after_it_was_removed() {
    let mut victim = Victim::slow();
    for round in 0..8 {
        let mut vmm = victim.vmm(&setup());
        let mut load = Load::new();
        load.push(&mut vmm);
        // The regions that hold data; requests still on their way to them fail, and that is right.
        for gpa in [1 << 32, vmm.memory.regions()[1].gpa] {
            let region = vmm.memory.regions().iter().find(|r| r.gpa == gpa).cloned();
            let region = region.expect("a data region");
            let window = vmm.memory.window(gpa);
            let body = wire::single_region(region.gpa, region.size, region.user_addr, 0);
            vmm.conn.tell(rq::REM_MEM_REG, &body, &[]).expect("REM_MEM_REG");
            let look = || {
                let mut bytes = vec![0; region.size as usize];
                window.read(0, &mut bytes);
                bytes
            };
            let frozen = look();
            std::thread::sleep(Duration::from_millis(20));
            assert!(look() == frozen, "round {round}: a removed region changed");
        }
        assert!(vmm.queues[0].ring.spin_used(PATIENCE), "nothing came back at all");
        drop(vmm);
        victim.assert_well("removing regions under load");
    }
    victim.stop();
}

#[test]
fn a_memory_table_without_the_rings_is_survived() {
    let mut victim = Victim::slow();
    for _ in 0..8 {
        let mut vmm = victim.vmm(&setup());
        let mut load = Load::new();
        load.push(&mut vmm);
        let rings = vmm.memory.remove(0);
        let _ = vmm.set_mem_table();
        dm_tests::ring::signal(vmm.queues[0].ring.kick_fd());
        let _ = vmm.sync();
        drop(rings);
        drop(vmm);
        victim.assert_well("a memory table without the rings");
    }
    victim.stop();
}

#[test]
fn hanging_up_under_load_leaves_guest_memory_alone_soon() {
    let mut victim = Victim::slow();
    for _ in 0..20 {
        let mut vmm = victim.vmm(&setup());
        let mut load = Load::new();
        load.push(&mut vmm);
        vmm.conn.stream().shutdown(std::net::Shutdown::Both).expect("hang up");
        // The next front end is served only after the last one's requests are over.
        victim.assert_well("hanging up under load");
        let frozen = vmm.memory.snapshot();
        std::thread::sleep(Duration::from_millis(5));
        assert!(vmm.memory.snapshot() == frozen, "memory of a front end that left changed");
    }
    victim.stop();
}

#[test]
fn a_back_end_that_hangs_up_has_finished() {
    let mut victim = Victim::slow();
    for round in 0..20 {
        let mut vmm = victim.vmm(&setup());
        let mut load = Load::new();
        load.push(&mut vmm);
        // One that the interposer refuses, or one that the daemon does.
        match round % 2 {
            0 => vmm.conn.send_raw(&[0xff; 12], &[]).expect("send"),
            _ => vmm.conn.send(rq::SET_VRING_NUM, 0, &[0; 3], &[]).expect("send"),
        }
        assert!(vmm.conn.wait_hangup());
        // Such a front end may give this memory to something else.
        let frozen = vmm.memory.snapshot();
        std::thread::sleep(Duration::from_millis(5));
        assert!(vmm.memory.snapshot() == frozen, "memory changed after the back end hung up");
        drop(vmm);
        victim.assert_well("a refusal under load");
    }
    victim.stop();
}

#[test]
fn memory_that_changes_elsewhere_disturbs_no_request() {
    let mut victim = Victim::slow();
    let mut vmm = victim.vmm(&setup());
    let mut load = Load::new();
    let elsewhere = RegionSpec { gpa: 32 << 30, size: 1 << 20 };
    for round in 0..60 {
        load.push(&mut vmm);
        match round % 3 {
            0 => vmm.add_region(elsewhere).expect("ADD_MEM_REG"),
            1 => vmm.set_mem_table().expect("SET_MEM_TABLE"),
            _ => vmm.remove_region(elsewhere.gpa).expect("REM_MEM_REG"),
        }
        load.reap(&mut vmm);
    }
    load.drain(&mut vmm);
    drop(vmm);
    victim.assert_well("memory that comes and goes");
    victim.stop();
}

/// Its file cut short: neither the rings nor the buffers are there any more, though they are mapped.
#[test]
fn guest_memory_whose_file_shrinks_is_survived() {
    for (what, cut) in [("buffers", 1..4), ("rings", 0..1), ("everything", 0..4)] {
        for slow in [true, false] {
            let mut victim = if slow { Victim::slow() } else { Victim::new(&[]) };
            let mut vmm = victim.vmm(&setup());
            let mut load = Load::new();
            load.push(&mut vmm);
            for region in &vmm.memory.regions()[cut.clone()] {
                rustix::fs::ftruncate(region.fd(), 0).expect("truncate");
            }
            // From here on this process may not touch the memory either.
            for _ in 0..10 {
                dm_tests::ring::signal(vmm.queues[0].ring.kick_fd());
                let _ = vmm.sync();
            }
            let _ = vmm.stop_ring(0);
            drop(vmm);
            victim.assert_well(what);
            victim.stop();
        }
    }
}
