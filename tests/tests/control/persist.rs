//! `--state-dir`: who is killed at any moment comes back with the tables that were resumed last, whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dm_tests::control::{Client, Controlled, which};
use dm_tests::daemon::flag;
use dm_tests::files::{self, SmallFs};
use dm_tests::rng::{Repeat, operations, seeds};
use dm_tests::vmm::Setup;
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::SECTOR;

const SECTORS: u64 = 2048;

/// Uuid and generation of the table of each device.
type Devices = BTreeMap<String, (Option<String>, u64)>;

/// A component whose sectors hold their numbers.
struct Ground {
    dir: TempDir,
    component: PathBuf,
}

impl Ground {
    fn new() -> Ground {
        let dir = files::disk_dir();
        let component = dir.path().join("component");
        let sector = |number: u64| number.to_le_bytes().into_iter().cycle().take(SECTOR);
        files::component(&component, &(0..SECTORS).flat_map(sector).collect::<Vec<u8>>());
        Ground { dir, component }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn start(&self) -> Controlled {
        let first = format!("main,,,rw,{}", self.table(0).replace('\n', ","));
        Controlled::start(&first, &[&flag("--state-dir", &self.state())])
    }

    /// Three lines, each of which tells the generation.
    fn table(&self, generation: u64) -> String {
        let (n, path) = (generation % 1000, self.component.display());
        format!("0 8 linear {path} {n}\n8 {} zero\n{} 4 linear {path} {}", n + 1, n + 9, n + 1024)
    }
}

/// The devices of a process that has been started again.
fn found(client: &mut Client, ground: &Ground) -> Devices {
    let list = client.must("list", json!({}));
    let device = |info: &serde_json::Value| {
        let name = info["name"].as_str().expect("a name").to_owned();
        assert!(info["suspended"] == false && info["inactive"] == false && info["live"] == true, "{info}");
        let mut client = Client::connect(&ground.dir.path().join("control")).expect("connect");
        let lines = client.must("table", json!({"which": which(&name)}));
        let line = |line: &serde_json::Value| {
            let params = line["params"].as_str().unwrap_or_default();
            format!("{} {} {} {params}", line["start"], line["len"], line["target"].as_str().unwrap_or_default())
        };
        let text: Vec<String> = lines.as_array().into_iter().flatten().map(|l| line(l).trim_end().to_owned()).collect();
        let generation = lines[0]["params"].as_str().and_then(|params| params.rsplit(' ').next()?.parse().ok());
        let generation: u64 = generation.unwrap_or_else(|| panic!("{lines}"));
        assert_eq!(text.join("\n"), ground.table(generation), "a mixture");
        (name, (info["uuid"].as_str().map(str::to_owned), generation))
    };
    list.as_array().into_iter().flatten().map(device).collect()
}

/// Verbs one after the other, until the process is gone.
struct Verbs<'a> {
    client: Client,
    ground: &'a Ground,
    rng: Rng,
    generation: u64,
    /// What was answered.
    sure: Devices,
    /// The same with what was asked for and not answered.
    asked: Devices,
}

impl Verbs<'_> {
    fn call(&mut self, method: &str, params: &serde_json::Value) -> Option<()> {
        let id = self.client.begin(method, params).ok()?;
        let answer = self.client.end(id).ok()?;
        answer.unwrap_or_else(|refusal| panic!("{method} {params}: {refusal:?}"));
        Some(())
    }

    /// A call after which these are the devices.
    fn change(&mut self, method: &str, params: &serde_json::Value, then: Devices) -> Option<()> {
        self.asked = then;
        self.call(method, params)?;
        self.sure = self.asked.clone();
        Some(())
    }

    /// Loads and resumes the next table.
    fn swap(&mut self, name: &str, uuid: Option<String>) -> Option<()> {
        self.generation = (self.generation + 1) % 1000;
        let which = json!({"which": which(name)});
        let table = self.ground.table(self.generation);
        self.call("load", &json!({"which": which["which"], "table": table, "force": true}))?;
        if self.rng.u8(..4) == 0 {
            self.call("suspend", &which)?;
        }
        let mut then = self.sure.clone();
        then.insert(name.to_owned(), (uuid, self.generation));
        self.change("resume", &which, then)
    }

    /// `None` when the process is gone.
    fn next(&mut self) -> Option<()> {
        let names: Vec<String> = self.sure.keys().filter(|name| *name != "main").cloned().collect();
        let some = self.rng.choice(&names).cloned();
        match (self.rng.u8(..6), some) {
            (0, _) if names.len() < 4 => {
                let name = format!("device{}", self.generation);
                if self.sure.contains_key(&name) {
                    return Some(());
                }
                let uuid = self.rng.bool().then(|| format!("U{}", self.rng.u64(..)));
                self.call("create", &json!({"name": name, "uuid": uuid}))?;
                self.swap(&name, uuid)
            }
            (1, Some(name)) => {
                let mut then = self.sure.clone();
                then.remove(&name);
                self.change("remove", &json!({"which": which(&name)}), then)
            }
            (2, Some(name)) => {
                let mut then = self.sure.clone();
                let device = then.remove(&name).expect("it is there");
                let new = format!("renamed{}", self.rng.u64(..));
                then.insert(new.clone(), device);
                self.change("rename", &json!({"which": which(&name), "name": new}), then)
            }
            (3, Some(name)) if self.sure[&name].0.is_none() => {
                let mut then = self.sure.clone();
                let uuid = format!("U{}", self.rng.u64(..));
                then.insert(name.clone(), (Some(uuid.clone()), self.sure[&name].1));
                self.change("rename", &json!({"which": which(&name), "uuid": uuid}), then)
            }
            (4, Some(name)) => {
                let uuid = self.sure[&name].0.clone();
                self.swap(&name, uuid)
            }
            _ => self.swap("main", None),
        }
    }
}

#[test]
fn who_is_killed_comes_back_with_the_tables_resumed_last() {
    for seed in seeds(8800, 1) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let ground = Ground::new();
        let mut controlled = ground.start();
        link(&controlled.control, &ground);
        let mut devices = found(&mut controlled.client(), &ground);
        assert_eq!(devices, Devices::from([("main".to_owned(), (None, 0))]));
        let (mut verbs_done, mut generation) = (0, 0);
        for round in 0..operations(20) {
            let mut verbs = Verbs {
                client: controlled.client(),
                ground: &ground,
                rng: rng.fork(),
                generation,
                sure: devices.clone(),
                asked: devices.clone(),
            };
            let done = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let running = scope.spawn(|| {
                    while verbs.next().is_some() {
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
                // Within the first verbs or after some, whatever time those take here.
                let (first, time) = (rng.u64(..8), Duration::from_micros(rng.u64(..50_000)));
                while done.load(Ordering::SeqCst) < first && !running.is_finished() {
                    std::thread::sleep(Duration::from_micros(100));
                }
                std::thread::sleep(time);
                controlled.daemon.signal(Signal::KILL);
                running.join().expect("the verbs");
            });
            verbs_done += done.into_inner();
            generation = verbs.generation;
            controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
            controlled.start_again();
            devices = found(&mut controlled.client(), &ground);
            assert!(
                devices == verbs.sure || devices == verbs.asked,
                "round {round}: {devices:?} is neither {:?} nor {:?}",
                verbs.sure,
                verbs.asked
            );
            // And its front end sees that table.
            let number = controlled.vmm("main", &Setup::default()).read(0, 0, SECTOR).expect("read");
            assert_eq!(number[..8], devices["main"].1.to_le_bytes());
        }
        assert!(verbs_done > 30, "{verbs_done} verbs");
        println!("seed {seed}: {verbs_done} verbs over {} kills", operations(20));
    }
}

/// So that whoever has the ground finds the control socket.
fn link(control: &Path, ground: &Ground) {
    std::os::unix::fs::symlink(control, ground.dir.path().join("control")).expect("a link");
}

#[test]
fn what_was_removed_stays_so_and_what_was_never_resumed_is_not_kept() {
    let ground = Ground::new();
    let mut controlled = ground.start();
    link(&controlled.control, &ground);
    controlled.must(&["remove", "main"]);
    controlled.must(&["create", "new", "--table", &ground.table(7)]);
    controlled.must(&["load", "new", "--table", &ground.table(8)]);
    controlled.must(&["suspend", "new"]);
    controlled.must(&["create", "empty", "--notable"]);
    for signal in [Signal::KILL, Signal::TERM] {
        controlled.daemon.signal(signal);
        controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
        controlled.start_again();
        let devices = found(&mut controlled.client(), &ground);
        assert_eq!(devices, Devices::from([("new".to_owned(), (None, 7))]));
    }
    controlled.must(&["remove", "new"]);
    controlled.daemon.signal(Signal::KILL);
    controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
    controlled.start_again();
    assert_eq!(found(&mut controlled.client(), &ground), Devices::new(), "the table file is not read again");
    controlled.stop();
}

#[test]
fn a_state_that_is_none_is_refused_with_words() {
    let ground = Ground::new();
    let mut controlled = ground.start();
    link(&controlled.control, &ground);
    controlled.must(&["load", "main", "--table", &ground.table(5)]);
    controlled.must(&["resume", "--force", "main"]);
    controlled.daemon.signal(Signal::KILL);
    controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
    let file = ground.state().join("state.json");
    let good = std::fs::read(&file).expect("the state");
    let mut other: serde_json::Value = serde_json::from_slice(&good).expect("JSON");
    other["version"] = json!(99);
    let other = other.to_string();
    let bad =
        [&b""[..], b"{}", b"garbage", &good[..good.len() / 2], &good[..good.len() - 2], &[0; 4096], other.as_bytes()];
    for bad in bad {
        assert!(bad != good, "test bug");
        std::fs::write(&file, bad).expect("write");
        let mut daemon = dm_tests::daemon::Daemon::start(controlled.args());
        let status = daemon.wait(Duration::from_secs(60)).expect("it does not serve");
        let log = daemon.log();
        assert!(!status.success() && log.contains("state.json") && !log.contains("panicked"), "{status}: {log}");
        assert!(
            !controlled.socket("main").exists()
                || std::os::unix::net::UnixStream::connect(controlled.socket("main")).is_err()
        );
        assert!(std::fs::read(&file).expect("read") == bad, "what cannot be read is not written over");
    }
    // Beside it there may be what a killed process had begun to write.
    std::fs::write(&file, &good).expect("write");
    std::fs::write(ground.state().join("state-1.new"), &good[..good.len() / 3]).expect("write");
    controlled.start_again();
    assert_eq!(found(&mut controlled.client(), &ground), Devices::from([("main".to_owned(), (None, 5))]));
    // Two processes cannot have one state.
    let mut second = dm_tests::daemon::Daemon::start(controlled.args());
    let status = second.wait(Duration::from_secs(60)).expect("it ends");
    assert!(!status.success() && second.log().contains("is in use by"), "{}", second.log());
    controlled.stop();
}

/// Fills a file system with a file.
fn fill(fs: &SmallFs) -> PathBuf {
    use std::io::Write;
    let path = fs.path().join("filler");
    let mut file = std::fs::File::create(&path).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
    path
}

#[test]
fn a_resume_that_cannot_be_kept_leaves_the_device_suspended_with_the_old_table() {
    let name = "a_resume_that_cannot_be_kept_leaves_the_device_suspended_with_the_old_table";
    if !dm_tests::skip::is_root() {
        return dm_tests::skip::skip(name, "mounting needs root");
    }
    let small = SmallFs::mount(64 << 10).expect("a small file system");
    let ground = Ground::new();
    let state = small.path().join("state");
    let first = format!("main,,,rw,{}", ground.table(0).replace('\n', ","));
    let mut controlled = Controlled::start(&first, &[&flag("--state-dir", &state)]);
    link(&controlled.control, &ground);
    let mut disk = controlled.vmm("main", &Setup::default());
    let kept = std::fs::read(state.join("state.json")).expect("the state");
    let filler = fill(&small);
    controlled.must(&["load", "main", "--table", &ground.table(5)]);
    let said = controlled.must_not(&["resume", "--force", "main"]);
    assert!(said.contains("the devices cannot be kept (--state-dir)") && said.contains("No space left"), "{said}");
    let info = controlled.client().info("main");
    assert!(info["suspended"] == true && info["inactive"] == false && info["live"] == true, "{info}");
    assert!(std::fs::read(state.join("state.json")).expect("the state") == kept);
    // A request waits, and is the old table's when the device goes on.
    let line = controlled.must(&["table", "main"]);
    assert!(line.starts_with(&format!("0 8 linear {} 0\n", ground.component.display())), "{line}");
    std::fs::remove_file(filler).expect("remove");
    controlled.must(&["resume", "main"]);
    assert_eq!(disk.read(0, 0, SECTOR).expect("read")[..8], 0_u64.to_le_bytes());
    controlled.must(&["load", "main", "--table", &ground.table(5)]);
    controlled.must(&["resume", "--force", "main"]);
    assert_eq!(disk.read(0, 0, SECTOR).expect("read")[..8], 5_u64.to_le_bytes());
    drop(disk);
    controlled.daemon.signal(Signal::KILL);
    controlled.daemon.wait(Duration::from_secs(60)).expect("it ends");
    controlled.start_again();
    assert_eq!(found(&mut controlled.client(), &ground), Devices::from([("main".to_owned(), (None, 5))]));
    controlled.stop();
}
