//! Another process at the socket that is private to this one.
//!
//! A binary of its own: a process that is started has a copy of every open file until it runs its program, and the library's own
//! tests, which run beside each other, lock files and find them free.
#![allow(missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use vhost_user_dm::frontend::private::Private;

/// Set to the path of the socket in the process that plays the stranger.
const STRANGER: &str = "VHOST_USER_DM_TEST_STRANGER";
const NAME: &str = "another_process_that_connects_is_passed_over";

fn play_stranger(path: &str) {
    let mut stream = UnixStream::connect(path).expect("connect");
    println!("CONNECTED");
    let got = stream.read(&mut [0]);
    assert!(matches!(got, Ok(0)) || got.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

/// A process that has connected to the socket at this path of ours.
fn stranger(at: &str) -> Child {
    let at = at.replace("self", &std::process::id().to_string());
    let mut command = Command::new(std::env::current_exe().expect("the test has an executable"));
    command.args(["--exact", NAME, "--nocapture"]).env(STRANGER, at).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start the stranger");
    let (mut said, mut output) = (String::new(), child.stdout.take().expect("a pipe"));
    while !said.contains("CONNECTED") {
        let mut some = [0; 256];
        let len = output.read(&mut some).expect("read what it says");
        assert!(len > 0, "the stranger ended: {said}");
        said.push_str(&String::from_utf8_lossy(&some[..len]));
    }
    // It may go on saying things.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    child
}

#[test]
fn another_process_that_connects_is_passed_over() {
    if let Ok(path) = std::env::var(STRANGER) {
        return play_stranger(&path);
    }
    let private = Private::new().expect("a socket");
    let mut path = String::new();
    private.connect(|at| UnixStream::connect(at).inspect(|_| path = at.to_owned())).expect("our own connection");
    let mut strangers = Vec::new();
    for drained in [true, false] {
        let (mut a, mut b) = if drained {
            strangers.push(stranger(&path));
            private.connect(|at| UnixStream::connect(at)).expect("our own connection")
        } else {
            // Between looking whether somebody is there and connecting.
            let both = |at: &str| {
                strangers.push(stranger(at));
                UnixStream::connect(at)
            };
            private.connect(both).expect("our own connection")
        };
        a.write_all(b"x").expect("write");
        let mut got = [0];
        b.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"x");
    }
    for mut stranger in strangers {
        assert!(stranger.wait().expect("wait").success());
    }
}
