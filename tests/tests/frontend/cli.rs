//! The command line: ways to be started, and ways to refuse.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dm_tests::daemon::{self, Daemon, Served, binary, flag};
use dm_tests::vmm::{Setup, Vmm};

use crate::{Piece, SECTOR, pattern};

/// A process that has not ended by then does not.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command that has to end by itself with a failure; its standard error.
fn refused(args: &[String]) -> String {
    let mut daemon = Daemon::start(args);
    let status = daemon.wait(PATIENCE);
    let log = daemon.log();
    match status.and_then(|s| s.code()) {
        Some(0) | None => panic!("{args:?} was not refused: {status:?}\n{log}"),
        Some(_) => log,
    }
}

#[test]
fn capabilities_are_printed_whatever_else_is_asked() {
    for more in [&[][..], &["--socket-path=/nonexistent/x", "--table=/nonexistent/y"]] {
        let mut args = vec!["--print-capabilities"];
        args.extend(more);
        let (code, out, err) = daemon::run(args).expect("run");
        assert_eq!(code, 0, "{err}");
        let squeezed: String = out.split_whitespace().collect();
        assert_eq!(squeezed, r#"{"type":"block","features":["read-only","blk-file"]}"#);
    }
}

#[test]
fn one_file_is_served_without_a_table() {
    let piece = Piece::new(256);
    let socket = piece.dir().join("socket");
    for read_only in [false, true] {
        let mut args = vec![flag("--socket-path", &socket), flag("--blk-file", &piece.path)];
        args.extend(read_only.then(|| "--read-only".to_owned()));
        let mut daemon = Daemon::start(args);
        let mut vmm = daemon.vmm(&socket, &Setup::default());
        assert_eq!(vmm.config.capacity, 256);
        assert!(vmm.read_all(0) == Ok(piece.now()));
        assert_eq!(vmm.write(0, 5, &pattern(2, 8)).is_err(), read_only);
        drop(vmm);
        daemon.stop();
    }
}

#[test]
fn a_listening_descriptor_is_served() {
    let piece = Piece::new(256);
    let socket = piece.dir().join("socket");
    let listener = UnixListener::bind(&socket).expect("bind");
    let args = [flag("--blk-file", &piece.path)];
    let mut daemon = Daemon::start_with_fd(&args, OwnedFd::from(listener));
    for _ in 0..3 {
        let mut vmm = daemon.vmm(&socket, &Setup::default());
        assert!(vmm.read_all(0).as_ref() == Ok(&piece.bytes));
    }
    daemon.stop();
}

#[test]
fn a_connected_descriptor_is_served_until_it_closes() {
    let piece = Piece::new(256);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let args = [flag("--blk-file", &piece.path)];
    let mut daemon = Daemon::start_with_fd(&args, OwnedFd::from(theirs));
    let mut vmm = Vmm::over(ours, &Setup::default()).expect("set up");
    assert!(vmm.read_all(0).as_ref() == Ok(&piece.bytes));
    drop(vmm);
    // No one can come back over it, so the process has nothing left to do.
    let status = daemon.wait(PATIENCE);
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{status:?}");
}

#[test]
fn a_directory_of_sockets_serves_every_device() {
    let piece = Piece::new(512);
    let name = piece.name();
    let table = piece.dir().join("table");
    let text = format!(
        "top,,,rw,0 64 linear /dev/mapper/low 32,64 64 zero;\
         low,uuid-of-low,,rw,0 128 linear {name} 0;\
         fixed,,,ro,0 64 linear {name} 256"
    );
    fs::write(&table, text).expect("write the table");
    let sockets = piece.dir().join("sockets");
    fs::create_dir(&sockets).expect("a directory");
    let mut daemon = Daemon::start([flag("--socket-dir", &sockets), flag("--table", &table)]);
    let setup = Setup::default();
    let mut on = |name: &str| daemon.vmm(&sockets.join(format!("{name}.sock")), &setup);
    let (mut top, mut low, mut fixed) = (on("top"), on("low"), on("fixed"));
    top.write(0, 0, &pattern(8, 70)).expect("write");
    assert!(low.read(0, 32, 8 * SECTOR) == Ok(pattern(8, 70)));
    low.write(0, 40, &pattern(8, 71)).expect("write");
    assert!(top.read(0, 8, 8 * SECTOR) == Ok(pattern(8, 71)));
    assert_eq!(top.read(0, 64, SECTOR), Ok(vec![0; SECTOR]));
    fixed.write(0, 0, &pattern(1, 1)).expect_err("an ro device");
    assert!(fixed.read(0, 0, SECTOR).as_deref() == Ok(&piece.bytes[256 * SECTOR..][..SECTOR]));
    let ids: Vec<Vec<u8>> =
        [&mut top, &mut low, &mut fixed].into_iter().map(|vmm| vmm.get_id(0).expect("serial")).collect();
    assert!(ids[0].starts_with(b"top"), "{ids:?}");
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    drop((top, low, fixed));
    daemon.stop();
    let left: Vec<_> = fs::read_dir(&sockets).expect("list").collect();
    assert!(left.is_empty(), "sockets left behind: {left:?}");
}

#[test]
fn a_socket_of_a_live_process_is_refused_and_a_stale_one_replaced() {
    let (piece, other) = (Piece::new(256), Piece::new(256));
    let mut served = Served::table(&piece.table(), &[]);
    served.daemon.wait_listening(&served.socket);
    let args = [flag("--socket-path", &served.socket), flag("--blk-file", &other.path)];
    let why = refused(&args);
    assert!(why.contains("disk.sock"), "{why}");
    let mut vmm = served.vmm(&Setup::default());
    assert!(vmm.read_all(0).as_ref() == Ok(&piece.bytes), "the first one is still there");
    drop(vmm);
    served.daemon.signal(rustix::process::Signal::KILL);
    served.daemon.wait(PATIENCE).expect("killed");
    assert!(served.socket.exists(), "a killed process leaves its socket");
    let mut next = Daemon::start(args);
    let mut vmm = next.vmm(&served.socket, &Setup::default());
    assert!(vmm.read_all(0).as_ref() == Ok(&other.bytes));
    drop(vmm);
    next.stop();
}

#[test]
fn a_file_in_the_place_of_the_socket_is_not_destroyed() {
    let piece = Piece::new(256);
    let socket = piece.dir().join("precious");
    fs::write(&socket, "data").expect("write");
    let why = refused(&[flag("--socket-path", &socket), flag("--blk-file", &piece.path)]);
    assert!(why.contains("precious"), "{why}");
    assert_eq!(fs::read(&socket).expect("read"), b"data");
}

#[test]
fn two_processes_may_not_write_one_file() {
    let piece = Piece::new(256);
    let mut served = Served::table(&piece.table(), &[]);
    served.daemon.wait_listening(&served.socket);
    let socket = piece.dir().join("second");
    for more in [&[][..], &["--read-only".to_owned()]] {
        let mut args = vec![flag("--socket-path", &socket), flag("--blk-file", &piece.path)];
        args.extend_from_slice(more);
        let why = refused(&args);
        assert!(why.contains(piece.name()), "{why}");
        assert!(!socket.exists(), "a refused daemon left a socket");
    }
    served.daemon.stop();
}

#[test]
fn bad_configuration_fails_early_and_leaves_nothing() {
    let piece = Piece::new(256);
    let dir = piece.dir();
    let socket = dir.join("socket");
    let empty = dir.join("empty");
    fs::write(&empty, "").expect("write");
    let cases: Vec<(String, &str)> = vec![
        ("0 8 linear /nonexistent/disk 0\n".into(), "/nonexistent/disk"),
        (format!("0 8 linear {} 0\n", dir.display()), "directory"),
        ("0 8 linear /dev/null 0\n".into(), "/dev/null"),
        (format!("0 8 linear {} 0\n", empty.display()), "empty"),
        (format!("0 257 linear {} 0\n", piece.name()), "too small"),
        (format!("0 8 linear {} 249\n", piece.name()), "too small"),
        (format!("0 8 linear {} 0x1\n", piece.name()), "Invalid device sector"),
        ("0 8 zero\n9 8 zero\n".into(), "Gap in table"),
        ("0 0 zero\n".into(), "zero-length target"),
        ("0 8 nosuch\n".into(), "unknown target type"),
        ("# nothing\n".into(), "table"),
    ];
    for (text, expect) in cases {
        let table = dir.join("table");
        fs::write(&table, &text).expect("write the table");
        let why = refused(&[flag("--socket-path", &socket), flag("--table", &table)]);
        assert!(why.contains(expect), "{text:?}: expected {expect:?} in\n{why}");
        assert!(!socket.exists(), "{text:?}: left a socket");
        let (code, ..) = daemon::run(["check".as_ref(), table.as_os_str()]).expect("run");
        assert!(expect == "table" || code != 0, "check takes {text:?}");
    }
    let both = [flag("--socket-path", &socket), "--fd=0".to_owned(), flag("--blk-file", &piece.path)];
    refused(&both);
    refused(&[flag("--socket-path", &socket)]);
    refused(&[flag("--socket-path", &socket), flag("--table", &dir.join("none"))]);
    for bad in ["--num-queues=0", "--queue-size=100", "--queue-size=65536", "--cache=x"] {
        let args = [flag("--socket-path", &socket), flag("--blk-file", &piece.path), bad.to_owned()];
        refused(&args);
        assert!(!socket.exists(), "{bad}: left a socket");
    }
}

#[test]
fn check_reports_and_serves_nothing() {
    let piece = Piece::new(256);
    let table = piece.dir().join("table");
    fs::write(&table, piece.table()).expect("write the table");
    let (code, out, err) = daemon::run(["check".as_ref(), table.as_os_str()]).expect("run");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("256") && out.contains(piece.name()), "{out}");
}

#[test]
fn a_place_for_temporary_files_is_needed_at_the_start_and_stays_empty() {
    let piece = Piece::new(256);
    let socket = piece.dir().join("socket");
    let temporary = tempfile::tempdir().expect("a directory");
    let start = |temporary: &Path| {
        let mut command = Command::new(binary());
        command.args([flag("--socket-path", &socket), flag("--blk-file", &piece.path)]).env("TMPDIR", temporary);
        Daemon::spawn(command)
    };
    let mut daemon = start(&temporary.path().join("none"));
    let status = daemon.wait(PATIENCE).and_then(|status| status.code());
    assert!(status == Some(1) && daemon.log().contains("TMPDIR"), "{status:?} {}", daemon.log());
    assert!(!socket.exists(), "left a socket");
    let mut daemon = start(temporary.path());
    daemon.vmm(&socket, &Setup::default()).read(0, 0, 512).expect("read");
    let left: Vec<_> = fs::read_dir(temporary.path()).expect("list").collect();
    assert!(left.is_empty(), "a kill now would leave {left:?}");
    // Later it is not needed any more.
    drop(temporary);
    for _ in 0..3 {
        daemon.vmm(&socket, &Setup::default()).read(0, 0, 512).expect("read");
    }
    daemon.stop();
}
