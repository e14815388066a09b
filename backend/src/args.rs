//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::device;
use crate::frontend::config::Offer;
use crate::inspect::Judging;
use crate::inspect::commands::{Export, Show};
use crate::overlay::{self, Overlay};
use crate::worker::pool::{Cpus, Pool, WorkerSettings};

/// Serve a device-mapper table as a vhost-user-blk disk.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-user-dm",
    version,
    about = "Serve a device-mapper table as a vhost-user-blk disk",
    long_about = "Serve a device-mapper table as a vhost-user-blk disk: a VM sees one disk, assembled from partitions, \
                  image files and synthetic pieces, without root, kernel device-mapper or loop devices.",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where to serve.
    #[command(flatten)]
    pub listen: Listen,

    /// What to serve.
    #[command(flatten)]
    pub load: Load,

    /// Unix socket, for this user alone, on which the devices can be changed while they are served: see `dmsetup`
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// File that is kept up to date with what the disks are doing, as OpenMetrics text: for node_exporter's textfile
    /// collector, for example
    #[arg(long, value_name = "FILE")]
    pub metrics_path: Option<PathBuf>,

    /// Seconds between two of its texts
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = interval, requires = "metrics_path")]
    pub metrics_interval: Duration,

    /// Print {"type":"block",...} for management tools, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Directory in which the live tables are kept: a process that is started again serves those and does not read --table
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// How much to log.
    #[command(flatten)]
    pub log: Log,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read a table file, open its devices, say what would be served and what is doubtful; serve nothing
    Check {
        /// Table file; - for standard input
        #[arg(value_name = "FILE")]
        table: PathBuf,
        /// As when serving: what lies over the disk, and all that speaks against that. Nothing is made or written
        #[arg(long, value_name = "COWFILE|tmp", conflicts_with_all = ["read_only", "incoming"])]
        overlay: Option<Overlay>,
        /// Which device of a concise table file the overlay lies over (default: the one that no other uses)
        #[arg(long, value_name = "NAME", requires = "overlay")]
        device: Option<String>,
        /// As when serving: bytes of a logical block, 512 or 4096
        #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = block_size)]
        block_size: u32,
        /// As when serving.
        #[command(flatten)]
        open: Open,
        /// How it is judged.
        #[command(flatten)]
        judging: Judging,
        /// As when serving.
        #[command(flatten)]
        log: Log,
    },
    /// Draw the disk that a table makes: its segments and what they contain; or print how to start a VM with it
    Show(Show),
    /// Read a disk without a VM: into a sparse file, or for a digest of its bytes
    Export(Export),
    /// Write what an overlay holds into the disk that it lies over, and empty it. Killed at any moment, it goes on when it is
    /// called again; until it has ended the disk is whole with the overlay over it only
    Commit(overlay::Commit),
    /// Remove an overlay, and what was written to it
    Discard(overlay::Discard),
    /// Bring an image to any point of a log that log-writes has made, and check it there; or tell what is in the log
    Replay(crate::log_writes::command::Replay),
    /// Make one disk with a partition table out of partitions and files, as a table to serve
    Assemble(Box<crate::assemble::Assemble>),
    /// Change or show the devices of a running process, with dmsetup's verbs; see `dmsetup --help`
    #[command(disable_help_flag = true)]
    Dmsetup {
        /// As dmsetup has it
        #[arg(value_name = "VERB", trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Show live what the devices of a running process do
    Top {
        /// Which process.
        #[command(flatten)]
        control: Control,
        /// Time between two looks
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
        interval: Duration,
        /// Print one picture as text, and exit
        #[arg(long)]
        once: bool,
        /// Devices to show; by default all
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Print what the devices of a running process have done
    Stats {
        /// Which process.
        #[command(flatten)]
        control: Control,
        /// As the control socket gives it
        #[arg(long)]
        json: bool,
        /// As OpenMetrics text, for Prometheus and the like
        #[arg(long, conflicts_with = "json")]
        openmetrics: bool,
        /// Of each segment, too
        #[arg(long, conflicts_with = "openmetrics")]
        segments: bool,
        /// Devices to show; by default all
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

/// The process that a command is about.
#[derive(Clone, Debug, ClapArgs)]
pub struct Control {
    /// Its control socket; by default $VHOST_USER_DM_CONTROL
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,
}

/// Where to serve: one of these, or sockets that were passed (see [`crate::activation`]).
#[derive(Debug, Default, ClapArgs)]
#[group(id = "listen", multiple = false)]
pub struct Listen {
    /// Unix socket to listen on for the front end (made anew; removed at the end)
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Serve every device of the table file, each on DIR/NAME.sock (a plain file's device has the file's name)
    #[arg(long, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,

    /// Inherited socket to serve on: a listening one, or a connected one (then the process ends with the connection).
    /// Without this and the two above: the sockets that systemd or the like passes (LISTEN_FDS), several by device names
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,
}

/// What to serve.
#[derive(Debug, ClapArgs)]
pub struct Load {
    /// Table file in dmsetup's format, plain or concise; - for standard input. With --socket-dir and --control-path there
    /// need not be one: devices can be created later
    #[arg(long, value_name = "FILE", required_unless_present_any = ["blk_file", "socket_dir"])]
    pub table: Option<PathBuf>,

    /// Serve one plain file or partition as it is, without a table
    #[arg(long, value_name = "PATH", conflicts_with = "table")]
    pub blk_file: Option<PathBuf>,

    /// Which device of a concise table file to serve on --socket-path or --fd (default: the one that no other uses)
    #[arg(long, value_name = "NAME", conflicts_with = "socket_dir")]
    pub device: Option<String>,

    /// Open the disk for reading alone and put what the guest writes into COWFILE, as a persistent snapshot of the kernel's
    /// format; it is made, sparse, when it is not there, with chunks of 4 KiB (disks up to 16 GiB) to 64 KiB (from 128 GiB on).
    /// tmp: into a file without a name in $TMPDIR or /var/tmp, until this process ends; no guest must outlive that
    #[arg(long, value_name = "COWFILE|tmp", conflicts_with_all = ["read_only", "socket_dir"])]
    pub overlay: Option<Overlay>,

    /// Serve with an overlay in spite of a finding, once for each: other-base, or a use of the disk by this machine that may
    /// change it under the overlay
    #[arg(long, value_name = "FINDING", requires = "overlay", value_parser = clap::builder::PossibleValuesParser::new(overlay::FORCED))]
    pub force: Vec<String>,

    /// How to open it.
    #[command(flatten)]
    pub open: Open,

    /// Most request queues a front end may set up; queues that none enables cost nothing
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub num_queues: u16,

    /// Largest ring a front end may set up, in entries: a power of two
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = ring_size)]
    pub queue_size: u16,

    /// Longest time in microseconds that a worker looks for more work before it sleeps; 0: never. It adapts below that:
    /// an idle disk costs nothing
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub poll_us: u64,

    /// Worker threads that all queues of all disks share (default: each queue that is enabled has its own)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub workers: u16,

    /// CPUs to run workers on, dealt out in turn; for example 0,2,4-7
    #[arg(long, value_name = "LIST")]
    pub cpu_affinity: Option<Cpus>,

    /// Register guest memory with io_uring, for less CPU in large transfers. It is pinned as long as the guest is served, so
    /// the front end must have allocated it (prealloc=on), RLIMIT_MEMLOCK must allow it for each worker, and the guest must
    /// never give memory back: with a balloon, free page reporting, virtio-mem or post-copy it would read and write wrong
    /// memory
    #[arg(long)]
    pub register_memory: bool,

    /// Bytes of a logical block, 512 or 4096, where the components have smaller ones: for a partition table of such blocks
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = block_size)]
    pub block_size: u32,

    /// Serial number of the disk, up to 20 bytes (default: the device's uuid, or its name)
    #[arg(long, value_name = "TEXT", value_parser = serial, conflicts_with = "socket_dir")]
    pub serial: Option<String>,
}

/// How to open component devices.
#[derive(Clone, Debug, ClapArgs)]
pub struct Open {
    /// Open everything read-only; the guest sees a read-only disk
    #[arg(long)]
    pub read_only: bool,

    /// Caching of component devices on this machine
    #[arg(long, value_enum, default_value_t = Cache::Auto)]
    pub cache: Cache,

    /// A migrating guest brings its disk here: lock the components when it arrives, as the source has them until then
    #[arg(long)]
    pub incoming: bool,

    /// Take the table for the concise format (name,uuid,minor,flags,table;...) without looking at it
    #[arg(long)]
    pub concise: bool,
}

/// See [`Open::cache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// O_DIRECT where file system and alignment allow it, else the page cache; files on tmpfs, ramfs and hugetlbfs are mapped
    Auto,
    /// O_DIRECT or nothing
    Direct,
    /// The page cache
    Buffered,
}

/// How much to log. VHOST_USER_DM_LOG holds a filter as of env_logger, and wins.
#[derive(Clone, Debug, ClapArgs)]
pub struct Log {
    /// Log more; twice: everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Log warnings and errors only; twice: errors only
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
}

impl Listen {
    /// Whether the command line says where to serve.
    pub fn is_given(&self) -> bool {
        self.socket_path.is_some() || self.socket_dir.is_some() || self.fd.is_some()
    }
}

fn ring_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() && (4..=1024).contains(&n) => Ok(n),
        _ => Err("a ring has 4, 8, 16, ... 1024 entries".into()),
    }
}

/// Of `--block-size`.
pub(crate) fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 or 4096".into()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds @ 0.1..=3600.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds, from 0.1 to 3600".into()),
    }
}

fn serial(text: &str) -> Result<String, String> {
    match text.len() {
        0..=crate::request::ID_LEN => Ok(text.to_owned()),
        n => Err(format!("a serial number has at most {} bytes, this one has {n}", crate::request::ID_LEN)),
    }
}

impl Load {
    /// Queues and ring size.
    pub fn offer(&self) -> Offer {
        Offer { num_queues: self.num_queues, queue_size: self.queue_size }
    }

    /// The workers that serve.
    pub fn pool(&self) -> Pool {
        let settings = WorkerSettings {
            poll: Duration::from_micros(self.poll_us),
            cpus: self.cpu_affinity.clone().unwrap_or_default(),
            register_memory: self.register_memory,
        };
        Pool::new(usize::from(self.workers), settings)
    }
}

impl From<Cache> for device::Cache {
    fn from(cache: Cache) -> device::Cache {
        match cache {
            Cache::Auto => device::Cache::Auto,
            Cache::Direct => device::Cache::Direct,
            Cache::Buffered => device::Cache::Buffered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_dmsetup_is_for_dmsetup() {
        for line in ["", "-u U info", "--help", "create a --table -- -n", "--version", "-vv ls --tree=x"] {
            let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
            let parsed = Args::try_parse_from(["vhost-user-dm", "dmsetup"].iter().chain(&words)).unwrap();
            assert!(matches!(parsed.command, Some(Command::Dmsetup { args }) if args == words), "{line}");
        }
    }

    #[test]
    fn one_place_to_serve_and_one_thing_to_serve() {
        let parse = |args: &str| Args::try_parse_from(format!("vhost-user-dm {args}").split_whitespace());
        assert!(parse("--socket-path=s --table=t").is_ok());
        assert!(parse("--fd=3 --blk-file=t --num-queues=4").is_ok());
        assert!(parse("--table=t").is_ok(), "sockets may be passed");
        assert!(parse("check t").is_ok());
        for wrong in [
            "",
            "--socket-path=s",
            "--socket-path=s --fd=3 --table=t",
            "--socket-path=s --table=t --blk-file=b",
            "--socket-path=s --table=t --queue-size=100",
            "--socket-path=s --table=t --num-queues=0",
            "--socket-path=s --table=t --serial=123456789012345678901",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
