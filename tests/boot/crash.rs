//! A guest that writes and verifies while the back end is killed again and again: QEMU comes back to each new one, and
//! the guest must notice nothing. The long form of this is `ci/crash.sh --vm`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use dm_tests::daemon::Daemon;
use dm_tests::files::memory_dir;
use dm_tests::rng::{Repeat, seeds};
use fastrand::Rng;
use rustix::process::Signal;

use super::host::{PATIENCE, Piece, Scratch, disk_sha256, serve};
use super::vm::{Setup, Vm};

/// So many kills it takes to show something, and after so many the guest may end in peace.
const KILLS: std::ops::Range<u32> = 3..8;

fn rounds() -> u64 {
    match std::env::var("DM_CRASH_ROUNDS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("DM_CRASH_ROUNDS={text}: expected a number")),
        Err(_) => 1,
    }
}

/// 48 MiB for fio, which lie on a disk and in memory, and a piece that it does not touch.
fn pieces(scratch: &Scratch, memory: &std::path::Path) -> Vec<Piece> {
    let in_memory = memory.join("m");
    std::fs::copy(scratch.noise("m", 40960), &in_memory).expect("copy a component into memory");
    let legs = ["a", "b"].map(|name| scratch.noise(name, 16384));
    vec![
        Piece::Striped(32768, 8, legs.to_vec()),
        Piece::Linear(20001, scratch.noise("c", 24576), 7),
        Piece::Linear(40000, in_memory, 9),
        Piece::Linear(10000, scratch.noise("d", 10240), 100),
        Piece::Zero(999),
    ]
}

struct Victim<'a> {
    scratch: &'a Scratch,
    pieces: &'a [Piece],
    args: Vec<&'static str>,
    daemon: Option<Daemon>,
    kills: u32,
    // Requests that were under way at a kill, as the successors say.
    done_again: u32,
}

impl Victim<'_> {
    fn start(&mut self) {
        self.daemon = Some(serve(self.scratch, self.pieces, &self.args));
    }

    /// Kills it, and lets another one take its place at once.
    fn kill(&mut self, rng: &mut Rng) {
        let mut daemon = self.daemon.take().expect("a back end runs");
        daemon.assert_running();
        if rng.u8(..4) != 0 {
            // An emulated guest is slow. Let its requests gather, so that the kill finds some of them under way.
            daemon.signal(Signal::STOP);
            sleep(Duration::from_millis(rng.u64(5..40)));
            daemon.signal(Signal::CONT);
            sleep(Duration::from_micros(rng.u64(0..1500)));
        }
        daemon.signal(Signal::KILL);
        daemon.wait(PATIENCE);
        self.kills += 1;
        self.done_again += done_again(&daemon.log());
        self.start();
    }

    /// Waits until QEMU is back, or needs to be no more: what the guest verified, if it has all it asked for and may power
    /// off before QEMU connects again.
    fn connected(&mut self, vm: &mut Vm) -> Option<String> {
        let begin = Instant::now();
        let daemon = self.daemon.as_mut().expect("a back end runs");
        // The first connection is that of `serve`, which looks whether it listens.
        while daemon.log().matches("a front end has connected").count() < 2 {
            daemon.assert_running();
            assert!(begin.elapsed() < PATIENCE, "QEMU does not come back");
            if let Some(sum) = vm.listen("verified", Duration::from_micros(300)) {
                return Some(sum);
            }
        }
        None
    }
}

fn done_again(log: &str) -> u32 {
    let lines = log.lines().filter_map(|line| line.strip_suffix(" requests of a predecessor are done again"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum()
}

/// Kills, and requests that successors did again.
fn round(seed: u64) -> (u32, u32) {
    let mut rng = Rng::with_seed(seed);
    let scratch = Scratch::new();
    let memory = memory_dir();
    let memory = memory.as_ref().map_or(scratch.sockets(), |dir| dir.path());
    let pieces = pieces(&scratch, memory);
    let mut args = vec!["--serial=boot-test", "-v"];
    args.extend((rng.u8(..3) == 0).then_some("--workers=2"));
    args.extend((rng.u8(..3) == 0).then_some("--poll-us=0"));
    let _repeat = Repeat { seed, context: format!("{args:?}") };
    let mut victim = Victim { scratch: &scratch, pieces: &pieces, args, daemon: None, kills: 0, done_again: 0 };
    victim.start();
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test_with_fio("crash");
    vm.wait_for("busy");
    let mut verified = None;
    let sum = loop {
        // Time enough for the guest to do something in between: QEMU comes back after up to a second.
        let time = Duration::from_millis(rng.u64(100..1000));
        if let Some(sum) = verified.take().or_else(|| vm.listen("verified", time)) {
            break sum;
        }
        if victim.kills >= KILLS.end {
            break vm.wait_for("verified");
        }
        victim.kill(&mut rng);
        while rng.u8(..3) == 0 && verified.is_none() {
            verified = victim.connected(&mut vm);
            sleep(Duration::from_micros(rng.u64(0..20_000)));
            victim.kill(&mut rng);
        }
        if verified.is_none() {
            verified = victim.connected(&mut vm);
        }
    };
    vm.finish();
    victim.daemon.take().expect("a back end runs").stop();
    assert_eq!(disk_sha256(&scratch, &pieces), sum, "the components' bytes");
    (victim.kills, victim.done_again)
}

#[test]
fn a_guest_does_not_notice_that_the_back_end_is_killed() {
    for seed in seeds(9000, rounds()) {
        let began = Instant::now();
        let (kills, done_again) = round(seed);
        let took = began.elapsed();
        println!(
            "seed {seed}: {kills} kills, {done_again} requests done again, {took:.0?}; the guest found nothing wrong"
        );
        assert!(kills >= KILLS.start, "{kills} kills show nothing");
    }
}
