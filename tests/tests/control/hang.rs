//! A component that hangs: its file system is frozen, and a write to it waits in the kernel. A suspend waits with it, says for
//! what, and can be taken back; nothing else waits.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dm_tests::blk::{Data, OK, Request, Shape, kind};
use dm_tests::control::{Client, Controlled, dmsetup_command, wait_until, which};
use dm_tests::files;
use dm_tests::loops::{self, LoopFs, hangs};
use dm_tests::skip;
use dm_tests::vmm::{Setup, Vmm};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::SECTOR;

const SECTORS: u64 = 256;
const LEN: usize = 8 * SECTOR;
const AT: u64 = 16;

/// A disk on a file system that can be frozen, and one elsewhere.
struct Ground {
    controlled: Controlled,
    // Dropped after the process that has files on it.
    fs: LoopFs,
    _dir: tempfile::TempDir,
}

impl Ground {
    fn new(test: &str) -> Option<Ground> {
        if let Some(why) = loops::missing() {
            skip::skip(test, why);
            return None;
        }
        let fs = LoopFs::mount(32 << 20).expect("an ext4");
        let dir = files::disk_dir();
        let line = |dir: &std::path::Path, n: u8| {
            let path = dir.join("component");
            files::component(&path, &vec![n; SECTORS as usize * SECTOR]);
            format!("0 {SECTORS} linear {} 0", path.display())
        };
        let concise = format!("slow,,,rw,{};quick,,,rw,{}", line(fs.path(), 1), line(dir.path(), 2));
        Some(Ground { controlled: Controlled::start(&concise, &[]), fs, _dir: dir })
    }

    /// A front end with a write that hangs, once the file system is frozen.
    fn vmm(&mut self) -> Vmm {
        let mut vmm = self.controlled.vmm("slow", &Setup::default());
        // The first direct write after the buffered ones that made the file goes by way of the page cache.
        vmm.write(0, AT, &[1; LEN]).expect("write");
        vmm
    }
}

/// Submits the write, and waits until it hangs in the kernel.
fn submit(vmm: &mut Vmm, pid: u32) {
    let request = Request { kind: kind::OUT, sector: AT, data: Data::ToDevice(&[3; LEN]) };
    vmm.submit(0, 0, &request, &Shape::PLAIN, &mut Rng::with_seed(1));
    vmm.kick(0);
    wait_until("the write does not hang", || hangs(pid));
}

/// Reads notifications until one tells of the write.
fn told_of_the_write(client: &mut Client) -> Value {
    loop {
        let line = client.line().expect("a notification");
        assert_eq!(line["method"], "waiting", "{line}");
        if let Some(operation) = line["params"]["under_way"].get(0) {
            return operation.clone();
        }
    }
}

/// Others have their answers while that client waits.
fn others_go_on(ground: &mut Ground) {
    let began = Instant::now();
    let controlled = &ground.controlled;
    let mut client = controlled.client();
    let info = client.info("slow");
    assert_eq!((&info["connected"], &info["suspended"]), (&json!(true), &json!(false)));
    assert_eq!(client.must("list", json!({})).as_array().map(Vec::len), Some(2));
    controlled.must(&["table"]);
    controlled.must(&["status"]);
    controlled.must(&["suspend", "quick"]);
    controlled.must(&["load", "quick", "--table", &format!("0 {SECTORS} zero")]);
    controlled.must(&["resume", "quick"]);
    controlled.must(&["create", "third", "--table", "0 8 zero"]);
    controlled.must(&["rename", "third", "fourth"]);
    controlled.must(&["remove", "fourth"]);
    let mut vmm = ground.controlled.vmm("quick", &Setup::default());
    assert!(vmm.read(0, 0, LEN) == Ok(vec![0; LEN]));
    // Generous: it only tells waiting for the write from not waiting.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn a_suspend_that_hangs_says_why_and_can_be_taken_back() {
    let Some(mut ground) = Ground::new("a_suspend_that_hangs_says_why_and_can_be_taken_back") else { return };
    let mut vmm = ground.vmm();
    for verb in ["suspend", "resume"] {
        if verb == "resume" {
            ground.controlled.client().load("slow", &format!("0 {SECTORS} error")).expect("load");
        }
        // The guard must not outlive a call of `others_go_on`, which has all of the ground.
        let fs = ground.fs.path().to_owned();
        freeze(&fs, true);
        let thaw = Thaw(&fs);
        submit(&mut vmm, ground.controlled.daemon.pid());
        let mut client = ground.controlled.client();
        client.begin(verb, &json!({"which": which("slow")})).expect("send");
        let operation = told_of_the_write(&mut client);
        assert_eq!((&operation["kind"], &operation["sector"]), (&json!("write"), &json!(AT)), "{operation}");
        assert!(operation["component"].as_str().is_some_and(|name| name.contains("component")), "{operation}");
        others_go_on(&mut ground);
        // The one who waits hangs up: the device goes on, and takes another request at once.
        drop(client);
        let info = || ground.controlled.client().info("slow");
        wait_until("it stays suspended", || info()["suspended"] == false);
        let request = Request { kind: kind::IN, sector: 128, data: Data::FromDevice(LEN) };
        vmm.submit(0, 1, &request, &Shape::PLAIN, &mut Rng::with_seed(1));
        vmm.kick(0);
        let read = vmm.wait(0);
        assert!(read.slot == 1 && read.status == OK && read.data == [1; LEN], "{read:?}");
        drop(thaw);
        assert_eq!(vmm.wait(0).status, OK);
        assert!(vmm.read(0, AT, LEN) == Ok(vec![3; LEN]));
    }
    let info = ground.controlled.client().info("slow");
    assert_eq!(info["inactive"], true, "what was to be resumed is still there: {info}");
    ground.controlled.must(&["suspend", "slow"]);
    drop(vmm);
    ground.controlled.stop();
}

#[test]
fn the_client_shows_what_it_waits_for_and_goes_by_ctrl_c() {
    let Some(mut ground) = Ground::new("the_client_shows_what_it_waits_for_and_goes_by_ctrl_c") else { return };
    let mut vmm = ground.vmm();
    let fs = ground.fs.path().to_owned();
    freeze(&fs, true);
    let thaw = Thaw(&fs);
    submit(&mut vmm, ground.controlled.daemon.pid());
    let dmsetup = dmsetup_command(&ground.controlled.control, ["suspend", "slow"]);
    // Whoever starts tests in the background may have them ignore Ctrl-C, and what they start inherits that.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(dmsetup.get_program()).args(dmsetup.get_args());
    command.envs(dmsetup.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stderr(Stdio::piped()).spawn().expect("start");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("write of 8 sectors at sector 16 of "));
    assert!(line.is_some(), "it does not say what for");
    kill_process(Pid::from_child(&child), Signal::INT).expect("signal");
    assert!(!child.wait().expect("wait").success());
    wait_until("it stays suspended", || ground.controlled.client().info("slow")["suspended"] == false);
    drop(thaw);
    assert_eq!(vmm.wait(0).status, OK);
    // Two who want the same: one waits for the other, and both get it.
    let freeze_again = Thaw(&fs);
    freeze(&fs, true);
    submit(&mut vmm, ground.controlled.daemon.pid());
    let mut clients = [ground.controlled.client(), ground.controlled.client()];
    let mut ids = [0; 2];
    for (at, what) in ["1 operations under way", "another verb"].into_iter().enumerate() {
        ids[at] = clients[at].begin("suspend", &json!({"which": which("slow")})).expect("send");
        let told = clients[at].line().expect("a notification");
        assert!(told["params"]["what"].as_str().is_some_and(|told| told.contains(what)), "{told}");
    }
    drop(freeze_again);
    for (client, id) in clients.iter_mut().zip(ids) {
        let info = client.end(id).expect("an answer").expect("suspended");
        assert_eq!(info["suspended"], true);
    }
    ground.controlled.must(&["resume", "slow"]);
    assert_eq!(vmm.wait(0).status, OK);
    drop(vmm);
    ground.controlled.stop();
}

fn freeze(at: &std::path::Path, freeze: bool) {
    let flag = if freeze { "-f" } else { "-u" };
    let status = Command::new("fsfreeze").arg(flag).arg(at).status().expect("fsfreeze");
    assert!(status.success() || !freeze, "fsfreeze: {status}");
}

/// Thaws a file system, whatever happens.
struct Thaw<'a>(&'a std::path::Path);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        freeze(self.0, false);
    }
}
