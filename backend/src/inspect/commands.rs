//! The commands `show` and `export`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args as ClapArgs;
use clap::builder::PossibleValuesParser;
use dm_table::TableFile;

use super::export::{self, Errors, Options};
use super::{Assembled, Layout, show, snippets, svg};
use crate::args::Log;
use crate::check::human;
use crate::device::{Cache, Options as Opening, Registry};
use crate::mapper::{Mapper, Settings, Started};
use crate::overlay::{self, OTHER_BASE, Overlay, Viewed};
use crate::worker::pool::{Pool, WorkerSettings};

/// Which disk.
#[derive(Clone, Debug, ClapArgs)]
pub struct Which {
    /// Table file; - for standard input
    #[arg(value_name = "FILE")]
    pub table: PathBuf,

    /// Which device of a concise table file (default: the one that no other uses)
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// Take the table for the concise format without looking at it
    #[arg(long)]
    pub concise: bool,

    /// As when serving: read the disk with what a guest has written to its overlay. One that is not there yet, and tmp, have
    /// nothing in them
    #[arg(long, value_name = "COWFILE|tmp")]
    pub overlay: Option<Overlay>,

    /// Read the overlay although it was made over another disk, or over what this one was before somebody wrote to it
    #[arg(long, value_name = "FINDING", requires = "overlay", value_parser = PossibleValuesParser::new([OTHER_BASE]))]
    pub force: Vec<String>,

    /// As when serving.
    #[command(flatten)]
    pub log: Log,
}

/// Command line of `show`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Show {
    /// Of what.
    #[command(flatten)]
    pub which: Which,

    /// Write the picture to an SVG file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,

    /// Print how to serve it and to start QEMU with it
    #[arg(long)]
    pub qemu: bool,

    /// Print how to serve it and to start cloud-hypervisor with it
    #[arg(long)]
    pub cloud_hypervisor: bool,

    /// Print how to serve it and what libvirt's domain needs
    #[arg(long)]
    pub libvirt: bool,

    /// Socket in what is printed (default: the table file's name with .sock)
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// In what is printed, as when serving: bytes of a logical block, 512 or 4096
    #[arg(long, value_name = "BYTES", value_parser = crate::args::block_size)]
    pub block_size: Option<u32>,
}

/// Command line of `export`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "There is no --block-size here: it changes how a guest asks for the bytes, and none of them.")]
pub struct Export {
    /// Of what.
    #[command(flatten)]
    pub which: Which,

    /// File to make: sparse, with the bytes that a guest would read
    #[arg(long, value_name = "FILE", required_unless_present = "sha256")]
    pub to: Option<PathBuf>,

    /// Print the digest of all bytes
    #[arg(long)]
    pub sha256: bool,

    /// What becomes of error segments
    #[arg(long, value_enum, default_value_t = Errors::Refuse)]
    pub errors: Errors,
}

/// Prints on standard output. That nobody reads it any more is no error.
///
/// # Errors
/// Why it cannot be written, for the user.
pub fn say(text: &str) -> Result<(), String> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("vhost-user-dm: cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// Draws a disk, or prints how to use it.
///
/// # Errors
/// Why there is nothing to show, for the user.
pub fn show(args: &Show, file: &TableFile, name: &str) -> Result<(), String> {
    let which = &args.which;
    let socket = args.socket_path.clone().unwrap_or_else(|| format!("{name}.sock").into());
    let serve = snippets::serve(&which.table, &socket, &flags(args));
    let mut commands = Vec::new();
    commands.extend(args.qemu.then(|| format!("{serve} &\n{}", snippets::qemu(&socket))));
    commands.extend(args.cloud_hypervisor.then(|| format!("{serve} &\n{}", snippets::cloud_hypervisor(&socket))));
    commands.extend(args.libvirt.then(|| format!("{serve} &\n\n{}", snippets::libvirt(&socket))));
    if !commands.is_empty() {
        say(&format!("{}\n", commands.join("\n\n")))?;
    }
    if !commands.is_empty() && args.svg.is_none() {
        return Ok(());
    }
    let (title, layout) = laid_out(which, file, name)?;
    if let Some(path) = &args.svg {
        let written = std::fs::write(path, svg::svg(&title, &layout));
        return written.map_err(|error| format!("vhost-user-dm: {}: cannot be written: {error}", path.display()));
    }
    let terminal = console::Term::stdout();
    let columns = terminal.size_checked().map_or(80, |(_, columns)| usize::from(columns));
    say(&show::picture(&title, &layout, columns, console::colors_enabled()))
}

/// Flags of the command that serves it besides where and what.
fn flags(args: &Show) -> Vec<String> {
    let which = &args.which;
    let overlay = which.overlay.as_ref().map(|overlay| format!("--overlay={overlay}"));
    let block_size = args.block_size.map(|bytes| format!("--block-size={bytes}"));
    let force = which.force.iter().map(|id| format!("--force={id}"));
    let device = which.device.as_ref().map(|name| format!("--device={name}"));
    device.into_iter().chain(overlay).chain(force).chain(block_size).collect()
}

/// The disk with what it contains; by its table alone, where its components cannot be read now.
fn laid_out(which: &Which, file: &TableFile, name: &str) -> Result<(String, Layout), String> {
    match open(which, file, name) {
        Ok(Viewed { name, chain, below }) => {
            let disk = Assembled::new(chain).map_err(|error| format!("vhost-user-dm: {error}"))?;
            let layout = Layout::through(&below, &disk);
            let own = layout.disk.as_ref().map(|own| format!(", {}", own.describe())).unwrap_or_default();
            Ok((format!("{name}: {} sectors ({}){own}", layout.sectors, human(disk.size())), layout))
        }
        Err(why) => {
            let devices: Vec<_> = file.devices.iter().collect();
            let [device] = devices.as_slice() else { return Err(why) };
            eprintln!("{}\nvhost-user-dm: what it contains is not shown", why.trim_end());
            let layout = Layout::unread(&device.table);
            Ok((format!("{name}: {} sectors ({})", layout.sectors, human(device.table.len().bytes())), layout))
        }
    }
}

/// Opens a table's components for reading, as other readers may have them.
fn open(which: &Which, file: &TableFile, name: &str) -> Result<Viewed, String> {
    let components = Opening { read_only: true, cache: Cache::Buffered, incoming: false };
    let pool = Pool::new(0, WorkerSettings::default());
    let settings = Settings { components, ..Settings::default() };
    let mapper = Mapper::new(settings, Registry::new(), Arc::new(pool), None);
    let (viewed, warnings) = match &which.overlay {
        Some(overlay) => overlay::view(&mapper, (file, name), (overlay, which.device.as_deref(), &which.force))?,
        None => {
            let warnings = mapper.start(file, name).map_err(|diagnostic| diagnostic.to_string())?;
            let started = mapper.started();
            let chosen = choose(&started, which.device.as_deref())?;
            let chain = chosen.disk.chain();
            (Viewed { name: chosen.name.clone(), chain: chain.clone(), below: chain }, warnings)
        }
    };
    for warning in warnings {
        // The rest is about writing.
        let counts = ["it may change", "the overlay"].iter().any(|words| warning.contains(words));
        log::log!(if counts { log::Level::Warn } else { log::Level::Debug }, "{}", warning.trim_end());
    }
    Ok(viewed)
}

fn choose<'a>(started: &'a [Started], device: Option<&str>) -> Result<&'a Started, String> {
    let wanted = |its: &&Started| match device {
        Some(name) => its.name == name,
        None => its.top,
    };
    let names = |all: &[&Started]| all.iter().map(|its| its.name.as_str()).collect::<Vec<_>>().join(", ");
    match (started.iter().filter(wanted).collect::<Vec<_>>().as_slice(), device) {
        ([one], _) => Ok(one),
        ([], Some(name)) => {
            let all: Vec<&Started> = started.iter().collect();
            Err(format!("vhost-user-dm: the table file has no device {name}: it has {}", names(&all)))
        }
        (several, _) => Err(format!("vhost-user-dm: which of {}? Say --device=NAME", names(several))),
    }
}

/// Makes a file of a disk's bytes, and sums them.
///
/// # Errors
/// Why it was not done, for the user.
pub fn export(args: &Export, file: &TableFile, name: &str) -> Result<(), String> {
    let Viewed { name, chain, .. } = open(&args.which, file, name)?;
    let disk = Assembled::new(chain).map_err(|error| format!("vhost-user-dm: {error}"))?;
    let options = Options { to: args.to.clone(), sha256: args.sha256, errors: args.errors, progress: true };
    let report = export::export(&disk, &options).map_err(|error| {
        let help = error.help().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
        format!("vhost-user-dm: {name}: {error}{help}")
    })?;
    let to = args.to.as_ref().map(|path| path.display().to_string());
    match &report.sha256 {
        Some(sum) => say(&format!("{sum}  {}\n", to.unwrap_or(name)))?,
        None => {
            log::info!("{}: {}, of which {} are written", to.unwrap_or(name), human(report.size), human(report.written))
        }
    }
    Ok(())
}
