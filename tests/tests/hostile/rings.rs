//! Rings whose indices lie, and memory that changes while the device looks.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, Request, Shape, header, kind};
use dm_tests::ring::{Desc, F_INDIRECT, F_NEXT, F_WRITE, Place, Ring, wait_readable};
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::{self, request as rq};
use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};

use crate::{PATIENCE, Victim};

/// Waits until the device has had its chance: a message that is answered behind the ring's back.
fn settle(vmm: &Vmm) {
    for _ in 0..3 {
        let _ = vmm.sync();
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn a_ring_that_breaks_is_signalled_by_its_error_descriptor() {
    let mut victim = Victim::new(&[]);
    for what in ["an index that jumps", "no power of two", "memory that is gone"] {
        let mut vmm = victim.vmm(&Setup { queues: 2, ..Setup::default() });
        let errors = [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"));
        for (index, error) in (0..).zip(&errors) {
            vmm.conn.tell_fd(rq::SET_VRING_ERR, index, Some(error.as_fd())).expect("SET_VRING_ERR");
        }
        vmm.read(0, 0, 512).expect("read");
        assert!(!wait_readable(errors[0].as_fd(), Duration::ZERO), "signalled before anything was wrong");
        match what {
            "an index that jumps" => {
                let ring = &mut vmm.queues[0].ring;
                ring.set_avail_idx(ring.avail_idx().wrapping_add(1000));
                ring.kick();
            }
            "no power of two" => {
                vmm.stop_ring(0).expect("stop");
                vmm.conn.tell_state(rq::SET_VRING_NUM, 0, 100).expect("taken, for now");
                let _ = vmm.conn.tell_fd(rq::SET_VRING_KICK, 0, Some(vmm.queues[0].ring.kick_fd()));
            }
            _ => {
                let last = vmm.memory.regions().len() - 1;
                vmm.queues[0].ring.push_head(0);
                for region in &vmm.memory.regions()[1..=last] {
                    rustix::fs::ftruncate(region.fd(), 0).expect("truncate");
                }
                vmm.queues[0].ring.publish();
                dm_tests::ring::signal(vmm.queues[0].ring.kick_fd());
            }
        }
        assert!(wait_readable(errors[0].as_fd(), PATIENCE), "{what}: not signalled");
        assert!(!wait_readable(errors[1].as_fd(), Duration::ZERO), "{what}: the other ring is well");
        drop(vmm);
        victim.assert_well(what);
    }
    victim.stop();
}

/// Each of these lines had a limit of its own for each start of a queue, or none.
#[test]
fn a_guest_that_resets_all_the_time_leaves_a_short_log() {
    let mut victim = Victim::new(&[]);
    let mut vmm = victim.vmm(&Setup { queues: 2, ..Setup::default() });
    for _ in 0..300 {
        for queue in 0..2 {
            for head in [200, 5, 200] {
                vmm.queues[queue].ring.push_head(head);
            }
            vmm.queues[queue].ring.publish();
            vmm.queues[queue].ring.kick();
        }
        vmm.reset().expect("reset");
    }
    // A ring that cannot be served, asked for again and again.
    for size in 0..600 {
        vmm.conn.tell_state(rq::SET_VRING_NUM, 0, 3 + 2 * (size % 100)).expect("taken, for now");
    }
    drop(vmm);
    // And over new connections, in memory that is gone.
    for _ in 0..100 {
        let vmm = victim.vmm(&Setup::default());
        rustix::fs::ftruncate(vmm.memory.regions()[0].fd(), 0).expect("truncate");
        dm_tests::ring::signal(vmm.queues[0].ring.kick_fd());
        let _ = vmm.stop_ring(0);
    }
    let log = victim.served.daemon.log();
    assert!(log.contains("is not served"), "the guest did nothing wrong: {log}");
    assert!(log.lines().count() < 60, "{} lines of log:\n{log}", log.lines().count());
    victim.assert_well("resets");
    victim.stop();
}

/// A ring that is spoiled in this way works again when its driver resets it.
fn survives(victim: &mut Victim, how: &str, spoil: impl FnOnce(&mut Ring)) {
    let mut vmm = victim.vmm(&Setup::default());
    let _ = vmm.read(0, 0, 512);
    spoil(&mut vmm.queues[0].ring);
    settle(&vmm);
    assert!(vmm.reset().is_ok(), "reset after {how}");
    assert!(vmm.read(0, 0, 512).is_ok(), "read after {how}");
    drop(vmm);
    victim.assert_well(how);
}

#[test]
fn an_available_index_that_jumps_is_survived() {
    let mut victim = Victim::new(&[]);
    for jump in [129u16, 200, 1000, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        survives(&mut victim, &format!("a jump of {jump}"), |ring| {
            ring.set_avail_idx(ring.next_avail().wrapping_add(jump));
            ring.kick();
            ring.kick();
        });
    }
    victim.stop();
}

#[test]
fn heads_that_are_no_descriptors_are_survived() {
    let mut victim = Victim::new(&[]);
    for head in [128u16, 129, 256, 0x8000, 0xffff] {
        survives(&mut victim, &format!("head {head}"), |ring| {
            for _ in 0..50 {
                ring.push_head(head);
            }
            ring.publish_and_kick();
        });
    }
    victim.stop();
}

#[test]
fn one_head_many_times_is_survived() {
    let mut victim = Victim::new(&[]);
    let mut vmm = victim.vmm(&Setup::default());
    let arena = vmm.queues[0].arenas[0].gpa;
    vmm.memory.write(arena, &header(kind::OUT, 8));
    let ring = &mut vmm.queues[0].ring;
    ring.write_desc(0, part(arena, 16, F_NEXT, 1));
    ring.write_desc(1, part(arena + 4096, 4096, F_NEXT, 2));
    ring.write_desc(2, part(arena + 64, 1, F_WRITE, 0));
    for _ in 0..200 {
        for _ in 0..128 {
            ring.push_head(0);
        }
        ring.publish_and_kick();
        let deadline = Instant::now() + PATIENCE;
        while ring.in_flight() > 0 && Instant::now() < deadline {
            while ring.pop_fixed().is_some() {}
            std::thread::yield_now();
        }
        assert_eq!(ring.in_flight(), 0, "heads did not come back");
    }
    drop(vmm);
    victim.assert_well("one head many times");
    victim.stop();
}

fn part(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

#[test]
fn rings_that_overlap_each_other_are_survived() {
    let mut victim = Victim::new(&[]);
    let places = [(0x100, 0x100, 0x100), (0x100, 0x104, 0x108), (0x1000, 0x1000, 0x2000)];
    for (desc, avail, used) in places {
        let mut vmm = victim.vmm(&Setup { queues: 2, ..Setup::default() });
        for index in [0, 1] {
            let base = vmm.stop_ring(index).expect("stop");
            vmm.queues[usize::from(index)].ring.place = Place { size: 128, desc, avail, used };
            let _ = vmm.continue_ring(index, base);
        }
        let mut rng = Rng::with_seed(desc);
        for _ in 0..200 {
            let noise = dm_tests::rng::bytes(&mut rng, 4096);
            vmm.memory.write(0, &noise);
            dm_tests::ring::signal(vmm.queues[rng.usize(..2)].ring.kick_fd());
        }
        settle(&vmm);
        drop(vmm);
        victim.assert_well(&format!("rings at {desc:#x} {avail:#x} {used:#x}"));
    }
    victim.stop();
}

#[test]
fn noise_in_the_rings_is_survived() {
    let mut victim = Victim::new(&["--read-only"]);
    // Read-only, because noise may by chance be a good write.
    for seed in dm_tests::rng::seeds(1, 20) {
        let mut rng = Rng::with_seed(seed);
        let mut vmm = victim.vmm(&Setup::default());
        let place = vmm.queues[0].ring.place;
        let arena = vmm.queues[0].arenas[0].gpa;
        for _ in 0..60 {
            for i in 0..128 {
                let addr = [arena, arena + 64, place.desc, place.used, rng.u64(..)][rng.usize(..5)];
                let len = [0, 1, 16, 512, 4096, rng.u32(..)][rng.usize(..6)];
                let one = part(addr, len, rng.u16(..8), rng.u16(..140));
                vmm.queues[0].ring.write_desc(i, one);
            }
            vmm.memory.write(arena, &header(rng.u32(..16), rng.u64(..3000)));
            for _ in 0..rng.u8(1..100) {
                vmm.queues[0].ring.push_head(rng.u16(..130));
            }
            vmm.queues[0].ring.publish();
            vmm.queues[0].ring.kick();
        }
        let _ = vmm.sync();
        let _ = vmm.stop_ring(0);
        drop(vmm);
        victim.served.daemon.assert_running();
    }
    let mut vmm = victim.vmm(&Setup::default());
    assert!(vmm.read(0, 0, 4096).is_ok_and(|bytes| bytes.iter().all(|&b| b == 0x11)));
    drop(vmm);
    victim.served.daemon.stop();
}

#[test]
fn a_guest_that_rewrites_what_the_device_reads_is_survived() {
    let mut victim = Victim::new(&["--read-only"]);
    let mut vmm = victim.vmm(&Setup { interrupts: false, ..Setup::default() });
    let arena = vmm.queues[0].arenas[0].gpa;
    let table = arena + 8192;
    let rewriter = vmm.memory.window(arena);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::with_seed(5);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let len = [16, 512, 0, u32::MAX][rng.usize(..4)];
                let addr = [arena, arena + 4096, u64::MAX - 3][rng.usize(..3)];
                let one = part(addr, len, rng.u16(..8), rng.u16(..9));
                rewriter.write(8192 + 16 * rng.usize(..8), &one.bytes());
                rewriter.write(0, &header(rng.u32(..12), rng.u64(..4000)));
            }
        });
        let deadline = Instant::now() + Duration::from_millis(700);
        let ring = &mut vmm.queues[0].ring;
        ring.write_desc(0, part(table, 128, F_INDIRECT, 0));
        while Instant::now() < deadline {
            for _ in 0..64 {
                ring.push_head(0);
            }
            ring.publish_and_kick();
            let patience = Instant::now() + PATIENCE;
            while ring.in_flight() > 0 {
                while ring.pop_fixed().is_some() {}
                assert!(Instant::now() < patience, "heads did not come back");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(vmm);
    victim.served.daemon.assert_running();
    let mut vmm = victim.vmm(&Setup::default());
    assert!(vmm.read(0, 0, 4096).is_ok_and(|bytes| bytes.iter().all(|&b| b == 0x11)));
    drop(vmm);
    victim.served.daemon.stop();
}

#[test]
fn a_call_descriptor_that_would_block_blocks_nobody() {
    let mut victim = Victim::new(&[]);
    // An eventfd that cannot take one more, in blocking mode.
    let full = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("fill");
    // A pipe that is full, in blocking mode.
    let (_reader, pipe) = std::io::pipe().expect("pipe");
    let flags = rustix::fs::fcntl_getfl(&pipe).expect("flags");
    rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK).expect("flags");
    while rustix::io::write(&pipe, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&pipe, flags).expect("flags");
    for call in [full.as_fd(), pipe.as_fd()] {
        let setup = Setup { interrupts: false, ..Setup::default() };
        let mut vmm = victim.vmm(&setup);
        // A polling driver still says that it wants interrupts, so that the device writes.
        vmm.queues[0].ring.want_interrupts(true);
        vmm.conn.tell(rq::SET_VRING_CALL, &0u64.to_le_bytes(), &[call]).expect("SET_VRING_CALL");
        for _ in 0..3 {
            let request = Request { kind: kind::IN, sector: 0, data: Data::FromDevice(512) };
            let mut rng = Rng::with_seed(1);
            vmm.submit(0, 0, &request, &Shape::PLAIN, &mut rng);
            vmm.kick(0);
            assert_eq!(vmm.wait(0).status, 0);
        }
        vmm.stop_ring(0).expect("GET_VRING_BASE");
        drop(vmm);
        victim.assert_well("a call descriptor that blocks");
    }
    victim.stop();
}

#[test]
fn a_kick_descriptor_that_changes_all_the_time_is_survived() {
    let mut victim = Victim::new(&[]);
    let vmm = victim.vmm(&Setup::default());
    for round in 0..500u64 {
        let fd = eventfd((round % 2) as u32, EventfdFlags::CLOEXEC).expect("eventfd");
        vmm.conn.tell(rq::SET_VRING_KICK, &0u64.to_le_bytes(), &[fd.as_fd()]).expect("SET_VRING_KICK");
        if round % 50 == 0 {
            let none = wire::NO_FD.to_le_bytes();
            let _ = vmm.conn.tell(rq::SET_VRING_CALL, &none, &[]);
        }
    }
    drop(vmm);
    victim.assert_well("500 kick descriptors");
    victim.stop();
}

#[test]
fn a_base_that_is_not_the_rings_is_survived() {
    let mut victim = Victim::new(&[]);
    for base in [1u32, 127, 128, 0x8000, 0xffff, 0x1_0000, u32::MAX] {
        let mut vmm = victim.vmm(&Setup::default());
        vmm.stop_ring(0).expect("stop");
        let _ = vmm.conn.tell_state(rq::SET_VRING_BASE, 0, base);
        let kick = eventfd(1, EventfdFlags::CLOEXEC).expect("eventfd");
        let _ = vmm.conn.tell(rq::SET_VRING_KICK, &0u64.to_le_bytes(), &[kick.as_fd()]);
        let _ = vmm.enable(0, true);
        vmm.queues[0].ring.kick();
        settle(&vmm);
        let _ = vmm.stop_ring(0);
        drop(vmm);
        victim.assert_well(&format!("base {base}"));
    }
    victim.stop();
}
