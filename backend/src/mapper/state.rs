//! What a process that is started again comes back with: its devices with their live tables, in a directory of its own.
//!
//! The state is a file of JSON that is only ever replaced as a whole. A new one is written beside it and made durable
//! ([`StateDir::prepare`]), takes its place by a rename ([`Prepared::commit`]), and the rename is made durable
//! ([`Committed::settle`]). Of these only the rename is done while a guest rests: it waits for no disk, or hardly ever.
//! Whoever looks, after a kill or a loss of power at whatever moment, finds the old state or the new one, each whole.
//!
//! A state that is there and cannot be read is never taken for none: a process that then came back with the table of its
//! command line would serve a guest a disk of last year.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::device::{Patience, holder};

/// Version of the file that is written, and the only one that is read.
const VERSION: u64 = 1;
/// The state.
const FILE: &str = "state.json";
/// Locked by the process that has the directory.
const LOCK: &str = "lock";
/// How files begin and end that are not the state yet.
const UNFINISHED: (&str, &str) = ("state-", ".new");
/// Longest state that is read, in bytes: tables of as many lines as a device can have, many times over.
const LONGEST: u64 = 1 << 30;

/// The devices of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Lower ones before those that lie on them.
    pub devices: Vec<Kept>,
}

/// A device with a live table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Its name, as on the control socket.
    pub name: String,
    /// Its uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its minor number.
    pub minor: u32,
    /// Whether its table is read-only.
    pub read_only: bool,
    /// Its lines as they were loaded; devices of this process as `/dev/mapper/NAME`.
    pub table: String,
    /// Directory in which its relative paths begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Its answer to GET_ID, which it keeps whatever it is called later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Path of its socket, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u64,
    devices: Vec<Kept>,
}

/// What a file of whatever version holds.
#[derive(Deserialize)]
struct OfAny {
    version: u64,
}

/// Why the state cannot be kept, or not be had back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory is another process's.
    #[error("--state-dir: {} is in use by {who}; stop that process, or give this one a directory of its own", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        who: String,
        /// Nobody who lives was found to have it.
        passing: bool,
    },
    /// Others than this process's user could put a state there.
    #[error(
        "--state-dir: {} {why}, and could make this process serve any file; `chown` it to this process's user and \
         `chmod go-w` it, or use another directory", path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Who could.
        why: String,
    },
    /// It is there, and is no state.
    #[error(
        "{}: this is no state that can be read ({why}), so it is not known which tables were served last; put a good copy \
         there, or move the file away to start with the tables of the command line", path.display()
    )]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is another program's.
    #[error(
        "{}: this state has version {found}, and this program reads version {VERSION}; start the program that wrote it, or \
         move the file away to start with the tables of the command line", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// Another state has been committed since this one was made.
    #[error("the devices have changed meanwhile")]
    Outrun,
    /// The system's refusal.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A directory that this process keeps its state in. No other process has it meanwhile.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    dir: File,
    turn: Mutex<Turn>,
    // No change is being made any more.
    made: Condvar,
    _lock: File,
}

#[derive(Debug, Default)]
struct Turn {
    // States that were committed, and prepared, by this process.
    committed: u64,
    prepared: u64,
    // What the last one tells of may not have been made yet, so that whoever looks at the devices may not see it.
    making: bool,
}

impl State {
    /// What two devices have that only one can have.
    fn doubled(&self) -> Option<String> {
        let mut seen = HashSet::new();
        let uuid = |kept: &Kept| kept.uuid.as_ref().map(|uuid| format!("uuid {uuid:?}"));
        let marks =
            |kept: &Kept| [Some(format!("name {:?}", kept.name)), Some(format!("minor {}", kept.minor)), uuid(kept)];
        self.devices.iter().flat_map(marks).flatten().find(|mark| !seen.insert(mark.clone()))
    }
}

impl StateDir {
    /// Opens the directory, which is made if it is missing. What was not finished there is removed. A predecessor that was
    /// killed and has not quite ended is waited for.
    ///
    /// # Errors
    /// The directory is another's, or cannot be had.
    pub fn open(path: &Path, patience: Patience) -> Result<StateDir, StateError> {
        let failed = |doing| failed(doing, path);
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make the directory (--state-dir)")(error));
            }
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let dir = File::from(opened.map_err(|errno| failed("open the directory (--state-dir)")(errno.into()))?);
        check_owner(&dir, path)?;
        let lock =
            patience.retry(|| lock(&dir, path), |error| matches!(error, StateError::Taken { passing: true, .. }))?;
        remove_unfinished(&dir).map_err(failed("remove what was not finished in"))?;
        Ok(StateDir { path: path.to_owned(), dir, turn: Mutex::default(), made: Condvar::new(), _lock: lock })
    }

    /// The state that was committed last; none if there never was one.
    ///
    /// # Errors
    /// There is one that cannot be read.
    pub fn read(&self) -> Result<Option<State>, StateError> {
        let path = self.path.join(FILE);
        let failed = |source: io::Error| failed("read", &path)(source);
        let garbage = |why: String| StateError::Garbage { path: path.clone(), why };
        // Not what a FIFO gives, should there be one.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, FILE, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(garbage("it is a symbolic link".into())),
            Err(errno) => return Err(failed(errno.into())),
        };
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(garbage("it is no regular file".into()));
        }
        if meta.len() > LONGEST {
            return Err(garbage(format!("it has {} bytes", meta.len())));
        }
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => garbage("it is not UTF-8".into()),
            _ => failed(error),
        })?;
        // What another version has besides, this one need not understand.
        let any: OfAny = serde_json::from_str(&text).map_err(|error| garbage(error.to_string()))?;
        if any.version != VERSION {
            return Err(StateError::Version { path, found: any.version });
        }
        let Stored { devices, .. } = serde_json::from_str(&text).map_err(|error| garbage(error.to_string()))?;
        let state = State { devices };
        match state.doubled() {
            Some(what) => Err(garbage(format!("two devices have the {what}"))),
            None => Ok(Some(state)),
        }
    }

    /// Writes a state, durably, that is not the one yet. `state` is called when every change is made that a committed state
    /// tells of; until another is committed, this one can be.
    ///
    /// # Errors
    /// No space, or another of the system's. The old state is what it was.
    pub fn prepare(&self, state: impl FnOnce() -> State) -> Result<Prepared<'_>, StateError> {
        let (after, number) = {
            let turn = self.made.wait_while(self.turn(), |turn| turn.making);
            let mut turn = turn.unwrap_or_else(PoisonError::into_inner);
            turn.prepared += 1;
            (turn.committed, turn.prepared)
        };
        let text = serde_json::to_string_pretty(&Stored { version: VERSION, devices: state().devices });
        let name = format!("{}{number}{}", UNFINISHED.0, UNFINISHED.1);
        let path = self.path.join(&name);
        let text = text.map_err(|error| failed("write", &path)(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(|errno| failed("make", &path)(errno.into()))?);
        let prepared = Prepared { dir: self, name: Some(name), after };
        let written = file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n"));
        written.and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
        Ok(prepared)
    }

    /// Prepares and commits where no guest waits. `state` may be called several times.
    ///
    /// # Errors
    /// The system's. The old state is what it was.
    pub fn commit(&self, state: impl Fn() -> State) -> Result<Committed<'_>, StateError> {
        loop {
            match self.prepare(&state)?.commit() {
                Err(StateError::Outrun) => {}
                committed => return committed,
            }
        }
    }

    /// The same for a change that is made already.
    ///
    /// # Errors
    /// The system's. The state that is kept is the old one, or the new one though a loss of power may bring the old one back.
    pub fn save(&self, state: impl Fn() -> State) -> Result<(), StateError> {
        self.commit(state)?.settle()
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A state that is written but not the one that is kept. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Prepared<'a> {
    dir: &'a StateDir,
    // None when it has been committed.
    name: Option<String>,
    after: u64,
}

impl<'a> Prepared<'a> {
    /// Makes it the state. Waits for nothing.
    ///
    /// # Errors
    /// [`StateError::Outrun`] if it is to be prepared again, or the system's. The old state is what it was.
    pub fn commit(mut self) -> Result<Committed<'a>, StateError> {
        let dir = self.dir;
        let mut turn = dir.turn();
        if turn.committed != self.after {
            return Err(StateError::Outrun);
        }
        if let Some(name) = &self.name {
            rustix::fs::renameat(&dir.dir, name, &dir.dir, FILE)
                .map_err(|errno| failed("replace", &dir.path.join(FILE))(errno.into()))?;
        }
        turn.committed += 1;
        turn.making = true;
        self.name = None;
        Ok(Committed { dir, made: false })
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What stays is removed when the directory is opened again.
            let _ = rustix::fs::unlinkat(&self.dir.dir, name, AtFlags::empty());
        }
    }
}

/// A state that is the one now, unless power is lost soon. Kept until the change that it tells of is made: others look at
/// the devices, for their states, only then.
#[derive(Debug)]
#[must_use = "a loss of power may bring the old state back until it is settled"]
pub struct Committed<'a> {
    dir: &'a StateDir,
    made: bool,
}

impl Committed<'_> {
    /// The change is made: whoever looks at the devices sees it.
    pub fn made(&mut self) {
        if !std::mem::replace(&mut self.made, true) {
            self.dir.turn().making = false;
            self.dir.made.notify_all();
        }
    }

    /// The change is made. Waits until not even a loss of power brings the old state back.
    ///
    /// # Errors
    /// The system's. The state is in place, as far as this kernel is concerned.
    pub fn settle(self) -> Result<(), StateError> {
        let dir = self.dir;
        drop(self);
        dir.dir.sync_all().map_err(failed("make durable that the state was replaced in", &dir.path))
    }
}

impl Drop for Committed<'_> {
    fn drop(&mut self) {
        self.made();
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { doing, path, source }
}

/// A state says which files are served, with the rights of this process.
fn check_owner(dir: &File, path: &Path) -> Result<(), StateError> {
    let meta = dir.metadata().map_err(failed("examine", path))?;
    let user = rustix::process::geteuid().as_raw();
    let why = match (meta.uid(), meta.mode()) {
        (owner, _) if owner != user && owner != 0 => format!("belongs to user {owner}, who is not this process's"),
        (_, mode) if mode & 0o022 != 0 => format!("can be written by others than its owner (mode {:o})", mode & 0o777),
        _ => return Ok(()),
    };
    Err(StateError::Open { path: path.to_owned(), why })
}

/// The lock of a directory. It is the process's own as long as any of it is left in the kernel.
fn lock(dir: &File, path: &Path) -> Result<File, StateError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(file.map_err(|errno| failed("open", &path.join(LOCK))(errno.into()))?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            let meta = file.metadata().map_err(failed("examine", &path.join(LOCK)))?;
            let holder = holder::of_lock((meta.dev(), meta.ino()), 0, file.as_raw_fd());
            Err(StateError::Taken { path: path.to_owned(), who: holder.to_string(), passing: holder.is_passing() })
        }
        Err(errno) => Err(failed("lock", &path.join(LOCK))(errno.into())),
    }
}

fn remove_unfinished(dir: &File) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let unfinished = name.starts_with(UNFINISHED.0.as_bytes()) && name.ends_with(UNFINISHED.1.as_bytes());
        if unfinished && entry.file_type() != FileType::Directory {
            rustix::fs::unlinkat(dir, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(())
}
