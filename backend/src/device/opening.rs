//! What the components have in common that this process has made of one device, one after the other as it grew or shrank:
//! the open file with its locks and its claim, and what was written and is not flushed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::component::{Access, Cache, Component, Identity, Kind};
use super::error::OpenError;
use super::limits::Limits;
use super::lookup::Located;
use super::pair::Pair;
use super::sysfs::Disk;
use super::unflushed::Unflushed;
use super::{access, facts};
use crate::guest::Mapping;

/// A device that this process has open, for reading alone or for writing too.
#[derive(Debug)]
pub(super) struct Opening {
    /// As whoever opened it first wrote it.
    pub path: PathBuf,
    pub name: String,
    pub kind: Kind,
    pub identity: Identity,
    pub read_only: bool,
    /// How it was first decided to read it; one open file cannot be direct for some.
    pub access: Access,
    /// What it could do when it was opened.
    limits: Limits,
    pub unflushed: Option<Arc<Unflushed>>,
    /// What was found out about its other users when it was opened.
    warnings: Vec<String>,
    /// This opening and the other of the same device by this process.
    pub pair: Arc<Pair>,
    state: Mutex<State>,
}

/// The open file, and whether it is ours to write.
#[derive(Debug)]
pub(super) struct State {
    pub file: Arc<File>,
    /// Locks and claim are on `file`'s description.
    pub owned: bool,
    /// Disks of this process that are served and lead to it.
    pub users: usize,
}

/// What of a device can change while it is open.
struct Facts {
    size: dm_table::Sectors,
    limits: Limits,
    warnings: Vec<String>,
}

impl Opening {
    /// Whoever opens a file decides how it is read, and makes the first component of it. `owned`: locks and claim are on it.
    pub fn first(
        (file, owned): (Arc<File>, bool),
        located: &Located,
        (read_only, cache): (bool, Cache),
        (warnings, pair): (Vec<String>, &Arc<Pair>),
    ) -> Result<Component, OpenError> {
        let path = &located.path;
        let disk = disk(located.kind);
        let bytes = size_in_bytes(&file, path)?;
        let facts = Facts::find(&file, (located.kind, path), (bytes, read_only), || {
            facts::of_file(&file, &located.stat, bytes, read_only)
        })?;
        let (access, mapping) = access::choose(&file, cache, facts.limits.logical_block, facts.size, !read_only)
            .map_err(|why| OpenError::NoDirectIo { path: path.clone(), why })?;
        let name = match &disk {
            Some(disk) => disk.name(),
            None => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        };
        let flushed = !read_only && mapping.is_none();
        let opening = Opening {
            unflushed: flushed.then(|| Arc::new(Unflushed::new(&name, access == Access::Buffered))),
            limits: facts.limits,
            path: path.clone(),
            name,
            kind: located.kind,
            identity: located.identity,
            read_only,
            access,
            warnings,
            pair: pair.clone(),
            state: Mutex::new(State { file, owned, users: 0 }),
        };
        Ok(Component::of(Arc::new(opening), path.clone(), facts, (access, mapping)))
    }

    /// The device as it is now, which `newest` may be already.
    pub fn again(
        self: &Arc<Opening>,
        newest: Option<Arc<Component>>,
        located: &Located,
    ) -> Result<Arc<Component>, OpenError> {
        let (file, path) = (self.file(), &located.path);
        let bytes = size_in_bytes(&file, path)?;
        // What a file can do does not change, and to ask for it again would have it changed under those who use it.
        let facts = Facts::find(&file, (self.kind, path), (bytes, self.read_only), || self.limits)?;
        if let Some(newest) = newest.filter(|newest| (newest.size, newest.limits) == (facts.size, facts.limits)) {
            return Ok(newest);
        }
        let access = access::again(&file, self.access, facts.limits.logical_block, facts.size, !self.read_only)
            .map_err(|why| OpenError::NoDirectIo { path: path.clone(), why })?;
        Ok(Arc::new(Component::of(self.clone(), path.clone(), facts, access)))
    }

    /// For the engine that is simulated.
    #[cfg(test)]
    pub fn simulated(file: File, name: String, identity: Identity, limits: Limits, access: Access) -> Opening {
        Opening {
            path: PathBuf::from(&name),
            unflushed: Some(Arc::new(Unflushed::new(&name, access == Access::Buffered))),
            name,
            kind: Kind::File,
            identity,
            read_only: false,
            access,
            limits,
            warnings: Vec::new(),
            pair: Arc::default(),
            state: Mutex::new(State { file: Arc::new(file), owned: true, users: 0 }),
        }
    }

    pub fn file(&self) -> Arc<File> {
        self.state().file.clone()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let (held, file) = {
            let state = self.state();
            (state.owned, Arc::downgrade(&state.file))
        };
        self.pair.ends(self.read_only, held, file);
    }
}

impl Component {
    fn of(
        opening: Arc<Opening>,
        path: PathBuf,
        facts: Facts,
        (access, mapping): (Access, Option<Mapping>),
    ) -> Component {
        Component {
            name: opening.name.clone(),
            path,
            kind: opening.kind,
            identity: opening.identity,
            size: facts.size,
            limits: facts.limits,
            read_only: opening.read_only,
            access,
            mapping,
            unflushed: opening.unflushed.clone(),
            warnings: opening.warnings.iter().cloned().chain(facts.warnings).collect(),
            opening,
        }
    }
}

impl Facts {
    fn find(
        file: &File,
        (kind, path): (Kind, &Path),
        (bytes, read_only): (u64, bool),
        of_file: impl FnOnce() -> Limits,
    ) -> Result<Facts, OpenError> {
        let mut warnings = Vec::new();
        let size = facts::whole_sectors(bytes, &mut warnings);
        if size.is_zero() {
            return Err(OpenError::Empty { path: path.to_path_buf(), why: emptiness(kind, bytes) });
        }
        let limits = match kind {
            Kind::Block { .. } => facts::of_block(file, disk(kind).as_ref(), read_only, &mut warnings)
                .map_err(io_error(path, "cannot find its block sizes"))?,
            Kind::File => of_file(),
        };
        Ok(Facts { size, limits, warnings })
    }
}

fn disk(kind: Kind) -> Option<Disk> {
    match kind {
        Kind::Block { major, minor } => Disk::numbered(major, minor),
        Kind::File => None,
    }
}

fn size_in_bytes(file: &File, path: &Path) -> Result<u64, OpenError> {
    facts::size_in_bytes(file).map_err(io_error(path, "cannot find its size"))
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { path, doing, source }
}

fn emptiness(kind: Kind, bytes: u64) -> String {
    match (kind, bytes) {
        (Kind::Block { .. }, _) => "the device has no sectors (no medium, or nothing attached)".into(),
        (Kind::File, 0) => "the file is empty".into(),
        (Kind::File, _) => format!("the file has {bytes} bytes, less than a sector"),
    }
}
