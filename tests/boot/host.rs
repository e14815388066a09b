//! The host's side of a boot test: directories of its own, component files, and the bytes that they make.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dm_tests::daemon::{Daemon, flag};
use dm_tests::files::disk_dir;
use tempfile::TempDir;

/// Bytes in a sector, the unit of tables.
pub const SECTOR: u64 = 512;

/// How long anything here may take before the test fails. Far beyond what a busy machine needs: it only keeps a
/// hang from lasting for ever.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The top directory of the repository.
pub fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a command to its end and returns what it printed on standard output, without the last line feed.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Directories of one test: one for files, on a disk, and a short one for sockets, whose names may have 107 bytes.
pub struct Scratch {
    files: TempDir,
    sockets: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        Scratch { files: disk_dir(), sockets: tempfile::tempdir().expect("a directory for sockets") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets().join(name)
    }

    pub fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    /// A file of noise, so that no sector is like another one, here or in another file.
    pub fn noise(&self, name: &str, sectors: u64) -> PathBuf {
        let path = self.path(name);
        // xorshift, seeded with the name; never 0.
        let mut state =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut bytes = Vec::with_capacity((sectors * SECTOR) as usize);
        while bytes.len() < (sectors * SECTOR) as usize {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    pub fn text(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}

/// One line of a table, for the daemon to read and for the test to look the same bytes up in the components.
pub enum Piece {
    Linear(u64, PathBuf, u64),
    Striped(u64, u64, Vec<PathBuf>),
    Zero(u64),
    Error(u64),
}

impl Piece {
    pub fn len(&self) -> u64 {
        match self {
            Piece::Linear(len, ..) | Piece::Striped(len, ..) | Piece::Zero(len) | Piece::Error(len) => *len,
        }
    }
}

/// The table's lines, joined by `separator`.
pub fn table(pieces: &[Piece], separator: &str) -> String {
    let mut start = 0;
    let lines = pieces.iter().map(|piece| {
        let params = match piece {
            Piece::Linear(_, path, at) => format!("linear {} {at}", path.display()),
            Piece::Striped(_, chunk, paths) => {
                let legs: String = paths.iter().map(|p| format!(" {} 0", p.display())).collect();
                format!("striped {} {chunk}{legs}", paths.len())
            }
            Piece::Zero(_) => "zero".to_owned(),
            Piece::Error(_) => "error".to_owned(),
        };
        let line = format!("{start} {} {params}", piece.len());
        start += piece.len();
        line
    });
    lines.collect::<Vec<_>>().join(separator)
}

/// The disk's bytes by the components' files as they are now, into a file. An error segment counts as zeroes.
pub fn assemble(pieces: &[Piece], to: &Path) {
    let mut disk = File::create(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    let mut append = |path: &Path, at: u64, len: u64| {
        let mut bytes = vec![0; (len * SECTOR) as usize];
        let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.seek(SeekFrom::Start(at * SECTOR)).expect("seek in a component");
        file.read_exact(&mut bytes).unwrap_or_else(|e| panic!("{} at sector {at}: {e}", path.display()));
        disk.write_all(&bytes).expect("write the assembled disk");
    };
    for piece in pieces {
        match piece {
            Piece::Linear(len, path, at) => append(path, *at, *len),
            Piece::Striped(len, chunk, paths) => {
                for number in 0..len / chunk {
                    let (row, leg) = (number / paths.len() as u64, number % paths.len() as u64);
                    append(&paths[leg as usize], row * chunk, *chunk);
                }
            }
            Piece::Zero(len) | Piece::Error(len) => append(Path::new("/dev/zero"), 0, *len),
        }
    }
}

/// The SHA-256 checksum of a file, in hexadecimal digits.
pub fn sha256(path: &Path) -> String {
    run(Command::new("sha256sum").arg("--").arg(path))[..64].to_owned()
}

/// The SHA-256 checksum of the disk that the pieces make.
pub fn disk_sha256(scratch: &Scratch, pieces: &[Piece]) -> String {
    let path = scratch.path("assembled.img");
    assemble(pieces, &path);
    let sum = sha256(&path);
    fs::remove_file(&path).expect("remove the assembled disk");
    sum
}

/// Starts the daemon with one disk of the given pieces, served on the socket `disk`.
pub fn serve(scratch: &Scratch, pieces: &[Piece], more: &[&str]) -> Daemon {
    let table = scratch.text("disk.table", &(table(pieces, "\n") + "\n"));
    let socket = scratch.socket("disk");
    let mut args = vec![flag("--socket-path", &socket), flag("--table", &table)];
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    let mut daemon = Daemon::start(args);
    daemon.wait_listening(&socket);
    daemon
}

/// A loop device over a file, which goes when this drops.
pub struct Loop(PathBuf);

impl Loop {
    /// A loop device with logical blocks of so many bytes; the reason where this machine or user can have none.
    pub fn attach(file: &Path, block: u32) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size"]).arg(block.to_string()).arg(file);
        let output = losetup.output().map_err(|e| format!("losetup: {e}"))?;
        if output.status.success() {
            return Ok(Loop(String::from_utf8_lossy(&output.stdout).trim_end().into()));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Dropping may be part of a failure already; a device left behind is no second one.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
