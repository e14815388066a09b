//! The files that are measured on, tables over them, and the two kinds of back end that serve them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::cpu::pin;
use super::rival::Setting;
use super::rows::{Backing, Rival, Row, Shape};
use crate::daemon::{Daemon, flag};

/// A back end that does not listen by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sectors of a stripe's chunk: 64 KiB.
const CHUNK: u64 = 128;
/// Lines of a table begin and end at pages, so that no request of a page is split.
const PAGE_SECTORS: u64 = 8;

/// What serves one side of a row.
#[derive(Clone, Copy, Debug)]
pub enum Server<'a> {
    /// vhost-user-dm.
    Ours {
        /// The program.
        binary: &'a Path,
        /// Its table.
        shape: Shape,
        /// With `--register-memory`.
        registered: bool,
    },
    /// qemu-storage-daemon on the whole file.
    Theirs(Setting),
}

/// The files, filled so that no row reads a hole, and room for sockets and tables.
#[derive(Debug)]
pub struct Ground {
    memory: TempDir,
    disk: TempDir,
    bytes: u64,
    /// CPU of the back end and of the client.
    pub cpus: (usize, usize),
    ours_args: Vec<String>,
}

impl Ground {
    /// Makes a directory in each of the given ones, and what files the rows need, of `bytes` bytes each.
    pub fn make(
        (memory, disk): (&Path, &Path),
        bytes: u64,
        cpus: (usize, usize),
        ours_args: &[String],
        rows: &[Row],
    ) -> io::Result<Self> {
        let ground = Ground { memory: dir(memory)?, disk: dir(disk)?, bytes, cpus, ours_args: ours_args.to_vec() };
        for backing in [Backing::Tmpfs, Backing::Direct] {
            let of: Vec<&Row> = rows.iter().filter(|row| row.backing == backing).collect();
            let whole = |row: &&Row| row.shape != Shape::Striped || row.rival == Rival::QemuStorageDaemon;
            if of.iter().any(whole) {
                ground.need_file(backing)?;
            }
            if of.iter().any(|row| row.shape == Shape::Striped) {
                for leg in 0..2 {
                    fill(&ground.leg(backing, leg), bytes / 2)?;
                }
            }
            for copied in [false, true] {
                let shape = if copied { Shape::Copied } else { Shape::Untouched };
                if of.iter().any(|row| row.shape == shape) {
                    make_store(&ground.store(backing, shape), bytes, copied)?;
                }
            }
        }
        Ok(ground)
    }

    fn dir_of(&self, backing: Backing) -> &Path {
        if backing == Backing::Direct { self.disk.path() } else { self.memory.path() }
    }

    /// The file of a backing.
    pub fn file(&self, backing: Backing) -> PathBuf {
        self.dir_of(backing).join("disk")
    }

    fn leg(&self, backing: Backing, number: usize) -> PathBuf {
        self.dir_of(backing).join(format!("leg{number}"))
    }

    fn store(&self, backing: Backing, shape: Shape) -> PathBuf {
        self.dir_of(backing).join(if shape == Shape::Copied { "copied" } else { "untouched" })
    }

    /// Where a socket or a table of this name goes.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.memory.path().join(name)
    }

    /// Makes the file of a backing if it is not there.
    pub fn need_file(&self, backing: Backing) -> io::Result<()> {
        let file = self.file(backing);
        if backing == Backing::Zero || file.exists() { Ok(()) } else { fill(&file, self.bytes) }
    }

    /// Sectors of the files.
    pub fn sectors(&self) -> u64 {
        self.bytes / 512
    }

    /// The text of a table.
    pub fn table(&self, backing: Backing, shape: Shape) -> String {
        let sectors = self.sectors();
        let file = self.file(backing);
        let target = |at: u64| match backing {
            Backing::Zero => "zero".to_owned(),
            Backing::Tmpfs | Backing::Direct => format!("linear {} {at}", file.display()),
        };
        match shape {
            Shape::Lines(lines) => table_of_lines(sectors, lines, target),
            Shape::Striped => {
                let whole = sectors / (2 * CHUNK) * (2 * CHUNK);
                let [a, b] = [0, 1].map(|number| self.leg(backing, number));
                format!("0 {whole} striped 2 {CHUNK} {} 0 {} 0\n", a.display(), b.display())
            }
            Shape::Stacked(depth) => stack(sectors, depth, &target(0)),
            Shape::Delay => format!("0 {sectors} delay {} 0 0\n", file.display()),
            Shape::Flakey => format!("0 {sectors} flakey {} 0 3600 0\n", file.display()),
            Shape::Untouched | Shape::Copied => {
                let store = self.store(backing, shape);
                format!("0 {sectors} snapshot {} {} P {PAGE_SECTORS}\n", file.display(), store.display())
            }
        }
    }

    fn command(&self, server: Server<'_>, backing: Backing, socket: &Path) -> io::Result<Command> {
        match server {
            Server::Theirs(setting) => Ok(setting.command(&self.file(backing), self.bytes, socket)),
            Server::Ours { binary, shape, registered } => {
                let table = self.scratch("table");
                fs::write(&table, self.table(backing, shape))?;
                let mut command = self.ours(binary);
                command
                    .args([flag("--socket-path", socket), flag("--table", &table)])
                    .args((backing == Backing::Direct).then_some("--cache=direct"))
                    .args(registered.then_some("--register-memory"));
                Ok(command)
            }
        }
    }

    /// Our program with what every row gives it.
    pub fn ours(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.arg("--queue-size=1024").args(&self.ours_args);
        command
    }

    /// Starts a command on the back end's CPU; the caller goes on on the client's.
    pub fn spawn(&self, command: Command) -> io::Result<Daemon> {
        // A new process inherits the CPU of the thread that starts it.
        pin(self.cpus.0)?;
        let daemon = Daemon::spawn(command);
        pin(self.cpus.1)?;
        Ok(daemon)
    }

    /// Starts a back end and connects to it. The error has its log.
    pub fn serve(&self, server: Server<'_>, backing: Backing, socket: &Path) -> io::Result<(Daemon, UnixStream)> {
        let mut daemon = self.spawn(self.command(server, backing, socket)?)?;
        let stream = connect(&mut daemon, socket)?;
        Ok((daemon, stream))
    }

    /// Ends a back end.
    pub fn end(&self, mut daemon: Daemon, socket: &Path) {
        daemon.signal(Signal::TERM);
        daemon.wait(PATIENCE);
        // qemu-storage-daemon leaves it behind.
        let _ = fs::remove_file(socket);
    }
}

/// Connects as soon as the socket listens. Between attempts it does not sleep, so as to see the moment; it runs on
/// another CPU than the back end.
pub fn connect(daemon: &mut Daemon, socket: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for _ in 0..1000 {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
        }
        if !daemon.is_running() || Instant::now() > deadline {
            return Err(io::Error::other(format!("nothing listens on {}: {}", socket.display(), daemon.log())));
        }
    }
}

fn dir(parent: &Path) -> io::Result<TempDir> {
    let parent = fs::canonicalize(parent)
        .map_err(|e| io::Error::new(e.kind(), format!("directory {} for files: {e}", parent.display())))?;
    // They mean something in tables, to qemu-storage-daemon or to fio.
    if parent.to_string_lossy().contains([' ', '\t', ',', ';', ':', '\\', '#']) {
        let why = "its name has a blank or one of , ; : # \\ in it: choose another with --disk or --memory";
        return Err(io::Error::other(format!("directory {}: {why}", parent.display())));
    }
    tempfile::Builder::new().prefix("dm-bench-").tempdir_in(parent)
}

/// A snapshot's store (dm-snap-persistent.c) with chunks of a page, for a disk of so many bytes: a header, then areas of a
/// chunk of exceptions and the chunks that they are for.
fn make_store(path: &Path, bytes: u64, copied: bool) -> io::Result<()> {
    const CHUNK: u64 = PAGE_SECTORS * 512;
    const EXCEPTIONS: u64 = CHUNK / 16;
    let chunks = bytes / CHUNK;
    let mut rng = fastrand::Rng::with_seed(2);
    let mut store = io::BufWriter::new(File::create(path)?);
    let mut block = vec![0; CHUNK as usize];
    for (at, word) in
        [*b"SnAp", 1_u32.to_le_bytes(), 1_u32.to_le_bytes(), (PAGE_SECTORS as u32).to_le_bytes()].iter().enumerate()
    {
        block[4 * at..][..4].copy_from_slice(word);
    }
    store.write_all(&block)?;
    if copied {
        let mut old: Vec<u64> = (0..chunks).collect();
        rng.shuffle(&mut old);
        for (area, old) in (0..).zip(old.chunks(EXCEPTIONS as usize)) {
            block.fill(0);
            let first = 2 + area * (EXCEPTIONS + 1);
            for ((at, old), new) in old.iter().enumerate().zip(first..) {
                block[16 * at..][..8].copy_from_slice(&old.to_le_bytes());
                block[16 * at + 8..][..8].copy_from_slice(&u64::to_le_bytes(new));
            }
            store.write_all(&block)?;
            for _ in old {
                rng.fill(&mut block);
                store.write_all(&block)?;
            }
        }
        // An area without exceptions ends the list.
        block.fill(0);
        store.write_all(&block)?;
    }
    let file = store.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Room for every chunk, its exception and the header.
    file.set_len(bytes + (chunks / EXCEPTIONS + 3) * CHUNK)?;
    file.sync_all()
}

fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut block = vec![0; 1 << 20];
    let mut file = File::create(path)?;
    for _ in 0..bytes / block.len() as u64 {
        rng.fill(&mut block);
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Lines in an order that no line continues the one before.
fn table_of_lines(sectors: u64, lines: u64, target: impl Fn(u64) -> String) -> String {
    let each = sectors / lines / PAGE_SECTORS * PAGE_SECTORS;
    // 7 and the number of lines have no common divisor, so this visits every part of the file once.
    let line = |i: u64| format!("{} {each} {}\n", i * each, target(i * 7 % lines * each));
    (0..lines).map(line).collect()
}

/// Devices in dmsetup's concise form, each but the first on the one before.
fn stack(sectors: u64, depth: u64, bottom: &str) -> String {
    let device = |i: u64| match i {
        0 => format!("d0,,,rw,0 {sectors} {bottom}"),
        _ => format!("d{i},,,rw,0 {sectors} linear /dev/mapper/d{} 0", i - 1),
    };
    let devices: Vec<String> = (0..depth).map(device).collect();
    devices.join(";") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_table_covers_the_file_out_of_order() {
        let table = table_of_lines(1000, 10, |at| format!("linear f {at}"));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[..3], ["0 96 linear f 0", "96 96 linear f 672", "192 96 linear f 384"]);
        let mut starts: Vec<u64> =
            lines.iter().filter_map(|line| line.rsplit(' ').next()).filter_map(|at| at.parse().ok()).collect();
        starts.sort_unstable();
        assert_eq!(starts, (0..10).map(|i| i * 96).collect::<Vec<u64>>());
    }

    #[test]
    fn one_line_is_the_whole_file() {
        assert_eq!(table_of_lines(1024, 1, |_| "zero".into()), "0 1024 zero\n");
    }

    #[test]
    fn a_stack_is_linear_all_the_way_down() {
        assert_eq!(stack(8, 2, "zero"), "d0,,,rw,0 8 zero;d1,,,rw,0 8 linear /dev/mapper/d0 0\n");
    }
}
