//! A virtual machine with a mounted ext4 whose writes are logged: at every flush of its life the file system can be
//! brought back, and it has every file that the guest was told is durable.
//!
//! Needs what `ci/setup.sh` installs.
#![allow(dead_code, reason = "other tests use more of what they share with this one")]

#[path = "../boot/host.rs"]
mod host;
#[path = "../boot/vm.rs"]
mod vm;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use dm_tests::control::{Controlled, said};
use dm_tests::daemon::binary;
use dm_tests::files;
use host::{SECTOR, Scratch, run};
use vm::Setup;

/// Bytes of a log's block; flags of its entries.
const BLOCK: usize = 512;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;
/// What a journal's block that commits a transaction begins with.
const COMMIT: &[u8] = &[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2];

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 48 * MIB;
/// Files that the guest makes before it is killed.
const FILES: u64 = 12;

/// What a machine does with a file system after a power failure, and what it must then find: -p refuses everything that a
/// crash does not excuse. Behind mark fN there are N files.
const CHECK: &str = r#"
e2fsck -fp "$IMAGE"
test $? -le 1 || exit 1
e2fsck -fn "$IMAGE" || exit 1
n=0 mark=${MARK:-f0}
while [ $n -lt "${mark#f}" ]; do
    n=$((n + 1))
    debugfs -R "cat /f$n" "$IMAGE" 2>/dev/null | sha256sum >"$IMAGE.is"
    yes "file $n" | head -c $((n * 3000 + 7)) | sha256sum >"$IMAGE.was"
    cmp "$IMAGE.is" "$IMAGE.was" || { echo "/f$n is not what was fsynced"; exit 1; }
done"#;

/// A disk with ext4, as it was and as it is, and its log.
struct Ground {
    scratch: Scratch,
}

impl Ground {
    fn new() -> Ground {
        let ground = Ground { scratch: Scratch::new() };
        let before = ground.path("before.img");
        files::sparse(&before, IMAGE);
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=4"]).arg(&before));
        copy(&before, &ground.path("disk.img"));
        files::sparse(&ground.path("log"), 1024 * MIB);
        ground
    }

    fn serve(&self) -> Controlled {
        let (disk, log) = (self.path("disk.img"), self.path("log"));
        let line = format!("0 {} log-writes {} {}", IMAGE / SECTOR, disk.display(), log.display());
        // Its serial number is its name.
        Controlled::start(&format!("boot-test,,,,{line}"), &[])
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to]));
}

/// What file `n` holds.
fn content(n: u64) -> Vec<u8> {
    format!("file {n}\n").into_bytes().into_iter().cycle().take((n * 3000 + 7) as usize).collect()
}

/// An entry of a log.
#[derive(Debug)]
struct Entry {
    flags: u64,
    // Bytes of the log.
    place: Range<usize>,
}

fn entries(log: &[u8]) -> Vec<Entry> {
    let number = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().expect("eight bytes"));
    let mut at = BLOCK;
    let entry = |_| {
        let (blocks, flags) = (number(at + 8), number(at + 16));
        let begin = at;
        at += (1 + if flags & DISCARD == 0 { blocks as usize } else { 0 }) * BLOCK;
        Entry { flags, place: begin..at }
    };
    (0..number(16)).map(entry).collect()
}

/// A log without one of its entries.
fn without(log: &[u8], entry: Range<usize>) -> Vec<u8> {
    let mut shorter = [&log[..entry.start], &log[entry.end..]].concat();
    let count = u64::from_le_bytes(log[16..24].try_into().expect("eight bytes")) - 1;
    shorter[16..24].copy_from_slice(&count.to_le_bytes());
    shorter
}

impl Ground {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// A new image of the disk as it was.
    fn fresh(&self) -> String {
        let path = self.path("replayed.img");
        copy(&self.path("before.img"), &path);
        path.to_str().expect("ASCII").to_owned()
    }

    /// `replay LOG ARGS`: what it said, and whether that is how it failed.
    fn replay(&self, log: &str, args: &[&str]) -> Result<String, String> {
        let output = said(Command::new(binary()).arg("replay").arg(self.path(log)).args(args));
        let all = format!("{}{}", output.stdout, output.stderr);
        if output.code == 0 { Ok(all) } else { Err(all) }
    }

    /// The check behind every flush.
    fn check_flushes(&self, log: &str) -> Result<String, String> {
        let scratch = self.path("scratch.img");
        // Of a check that failed.
        let _ = fs::remove_file(&scratch);
        let scratch = scratch.to_str().expect("ASCII");
        self.replay(log, &["--to", &self.fresh(), "--scratch", scratch, "--each-flush", CHECK])
    }

    /// Whether each file is there behind its mark, and those before it.
    fn check_marks(&self, log: &str) -> Result<(), String> {
        let to = self.fresh();
        for mark in 1..=FILES {
            let (from, until) = (format!("--from=mark:f{}", mark - 1), format!("--until=mark:f{mark}"));
            let from = (mark > 1).then_some(from.as_str());
            let args: Vec<&str> = ["--to", &to, &until].into_iter().chain(from).collect();
            self.replay(log, &args)?;
            let (recovered, got) = (self.path("recovered.img"), self.path("got"));
            copy(Path::new(&to), &recovered);
            let fsck = said(Command::new("e2fsck").arg("-fp").arg(&recovered));
            assert!(fsck.code <= 1, "mark f{mark}: {fsck:?}");
            for file in 1..=mark {
                let _ = fs::remove_file(&got);
                run(Command::new("debugfs").arg("-R").arg(format!("dump /f{file} {}", got.display())).arg(&recovered));
                if fs::read(&got).ok() != Some(content(file)) {
                    return Err(format!("mark f{mark}: /f{file}"));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_mounted_file_system_comes_back_at_every_flush_with_what_was_fsynced() {
    let ground = Ground::new();
    let served = ground.serve();
    let mut vm = Setup::new(&ground.scratch).disk(&served.socket("boot-test"), "").run_test("logged");
    for n in 1..=FILES {
        assert_eq!(vm.wait_for("synced"), n.to_string());
        served.must(&["message", "boot-test", "0", "mark", &format!("f{n}")]);
    }
    vm.kill();
    served.stop();
    let said = ground.check_flushes("log").unwrap_or_else(|said| panic!("{said}"));
    ground.check_marks("log").unwrap();
    let log = fs::read(ground.path("log")).expect("the log");
    let entries = entries(&log);
    let flushes = entries.iter().filter(|entry| entry.flags & FLUSH != 0).count();
    assert!(flushes as u64 > FILES, "{flushes} flushes: {said}");
    assert_eq!(said.matches("Pass 1: ").count(), flushes, "one check for each: {said}");

    // Without any one of the writes that file 7 hangs on: its own bytes, and what commits the first transaction behind them.
    let data = |entry: &Entry| &log[(entry.place.start + BLOCK).min(entry.place.end)..entry.place.end];
    let of_file = entries.iter().position(|entry| data(entry).chunks(BLOCK).any(|block| *block == content(7)[..BLOCK]));
    let of_file = of_file.expect("its bytes");
    let commit = entries[of_file..].iter().find(|entry| data(entry).starts_with(COMMIT)).expect("a commit");
    let end = entries.last().expect("an entry").place.end;
    for gone in [&entries[of_file], commit] {
        fs::write(ground.path("short"), without(&log[..end], gone.place.clone())).expect("a log");
        assert_eq!(ground.check_marks("short"), Err("mark f7: /f7".to_owned()), "{gone:?}");
        let said = ground.check_flushes("short").expect_err("it is not what it was");
        assert!(said.contains("/f7 is not what was fsynced"), "{gone:?}: {said}");
    }
}
