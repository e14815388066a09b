//! Overlays: what a guest writes goes to a file of its own, and the disk that it was given stays as it is.
//!
//! `--overlay` puts a `snapshot` target over the device that is served; the base becomes a device beside it, NAME-base, all of
//! whose components are opened for reading alone. The overlay itself has the format of the kernel's persistent snapshots, so
//! `dmsetup` can use it too. `commit` merges one into its base (by a `snapshot-merge` target, which has all of the
//! logic), `discard` removes one.

mod base;
mod check;
mod commit;
mod hold;
mod kept;
mod mark;
mod places;
mod size;
mod view;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use dm_table::{DevRef, Device, Line, Persistence, Sectors, Snapshot, Source, Span, Table, TableFile, Target};

pub use check::{Checked, check};
pub use commit::{Commit, Discard, commit, discard};
pub use view::{Viewed, view};

use crate::check::human;
use crate::device::OpenError;
use crate::inspect::Assembled;
use crate::mapper::Mapper;
use crate::place::PlaceError;
use base::Split;
use hold::Held;
use kept::{Head, Kept};
use mark::{Base, Mark};

/// Where what a guest writes is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// In a file without a name, as long as the process lives.
    Temporary,
    /// In this file or block device.
    Kept(PathBuf),
}

impl FromStr for Overlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Overlay, String> {
        match text {
            "" => Err("a file, or tmp".into()),
            "tmp" => Ok(Overlay::Temporary),
            path => Ok(Overlay::Kept(path.into())),
        }
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Overlay::Temporary => f.write_str("tmp"),
            Overlay::Kept(path) => path.display().fmt(f),
        }
    }
}

/// Findings that `--force` takes for warnings where there is an overlay.
pub const FORCED: [&str; 7] = ["mounted", "swap", "md", "lvm", "held", "loop", OTHER_BASE];
/// The overlay was made over something else.
pub const OTHER_BASE: &str = "other-base";

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A system call.
    #[error("{}: the overlay {what}: {source}", path.display())]
    System {
        /// The overlay.
        path: PathBuf,
        /// What did not work.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be had for writing.
    #[error("{0}")]
    Open(OpenError),
    /// It could not be had for writing.
    #[error("{}: cannot be served writable: {why}", path.display())]
    Taken {
        /// The overlay.
        path: PathBuf,
        /// Who has it, or why not.
        why: String,
    },
    /// Something else lies there.
    #[error("{}: {why}", path.display())]
    NotOne {
        /// What was given.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// The store says so itself.
    #[error("{}: the overlay is marked invalid: it was full once, or could not be written, and what is in it is not whole", .0.display())]
    Invalid(PathBuf),
    /// What its header says cannot be.
    #[error("{}: the overlay cannot be used: {why}", path.display())]
    Unusable {
        /// The overlay.
        path: PathBuf,
        /// What the snapshot target says of it.
        why: String,
    },
    /// The overlay, or the disk that it lies in, is a part of the base.
    #[error("{}: the overlay and {component} of the base are the same, or one is a part of the other", path.display())]
    Within {
        /// The overlay.
        path: PathBuf,
        /// The base's component.
        component: String,
    },
    /// The base may change under the overlay.
    #[error("{component}: {what}, so it may change under the overlay, and then neither is worth anything")]
    Changing {
        /// The base's component.
        component: String,
        /// What uses it.
        what: String,
        /// What ends that.
        release: String,
        /// Name of the finding.
        id: &'static str,
    },
    /// See `mark`.
    #[error("{}: the overlay does not belong to this disk: {why}", path.display())]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// No name to find it by.
    #[error(
        "--overlay=tmp: what the guest writes lasts as long as this process, so there is nothing that {flag} could give to another one"
    )]
    Temporary {
        /// The flag.
        flag: &'static str,
    },
    /// A guest that comes brings what it has written.
    #[error("{}: there is no such overlay; with --incoming it must be there: the one that the guest has written to so far", .0.display())]
    NotThere(PathBuf),
    /// What it has would be read before the guest has written its last.
    #[error("{}: the source of the migration writes to the overlay until the guest arrives, and it is not read anew then", .0.display())]
    Incoming(PathBuf),
    /// The base cannot be read.
    #[error("the base cannot be read: {0}")]
    Unreadable(io::Error),
    /// Which device.
    #[error("{0}")]
    Which(#[from] PlaceError),
    /// Of an overlay that is to be discarded.
    #[error("{}: the overlay is partly merged into its base: without the rest the base would be half old and half new", .0.display())]
    HalfMerged(PathBuf),
}

impl OverlayError {
    /// What would work.
    pub fn help(&self) -> Option<String> {
        match self {
            OverlayError::Open(error) => error.help(),
            OverlayError::Incoming(_) => Some("serve it without --incoming when the source has ended".into()),
            OverlayError::Invalid(path) | OverlayError::Unusable { path, .. } => {
                Some(format!("`vhost-user-dm discard {}` removes it, with what was written", path.display()))
            }
            OverlayError::Changing { release, id, .. } => {
                let read_only = if *id == "mounted" { " or mount it read-only," } else { "" };
                Some(format!("`{release}` first,{read_only} or take the risk with --force={id}"))
            }
            OverlayError::OtherBase { .. } => Some(format!(
                "name the disk that it was made over, or another overlay; --force={OTHER_BASE} uses it all the same"
            )),
            OverlayError::Temporary { .. } => Some("name a file to keep it in: --overlay=COWFILE".into()),
            OverlayError::HalfMerged(path) => {
                Some(format!("finish it: `vhost-user-dm commit {}`; --force removes it all the same", path.display()))
            }
            _ => None,
        }
    }

    /// Of several lines, for the user.
    pub fn told(&self) -> String {
        let help = self.help().map(|help| format!("\n  = help: {help}")).unwrap_or_default();
        format!("vhost-user-dm: {self}{help}")
    }
}

/// What is to be served with an overlay.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Where what is written goes.
    pub overlay: &'a Overlay,
    /// Which device of the table file.
    pub device: Option<&'a str>,
    /// Findings that only warn.
    pub force: &'a [String],
    /// The guest comes from elsewhere with its overlay.
    pub incoming: bool,
}

/// An overlay that was put over a base. Dropped before [`Overlaid::stay`] it goes, if it was made.
#[derive(Debug, Default)]
pub struct Overlaid {
    // Its path leads to it as long as it is open.
    _temporary: Option<File>,
    held: Option<Held>,
}

impl Overlaid {
    /// It may have been written to, or a table that is kept names it and could not be made again without it.
    pub fn stay(&mut self) {
        self.held.iter_mut().for_each(Held::keep);
    }
}

/// Makes the devices of a table file with an overlay over the one that is to be served. What is doubtful is returned.
///
/// # Errors
/// Why not, for the user.
pub fn start(
    mapper: &Mapper,
    (file, name): (&TableFile, &str),
    wanted: &Wanted<'_>,
) -> Result<(Overlaid, Vec<String>), String> {
    let split = base::split(file, name, wanted.device, true).map_err(|error| OverlayError::from(error).told())?;
    let at = match wanted.overlay {
        Overlay::Temporary => None,
        Overlay::Kept(path) => Some(path.as_path()),
    };
    let mut warnings = base::changing(&split, at, wanted.force).map_err(|error| error.told())?;
    warnings.extend(mapper.start(&split.file, name).map_err(|diagnostic| diagnostic.to_string())?);
    // What may change is said above.
    warnings.retain(|warning| !warning.ends_with(", so it may change while it is served"));
    let disk = base::assembled(mapper, &split).map_err(|error| error.told())?;
    let logical_block = disk.chain().map.limits().logical_block;
    let store = match at {
        None => temporary(split.sectors, logical_block),
        Some(path) => keep(mapper, path, &disk, wanted, &mut warnings),
    };
    let (store, overlaid) = store.map_err(|error| error.told())?;
    drop(disk);
    let top = over(&split, &store);
    warnings.extend(mapper.start(&top, name).map_err(|diagnostic| diagnostic.to_string())?);
    Ok((overlaid, warnings))
}

/// The store of an overlay, as a table names it.
struct Store {
    path: String,
    chunk: u64,
    persistence: Persistence,
}

/// Where there is room: /tmp lies in memory on many machines.
fn temporary_dir() -> PathBuf {
    let dir = std::env::var_os("TMPDIR").map(PathBuf::from);
    dir.or_else(|| Some(PathBuf::from("/var/tmp")).filter(|dir| dir.is_dir())).unwrap_or("/tmp".into())
}

fn temporary(sectors: u64, logical_block: u32) -> Result<(Store, Overlaid), OverlayError> {
    let dir = temporary_dir();
    let wrong = |what| {
        let path = dir.clone();
        move |source| OverlayError::System { path, what, source }
    };
    let chunk = size::chunk(sectors, logical_block);
    let file = tempfile::tempfile_in(&dir).map_err(wrong("cannot be made in this directory"))?;
    file.set_len(size::file(sectors, chunk)).map_err(wrong("cannot have the size that it needs"))?;
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok((Store { path, chunk, persistence: Persistence::None }, Overlaid { _temporary: Some(file), held: None }))
}

/// Takes or makes what an overlay is kept in, and sees whether it belongs here.
fn keep(
    mapper: &Mapper,
    path: &Path,
    disk: &Assembled,
    wanted: &Wanted<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Store, Overlaid), OverlayError> {
    if wanted.incoming {
        let there = path.exists();
        return Err(if there { OverlayError::Incoming(path.into()) } else { OverlayError::NotThere(path.into()) });
    }
    let sectors = disk.size() / dm_table::SECTOR_SIZE;
    let logical_block = disk.chain().map.limits().logical_block;
    let size = size::file(sectors, size::chunk(sectors, logical_block));
    let (held, mut kept) = Held::take(path, Some(size), |path| mapper.hold(path, false))?;
    belongs(&kept, disk, wanted.force, warnings)?;
    let chunk = kept.chunk(sectors, logical_block);
    if kept.is_empty() {
        let wrong = |what| move |source| OverlayError::System { path: path.to_owned(), what, source };
        if kept.head == Head::Emptied {
            kept.clear().map_err(wrong("cannot be emptied"))?;
        }
        if !kept.is_block() || kept.has_room_for_mark(sectors, chunk) {
            kept.renew(kept.size.max(size), Mark::of(Base::look(disk))).map_err(wrong("cannot be marked"))?;
        }
    }
    if held.is_made() {
        log::info!("{}: a new overlay; it grows to {} at most", path.display(), human(kept.size));
    }
    warnings.extend(overflow(&kept, sectors, chunk));
    let path = kept.path.to_string_lossy().into_owned();
    let overlaid = Overlaid { _temporary: None, held: Some(held) };
    Ok((Store { path, chunk, persistence: Persistence::Persistent }, overlaid))
}

/// What is to be said of an overlay that has not room for all.
fn overflow(kept: &Kept, sectors: u64, chunk: u64) -> Option<String> {
    kept.may_overflow(sectors, chunk).then(|| {
        format!(
            "{}: the overlay has {}, and all that a guest may write needs {}; if it gets full it is lost",
            kept.path.display(),
            human(kept.size),
            human(size::store(sectors, chunk))
        )
    })
}

/// Whether an overlay was made over this disk, as far as that can be known.
fn belongs(kept: &Kept, disk: &Assembled, force: &[String], warnings: &mut Vec<String>) -> Result<(), OverlayError> {
    match &kept.head {
        Head::Store { valid: false, .. } => return Err(OverlayError::Invalid(kept.path.clone())),
        Head::Unusable(why) => return Err(OverlayError::Unusable { path: kept.path.clone(), why: why.clone() }),
        _ => {}
    }
    let why = match &kept.mark {
        // What is empty belongs wherever it is put.
        _ if kept.is_empty() => None,
        None => {
            warnings.push(format!("{}: the overlay does not say which disk it was made over", kept.path.display()));
            None
        }
        // The base changes while it is merged into.
        Some(mark) if mark.committing => mark.base.size_differs(disk),
        Some(mark) => mark.base.differs(disk),
    };
    match why {
        None => Ok(()),
        Some(why) if force.iter().any(|id| id == OTHER_BASE) => {
            warnings.push(format!("{}: {why}", kept.path.display()));
            Ok(())
        }
        Some(why) => Err(OverlayError::OtherBase { path: kept.path.clone(), why }),
    }
}

/// The table of the device over its base.
fn over(split: &Split, store: &Store) -> TableFile {
    one_line(split, store, "snapshot", Target::Snapshot)
}

fn one_line(split: &Split, store: &Store, what: &str, target: impl FnOnce(Box<Snapshot>) -> Target) -> TableFile {
    let mut text = format!("0 {} {what} ", split.sectors);
    let mut word = |word: &str| {
        let start = text.len();
        text.push_str(word);
        let span = Span { start, end: text.len() };
        text.push(' ');
        span
    };
    let origin = format!("/dev/mapper/{}", split.base_name);
    let origin = DevRef { span: word(&origin), text: origin };
    let cow = DevRef { span: word(&store.path), text: store.path.clone() };
    let persistence_span = word(&store.persistence.to_string());
    let chunk_span = word(&store.chunk.to_string());
    let span = Span { start: 0, end: text.trim_end().len() };
    let snapshot = Box::new(Snapshot {
        origin,
        cow,
        persistence: store.persistence,
        persistence_span,
        chunk: Sectors::new(store.chunk),
        chunk_span,
        discard_zeroes_cow: false,
        discard_passdown_origin: false,
    });
    let line = Line {
        start: Sectors::ZERO,
        len: Sectors::new(split.sectors),
        target: target(snapshot),
        span,
        start_span: span,
        len_span: span,
        type_span: span,
    };
    let (name_span, table) = (Span { start: 0, end: 0 }, Arc::new(Table { lines: vec![line] }));
    let device = Device { name_span, table, read_only: false, ..split.top.clone() };
    TableFile { source: Arc::new(Source::new("--overlay", text.trim_end())), devices: vec![device] }
}
