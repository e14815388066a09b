//! Clients that mean harm, or are broken beyond sense. After each the process lives, another client has its answers, and a
//! front end its data.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dm_tests::blk::{Data, Request, Shape, kind};
use dm_tests::control::{Client, Controlled, Refusal, said, wait_until, which};
use dm_tests::daemon::binary;
use dm_tests::files;
use dm_tests::rng::{Repeat, seeds};
use dm_tests::skip;
use dm_tests::vmm::{Setup, Vmm};
use fastrand::Rng;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::SECTOR;

const SECTORS: u64 = 256;
const LEN: usize = 8 * SECTOR;

/// A process with a disk that a well-behaved front end has, and one to be mistreated.
struct Victim {
    controlled: Controlled,
    vmm: Vmm,
    rounds: u64,
    renewals: usize,
    component: PathBuf,
    _dir: TempDir,
}

impl Victim {
    fn new() -> Victim {
        let dir = files::disk_dir();
        let component = dir.path().join("component");
        files::component(&component, &vec![1; SECTORS as usize * SECTOR]);
        let concise = format!("good,,,rw,0 {SECTORS} linear {} 0;bad,U,,rw,0 8 zero", component.display());
        let mut controlled = Controlled::start(&concise, &[]);
        let vmm = controlled.vmm("good", &Setup::default());
        Victim { controlled, vmm, rounds: 0, renewals: 0, component, _dir: dir }
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.controlled.control).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream
    }

    fn assert_well(&mut self, after: &str) {
        self.rounds += 1;
        self.controlled.daemon.assert_running();
        let info = self.controlled.client().info("good");
        let fine = info["live"] == true && info["suspended"] == false && info["sectors"] == SECTORS;
        assert!(fine && info["connected"] == true, "after {after}: {info}");
        let bytes = vec![self.rounds as u8; LEN];
        self.vmm.write(0, 8, &bytes).unwrap_or_else(|e| panic!("after {after}: {e:?}"));
        assert!(self.vmm.read(0, 8, LEN) == Ok(bytes), "after {after}");
    }

    /// A client that has had an answer; `None` if there are too many of them.
    fn admitted(&self) -> Option<Client> {
        let mut client = self.controlled.client();
        let answer = client.begin("info", &which("good")).and_then(|id| client.end(id));
        answer.is_ok_and(|answer| answer.is_ok()).then_some(client)
    }

    /// The device to be mistreated, whatever has become of it.
    fn renew_bad(&mut self) {
        self.try_renew_bad().unwrap_or_else(|refusal| panic!("the device cannot be renewed: {refusal:?}"));
    }

    fn try_renew_bad(&mut self) -> Result<(), Refusal> {
        self.renewals += 1;
        let mut client = self.controlled.client();
        let list = client.must("list", json!({}));
        let names = list.as_array().into_iter().flatten().filter_map(|info| info["name"].as_str());
        for name in names.filter(|name| *name != "good").map(str::to_owned).collect::<Vec<_>>() {
            client.call("remove", json!({"which": which(&name)}))?;
        }
        client.call("create", json!({"name": "bad", "uuid": "U"}))?;
        client.load("bad", "0 8 zero")?;
        client.call("resume", json!({"which": which("bad")})).map(drop)
    }

    fn stop(self) {
        drop(self.vmm);
        let lines = self.controlled.daemon.log().lines().count();
        self.controlled.stop();
        assert!(lines < 1000 + 5 * self.renewals, "{lines} lines of log");
        drop(self.component);
    }
}

/// Everything that comes until the other side hangs up.
fn drain(mut stream: &UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it does not hang up"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_is_no_request_gets_an_error_and_a_valid_one_after_it_an_answer() {
    let mut victim = Victim::new();
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let mut lines: Vec<(Vec<u8>, i64)> = vec![
        (b"hello".to_vec(), -32700),
        (b"{".to_vec(), -32700),
        (b"\0\0\0\0".to_vec(), -32700),
        (b"\xff\xfe{}".to_vec(), -32700),
        (b"{} {}".to_vec(), 0),
        (b"null".to_vec(), -32600),
        (b"17".to_vec(), -32600),
        (b"{}".to_vec(), -32600),
        (b"[]".to_vec(), -32600),
        (deep("[", "]").into_bytes(), -32600),
        (deep("{\"a\":", "}").into_bytes(), 0),
        (br#"{"jsonrpc":"1.0","method":"list","id":1}"#.to_vec(), -32600),
        (br#"{"jsonrpc":"2.0","method":["list"],"id":1}"#.to_vec(), -32600),
        (br#"{"jsonrpc":"2.0","method":"list","id":{}}"#.to_vec(), -32600),
        (br#"{"jsonrpc":"2.0","method":"","id":1}"#.to_vec(), -32601),
        (br#"{"jsonrpc":"2.0","method":"LIST","id":1}"#.to_vec(), -32601),
        (br#"{"jsonrpc":"2.0","method":"list","params":[],"id":1}"#.to_vec(), 0),
        (br#"{"jsonrpc":"2.0","method":"info","params":[],"id":1}"#.to_vec(), 0),
        (br#"{"jsonrpc":"2.0","method":"info","params":"good","id":1}"#.to_vec(), -32602),
    ];
    let nested = deep("[", "]");
    lines.push((format!(r#"{{"jsonrpc":"2.0","method":"info","params":{nested},"id":1}}"#).into_bytes(), 0));
    for (line, code) in lines {
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        let mut client = victim.controlled.client();
        client.send(&[&line[..], b"\n"].concat()).expect("send");
        let answer = client.line().unwrap_or_else(|e| panic!("{shown}: {e}"));
        let said = answer["error"]["code"].as_i64();
        assert!(
            answer.get("result").is_some() || said.is_some_and(|said| code == 0 || said == code),
            "{shown}: {answer}"
        );
        assert!(said.is_none() || answer["error"]["message"].as_str().is_some_and(|m| m.len() < 2000), "{answer}");
        assert_eq!(client.info("good")["name"], "good", "after {shown}");
    }
    victim.assert_well("lines that are no requests");
    victim.stop();
}

#[test]
fn random_bytes_are_survived() {
    let mut victim = Victim::new();
    for seed in seeds(300, 4) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        for _ in 0..50 {
            let mut stream = victim.stream();
            let mut bytes: Vec<u8> = match rng.bool() {
                true => (0..rng.usize(..3000)).map(|_| rng.u8(..)).collect(),
                // A request with some bytes changed.
                false => {
                    let params = json!({"which": which("bad"), "table": "0 8 error", "sector": 0, "args": ["x"]});
                    let method = *rng.choice(&METHODS).expect("methods");
                    json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).to_string().into_bytes()
                }
            };
            for _ in 0..rng.usize(..6) {
                if let Some(byte) = rng.choice(0..bytes.len()).and_then(|at| bytes.get_mut(at)) {
                    *byte = rng.u8(..);
                }
            }
            bytes.push(b'\n');
            let _ = stream.write_all(&bytes);
            // Some leave without a look at the answers.
            if rng.bool() {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                drain(&stream);
            }
        }
        victim.assert_well("random bytes");
    }
    victim.stop();
}

#[test]
fn half_a_line_is_no_request() {
    let mut victim = Victim::new();
    let request = br#"{"jsonrpc":"2.0","method":"remove","params":{"which":{"name":"bad"}},"id":1}"#;
    for cut in [1, 20, request.len()] {
        let mut stream = victim.stream();
        stream.write_all(&request[..cut]).expect("send");
        match cut {
            // It hangs up, or only says that it will send no more.
            20 => stream.shutdown(std::net::Shutdown::Both).expect("hang up"),
            _ => {
                stream.shutdown(std::net::Shutdown::Write).expect("end");
                assert!(drain(&stream).contains("-32700"), "no error for half a line");
            }
        }
    }
    // In pieces it is one.
    let mut client = victim.controlled.client();
    assert_eq!(client.info("bad")["name"], "bad");
    let whole = br#"{"jsonrpc":"2.0","method":"info","params":{"name":"bad"},"id":"\u00e4"}"#;
    for byte in whole.iter().chain(b"\r\n") {
        client.send(&[*byte]).expect("send");
    }
    assert_eq!(client.line().expect("an answer")["id"], "ä");
    victim.assert_well("half a line");
    victim.stop();
}

#[test]
fn a_line_of_100_megabytes_is_refused_and_not_kept() {
    let mut victim = Victim::new();
    let mut stream = victim.stream();
    let chunk = vec![b'['; 1 << 20];
    let sent = (0..100).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 100, "it took all of it");
    assert!(drain(&stream).contains("-32000"), "it does not say why it hung up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", victim.controlled.daemon.pid())).expect("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 128 << 10, "{kib} KiB");
    victim.assert_well("a line of 100 MB");
    victim.stop();
}

const METHODS: [&str; 17] = [
    "create", "remove", "rename", "load", "clear", "suspend", "resume", "message", "info", "list", "table", "status",
    "deps", "targets", "wait", "stats", "version",
];

/// Parameters with which a method does something.
fn sensible(method: &str) -> Value {
    let which = which("bad");
    match method {
        "create" => json!({"name": "another", "uuid": "V", "minor": 77}),
        "remove" => json!({"which": which, "deferred": false, "force": false}),
        "rename" => json!({"which": which, "name": "renamed"}),
        "load" => {
            json!({"which": which, "table": "0 8 zero", "source": "here", "directory": "/", "read_only": false, "force": false})
        }
        "suspend" => json!({"which": which, "noflush": true}),
        "resume" => json!({"which": which, "noflush": true, "force": true}),
        "message" => json!({"which": which, "sector": 0, "args": ["@cancel_deferred_remove"]}),
        "clear" | "info" => which,
        "table" | "status" | "deps" => json!({"which": which, "inactive": false}),
        "wait" => json!({"which": which, "event_nr": 0}),
        "stats" => json!({"which": which, "segments": true}),
        _ => json!({}),
    }
}

/// Values of all kinds, none of which fits everywhere.
fn values() -> Vec<Value> {
    let numbers =
        ["-1", "1.5", "0", "4294967295", "4294967296", "18446744073709551615", "1e308", "-9223372036854775808"];
    let mut values: Vec<Value> = numbers.iter().map(|text| serde_json::from_str(text).expect("a number")).collect();
    let texts =
        ["", "bad", "/", "..", "control", "a/b", "a\0b", "\u{202e}x", "name\nwith\nlines", "0 8 zero\n8 8", "\\x20"];
    values.extend(texts.map(Value::from));
    values.extend([json!(null), json!(true), json!([]), json!({}), json!([["x"]]), json!({"name": "bad", "minor": 1})]);
    values.extend([Value::from("n".repeat(129)), Value::from("0 1 zero\n".repeat(20_000)), json!(vec!["w"; 5000])]);
    values
}

/// With each member left out, of another kind, and one too many; and what is no object at all.
fn variants(params: &Value) -> Vec<Value> {
    let mut variants = values();
    let object = params.as_object().expect("an object");
    for (key, value) in object {
        let mut without = object.clone();
        without.remove(key);
        variants.push(Value::Object(without));
        let deeper = if value.is_object() { self::variants(value) } else { values() };
        for other in deeper {
            let mut with: Map<String, Value> = object.clone();
            with.insert(key.clone(), other);
            variants.push(Value::Object(with));
        }
    }
    let mut surplus = object.clone();
    surplus.insert("surplus".into(), json!(1));
    variants.push(Value::Object(surplus));
    variants
}

/// Whether this would wait indeed.
fn is_a_wait(method: &str, params: &Value) -> bool {
    let number = &params["event_nr"];
    let for_an_event = number.is_null() || number.as_u64().is_some_and(|number| number <= u64::from(u32::MAX));
    method == "wait" && params["which"] == which("bad") && params.get("surplus").is_none() && for_an_event
}

#[test]
fn every_method_takes_only_what_it_understands() {
    let mut victim = Victim::new();
    for method in METHODS {
        let params = sensible(method);
        let (mut refused, mut done) = (0, 0);
        let mut client = victim.controlled.client();
        for variant in variants(&params) {
            if is_a_wait(method, &variant) {
                continue;
            }
            match client.call(method, variant.clone()) {
                Ok(_) => {
                    done += 1;
                    victim.renew_bad();
                }
                Err(refusal) => {
                    refused += 1;
                    let known = refusal.code == -32602 || (1..134).contains(&refusal.code);
                    assert!(known && !refusal.message.is_empty(), "{method} {variant}: {refusal:?}");
                    assert!(refusal.message.len() < 4000 && refusal.detail.len() < 20_000, "{method}: a long refusal");
                }
            }
            let surplus = variant.get("surplus").is_some();
            assert!(
                !surplus || client.call(method, variant).is_err(),
                "{method} takes a parameter that it does not know"
            );
            victim.renew_bad();
        }
        assert!(refused > 20, "{method}: {refused} refused, {done} done");
        victim.assert_well(method);
    }
    victim.stop();
}

#[test]
fn fifty_clients_at_once_have_their_answers() {
    let mut victim = Victim::new();
    let component = victim.component.display().to_string();
    std::thread::scope(|scope| {
        for number in 0..50 {
            let (controlled, component) = (&victim.controlled, &component);
            scope.spawn(move || {
                let mut client = controlled.client();
                for round in 0..4 {
                    let (name, new) = (format!("of{number}"), format!("of{number}.{round}"));
                    client.must("create", json!({ "name": name }));
                    client.swap(
                        &name,
                        &format!("0 8 linear {component} {}\n8 {} zero", number * 8 % 128 + 16, number + 1),
                    );
                    client.must("rename", json!({"which": which(&name), "name": new}));
                    assert_eq!(client.info(&new)["sectors"], 9 + number);
                    client.must("suspend", json!({"which": which(&new)}));
                    client.must("resume", json!({"which": which(&new)}));
                    client.load("bad", &format!("0 {} zero", number + 1)).expect("load");
                    client.must("resume", json!({"which": which("bad")}));
                    client.must("remove", json!({"which": which(&new)}));
                }
            });
        }
    });
    let list = victim.controlled.client().must("list", json!({}));
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list}");
    victim.assert_well("50 clients");
    // More than there is room for are told so, and others come in when they have left.
    let mut clients = Vec::new();
    wait_until("there is no room for 64", || {
        // Those who have left may not have been missed yet.
        clients.extend(victim.admitted());
        clients.len() == 64
    });
    let refused = victim.controlled.client().line().expect("a word");
    assert_eq!(refused["error"]["code"], -32001, "{refused}");
    drop(clients);
    wait_until("nobody is let in", || victim.admitted().is_some());
    victim.assert_well("64 clients");
    victim.stop();
}

#[test]
fn two_clients_that_load_one_device_do_not_mix_their_tables() {
    let mut victim = Victim::new();
    let component = victim.component.display().to_string();
    let tables = [
        format!("0 {SECTORS} linear {component} 0"),
        format!("0 8 linear {component} 0\n8 {} linear {component} 8", SECTORS - 8),
    ];
    std::thread::scope(|scope| {
        let swappers = tables.each_ref().map(|table| {
            let controlled = &victim.controlled;
            scope.spawn(move || {
                let mut client = controlled.client();
                for _ in 0..100 {
                    client.load("good", table).expect("load");
                    client.must("resume", json!({"which": which("good")}));
                }
            })
        });
        while !swappers.iter().all(|swapper| swapper.is_finished()) {
            assert!(victim.vmm.read(0, 16, LEN).is_ok_and(|bytes| bytes == [1; LEN]));
        }
    });
    let lines = victim.controlled.client().must("table", json!({"which": which("good")}));
    let lines = lines.as_array().expect("lines");
    assert!((1..=2).contains(&lines.len()), "{lines:?}");
    victim.assert_well("two who load");
    victim.stop();
}

#[test]
fn tables_are_swapped_while_front_ends_come_go_and_die() {
    let mut victim = Victim::new();
    let component = victim.component.display().to_string();
    let Victim { controlled, vmm, .. } = victim;
    drop(vmm);
    let mut daemon_side = controlled;
    let (control, socket) = (daemon_side.control.clone(), daemon_side.socket("good"));
    let swaps = std::thread::spawn(move || {
        let mut client = Client::connect(&control).expect("connect");
        for round in 0..150 {
            client.swap("good", &format!("0 {SECTORS} linear {component} 0"));
            if round % 3 == 0 {
                client.must("suspend", json!({"which": which("good")}));
                client.must("resume", json!({"which": which("good")}));
            }
        }
    });
    let mut rng = Rng::with_seed(8);
    while !swaps.is_finished() {
        let mut vmm = daemon_side.daemon.vmm(&socket, &Setup { queues: 4, ..Setup::default() });
        assert!(vmm.read(0, 16, LEN).is_ok_and(|bytes| bytes == [1; LEN]));
        for queue in 0..4 {
            for slot in 0..8 {
                let request = Request { kind: kind::IN, sector: rng.u64(..SECTORS - 8), data: Data::FromDevice(LEN) };
                vmm.submit(queue, slot, &request, &Shape::PLAIN, &mut rng);
            }
            vmm.kick(queue);
        }
        match rng.u8(..3) {
            0 => vmm.conn.send_raw(&[0xff; 12], &[]).unwrap_or_default(),
            1 => vmm.conn.stream().shutdown(std::net::Shutdown::Both).expect("hang up"),
            _ => {}
        }
    }
    swaps.join().expect("the swaps");
    let vmm = daemon_side.vmm("good", &Setup::default());
    victim =
        Victim { controlled: daemon_side, vmm, rounds: 0, renewals: 0, component: victim.component, _dir: victim._dir };
    victim.assert_well("front ends that come and go");
    victim.stop();
}

#[test]
fn clients_that_do_not_read_are_in_nobodys_way() {
    let mut victim = Victim::new();
    let request = format!("{}\n", json!({"jsonrpc": "2.0", "method": "list", "params": {}, "id": 1}));
    let streams: Vec<UnixStream> = (0..8).map(|_| victim.stream()).collect();
    for mut stream in &streams {
        stream.set_nonblocking(true).expect("non-blocking");
        // Until neither side takes any more.
        while stream.write_all(request.as_bytes()).is_ok() {}
    }
    victim.assert_well("clients that do not read");
    victim.controlled.client().swap("bad", "0 16 zero");
    // Who waits and leaves, again and again, leaves nothing behind.
    for _ in 0..200 {
        let mut client = victim.controlled.client();
        // There may be 64 of them that have not been missed yet.
        let _ = client.begin("wait", &json!({"which": which("bad")}));
    }
    wait_until("those who left are still served", || victim.admitted().is_some());
    drop(streams);
    victim.assert_well("clients that leave");
    victim.stop();
}

#[test]
fn a_verb_whose_client_disconnects_is_done_whole_or_not_at_all() {
    let mut victim = Victim::new();
    let mut rng = Rng::with_seed(5);
    for round in 0..200 {
        let mut client = victim.controlled.client();
        let (method, params) = match round % 4 {
            0 => ("load", json!({"which": which("bad"), "table": "0 8 error"})),
            1 => ("resume", json!({"which": which("bad")})),
            2 => ("suspend", json!({"which": which("bad")})),
            _ => ("rename", json!({"which": which("bad"), "name": "bad2"})),
        };
        client.begin(method, &params).expect("send");
        std::thread::sleep(Duration::from_micros(rng.u64(..300)));
        drop(client);
        let mut other = victim.controlled.client();
        let list = other.must("list", json!({}));
        let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(|info| info["name"].as_str()).collect();
        assert!(names.len() == 2 && names.contains(&"good"), "{names:?}");
        let _ = other.call("rename", json!({"which": which("bad2"), "name": "bad"}));
    }
    // Verbs of those who have left may still be done.
    wait_until("the device cannot be renewed", || victim.try_renew_bad().is_ok());
    victim.assert_well("clients that disconnect");
    victim.stop();
}

#[test]
fn other_users_are_refused() {
    let mut victim = Victim::new();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("stat").permissions().mode() & 0o777;
    assert_eq!(mode(&victim.controlled.control), 0o600);
    if !skip::is_root() {
        return skip::skip("other_users_are_refused", "it takes root to be another user");
    }
    let chmod = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let dir = victim.controlled.dir().to_owned();
    let program = dir.join("vhost-user-dm");
    // Not by this process: what other tests start meanwhile would have it open for writing, and then it cannot be run.
    let copied = said(Command::new("cp").arg(binary()).arg(&program));
    assert_eq!(copied.code, 0, "{copied:?}");
    chmod(&program, 0o755);
    chmod(&dir, 0o755);
    let other = |victim: &Victim| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["dmsetup", "remove", "bad"]);
        said(command.env("VHOST_USER_DM_CONTROL", &victim.controlled.control))
    };
    let output = other(&victim);
    assert!(output.code == 1 && output.stderr.contains("Permission denied"), "{output:?}");
    // Even where the socket's mode is not what keeps it out.
    chmod(&victim.controlled.control, 0o666);
    let output = other(&victim);
    assert!(output.code == 1 && output.stderr.contains("you are user 65534"), "{output:?}");
    assert_eq!(victim.controlled.client().info("bad")["name"], "bad");
    victim.assert_well("another user");
    victim.stop();
}
