//! The control socket as a client sees it: JSON-RPC by hand, and the program's own `dmsetup`.
//!
//! The client here knows nothing of the program's: it judges it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::{Daemon, binary, flag};
use crate::vmm::{Setup, Vmm};

/// A verb that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The `error` of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// An errno, or one of JSON-RPC's numbers.
    pub code: i64,
    /// For people.
    pub message: String,
    /// Lines of the kernel's log.
    pub kernel: Vec<String>,
    /// More.
    pub detail: String,
}

/// A client of the control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    id: u64,
    /// Parameters of the notifications that came while calls were waited for.
    pub told: Vec<Value>,
}

impl Client {
    /// Connects.
    pub fn connect(socket: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream), id: 0, told: Vec::new() })
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next line; an error at the end of the connection.
    pub fn line(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let value: Value = serde_json::from_slice(&line)?;
        if line.last() != Some(&b'\n') || value["jsonrpc"] != "2.0" {
            return Err(io::Error::other(format!("not a line of JSON-RPC: {}", String::from_utf8_lossy(&line))));
        }
        Ok(value)
    }

    /// Sends a call and does not wait for its answer. Returns its id.
    pub fn begin(&mut self, method: &str, params: &Value) -> io::Result<u64> {
        self.id += 1;
        let call = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": self.id});
        self.send(format!("{call}\n").as_bytes())?;
        Ok(self.id)
    }

    /// The answer to a call, and that it is one.
    pub fn end(&mut self, id: u64) -> io::Result<Result<Value, Refusal>> {
        loop {
            let mut answer = self.line()?;
            if answer.get("id").is_none() {
                if answer["method"] != "waiting" {
                    return Err(io::Error::other(format!("a notification of another kind: {answer}")));
                }
                self.told.push(answer["params"].take());
                continue;
            }
            if answer["id"] != id {
                return Err(io::Error::other(format!("an answer to another call than {id}: {answer}")));
            }
            return match (answer.get("result"), answer.get("error")) {
                (Some(result), None) => Ok(Ok(result.clone())),
                (None, Some(error)) => Ok(Err(refusal(error)?)),
                _ => Err(io::Error::other(format!("neither a result nor an error: {answer}"))),
            };
        }
    }

    /// Calls a method.
    ///
    /// # Panics
    /// Where there is no answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Refusal> {
        let id = self.begin(method, &params).unwrap_or_else(|e| panic!("send {method}: {e}"));
        self.end(id).unwrap_or_else(|e| panic!("{method} {params}: {e}"))
    }

    /// Calls a method that must do it.
    ///
    /// # Panics
    /// Where it does not.
    pub fn must(&mut self, method: &str, params: Value) -> Value {
        let shown = params.to_string();
        self.call(method, params).unwrap_or_else(|refusal| panic!("{method} {shown}: {refusal:?}"))
    }

    /// Loads a table.
    pub fn load(&mut self, name: &str, table: &str) -> Result<Value, Refusal> {
        self.call("load", json!({"which": which(name), "table": table}))
    }

    /// Loads a table and makes it the live one.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn swap(&mut self, name: &str, table: &str) -> Value {
        self.must("load", json!({"which": which(name), "table": table}));
        self.must("resume", json!({"which": which(name)}))
    }

    /// A device by name.
    ///
    /// # Panics
    /// Where there is none.
    pub fn info(&mut self, name: &str) -> Value {
        self.must("info", which(name))
    }
}

/// A device by its name, as methods take it.
pub fn which(name: &str) -> Value {
    json!({ "name": name })
}

fn refusal(error: &Value) -> io::Result<Refusal> {
    let malformed = || io::Error::other(format!("an error without code or message: {error}"));
    let lines = |value: &Value| {
        let lines = value.as_array().map(Vec::as_slice).unwrap_or_default();
        lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
    };
    Ok(Refusal {
        code: error["code"].as_i64().ok_or_else(malformed)?,
        message: error["message"].as_str().ok_or_else(malformed)?.to_owned(),
        kernel: lines(&error["data"]["kernel"]),
        detail: error["data"]["detail"].as_str().unwrap_or_default().to_owned(),
    })
}

/// What a command said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// `vhost-user-dm dmsetup ARGS`, ready to run, with `input` as its standard input.
pub fn dmsetup_command<S: AsRef<OsStr>>(control: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary());
    command.arg("dmsetup").args(args).env("VHOST_USER_DM_CONTROL", control).stdin(Stdio::null());
    command
}

/// Runs `vhost-user-dm dmsetup ARGS`.
pub fn dmsetup<S: AsRef<OsStr>>(control: &Path, args: impl IntoIterator<Item = S>) -> Output {
    said(&mut dmsetup_command(control, args))
}

/// Runs a command to its end.
pub fn said(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A daemon whose devices come and go by its control socket.
#[derive(Debug)]
pub struct Controlled {
    /// The process.
    pub daemon: Daemon,
    /// Its control socket.
    pub control: PathBuf,
    /// Its directory of sockets.
    pub sockets: PathBuf,
    args: Vec<String>,
    dir: TempDir,
}

impl Controlled {
    /// Without devices.
    pub fn empty() -> Controlled {
        Self::start("", &[])
    }

    /// With the devices of a concise table and further arguments.
    pub fn start(concise: &str, args: &[&str]) -> Controlled {
        let dir = tempfile::tempdir().expect("a directory");
        let (control, sockets) = (dir.path().join("control"), dir.path().join("sockets"));
        fs::create_dir(&sockets).expect("a directory");
        let mut all = vec![flag("--control-path", &control), flag("--socket-dir", &sockets)];
        if !concise.is_empty() {
            let file = dir.path().join("devices.concise");
            fs::write(&file, concise).expect("write the table");
            all.extend([flag("--table", &file), "--concise".to_owned()]);
        }
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        let mut controlled = Controlled { daemon: Daemon::start(&all), control, sockets, args: all, dir };
        controlled.wait_up();
        controlled
    }

    /// Starts the process again, which has ended.
    pub fn start_again(&mut self) {
        self.daemon = Daemon::start(&self.args);
        self.wait_up();
    }

    fn wait_up(&mut self) {
        let control = self.control.clone();
        self.daemon.wait_listening(&control);
    }

    /// The command line of the process.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A client.
    pub fn client(&self) -> Client {
        Client::connect(&self.control).unwrap_or_else(|e| panic!("{}: {e}", self.control.display()))
    }

    /// `dmsetup ARGS` to its end.
    pub fn dmsetup(&self, args: &[&str]) -> Output {
        dmsetup(&self.control, args)
    }

    /// `dmsetup ARGS`, which must succeed and complain of nothing: what it printed.
    pub fn must(&self, args: &[&str]) -> String {
        let output = self.dmsetup(args);
        assert!(output.code == 0 && output.stderr.is_empty(), "dmsetup {args:?}: {output:?}");
        output.stdout
    }

    /// `dmsetup ARGS`, which must fail: what it said on standard error.
    pub fn must_not(&self, args: &[&str]) -> String {
        let output = self.dmsetup(args);
        assert!(output.code == 1 && !output.stderr.is_empty(), "dmsetup {args:?}: {output:?}");
        output.stderr
    }

    /// The socket of a device.
    pub fn socket(&self, device: &str) -> PathBuf {
        self.sockets.join(format!("{device}.sock"))
    }

    /// A front end of a device.
    pub fn vmm(&mut self, device: &str, setup: &Setup) -> Vmm {
        let socket = self.socket(device);
        self.daemon.vmm(&socket, setup)
    }

    /// Ends it as an operator does.
    pub fn stop(self) {
        let control = self.control.clone();
        self.daemon.stop();
        assert!(!control.exists(), "the control socket is still there");
    }
}

/// Waits until something is so.
///
/// # Panics
/// After a minute.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
