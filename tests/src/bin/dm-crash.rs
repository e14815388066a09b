//! Kills the back end under load, round after round, and looks for what was lost. `ci/crash.sh` starts it.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dm_tests::crash::{Mode, Report, run};

/// How often it says how far it has come.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(about = "Kills vhost-user-dm under load and looks for what was lost ($VHOST_USER_DM: another binary)")]
struct Args {
    /// Rounds
    #[arg(default_value_t = 200)]
    rounds: u64,
    /// Seed of the first round; each further one has the next number (default: from the clock)
    #[arg(long)]
    seed: Option<u64>,
    /// Whether the back end tracks requests in flight
    #[arg(long, value_enum, default_value_t = Mode::Any)]
    mode: Mode,
    /// Goes on after a round that failed
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Short enough to be typed again.
    let first = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("{} rounds from seed {first}", args.rounds);
    let mut report = Report::default();
    let mut failed = Vec::new();
    let mut said = Instant::now();
    for seed in first..first + args.rounds {
        match catch_unwind(|| run(seed, args.mode)) {
            Ok(of_round) => report += of_round,
            Err(_) => failed.push(seed),
        }
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            println!("{} of {} rounds, {} failed", seed - first + 1, args.rounds, failed.len());
        }
        if !failed.is_empty() && !args.keep_going {
            break;
        }
    }
    println!("{report}");
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("{} rounds failed, with the seeds {failed:?}", failed.len());
    ExitCode::FAILURE
}
