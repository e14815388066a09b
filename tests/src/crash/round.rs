//! One round from its seed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::driver::Driver;
use super::process::BackEnd;
use super::{Report, world};
use crate::blk::feature;
use crate::files;
use crate::vmm::{Order, Setup, Vmm};

/// Requests in flight on each queue.
const DEPTH: usize = 64;

/// Whether the back end tracks requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// As the seed says
    Any,
    /// With in-flight tracking
    Tracked,
    /// Without: the back end has to complete in order
    InOrder,
}

/// How a back end ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill,
    Term,
}

/// A further kill before the successor serves.
#[derive(Clone, Copy, Debug)]
enum Early {
    /// So long after its start.
    Starting(Duration),
    /// So long after the front end began to connect.
    Connecting(Duration),
}

/// Load, the end of the back end, and its successors.
#[derive(Clone, Debug)]
struct Step {
    completions: u64,
    spin: Duration,
    end: End,
    early: Vec<Early>,
    // The driver takes what is in the used ring while no back end is there; else the successor has to notify it.
    reap: bool,
    // The driver submits nothing before so many of the outstanding requests are left, by percent.
    quiet: Option<usize>,
}

/// All that a seed chooses beside chain and load.
#[derive(Clone, Debug)]
struct Plan {
    setup: Setup,
    args: Vec<&'static str>,
    begin_at: u16,
    pieces: usize,
    steps: Vec<Step>,
}

fn micros(rng: &mut Rng, most: u64) -> Duration {
    // Short ones more often than long ones.
    let most = rng.u64(0..=most);
    Duration::from_micros(rng.u64(0..=most))
}

impl Step {
    fn of(rng: &mut Rng) -> Self {
        let early = match rng.u8(..10) {
            0 => vec![Early::Starting(micros(rng, 20_000))],
            1..4 => vec![Early::Connecting(micros(rng, 6_000))],
            4 => vec![Early::Connecting(micros(rng, 6_000)), Early::Connecting(micros(rng, 3_000))],
            _ => Vec::new(),
        };
        Step {
            completions: if rng.u8(..4) == 0 { rng.u64(0..20) } else { rng.u64(20..500) },
            spin: micros(rng, 400),
            end: if rng.u8(..8) == 0 { End::Term } else { End::Kill },
            early,
            reap: rng.bool(),
            quiet: rng.bool().then(|| rng.usize(0..100)),
        }
    }
}

impl Plan {
    fn of(rng: &mut Rng, mode: Mode) -> Self {
        let tracked = rng.u8(..5) < 3;
        let large = rng.bool();
        let mut setup = Setup {
            order: if rng.u8(..3) == 0 { Order::CloudHypervisor } else { Order::Qemu },
            queues: 4,
            queue_size: if large { 1024 } else { 256 },
            slots: DEPTH,
            slot_bytes: 112 << 10,
            interrupts: rng.bool(),
            inflight: match mode {
                Mode::Any => tracked,
                Mode::Tracked => true,
                Mode::InOrder => false,
            },
            ..Setup::default()
        };
        if rng.u8(..4) == 0 {
            setup = setup.without(feature::EVENT_IDX);
        }
        let mut args = vec!["-v"];
        if rng.u8(..4) == 0 {
            args.push("--workers=2");
        }
        if rng.u8(..4) == 0 {
            args.push("--poll-us=0");
        }
        if rng.u8(..5) == 0 {
            args.push("--cache=buffered");
        }
        Plan {
            setup,
            args,
            begin_at: if rng.bool() { 0 } else { rng.u16(64_000..) },
            pieces: if large { 6 } else { 1 },
            steps: (0..rng.u8(1..=4)).map(|_| Step::of(rng)).collect(),
        }
    }
}

/// Says on a failure what was going on.
struct Context {
    seed: u64,
    mode: Mode,
    plan: Plan,
    table: String,
}

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Plan { setup, args, begin_at, steps, .. } = &self.plan;
            let mode = format!("{:?}", self.mode).to_lowercase().replace("inorder", "in-order");
            eprintln!(
                "round failed: repeat it by\n  ci/crash.sh 1 --seed={} --mode={mode}\n\
                 {:?}, in-flight tracking {}, interrupts {}, rings of {} from {begin_at}, {args:?}\n{steps:#?}\n{}",
                self.seed, setup.order, setup.inflight, setup.interrupts, setup.queue_size, self.table
            );
        }
    }
}

/// Runs the round of a seed.
///
/// # Panics
///
/// When the back end does not do what it must.
pub fn run(seed: u64, mode: Mode) -> Report {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::of(&mut rng, mode);
    let disk = files::disk_dir();
    let memory = files::memory_dir();
    let in_memory = memory.as_ref().map_or(disk.path(), |dir| dir.path());
    let world = world::make(&mut rng, disk.path(), in_memory);
    let table = world.concise(&(0..world.devices.len()).collect::<Vec<_>>());
    let context = Context { seed, mode, plan, table };
    let plan = &context.plan;
    let dir = tempfile::tempdir().expect("a directory");
    let mut back_end = BackEnd::new(dir.path(), &context.table, &plan.args);
    let vmm = front_end(&mut back_end, plan);
    let mut driver = Driver::new(vmm, world, seed, plan.pieces);
    let mut report = Report { rounds: 1, tracked: u64::from(plan.setup.inflight), ..Report::default() };
    for step in &plan.steps {
        play(step, &mut back_end, &mut driver, &mut report);
    }
    driver.run(100);
    driver.drain(0);
    driver.check_disk();
    back_end.terminate();
    driver.check("after the end");
    report.completed = driver.completed;
    report.acknowledged = driver.acknowledged;
    report.checks = driver.checks;
    report
}

fn front_end(back_end: &mut BackEnd, plan: &Plan) -> Vmm {
    let stream = back_end.connect();
    let mut vmm = Vmm::handshake(stream, &plan.setup).expect("negotiate");
    if plan.begin_at != 0 {
        vmm.queues.iter_mut().for_each(|queue| queue.ring.begin_at(plan.begin_at));
    }
    vmm.start().expect("start the rings");
    assert_eq!(vmm.tracks(), plan.setup.inflight, "whether the back end tracks requests in flight");
    vmm
}

fn play(step: &Step, back_end: &mut BackEnd, driver: &mut Driver, report: &mut Report) {
    driver.run(step.completions);
    let begin = Instant::now();
    while begin.elapsed() < step.spin {
        std::hint::spin_loop();
    }
    match step.end {
        End::Kill => {
            back_end.kill();
            killed(step, driver, report);
        }
        End::Term => {
            back_end.terminate();
            report.terms += 1;
            driver.reap();
            driver.check("after SIGTERM");
        }
    }
    for early in &step.early {
        match *early {
            Early::Starting(delay) => {
                back_end.start();
                sleep(delay);
                back_end.kill();
            }
            Early::Connecting(delay) => {
                back_end.start();
                back_end.kill_during(delay, |back_end| {
                    // Whether it comes through or not, a back end is gone after it.
                    back_end.try_connect().and_then(|stream| driver.vmm.reconnect(stream).ok())
                });
            }
        }
        killed(step, driver, report);
    }
    back_end.start();
    let stream = back_end.connect();
    driver.vmm.reconnect(stream).unwrap_or_else(|e| panic!("the front end cannot come back: {e}"));
    if let Some(percent) = step.quiet {
        let left = driver.outstanding() * percent / 100;
        driver.drain(left);
    }
}

fn killed(step: &Step, driver: &mut Driver, report: &mut Report) {
    if step.reap {
        driver.reap();
    }
    report.kills += 1;
    report.outstanding += driver.outstanding() as u64;
    driver.check("after SIGKILL");
}
