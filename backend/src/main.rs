//! vhost-user-dm: a device-mapper table as a vhost-user-blk disk. See `--help`.

use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use dm_table::{Diagnostic, Format, Source, TableFile};
use log::LevelFilter;
use vhost_user_dm::args::{Args, Command, Load, Log, Open};
use vhost_user_dm::daemon::{self, Signals};
use vhost_user_dm::device::{self, Patience, Registry};
use vhost_user_dm::disk::{self, Loaded};
use vhost_user_dm::frontend::config::Offer;
use vhost_user_dm::place::{self, PlaceError};
use vhost_user_dm::{activation, check, uring};

fn main() -> ExitCode {
    // Conventions for vhost-user back ends: this option wins over everything else on the line.
    if std::env::args_os().any(|arg| arg == "--print-capabilities") {
        println!("{{\n  \"type\": \"block\",\n  \"features\": [\"read-only\", \"blk-file\"]\n}}");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let result = match &args.command {
        Some(Command::Check { table, open, log }) => {
            init_log(log);
            run_check(table, open)
        }
        None => {
            init_log(&args.log);
            serve(&args)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{}", message.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// Variable with a filter for the log.
const FILTER: &str = "VHOST_USER_DM_LOG";

fn init_log(log: &Log) {
    let level = match (log.verbose, log.quiet) {
        (0, 0) => LevelFilter::Info,
        (1, _) => LevelFilter::Debug,
        (_, 1) => LevelFilter::Warn,
        (0, _) => LevelFilter::Error,
        _ => LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level);
    if level <= LevelFilter::Info && std::env::var_os(FILTER).is_none() {
        // What these say we say too, and no oftener than the one who causes it should be able to. A filter is for all names
        // that begin with it; the longest counts.
        for library in ["vhost", "virtio_queue"] {
            builder.filter_module(library, LevelFilter::Off);
        }
        builder.filter_module("vhost_user_dm", level);
    }
    builder.parse_env(FILTER).format_target(false).init();
}

fn say(what: &str) -> impl FnOnce(&dyn Display) -> String {
    let what = what.to_owned();
    move |error| format!("vhost-user-dm: {what}: {error}")
}

/// Many disks with many queues need more descriptors than the usual soft limit of 1024; the hard limit is what the
/// administrator set.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        log::warn!("cannot raise the limit of open descriptors: {error}");
    }
}

fn serve(args: &Args) -> Result<(), String> {
    raise_descriptor_limit();
    let signals = Signals::block().map_err(|e| say("cannot block signals")(&e))?;
    uring::probe().map_err(|e| format!("vhost-user-dm: {e}"))?;
    uring::Uring::new().map_err(|e| say("cannot set up an io_uring as a worker needs it")(&e))?;
    if let Some(cpus) = &args.load.cpu_affinity {
        cpus.check().map_err(|e| format!("vhost-user-dm: {e}"))?;
    }
    let passed = match args.listen.is_given() {
        true => Vec::new(),
        false => activation::passed().map_err(|e| format!("vhost-user-dm: {e}"))?,
    };
    if passed.is_empty() && !args.listen.is_given() {
        return Err(format!("vhost-user-dm: {}", PlaceError::Nowhere));
    }
    // What a killed predecessor has left in the kernel must end before we serve: see `device::Patience`.
    let mut registry = Registry::patient(Patience::new(Patience::COMMAND, Signals::pause));
    let (file, name) = table_file(&args.load, &mut registry)?;
    let options = options(&args.load.open, args.load.offer(), args.load.serial.clone());
    let loaded = load(&file, &name, &options, &mut registry)?;
    for warning in &loaded.warnings {
        log::warn!("{}", warning.trim_end());
    }
    let (device, serial) = (args.load.device.as_deref(), args.load.serial.is_some());
    let places =
        place::places(&args.listen, &passed, device, serial, loaded).map_err(|e| format!("vhost-user-dm: {e}"))?;
    daemon::run(places, args.load.pool(), &signals).map_err(|e| format!("vhost-user-dm: {e}"))
}

fn options(open: &Open, offer: Offer, serial: Option<String>) -> disk::Options {
    disk::Options { read_only: open.read_only, cache: open.cache.into(), incoming: open.incoming, offer, serial }
}

fn load(file: &TableFile, name: &str, options: &disk::Options, registry: &mut Registry) -> Result<Loaded, String> {
    disk::load(file, name, options, registry).map_err(|diagnostic: Diagnostic| diagnostic.to_string())
}

/// What to serve, and what to call it where it has no name of its own.
fn table_file(load: &Load, registry: &mut Registry) -> Result<(TableFile, String), String> {
    match (&load.blk_file, &load.table) {
        (Some(path), _) => whole_file(path, &load.open, registry),
        (None, Some(path)) => read_table(path, &load.open),
        (None, None) => Err("vhost-user-dm: neither --table nor --blk-file is given".into()),
    }
}

fn whole_file(path: &Path, open: &Open, registry: &mut Registry) -> Result<(TableFile, String), String> {
    let text = path.to_str().ok_or_else(|| format!("vhost-user-dm: {}: the path is not UTF-8", path.display()))?;
    let options = device::Options { read_only: open.read_only, cache: open.cache.into(), incoming: open.incoming };
    // The opening, its locks included, ends here and is done again for the chain.
    let component = registry.open(text, None, &options).map_err(|error| {
        let help = error.help().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
        format!("vhost-user-dm: --blk-file: {error}{help}")
    })?;
    let name = path.file_name().map_or_else(|| text.to_owned(), |n| n.to_string_lossy().into_owned());
    Ok((disk::whole(text, component.size), name))
}

fn read_table(path: &Path, open: &Open) -> Result<(TableFile, String), String> {
    let stdin = path == Path::new("-");
    let shown = if stdin { "<stdin>".into() } else { path.display().to_string() };
    let mut text = String::new();
    let read = match stdin {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)).map(drop),
    };
    read.map_err(|e| say(&format!("cannot read the table file {shown}"))(&e))?;
    let format = if open.concise { Format::Concise } else { Format::Auto };
    let file = dm_table::parse(Arc::new(Source::new(shown, text)), format).map_err(|d| d.to_string())?;
    let stem = path.file_stem().filter(|_| !stdin).map(|s| s.to_string_lossy().into_owned());
    Ok((file, stem.unwrap_or_else(|| "disk".into())))
}

fn run_check(table: &Path, open: &Open) -> Result<(), String> {
    let (file, name) = read_table(table, open)?;
    let options = options(open, Offer::default(), None);
    // Asked what is, it does not wait for what will be: a component of a killed process is refused here.
    let loaded = load(&file, &name, &options, &mut Registry::new())?;
    print!("{}", check::report(&loaded));
    Ok(())
}
