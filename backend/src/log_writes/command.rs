//! The command `replay`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};

use super::image::Opened;
use super::replay::Plan;
use super::{At, Flags, Log, Points, Replay as What, ReplayError, Until};
use crate::args;
use crate::device::{Cache, Component, Kind, Options, Registry};
use crate::inspect::commands::say;

/// Command line of `replay`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Replay {
    /// File or block device with the log of a log-writes target, ours or the kernel's. Alone: what is in it, in a line
    #[arg(value_name = "LOG")]
    pub source: PathBuf,

    /// File or block device to write to: the disk as it was before the log began. Nothing is written behind its end
    #[arg(long, value_name = "IMAGE")]
    pub to: Option<PathBuf>,

    /// Last entry that is replayed: mark:NAME, flush:N (from 1) or entry:N (from 0) (default: the last one)
    #[arg(long, value_name = "POINT")]
    pub until: Option<Until>,

    /// IMAGE is as an earlier replay left it that ended there: go on behind that point
    #[arg(long, value_name = "POINT")]
    pub from: Option<Until>,

    /// Leave what was discarded as it is, and not as zeroes
    #[arg(long, requires = "to")]
    pub no_discard: bool,

    /// Shell command to run behind every flush; the replay stops where it fails. It finds in its environment $IMAGE (the
    /// file), $ENTRY, $FLUSH (their numbers) and $MARK (the last mark's name)
    #[arg(long, value_name = "CMD", requires = "to")]
    pub each_flush: Option<String>,

    /// The same behind every write that was durable at its end
    #[arg(long, value_name = "CMD", requires = "to")]
    pub each_fua: Option<String>,

    /// For commands that change what they look at: each gets a new copy of IMAGE in this file, which must not exist. It is
    /// removed, unless the command failed
    #[arg(long, value_name = "FILE", requires = "to")]
    pub scratch: Option<PathBuf>,

    /// Print the entries, as replay-log -v does: number@block of its data: sector, size, flags
    #[arg(long)]
    pub list: bool,

    /// As when serving.
    #[command(flatten)]
    pub log: args::Log,
}

/// Replays a log, or tells what is in it.
///
/// # Errors
/// Why not, for the user.
pub fn replay(args: &Replay) -> Result<(), String> {
    let (file, bytes) = source(&args.source)?;
    let at_log = |error: &dyn std::fmt::Display| format!("vhost-user-dm: {}: {error}", args.source.display());
    let log = Log::new(&file, bytes).map_err(|error| at_log(&error))?;
    let what = What { from: args.from.clone(), until: args.until.clone(), no_discard: args.no_discard };
    let Some(path) = &args.to else {
        let listed = if args.list { list(&what, &log) } else { summary(&log) };
        return listed.map_err(|error| at_log(&error));
    };
    let image = opened(path)?;
    if same(&file, &image.file()).map_err(|error| at_log(&error))? {
        return Err(format!("vhost-user-dm: {}: it is the log itself", path.display()));
    }
    let done = Run { args, what: &what, log: &log, path }.run(&image);
    let points = done.map_err(|error| {
        let help = match &error {
            ReplayError::Beyond { end, .. } if image.kind == Kind::File => {
                format!("\n  = help: IMAGE is to be a copy of the disk as it was before; truncate -s {end} makes this one larger")
            }
            _ => String::new(),
        };
        at_log(&error) + &help
    })?;
    let behind = if points.mark.is_empty() { String::new() } else { format!(", the last mark {}", points.mark) };
    log::info!(
        "{}: replayed to entry {} of the log, {} flushes{behind}",
        path.display(),
        last(&points),
        points.flushes
    );
    Ok(())
}

fn last(points: &Points) -> String {
    points.entries.checked_sub(1).map_or("none".into(), |last| last.to_string())
}

/// A log, and its size in bytes. It is read without locks: what it counts is there, and stays while a disk is served with it.
fn source(path: &Path) -> Result<(File, u64), String> {
    // A pipe is not to be waited for.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = OpenOptions::new().read(true).custom_flags(nonblock).open(path).and_then(|file| {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("neither a file nor a block device"));
        }
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        Ok((file, size))
    });
    opened.map_err(|error| format!("vhost-user-dm: {}: the log cannot be read: {error}", path.display()))
}

fn same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    let is_device = one.file_type().is_block_device() && other.file_type().is_block_device();
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()) || (is_device && one.rdev() == other.rdev()))
}

/// An image to write, which nobody else has.
fn opened(path: &Path) -> Result<Arc<Component>, String> {
    let text = path.to_str().ok_or_else(|| format!("vhost-user-dm: {}: the path is not UTF-8", path.display()))?;
    let options = Options { read_only: false, cache: Cache::Buffered, incoming: false };
    let component = Registry::new().open(text, None, &options).map_err(|error| {
        let help = error.help().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
        format!("vhost-user-dm: {error}{help}")
    })?;
    component.warnings.iter().for_each(|warning| log::warn!("{}: {warning}", path.display()));
    Ok(component)
}

/// Bytes of it: of a file, also those behind its last whole sector.
fn size(component: &Component) -> u64 {
    match component.kind {
        Kind::File => component.file().metadata().map_or(component.size.bytes(), |data| data.len()),
        Kind::Block { .. } => component.size.bytes(),
    }
}

/// Text that is long: most of it is printed before all of it is there.
#[derive(Default)]
struct Long(String);

impl Long {
    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<(), ReplayError> {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
        if self.0.len() > 1 << 16 { self.end() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), ReplayError> {
        say(&std::mem::take(&mut self.0)).map_err(ReplayError::Stopped)
    }
}

fn summary(log: &Log<'_>) -> Result<(), ReplayError> {
    let mut points = Points::default();
    for entry in log.entries() {
        points.pass(log, &entry?)?;
    }
    let (block, entries, flushes) = (log.head.block, log.head.entries, points.flushes);
    let mut text = Long::default();
    text.line(format_args!("Log version=1, sectorsize={block}, entries={entries}\n{flushes} flushes"))?;
    for entry in log.entries() {
        let entry = entry?;
        if entry.header.flags.has(Flags::MARK) {
            points.pass(log, &entry)?;
            text.line(format_args!("mark {} at entry {}", points.mark, entry.number))?;
        }
    }
    text.end()
}

fn list(what: &What, log: &Log<'_>) -> Result<(), ReplayError> {
    let plan = match what.plan(log, u64::MAX) {
        // What is before the fault tells how it came to it.
        Err(ReplayError::Log(_)) if what.from.is_none() => Plan { entries: u64::MAX, ..Plan::default() },
        plan => plan?,
    };
    let mut text = Long::default();
    let listed = list_planned(&plan, log, &mut text);
    text.end()?;
    listed
}

fn list_planned(plan: &Plan, log: &Log<'_>, text: &mut Long) -> Result<(), ReplayError> {
    let mut points = Points::default();
    for entry in log.entries() {
        if points.entries >= plan.skip.saturating_add(plan.entries) {
            break;
        }
        let entry = entry?;
        points.pass(log, &entry)?;
        if points.entries <= plan.skip {
            continue;
        }
        let (place, flags) = (entry.data() / u64::from(log.head.block), entry.header.flags);
        let size = entry.range().1;
        let mark = if flags.has(Flags::MARK) { format!(" {}", points.mark) } else { String::new() };
        let (number, sector) = (entry.number, entry.header.sector);
        text.line(format_args!("{number}@{place}: sector {sector}, size {size}, flags {flags}{mark}"))?;
    }
    Ok(())
}

struct Run<'a> {
    args: &'a Replay,
    what: &'a What,
    log: &'a Log<'a>,
    path: &'a Path,
}

impl Run<'_> {
    fn run(&self, image: &Component) -> Result<Points, ReplayError> {
        let file = image.file();
        let mut to = Opened { file: &file, size: size(image) };
        let plan = self.what.plan(self.log, to.size)?;
        if self.args.list {
            list(self.what, self.log)?;
        }
        let bar = ProgressBar::new(plan.entries);
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} entries {msg} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let points = self.what.run(self.log, &plan, &mut to, &mut |to, entry, points| {
            bar.inc(1);
            let flags = entry.header.flags;
            for (command, at) in [(&self.args.each_flush, Flags::FLUSH), (&self.args.each_fua, Flags::FUA)] {
                let Some(command) = command.as_deref().filter(|_| flags.has(at)) else { continue };
                bar.set_message(format!("flush {}", points.flushes));
                to.sync().map_err(|source| ReplayError::Image { entry: entry.number, at: 0, source })?;
                bar.suspend(|| self.check(command, &file, entry, points)).map_err(ReplayError::Stopped)?;
            }
            Ok(())
        });
        bar.finish_and_clear();
        let synced = file.sync_all();
        let points = points?;
        synced.map_err(|source| ReplayError::Image { entry: points.entries.saturating_sub(1), at: 0, source })?;
        Ok(points)
    }

    /// Runs a command at a point, and tells how it ended where it failed.
    fn check(&self, command: &str, image: &File, entry: &At, points: &Points) -> Result<(), String> {
        let place = format!("entry {} (flush {}, mark {:?})", entry.number, points.flushes, points.mark);
        let looked_at = match &self.args.scratch {
            Some(scratch) => copy(image, scratch).map(|()| scratch.as_path()),
            None => Ok(self.path),
        };
        let looked_at =
            looked_at.map_err(|error| format!("{place}: the image cannot be copied for {command:?} to {error}"))?;
        let status = Command::new("sh")
            .args(["-c", command])
            .env("IMAGE", looked_at)
            .env("ENTRY", entry.number.to_string())
            .env("FLUSH", points.flushes.to_string())
            .env("MARK", OsStr::new(&points.mark))
            .status()
            .map_err(|error| format!("{place}: {command:?} cannot be run: {error}"))?;
        if !status.success() {
            let left = looked_at.display();
            let device = image.metadata().is_ok_and(|image| image.file_type().is_block_device());
            let help = if device && self.args.scratch.is_none() {
                "\n  = help: the replay has this device for itself: --scratch=FILE is for commands that mount or mend it"
            } else {
                ""
            };
            return Err(format!("{place}: {command:?} failed ({status}); what it looked at is {left}{help}"));
        }
        let removed = self.args.scratch.as_ref().map(|scratch| (scratch, fs::remove_file(scratch)));
        match removed {
            Some((scratch, Err(error))) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{}: cannot be removed: {error}", scratch.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A copy that is whole, or not there.
fn copy(image: &File, scratch: &Path) -> Result<(), String> {
    let wrong = |error: io::Error| format!("{}: {error}", scratch.display());
    let made = OpenOptions::new().write(true).create_new(true).open(scratch).map_err(wrong)?;
    copy_to(image, &made).map_err(|error| {
        let _ = fs::remove_file(scratch);
        wrong(error)
    })
}

/// Shares the original's blocks where the file system can.
fn copy_to(image: &File, made: &File) -> io::Result<()> {
    use rustix::fs::SeekFrom;
    if rustix::fs::ioctl_ficlone(made, image).is_ok() {
        return Ok(());
    }
    let size = rustix::fs::seek(image, SeekFrom::End(0))?;
    made.set_len(size)?;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(image, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // What cannot tell is all data.
            Err(_) => at,
        };
        let end = rustix::fs::seek(image, SeekFrom::Hole(data)).unwrap_or(size).min(size);
        copy_range(image, made, data, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut window = vec![0; 1 << 20];
    while at < end {
        let part = (end - at).min(window.len() as u64) as usize;
        let bytes = window.get_mut(..part).unwrap_or_default();
        from.read_exact_at(bytes, at)?;
        to.write_all_at(bytes, at)?;
        at += part as u64;
    }
    Ok(())
}
