//! Tables that are exchanged under load: nothing is lost, done twice, done in part, failed or late.
//!
//! `DM_SWAPS` sets the number of swaps for each seed (the long form is 1000), `DM_TEST_SEED` repeats one.

mod ground;
mod kills;
mod load;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dm_tests::control::{Client, Controlled, which};
use dm_tests::rng::{Repeat, seeds};
use dm_tests::vmm::Setup;
use fastrand::Rng;
use serde_json::{Value, json};

use ground::{Ground, Layout, SECTORS};
use load::{Load, Shared};

/// Swaps for each seed in the short form.
const SWAPS: u64 = 50;

fn swaps() -> u64 {
    std::env::var("DM_SWAPS").map_or(SWAPS, |text| text.parse().expect("DM_SWAPS: a number"))
}

/// How a round is set up.
#[derive(Clone, Debug)]
struct Round {
    args: Vec<&'static str>,
    /// The table is that of a device below the one that the front end has.
    below: bool,
    setup: Setup,
}

impl Round {
    fn new(seed: u64) -> Round {
        let mut round = Round { args: Vec::new(), below: seed % 4 == 3, setup: Load::setup() };
        match seed % 4 {
            1 => round.args.push("--workers=2"),
            2 => {
                round.args.push("--poll-us=0");
                round.setup.inflight = false;
            }
            _ => {}
        }
        round
    }

    fn swapped(&self) -> &'static str {
        if self.below { "base" } else { "disk" }
    }

    fn concise(&self, table: &str) -> String {
        let lines = table.trim_end().replace('\n', ",");
        match self.below {
            false => format!("disk,,,rw,{lines}"),
            true => format!("base,,,rw,{lines};disk,,,rw,0 {SECTORS} linear /dev/mapper/base 0"),
        }
    }
}

/// Exchanges tables while the load runs.
struct Swapper<'a> {
    client: Client,
    name: &'static str,
    shared: &'a Shared,
    rng: Rng,
    reported: Vec<Duration>,
}

impl Swapper<'_> {
    fn run(&mut self, layout: &Layout, swaps: u64) {
        for generation in 1..=swaps {
            let table = Arc::new(layout.table(generation, &mut self.rng));
            self.shared.tables.lock().expect("tables").push(table.clone());
            self.shared.wait_for_room(generation);
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            self.swap(generation, &table.text);
            self.wait_for_load();
        }
    }

    /// In one of the orders that an operator may choose.
    fn swap(&mut self, generation: u64, text: &str) {
        let which = json!({"which": which(self.name)});
        let load = json!({"which": which["which"], "table": text});
        let suspend = match self.rng.u8(..5) {
            0 => self.rng.u8(1..=2),
            _ => 0,
        };
        if self.rng.u8(..8) == 0 {
            self.mistakes();
        }
        if suspend == 1 {
            self.client.must("suspend", which.clone());
            std::thread::sleep(Duration::from_micros(self.rng.u64(..2000)));
        }
        self.client.must("load", load);
        if suspend == 2 {
            self.client.must("suspend", which.clone());
        }
        self.shared.begun.store(generation, Ordering::SeqCst);
        let resumed = self.client.must("resume", which);
        self.shared.live.store(generation, Ordering::SeqCst);
        assert_eq!((&resumed["info"]["suspended"], &resumed["info"]["inactive"]), (&json!(false), &json!(false)));
        let paused = resumed["paused_us"].as_u64().unwrap_or_else(|| panic!("no pause: {resumed}"));
        if suspend == 0 {
            self.reported.push(Duration::from_micros(paused));
        }
    }

    /// Things that change nothing.
    fn mistakes(&mut self) {
        let name = self.name;
        self.client.load(name, &format!("0 {SECTORS} linear /nonexistent 0")).expect_err("no such file");
        self.client.load(name, &format!("0 {SECTORS} zero\n1 1 zero")).expect_err("not in order");
        self.client.load(name, &format!("0 {SECTORS} error")).expect("load");
        self.client.must("clear", which(name));
        let resumed: Value = self.client.must("resume", json!({"which": which(name)}));
        assert_eq!(resumed["info"]["sectors"], SECTORS);
    }

    /// For some requests, or none.
    fn wait_for_load(&mut self) {
        let enough = self.shared.done.load(Ordering::SeqCst) + self.rng.u64(..600);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.shared.done.load(Ordering::SeqCst) < enough && !self.shared.stop.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "the load does not get on");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Stops the load even when the swaps panic.
struct Stop<'a>(&'a Shared);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

fn worst_and_median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    (times.last().copied().unwrap_or_default(), median)
}

fn round(seed: u64, swaps: u64) {
    let round = Round::new(seed);
    let _repeat = Repeat { seed, context: format!("{round:?}") };
    let mut rng = Rng::with_seed(seed);
    let ground = Ground::new();
    let shared = Shared::default();
    let first = ground.layout.table(0, &mut rng);
    let mut controlled = Controlled::start(&round.concise(&first.text), &round.args);
    shared.tables.lock().expect("tables").push(Arc::new(first));
    let vmm = controlled.vmm("disk", &round.setup);
    let mut swapper = Swapper {
        client: controlled.client(),
        name: round.swapped(),
        shared: &shared,
        rng: rng.fork(),
        reported: Vec::new(),
    };
    let layout = ground.layout.clone();
    let mut load = Load::new(vmm, &shared, ground, rng.u64(..));
    std::thread::scope(|scope| {
        let swaps = scope.spawn({
            let (swapper, shared) = (&mut swapper, &shared);
            move || {
                let _stop = Stop(shared);
                swapper.run(&layout, swaps);
            }
        });
        let stop = Stop(&shared);
        load.run();
        drop(stop);
        swaps.join().expect("the swaps");
    });
    load.ground.check();
    let (worst, median) = worst_and_median(load.gaps.split_off(1));
    let (reported_worst, reported) = worst_and_median(swapper.reported);
    println!(
        "seed {seed}: {swaps} swaps, {} requests, {} of them under way during a swap; longest time without a completion \
         around a swap: median {median:.0?}, worst {worst:.0?}; the back end's own pause: median {reported:.0?}, worst \
         {reported_worst:.0?}",
        shared.done.load(Ordering::SeqCst),
        load.between,
    );
    assert!(load.between > swaps, "hardly any request met a swap");
    let info = controlled.client().info(round.swapped());
    assert!(info["event_nr"].as_u64() >= Some(swaps), "{info}");
    drop(load);
    controlled.stop();
}

#[test]
fn tables_are_swapped_under_load() {
    for seed in seeds(5000, 4) {
        round(seed, swaps());
    }
}
