//! `dm-bench client` measures one vhost-user-blk back end; `dm-bench compare` starts vhost-user-dm and
//! qemu-storage-daemon (or two builds of vhost-user-dm) in turn and prints how they compare, in Markdown.

use std::io::{self, stdout};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dm_tests::bench::client::{Job, Mode, Pattern, run};
use dm_tests::bench::compare::{Options, Other, compare};
use dm_tests::bench::rows::Set;
use dm_tests::bench::save::Saved;
use dm_tests::bench::{cpu, rows};

#[derive(Parser)]
#[command(about = "Benchmark of vhost-user-blk back ends")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures the back end behind a socket
    Client(Client),
    /// Compares vhost-user-dm with qemu-storage-daemon or another build of it, and says what the process itself takes
    Compare(Box<Compare>),
}

#[derive(clap::Args)]
struct Client {
    /// Socket of the back end
    #[arg(long)]
    socket: PathBuf,
    /// What to do
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    rw: Pattern,
    /// Bytes of each request
    #[arg(long, default_value_t = 4096)]
    bs: usize,
    /// Requests in flight
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// How to wait for completions
    #[arg(long, value_enum, default_value_t = Mode::Poll)]
    mode: Mode,
    /// Seconds to measure
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Ends after so many requests (0: after the time)
    #[arg(long, default_value_t = 0)]
    operations: u64,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// Process of the back end, whose CPU time is to be read
    #[arg(long)]
    pid: Option<u32>,
    /// Seed of the offsets
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Does without EVENT_IDX
    #[arg(long)]
    no_event_idx: bool,
    /// Does without in-flight tracking
    #[arg(long)]
    no_inflight: bool,
}

// The last of several wins, so that ci/bench.sh can give some of its own.
#[derive(clap::Args)]
#[command(args_override_self = true)]
struct Compare {
    /// The vhost-user-dm binary
    #[arg(long)]
    ours: PathBuf,
    /// What to compare it with instead of qemu-storage-daemon: another build of it, in turn with it; or what --save
    /// wrote
    #[arg(long, value_name = "BINARY|FILE")]
    against: Option<PathBuf>,
    /// Writes every round of our own side here
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Sets of rows (default: bars; with --row, all)
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Set>,
    /// Rows whose name has this in it (may be given several times)
    #[arg(long, value_name = "PART")]
    row: Vec<String>,
    /// Only prints the names of the rows
    #[arg(long)]
    list: bool,
    /// Rounds of each row; 2 N + 1 where the client waits for interrupts
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Seconds of each side of a round
    #[arg(long, default_value = "1", value_parser = seconds)]
    seconds: Duration,
    /// Seconds that idle disks are watched; many disks for a sixth of it
    #[arg(long, default_value = "60", value_parser = seconds)]
    idle_seconds: Duration,
    /// Restarts of each kind
    #[arg(long, value_name = "N", default_value_t = 100)]
    restarts: usize,
    /// Directory on a disk, for files with O_DIRECT
    #[arg(long, default_value = ".")]
    disk: PathBuf,
    /// Directory in memory
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Mebibytes of each file
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    size: u64,
    /// CPU of the back end
    #[arg(long, default_value_t = 0)]
    back_end_cpu: usize,
    /// CPU of the client
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    /// Seed of the first round
    #[arg(long)]
    seed: Option<u64>,
    /// Further argument for vhost-user-dm (may be given several times)
    #[arg(long)]
    ours_arg: Vec<String>,
    /// Line for the heading (may be given several times)
    #[arg(long)]
    note: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    match seconds {
        0.01..=86400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("from 0.01 to 86400".into()),
    }
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Client(args) => client(&args),
        Command::Compare(args) => compare_all(*args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dm-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn client(args: &Client) -> io::Result<()> {
    if let Some(cpu) = args.cpu {
        cpu::pin(cpu)?;
    }
    let time = Duration::from_secs_f64(args.seconds);
    let job = Job {
        pattern: args.rw,
        block: args.bs,
        depth: args.depth,
        mode: args.mode,
        warm_up: time / 10,
        time,
        operations: args.operations,
        seed: args.seed,
        pid: args.pid,
        event_idx: !args.no_event_idx,
        inflight: !args.no_inflight,
    };
    let sample = run(UnixStream::connect(&args.socket)?, &job)?;
    println!(
        "{:.1} kIOPS, p50 {:.1} us, p99 {:.1} us, back-end CPU {:.2} us per I/O, {:.3} kicks per I/O, {} requests",
        sample.iops / 1e3,
        sample.p50 as f64 / 1e3,
        sample.p99 as f64 / 1e3,
        sample.cpu / 1e3,
        sample.kicks,
        sample.operations
    );
    Ok(())
}

fn compare_all(args: Compare) -> io::Result<()> {
    let other = args.against.map_or(Ok(Other::OfRow), other)?;
    // Beside a saved run only its own rows make sense, whichever they are.
    let all = [Set::Matrix, Set::Costs];
    let sets = match &other {
        Other::Saved(_) if args.rows.is_empty() => all.as_slice(),
        _ => &args.rows,
    };
    let mut selection = rows::select(sets, &args.row).map_err(io::Error::other)?;
    if args.list {
        selection.rows.iter().for_each(|row| println!("{}", row.name()));
        return Ok(());
    }
    let mut notes = args.note;
    if let Other::Saved(saved) = &other {
        let left_out = selection.keep(|name| saved.rows.contains_key(name));
        if !args.rows.is_empty() && left_out > 0 {
            notes.push(format!("{left_out} rows are not in the saved run and left out"));
        }
    }
    if !args.ours_arg.is_empty() {
        notes.push(format!("ours with {}", args.ours_arg.join(" ")));
    }
    let options = Options {
        ours: args.ours,
        other,
        disk: args.disk,
        memory: args.memory,
        file_bytes: args.size << 20,
        rounds: args.rounds,
        time: args.seconds,
        idle: args.idle_seconds,
        restarts: args.restarts,
        cpus: (args.back_end_cpu, args.client_cpu),
        // A file system answers faster what it was asked before, so no two runs ask the same.
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..1 << 48)),
        ours_args: args.ours_arg,
        save: args.save,
        notes,
    };
    compare(&options, &selection, &mut stdout().lock())
}

/// What --against names.
fn other(path: PathBuf) -> io::Result<Other> {
    let named = |e: &dyn std::fmt::Display| io::Error::other(format!("--against={}: {e}", path.display()));
    let bytes = std::fs::read(&path).map_err(|e| named(&e))?;
    if !Saved::is_one(&bytes) {
        return Ok(Other::Build(path));
    }
    let saved = Saved::parse(&String::from_utf8_lossy(&bytes)).map_err(|e| named(&e))?;
    Ok(Other::Saved(saved))
}
