//! For tests: a command's outputs, and a process that answers as the test wants it.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::console::Console;

/// What was written.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Exit code, and both outputs in the order of writing.
pub(super) fn dmsetup(words: &[&str]) -> (u8, String) {
    let paper = Paper::default();
    let mut console = Console::new(Box::new(paper.clone()), Box::new(paper.clone()));
    let code = super::run(words.iter().map(OsString::from), &mut console);
    assert!(console.finish());
    let written = paper.0.lock().unwrap().clone();
    (code, String::from_utf8(written).unwrap())
}

/// A process with `answer` for its methods.
pub(super) struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    /// An answer is a result, or the number of an error.
    pub fn new(answer: impl Fn(&str, &Value) -> Result<Value, i32> + Send + 'static) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("c")).unwrap();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut writer = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines() {
                    let Ok(Ok(request)) = line.map(|line| serde_json::from_str::<Value>(&line)) else { break };
                    let mut message = json!({"jsonrpc": "2.0", "id": request["id"]});
                    match answer(request["method"].as_str().unwrap_or_default(), &request["params"]) {
                        Ok(result) => message["result"] = result,
                        Err(code) => message["error"] = json!({"code": code, "message": "no"}),
                    }
                    if writeln!(writer, "{message}").is_err() {
                        break;
                    }
                }
            }
        });
        Fake { dir }
    }

    pub fn dmsetup(&self, line: &str) -> (u8, String) {
        let path = self.dir.path().join("c");
        let words: Vec<&str> = ["--control-path", path.to_str().unwrap()].into_iter().chain(line.split(' ')).collect();
        dmsetup(&words)
    }
}
