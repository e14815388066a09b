//! `commit` and `discard`: an overlay goes back into its base, or away.
//!
//! A commit is a `snapshot-merge` target without a guest: the order in which that copies, flushes and forgets makes it safe to
//! be killed at any moment, and what it has done need not be done again. Before the first write the overlay's mark says
//! that the base is being changed; when all is merged the overlay is emptied, and marked as one of what the base is now.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use dm_table::{Persistence, SnapshotMerge, TableFile, Target};
use indicatif::{ProgressBar, ProgressStyle};

use super::hold::Held;
use super::kept::{Head, Kept};
use super::mark::{Base, Mark};
use super::{OTHER_BASE, OverlayError, Store, base, belongs, one_line, size};
use crate::args::{Cache, Log};
use crate::check::human;
use crate::control::schema::{Query, Which};
use crate::device::{Options, Patience, Registry};
use crate::mapper::{Mapper, Settings};
use crate::worker::pool::{Pool, WorkerSettings};

/// Time between two looks at how far the merge is.
const LOOK: Duration = Duration::from_millis(100);

/// Command line of `commit`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Commit {
    /// The overlay
    #[arg(value_name = "COWFILE")]
    pub cow: PathBuf,

    /// The disk that it lies over, as it was served: table file; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "blk_file")]
    pub table: Option<PathBuf>,

    /// The same, where it is one plain file or partition
    #[arg(long, value_name = "PATH", conflicts_with = "table")]
    pub blk_file: Option<PathBuf>,

    /// Which device of a concise table file (default: the one that no other uses)
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,

    /// Caching of component devices on this machine
    #[arg(long, value_enum, default_value_t = Cache::Auto)]
    pub cache: Cache,

    /// Take the table for the concise format without looking at it
    #[arg(long)]
    pub concise: bool,

    /// Merge it although it was made over another disk, or over what this one was before somebody wrote to it
    #[arg(long, value_name = "FINDING", value_parser = clap::builder::PossibleValuesParser::new([OTHER_BASE]))]
    pub force: Vec<String>,

    /// As when serving.
    #[command(flatten)]
    pub log: Log,
}

/// Command line of `discard`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Discard {
    /// The overlay; a file is removed, a block device forgets it
    #[arg(value_name = "COWFILE")]
    pub cow: PathBuf,

    /// Also if it is partly merged into its base, which it leaves useless
    #[arg(long)]
    pub force: bool,

    /// As when serving.
    #[command(flatten)]
    pub log: Log,
}

/// Merges an overlay into its base. Killed, it goes on where it was when it is called again.
///
/// # Errors
/// Why not, for the user.
pub fn commit(args: &Commit, file: &TableFile, name: &str, patience: Patience) -> Result<(), String> {
    crate::uring::probe().map_err(|error| format!("vhost-user-dm: {error}"))?;
    let looked = Kept::open(&args.cow, false).map_err(|error| error.told())?;
    let nothing =
        || log::info!("{}: nothing was written to the overlay, so there is nothing to merge", args.cow.display());
    // What is to be locked must not be empty.
    if looked.size == 0 {
        nothing();
        return Ok(());
    }
    let split =
        base::split(file, name, args.device.as_deref(), false).map_err(|error| OverlayError::from(error).told())?;
    base::changing(&split, Some(&looked.path), &super::FORCED.map(str::to_owned)).map_err(|error| error.told())?;
    let settings = Settings {
        components: Options { read_only: false, cache: args.cache.into(), incoming: false },
        ..Settings::default()
    };
    let pool = Pool::new(0, WorkerSettings::default());
    let mapper = Mapper::new(settings, Registry::patient(patience), Arc::new(pool), None);
    let held = Held::take(&args.cow, None, |path| mapper.hold(path, false)).map_err(|error| error.told())?;
    let (_held, mut kept) = held;
    if kept.is_empty() {
        nothing();
        return Ok(());
    }
    let mut warnings = mapper.start(&split.file, name).map_err(|diagnostic| diagnostic.to_string())?;
    // Both are ours from here on, so that what the overlay says of its base is so, and stays so.
    let disk = base::assembled(&mapper, &split).map_err(|error| error.told())?;
    belongs(&kept, &disk, &args.force, &mut warnings).map_err(|error| error.told())?;
    let (sectors, logical_block) = (split.sectors, disk.chain().map.limits().logical_block);
    let chunk = kept.chunk(sectors, logical_block);
    let path = kept.path.to_string_lossy().into_owned();
    let store = Store { path, chunk, persistence: Persistence::Persistent };
    let merge = one_line(&split, &store, "snapshot-merge", |snapshot| Target::SnapshotMerge(SnapshotMerge(snapshot)));
    warnings.extend(mapper.start(&merge, name).map_err(|diagnostic| diagnostic.to_string())?);
    for warning in warnings {
        log::warn!("{}", warning.trim_end());
    }
    let wrong = |what| move |source| OverlayError::System { path: args.cow.clone(), what, source }.told();
    let marks = kept.has_room_for_mark(sectors, chunk);
    if let Some(mark) = kept.mark.clone().filter(|mark| marks && !mark.committing) {
        kept.set_mark(Mark { committing: true, ..mark }).map_err(wrong("cannot be marked"))?;
    }
    mapper.activate_all().map_err(|error| format!("vhost-user-dm: {error}"))?;
    let merged = watch(&mapper, &split.shown).map_err(|why| {
        format!(
            "vhost-user-dm: {}: {why}\n  = help: what is merged stays merged, and the disk is whole with the overlay over it \
             only; the same command goes on",
            args.cow.display()
        )
    })?;
    mapper.retire_all();
    let mark = marks.then(|| Mark::of(Base::look(&disk)));
    kept.clear().map_err(wrong("is merged, but cannot be emptied"))?;
    if let Some(mark) = mark {
        let size = kept.size.max(size::file(sectors, kept.chunk(sectors, logical_block)));
        kept.renew(size, mark).map_err(wrong("is merged and empty, but cannot be marked"))?;
    }
    log::info!("{}: {} are merged into the base; the overlay is empty", args.cow.display(), human(merged * 512));
    Ok(())
}

/// Waits for the end of the merge. Tells how many sectors that was.
fn watch(mapper: &Mapper, name: &str) -> Result<u64, String> {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let query = Query { which: Which { name: Some(name.to_owned()), ..Which::default() }, ..Query::default() };
    let mut total = None;
    loop {
        let lines = mapper.status(&query).map_err(|error| error.to_string())?;
        let status = lines.first().map(|line| line.params.as_str()).unwrap_or_default();
        let left = left(status).ok_or_else(|| match status {
            "Merge failed" => "the merge has stopped at an error, which is told above".to_owned(),
            other => format!("the merge cannot go on: {other}"),
        })?;
        let total = *total.get_or_insert(left);
        bar.set_length(total * 512);
        bar.set_position((total - left.min(total)) * 512);
        if left == 0 {
            bar.finish_and_clear();
            return Ok(total);
        }
        std::thread::sleep(LOOK);
    }
}

/// Sectors that are to be merged, by a status line: `allocated/total metadata`.
fn left(status: &str) -> Option<u64> {
    let (allocated, rest) = status.split_once('/')?;
    let (_, metadata) = rest.split_once(' ')?;
    Some(allocated.parse::<u64>().ok()?.saturating_sub(metadata.trim().parse().ok()?))
}

/// Removes an overlay.
///
/// # Errors
/// Why not, for the user.
pub fn discard(args: &Discard, patience: Patience) -> Result<(), String> {
    let kept = Kept::open(&args.cow, false).map_err(|error| error.told())?;
    if kept.head == Head::New && kept.mark.is_none() {
        let why = "is empty, and nothing says that it is an overlay";
        return Err(OverlayError::NotOne { path: args.cow.clone(), why }.told());
    }
    let options = Options { read_only: false, cache: crate::device::Cache::Buffered, incoming: false };
    let mut registry = Registry::patient(patience);
    // Whoever serves it, or merges it, has it locked.
    let held = Held::take(&args.cow, None, |path| registry.open(path, None, &options)).map_err(|error| error.told())?;
    let (_held, kept) = held;
    if kept.mark.as_ref().is_some_and(|mark| mark.committing) && !kept.is_empty() && !args.force {
        return Err(OverlayError::HalfMerged(args.cow.clone()).told());
    }
    let allocated = human(kept.allocated());
    let wrong = |source| OverlayError::System { path: args.cow.clone(), what: "cannot be removed", source }.told();
    kept.discard().map_err(wrong)?;
    log::info!("{}: the overlay is gone, and {allocated} with it", args.cow.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_what_is_left() {
        assert_eq!(left("48/131072 16"), Some(32));
        assert_eq!(left("16/131072 16"), Some(0));
        for other in ["Merge failed", "Invalid", "", "1/2", "a/1 2"] {
            assert_eq!(left(other), None, "{other}");
        }
    }
}
