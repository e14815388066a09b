use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::device::{Patience, Registry};

/// What the locks of an opening say, byte for byte.
const NOTHING: &[i64] = &[];
const READS: &[i64] = &[100];
const SHUTS: &[i64] = &[100, 201, 203];
const WRITES: &[i64] = &[100, 101, 201, 203];

/// A process that has a component open for reading and for writing, and a stranger.
struct Bench {
    file: tempfile::NamedTempFile,
    registry: Registry,
    open: [Option<Arc<Component>>; 2],
    stranger: Option<Arc<Component>>,
}

impl Bench {
    fn new() -> Bench {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        Bench { file, registry: Registry::new(), open: [None, None], stranger: None }
    }

    /// Whether it succeeds.
    fn does(&mut self, step: &str) -> bool {
        let (what, who) = step.split_once(' ').unwrap();
        let path: PathBuf = self.file.path().into();
        let options = |incoming| Options { read_only: who == "reader", incoming, ..Options::default() };
        match what {
            "stranger" => {
                self.stranger = stranger(&path, &options(false));
                return self.stranger.is_some();
            }
            "sized" => return self.file.as_file().set_len(who.parse().unwrap()).is_ok(),
            _ => {}
        }
        let place = usize::from(who == "writer");
        if let "opens" | "awaits" = what {
            let opened = self.registry.open(path.to_str().unwrap(), None, &options(what == "awaits"));
            self.open[place] = opened.ok().or(self.open[place].take());
            return self.open[place].is_some();
        }
        let component = self.open[place].clone().unwrap();
        match what {
            "takes" => component.take().is_ok(),
            // As a disk does of whose components another one cannot be had.
            "tries" => match component.take() {
                Ok(true) => {
                    component.put_back();
                    true
                }
                Ok(false) => {
                    component.leave();
                    true
                }
                Err(_) => false,
            },
            "leaves" => {
                component.leave();
                true
            }
            "gives" => component.give_up(),
            "closes" => {
                self.open[place] = None;
                true
            }
            _ => panic!("{step}"),
        }
    }

    /// The bytes that the openings have locked.
    fn locks(&self) -> [Vec<i64>; 2] {
        self.open.each_ref().map(|open| open.as_ref().map_or_else(Vec::new, |component| bytes(&component.file())))
    }
}

fn stranger(path: &Path, options: &Options) -> Option<Arc<Component>> {
    Registry::new().open(path.to_str().unwrap(), None, options).ok()
}

fn bytes(file: &File) -> Vec<i64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
    let ranges = info.lines().filter(|line| line.starts_with("lock:")).flat_map(|line| {
        let mut ends = line.split_ascii_whitespace().rev().map(|end| end.parse::<i64>().unwrap());
        let last = ends.next().unwrap();
        ends.next().unwrap()..=last
    });
    let mut bytes: Vec<i64> = ranges.collect();
    bytes.sort_unstable();
    bytes
}

#[test]
fn of_two_openings_one_excludes_whom_the_other_does_not() {
    // What is done, by steps of which those with a `!` fail; the locks of the reader and of the writer after it.
    let cases: &[(&str, &[i64], &[i64])] = &[
        ("opens reader", SHUTS, NOTHING),
        ("opens writer", NOTHING, WRITES),
        ("awaits reader", NOTHING, NOTHING),
        ("awaits writer", NOTHING, NOTHING),
        ("opens reader, opens writer", READS, WRITES),
        ("opens writer, opens reader", READS, WRITES),
        ("opens reader, awaits writer", SHUTS, NOTHING),
        ("awaits writer, opens reader, takes writer", READS, WRITES),
        ("awaits writer, awaits reader, takes reader, takes writer", READS, WRITES),
        ("awaits writer, awaits reader, takes writer, takes reader", READS, WRITES),
        // The writer's component is closed.
        ("opens reader, opens writer, closes writer", SHUTS, NOTHING),
        ("opens reader, awaits writer, closes writer", SHUTS, NOTHING),
        ("opens writer, opens reader, takes writer, gives writer, closes writer", NOTHING, NOTHING),
        ("opens writer, opens reader, closes reader", NOTHING, WRITES),
        // One alone is handed over, and comes back.
        ("opens writer, takes writer, gives writer", NOTHING, NOTHING),
        ("opens writer, takes writer, gives writer, takes writer", NOTHING, WRITES),
        ("opens reader, takes reader, gives reader", NOTHING, NOTHING),
        ("opens reader, takes reader, gives reader, takes reader", SHUTS, NOTHING),
        // Not before its last user goes.
        ("opens writer, takes writer, takes writer, !gives writer", NOTHING, WRITES),
        ("opens writer, takes writer, takes writer, leaves writer, gives writer", NOTHING, NOTHING),
        ("opens reader, opens writer, takes reader, takes reader, takes writer, !gives reader", READS, WRITES),
        // The writer is handed over beside a reader that is served: what is read must not change.
        ("opens reader, opens writer, takes reader, takes writer, !gives writer", SHUTS, NOTHING),
        ("opens reader, opens writer, takes reader, takes writer, !gives writer, takes reader", SHUTS, NOTHING),
        ("opens reader, opens writer, takes reader, takes writer, !gives writer, takes writer", READS, WRITES),
        ("opens reader, opens writer, takes reader, takes writer, !gives writer, stranger reader", SHUTS, NOTHING),
        ("opens reader, opens writer, takes reader, takes writer, !gives writer, !stranger writer", SHUTS, NOTHING),
        // Then the reader too, in either order.
        ("opens reader, opens writer, takes reader, takes writer, !gives writer, gives reader", NOTHING, NOTHING),
        ("opens reader, opens writer, takes reader, takes writer, !gives reader", NOTHING, WRITES),
        ("opens reader, opens writer, takes reader, takes writer, !gives reader, gives writer", NOTHING, NOTHING),
        ("opens reader, opens writer, takes reader, takes writer, !gives reader, takes reader", READS, WRITES),
        (
            "opens reader, opens writer, takes reader, takes writer, !gives reader, gives writer, takes reader",
            SHUTS,
            NOTHING,
        ),
        (
            "opens reader, opens writer, takes reader, takes writer, !gives writer, gives reader, takes writer",
            NOTHING,
            WRITES,
        ),
        // A reader, or a writer, that nobody is served does not keep the other from going.
        ("opens reader, opens writer, takes writer, gives writer", NOTHING, NOTHING),
        ("opens reader, opens writer, takes writer, gives writer, takes reader", SHUTS, NOTHING),
        ("opens reader, opens writer, takes reader, gives reader", NOTHING, NOTHING),
        ("opens reader, opens writer, takes reader, gives reader, takes writer", NOTHING, WRITES),
        // The other process has it, and they do not come back half-way.
        (
            "opens reader, opens writer, takes reader, takes writer, !gives reader, gives writer, stranger writer, \
             !takes reader, !takes writer",
            NOTHING,
            NOTHING,
        ),
        ("opens writer, takes writer, gives writer, stranger reader, opens reader, !takes writer", SHUTS, NOTHING),
        ("opens reader, stranger reader, !opens writer", SHUTS, NOTHING),
        ("opens reader, stranger reader, awaits writer, !takes writer", SHUTS, NOTHING),
        // It is nothing to write, which is found when its locks are there.
        ("opens reader, sized 0, !opens writer", SHUTS, NOTHING),
        ("opens reader, sized 0, !opens writer, sized 4096, !stranger writer, opens writer", READS, WRITES),
        // A disk takes one of its components, and not the next.
        ("opens reader, awaits writer, tries writer", SHUTS, NOTHING),
        ("awaits reader, opens writer, tries reader", NOTHING, WRITES),
        ("opens reader, opens writer, tries writer, tries reader", READS, WRITES),
        ("awaits reader, awaits writer, tries writer, tries reader", NOTHING, NOTHING),
    ];
    for (steps, reader, writer) in cases {
        let mut bench = Bench::new();
        for step in steps.split(", ") {
            let (step, fails) = step.strip_prefix('!').map_or((step, false), |step| (step, true));
            assert_ne!(bench.does(step), fails, "{steps}: {step}");
        }
        assert_eq!(bench.locks(), [reader.to_vec(), writer.to_vec()], "{steps}");
    }
}

#[test]
fn whatever_two_openings_do_each_has_what_it_needs_and_no_more() {
    const VERBS: [&str; 7] = ["opens", "awaits", "takes", "takes", "tries", "gives", "closes"];
    let mut rng = fastrand::Rng::with_seed(1);
    for walk in 0..100 {
        let mut bench = Bench::new();
        let mut users = [0; 2];
        let mut steps = Vec::new();
        for _ in 0..30 {
            let place = rng.usize(..2);
            let (who, before) = (["reader", "writer"][place], bench.locks());
            let verb = match rng.usize(..9) {
                7 if bench.stranger.take().is_some() => continue,
                7 | 8 => "stranger",
                verb if (verb > 1) == bench.open[place].is_some() => VERBS[verb],
                _ => continue,
            };
            match verb {
                "gives" if users[place] == 0 => continue,
                "closes" if users[place] > 0 => continue,
                "stranger" if bench.stranger.is_some() => continue,
                _ => steps.push(format!("{verb} {who}")),
            }
            let done = bench.does(&steps[steps.len() - 1]);
            users[place] += usize::from(verb == "takes" && done);
            users[place] -= usize::from(verb == "gives");
            let after = bench.locks();
            let [reader, writer] = &after;
            let context = format!("walk {walk}: {steps:?}: {done}, {users:?}, {before:?}");
            assert!([NOTHING, WRITES].contains(&&writer[..]), "{writer:?} after {context}");
            let alone = if writer.is_empty() { SHUTS } else { READS };
            assert!([NOTHING, alone].contains(&&reader[..]), "{reader:?} after {context}");
            for (locks, users) in after.iter().zip(users) {
                assert!(users == 0 || !locks.is_empty(), "{after:?} after {context}");
            }
            if !done && verb != "gives" || ["tries", "stranger"].contains(&verb) {
                assert_eq!(after, before, "{context}");
            }
            if verb == "gives" && users == [0; 2] {
                assert!(reader.is_empty() && writer.is_empty(), "{after:?} after {context}");
            }
        }
    }
}

/// What happens while a writer waits, and who has come in then.
struct Meanwhile {
    path: PathBuf,
    /// A reader of a process that is gone: its description is in no process, but in a message that nobody has received.
    left: Option<(UnixStream, UnixStream)>,
    came: usize,
    stranger: Option<Arc<Component>>,
}

thread_local! {
    static MEANWHILE: RefCell<Option<Meanwhile>> = const { RefCell::new(None) };
}

#[test]
fn a_writer_that_waits_beside_a_reader_lets_no_stranger_in() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    let pause = |_| {
        MEANWHILE.with_borrow_mut(|meanwhile| {
            let meanwhile = meanwhile.as_mut().unwrap();
            meanwhile.left = None;
            meanwhile.came += 1;
            meanwhile.stranger = stranger(&meanwhile.path, &Options::default());
        });
    };
    let mut registry = Registry::patient(Patience::new(Duration::from_secs(1), pause));
    let reads = Options { read_only: true, ..Options::default() };
    let reader = registry.open(path, None, &reads).unwrap();
    let left = UnixStream::pair().unwrap();
    left.0.send_with_fd(&[0_u8][..], stranger(file.path(), &reads).unwrap().file().as_raw_fd()).unwrap();
    let meanwhile = Meanwhile { path: file.path().into(), left: Some(left), came: 0, stranger: None };
    MEANWHILE.set(Some(meanwhile));
    let opened = registry.open(path, None, &Options::default());
    let meanwhile = MEANWHILE.take().unwrap();
    assert_eq!(meanwhile.came, 1, "{opened:?}");
    assert!(meanwhile.stranger.is_none(), "another process writes what this one reads");
    assert_eq!([bytes(&reader.file()), bytes(&opened.unwrap().file())], [READS, WRITES]);
    assert_eq!(locks::intruder(&reader.file()), None);
}

#[test]
fn one_who_writes_in_spite_of_a_reader_is_seen() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let options = Options { read_only: true, ..Options::default() };
    let reader = stranger(file.path(), &options).unwrap();
    assert_eq!(locks::intruder(&reader.file()), None);
    let writes = file.reopen().unwrap();
    locks::announce(&writes, Use::Write).unwrap();
    let seen = locks::intruder(&reader.file()).unwrap();
    assert!(seen.contains(&format!("process {} (", std::process::id())) && seen.contains("open for writing"), "{seen}");
}

#[test]
fn what_is_closed_between_an_attempt_and_a_look_is_tried_again() {
    let taken = || {
        let reasons = vec!["it is mounted".to_owned()];
        OpenError::Claimed { path: "x".into(), reasons, help: String::new(), passing: false }
    };
    for attempts in 1..10 {
        let pair = Pair::default();
        let file = tempfile::tempfile().unwrap();
        let mut file = Some(Arc::new(file));
        pair.turn().ended.extend(file.as_ref().map(Arc::downgrade));
        let mut tried = 0;
        let tried = pair.after_our_own(|| {
            tried += 1;
            if file.is_none() {
                return Ok(tried);
            }
            if tried == attempts {
                file = None;
            }
            Err(taken())
        });
        assert_eq!(tried.unwrap(), attempts + 1);
    }
    // Nobody's here: there is nothing to wait for, and after a wait in vain there is nothing more.
    let pair = Pair::default();
    let refused = |pair: &Pair| {
        let mut tried = 0;
        let result = pair.after_our_own(|| -> Result<(), OpenError> {
            tried += 1;
            Err(taken())
        });
        assert!(result.is_err());
        tried
    };
    assert_eq!(refused(&pair), 1);
    pair.turn().ended.push(Arc::downgrade(&Arc::new(tempfile::tempfile().unwrap())));
    assert!(refused(&pair) > 1);
    assert_eq!(refused(&pair), 1);
}

#[test]
fn what_one_opening_has_left_another_does_not_make_forgotten() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().to_str().unwrap();
    for read_only in [false, true] {
        let mut registry = Registry::new();
        let locked = Options { read_only, ..Options::default() };
        let first = registry.open(path, None, &locked).unwrap();
        let pair = first.opening.pair.clone();
        // A queue has it for longer than the disk.
        let left = first.file();
        drop(first);
        drop(registry.open(path, None, &Options { incoming: true, ..locked }).unwrap());
        assert_eq!(pair.ending(), Some(true), "{read_only}");
        drop(left);
        assert_eq!(pair.ending(), Some(false), "{read_only}");
        pair.forget();
        assert_eq!(pair.ending(), None, "{read_only}");
    }
}
