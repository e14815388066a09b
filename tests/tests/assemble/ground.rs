//! A directory with pieces, the command in it, and the disk that its table describes.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use dm_tests::daemon::binary;
use dm_tests::files;
use serde_json::Value;
use tempfile::TempDir;

pub const SECTOR: u64 = 512;

/// Where the files are.
pub struct Ground {
    dir: TempDir,
}

/// What the command said.
pub struct Said {
    pub good: bool,
    pub out: String,
    pub err: String,
}

impl Ground {
    pub fn new() -> Ground {
        Ground { dir: files::disk_dir() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of holes with a mark at its beginning, its end and each MiB.
    pub fn piece(&self, name: &str, sectors: u64) -> PathBuf {
        let path = self.path(name);
        let mut file = File::create(&path).expect("create a piece");
        file.set_len(sectors * SECTOR).expect("size a piece");
        for sector in (0..sectors).step_by(2048).chain([sectors - 1]) {
            file.seek(SeekFrom::Start(sector * SECTOR)).expect("seek in a piece");
            write!(file, "{name} {sector}").expect("mark a piece");
        }
        path
    }

    /// Runs `assemble` with these words and `-o disk.table`.
    pub fn try_assemble<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Said {
        let mut command = Command::new(binary());
        command.arg("assemble").args(args).args(["-o", "disk.table"]).current_dir(self.dir.path());
        let output = command.output().expect("run assemble");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Said { good: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The same, which must go well; returns what it printed.
    pub fn assemble<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> String {
        let said = self.try_assemble(args);
        let args: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
        assert!(said.good, "assemble {}: {}", args.join(" "), said.err);
        said.out
    }

    pub fn table(&self) -> String {
        fs::read_to_string(self.path("disk.table")).expect("the table")
    }

    /// Lines of the table without comments, in words.
    pub fn lines(&self) -> Vec<Vec<String>> {
        let lines = self.table();
        let lines = lines.lines().filter(|line| !line.starts_with('#') && !line.ends_with(','));
        lines.map(|line| line.trim_end_matches(';').split_whitespace().map(str::to_owned).collect()).collect()
    }

    /// The disk's bytes, with holes, as the table's lines say; errors are holes too.
    pub fn image(&self) -> PathBuf {
        let path = self.path("disk.img");
        let mut disk = File::create(&path).expect("create the image");
        let mut end = 0;
        for line in self.lines() {
            let number = |index: usize| line[index].parse::<u64>().expect("a number");
            assert_eq!(number(0), end, "the lines follow each other");
            end += number(1);
            if line[2] == "linear" {
                copy(Path::new(&line[3]), number(4), number(1), &mut disk, number(0));
            }
        }
        disk.set_len(end * SECTOR).expect("size the image");
        path
    }
}

/// Copies sectors that are not all zero.
fn copy(from: &Path, at: u64, len: u64, disk: &mut File, to: u64) {
    let mut file = File::open(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let mut bytes = vec![0; 1 << 20];
    let mut done = 0;
    while done < len * SECTOR {
        let take = (len * SECTOR - done).min(1 << 20) as usize;
        file.seek(SeekFrom::Start(at * SECTOR + done)).expect("seek in a piece");
        file.read_exact(&mut bytes[..take]).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        if bytes[..take].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(to * SECTOR + done)).expect("seek in the image");
            disk.write_all(&bytes[..take]).expect("write the image");
        }
        done += take as u64;
    }
}

/// Runs a tool, which must succeed; returns what it printed.
pub fn tool(program: &str, args: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(args).arg(path).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {out}{err}", path.display());
    out
}

/// What sfdisk reads of a disk.
pub fn sfdisk(path: &Path) -> Value {
    let said = tool("sfdisk", &["--verify"], path);
    assert!(said.contains("No errors detected"), "{said}");
    let mut all: Value = serde_json::from_str(&tool("sfdisk", &["--json"], path)).expect("sfdisk's JSON");
    all["partitiontable"].take()
}

/// Lines of what sgdisk says of one partition, as `Key: value`, after it found nothing wrong with the disk.
pub fn sgdisk(path: &Path, number: u64) -> Vec<(String, String)> {
    let said = tool("sgdisk", &["--verify"], path);
    assert!(said.contains("No problems found"), "{said}");
    let said = tool("sgdisk", &[&format!("--info={number}")], path);
    let pairs = said.lines().filter_map(|line| line.split_once(": "));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
