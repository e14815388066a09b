//! The host's side of a boot test: a directory of its own, component files, and the daemon that serves them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Bytes in a sector, the unit of tables.
pub const SECTOR: u64 = 512;

/// How long anything here may take before the test fails. Far beyond what a busy machine needs: it only keeps a
/// hang from lasting for ever.
pub const PATIENCE: Duration = Duration::from_secs(180);

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

/// The daemon's program, built once for all tests of this process.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("VHOST_USER_DM") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo).current_dir(top()).args(["build", "--quiet", "--package", "vhost-user-dm"]));
        let mut path = std::env::current_exe().expect("the path of this program");
        path.pop();
        path.set_file_name("vhost-user-dm");
        path
    })
}

/// Directories of one test: one for files, on a disk, and a short one for sockets, whose names may have 107 bytes.
/// A test that succeeds removes them.
pub struct Scratch {
    dir: PathBuf,
    sockets: PathBuf,
}

impl Scratch {
    pub fn new(test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scratch = Scratch {
            dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("boot-{test}-{unique}")),
            sockets: std::env::temp_dir().join(format!("vudm-{unique}")),
        };
        for dir in [&scratch.dir, &scratch.sockets] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    pub fn sockets(&self) -> &Path {
        &self.sockets
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

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.sockets);
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
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

/// A running daemon. Dropping it kills it; [`Daemon::stop`] is the orderly end.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon and waits until `sockets` are there.
    pub fn start(scratch: &Scratch, args: &[&str], sockets: &[&Path]) -> Self {
        let log = scratch.path("daemon.log");
        let file = File::create(&log).expect("create the daemon's log");
        let child = Command::new(program())
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the daemon's log"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program().display()));
        let mut daemon = Daemon { child, log };
        let start = Instant::now();
        while !sockets.iter().all(|s| s.exists()) {
            daemon.assert_alive();
            assert!(start.elapsed() < PATIENCE, "no socket appeared\n{}", daemon.log());
            sleep(Duration::from_millis(10));
        }
        daemon
    }

    /// Starts the daemon with one disk of the given pieces, served on the socket `disk`.
    pub fn serve(scratch: &Scratch, pieces: &[Piece], more: &[&str]) -> Self {
        let table = scratch.text("disk.table", &(table(pieces, "\n") + "\n"));
        let socket = scratch.socket("disk");
        let (socket_arg, table_arg) =
            (format!("--socket-path={}", socket.display()), format!("--table={}", table.display()));
        let args = [&[socket_arg.as_str(), table_arg.as_str()], more].concat();
        Self::start(scratch, &args, &[&socket])
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("look after the daemon") {
            panic!("the daemon ended: {status}\n{}", self.log());
        }
    }

    /// Ends the daemon as its user does, and checks that it ended well.
    pub fn stop(mut self) {
        self.assert_alive();
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon ignores SIGTERM\n{}", self.log());
            sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "the daemon ended with {status} (signal {:?})\n{}", status.signal(), self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}
