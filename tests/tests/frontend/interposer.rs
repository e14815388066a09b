//! What stands between a front end and the protocol's daemon: messages it answers itself, and all others as if it were
//! not there.

use std::ffi::OsString;
use std::fs;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, OK, Request, Shape, feature, kind};
use dm_tests::daemon::{Daemon, Served};
use dm_tests::memory::memfd;
use dm_tests::vmm::{Order, Setup, Vmm};
use dm_tests::wire::{self, Connection, NEED_REPLY, REPLY, VERSION, protocol, request as rq};
use fastrand::Rng;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::{Piece, SECTOR, pattern};

/// Header and entries of one queue's part, as the protocol lays them out.
fn stride(entries: u64) -> u64 {
    (16 + 16 * entries).next_multiple_of(64)
}

#[test]
fn an_in_flight_region_is_handed_out_and_taken_back() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for order in [Order::Qemu, Order::CloudHypervisor] {
        let setup = Setup { order, queues: 3, ..Setup::default() };
        let mut vmm = served.vmm(&setup);
        let region = vmm.inflight.as_ref().expect("offered and asked for");
        assert_eq!((region.offset, region.queues, region.queue_size), (0, 3, 128));
        // Room for the largest ring that the back end offers: a front end may set up larger ones than it says. And a note.
        assert_eq!(region.size, 3 * stride(1024) + 64);
        let part = stride(1024) as usize;
        let map = region.map().expect("map the region");
        for round in 0..3u8 {
            for queue in 0..3 {
                vmm.write(queue, 8, &pattern(4, round)).expect("write");
                assert_eq!(
                    (map.load_u16(queue * part + 8), map.load_u16(queue * part + 10)),
                    (1, 128),
                    "version, entries"
                );
            }
            let stream = served.daemon.connect(&served.socket);
            vmm.reconnect(stream).expect("come back");
            for queue in 0..3 {
                assert!(vmm.read(queue, 8, 4 * SECTOR) == Ok(pattern(4, round)));
            }
        }
        // Quiet: what the record says of each queue is what its ring says.
        for index in 0..3 {
            let used = vmm.stop_ring(index).expect("stop");
            assert_eq!(map.load_u16(usize::from(index) * part + 14), used);
        }
    }
    served.daemon.stop();
}

#[test]
fn a_front_end_without_padding_in_its_messages_gets_none() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let vmm = served.vmm(&Setup { inflight: false, ..Setup::default() });
    assert!(vmm.inflight.is_none());
    vmm.conn.tell_u64(rq::SET_PROTOCOL_FEATURES, vmm.protocol | protocol::INFLIGHT_SHMFD).expect("negotiate");
    let body = wire::inflight(0, 0, 2, 64);
    for len in [20, 24] {
        let reply = vmm.conn.ask(rq::GET_INFLIGHT_FD, &body[..len], &[]).expect("GET_INFLIGHT_FD");
        assert_eq!((reply.flags, reply.body.len(), reply.fds.len()), (VERSION | REPLY, len, 1));
        let mut given = wire::inflight(2 * stride(1024) + 64, 0, 2, 64)[..len].to_vec();
        assert_eq!(reply.body, given);
        // Without acknowledgement where none is asked for: the next reply is the next message's.
        vmm.conn.send(rq::SET_INFLIGHT_FD, 0, &reply.body, &[reply.fds[0].as_fd()]).expect("send");
        vmm.sync().expect("the next message's reply");
        given.truncate(20);
        vmm.conn.tell(rq::SET_INFLIGHT_FD, &given, &[reply.fds[0].as_fd()]).expect("SET_INFLIGHT_FD");
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_region_may_come_while_rings_are_served() {
    let piece = Piece::new(4096);
    let mut served = Served::table(&piece.table(), &[]);
    let setup = Setup { slots: 32, interrupts: false, ..Setup::default() };
    let mut vmm = served.vmm(&setup);
    let mut rng = Rng::with_seed(5);
    let bytes = pattern(64, 7);
    for _ in 0..50 {
        for slot in 0..32 {
            let request = Request { kind: kind::OUT, sector: 64 * slot as u64, data: Data::ToDevice(&bytes) };
            vmm.submit(0, slot, &request, &Shape::PLAIN, &mut rng);
        }
        vmm.kick(0);
        let region = vmm.get_inflight().expect("GET_INFLIGHT_FD");
        vmm.set_inflight(&region).expect("SET_INFLIGHT_FD");
        for _ in 0..32 {
            assert_eq!(vmm.wait(0).status, OK);
        }
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_dirty_log_is_taken_and_its_descriptor_let_go() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut vmm = served.vmm(&Setup::default());
    vmm.conn.tell_u64(rq::SET_PROTOCOL_FEATURES, vmm.protocol | protocol::LOG_SHMFD).expect("negotiate");
    // A bit for each page up to 16 GiB.
    let log = memfd(512 << 10).expect("memfd");
    let body: Vec<u8> = [512u64 << 10, 0].iter().flat_map(|field| field.to_le_bytes()).collect();
    let reply = vmm.conn.ask(rq::SET_LOG_BASE, &body, &[log.as_fd()]).expect("SET_LOG_BASE");
    assert_eq!(reply.body, body);
    let event = memfd(0).expect("memfd");
    vmm.conn.tell(rq::SET_LOG_FD, &[], &[event.as_fd()]).expect("SET_LOG_FD");
    assert_ne!(vmm.offered & feature::LOG_ALL, 0);
    let marked = |at: usize| {
        let mut byte = [0];
        rustix::io::pread(&log, &mut byte, at as u64).expect("read the log");
        byte[0]
    };
    assert_eq!(marked(0), 0);
    vmm.conn.tell_u64(rq::SET_FEATURES, vmm.features | feature::LOG_ALL).expect("log");
    assert!(vmm.read(0, 0, SECTOR).as_deref() == Ok(&piece.bytes[..SECTOR]));
    // The arena of the only request begins at 1 MiB: page 256, byte 32.
    assert_ne!(marked(32), 0, "what was written is not marked");
    drop(vmm);
    served.daemon.stop();
}

/// Messages of both kinds, all sent before a reply is read.
fn pipeline(conn: &Connection) -> Vec<u32> {
    let protocol = protocol::REPLY_ACK | protocol::INFLIGHT_SHMFD | protocol::MQ;
    conn.send(rq::GET_FEATURES, 0, &[], &[]).expect("send");
    conn.send(rq::SET_PROTOCOL_FEATURES, 0, &protocol.to_le_bytes(), &[]).expect("send");
    let mut expected = vec![rq::GET_FEATURES];
    let mut send = |request: u32, flags: u32, body: &[u8]| {
        conn.send(request, flags, body, &[]).expect("send");
        expected.push(request);
    };
    for n in 0..10 {
        send(rq::GET_FEATURES, 0, &[]);
        send(rq::SET_VRING_NUM, NEED_REPLY, &wire::state(n, 64));
        send(rq::GET_FEATURES, 0, &[]);
        send(rq::GET_INFLIGHT_FD, 0, &wire::inflight(0, 0, 1, 128));
        send(rq::GET_QUEUE_NUM, 0, &[]);
        send(rq::SET_LOG_FD, NEED_REPLY, &[]);
        send(rq::GET_FEATURES, NEED_REPLY, &[]);
        send(rq::GET_INFLIGHT_FD, NEED_REPLY, &wire::inflight(0, 0, 2, 256));
    }
    expected
}

#[test]
fn replies_come_in_the_order_of_the_requests_whoever_answers() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    for hang_up in [false, true] {
        let conn = Connection::new(served.daemon.connect(&served.socket)).expect("a connection");
        let expected = pipeline(&conn);
        if hang_up {
            // Nothing more is sent; what was is answered.
            conn.stream().shutdown(Shutdown::Write).expect("shutdown");
        }
        for (n, request) in expected.into_iter().enumerate() {
            let reply = conn.recv().unwrap_or_else(|e| panic!("reply {n}, to {request}: {e}"));
            assert_eq!((reply.request, reply.flags), (request, VERSION | REPLY), "reply {n}");
            assert_eq!(reply.fds.len(), usize::from(request == rq::GET_INFLIGHT_FD), "reply {n}");
        }
        if hang_up {
            assert!(conn.wait_hangup());
        } else {
            conn.ask_u64(rq::GET_FEATURES).expect("it goes on");
        }
    }
    served.daemon.stop();
}

#[test]
fn more_messages_than_the_sockets_hold_are_answered() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let stream = served.daemon.connect(&served.socket);
    let conn = Connection::new(stream.try_clone().expect("duplicate")).expect("a connection");
    const MESSAGES: usize = 20_000;
    // As fast as they are taken, while another thread waits a moment before it reads.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = Connection::new(stream).expect("a connection");
            for n in 0..MESSAGES {
                let request = if n % 100 == 99 { rq::SET_LOG_FD } else { rq::GET_FEATURES };
                sender.send(request, 0, &[], &[]).expect("send");
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..MESSAGES - MESSAGES / 100 {
            assert_eq!(conn.recv().expect("a reply").request, rq::GET_FEATURES);
        }
    });
    conn.ask_u64(rq::GET_FEATURES).expect("it goes on");
    drop(conn);
    served.daemon.stop();
}

#[test]
fn a_second_front_end_waits_for_the_first() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut first = served.vmm(&Setup::default());
    let waiting: Vec<UnixStream> = (0..3).map(|_| served.daemon.connect(&served.socket)).collect();
    for stream in &waiting {
        // Its first question is there already.
        let conn = Connection::new(stream.try_clone().expect("duplicate")).expect("a connection");
        conn.send(rq::GET_FEATURES, 0, &[], &[]).expect("send");
    }
    first.write(0, 8, &pattern(4, 9)).expect("the first is served");
    drop(first);
    for stream in waiting {
        let conn = Connection::new(stream).expect("a connection");
        assert_eq!(conn.recv().expect("its turn").request, rq::GET_FEATURES);
        let mut vmm = Vmm::over(conn.stream().try_clone().expect("duplicate"), &Setup::default()).expect("set up");
        assert!(vmm.read(0, 8, 4 * SECTOR) == Ok(pattern(4, 9)));
    }
    served.daemon.stop();
}

/// Lets the daemon open descriptors below that number; `None`: as many as it may.
fn limit_descriptors(daemon: &Daemon, current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let pid = Pid::from_raw(daemon.pid() as i32).expect("a process");
    let limit = Rlimit { current: current.or(maximum), maximum };
    prlimit(Some(pid), Resource::Nofile, limit).expect("prlimit");
}

#[test]
fn a_front_end_waits_until_there_are_descriptors_for_it() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    let mut conn = Connection::new(served.daemon.connect(&served.socket)).expect("a connection");
    conn.ask_u64(rq::GET_FEATURES).expect("served");
    let names = fs::read_dir(format!("/proc/{}/fd", served.daemon.pid())).expect("list descriptors");
    let number = |name: OsString| name.to_string_lossy().parse::<u64>().expect("a number");
    let open: Vec<u64> = names.map(|entry| number(entry.expect("a descriptor").file_name())).collect();
    let free = (0..).find(|number| !open.contains(number)).expect("there are many");
    // Enough for the next one, or not even for taking its connection, or anything between the two.
    let troubles = ["cannot take a connection", "cannot serve a front end"];
    let deadline = Instant::now() + Duration::from_secs(60);
    for (round, below) in (free - 8..=free + 2).cycle().enumerate() {
        let log = served.daemon.log();
        if round > 10 && troubles.iter().all(|trouble| log.contains(trouble)) {
            break;
        }
        assert!(Instant::now() < deadline, "it never was so that it {troubles:?}: {log}");
        limit_descriptors(&served.daemon, Some(below));
        let next = Connection::new(served.daemon.connect(&served.socket)).expect("a connection");
        drop(conn);
        std::thread::sleep(Duration::from_millis(30));
        limit_descriptors(&served.daemon, None);
        next.ask_u64(rq::GET_FEATURES).unwrap_or_else(|e| panic!("with descriptors below {below} at first: {e}"));
        conn = next;
    }
    drop(conn);
    served.vmm(&Setup::default()).read(0, 0, SECTOR).expect("read");
    served.daemon.stop();
}
