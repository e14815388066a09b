//! In-flight regions and dirty logs that are wrong, or change while they are used.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dm_tests::memory::memfd;
use dm_tests::rng::{self, Repeat};
use dm_tests::vmm::{Inflight, Setup};
use dm_tests::wire::{self, NEED_REPLY, protocol, request as rq};
use fastrand::Rng;

use crate::Victim;

/// Bytes of a region for one queue of 128 entries.
const ONE: u64 = 2112;

/// A front end sends one message, in which something is wrong.
fn refused(victim: &mut Victim, request: u32, body: &[u8], fds: &[BorrowedFd<'_>], reason: &str) {
    let vmm = victim.vmm(&Setup::default());
    let negotiated = vmm.protocol | protocol::LOG_SHMFD;
    vmm.conn.tell_u64(rq::SET_PROTOCOL_FEATURES, negotiated).expect("negotiate");
    let what = format!("{request} with {} bytes and {} descriptors: {reason}", body.len(), fds.len());
    let before = victim.served.daemon.log().len();
    vmm.conn.send(request, NEED_REPLY, body, fds).unwrap_or_else(|e| panic!("{what}: {e}"));
    let reply = vmm.conn.recv().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((reply.request, reply.u64().expect("an acknowledgement")), (request, 1), "{what}");
    assert!(reply.fds.is_empty(), "{what}");
    assert!(vmm.conn.wait_hangup(), "{what}: the connection goes on");
    drop(vmm);
    victim.assert_well(&what);
    let log = victim.served.daemon.log();
    assert!(log[before..].contains(reason), "{what}: not in the log:\n{log}");
}

fn inflight(size: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    wire::inflight(size, offset, queues, entries).to_vec()
}

#[test]
fn regions_that_cannot_be_end_their_connection_and_no_other() {
    let cases: [(u64, Vec<u8>, &str); 16] = [
        (8192, inflight(0, 0, 1, 128), "0 bytes is too small"),
        (8192, inflight(ONE - 1, 0, 1, 128), "is too small"),
        (8192, inflight(8192, 0, 4, 128), "is too small"),
        (8192, inflight(12288, 0, 1, 128), "ends at byte"),
        (8192, inflight(8192, 4096, 1, 128), "ends at byte"),
        (0, inflight(4096, 0, 1, 128), "ends at byte"),
        (8192, inflight(u64::MAX, 0, 1, 128), "ends at byte"),
        (8192, inflight(4096, u64::MAX - 4095, 1, 128), "ends at byte"),
        (8192, inflight(1 << 63, 1 << 63, 1, 128), "ends at byte"),
        (8192, inflight(4096, 512, 1, 128), "cannot map"),
        (8192, inflight(4096, 0, 0, 128), "cannot be"),
        (8192, inflight(4096, 0, 17, 1), "of which this disk has 16"),
        (8192, inflight(4096, 0, u16::MAX, 1), "of which this disk has 16"),
        (8192, inflight(4096, 0, 1, 0), "cannot be"),
        (8192, inflight(4096, 0, 16, u16::MAX), "cannot be"),
        (8192, inflight(u64::MAX, u64::MAX, u16::MAX, u16::MAX), "of which this disk has 16"),
    ];
    // A few for each daemon, whose log says each reason before it is limited.
    for some in cases.chunks(2) {
        let mut victim = Victim::new(&[]);
        for (len, body, reason) in some {
            let file = memfd(*len).expect("memfd");
            refused(&mut victim, rq::SET_INFLIGHT_FD, body, &[file.as_fd()], reason);
        }
        victim.stop();
    }
}

#[test]
fn messages_about_regions_and_logs_of_a_wrong_shape_are_refused() {
    let good = inflight(4096, 0, 1, 128);
    let log: Vec<u8> = [512u64 << 10, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
    let file = memfd(512 << 10).expect("memfd");
    let fd = file.as_fd();
    let noise = [0xff; 24];
    let cases: [(u32, &[u8], &[BorrowedFd<'_>], &str); 18] = [
        (rq::SET_INFLIGHT_FD, &good, &[], "0 descriptors, expected 1"),
        (rq::SET_INFLIGHT_FD, &good, &[fd, fd], "2 descriptors, expected 1"),
        (rq::SET_INFLIGHT_FD, &good[..19], &[fd], "19 bytes, expected 20 or 24"),
        (rq::SET_INFLIGHT_FD, &good[..21], &[fd], "21 bytes, expected 20 or 24"),
        (rq::SET_INFLIGHT_FD, &[], &[fd], "0 bytes"),
        (rq::SET_INFLIGHT_FD, &noise, &[fd], "of which this disk has 16"),
        (rq::GET_INFLIGHT_FD, &good, &[fd], "1 descriptors, expected 0"),
        (rq::GET_INFLIGHT_FD, &good[..8], &[], "8 bytes, expected 20 or 24"),
        (rq::GET_INFLIGHT_FD, &inflight(0, 0, 0, 128), &[], "cannot be"),
        (rq::GET_INFLIGHT_FD, &inflight(0, 0, 17, 128), &[], "of which this disk has 16"),
        (rq::GET_INFLIGHT_FD, &inflight(0, 0, 1, 0), &[], "cannot be"),
        (rq::GET_INFLIGHT_FD, &inflight(0, 0, 1, u16::MAX), &[], "cannot be"),
        (rq::SET_LOG_BASE, &log, &[], "0 descriptors, expected 1"),
        (rq::SET_LOG_BASE, &log, &[fd, fd], "2 descriptors, expected 1"),
        (rq::SET_LOG_BASE, &log[..8], &[fd], "8 bytes, expected 16"),
        (rq::SET_LOG_BASE, &[0; 16], &[fd], "SET_LOG_BASE"),
        (rq::SET_LOG_BASE, &noise[..16], &[fd], "SET_LOG_BASE"),
        (rq::SET_LOG_FD, &[], &[fd, fd], "2 descriptors, expected 1"),
    ];
    for some in cases.chunks(2) {
        let mut victim = Victim::new(&[]);
        for (request, body, fds, reason) in some {
            refused(&mut victim, *request, body, fds, reason);
        }
        victim.stop();
    }
}

#[test]
fn a_ring_that_is_too_large_is_refused_with_the_flag_that_allows_it() {
    for size in [0, 512, 1024, u32::MAX] {
        let mut victim = Victim::new(&["--queue-size=256"]);
        let reason = format!("a ring of {size} entries, and this disk has 1 to 256 (--queue-size)");
        refused(&mut victim, rq::SET_VRING_NUM, &wire::state(0, size), &[], &reason);
        victim.stop();
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let mut victim = Victim::new(&[]);
    let file = memfd(8192).expect("memfd");
    let area = inflight(4096, 0, 1, 128);
    for (request, body) in
        [(rq::GET_INFLIGHT_FD, &area[..]), (rq::SET_INFLIGHT_FD, &area), (rq::SET_LOG_BASE, &[0; 16])]
    {
        let vmm = victim.vmm(&Setup { inflight: false, ..Setup::default() });
        let fds = [file.as_fd()];
        let fds = if request == rq::GET_INFLIGHT_FD { &fds[..0] } else { &fds };
        vmm.conn.send(request, 0, body, fds).expect("send");
        assert!(vmm.conn.wait_hangup(), "{request}");
        drop(vmm);
        victim.assert_well("a message that was not negotiated");
    }
    let log = victim.served.daemon.log();
    assert!(log.contains("GET_INFLIGHT_FD (31) without") && log.contains("INFLIGHT_SHMFD"), "{log}");
    victim.stop();
}

/// Random numbers in messages that the interposer answers, from a front end that has negotiated everything.
#[test]
fn random_regions_and_logs_are_survived() {
    let mut victim = Victim::new(&[]);
    for seed in rng::seeds(500, 150) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let vmm = victim.vmm(&Setup::default());
        let _ = vmm.conn.tell_u64(rq::SET_PROTOCOL_FEATURES, vmm.protocol | protocol::LOG_SHMFD);
        for _ in 0..8 {
            let file = memfd(rng.u64(..4) * 4096 * rng.u64(..4)).expect("memfd");
            let odd = [rng.u64(..), 1 << rng.u64(..64), u64::MAX, 4096 * rng.u64(..8), rng.u64(..4096)];
            let mut number = || odd[rng.usize(..odd.len())];
            let (size, offset, queues, entries) = (number(), number(), number() as u16 % 20, number() as u16);
            let request = [rq::GET_INFLIGHT_FD, rq::SET_INFLIGHT_FD, rq::SET_LOG_BASE, rq::SET_LOG_FD][rng.usize(..4)];
            let mut body = inflight(size, offset, queues, entries);
            match rng.u8(..8) {
                0 => body.truncate(rng.usize(..24)),
                _ if request == rq::SET_LOG_BASE => body.truncate(16),
                _ => {}
            }
            let fds = vec![file.as_fd(); [0, 1, 1, 1, 2, 33][rng.usize(..6)]];
            let flags = if rng.bool() { NEED_REPLY } else { 0 };
            if vmm.conn.send(request, flags, &body, &fds).is_err() {
                break;
            }
        }
        drop(vmm);
        if seed % 10 == 9 {
            victim.assert_well(&format!("random regions {seed}"));
        }
    }
    victim.assert_well("random regions");
    victim.stop();
}

/// A region of the front end's own file, with whatever it writes there.
fn region_of(file: OwnedFd, size: u64) -> Inflight {
    Inflight { size, offset: 0, queues: 1, queue_size: 128, fd: file }
}

#[test]
fn a_region_full_of_noise_is_survived() {
    let mut victim = Victim::new(&[]);
    for seed in rng::seeds(900, 60) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let mut vmm = victim.vmm(&Setup::default());
        let region = region_of(memfd(4096).expect("memfd"), 4096);
        let map = region.map().expect("map");
        let mut noise = rng::bytes(&mut rng, 4096);
        if rng.bool() {
            // The right version and number of entries, so that it is looked into.
            noise[8..12].copy_from_slice(&[1, 0, 128, 0]);
        }
        map.write(0, &noise);
        vmm.inflight = Some(region);
        let stream = victim.served.daemon.connect(&victim.served.socket);
        // What it makes of the rings is this front end's business.
        let _ = vmm.reconnect(stream);
        for _ in 0..20 {
            vmm.queues[0].ring.push_head(rng.u16(..140));
            vmm.queues[0].ring.publish();
            vmm.queues[0].ring.kick();
            map.write(rng.usize(..4096 - 64), &rng::bytes(&mut rng, 64));
            let _ = vmm.sync();
        }
        let _ = vmm.stop_ring(0);
        drop(vmm);
        if seed % 10 == 9 {
            victim.assert_well("noise in the region");
        }
    }
    victim.assert_well("noise in the region");
    victim.stop();
}

#[test]
fn a_region_whose_file_shrinks_is_survived() {
    let mut victim = Victim::new(&[]);
    let mut vmm = victim.vmm(&Setup::default());
    let region = region_of(memfd(4096).expect("memfd"), 4096);
    vmm.set_inflight(&region).expect("SET_INFLIGHT_FD");
    vmm.read(0, 0, 512).expect("read");
    rustix::fs::ftruncate(&region.fd, 0).expect("truncate");
    for _ in 0..20 {
        vmm.queues[0].ring.push_head(0);
        vmm.queues[0].ring.publish();
        vmm.queues[0].ring.kick();
        let _ = vmm.sync();
    }
    let _ = vmm.stop_ring(0);
    drop(vmm);
    victim.assert_well("a region cut short");
    victim.stop();
}
