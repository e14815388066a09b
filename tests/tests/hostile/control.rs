//! Messages that are garbage, cut short, wrong, or come at the wrong time.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use dm_tests::memory::memfd;
use dm_tests::rng::{self, Repeat};
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::{self, Connection, NEED_REPLY, VERSION, request as rq};
use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};

use crate::{PATIENCE, Victim};

#[test]
fn garbage_ends_a_connection_and_nothing_else() {
    let mut victim = Victim::new(&[]);
    for seed in rng::seeds(1, 60) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let len = rng.usize(1..3000);
        let conn = victim.connect();
        // The other end may be gone before all of it is sent.
        let _ = conn.send_raw(&rng::bytes(&mut rng, len), &[]);
        drop(conn);
    }
    victim.assert_well("garbage");
    victim.stop();
}

#[test]
fn messages_cut_short_or_with_a_wrong_size_end_a_connection() {
    let mut victim = Victim::new(&[]);
    let good = wire::message(rq::SET_VRING_NUM, VERSION, &wire::state(0, 64));
    for len in 1..good.len() {
        let conn = victim.connect();
        conn.send_raw(&good[..len], &[]).expect("send");
        drop(conn);
    }
    victim.assert_well("half messages");
    for size in [0, 1, 7, 9, 4096, 0x10000, u32::MAX] {
        for request in 0..44u32 {
            let mut bytes = wire::message(request, VERSION | NEED_REPLY, &[0xff; 8]);
            bytes[8..12].copy_from_slice(&size.to_le_bytes());
            let _ = victim.connect().send_raw(&bytes, &[]);
        }
        victim.assert_well(&format!("size {size}"));
    }
    victim.stop();
}

#[test]
fn wrong_headers_and_unknown_requests_are_survived() {
    let mut victim = Victim::new(&[]);
    for flags in [0, 2, 3, VERSION | wire::REPLY, VERSION | 0xffff_fff0, u32::MAX] {
        let conn = victim.connect();
        let _ = conn.send_raw(&wire::message(rq::GET_FEATURES, flags, &[]), &[]);
    }
    victim.assert_well("wrong flags");
    for request in [0, 26, 33, 35, 41, 44, 1000, 1 << 31, u32::MAX] {
        let conn = victim.connect();
        let _ = conn.send(request, NEED_REPLY, &[0; 8], &[]);
    }
    victim.assert_well("unknown requests");
    victim.stop();
}

/// Descriptors of many kinds, hardly any of which fits where it is sent.
fn odd_descriptors() -> Vec<OwnedFd> {
    let (a, b) = UnixStream::pair().expect("a socket pair");
    let null = File::open("/dev/null").expect("open");
    let zero = File::open("/dev/zero").expect("open");
    let dir = File::open("/").expect("open");
    let exe = File::open("/proc/self/exe").expect("open");
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    drop(b);
    vec![
        null.into(),
        zero.into(),
        dir.into(),
        exe.into(),
        event,
        a.into(),
        memfd(4096).expect("memfd"),
        memfd(0).expect("memfd"),
    ]
}

#[test]
fn random_messages_with_random_descriptors_are_survived() {
    let mut victim = Victim::new(&[]);
    let fds = odd_descriptors();
    for seed in rng::seeds(100, 120) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        // Half of them from a state in which rings run.
        let vmm;
        let fresh;
        let conn = if rng.bool() {
            vmm = victim.vmm(&Setup::default());
            &vmm.conn
        } else {
            fresh = victim.connect();
            &fresh
        };
        for _ in 0..12 {
            let request = rng.u32(1..=40);
            let body = random_body(&mut rng, request);
            let count = [0, 0, 1, 1, 2, 9][rng.usize(..6)];
            let some: Vec<BorrowedFd<'_>> = (0..count).map(|_| fds[rng.usize(..fds.len())].as_fd()).collect();
            let flags = if rng.bool() { NEED_REPLY } else { 0 };
            if conn.send(request, flags, &body, &some).is_err() {
                break;
            }
        }
        if seed % 10 == 9 {
            victim.assert_well(&format!("random messages {seed}"));
        }
    }
    victim.assert_well("random messages");
    victim.stop();
}

/// A payload of the right size more often than not, of small numbers, huge ones and noise.
fn random_body(rng: &mut Rng, request: u32) -> Vec<u8> {
    let right = match request {
        rq::SET_MEM_TABLE => 8 + 32 * rng.usize(0..10),
        rq::ADD_MEM_REG | rq::REM_MEM_REG | rq::SET_VRING_ADDR => 40,
        rq::GET_CONFIG | rq::SET_CONFIG => 12 + rng.usize(0..70),
        rq::GET_INFLIGHT_FD | rq::SET_INFLIGHT_FD => 20,
        rq::SET_LOG_BASE => 16,
        rq::GET_FEATURES | rq::GET_PROTOCOL_FEATURES | rq::GET_QUEUE_NUM | rq::SET_OWNER => 0,
        _ => 8,
    };
    let len = if rng.u8(..8) == 0 { rng.usize(..400) } else { right };
    let mut body = vec![0; len];
    for word in body.chunks_mut(4) {
        let value = match rng.u8(..5) {
            0 => rng.u32(..),
            1 => u32::MAX,
            2 => 1 << rng.u32(..32),
            _ => rng.u32(..4),
        };
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    body
}

/// Sends one message with NEED_REPLY and waits until it was handled, however that ends.
fn tell(conn: &Connection, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    if conn.send(request, NEED_REPLY, body, fds).is_err() {
        return false;
    }
    conn.recv().is_ok_and(|reply| reply.request == request && reply.u64().is_ok_and(|code| code == 0))
}

#[test]
fn regions_that_do_not_fit_their_file_are_refused() {
    let mut victim = Victim::new(&[]);
    let file = memfd(1 << 20).expect("memfd");
    let gpa = 16 << 30;
    let cases = [
        ("larger than its file", (gpa, 64 << 20, 0x6000_0000_0000, 0)),
        ("one page larger", (gpa, (1 << 20) + 4096, 0x6000_0000_0000, 0)),
        ("past the end of its file", (gpa, 1 << 20, 0x6000_0000_0000, 1 << 20)),
        ("offset near 2^64", (gpa, 1 << 20, 0x6000_0000_0000, u64::MAX - 4095)),
        ("offset and size wrap", (gpa, 1 << 63, 0x6000_0000_0000, 1 << 63)),
        ("no bytes", (gpa, 0, 0x6000_0000_0000, 0)),
        ("2^64 - 1 bytes", (gpa, u64::MAX, 0x6000_0000_0000, 0)),
        ("guest address wraps", (u64::MAX - 4095, 1 << 20, 0x6000_0000_0000, 0)),
        ("over another region", (1 << 20, 1 << 20, 0x6000_0000_0000, 0)),
    ];
    for (what, (gpa, size, user, offset)) in cases {
        let vmm = victim.vmm(&Setup::default());
        let body = wire::single_region(gpa, size, user, offset);
        let taken = tell(&vmm.conn, rq::ADD_MEM_REG, &body, &[file.as_fd()]);
        assert!(!taken, "a region {what} was accepted");
        drop(vmm);
        let conn = victim.connect();
        let mut table = 1u64.to_le_bytes().to_vec();
        table.extend(wire::memory_region(gpa, size, user, offset));
        tell(&conn, rq::SET_MEM_TABLE, &table, &[file.as_fd()]);
        drop(conn);
        victim.assert_well(what);
    }
    victim.stop();
}

#[test]
fn a_ring_in_memory_that_its_file_does_not_have_kills_nobody() {
    let mut victim = Victim::new(&[]);
    let setup = Setup { queues: 1, ..Setup::default() };
    let vmm = victim.vmm(&setup);
    let file = memfd(4096).expect("memfd");
    let user = 0x6000_0000_0000;
    let mut table = 1u64.to_le_bytes().to_vec();
    table.extend(wire::memory_region(0, 1 << 20, user, 0));
    tell(&vmm.conn, rq::SET_MEM_TABLE, &table, &[file.as_fd()]);
    let ring = wire::vring_addr(0, user + 0x8000, user + 0x9000, user + 0xa000);
    tell(&vmm.conn, rq::SET_VRING_ADDR, &ring, &[]);
    tell(&vmm.conn, rq::SET_VRING_ENABLE, &wire::state(0, 1), &[]);
    dm_tests::ring::signal(vmm.queues[0].ring.kick_fd());
    tell(&vmm.conn, rq::GET_VRING_BASE, &wire::state(0, 0), &[]);
    drop(vmm);
    victim.assert_well("a ring beyond the end of a memory file");
    victim.stop();
}

#[test]
fn regions_with_wrong_descriptors_are_refused() {
    let mut victim = Victim::new(&[]);
    for (number, fd) in odd_descriptors().iter().enumerate() {
        let vmm = victim.vmm(&Setup::default());
        let body = wire::single_region(16 << 30, 1 << 20, 0x6000_0000_0000, 0);
        let taken = tell(&vmm.conn, rq::ADD_MEM_REG, &body, &[fd.as_fd()]);
        assert!(!taken, "descriptor {number} was accepted as memory");
        drop(vmm);
    }
    victim.assert_well("wrong descriptors");
    let file = memfd(1 << 20).expect("memfd");
    let body = wire::single_region(16 << 30, 1 << 20, 0x6000_0000_0000, 0);
    for count in [0, 2, 8, 40] {
        let vmm = victim.vmm(&Setup::default());
        tell(&vmm.conn, rq::ADD_MEM_REG, &body, &vec![file.as_fd(); count]);
        drop(vmm);
        let conn = victim.connect();
        let mut table = 3u64.to_le_bytes().to_vec();
        for n in 0..3 {
            table.extend(wire::memory_region(n << 30, 1 << 20, n << 40, 0));
        }
        tell(&conn, rq::SET_MEM_TABLE, &table, &vec![file.as_fd(); count]);
        drop(conn);
        victim.assert_well(&format!("{count} descriptors"));
    }
    victim.stop();
}

#[test]
fn more_regions_than_there_are_slots_are_refused() {
    let mut victim = Victim::new(&[]);
    let vmm = victim.vmm(&Setup::default());
    let file = memfd(4096).expect("memfd");
    for n in 0..700u64 {
        let body = wire::single_region((16 << 30) + n * 8192, 4096, (1 << 44) + n * 8192, 0);
        if !tell(&vmm.conn, rq::ADD_MEM_REG, &body, &[file.as_fd()]) {
            break;
        }
    }
    drop(vmm);
    victim.assert_well("700 regions");
    victim.stop();
}

#[test]
fn rings_of_impossible_size_place_or_number_are_refused() {
    let mut victim = Victim::new(&["--queue-size=256"]);
    for size in [0, 3, 100, 512, 2048, 32768, 65535, 65536, u32::MAX] {
        let mut vmm = victim.vmm(&Setup::default());
        vmm.stop_ring(0).expect("stop");
        let taken = tell(&vmm.conn, rq::SET_VRING_NUM, &wire::state(0, size), &[]);
        let kick = eventfd(1, EventfdFlags::CLOEXEC).expect("eventfd");
        let zero = 0u64.to_le_bytes();
        tell(&vmm.conn, rq::SET_VRING_KICK, &zero, &[kick.as_fd()]);
        use_ring(&mut vmm);
        // Refused at once or when it would start: in no case served.
        let used = vmm.queues[0].ring.used_idx();
        assert_eq!(used, 0, "a ring of {size} descriptors (taken: {taken}) was served");
        drop(vmm);
        victim.assert_well(&format!("ring size {size}"));
    }
    for index in [16, 17, 200, 255, 256, 65536, u32::MAX] {
        let messages = [
            (rq::SET_VRING_NUM, wire::state(index, 64).to_vec()),
            (rq::SET_VRING_BASE, wire::state(index, 0).to_vec()),
            (rq::SET_VRING_ADDR, wire::vring_addr(index, 0, 4096, 8192)),
            (rq::SET_VRING_ENABLE, wire::state(index, 1).to_vec()),
            (rq::GET_VRING_BASE, wire::state(index, 0).to_vec()),
        ];
        for (request, body) in messages {
            let vmm = victim.vmm(&Setup::default());
            assert!(!tell(&vmm.conn, request, &body, &[]), "{request} on {index}");
        }
        let event = memfd(4096).expect("memfd");
        for request in [rq::SET_VRING_KICK, rq::SET_VRING_CALL, rq::SET_VRING_ERR] {
            let vmm = victim.vmm(&Setup::default());
            let wide = (u64::from(index) | 1 << 40).to_le_bytes();
            tell(&vmm.conn, request, &wide, &[event.as_fd()]);
        }
        victim.assert_well(&format!("queue {index}"));
    }
    victim.stop();
}

/// Submits a request on ring 0, whatever state that is in, and stops the ring.
fn use_ring(vmm: &mut Vmm) {
    let ring = &mut vmm.queues[0].ring;
    ring.push_head(0);
    ring.publish();
    ring.kick();
    tell(&vmm.conn, rq::SET_VRING_ENABLE, &wire::state(0, 1), &[]);
    tell(&vmm.conn, rq::GET_VRING_BASE, &wire::state(0, 0), &[]);
}

#[test]
fn rings_outside_of_memory_or_misaligned_are_survived() {
    let mut victim = Victim::new(&[]);
    let places = [
        (0x10, 0x4002, 0x8004, true),
        (0x11, 0x4002, 0x8004, false),
        (0x10, 0x4001, 0x8004, false),
        (0x10, 0x4002, 0x8005, false),
        (0x10, 0x4002, 0x8006, false),
        (0, 0, 0, true),
        (0x7fff_0000_0000, 0x4002, 0x8004, false),
        (0x10, 0x7fff_0000_0000, 0x8004, false),
        (0x10, 0x4002, 0x7fff_0000_0000, false),
        (u64::MAX - 15, u64::MAX - 15, u64::MAX - 15, false),
        // The last bytes of the first region: the ring does not fit behind them.
        (0x7ff0, 0x4002, 0x8004, false),
    ];
    for (desc, avail, used, inside) in places {
        let mut vmm = victim.vmm(&Setup::default());
        vmm.stop_ring(0).expect("stop");
        let base = vmm.memory.user_addr(0);
        let at = |offset: u64| if offset < 0x7fff_0000_0000 { base + offset } else { offset };
        let body = wire::vring_addr(0, at(desc), at(used), at(avail));
        let taken = tell(&vmm.conn, rq::SET_VRING_ADDR, &body, &[]);
        let kick = eventfd(1, EventfdFlags::CLOEXEC).expect("eventfd");
        tell(&vmm.conn, rq::SET_VRING_KICK, &0u64.to_le_bytes(), &[kick.as_fd()]);
        use_ring(&mut vmm);
        drop(vmm);
        victim.assert_well(&format!("ring at {desc:#x} {avail:#x} {used:#x}, taken: {taken}"));
        assert!(!taken || inside || desc == 0x7ff0, "a ring at {desc:#x} {avail:#x} {used:#x}");
    }
    victim.stop();
}

#[test]
fn messages_in_the_wrong_order_are_survived() {
    let mut victim = Victim::new(&[]);
    let event = || eventfd(1, EventfdFlags::CLOEXEC).expect("eventfd");
    let orders: [&[u32]; 7] = [
        &[rq::SET_VRING_KICK, rq::SET_VRING_ENABLE],
        &[rq::SET_FEATURES, rq::SET_VRING_KICK, rq::SET_VRING_ENABLE],
        &[rq::SET_VRING_ENABLE, rq::SET_VRING_KICK, rq::GET_VRING_BASE],
        &[rq::GET_VRING_BASE, rq::GET_VRING_BASE],
        &[rq::SET_VRING_CALL, rq::SET_VRING_ERR, rq::SET_VRING_KICK, rq::RESET_DEVICE],
        &[rq::SET_VRING_NUM, rq::SET_VRING_BASE, rq::SET_VRING_KICK, rq::GET_VRING_BASE],
        &[rq::RESET_OWNER, rq::SET_OWNER, rq::SET_OWNER, rq::SET_FEATURES],
    ];
    for order in orders {
        let conn = victim.connect();
        for &request in order {
            let fd = event();
            let (body, fds) = match request {
                rq::SET_VRING_KICK | rq::SET_VRING_CALL | rq::SET_VRING_ERR => {
                    (0u64.to_le_bytes().to_vec(), vec![fd.as_fd()])
                }
                rq::SET_FEATURES => ((1u64 << 30 | 1 << 32).to_le_bytes().to_vec(), vec![]),
                rq::RESET_OWNER | rq::SET_OWNER | rq::RESET_DEVICE => (vec![], vec![]),
                _ => (wire::state(0, 1).to_vec(), vec![]),
            };
            let _ = conn.send(request, 0, &body, &fds);
        }
        let _ = conn.ask_u64(rq::GET_FEATURES);
        drop(conn);
        victim.assert_well(&format!("{order:?}"));
    }
    victim.stop();
}

#[test]
fn kick_and_call_descriptors_of_any_kind_are_survived() {
    let mut victim = Victim::new(&[]);
    for (number, fd) in odd_descriptors().iter().enumerate() {
        for request in [rq::SET_VRING_KICK, rq::SET_VRING_CALL, rq::SET_VRING_ERR] {
            let mut vmm = victim.vmm(&Setup::default());
            tell(&vmm.conn, request, &0u64.to_le_bytes(), &[fd.as_fd()]);
            let ring = &mut vmm.queues[0].ring;
            ring.push_head(0);
            ring.publish_and_kick();
            tell(&vmm.conn, rq::SET_VRING_ENABLE, &wire::state(0, 1), &[]);
            tell(&vmm.conn, rq::GET_VRING_BASE, &wire::state(0, 0), &[]);
        }
        victim.assert_well(&format!("descriptor {number} as kick, call, err"));
    }
    victim.stop();
}

#[test]
fn configuration_out_of_range_is_survived() {
    let mut victim = Victim::new(&[]);
    let cases = [(0, 0), (0, 4096), (0, u32::MAX), (59, 8), (60, 60), (256, 4), (u32::MAX, 4), (u32::MAX, u32::MAX)];
    for (offset, size) in cases {
        for request in [rq::GET_CONFIG, rq::SET_CONFIG] {
            let vmm = victim.vmm(&Setup::default());
            let body = wire::config(offset, size, 0, &vec![0xff; (size as usize).min(4096)]);
            tell(&vmm.conn, request, &body, &[]);
            drop(vmm);
        }
        victim.assert_well(&format!("config {offset}+{size}"));
    }
    let vmm = victim.vmm(&Setup::default());
    let _ = vmm.set_config(0, &[0xff; 8]);
    drop(vmm);
    let vmm = victim.vmm(&Setup::default());
    assert_eq!(vmm.config.capacity, crate::SECTORS, "a driver changed the capacity");
    drop(vmm);
    victim.assert_well("writing the capacity");
    victim.stop();
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut victim = Victim::new(&[]);
    victim.assert_well("the start");
    let fd_dir = format!("/proc/{}/fd", victim.served.daemon.pid());
    let count = || std::fs::read_dir(&fd_dir).expect("list descriptors").count();
    let before = count();
    for _ in 0..300 {
        drop(victim.connect());
    }
    for _ in 0..30 {
        victim.assert_well("many connections");
    }
    // The last front end's session may still be on its way out.
    let deadline = std::time::Instant::now() + PATIENCE;
    while count() > before && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(count() <= before, "{before} descriptors became {}", count());
    let lines = victim.log_lines();
    assert!(lines < 200, "{lines} lines of log");
    victim.stop();
}
