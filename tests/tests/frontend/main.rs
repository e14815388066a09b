//! What a well-behaved front end may expect: connecting in the ways VMMs do, configuration, command line,
//! faults of components.
#![allow(missing_docs)]

mod activation;
mod cli;
mod config;
mod faults;
mod interposer;
mod leaving;
mod lifecycle;
mod registered;
mod requests;

use std::path::{Path, PathBuf};

use dm_tests::files;
use dm_tests::vmm::Failed;
use tempfile::TempDir;

const IOERR: Failed = Failed(dm_tests::blk::IOERR);
const UNSUPP: Failed = Failed(dm_tests::blk::UNSUPP);
const SECTOR: usize = 512;

/// A component on the disk, filled with bytes that tell each sector from every other.
struct Piece {
    dir: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Piece {
    fn new(sectors: usize) -> Self {
        let dir = files::disk_dir();
        let path = dir.path().join("component");
        let bytes = pattern(sectors, 1);
        files::component(&path, &bytes);
        Piece { dir, path, bytes }
    }

    fn name(&self) -> &str {
        self.path.to_str().expect("a path of ASCII")
    }

    /// A table of one line over all of it.
    fn table(&self) -> String {
        let sectors = self.bytes.len() / SECTOR;
        format!("0 {sectors} linear {} 0\n", self.name())
    }

    fn now(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("read the component")
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Sectors that each hold their own number and a salt.
fn pattern(sectors: usize, salt: u8) -> Vec<u8> {
    let sector = |n: usize| {
        let mut bytes = [salt; SECTOR];
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        bytes
    };
    (0..sectors).flat_map(sector).collect()
}
