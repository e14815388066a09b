//! vhost-user-dm: a device-mapper table as a vhost-user-blk disk. See `--help`.

use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use dm_table::{Format, Source, TableFile};
use log::LevelFilter;
use vhost_user_dm::args::{Args, Command, Log, Open};
use vhost_user_dm::daemon::{self, Signals};
use vhost_user_dm::device::{self, Patience, Registry};
use vhost_user_dm::disk;
use vhost_user_dm::inspect::{self, Judging, commands};
use vhost_user_dm::log_writes;
use vhost_user_dm::mapper::state::StateDir;
use vhost_user_dm::mapper::{Mapper, Settings};
use vhost_user_dm::overlay::{self, Overlaid, Overlay, OverlayError, Wanted};
use vhost_user_dm::place::{self, PlaceError};
use vhost_user_dm::worker::pool::{self, Pool, WorkerSettings};
use vhost_user_dm::{activation, control, stats, top, uring};

fn main() -> ExitCode {
    // Conventions for vhost-user back ends: this option wins over everything else on the line.
    if std::env::args_os().any(|arg| arg == "--print-capabilities") {
        println!("{{\n  \"type\": \"block\",\n  \"features\": [\"read-only\", \"blk-file\"]\n}}");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let result = match &args.command {
        Some(Command::Check { table, overlay, device, block_size, open, judging, log }) => {
            init_log(log);
            match run_check(table, (overlay.as_ref(), device.as_deref(), *block_size), open, judging) {
                Ok(status) => return status,
                Err(message) => Err(message),
            }
        }
        Some(Command::Show(show)) => {
            init_log(&show.which.log);
            let read = read_table(&show.which.table, show.which.concise);
            read.and_then(|(file, name)| commands::show(show, &file, &name))
        }
        Some(Command::Export(export)) => {
            init_log(&export.which.log);
            let read = read_table(&export.which.table, export.which.concise);
            read.and_then(|(file, name)| commands::export(export, &file, &name))
        }
        Some(Command::Commit(args)) => {
            init_log(&args.log);
            let read = match (&args.blk_file, &args.table) {
                (Some(path), _) => whole_file(path, &device::Options { read_only: true, ..device::Options::default() }),
                (None, Some(path)) => read_table(path, args.concise),
                (None, None) => Err("vhost-user-dm: neither --table nor --blk-file is given".into()),
            };
            read.and_then(|(file, name)| overlay::commit(args, &file, &name, patience()))
        }
        Some(Command::Discard(args)) => {
            init_log(&args.log);
            overlay::discard(args, patience())
        }
        Some(Command::Replay(args)) => {
            init_log(&args.log);
            log_writes::command::replay(args)
        }
        Some(Command::Assemble(args)) => {
            let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
            vhost_user_dm::assemble::run(args, &words)
        }
        Some(Command::Dmsetup { args }) => return vhost_user_dm::dmsetup::main(args.iter().cloned()),
        Some(Command::Top { control, interval, once, names }) => {
            top::top(control.control_path.as_deref(), *interval, *once, names.clone()).map_err(said)
        }
        Some(Command::Stats { control, json, openmetrics, segments, names }) => {
            let form = match (json, openmetrics) {
                (true, _) => top::Form::Json,
                (_, true) => top::Form::OpenMetrics,
                _ => top::Form::Human,
            };
            top::stats(control.control_path.as_deref(), form, *segments, names).map_err(said)
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

fn said(message: String) -> String {
    format!("vhost-user-dm: {message}")
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
    // First, as this waits for what a killed predecessor has locked; why there is no io_uring at all the probe can tell better.
    let ring = pool::ring(args.load.register_memory).map(drop);
    uring::probe().map_err(|e| format!("vhost-user-dm: {e}"))?;
    ring.map_err(|e| say("cannot set up an io_uring as a worker needs it")(&e))?;
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
    let patience = patience();
    let state = args.state_dir.as_deref().map(|dir| StateDir::open(dir, patience));
    let state = state.transpose().map_err(|e| format!("vhost-user-dm: {e}"))?;
    let settings = Settings {
        components: components(&args.load.open),
        offer: args.load.offer(),
        serial: args.load.serial.clone(),
        block_size: args.load.block_size,
        socket_dir: args.listen.socket_dir.clone(),
    };
    let mapper = Mapper::new(settings, Registry::patient(patience), Arc::new(args.load.pool()), state);
    let mut overlaid = start(&mapper, args)?;
    let (device, serial) = (args.load.device.as_deref(), args.load.serial.is_some());
    let places = {
        // Not kept while it serves: it holds what is started, and the tables, which may be exchanged.
        let started = mapper.started();
        let places = place::places(&args.listen, &passed, device, serial, &started);
        let places = places.map_err(|e| format!("vhost-user-dm: {e}"))?;
        places.into_iter().map(|(index, place)| (started[index].minor, place)).collect()
    };
    mapper.activate_all().map_err(|e| format!("vhost-user-dm: {e}"))?;
    mapper.serve_all(places).map_err(|e| format!("vhost-user-dm: {e}"))?;
    overlaid.stay();
    let control = args.control_path.as_deref().map(|path| control::Server::start(mapper.clone(), path));
    let control = control.transpose().map_err(|e| format!("vhost-user-dm: {e}"))?;
    let metrics = args.metrics_path.as_deref();
    let metrics = metrics.map(|path| stats::Writer::start(mapper.clone(), path, args.metrics_interval));
    let _metrics = metrics.transpose().map_err(|e| format!("vhost-user-dm: {e}"))?;
    daemon::run(&mapper, &signals, || drop(control));
    Ok(())
}

/// Makes the devices: those that were kept, or if none ever were those of the command line.
fn start(mapper: &Mapper, args: &Args) -> Result<Overlaid, String> {
    let mut overlaid = Overlaid::default();
    let warnings = match mapper.come_back().map_err(|e| format!("vhost-user-dm: {e}"))? {
        Some(warnings) => {
            log::info!(
                "serving the tables that were served last (--state-dir); those of the command line are not read"
            );
            warnings
        }
        None => match table_file(args)? {
            Some((file, name)) => match &args.load.overlay {
                Some(overlay) => {
                    let (over, warnings) = overlay::start(mapper, (&file, &name), &wanted(overlay, args)?)?;
                    overlaid = over;
                    warnings
                }
                None => {
                    let mut warnings = mapper.start(&file, &name).map_err(|diagnostic| diagnostic.to_string())?;
                    // What another process still writes says nothing yet.
                    if !args.load.open.incoming {
                        warnings.extend(inspect::doubts(&file, &mapper.started(), args.load.open.read_only));
                    }
                    warnings
                }
            },
            None => Vec::new(),
        },
    };
    for warning in warnings {
        log::warn!("{}", warning.trim_end());
    }
    if args.state_dir.is_some() {
        // Before it is kept: an error of that may come when the new state is the one that is there.
        overlaid.stay();
    }
    mapper.keep().map_err(|e| format!("vhost-user-dm: {e}"))?;
    Ok(overlaid)
}

/// The overlay that was asked for.
fn wanted<'a>(overlay: &'a Overlay, args: &'a Args) -> Result<Wanted<'a>, String> {
    let incoming = args.load.open.incoming;
    for (flag, given) in [("--state-dir", args.state_dir.is_some()), ("--incoming", incoming)] {
        if given && *overlay == Overlay::Temporary {
            return Err(OverlayError::Temporary { flag }.told());
        }
    }
    Ok(Wanted { overlay, device: args.load.device.as_deref(), force: &args.load.force, incoming })
}

/// What a killed predecessor has left in the kernel is waited for.
fn patience() -> Patience {
    Patience::new(Patience::COMMAND, Signals::pause)
}

fn components(open: &Open) -> device::Options {
    device::Options { read_only: open.read_only, cache: open.cache.into(), incoming: open.incoming }
}

/// What to serve, and what to call it where it has no name of its own. Nothing where devices come later.
fn table_file(args: &Args) -> Result<Option<(TableFile, String)>, String> {
    let load = &args.load;
    match (&load.blk_file, &load.table) {
        (Some(path), _) if args.state_dir.is_some() && path.to_string_lossy().contains(char::is_whitespace) => {
            Err(format!(
                "vhost-user-dm: --state-dir: {}: a table, and so the state, cannot name a path with blanks; serve it by a \
             symbolic link without",
                path.display()
            ))
        }
        (Some(path), _) => {
            let read_only = load.open.read_only || load.overlay.is_some();
            whole_file(path, &device::Options { read_only, ..components(&load.open) }).map(Some)
        }
        (None, Some(path)) => read_table(path, load.open.concise).map(Some),
        (None, None) if args.control_path.is_some() => Ok(None),
        (None, None) => {
            Err("vhost-user-dm: neither --table nor --blk-file is given, nor --control-path, by which devices \
                             can be created later"
                .into())
        }
    }
}

fn whole_file(path: &Path, options: &device::Options) -> Result<(TableFile, String), String> {
    let text = path.to_str().ok_or_else(|| format!("vhost-user-dm: {}: the path is not UTF-8", path.display()))?;
    // The opening, its locks included, ends here and is done again for the chain.
    let mut registry = Registry::patient(patience());
    let component = registry.open(text, None, options).map_err(|error| {
        let help = error.help().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
        format!("vhost-user-dm: --blk-file: {error}{help}")
    })?;
    let name = path.file_name().map_or_else(|| text.to_owned(), |n| n.to_string_lossy().into_owned());
    Ok((disk::whole(text, component.size), name))
}

fn read_table(path: &Path, concise: bool) -> Result<(TableFile, String), String> {
    let stdin = path == Path::new("-");
    let shown = if stdin { "<stdin>".into() } else { path.display().to_string() };
    let mut text = String::new();
    let read = match stdin {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)).map(drop),
    };
    read.map_err(|e| say(&format!("cannot read the table file {shown}"))(&e))?;
    let format = if concise { Format::Concise } else { Format::Auto };
    let file = dm_table::parse(Arc::new(Source::new(shown, text)), format).map_err(|d| d.to_string())?;
    let stem = path.file_stem().filter(|_| !stdin).map(|s| s.to_string_lossy().into_owned());
    Ok((file, stem.unwrap_or_else(|| "disk".into())))
}

fn run_check(
    table: &Path,
    (overlay, device, block_size): (Option<&Overlay>, Option<&str>, u32),
    open: &Open,
    judging: &Judging,
) -> Result<ExitCode, String> {
    let (file, name) = match read_table(table, open.concise) {
        Err(error) if judging.json => return tell(inspect::Verdict::unreadable(error), judging),
        read => read?,
    };
    // Asked what is, it does not wait for what will be: a component of a killed process is refused here.
    let settings = Settings { components: components(open), block_size, ..Settings::default() };
    let pool = Pool::new(0, WorkerSettings::default());
    let mapper = Mapper::new(settings, Registry::new(), Arc::new(pool), None);
    if let Some(overlay) = overlay {
        return tell(overlay::check(&mapper, (&file, &name), overlay, device), judging);
    }
    let started = mapper.start(&file, &name).map(|warnings| (mapper.started(), warnings));
    tell(inspect::judge(&file, started, open.read_only), judging)
}

fn tell(verdict: inspect::Verdict, judging: &Judging) -> Result<ExitCode, String> {
    let verdict = verdict.settled(judging);
    if judging.json {
        let json = serde_json::to_string_pretty(&verdict).map_err(|e| say("cannot write JSON")(&e))?;
        commands::say(&format!("{json}\n"))?;
    } else {
        commands::say(&verdict.human())?;
        verdict.error.iter().for_each(|error| eprintln!("{error}"));
    }
    Ok(verdict.status(judging.strict))
}
