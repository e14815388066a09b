//! A disk with a log, served.

use std::fs;
use std::path::{Path, PathBuf};

use dm_tests::control::Controlled;
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::{daemon, files};
use tempfile::TempDir;

pub const SECTOR: usize = 512;

/// Files of a disk, of what it was, and of its log.
pub struct Ground {
    dir: TempDir,
    before: Vec<u8>,
    sectors: u64,
}

/// Bytes of a sector that was never written.
fn fresh(sector: u64) -> impl Iterator<Item = u8> {
    (0..SECTOR).map(move |byte| (sector as usize * 7 + byte) as u8)
}

impl Ground {
    /// A disk and a log of so many sectors.
    pub fn new(disk: u64, log: u64) -> Ground {
        Ground::over((0..disk).flat_map(fresh).collect(), log)
    }

    /// The same, with what is on the disk at first.
    pub fn over(before: Vec<u8>, log: u64) -> Ground {
        let dir = files::disk_dir();
        files::component(&dir.path().join("disk.img"), &before);
        files::sparse(&dir.path().join("log"), log * SECTOR as u64);
        let sectors = (before.len() / SECTOR) as u64;
        Ground { dir, before, sectors }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn image(&self) -> String {
        self.path("disk.img").display().to_string()
    }

    pub fn log(&self) -> String {
        self.path("log").display().to_string()
    }

    pub fn line(&self) -> String {
        format!("0 {} log-writes {} {}", self.sectors, self.image(), self.log())
    }

    pub fn table(&self) -> String {
        format!("disk,,,,{}", self.line())
    }

    pub fn start(&self, concise: &str) -> Controlled {
        Controlled::start(concise, &[])
    }

    pub fn serve(&self) -> (Controlled, Vmm) {
        self.serve_table(&self.table(), &Setup { queues: 2, ..Setup::default() })
    }

    pub fn serve_table(&self, concise: &str, setup: &Setup) -> (Controlled, Vmm) {
        let mut served = self.start(concise);
        let vmm = served.vmm("disk", setup);
        (served, vmm)
    }

    /// What `check` says of a table that is refused.
    pub fn refused(&self, concise: &str) -> String {
        let path = self.path("refused.table");
        fs::write(&path, concise).unwrap();
        let (code, out, err) = daemon::run(["check".into(), path.display().to_string()]).unwrap();
        assert_ne!(code, 0);
        out + &err
    }

    /// What follows the type in the status line.
    pub fn status(&self, served: &Controlled) -> String {
        let line = served.must(&["status", "disk"]);
        line.trim_end().split_once(" log-writes ").unwrap_or_else(|| panic!("{line}")).1.to_owned()
    }

    pub fn message(&self, served: &Controlled, words: &[&str]) -> String {
        served.must(&[&["message", "disk", "0"], words].concat())
    }

    /// What is on the disk's device.
    pub fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.img")).unwrap()
    }

    pub fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.path("log")).unwrap()
    }

    pub fn write_log(&self, bytes: &[u8]) {
        fs::write(self.path("log"), bytes).unwrap();
    }

    /// A new image of the disk as it was.
    pub fn fresh(&self) -> String {
        let path = self.path("replayed.img");
        fs::write(&path, &self.before).unwrap();
        path.display().to_string()
    }

    /// `replay LOG ARGS`: its exit code, and what it said.
    pub fn replay(&self, args: &[&str]) -> (i32, String, String) {
        let args = args.iter().map(|arg| (*arg).to_owned());
        daemon::run(["replay".to_owned(), self.log()].into_iter().chain(args)).unwrap()
    }

    /// The disk as a replay makes it that must succeed.
    pub fn replayed(&self, args: &[&str]) -> Vec<u8> {
        let to = self.fresh();
        let args: Vec<&str> = ["--to", &to].into_iter().chain(args.iter().copied()).collect();
        let (code, out, err) = self.replay(&args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        fs::read(to).unwrap()
    }
}
