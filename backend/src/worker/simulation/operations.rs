//! Operations alone on simulated devices: what the drivers of the other tests meet too rarely.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::device::{DiscardMethod, Unflushed};
use crate::engine::{Engine, Event, MAX_SLICES, Wait};
use crate::guest::Buffer;
use crate::sim::{Kind, Nature, SECTOR, Sim, Temper};
use crate::worker::ops::{Action, Device, Ops, Owner, Verdict};

const READ: Action = Action::Read;
const WRITE: Action = Action::Write { durable: false };
const DIRECT: Nature = Nature { mem_align: 512, unit: 512, no_punch: None, no_zero: None, no_discard: None };

struct Bench {
    sim: Sim,
    ops: Ops,
    device: Device,
    memory: Buffer,
}

/// Number of sectors of the bench's device.
const SECTORS: usize = 2048;

impl Bench {
    fn new(seed: u64, temper: Temper, nature: Nature) -> Bench {
        let mut sim = Sim::new(seed, temper);
        let file = tempfile::tempfile().unwrap();
        sim.add_device(&file, vec![0x11; SECTORS * SECTOR], nature).unwrap();
        let file = sim.add_file(file.as_fd()).unwrap();
        let device = Device {
            file,
            mask: nature.unit as usize - 1,
            discard: Some(DiscardMethod::BlockCommand),
            unflushed: None,
        };
        Bench { sim, ops: Ops::new().unwrap(), device, memory: Buffer::new(SECTORS * SECTOR + 4096).unwrap() }
    }

    /// Starts an operation whose data, cut into slices of `cut` bytes, begins `skip` bytes into memory.
    fn start(&mut self, slot: u32, action: Action, at: usize, len: usize, skip: usize, cut: usize) {
        let owner = Owner { queue: 0, slot, segment: 0 };
        let draft = self.ops.draft(owner, action, 0, self.device, at as u64, len as u64);
        if matches!(action, Action::Read | Action::Write { .. }) {
            for from in (0..len).step_by(cut) {
                draft.data.push(self.memory.slice().part(skip + from, cut.min(len - from)));
            }
        }
        let token = draft.token();
        self.ops.start(&mut self.sim, token);
    }

    /// Runs until nothing is under way; the errno of each operation, by its slot.
    fn finish(&mut self) -> Vec<(u32, i32)> {
        let mut ends = Vec::new();
        while !self.sim.asleep() {
            let mut events = Vec::new();
            self.sim.turn(Wait::Event, &mut events).unwrap();
            for event in events {
                let Event::Done { token, result } = event else { panic!("{event:?}") };
                if let Some(Verdict { owner, errno, .. }) = self.ops.complete(&mut self.sim, token, result) {
                    ends.push((owner.slot, errno));
                }
            }
        }
        self.ops.check_idle();
        ends.sort_unstable();
        ends
    }

    fn fill(&self, value: impl Fn(usize) -> u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..self.memory.slice().len()).map(value).collect();
        self.memory.slice().write(&bytes);
        bytes
    }
}

#[test]
fn a_device_that_says_again_for_ever_fails_in_the_end() {
    let temper = Temper { again: 100, ..Temper::default() };
    for action in [READ, WRITE, Action::Flush, Action::Zero { unmap: true, durable: false }] {
        let mut bench = Bench::new(1, temper, Nature::default());
        bench.start(0, action, 0, 4096, 0, 4096);
        let ends = bench.finish();
        assert!(matches!(ends[..], [(0, libc::EAGAIN | libc::EINTR)]), "{action:?}: {ends:?}");
        assert_eq!(bench.sim.started(), 101);
    }
}

#[test]
fn patience_is_for_each_step_not_for_the_whole() {
    let temper = Temper { again: 85, short: 100, ..Temper::default() };
    for seed in 0..20 {
        let mut bench = Bench::new(seed, temper, Nature::default());
        (0..64).for_each(|slot| bench.start(slot, READ, 0, 1000 * SECTOR, 0, 4096));
        assert!(bench.finish().iter().all(|(_, errno)| *errno == 0), "seed {seed}");
    }
}

#[test]
fn a_device_that_has_shrunk_fails_what_lies_past_its_end() {
    for nature in [Nature::default(), DIRECT] {
        let mut bench = Bench::new(2, Temper::default(), nature);
        bench.sim.truncate(0, 8 * SECTOR as u64);
        bench.start(0, READ, 4 * SECTOR, 4 * SECTOR, 0, 4096);
        bench.start(1, READ, 6 * SECTOR, 4 * SECTOR, 4096, 4096);
        bench.start(2, WRITE, 8 * SECTOR, SECTOR, 0, 4096);
        assert_eq!(bench.finish(), [(0, 0), (1, libc::EIO), (2, libc::ENOSPC)]);
    }
}

#[test]
fn each_command_in_turn_fails_its_own_operation_only() {
    // More than there are bounce buffers, so that operations wait for those that fail.
    const OPS: u32 = 40;
    let run = |fail: Option<u64>| {
        let mut bench = Bench::new(3, Temper::default(), DIRECT);
        bench.fill(|i| i as u8 | 1);
        fail.into_iter().for_each(|n| bench.sim.fail_command(n));
        for slot in 0..OPS {
            let action = [WRITE, READ, Action::Zero { unmap: false, durable: true }][slot as usize % 3];
            bench.start(slot, action, slot as usize * 4 * SECTOR, 4 * SECTOR, slot as usize * 2048 + 7, 1000);
        }
        (bench.finish(), bench.sim.started(), bench.sim.failure_count())
    };
    let (ends, commands, _) = run(None);
    assert!(ends.iter().all(|(_, errno)| *errno == 0) && commands > u64::from(OPS));
    for number in 0..commands {
        let (ends, _, failures) = run(Some(number));
        assert_eq!(ends.len(), OPS as usize);
        let failed = ends.iter().filter(|(_, errno)| *errno != 0).count();
        assert_eq!((failed, failures), (1, 1), "command {number}");
    }
}

#[test]
fn more_slices_than_a_command_takes_arrive_all() {
    for (nature, seed) in [(Nature::default(), 4), (DIRECT, 5)] {
        let temper = Temper { short: 30, ..Temper::default() };
        let mut bench = Bench::new(seed, temper, nature);
        let bytes = bench.fill(|i| (i / 512) as u8 ^ i as u8);
        let len = 1300 * SECTOR;
        assert!(len / SECTOR > MAX_SLICES);
        bench.start(0, WRITE, SECTOR, len, 512, SECTOR);
        assert_eq!(bench.finish(), [(0, 0)]);
        bench.sim.look(0, |device| assert!(device[SECTOR..SECTOR + len] == bytes[512..512 + len]));
        bench.fill(|_| 0);
        bench.start(0, READ, SECTOR, len, 512, SECTOR);
        assert_eq!(bench.finish(), [(0, 0)]);
        let mut back = vec![0; len];
        bench.memory.slice().part(512, len).read(&mut back);
        assert!(back == bytes[512..512 + len]);
    }
}

#[test]
fn transfers_larger_than_a_bounce_buffer_take_several_and_arrive_whole() {
    for seed in 0..20 {
        let temper = Temper { short: 20, latency: Duration::from_micros(5), ..Temper::default() };
        let mut bench = Bench::new(seed, temper, DIRECT);
        let bytes = bench.fill(|i| (i / 509) as u8 ^ i as u8);
        let len = 1500 * SECTOR;
        bench.start(0, WRITE, 0, len, 3, 100_001);
        assert_eq!(bench.finish(), [(0, 0)]);
        bench.sim.look(0, |device| assert!(device[..len] == bytes[3..3 + len]));
        bench.fill(|_| 0);
        bench.start(0, READ, 0, len, 11, 33_333);
        assert_eq!(bench.finish(), [(0, 0)]);
        let mut back = vec![0; len];
        bench.memory.slice().part(11, len).read(&mut back);
        assert!(back == bytes[3..3 + len]);
    }
}

#[test]
fn zeroing_goes_by_the_best_way_that_the_device_knows() {
    let refuses = |punch, zero| Nature {
        no_punch: if punch { Some(libc::EOPNOTSUPP) } else { None },
        no_zero: if zero { Some(libc::EINVAL) } else { None },
        ..DIRECT
    };
    // Commands that a zeroing with and without unmap takes.
    for (punch, zero, unmapping, keeping) in [(false, false, 1, 1), (true, false, 2, 1), (true, true, 3, 2)] {
        for (unmap, commands) in [(true, unmapping), (false, keeping)] {
            let mut bench = Bench::new(7, Temper::default(), refuses(punch, zero));
            bench.start(0, Action::Zero { unmap, durable: false }, SECTOR, 1000 * SECTOR, 0, 1);
            assert_eq!(bench.finish(), [(0, 0)]);
            assert_eq!(bench.sim.started(), commands);
            bench.sim.look(0, |device| {
                assert!(device[..SECTOR].iter().all(|b| *b == 0x11));
                assert!(device[SECTOR..1001 * SECTOR].iter().all(|b| *b == 0));
                assert!(device[1001 * SECTOR..].iter().all(|b| *b == 0x11));
            });
        }
    }
}

#[test]
fn flushes_fail_until_what_one_may_have_lost_is_written_again() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed, Temper::default(), DIRECT);
        let unflushed = Arc::new(Unflushed::new("disk", seed % 2 == 0));
        bench.device.unflushed = Some(bench.ops.remember(&unflushed));
        let run = |bench: &mut Bench, action, at: usize| {
            bench.start(0, action, at * SECTOR, SECTOR, 0, SECTOR);
            bench.finish() == [(0, 0)]
        };
        bench.fill(|_| 0x22);
        assert!(run(&mut bench, WRITE, 0) && run(&mut bench, Action::Flush, 0));
        let zero = Action::Zero { unmap: true, durable: false };
        assert!(run(&mut bench, WRITE, 1) && run(&mut bench, zero, 2));
        bench.sim.fail_range(0, 0..1, |kind| kind == Kind::Sync, libc::ENOSPC);
        assert!(!run(&mut bench, Action::Flush, 0), "seed {seed}");
        bench.sim.heal();
        assert!(!run(&mut bench, Action::Flush, 0), "seed {seed}: the device has forgotten, and so have we");
        assert!(run(&mut bench, WRITE, 1) && run(&mut bench, WRITE, 0));
        assert!(!run(&mut bench, Action::Flush, 0), "seed {seed}: one sector is not written again");
        assert!(run(&mut bench, zero, 2));
        assert!(run(&mut bench, Action::Flush, 0), "seed {seed}: all is written again");
        let mut expect = vec![0x22; 2 * SECTOR];
        expect.resize(3 * SECTOR, 0);
        bench.sim.look_durable(0, |device| assert!(device[..3 * SECTOR] == expect, "seed {seed}"));
    }
}
