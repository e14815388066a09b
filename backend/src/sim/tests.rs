use std::os::fd::AsRawFd;

use super::*;
use crate::guest::Buffer;

const NERVOUS: Temper = Temper { latency: Duration::from_micros(50), short: 40, again: 20, fail: 0 };

fn sim(seed: u64, temper: Temper, nature: Nature) -> (Sim, FileIx) {
    let mut sim = Sim::new(seed, temper);
    let file = tempfile::tempfile().unwrap();
    sim.add_device(&file, vec![1; 16 * SECTOR], nature).unwrap();
    let file = sim.add_file(file.as_fd()).unwrap();
    (sim, file)
}

fn until_asleep(sim: &mut Sim) -> Vec<Event> {
    let mut events = Vec::new();
    while !sim.asleep() {
        sim.turn(Wait::Event, &mut events).unwrap();
    }
    events
}

fn write(sim: &mut Sim, file: FileIx, sector: u64, durable: bool, slice: HostSlice, token: u32) -> i32 {
    sim.start(file, Command::Write { data: &[slice], at: sector * SECTOR as u64, durable }, token);
    match until_asleep(sim)[..] {
        [Event::Done { token: t, result }] if t == token => result,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn one_seed_is_one_story_and_another_is_another() {
    let story = |seed| {
        let (mut sim, file) = sim(seed, NERVOUS, Nature::default());
        let buffer = Buffer::new(8 * SECTOR).unwrap();
        for token in 0..8 {
            let slice = buffer.slice().part(token as usize * SECTOR, SECTOR);
            sim.start(file, Command::Read { data: &[slice], at: 0 }, token);
        }
        (until_asleep(&mut sim), sim.now())
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
    let (events, _) = story(3);
    assert_eq!(events.len(), 8);
}

#[test]
fn a_crash_keeps_what_was_synced_and_any_of_the_rest() {
    let buffer = Buffer::new(4 * SECTOR).unwrap();
    let mut kept = [0; 4];
    for seed in 0..64 {
        let (mut sim, file) = sim(seed, Temper::default(), Nature::default());
        let put = |sim: &mut Sim, sector, durable, value: u8| {
            buffer.slice().write(&[value; 2 * SECTOR]);
            assert_eq!(write(sim, file, sector, durable, buffer.slice().part(0, 2 * SECTOR), 7), 2 * SECTOR as i32);
        };
        put(&mut sim, 0, false, 2);
        sim.start(file, Command::Sync, 1);
        until_asleep(&mut sim);
        put(&mut sim, 2, true, 3);
        put(&mut sim, 4, false, 4);
        put(&mut sim, 4, false, 5);
        assert_eq!(sim.look(0, |b| b[4 * SECTOR]), 5);
        assert_eq!(sim.look_durable(0, |b| b[4 * SECTOR]), 1);
        sim.crash();
        sim.look(0, |bytes| {
            assert!(
                bytes[..2 * SECTOR].iter().all(|b| *b == 2) && bytes[2 * SECTOR..4 * SECTOR].iter().all(|b| *b == 3)
            );
            for sector in bytes[4 * SECTOR..6 * SECTOR].chunks(SECTOR) {
                assert!([1, 4, 5].contains(&sector[0]) && sector.iter().all(|b| *b == sector[0]));
            }
            kept[0] += usize::from(bytes[4 * SECTOR] == 1);
            kept[1] += usize::from(bytes[4 * SECTOR] == 4);
            kept[2] += usize::from(bytes[4 * SECTOR] == 5);
            kept[3] += usize::from(bytes[4 * SECTOR] != bytes[5 * SECTOR]);
        });
    }
    assert!(kept.iter().all(|n| *n > 4), "nothing kept, all kept, some kept, torn: {kept:?}");
}

#[test]
fn a_sync_owes_nothing_to_writes_that_were_not_reported_before_it() {
    let mut lost = 0;
    for seed in 0..64 {
        let (mut sim, file) = sim(seed, Temper::default(), Nature::default());
        let buffer = Buffer::new(SECTOR).unwrap();
        sim.start(file, Command::Write { data: &[buffer.slice()], at: 0, durable: false }, 0);
        sim.start(file, Command::Sync, 1);
        until_asleep(&mut sim);
        assert_eq!(sim.look_durable(0, |b| b[0]), 1);
        sim.crash();
        lost += sim.look(0, |b| usize::from(b[0]));
    }
    assert!((8..56).contains(&lost), "{lost} of 64");
}

#[test]
fn what_the_nature_forbids_is_refused() {
    let nature = Nature {
        mem_align: 512,
        unit: 512,
        no_punch: Some(libc::EOPNOTSUPP),
        no_zero: Some(libc::EINVAL),
        no_discard: Some(libc::ENOTTY),
    };
    let (mut sim, file) = sim(5, NERVOUS, nature);
    sim.set_temper(Temper::default());
    let memory = Buffer::new(4096).unwrap();
    let buffer = memory.slice();
    let odd = buffer.part(1, 512);
    let commands = [
        (Command::PunchHole { at: 0, len: 512 }, -libc::EOPNOTSUPP),
        (Command::ZeroRange { at: 0, len: 512 }, -libc::EINVAL),
        (Command::BlockDiscard { at: 0, len: 512 }, -libc::ENOTTY),
        (Command::Read { data: &[odd], at: 0 }, -libc::EINVAL),
        (Command::Read { data: &[buffer.part(0, 100)], at: 0 }, -libc::EINVAL),
        (Command::Read { data: &[buffer.part(0, 512)], at: 100 }, -libc::EINVAL),
        (Command::Read { data: &[buffer.part(0, 1024)], at: 15 * 512 }, 512),
        (Command::Read { data: &[buffer.part(0, 1024)], at: 16 * 512 }, 0),
        (Command::Write { data: &[buffer.part(0, 512)], at: 16 * 512, durable: false }, -libc::ENOSPC),
    ];
    for (command, result) in commands {
        sim.start(file, command, 0);
        assert_eq!(until_asleep(&mut sim), [Event::Done { token: 0, result }], "{command:?}");
    }
    assert_eq!(sim.failure_count(), 0);
}

#[test]
fn faults_strike_by_place_and_by_number() {
    let (mut sim, file) = sim(9, Temper::default(), Nature::default());
    let buffer = Buffer::new(4 * SECTOR).unwrap();
    sim.fail_range(0, 1024..1536, |kind| kind == Kind::Read, libc::ENODATA);
    let (mut short, mut failed) = (0, 0);
    for _ in 0..32 {
        sim.start(file, Command::Read { data: &[buffer.slice()], at: 512 }, 0);
        match until_asleep(&mut sim)[..] {
            [Event::Done { result: 512, .. }] => short += 1,
            [Event::Done { result, .. }] if result == -libc::ENODATA => failed += 1,
            ref other => panic!("{other:?}"),
        }
        assert_eq!(write(&mut sim, file, 1, false, buffer.slice(), 0), 4 * SECTOR as i32);
    }
    assert!(short > 4 && failed > 4);
    assert_eq!(sim.failures(failed - 1), [Failure { disk: 0, kind: Kind::Read, at: 512, len: 2048 }]);
    sim.fail_command(sim.started() + 1);
    let mut sync = || {
        sim.start(file, Command::Sync, 0);
        until_asleep(&mut sim)
    };
    assert_eq!(sync(), [Event::Done { token: 0, result: 0 }]);
    assert_eq!(sync(), [Event::Done { token: 0, result: -libc::EIO }]);
    assert_eq!(sync(), [Event::Done { token: 0, result: 0 }]);
}

#[test]
fn watches_report_rings_until_they_are_taken_back() {
    for seed in 0..16 {
        let (mut sim, _) = sim(seed, NERVOUS, Nature::default());
        let file = tempfile::tempfile().unwrap();
        sim.watch(file.as_raw_fd(), 3);
        assert!(until_asleep(&mut sim).is_empty());
        sim.ring(file.as_raw_fd());
        assert!(!sim.asleep());
        assert_eq!(until_asleep(&mut sim), [Event::Ready { watch: 3 }]);
        sim.unwatch(3);
        sim.ring(file.as_raw_fd());
        assert_eq!(until_asleep(&mut sim).last(), Some(&Event::Unwatched { watch: 3 }));
        sim.ring(file.as_raw_fd());
        assert!(until_asleep(&mut sim).is_empty());
    }
}

#[test]
fn two_engines_share_devices_and_time_and_nothing_else() {
    for seed in 0..32 {
        let (mut one, file) = sim(seed, Temper::default(), Nature::default());
        let mut two = one.another();
        // The same token for both.
        one.start(file, Command::Sync, 3);
        two.start(file, Command::PunchHole { at: 0, len: 512 }, 3);
        let done = [Event::Done { token: 3, result: 0 }];
        assert_eq!(until_asleep(&mut one), done);
        assert!(!two.asleep(), "what has ended while the other one turned is still to be told");
        assert_eq!(until_asleep(&mut two), done);
        assert_eq!((one.look(0, |b| b[0]), one.now()), (0, two.now()));
        two.advance(1 << 40);
        assert_eq!(Engine::now(&one), 1 << 40);
    }
}

#[test]
#[should_panic(expected = "may change [0..512, 4096..4608] only")]
fn a_fence_stops_whoever_goes_beyond_it() {
    let (mut sim, file) = sim(1, Temper::default(), Nature::default());
    sim.fence(0, vec![0..8192, 600..601], vec![0..512, 4096..4608]);
    let buffer = Buffer::new(2 * SECTOR).unwrap();
    sim.start(file, Command::Read { data: &[buffer.slice()], at: 512 }, 0);
    sim.start(file, Command::PunchHole { at: 0, len: 512 }, 1);
    sim.start(file, Command::ZeroRange { at: 511, len: 2 }, 2);
}
