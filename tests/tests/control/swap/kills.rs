//! The process is killed while tables are exchanged under load, and its successor comes back with the old table or the new
//! one: every request that was under way is done through that one, and nothing through the other any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dm_tests::control::{Client, Controlled, which};
use dm_tests::daemon::flag;
use dm_tests::files;
use dm_tests::rng::{Repeat, operations, seeds};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::ground::{Ground, IMAGES, Table};
use super::load::{Load, Shared};

/// The text of the live table.
fn live_text(client: &mut Client) -> String {
    let lines = client.must("table", json!({"which": which("disk")}));
    let line = |line: &serde_json::Value| {
        let [target, params] = ["target", "params"].map(|key| line[key].as_str().unwrap_or_default());
        format!("{} {} {target} {params}\n", line["start"], line["len"])
    };
    lines.as_array().into_iter().flatten().map(line).collect()
}

/// Loads a table and resumes it, unless the process goes first; whether that was answered.
fn swap(mut client: Client, table: &Table) -> bool {
    let mut call = |method: &str, params: serde_json::Value| {
        let answer = client.begin(method, &params).and_then(|id| client.end(id));
        answer.map(|answer| drop(answer.unwrap_or_else(|refusal| panic!("{method}: {refusal:?}")))).is_ok()
    };
    call("load", json!({"which": which("disk"), "table": table.text}))
        && call("resume", json!({"which": which("disk")}))
}

#[test]
fn a_kill_during_a_swap_leaves_one_of_the_two_tables() {
    for seed in seeds(5100, 1) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let (ground, shared, dir) = (Ground::new(), Shared::default(), files::disk_dir());
        let layout = ground.layout.clone();
        let first = layout.table(0, &mut rng);
        let concise = format!("disk,,,rw,{}", first.text.trim_end().replace('\n', ","));
        let mut controlled = Controlled::start(&concise, &[&flag("--state-dir", &dir.path().join("state"))]);
        shared.tables.lock().expect("tables").push(Arc::new(first));
        let vmm = controlled.vmm("disk", &Load::setup());
        let mut load = Load::new(vmm, &shared, ground, rng.u64(..));
        let (mut live, mut unanswered) = (0, 0);
        for round in 0..operations(24) {
            let next = live + 1;
            let table = Arc::new(layout.table(next, &mut rng));
            let mut tables = shared.tables.lock().expect("tables");
            tables.truncate(next as usize);
            tables.push(table.clone());
            drop(tables);
            let room = Instant::now() + Duration::from_secs(60);
            while {
                load.step(true);
                shared.oldest.load(Ordering::SeqCst) + (IMAGES - 2) < next
            } {
                assert!(Instant::now() < room, "a request is lost");
            }
            shared.begun.store(next, Ordering::SeqCst);
            let client = controlled.client();
            let swapping = std::thread::spawn({
                let table = table.clone();
                move || swap(client, &table)
            });
            // While the table is loaded or exchanged; every third time after that. By a thread that has nothing else to do.
            let pid = Pid::from_raw(controlled.daemon.pid() as i32).expect("a process id");
            let time = Duration::from_micros(rng.u64(..30_000));
            let killing = std::thread::spawn(move || {
                while round % 3 == 0 && !swapping.is_finished() {
                    std::thread::yield_now();
                }
                std::thread::sleep(time);
                kill_process(pid, Signal::KILL).expect("kill it");
                swapping.join().expect("the swap")
            });
            while !killing.is_finished() {
                load.step(true);
            }
            let answered = killing.join().expect("the kill");
            controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
            controlled.start_again();
            let text = live_text(&mut controlled.client());
            if text == table.text {
                live = next;
                unanswered += u64::from(!answered);
            } else {
                assert!(!answered, "round {round}: a table that was resumed is gone");
                assert_eq!(text, shared.tables.lock().expect("tables")[live as usize].text, "round {round}");
            }
            shared.live.store(live, Ordering::SeqCst);
            shared.begun.store(live, Ordering::SeqCst);
            let socket = controlled.socket("disk");
            load.reconnect(controlled.daemon.connect(&socket));
        }
        shared.stop.store(true, Ordering::SeqCst);
        load.run();
        load.ground.check();
        let done = shared.done.load(Ordering::SeqCst);
        println!(
            "seed {seed}: {} kills, after {live} of them the new table, {unanswered} of those unheard; {done} requests",
            operations(24)
        );
        assert!(live > 0 && done > 1000, "{live} swaps, {done} requests");
        drop(load);
        controlled.stop();
    }
}
