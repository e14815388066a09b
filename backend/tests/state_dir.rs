//! What a process keeps for its successor: whole or not at all, whatever happens at whatever moment.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use common::{Dir, Mount, Need, can_run, dir, dir_in, run};
use proptest::prelude::*;
use vhost_user_dm::device::Patience;
use vhost_user_dm::mapper::state::{Kept, State, StateDir, StateError};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

fn open(path: &Path) -> Result<StateDir, StateError> {
    StateDir::open(path, Patience::NONE)
}

/// A state that can be told from others.
fn state(number: u32) -> State {
    let kept = |minor: u32| Kept {
        name: format!("disk{minor}"),
        uuid: minor.is_multiple_of(2).then(|| format!("uuid \"{minor}\"")),
        minor,
        read_only: minor.is_multiple_of(3),
        directory: (minor % 2 == 1).then(|| "/srv".into()),
        serial: (minor % 3 == 1).then(|| format!("serial{minor}")),
        table: format!("0 {number} linear /srv/disk\\040{minor}.img 0\n{number} 8 zero"),
        socket: (minor % 2 == 1).then(|| format!("/run/disk{minor}.sock")),
    };
    State { devices: (0..3 + number % 3).map(kept).collect() }
}

fn save(dir: &StateDir, number: u32) {
    dir.save(|| state(number)).expect("it can be saved");
}

/// In memory if possible: a kill, unlike a loss of power, needs no disk.
fn memory() -> Dir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { dir_in(shm) } else { dir() }
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("a directory");
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string().expect("UTF-8");
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_last_is_read_by_the_next() {
    let tmp = dir();
    let path = tmp.path().join("state");
    let dir = open(&path).expect("it is made");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o700);
    assert_eq!(dir.read().expect("nothing is wrong"), None);
    for number in 1..5 {
        save(&dir, number);
        assert_eq!(dir.read().expect("it is there"), Some(state(number)));
    }
    assert_eq!(fs::metadata(path.join("state.json")).expect("stat").mode() & 0o777, 0o600);
    dir.save(State::default).expect("no devices are a state too");
    drop(dir);
    let dir = open(&path).expect("nobody has it");
    assert_eq!(dir.read().expect("it is there"), Some(State::default()));
    assert_eq!(names(&path), ["lock", "state.json"]);
}

/// A process that is killed does not clean up: what it holds is forgotten, not dropped.
#[test]
fn a_kill_at_any_step_leaves_the_old_state_or_the_new_one() {
    let tmp = memory();
    let path = tmp.path().join("state");
    let whole = {
        let dir = open(&path).expect("it is made");
        save(&dir, 2);
        fs::read(path.join("state.json")).expect("the new state's text")
    };
    let whiles = (0..whole.len()).step_by(16);
    for step in whiles.chain(whole.len()..whole.len() + 3) {
        let dir = open(&path).expect("nobody has it");
        save(&dir, 1);
        let reached = match step.checked_sub(whole.len()) {
            // While the new state is written.
            None => {
                fs::write(path.join("state-7.new"), &whole[..step]).expect("a part");
                1
            }
            Some(0) => {
                std::mem::forget(dir.prepare(|| state(2)).expect("it can be written"));
                1
            }
            Some(1) => {
                let _ = dir.prepare(|| state(2)).expect("it can be written").commit().expect("a rename");
                2
            }
            Some(_) => {
                let committed = dir.prepare(|| state(2)).expect("it can be written").commit().expect("a rename");
                committed.settle().expect("it is durable");
                2
            }
        };
        drop(dir);
        let next = open(&path).expect("nobody has it");
        assert_eq!(next.read().expect("it is whole"), Some(state(reached)), "step {step}");
        assert_eq!(names(&path), ["lock", "state.json"], "step {step}");
        // And it goes on from there.
        save(&next, 3);
        assert_eq!(next.read().expect("it is whole"), Some(state(3)));
    }
}

#[test]
fn what_is_dropped_before_it_is_committed_never_was() {
    let tmp = dir();
    let dir = open(tmp.path().join("state").as_path()).expect("it is made");
    save(&dir, 1);
    drop(dir.prepare(|| state(2)).expect("it can be written"));
    assert_eq!(dir.read().expect("it is whole"), Some(state(1)));
    assert_eq!(names(&tmp.path().join("state")), ["lock", "state.json"]);
}

/// The state's file with other contents: never taken for a state, and never for none.
#[test]
fn what_is_no_state_is_refused_and_left_alone() {
    let tmp = dir();
    let path = tmp.path().join("state");
    let dir = open(&path).expect("it is made");
    save(&dir, 1);
    let file = path.join("state.json");
    let good = fs::read_to_string(&file).expect("a state");
    let refused = |text: &[u8]| {
        fs::write(&file, text).expect("garbage");
        let error = dir.read().expect_err("it is garbage");
        assert!(matches!(error, StateError::Garbage { .. }), "{error}");
        let told = error.to_string();
        let (path, help) =
            (format!("{}: this is no state", file.display()), "move the file away to start with the tables");
        assert!(told.starts_with(&path) && told.contains(help), "{told}");
        assert_eq!(fs::read(&file).expect("still there"), text);
        told
    };
    for len in 0..good.trim_end().len() {
        refused(&good.as_bytes()[..len]);
    }
    let zeroes = vec![0; good.len()];
    for text in
        [&zeroes[..], b"\xff\xfe{}", b"null", b"[]", b"{}", b"\"state\"", b"{\"version\":1}", b"{\"devices\":[]}"]
    {
        refused(text);
    }
    let (half, _) = good.split_at(good.len() / 2);
    refused([half.as_bytes(), &zeroes[half.len()..]].concat().as_slice());
    refused(format!("{good}{good}").as_bytes());
    for (from, to) in [
        ("\"version\": 1", "\"version\": \"1\""),
        ("\"version\": 1", "\"version\": -1"),
        ("\"version\": 1", "\"version\": 1, \"version\": 1"),
        ("\"version\": 1", "\"version\": 1, \"more\": 0"),
        ("\"minor\": 1", "\"minor\": 1.5"),
        ("\"minor\": 1", "\"minor\": 4294967296"),
        ("\"read_only\": false", "\"read_only\": 0"),
        ("\"read_only\": false", "\"read_only\": false, \"suspended\": true"),
        ("\"read_only\": false,", ""),
        ("\"table\"", "\"tables\""),
    ] {
        assert!(good.contains(from), "{from}");
        refused(good.replacen(from, to, 1).as_bytes());
    }
    assert!(refused(good.replace("disk1\"", "disk0\"").as_bytes()).contains("two devices have the name \"disk0\""));
    assert!(refused(good.replace("\"minor\": 1", "\"minor\": 2").as_bytes()).contains("two devices have the minor 2"));
    assert!(refused(good.replace("\\\"2\\\"", "\\\"0\\\"").as_bytes()).contains("two devices have the uuid"));
    let deep = "[".repeat(100_000);
    refused(deep.as_bytes());
    for found in [0, 2, u64::MAX] {
        let text = good.replace("\"version\": 1", &format!("\"version\": {found}, \"new\": {{}}"));
        fs::write(&file, text).expect("another version");
        let error = dir.read().expect_err("it is another version's");
        assert!(matches!(error, StateError::Version { found: version, .. } if version == found), "{error}");
        assert!(error.to_string().contains("start the program that wrote it"), "{error}");
    }
    fs::write(&file, &good).expect("a state");
    assert_eq!(dir.read().expect("it is good"), Some(state(1)));
}

#[test]
fn what_is_no_file_is_no_state() {
    let tmp = dir();
    let path = tmp.path().join("state");
    let dir = open(&path).expect("it is made");
    let file = path.join("state.json");
    let refused = |what: &str| {
        let error = dir.read().expect_err(what);
        assert!(matches!(error, StateError::Garbage { .. }), "{what}: {error}");
    };
    fs::create_dir(&file).expect("a directory");
    refused("a directory");
    fs::remove_dir(&file).expect("removed");
    symlink("/etc/passwd", &file).expect("a link");
    refused("a link");
    fs::remove_file(&file).expect("removed");
    run("mkfifo", [file.as_os_str()]);
    refused("a FIFO");
    fs::remove_file(&file).expect("removed");
    File::create(&file).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    refused("larger than memory");
}

#[test]
fn a_directory_has_one_process() {
    let tmp = dir();
    let path = tmp.path().join("state");
    let first = open(&path).expect("it is made");
    std::mem::forget(first.prepare(|| state(1)).expect("it can be written"));
    let error = open(&path).expect_err("it is taken");
    assert!(matches!(error, StateError::Taken { passing: false, .. }), "{error}");
    assert!(error.to_string().contains(&format!("is in use by process {} (", std::process::id())), "{error}");
    assert_eq!(names(&path), ["lock", "state-1.new"], "what is in use is not cleaned up");
    drop(first);
    open(&path).expect("it is free");
    assert_eq!(names(&path), ["lock"]);
}

/// A killed predecessor whose last requests are with the kernel has its lock until they have ended.
#[test]
fn a_predecessor_that_is_ending_is_waited_for() {
    let tmp = dir();
    let path = tmp.path().join("state");
    drop(open(&path).expect("it is made"));
    let lock = File::options().write(true).open(path.join("lock")).expect("the lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("it is free");
    // In a message that nobody has received, it is no process's.
    let (sender, receiver) = UnixStream::pair().expect("a pair of sockets");
    {
        use std::os::fd::AsRawFd;
        sender.send_with_fd(&[0_u8][..], lock.as_raw_fd()).expect("a message");
    }
    drop(lock);
    let error = open(&path).expect_err("it is taken");
    assert!(matches!(error, StateError::Taken { passing: true, .. }), "{error}");
    let patience = Patience::new(Duration::from_secs(60), std::thread::sleep);
    std::thread::scope(|scope| {
        let successor = scope.spawn(|| StateDir::open(&path, patience).map(drop));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!successor.is_finished(), "it does not wait");
        drop((sender, receiver));
        successor.join().expect("a result").expect("free at last");
    });
}

#[test]
fn a_directory_that_others_write_is_refused() {
    let tmp = dir();
    let path = tmp.path().join("state");
    drop(open(&path).expect("it is made"));
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
        let error = open(&path).expect_err("others could write it");
        assert!(matches!(error, StateError::Open { .. }) && error.to_string().contains("chmod"), "{error}");
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
    drop(open(&path).expect("to look is no harm"));
    if can_run("a_directory_that_others_write_is_refused", &[Need::Root]) {
        std::os::unix::fs::chown(&path, Some(12345), None).expect("chown");
        let error = open(&path).expect_err("another could write it");
        assert!(error.to_string().contains("belongs to user 12345"), "{error}");
    }
}

#[test]
fn a_directory_that_cannot_be_had_is_named() {
    let tmp = dir();
    let missing = tmp.path().join("a").join("b");
    let error = open(&missing).expect_err("its parent is missing").to_string();
    assert!(error.starts_with(&format!("cannot make the directory (--state-dir) {}: ", missing.display())), "{error}");
    let file = tmp.path().join("file");
    fs::write(&file, "").expect("a file");
    let error = open(&file).expect_err("it is a file").to_string();
    assert!(error.starts_with(&format!("cannot open the directory (--state-dir) {}: ", file.display())), "{error}");
}

/// Two devices change at a time: neither state may be without the other's change.
#[test]
fn a_state_that_another_has_outrun_is_made_again() {
    let tmp = dir();
    let dir = open(tmp.path().join("state").as_path()).expect("it is made");
    let (one, two) = (dir.prepare(|| state(1)).expect("written"), dir.prepare(|| state(2)).expect("written"));
    let _ = two.commit().expect("nothing was committed since");
    assert!(matches!(one.commit(), Err(StateError::Outrun)));
    assert_eq!(dir.read().expect("it is whole"), Some(state(2)));
}

/// What a state tells of is made after it was committed; until then who looks at the devices sees the old ones.
#[test]
fn a_change_that_is_kept_but_not_made_yet_is_waited_for() {
    let tmp = dir();
    let dir = open(tmp.path().join("state").as_path()).expect("it is made");
    let devices = Mutex::new(state(1));
    let early = dir.prepare(|| state(1)).expect("written");
    let committed = dir.commit(|| state(2)).expect("nothing was committed since");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| dir.save(|| devices.lock().expect("no panic").clone()));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!other.is_finished(), "it does not wait");
        *devices.lock().expect("no panic") = state(2);
        committed.settle().expect("it is durable");
        other.join().expect("a result").expect("it can be saved");
    });
    assert_eq!(dir.read().expect("it is whole"), Some(state(2)));
    assert!(matches!(early.commit(), Err(StateError::Outrun)));
    // One that is dropped without being settled keeps nobody waiting either.
    drop(dir.commit(|| state(3)).expect("nothing was committed since"));
    save(&dir, 4);
}

#[test]
fn changes_by_many_at_a_time_are_all_kept() {
    let tmp = dir();
    let dir = open(tmp.path().join("state").as_path()).expect("it is made");
    let devices = Mutex::new(State::default());
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (dir, devices) = (&dir, &devices);
            scope.spawn(move || {
                for i in 0..10 {
                    let minor = 10 * n + i;
                    let mut new = state(1).devices.swap_remove(1);
                    (new.name, new.minor) = (format!("disk{minor}"), minor);
                    // Before the change is made, as with a table; or after it, as with a name.
                    let seen = || devices.lock().expect("no panic").clone();
                    if i < 5 {
                        let with = || {
                            let mut with = seen();
                            with.devices.push(new.clone());
                            with
                        };
                        let committed = dir.commit(with).expect("it can be committed");
                        std::thread::yield_now();
                        devices.lock().expect("no panic").devices.push(new.clone());
                        committed.settle().expect("it is durable");
                    } else {
                        devices.lock().expect("no panic").devices.push(new);
                        dir.save(seen).expect("it can be saved");
                    }
                }
            });
        }
    });
    let sorted = |mut state: State| {
        state.devices.sort_by_key(|kept| kept.minor);
        state
    };
    let kept = dir.read().expect("it is whole").expect("there is one");
    assert_eq!(sorted(kept), sorted(devices.into_inner().expect("no panic")));
}

/// A tmpfs of so many kilobytes.
fn tmpfs(tmp: &Dir, kilobytes: u32) -> Mount {
    let options = format!("size={kilobytes}k,mode=700");
    let args = ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), OsStr::new(&options), "tmpfs".as_ref()];
    Mount::new(&args, &tmp.path().join("state"))
}

#[test]
fn a_full_file_system_leaves_the_old_state() {
    if !can_run("a_full_file_system_leaves_the_old_state", &[Need::Mount]) {
        return;
    }
    let tmp = dir();
    let mount = tmpfs(&tmp, 256);
    let dir = open(&mount.at).expect("it is there");
    save(&dir, 1);
    let large = || {
        let mut large = state(2);
        large.devices[0].table = "0 8 zero\n".repeat(100_000);
        large
    };
    for _ in 0..10 {
        let error = dir.prepare(large).expect_err("there is no space");
        assert!(
            matches!(&error, StateError::Io { doing: "write", source, .. } if source.raw_os_error() == Some(libc::ENOSPC)),
            "{error}"
        );
        assert_eq!(names(&mount.at), ["lock", "state.json"], "what could not be written takes no space");
        assert_eq!(dir.read().expect("it is whole"), Some(state(1)));
    }
    save(&dir, 3);
    assert_eq!(dir.read().expect("it is whole"), Some(state(3)));
    drop(dir);
}

#[test]
fn a_read_only_file_system_is_refused_and_leaves_the_old_state() {
    if !can_run("a_read_only_file_system_is_refused_and_leaves_the_old_state", &[Need::Mount]) {
        return;
    }
    let tmp = dir();
    let mount = tmpfs(&tmp, 256);
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        run("mount", ["-o".as_ref(), OsStr::new(&options), mount.at.as_os_str()]);
    };
    save(&open(&mount.at).expect("it is there"), 1);
    remount("ro");
    let error = open(&mount.at).expect_err("no state could be saved");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
    remount("rw");
    assert_eq!(open(&mount.at).expect("as before").read().expect("it is whole"), Some(state(1)));
}

#[test]
fn a_rename_that_fails_leaves_what_is_there() {
    let tmp = dir();
    let path = tmp.path().join("state");
    let dir = open(&path).expect("it is made");
    fs::create_dir(path.join("state.json")).expect("in the way");
    let error = dir.prepare(|| state(1)).expect("it can be written").commit().expect_err("a directory is in the way");
    assert!(matches!(&error, StateError::Io { doing: "replace", .. }), "{error}");
    assert_eq!(names(&path), ["lock", "state.json"]);
    fs::remove_dir(path.join("state.json")).expect("removed");
    assert_eq!(dir.read().expect("nothing is wrong"), None);
    save(&dir, 2);
    // Somebody clears up.
    fs::remove_dir_all(&path).expect("removed");
    let error = dir.prepare(|| state(3)).expect_err("there is no directory").to_string();
    assert!(error.starts_with(&format!("cannot make {}/state-", path.display())), "{error}");
}

/// What happens to a directory.
#[derive(Clone, Debug)]
enum Act {
    Save(State),
    /// Prepared, and the process is killed.
    Prepare(State),
    /// Committed, and the process is killed before it is settled.
    Commit(State),
    Drop(State),
    Restart,
}

fn states() -> impl Strategy<Value = State> {
    let text = any::<Option<String>>;
    let kept = (any::<String>(), text(), any::<bool>(), any::<String>(), text(), text(), text());
    prop::collection::vec(kept, 0..5).prop_map(|all| {
        let all = (0..).zip(all);
        let kept = all.map(|(minor, (name, uuid, read_only, table, directory, serial, socket))| Kept {
            name: format!("{minor}{name}"),
            uuid: uuid.map(|uuid| format!("{minor}{uuid}")),
            minor,
            read_only,
            table,
            directory,
            serial,
            socket,
        });
        State { devices: kept.collect() }
    })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        states().prop_map(Act::Save),
        states().prop_map(Act::Prepare),
        states().prop_map(Act::Commit),
        states().prop_map(Act::Drop),
        Just(Act::Restart),
    ];
    prop::collection::vec(act, 0..12)
}

fn last_committed_is_read(path: PathBuf, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut dir = open(&path).expect("it is made");
    let mut last = None;
    for act in acts {
        let killed = matches!(act, Act::Prepare(_) | Act::Commit(_) | Act::Restart);
        match act {
            Act::Save(state) => {
                dir.save(|| state.clone()).expect("it can be saved");
                last = Some(state);
            }
            Act::Prepare(state) => std::mem::forget(dir.prepare(|| state).expect("it can be written")),
            Act::Commit(state) => {
                let _ =
                    dir.prepare(|| state.clone()).and_then(|prepared| prepared.commit()).expect("it can be committed");
                last = Some(state);
            }
            Act::Drop(state) => drop(dir.prepare(|| state).expect("it can be written")),
            Act::Restart => {}
        }
        if killed {
            drop(dir);
            dir = open(&path).expect("nobody has it");
        }
        prop_assert_eq!(dir.read().expect("it is whole"), last.clone());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_was_committed_last_is_what_is_read(acts in acts()) {
        let tmp = memory();
        last_committed_is_read(tmp.path().join("state"), acts)?;
    }
}
