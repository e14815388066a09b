//! `dm-bench client` measures one vhost-user-blk back end; `dm-bench compare` starts vhost-user-dm and
//! qemu-storage-daemon in turn and prints how they compare.

use std::io::{self, stdout};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dm_tests::bench::client::{Job, Mode, Pattern, run};
use dm_tests::bench::compare::{Options, compare};
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
    /// Compares vhost-user-dm with qemu-storage-daemon, and long tables with short ones
    Compare(Compare),
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
}

#[derive(clap::Args)]
struct Compare {
    /// The vhost-user-dm binary
    #[arg(long)]
    ours: PathBuf,
    /// Directory on a disk, for files with O_DIRECT
    #[arg(long, default_value = ".")]
    disk: PathBuf,
    /// Directory in memory
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Mebibytes of each file
    #[arg(long, default_value_t = 512)]
    size: u64,
    /// Rounds of each row
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each side of a round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rows whose name has this in it (may be given several times); all if none is given
    #[arg(long)]
    row: Vec<String>,
    /// aio= of qemu-storage-daemon
    #[arg(long, default_value = "io_uring")]
    aio: String,
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
}

fn main() -> io::Result<()> {
    match Args::parse().command {
        Command::Client(args) => client(&args),
        Command::Compare(args) => compare_all(args),
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
    let chosen: Vec<rows::Row> = rows::all()
        .into_iter()
        .filter(|row| args.row.is_empty() || args.row.iter().any(|part| row.name().contains(part)))
        .collect();
    if chosen.is_empty() {
        let names: Vec<String> = rows::all().iter().map(rows::Row::name).collect();
        return Err(io::Error::other(format!("no row of that name; there are\n{}", names.join("\n"))));
    }
    let options = Options {
        ours: args.ours,
        disk: args.disk,
        memory: args.memory,
        file_bytes: args.size << 20,
        rounds: args.rounds,
        time: Duration::from_secs_f64(args.seconds),
        aio: args.aio,
        cpus: (args.back_end_cpu, args.client_cpu),
        // A file system answers faster what it was asked before, so no two runs ask the same.
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..1 << 48)),
        ours_args: args.ours_arg,
    };
    compare(&options, &chosen, &mut stdout().lock())
}
