//! What would be served with an overlay, said in advance. Nothing is made or written.

use std::io;
use std::path::{Path, PathBuf};

use dm_table::{SECTOR_SIZE, TableFile};
use rustix::fs::Access;
use serde::Serialize;

use super::base::{self, Split};
use super::kept::Kept;
use super::{OTHER_BASE, Overlay, OverlayError, belongs, overflow, size, temporary_dir};
use crate::check::{count, human};
use crate::inspect::{self, Assembled, Finding, Severity, Verdict};
use crate::mapper::Mapper;

/// An overlay as it is, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Its file or device; of a temporary one the directory.
    pub path: PathBuf,
    /// `temporary`, `absent`, `empty`, `used` or `merging`: a commit has begun and not ended.
    pub state: &'static str,
    /// Sectors of a chunk.
    pub chunk: u64,
    /// Chunks that it holds.
    pub used: u64,
    /// Chunks of the disk.
    pub chunks: u64,
    /// Bytes that it takes at most.
    pub size: u64,
    /// Whether it says that it was made over this disk, as the disk is. Nothing where it does not say.
    pub belongs: Option<bool>,
}

impl Checked {
    fn new(path: &Path, state: &'static str, (sectors, chunk): (u64, u64)) -> Checked {
        let chunks = sectors.div_ceil(chunk);
        let size = size::file(sectors, chunk);
        Checked { path: path.to_owned(), state, chunk, used: 0, chunks, size, belongs: None }
    }

    /// A line for people.
    pub fn human(&self) -> String {
        let (path, most, chunk) = (self.path.display(), human(self.size), human(self.chunk * SECTOR_SIZE));
        let chunks = format!("chunks of {chunk}");
        let base = match self.belongs {
            Some(true) => "made over this disk",
            Some(false) => "made over another disk, or over what this one was",
            None => "it does not say which disk it was made over",
        };
        let held = || format!("{} of {} in {chunks}; {base}", self.used, count(self.chunks as usize, "chunk"));
        match self.state {
            "temporary" => format!("  overlay: a file without a name in {path}, of {most} at most, in {chunks}\n"),
            "absent" => format!("  overlay: {path}: not there, and would be made: {most} at most, in {chunks}\n"),
            "empty" => format!("  overlay: {path}: empty; {most} at most, in {chunks}\n"),
            "merging" => {
                format!("  overlay: {path}: {}; a commit has begun, and `commit` is to end it\n", held())
            }
            _ => format!("  overlay: {path}: {}\n", held()),
        }
    }
}

/// Checks a table file as it would be served with an overlay: its devices, and all that speaks against either.
pub fn check(mapper: &Mapper, (file, name): (&TableFile, &str), overlay: &Overlay, device: Option<&str>) -> Verdict {
    let split = match base::split(file, name, device, true) {
        Ok(split) => split,
        Err(error) => return Verdict::unreadable(OverlayError::from(error).told()),
    };
    let at = match overlay {
        Overlay::Temporary => None,
        Overlay::Kept(path) => Some(path.as_path()),
    };
    let changes = match base::changes(&split, at) {
        Ok(changes) => changes,
        Err(error) => return Verdict::unreadable(error.told()),
    };
    // What the base contains can be read; over it lies what only a guest reads.
    let started = mapper.start(&split.file, name).map(|warnings| (mapper.started(), warnings));
    let mut told = Told::default();
    if started.is_ok()
        && let Err(error) = look(mapper, &split, at, &mut told)
    {
        told.error = Some(error);
    }
    let mut verdict = inspect::judge(&split.file, started, true);
    // What uses the base is worse below an overlay than for who only reads it.
    let uses = |finding: &Finding| !changes.is_empty() && super::FORCED.contains(&finding.id);
    verdict.findings.retain(|finding| !uses(finding));
    verdict.findings.extend(changes.iter().filter_map(finding));
    verdict.findings.extend(told.other.iter().filter_map(finding));
    verdict.warnings.extend(told.warnings);
    verdict.error = verdict.error.or(told.error);
    verdict.overlay = told.overlay;
    verdict
}

/// What is found out about the overlay itself.
#[derive(Default)]
struct Told {
    overlay: Option<Checked>,
    other: Option<OverlayError>,
    warnings: Vec<String>,
    error: Option<String>,
}

fn finding(error: &OverlayError) -> Option<Finding> {
    let id = match error {
        OverlayError::Changing { id, .. } => id,
        OverlayError::OtherBase { .. } => OTHER_BASE,
        _ => return None,
    };
    Some(Finding { id, severity: Severity::Refuse, text: error.to_string(), help: error.help() })
}

fn look(mapper: &Mapper, split: &Split, at: Option<&Path>, told: &mut Told) -> Result<(), String> {
    let disk = base::assembled(mapper, split).map_err(|error| error.told())?;
    let sectors = disk.size() / SECTOR_SIZE;
    let logical_block = disk.chain().map.limits().logical_block;
    let new = |path: &Path, state| Checked::new(path, state, (sectors, size::chunk(sectors, logical_block)));
    let Some(path) = at else {
        let dir = temporary_dir();
        told.overlay = Some(new(&dir, "temporary"));
        return writable(&dir).map_err(|error| error.told());
    };
    let looked = match Kept::open(path, false) {
        Err(OverlayError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            told.overlay = Some(new(path, "absent"));
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return writable(dir).map_err(|error| error.told());
        }
        looked => looked.map_err(|error| error.told())?,
    };
    if looked.size == 0 {
        told.overlay = Some(new(path, "empty"));
        return Ok(());
    }
    let kept = Kept::open(path, false).map_err(|error| error.told())?;
    kept.lock_alone().map_err(|error| error.told())?;
    let chunk = kept.chunk(sectors, logical_block);
    told.overlay = Some(described(&kept, &disk, (sectors, chunk), told)?);
    let grows = kept.is_empty() && !kept.is_block();
    told.warnings.extend(overflow(&kept, sectors, chunk).filter(|_| !grows));
    Ok(())
}

fn described(kept: &Kept, disk: &Assembled, sizes: (u64, u64), told: &mut Told) -> Result<Checked, String> {
    let mut checked = Checked::new(&kept.path, "empty", sizes);
    checked.size = if kept.is_empty() { checked.size.max(kept.size) } else { kept.size };
    if kept.is_empty() {
        return Ok(checked);
    }
    match belongs(kept, disk, &[], &mut told.warnings) {
        Err(error @ OverlayError::OtherBase { .. }) => told.other = Some(error),
        belongs => belongs.map_err(|error| error.told())?,
    }
    let wrong = |source| OverlayError::System { path: kept.path.clone(), what: "cannot be read", source }.told();
    checked.used = kept.each(&mut |_| ()).map_err(wrong)?;
    checked.state = if kept.mark.as_ref().is_some_and(|mark| mark.committing) { "merging" } else { "used" };
    checked.belongs = kept.mark.as_ref().map(|_| told.other.is_none());
    Ok(checked)
}

/// Whether this process may make a file in a directory.
fn writable(dir: &Path) -> Result<(), OverlayError> {
    let allowed = rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK);
    let wrong =
        |source| OverlayError::System { path: dir.to_owned(), what: "cannot be made in this directory", source };
    allowed.map_err(|errno| wrong(errno.into()))
}
