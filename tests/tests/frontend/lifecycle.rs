//! Connecting, leaving, coming back, resetting, ending.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use dm_tests::blk::{Arena, Data, OK, Request, Shape, feature, kind};
use dm_tests::daemon::Served;
use dm_tests::memory::RegionSpec;
use dm_tests::vmm::{Order, Setup, Vmm};
use fastrand::Rng;
use rustix::process::Signal;

use crate::{IOERR, Piece, SECTOR, pattern};

const ORDERS: [Order; 2] = [Order::Qemu, Order::CloudHypervisor];

/// Writes, reads back and flushes on every queue.
fn exercise(vmm: &mut Vmm, salt: u8) {
    for queue in 0..vmm.queues.len() {
        let at = 16 * queue as u64 + 3;
        let bytes = pattern(9, salt.wrapping_add(queue as u8));
        vmm.write(queue, at, &bytes).expect("write");
        assert!(vmm.read(queue, at, bytes.len()) == Ok(bytes));
        vmm.flush(queue).expect("flush");
    }
}

#[test]
fn both_orders_of_messages_work() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for order in ORDERS {
        for interrupts in [true, false] {
            for event_idx in [0, feature::EVENT_IDX] {
                for queues in [1, 4] {
                    let setup = Setup { order, interrupts, queues, ..Setup::default() };
                    exercise(&mut served.vmm(&setup.without(event_idx)), 40);
                }
            }
        }
    }
    served.daemon.stop();
}

#[test]
fn a_front_end_leaves_and_comes_back_a_hundred_times() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for round in 0..100u8 {
        let order = ORDERS[usize::from(round % 2)];
        let setup = Setup { order, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        if round > 0 {
            assert!(vmm.read(0, 3, 9 * SECTOR) == Ok(pattern(9, round - 1)));
        }
        exercise(&mut vmm, round);
    }
    served.daemon.stop();
}

#[test]
fn rings_go_on_where_they_were_over_a_new_connection() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for order in ORDERS {
        let setup = Setup { order, queues: 2, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        for round in 0..10 {
            exercise(&mut vmm, round);
            // The old connection closes when the new one takes its place, so the new one waits in the backlog.
            let stream = served.daemon.connect(&served.socket);
            vmm.reconnect(stream).expect("come back");
        }
        exercise(&mut vmm, 99);
        assert!(vmm.queues[0].ring.next_avail() > 0);
    }
    served.daemon.stop();
}

#[test]
fn leaving_in_the_middle_of_requests_harms_nobody() {
    let piece = Piece::new(4096);
    let mut served = Served::table(&piece.table(), &[]);
    let mut rng = Rng::with_seed(1);
    for round in 0..20u8 {
        let setup = Setup { slots: 32, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        let bytes = pattern(64, round);
        for slot in 0..32 {
            let request = Request { kind: kind::OUT, sector: 64 * slot as u64, data: Data::ToDevice(&bytes) };
            vmm.submit(0, slot, &request, &Shape::PLAIN, &mut rng);
        }
        vmm.kick(0);
        vmm.sync().expect("the rings run");
    }
    let mut vmm = served.vmm(&Setup::default());
    let all = vmm.read_all(0).expect("read");
    // Each 32 KiB was written by nobody or by a whole request of some round.
    for chunk in all.chunks(64 * SECTOR) {
        let salt = chunk[8];
        assert!(salt < 20, "a sector that nobody wrote: {salt}");
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_guest_may_reset_its_device() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for order in ORDERS {
        let setup = Setup { order, queues: 2, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        for round in 0..5 {
            exercise(&mut vmm, round);
            vmm.reset().expect("reset");
        }
        exercise(&mut vmm, 77);
    }
    served.daemon.stop();
}

#[test]
fn a_ring_without_a_call_descriptor_works() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for order in ORDERS {
        let setup = Setup { order, no_call: true, ..Setup::default() };
        exercise(&mut served.vmm(&setup), 5);
    }
    served.daemon.stop();
}

#[test]
fn the_call_descriptor_may_change_while_a_ring_runs() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for round in 0..20 {
        exercise(&mut vmm, round);
        vmm.change_call(0).expect("SET_VRING_CALL");
    }
    exercise(&mut vmm, 99);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_ring_that_is_off_serves_nothing_until_it_is_on() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let mut rng = Rng::with_seed(1);
    for _ in 0..10 {
        vmm.enable(0, false).expect("off");
        let request = Request { kind: kind::IN, sector: 0, data: Data::FromDevice(SECTOR) };
        vmm.submit(0, 0, &request, &Shape::PLAIN, &mut rng);
        vmm.queues[0].ring.publish();
        vmm.queues[0].ring.kick();
        vmm.sync().expect("round trip");
        std::thread::sleep(Duration::from_millis(5));
        assert!(!vmm.queues[0].ring.has_used(), "served while it was off");
        vmm.enable(0, true).expect("on");
        assert_eq!(vmm.wait(0).status, OK);
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn memory_comes_and_goes_while_rings_run() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let region = RegionSpec { gpa: 8 << 30, size: 256 << 10 };
    for round in 0..20 {
        vmm.add_region(region).expect("ADD_MEM_REG");
        let usual = vmm.queues[0].arenas[0];
        vmm.queues[0].arenas[0] = Arena { gpa: region.gpa, len: region.size };
        exercise(&mut vmm, round);
        vmm.queues[0].arenas[0] = usual;
        vmm.remove_region(region.gpa).expect("REM_MEM_REG");
        exercise(&mut vmm, round);
    }
    vmm.set_mem_table().expect("the whole table again");
    exercise(&mut vmm, 44);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_request_into_memory_that_is_gone_fails_alone() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    let region = RegionSpec { gpa: 8 << 30, size: 256 << 10 };
    vmm.add_region(region).expect("ADD_MEM_REG");
    let gone = vmm.memory.remove(region.gpa);
    let body = dm_tests::wire::single_region(gone.gpa, gone.size, gone.user_addr, 0);
    vmm.conn.tell(dm_tests::wire::request::REM_MEM_REG, &body, &[]).expect("REM_MEM_REG");
    let status = vmm.queues[0].arenas[0].gpa;
    let arena = vmm.queues[0].arenas[1].gpa;
    vmm.memory.write(arena, &dm_tests::blk::header(kind::IN, 0));
    vmm.memory.write(status, &[dm_tests::blk::UNTOUCHED]);
    let buf = |gpa, len, device_writes| dm_tests::ring::Buf { gpa, len, device_writes };
    let chain = [buf(arena, 16, false), buf(region.gpa, 4096, true), buf(status, 1, true)];
    let queue = &mut vmm.queues[0];
    queue.ring.add(&vmm.memory, &chain, None).expect("room");
    queue.ring.publish_and_kick();
    assert!(queue.ring.wait_used(Duration::from_secs(60)), "never came back");
    queue.ring.pop().expect("a completion");
    assert_eq!(vmm.memory.read_vec(status, 1), [IOERR.0]);
    exercise(&mut vmm, 3);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn after_sigterm_under_load_all_that_was_acknowledged_is_there() {
    let piece = Piece::new(8192);
    for round in 0..4u8 {
        let mut served = Served::table(&piece.table(), &[]);
        let setup = Setup { slots: 32, interrupts: false, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        let mut rng = Rng::with_seed(u64::from(round));
        let mut acknowledged = HashMap::new();
        let mut slots: Vec<Option<u64>> = vec![None; 32];
        let mut next = 0u64;
        let mut asked_to_end = false;
        while !asked_to_end || served.daemon.is_running() {
            while let Some(done) = vmm.complete(0) {
                let at = slots[done.slot].take().expect("in flight");
                if done.status == OK {
                    acknowledged.insert(at % 512, at);
                }
            }
            for slot in 0..32 {
                // One writer for each place at a time, so that the last acknowledged bytes are known.
                let busy = slots.iter().flatten().any(|at| at % 512 == next % 512);
                if slots[slot].is_none() && !busy {
                    let bytes = vec![(next / 512) as u8 + 17 * round; 16 * SECTOR];
                    let request = Request { kind: kind::OUT, sector: (next % 512) * 16, data: Data::ToDevice(&bytes) };
                    vmm.submit(0, slot, &request, &Shape::PLAIN, &mut rng);
                    slots[slot] = Some(next);
                    next += 1;
                }
            }
            vmm.kick(0);
            if !asked_to_end && next > 1000 {
                served.daemon.signal(Signal::TERM);
                asked_to_end = true;
            }
        }
        let status = served.daemon.wait(Duration::from_secs(60));
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{status:?}");
        while let Some(done) = vmm.complete(0) {
            let at = slots[done.slot].take().expect("in flight");
            if done.status == OK {
                acknowledged.insert(at % 512, at);
            }
        }
        let now = piece.now();
        for (place, at) in acknowledged {
            let bytes = &now[place as usize * 16 * SECTOR..][..16 * SECTOR];
            let salt = (at / 512) as u8 + 17 * round;
            // A later write of the same place may have reached the file without being acknowledged.
            let later = slots.iter().flatten().any(|s| s % 512 == place);
            assert!(later || bytes.iter().all(|&b| b == salt), "write {at} is lost");
        }
    }
}

#[test]
fn an_idle_daemon_ends_at_once() {
    let piece = Piece::new(256);
    for connected in [false, true] {
        let mut served = Served::table(&piece.table(), &[]);
        served.daemon.wait_listening(&served.socket);
        let vmm = connected.then(|| served.vmm(&Setup::default()));
        served.daemon.signal(Signal::TERM);
        let status = served.daemon.wait(Duration::from_secs(60));
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{status:?}");
        drop(vmm);
    }
}

#[test]
fn sixteen_queues_are_there_and_one_is_enough() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    assert_eq!(vmm.queue_num, 16);
    exercise(&mut vmm, 1);
    drop(vmm);
    let setup = Setup { queues: 16, queue_size: 64, ..Setup::default() };
    let mut vmm = served.vmm(&setup);
    assert_eq!(vmm.config.num_queues, 16);
    exercise(&mut vmm, 2);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn queue_number_and_size_are_as_asked() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &["--num-queues=4", "--queue-size=1024"]);
    let setup = Setup { queues: 4, queue_size: 1024, ..Setup::default() };
    let mut vmm = served.vmm(&setup);
    assert_eq!(vmm.queue_num, 4);
    assert_eq!(vmm.config.num_queues, 4);
    exercise(&mut vmm, 9);
    drop(vmm);
    served.daemon.stop();
}

/// Takes the region with the rings away and gives it back, as a front end does that changes a region.
fn hide_rings(vmm: &Vmm, meanwhile: impl FnOnce()) {
    let rings = vmm.memory.regions()[0].clone();
    let body = dm_tests::wire::single_region(rings.gpa, rings.size, rings.user_addr, rings.mmap_offset);
    vmm.conn.tell(dm_tests::wire::request::REM_MEM_REG, &body, &[]).expect("REM_MEM_REG");
    meanwhile();
    vmm.conn.tell(dm_tests::wire::request::ADD_MEM_REG, &body, &[rings.fd().as_fd()]).expect("ADD_MEM_REG");
}

#[test]
fn a_ring_that_loses_its_memory_goes_on_when_it_is_back() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for round in 0..10 {
        exercise(&mut vmm, round);
        hide_rings(&vmm, || vmm.sync().expect("round trip"));
    }
    exercise(&mut vmm, 99);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_ring_that_was_stopped_without_its_memory_says_where() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    exercise(&mut vmm, 1);
    let done = vmm.queues[0].ring.used_idx();
    assert!(done > 0);
    let mut base = 0;
    hide_rings(&vmm, || base = vmm.stop_ring(0).expect("GET_VRING_BASE"));
    assert_eq!(base, done, "old requests would be served again");
    vmm.restart_ring(0, base).expect("restart");
    exercise(&mut vmm, 2);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_kick_descriptor_may_go_and_come_back() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    for round in 0..10 {
        exercise(&mut vmm, round);
        let done = vmm.queues[0].ring.used_idx();
        vmm.conn.tell_fd(dm_tests::wire::request::SET_VRING_KICK, 0, None).expect("no kick");
        if round % 2 == 1 {
            vmm.enable(0, false).expect("off");
            vmm.enable(0, true).expect("on");
        }
        let kick = vmm.queues[0].ring.kick_fd();
        vmm.conn.tell_fd(dm_tests::wire::request::SET_VRING_KICK, 0, Some(kick)).expect("a kick");
        vmm.sync().expect("round trip");
        assert_eq!(vmm.queues[0].ring.used_idx(), done, "old requests were served again");
    }
    exercise(&mut vmm, 99);
    drop(vmm);
    served.daemon.stop();
}

/// What a process has read so far, by whatever read(2), in bytes.
fn has_read(served: &Served) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", served.daemon.pid())).expect("the daemon runs");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar");
    line.parse().expect("a number")
}

#[test]
fn a_long_table_is_served_before_its_pieces_are_looked_into() {
    const LINES: usize = 10_000;
    let piece = Piece::new(LINES * 8);
    let line = |n: usize| format!("{} 8 linear {} {}\n", n * 8, piece.name(), (n * 7919 % LINES) * 8);
    let table: String = (0..LINES).map(line).collect();
    let mut served = Served::table(&table, &[]);
    drop(served.daemon.connect(&served.socket));
    let read = has_read(&served);
    assert!(read < 4 << 20, "{read} bytes were read for a table of {}", table.len());
    served.daemon.stop();
    // A short one is looked into, a few times for each line at most.
    let mut served = Served::table(&(0..100).map(line).collect::<String>(), &[]);
    drop(served.daemon.connect(&served.socket));
    let read = has_read(&served);
    assert!((100 * 4096..4 << 20).contains(&read), "{read} bytes were read for 100 pieces of 4 KiB");
    served.daemon.stop();
}
