//! The tools of this crate: the front end against a back end that is not ours, so that what fails here is the
//! test's fault, and the benchmark.
#![allow(missing_docs)]

use std::time::Duration;

use dm_tests::bench::ground::Ground;
use dm_tests::bench::{self, Job, Mode, Pattern, restart};
use dm_tests::blk::{Data, OK, Request, Shape, feature, kind};
use dm_tests::daemon::{self, Daemon, Served, qemu_storage_daemon};
use dm_tests::vmm::{Order, Setup};
use dm_tests::{files, rng, skip};

/// Writes and reads with every shape of request, through qemu-storage-daemon.
fn drive(setup: &Setup, seed: u64) {
    let dir = files::memory_dir().expect("tmpfs");
    let disk = dir.path().join("disk");
    let socket = dir.path().join("sock");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut expect = rng::bytes(&mut rng, 1 << 20);
    files::component(&disk, &expect);
    let mut daemon = Daemon::spawn(qemu_storage_daemon(&disk, &socket, "threads", false));
    let mut vmm = daemon.vmm(&socket, setup);
    assert_eq!(vmm.config.capacity, 2048);
    for _ in 0..300 {
        let sectors = rng.usize(1..=64);
        let sector = rng.usize(0..2048 - sectors);
        let range = sector * 512..(sector + sectors) * 512;
        let indirect = vmm.has(feature::INDIRECT) && rng.bool();
        let shape = Shape::random(&mut rng, 16, indirect);
        let write = rng.bool().then(|| rng::bytes(&mut rng, sectors * 512));
        let request = Request {
            kind: if write.is_some() { kind::OUT } else { kind::IN },
            sector: sector as u64,
            data: match &write {
                Some(bytes) => Data::ToDevice(bytes),
                None => Data::FromDevice(sectors * 512),
            },
        };
        vmm.submit(0, 3, &request, &shape, &mut rng);
        vmm.kick(0);
        let done = vmm.wait(0);
        assert_eq!(done.status, OK, "{request:?} {shape:?}");
        match write {
            Some(bytes) => expect[range].copy_from_slice(&bytes),
            None => assert!(done.data == expect[range], "wrong bytes at {sector}"),
        }
    }
    vmm.flush(0).expect("flush");
    assert!(std::fs::read(&disk).expect("read") == expect);
    assert!(vmm.read_all(0).expect("read") == expect);
}

#[test]
fn qemu_storage_daemon_agrees() {
    if std::process::Command::new("qemu-storage-daemon").arg("--version").output().is_err() {
        return skip::skip("qemu_storage_daemon_agrees", "qemu-storage-daemon is not installed");
    }
    for (i, event_idx) in [true, false].into_iter().enumerate() {
        for order in [Order::Qemu, Order::CloudHypervisor] {
            for interrupts in [true, false] {
                let mut setup = Setup { order, interrupts, ..Setup::default() };
                if !event_idx {
                    setup = setup.without(feature::EVENT_IDX);
                }
                drive(&setup, i as u64);
            }
        }
    }
}

#[test]
fn the_benchmark_counts_what_it_asked_for() {
    let mut served = Served::table("0 4096 zero\n", &[]);
    for mode in [Mode::Poll, Mode::Event] {
        for pattern in [Pattern::Randread, Pattern::Randwrite, Pattern::Seqread, Pattern::Seqwrite] {
            let job = Job {
                pattern,
                block: 8192,
                depth: 5,
                mode,
                warm_up: Duration::from_millis(5),
                time: Duration::from_secs(20),
                operations: 500,
                seed: 1,
                pid: Some(served.daemon.pid()),
                event_idx: pattern.name().len() > 5,
                inflight: pattern.writes(),
            };
            let stream = served.daemon.connect(&served.socket);
            let sample = bench::run(stream, &job).expect("run");
            assert!((500..600).contains(&sample.operations), "{sample:?}");
            assert!(sample.iops > 0.0 && sample.p50 > 0 && sample.p50 <= sample.p99, "{sample:?}");
        }
    }
    served.daemon.stop();
}

#[test]
fn the_benchmark_restarts_the_back_end_in_every_way() {
    let (disk, memory) = (files::disk_dir(), tempfile::tempdir().expect("a directory"));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let ground = Ground::make((memory.path(), disk.path()), 1 << 20, (0, cpus - 1), &[], &[]).expect("files");
    let mut out = Vec::new();
    restart::report(&ground, daemon::binary(), 1, &mut out).expect("restarts");
    let text = String::from_utf8(out).expect("text");
    assert_eq!(text.matches("| SIGTERM |").count(), 4, "{text}");
    assert_eq!(text.matches("| SIGKILL |").count(), 4, "{text}");
    assert!(!text.contains("failed"), "{text}");
}
