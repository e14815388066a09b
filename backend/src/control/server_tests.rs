use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::value::RawValue;

use super::*;
use crate::control::client::{Client as Caller, ClientError};
use crate::control::schema::{UnderWay, Waiting};
use crate::mapper::{Caller as _, DmError};

/// Longest time for what should take none.
const LONG: Duration = Duration::from_secs(60);

/// Methods that show what a real one may do to its client.
struct Fake {
    done: Arc<AtomicUsize>,
    /// A client of `hang` is waited for.
    hanging: Mutex<Sender<()>>,
    /// A client of `hang` was seen to be gone.
    gone: Mutex<Sender<()>>,
}

impl Handler for Fake {
    fn call(&self, method: &str, params: Option<&RawValue>, client: &Client<'_>) -> Result<Box<RawValue>, Fault> {
        self.done.fetch_add(1, Ordering::SeqCst);
        match method {
            "echo" => Ok(params.unwrap().to_owned()),
            "big" => Ok(serde_json::value::to_raw_value(&"x".repeat(8 << 20)).unwrap()),
            "refuse" => Err(DmError::new(libc::EBUSY).kernel("ioctl: no").detail("why").into()),
            "tell" => {
                let under_way = vec![UnderWay { kind: "read".into(), ..UnderWay::default() }];
                client.tell(&Waiting { what: "the disk".into(), under_way });
                Ok(serde_json::value::to_raw_value(&1).unwrap())
            }
            "flood" => {
                (0..100_000).for_each(|_| client.tell(&Waiting { what: "x".repeat(100), ..Waiting::default() }));
                Ok(serde_json::value::to_raw_value(&1).unwrap())
            }
            "hang" => {
                self.hanging.lock().unwrap().send(()).unwrap();
                while !client.gone() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.gone.lock().unwrap().send(()).unwrap();
                Err(DmError::new(libc::EINTR).into())
            }
            _ => Err(Fault::new(wire::METHOD_NOT_FOUND, "no")),
        }
    }
}

struct Ground {
    dir: tempfile::TempDir,
    server: Option<Server>,
    done: Arc<AtomicUsize>,
    hanging: Receiver<()>,
    gone: Receiver<()>,
}

impl Ground {
    fn new() -> Ground {
        let dir = tempfile::tempdir().unwrap();
        let (hang, hanging) = channel();
        let (send, gone) = channel();
        let done = Arc::new(AtomicUsize::new(0));
        let fake = Fake { done: done.clone(), hanging: Mutex::new(hang), gone: Mutex::new(send) };
        let server = Server::serve(Box::new(fake), &dir.path().join("s")).unwrap();
        Ground { dir, server: Some(server), done, hanging, gone }
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("s")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn client(&self) -> Caller {
        Caller::connect(&self.dir.path().join("s")).unwrap()
    }

    /// Sends `input`, says that nothing follows, and returns all answers.
    fn talk(&self, input: &[u8]) -> Vec<serde_json::Value> {
        let mut stream = self.stream();
        stream.write_all(input).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let lines = BufReader::new(stream).lines();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }
}

fn echo(id: usize) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"params\":[{id}],\"id\":{id}}}\n")
}

#[test]
fn answers_come_in_order_and_garbage_is_answered_too() {
    let ground = Ground::new();
    let lines: String = (0..1000).map(echo).collect();
    let answers = ground.talk(lines.as_bytes());
    assert_eq!(answers.len(), 1000);
    for (id, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, serde_json::json!({"jsonrpc": "2.0", "result": [id], "id": id}));
    }
    let garbage = b"\x00\xff\n\n \r\n{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"id\":7}\n[]\n{\n";
    let codes: Vec<_> = ground.talk(garbage).iter().map(|answer| answer["error"]["code"].as_i64().unwrap()).collect();
    assert_eq!(codes, [wire::PARSE_ERROR, wire::METHOD_NOT_FOUND, wire::INVALID_REQUEST, wire::PARSE_ERROR]);
}

#[test]
fn a_notification_is_done_without_an_answer_and_half_a_line_is_not_done() {
    let ground = Ground::new();
    let notifications = b"{\"jsonrpc\":\"2.0\",\"method\":\"tell\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"refuse\"}\n";
    assert_eq!(ground.talk(notifications), Vec::<serde_json::Value>::new());
    assert_eq!(ground.done.load(Ordering::SeqCst), 2);
    let answers = ground.talk(echo(1).trim_end().as_bytes());
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["error"]["code"], wire::PARSE_ERROR);
    drop(ground.stream().write_all(echo(1).trim_end().as_bytes()));
    assert_eq!(ground.talk(echo(2).as_bytes()).len(), 1);
    assert_eq!(ground.done.load(Ordering::SeqCst), 3);
}

#[test]
fn a_line_has_a_longest_length() {
    let ground = Ground::new();
    let longest = |length: usize| {
        let frame = r#"{"jsonrpc":"2.0","method":"echo","id":1,"params":[""]}"#.len();
        let text = "x".repeat(length - frame);
        format!("{{\"jsonrpc\":\"2.0\",\"method\":\"echo\",\"id\":1,\"params\":[\"{text}\"]}}\n")
    };
    // Answers are read meanwhile, as they are as long.
    let mut stream = ground.stream();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(longest(MAX_LINE).as_bytes()).unwrap();
        let _ = writer.write_all(longest(MAX_LINE + 1).as_bytes());
        // The server hangs up and does not take it all.
        (0..100).map(|_| writer.write_all(&[b'x'; 1 << 20])).any(|written| written.is_err())
    });
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    let mut lines = answers.split(|&byte| byte == b'\n');
    assert!(lines.next().unwrap().len() > MAX_LINE - 100);
    let refused: serde_json::Value = serde_json::from_slice(lines.next().unwrap()).unwrap();
    assert_eq!(refused["error"]["code"], wire::LINE_TOO_LONG);
    assert!(sender.join().unwrap());
    assert_eq!(ground.talk(echo(1).as_bytes()).len(), 1);
}

#[test]
fn so_many_clients_and_no_more() {
    let ground = Ground::new();
    // Each has been taken when it is answered.
    let mut clients: Vec<Caller> = (0..MAX_CLIENTS).map(|_| ground.client()).collect();
    for client in &mut clients {
        assert_eq!(client.call::<Vec<u32>>("echo", &[7]).unwrap(), [7]);
    }
    match ground.client().call::<u32>("echo", &[7]) {
        Err(ClientError::Request { code, message }) => {
            assert_eq!(code, wire::TOO_MANY_CLIENTS);
            assert!(message.contains("64"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    drop(clients.pop());
    let started = std::time::Instant::now();
    while ground.client().call::<Vec<u32>>("echo", &[7]).is_err() {
        assert!(started.elapsed() < LONG);
    }
}

#[test]
fn a_verb_sees_its_client_go_and_a_client_sees_what_a_verb_waits_for() {
    let ground = Ground::new();
    let mut told = Vec::new();
    let result: u32 = ground.client().call_patiently("tell", &(), &mut |waiting| told.push(waiting.clone())).unwrap();
    assert_eq!((result, told[0].what.as_str(), told[0].under_way[0].kind.as_str()), (1, "the disk", "read"));
    let mut stream = ground.stream();
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"hang\",\"id\":1}\n").unwrap();
    // One that will send no more is still there: it waits.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(ground.gone.recv_timeout(Duration::from_millis(50)).is_err());
    drop(stream);
    ground.gone.recv_timeout(LONG).unwrap();
}

#[test]
fn refusals_keep_their_errno_and_words() {
    let ground = Ground::new();
    match ground.client().call::<u32>("refuse", &()) {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error, DmError::new(libc::EBUSY).kernel("ioctl: no").detail("why"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_processs_user_and_root_are_admitted() {
    let [root, one, other] = [0, 1000, 1001].map(Uid::from_raw);
    assert!(may(one, one) && may(root, one) && may(root, root));
    assert!(!may(other, one) && !may(one, root));
}

#[test]
fn one_that_reads_nothing_is_in_nobodys_way() {
    let mut ground = Ground::new();
    let mut deaf: Vec<UnixStream> = (0..4).map(|_| ground.stream()).collect();
    for (index, stream) in deaf.iter_mut().enumerate() {
        let method = if index % 2 == 0 { "big" } else { "flood" };
        let line = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"id\":1}}\n");
        stream.write_all(line.repeat(10).as_bytes()).unwrap();
    }
    let mut hanging = ground.stream();
    hanging.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"hang\",\"id\":1}\n").unwrap();
    assert_eq!(ground.talk(echo(1).as_bytes()).len(), 1);
    // A request that has not been read when the end comes is not done at all.
    ground.hanging.recv_timeout(LONG).unwrap();
    // Nor does the end wait for any of them: the one that hangs is told, before the others' time is over.
    let server = ground.server.take();
    let ended = std::time::Instant::now();
    drop(server);
    assert!(ended.elapsed() < LONG);
    ground.gone.recv_timeout(LONG).unwrap();
    assert!(!ground.dir.path().join("s").exists());
}
