//! A new table whose targets are live already when it cannot be kept: all goes back, and goes on.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use super::*;
use crate::stats::Lane;
use crate::targets::{Cx, Io, Stateful};
use crate::worker::Worker;
use crate::worker::jobs::{Job, Work};
use crate::worker::ops::Action;

/// Sectors of the disk, and of each of its components.
const LEN: u64 = 2048;
/// Bytes of what is written at a time.
const BYTES: usize = 4096;

/// Components, and a process that keeps its devices in a directory.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub mapper: Arc<Mapper>,
    worker: Worker,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            std::fs::File::create(dir.path().join(name)).unwrap().set_len(LEN * 512).unwrap();
        }
        let sockets = dir.path().join("sockets");
        std::fs::create_dir(&sockets).unwrap();
        let state = StateDir::open(&dir.path().join("state"), component::Patience::NONE).unwrap();
        let settings = Settings { socket_dir: Some(sockets), ..Settings::default() };
        let pool = Pool::new(0, WorkerSettings::default());
        let mapper = Mapper::new(settings, Registry::new(), Arc::new(pool), Some(state));
        Bench { dir, mapper, worker: Worker::spawn("test", &WorkerSettings::default(), 0).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A table, with the components' paths.
    pub fn table(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in ["a", "b", "c", "d"] {
            text = text.replace(&format!("{{{name}}}"), self.path(name).to_str().unwrap());
        }
        text
    }

    /// Whether the state can be replaced. What is kept stays what it was.
    pub fn may_keep(&self, may: bool) {
        let (state, aside) = (self.path("state/state.json"), self.path("aside"));
        if may {
            std::fs::remove_dir(&state).unwrap();
            std::fs::rename(&aside, &state).unwrap();
        } else {
            std::fs::rename(&state, &aside).unwrap();
            std::fs::create_dir(&state).unwrap();
        }
    }

    fn kept(&self) -> String {
        std::fs::read_to_string(self.path("state/state.json")).unwrap()
    }

    /// A component that a stranger may have.
    fn is_free(&self, name: &str) -> bool {
        Registry::new().open(self.path(name).to_str().unwrap(), None, &component::Options::default()).is_ok()
    }

    /// Waits until strangers may have these: threads of sockets, and the kernel, have them a moment longer.
    fn are_free(&self, names: &[&str], when: &str) {
        let begun = std::time::Instant::now();
        while !names.iter().all(|name| self.is_free(name)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{when}: a component is kept");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What a request of the disk's target gives, or its errno; nothing where the disk has no target.
    pub fn does(&self, action: Action, at: u64, fill: u8) -> Option<Result<Vec<u8>, i32>> {
        let started = self.mapper.started().into_iter().find(|started| started.name == "disk").unwrap();
        let chain = started.disk.chain();
        let target: Arc<Stateful> = chain.map.own_targets().next()?.clone();
        let (answer, answered) = channel();
        let work = move |cx: Cx| -> Work {
            Box::pin(async move {
                let lease = cx.buffer(BYTES).await.map_err(|errno| errno.to_string())?;
                let slice = lease.slice().part(0, BYTES);
                slice.write(&[fill; BYTES]);
                let io = Io { action, at, len: BYTES as u64 / 512, data: vec![slice] };
                let ended = target.run(&cx, io).await;
                let mut bytes = vec![0; BYTES];
                slice.read(&mut bytes);
                answer.send(ended.map(|()| bytes)).map_err(|error| error.to_string())
            })
        };
        let lane = Arc::new(Lane::apart(&chain));
        let job = Job { name: "test".into(), chain, lane, work: Box::new(work) };
        self.worker.job(job).unwrap().wait().unwrap().unwrap();
        Some(answered.recv().unwrap())
    }

    pub fn writes(&self, at: u64, fill: u8) {
        if let Some(written) = self.does(Action::Write { durable: false }, at, fill) {
            written.unwrap();
        }
    }

    pub fn reads(&self, at: u64, fill: u8, when: &str) {
        if let Some(read) = self.does(Action::Read, at, 0) {
            assert!(read.unwrap().iter().all(|byte| *byte == fill), "{when}: not {fill} at {at}");
        }
    }

    fn has_socket(&self, name: &str) -> bool {
        Path::new(&self.path("sockets").join(format!("{name}.sock"))).exists()
    }
}

/// The live table, the new one, and which components are the new one's alone. Whether the new one shows the same.
const CASES: &[(&str, &str, &[&str], bool)] = &[
    ("0 2048 linear {a} 0", "0 2048 linear {b} 0", &["b"], false),
    ("0 2048 linear {a} 0", "0 2048 snapshot {a} {b} P 8", &["b"], true),
    ("0 2048 linear {a} 0", "0 2048 log-writes {a} {b}", &["b"], true),
    ("0 2048 linear {a} 0", "0 2048 mirror core 1 128 2 {a} 0 {b} 0", &["b"], true),
    ("0 2048 delay {a} 0 0", "0 2048 delay {b} 0 0", &["b"], false),
    ("0 2048 snapshot {a} {b} P 8", "0 2048 snapshot {a} {b} P 8", &[], true),
    ("0 2048 snapshot {a} {b} N 8", "0 2048 snapshot {a} {b} N 8", &[], true),
    ("0 2048 snapshot {a} {b} P 8", "0 2048 snapshot-merge {a} {b} P 8", &[], true),
    ("0 2048 snapshot-merge {a} {b} P 8", "0 2048 snapshot {a} {b} P 8", &[], true),
    ("0 2048 snapshot {a} {b} P 8", "0 2048 snapshot {a} {c} P 8", &["c"], false),
    ("0 2048 snapshot {a} {b} P 8", "0 2048 linear {a} 0", &[], false),
    ("0 2048 snapshot {a} {b} P 8", "0 1024 snapshot {a} {b} P 8\n1024 1024 snapshot {c} {d} P 8", &["c", "d"], false),
    ("0 2048 snapshot-origin {a}", "0 2048 snapshot-origin {b}", &["b"], false),
    ("0 2048 mirror core 1 128 2 {a} 0 {b} 0", "0 2048 mirror core 1 128 2 {b} 0 {c} 0", &["c"], true),
    ("0 2048 mirror disk 2 {c} 128 2 {a} 0 {b} 0", "0 2048 mirror disk 2 {c} 128 2 {a} 0 {b} 0", &[], true),
    ("0 2048 mirror disk 2 {c} 128 2 {a} 0 {b} 0", "0 2048 mirror core 1 128 2 {a} 0 {d} 0", &["d"], true),
    ("0 2048 log-writes {a} {b}", "0 2048 log-writes {a} {b}", &[], true),
    ("0 2048 log-writes {a} {b}", "0 2048 log-writes {a} {c}", &["c"], true),
];

#[test]
fn a_table_that_cannot_be_kept_leaves_everything_to_the_one_before() {
    for (before, after, new, same) in CASES {
        let (bench, when) = (Bench::new(), format!("{before} to {after}"));
        let mapper = &bench.mapper;
        made(mapper, "disk", &bench.table(before));
        made(mapper, "top", "0 2048 linear /dev/mapper/disk 0");
        let shown = table(mapper, "disk", false);
        bench.writes(16, 1);
        load(mapper, "disk", &bench.table(after)).unwrap();
        let kept = bench.kept();
        bench.may_keep(false);
        let error = resume(mapper, "disk").unwrap_err();
        assert!(error.errno == libc::EISDIR && error.to_string().contains("--state-dir"), "{when}: {error}");
        bench.may_keep(true);
        assert_eq!(bench.kept(), kept, "{when}");
        let info = mapper.info(&named("disk")).unwrap();
        assert!(info.suspended && info.live && !info.inactive, "{when}: {info:?}");
        assert!(!mapper.info(&named("top")).unwrap().suspended, "{when}");
        assert_eq!(table(mapper, "disk", false), shown, "{when}");
        bench.are_free(new, &when);
        // It goes on.
        resume(mapper, "disk").unwrap();
        bench.reads(16, 1, &when);
        bench.writes(16, 2);
        bench.writes(64, 3);
        bench.reads(16, 2, &when);
        bench.reads(64, 3, &when);
        // And the new one can be had once it can be kept.
        load(mapper, "disk", &bench.table(after)).unwrap();
        resume(mapper, "disk").unwrap();
        if *same && bench.does(Action::Read, 0, 0).is_some() && !before.contains("linear") {
            bench.reads(16, 2, &when);
            bench.reads(64, 3, &when);
        }
        bench.writes(16, 4);
        bench.reads(16, 4, &when);
        for name in ["top", "disk"] {
            mapper.remove(&Remove { which: named(name), ..Remove::default() }, &Patient).unwrap();
        }
        bench.are_free(&["a", "b", "c", "d"], &when);
    }
}

#[test]
fn a_first_table_that_cannot_be_kept_leaves_its_components_to_others() {
    for (_, after, ..) in CASES {
        let bench = Bench::new();
        let mapper = &bench.mapper;
        made(mapper, "zero", "0 8 zero");
        create(mapper, "disk").unwrap();
        load(mapper, "disk", &bench.table(after)).unwrap();
        bench.may_keep(false);
        let error = resume(mapper, "disk").unwrap_err();
        assert_eq!(error.errno, libc::EISDIR, "{after}: {error}");
        bench.may_keep(true);
        let info = mapper.info(&named("disk")).unwrap();
        assert!(!info.suspended && !info.live && !info.inactive, "{after}: {info:?}");
        assert!(!bench.has_socket("disk"), "{after}");
        bench.are_free(&["a", "b", "c", "d"], after);
        // Another device may have what this one's targets took up.
        made(mapper, "other", &bench.table(after));
        mapper.remove(&Remove { which: named("other"), ..Remove::default() }, &Patient).unwrap();
        load(mapper, "disk", &bench.table(after)).unwrap();
        resume(mapper, "disk").unwrap();
        assert!(bench.has_socket("disk"), "{after}");
        bench.writes(16, 4);
        bench.reads(16, 4, after);
    }
}
