//! Two back ends in turn on the same file, round after round, and what became of the ratio.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::client::{Job, Sample, run};
use super::cpu::pin;
use super::rows::{Backing, Rival, Row};
use crate::daemon::{Daemon, flag, qemu_storage_daemon};

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our binary.
    pub ours: PathBuf,
    /// Directory on a disk, for the O_DIRECT rows.
    pub disk: PathBuf,
    /// Directory in memory.
    pub memory: PathBuf,
    /// Bytes of each file.
    pub file_bytes: u64,
    /// Rounds, each with both sides.
    pub rounds: usize,
    /// Seconds that each side of a round counts.
    pub time: Duration,
    /// qemu-storage-daemon's `aio=`.
    pub aio: String,
    /// CPU of the back end and of the client.
    pub cpus: (usize, usize),
    /// First seed.
    pub seed: u64,
    /// Further arguments for our binary.
    pub ours_args: Vec<String>,
}

/// The files, filled so that no row reads a hole.
struct Files {
    memory: TempDir,
    disk: TempDir,
}

const NAME: &str = "disk";
/// Lines of the long table.
const LINES: u64 = 1000;

impl Files {
    fn make(options: &Options, rows: &[Row]) -> io::Result<Self> {
        let dir = |parent| tempfile::Builder::new().prefix("dm-bench-").tempdir_in(parent);
        let files = Files { memory: dir(&options.memory)?, disk: dir(&options.disk)? };
        for backing in [Backing::Tmpfs, Backing::Direct] {
            if rows.iter().any(|row| row.backing == backing) {
                fill(&files.path(backing), options.file_bytes)?;
            }
        }
        Ok(files)
    }

    fn path(&self, backing: Backing) -> PathBuf {
        match backing {
            Backing::Direct => self.disk.path().join(NAME),
            Backing::Tmpfs | Backing::Zero => self.memory.path().join(NAME),
        }
    }
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

/// A table of so many lines over the file, in an order that no line continues the one before.
fn table(row: &Row, lines: u64, file: &Path, bytes: u64) -> String {
    let each = bytes / 512 / lines;
    let line = |i: u64| {
        // 7 and the number of lines have no common divisor, so this visits every part of the file once.
        let from = i * 7 % lines * each;
        match row.backing {
            Backing::Zero => format!("{} {each} zero\n", i * each),
            Backing::Tmpfs | Backing::Direct => {
                format!("{} {each} linear {} {from}\n", i * each, file.display())
            }
        }
    };
    (0..lines).map(line).collect()
}

struct Bench<'a> {
    options: &'a Options,
    files: Files,
    sockets: TempDir,
}

impl Bench<'_> {
    /// The command that serves one side of a row.
    fn command(&self, row: &Row, first: bool, socket: &Path) -> io::Result<Command> {
        let file = self.files.path(row.backing);
        let direct = row.backing == Backing::Direct;
        if !first && row.rival == Rival::QemuStorageDaemon {
            return Ok(if row.backing == Backing::Zero {
                null_co(socket, self.options.file_bytes)
            } else {
                qemu_storage_daemon(&file, socket, &self.options.aio, direct)
            });
        }
        let lines = if first && row.rival == Rival::OneLine { LINES } else { 1 };
        let text = table(row, lines, &file, self.options.file_bytes);
        let table = self.sockets.path().join("table");
        fs::write(&table, text)?;
        let mut command = Command::new(&self.options.ours);
        command
            .args([flag("--socket-path", socket), flag("--table", &table)])
            .arg("--queue-size=1024")
            .args(direct.then_some("--cache=direct"))
            .args(&self.options.ours_args);
        Ok(command)
    }

    /// Starts one side, measures it, ends it.
    fn side(&self, row: &Row, first: bool, seed: u64) -> io::Result<Sample> {
        let socket = self.sockets.path().join(if first { "a" } else { "b" });
        // A new process inherits the CPU of the thread that starts it.
        pin(self.options.cpus.0)?;
        let mut daemon = Daemon::spawn(self.command(row, first, &socket)?);
        pin(self.options.cpus.1)?;
        let stream = daemon.connect(&socket);
        let job = Job {
            pattern: row.pattern,
            block: row.block,
            depth: row.depth,
            mode: row.mode,
            warm_up: self.options.time / 5,
            time: self.options.time,
            operations: 0,
            seed,
            pid: Some(daemon.pid()),
            event_idx: true,
        };
        let sample =
            run(stream, &job).map_err(|e| io::Error::other(format!("{}: {e}\n{}", row.name(), daemon.log())))?;
        daemon.signal(rustix::process::Signal::TERM);
        daemon.wait(Duration::from_secs(10));
        // qemu-storage-daemon leaves it behind.
        let _ = fs::remove_file(&socket);
        Ok(sample)
    }
}

fn null_co(socket: &Path, bytes: u64) -> Command {
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(format!("driver=null-co,node-name=disk,size={bytes},read-zeroes=on"))
        .args(["--object", "iothread,id=io0", "--export"])
        .arg(format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=disk,writable=on,iothread=io0,num-queues=1",
            socket.display()
        ));
    command
}

/// Runs the rows and prints each as soon as it is done.
pub fn compare(options: &Options, rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    let bench = Bench { options, files: Files::make(options, rows)?, sockets: tempfile::tempdir()? };
    print_settings(options, out)?;
    writeln!(
        out,
        "{:<48} {:>9} {:>7} {:>7} {:>7}  {:>9} {:>7} {:>7} {:>7}  {:>6} {:>13} {:>8}",
        "row", "ours", "p50", "p99", "CPU/IO", "theirs", "p50", "p99", "CPU/IO", "ratio", "spread", "CPU rat."
    )?;
    writeln!(
        out,
        "{:<48} {:>9} {:>7} {:>7} {:>7}  {:>9} {:>7} {:>7} {:>7}",
        "", "kIOPS", "us", "us", "us", "kIOPS", "us", "us", "us"
    )?;
    for row in rows {
        let mut pairs = Vec::with_capacity(options.rounds);
        for round in 0..options.rounds {
            // Both sides of a round read the same places; no two rounds do.
            let seed = options.seed + round as u64;
            let ours = bench.side(row, true, seed)?;
            let theirs = bench.side(row, false, seed)?;
            pairs.push((ours, theirs));
        }
        print_row(row, &pairs, out)?;
    }
    Ok(())
}

fn print_settings(options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let version = |command: &mut Command| {
        let output = command.arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("?").to_owned()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    if load > 0.7 {
        writeln!(out, "WARNING: the machine is busy (load {load}): expect noise, and look at the spread\n")?;
    }
    writeln!(out, "ours:   {}", version(&mut Command::new(&options.ours)))?;
    writeln!(
        out,
        "theirs: {}, aio={}, an iothread, cache.direct as the row says, 1 queue; zero: null-co, read-zeroes",
        version(&mut Command::new("qemu-storage-daemon")),
        options.aio
    )?;
    writeln!(
        out,
        "linux {}, back end on CPU {}, client on CPU {} (io_uring's kernel workers choose their own)",
        kernel.trim(),
        options.cpus.0,
        options.cpus.1
    )?;
    writeln!(
        out,
        "{} rounds A B, {:?} each after a fifth of that to warm up, files of {} MiB, medians; the ratio is ours/theirs of a round\n",
        options.rounds,
        options.time,
        options.file_bytes >> 20
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn print_row(row: &Row, pairs: &[(Sample, Sample)], out: &mut dyn Write) -> io::Result<()> {
    let side = |pick: &dyn Fn(&(Sample, Sample)) -> Sample| {
        let of = |f: &dyn Fn(Sample) -> f64| median(pairs.iter().map(|pair| f(pick(pair))).collect());
        format!(
            "{:>9.1} {:>7.1} {:>7.1} {:>7.2}",
            of(&|s| s.iops) / 1e3,
            of(&|s| s.p50 as f64) / 1e3,
            of(&|s| s.p99 as f64) / 1e3,
            of(&|s| s.cpu) / 1e3
        )
    };
    let ratios: Vec<f64> = pairs.iter().map(|(a, b)| a.iops / b.iops).collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let cpu = median(pairs.iter().map(|(a, b)| a.cpu / b.cpu).collect());
    writeln!(
        out,
        "{:<48} {}  {}  {:>6.2} {:>13} {:>8.2}",
        row.name(),
        side(&|pair| pair.0),
        side(&|pair| pair.1),
        median(ratios.clone()),
        format!("{low:.2}..{high:.2}"),
        cpu
    )?;
    out.flush()
}
