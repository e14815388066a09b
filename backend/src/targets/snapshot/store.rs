//! The store on its device: read when it is opened, added to by commits, shortened by merges.
//!
//! **Order.** The data of an exception is written first. A commit then has one flush for all exceptions that it is for, and
//! writes their entries so that they are durable when it ends (the kernel's PREFLUSH and FUA). The area behind one that becomes
//! full is zeroed before that flush, so the list always ends where it should. Entries are only ever added behind the last one,
//! or taken away from it backwards; behind the end of the list no entry has a chunk of the store. A crash may tear what is
//! written at a time, and leave entries behind the end, which the list would grow into: they are zeroed when the store is
//! taken up, or before the list changes if the table that took it up only reads.
//!
//! What is on the device is not trusted: a number that leads out of the data chunks, or a chunk that is there twice, refuses the
//! store, and no more than its device has is ever read.

use async_lock::{Mutex, MutexGuard};
use dm_table::SECTOR_SIZE;
use thiserror::Error;

use super::exceptions::{Exceptions, Run};
use super::format::{ENTRY, Entry, Found, HEADER, Header, Layout, VERSION};
use crate::map::Leg;
use crate::targets::{Cx, LONGEST};
use crate::worker::ops::Action;

/// Chunk size of a new store of which nobody says one, in sectors.
const DEFAULT_CHUNK: u64 = 32;

/// What a table says of a store.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whether it outlives the table.
    pub persistent: bool,
    /// Sectors of a chunk; 0 for what the store has.
    pub chunk: u64,
    /// Sectors of its device.
    pub size: u64,
    /// Bytes of a block that its device, and the origin, can be written in.
    pub block: u32,
}

/// Why a store cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The device fails.
    #[error("cannot {doing} at sector {at} of the COW device: errno {errno}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// First sector.
        at: u64,
        /// Why it failed.
        errno: i32,
    },
    /// There is something else on the device.
    #[error("Invalid or corrupt snapshot")]
    Foreign,
    /// It is of another version.
    #[error("unable to handle snapshot disk version {0}")]
    Version(u32),
    /// Its chunk size cannot be.
    #[error("invalid on-disk chunk size {chunk}: {why}.")]
    Chunk {
        /// In sectors.
        chunk: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Its list of exceptions cannot be.
    #[error("exception {n} of the store is wrong: chunk {old} of the origin in chunk {new} of the store, {why}")]
    Entry {
        /// Its place in the list.
        n: u64,
        /// What it says.
        old: u64,
        /// What it says.
        new: u64,
        /// Why that cannot be.
        why: &'static str,
    },
    /// It has no room for a first exception.
    #[error("the COW device has {size} sectors: too few for a store with chunks of {chunk} sectors")]
    Small {
        /// Sectors of the device.
        size: u64,
        /// Sectors of a chunk.
        chunk: u64,
    },
}

impl StoreError {
    /// What the kernel gives for it.
    pub fn errno(&self) -> i32 {
        match self {
            StoreError::Io { errno, .. } => *errno,
            StoreError::Foreign => libc::ENXIO,
            StoreError::Small { .. } => libc::EIO,
            StoreError::Version(_) | StoreError::Chunk { .. } | StoreError::Entry { .. } => libc::EINVAL,
        }
    }
}

/// What opening a store gives.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Which chunks it has.
    pub exceptions: Exceptions,
    /// The first chunk that it can give.
    pub next: u64,
    /// Whether it has lost nothing. If it has, it gives no exceptions either.
    pub valid: bool,
    /// There is nothing on the device yet: [`Store::format`] it before anything else.
    pub new: bool,
    /// Behind the end of the list, and before this byte of the area, there are entries of a commit that a crash has torn:
    /// [`Store::clean`] it before anything else.
    pub torn: Option<u64>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    persistent: bool,
    pub(super) end: Mutex<End>,
}

/// Where the list of exceptions ends.
#[derive(Debug)]
pub struct End {
    pub(super) area: u64,
    // Entries of that area.
    pub(super) entries: u64,
    // The part of the area where the next one goes, as it is on the device.
    pub(super) unit: Vec<u8>,
}

impl End {
    /// The area that it is in.
    pub fn area(&self) -> u64 {
        self.area
    }

    /// Entries of that area.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// The layout that a header tells of, on a device of `size` sectors with blocks of `block` bytes.
///
/// # Errors
/// There can be no such store.
pub fn layout(header: &Header, size: u64, block: u32) -> Result<Layout, StoreError> {
    if header.version != VERSION {
        return Err(StoreError::Version(header.version));
    }
    let chunk = u64::from(header.chunk);
    Layout::new(chunk, size, block).map_err(|why| StoreError::Chunk { chunk, why })
}

/// What a header has to say to what a table wants.
///
/// # Errors
/// It cannot be used.
fn wanted_layout(header: &Header, wanted: &Wanted) -> Result<Layout, StoreError> {
    let layout = layout(header, wanted.size, wanted.block);
    let (chunk, asked) = (u64::from(header.chunk), wanted.chunk);
    if header.version == VERSION && asked != chunk && asked != 0 {
        log::warn!("persistent snapshot: chunk size {chunk} in device metadata overrides table chunk size of {asked}.");
    }
    layout
}

/// The layout of a store that is to be.
fn new_layout(wanted: &Wanted) -> Result<Layout, StoreError> {
    let chunk = match wanted.chunk {
        0 => DEFAULT_CHUNK.max(u64::from(wanted.block) / SECTOR_SIZE),
        chunk => chunk,
    };
    let layout = Layout::new(chunk, wanted.size, wanted.block).map_err(|why| StoreError::Chunk { chunk, why })?;
    if wanted.persistent && !layout.has_area(0) {
        return Err(StoreError::Small { size: wanted.size, chunk });
    }
    Ok(layout)
}

/// Reads `len` bytes, at most [`LONGEST`].
async fn read(cx: &Cx, cow: &Leg, at: u64, len: u64) -> Result<Vec<u8>, StoreError> {
    let failed = |errno| StoreError::Io { doing: "read metadata", at, errno };
    let lease = cx.buffer(len as usize).await.map_err(failed)?;
    let slice = lease.slice().part(0, len as usize);
    cx.io(cow, Action::Read, at, len / SECTOR_SIZE, vec![slice]).await.map_err(failed)?;
    let mut bytes = vec![0; len as usize];
    slice.read(&mut bytes);
    Ok(bytes)
}

/// Writes so many bytes, of which the first are `bytes` and the others zero; at most [`LONGEST`].
async fn write(cx: &Cx, cow: &Leg, at: u64, bytes: &[u8], len: u64, durable: bool) -> Result<(), i32> {
    let lease = cx.buffer(len as usize).await?;
    let slice = lease.slice().part(0, len as usize);
    slice.fill_zero();
    slice.write(bytes);
    cx.io(cow, Action::Write { durable }, at, len / SECTOR_SIZE, vec![slice]).await
}

/// What is on a device; nothing is changed.
///
/// # Errors
/// It cannot be used as a store.
pub async fn peek(cx: &Cx, cow: &Leg, wanted: &Wanted) -> Result<Option<(Header, Layout)>, StoreError> {
    if !wanted.persistent {
        return new_layout(wanted).map(|_| None);
    }
    let block = u64::from(wanted.block).max(SECTOR_SIZE);
    if wanted.size * SECTOR_SIZE < block {
        return Err(StoreError::Small { size: wanted.size, chunk: wanted.chunk });
    }
    let first = read(cx, cow, 0, block).await?;
    let header = first.first_chunk::<HEADER>().map_or(Found::Foreign, Header::find);
    match header {
        Found::Nothing => new_layout(wanted).map(|_| None),
        Found::Foreign => Err(StoreError::Foreign),
        Found::Header(header) => Ok(Some((header, wanted_layout(&header, wanted)?))),
    }
}

impl Store {
    /// Opens what is on a device; nothing is changed.
    ///
    /// # Errors
    /// It cannot be used.
    pub async fn open(cx: &Cx, cow: &Leg, wanted: &Wanted) -> Result<Opened, StoreError> {
        let Some((header, layout)) = peek(cx, cow, wanted).await? else {
            let layout = new_layout(wanted)?;
            let next = if wanted.persistent { layout.first() } else { 0 };
            let store = Store::new(layout, wanted.persistent);
            return Ok(Opened {
                store,
                exceptions: Exceptions::default(),
                next,
                valid: true,
                new: wanted.persistent,
                torn: None,
            });
        };
        let store = Store::new(layout, true);
        let (exceptions, next) = (Exceptions::default(), layout.first());
        let mut opened = Opened { store, exceptions, next, valid: header.valid, new: false, torn: None };
        if header.valid {
            opened.read_all(cx, cow).await?;
        }
        Ok(opened)
    }

    pub(super) fn new(layout: Layout, persistent: bool) -> Store {
        let unit = vec![0; layout.unit() as usize];
        Store { layout, persistent, end: Mutex::new(End { area: 0, entries: 0, unit }) }
    }

    /// Where things are in it.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether it outlives the table: if not, there is nothing on the device that describes it.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Writes an empty store: the header when there is no more to be done.
    ///
    /// # Errors
    /// The device's.
    pub async fn format(&self, cx: &Cx, cow: &Leg) -> Result<(), StoreError> {
        let failed = |errno| StoreError::Io { doing: "write a new store", at: 0, errno };
        self.zero(cx, cow, self.layout.area(0)).await.map_err(failed)?;
        self.zero(cx, cow, 0).await.map_err(failed)?;
        cx.io(cow, Action::Flush, 0, 0, Vec::new()).await.map_err(failed)?;
        self.header(cx, cow, true).await.map_err(failed)
    }

    /// Writes the header.
    ///
    /// # Errors
    /// The device's.
    pub async fn header(&self, cx: &Cx, cow: &Leg, valid: bool) -> Result<(), i32> {
        if !self.persistent {
            return Ok(());
        }
        let chunk = u32::try_from(self.layout.chunk()).unwrap_or(u32::MAX);
        let header = Header { valid, version: VERSION, chunk };
        write(cx, cow, 0, &header.bytes(), self.layout.unit(), true).await
    }

    /// Zeroes what is behind the end of the list, up to a byte of the area: see [`Opened::torn`]. The end stays where it is
    /// whatever a crash leaves of this.
    ///
    /// # Errors
    /// The device's.
    pub async fn clean(&self, cx: &Cx, cow: &Leg, end: &End, upto: u64) -> Result<(), StoreError> {
        let (first, _) = self.place(end.area, end.entries);
        let upto = self.layout.area(end.area) * self.layout.chunk() + upto / SECTOR_SIZE;
        let failed = |at| move |errno| StoreError::Io { doing: "write metadata", at, errno };
        write(cx, cow, first, &end.unit, self.layout.unit(), false).await.map_err(failed(first))?;
        let mut at = first + self.layout.unit() / SECTOR_SIZE;
        while at < upto {
            let len = ((upto - at) * SECTOR_SIZE).min(LONGEST as u64);
            write(cx, cow, at, &[], len, false).await.map_err(failed(at))?;
            at += len / SECTOR_SIZE;
        }
        cx.io(cow, Action::Flush, 0, 0, Vec::new()).await.map_err(failed(first))
    }

    /// Zeroes a chunk.
    async fn zero(&self, cx: &Cx, cow: &Leg, chunk: u64) -> Result<(), i32> {
        let (at, bytes) = (chunk * self.layout.chunk(), self.layout.chunk_bytes());
        let mut done = 0;
        while done < bytes {
            let len = (bytes - done).min(LONGEST as u64);
            write(cx, cow, at + done / SECTOR_SIZE, &[], len, false).await?;
            done += len;
        }
        Ok(())
    }

    /// Where an entry's unit is on the device, in sectors, and the entry's first byte in it.
    fn place(&self, area: u64, entry: u64) -> (u64, usize) {
        let (unit, byte) = (self.layout.unit(), entry * ENTRY);
        let at = self.layout.area(area) * self.layout.chunk() + byte / unit * (unit / SECTOR_SIZE);
        (at, (byte % unit) as usize)
    }

    /// Chunks that follow each other, from `next` on, at most `most`; none when it is full. The last chunk of an area is not
    /// given where the next area would be behind the end of the device: the kernel could not read that store.
    pub fn give(&self, next: u64, most: u64) -> Option<(u64, u64)> {
        let layout = self.layout;
        let left = layout.chunks().checked_sub(next)?;
        let len = match self.persistent {
            true => {
                let here = layout.metadata_after(next) - next;
                let here = if layout.metadata_after(next) < layout.chunks() { here } else { here - 1 };
                here.min(left)
            }
            false => left,
        };
        (len > 0).then(|| (next, len.min(most)))
    }

    /// The chunk that is given after those before `chunk`.
    pub fn after(&self, chunk: u64) -> u64 {
        if self.persistent { self.layout.next(chunk) } else { chunk }
    }

    /// The area that the list ends in, of a store that nobody else has yet.
    pub fn area_now(&mut self) -> u64 {
        self.end.get_mut().area
    }

    /// The end of the list, for who changes it.
    pub async fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().await
    }

    /// Adds exceptions, of which the data has been written, in their order. When it ends they outlast anything.
    ///
    /// # Errors
    /// The device's: it is not known what the store has then, so it must be given up.
    pub async fn commit(&self, cx: &Cx, cow: &Leg, end: &mut End, runs: &[Run]) -> Result<(), i32> {
        let more: u64 = runs.iter().map(|run| run.len).sum();
        for area in end.area + 1..=end.area + (end.entries + more) / self.layout.entries() {
            if self.layout.has_area(area) {
                self.zero(cx, cow, self.layout.area(area)).await?;
            }
        }
        cx.io(cow, Action::Flush, 0, 0, Vec::new()).await?;
        for run in runs {
            for n in 0..run.len {
                self.add(cx, cow, end, Entry { old: run.old + n, new: run.new + n }).await?;
            }
        }
        if self.place(end.area, end.entries).1 != 0 {
            let (at, _) = self.place(end.area, end.entries - 1);
            write(cx, cow, at, &end.unit, self.layout.unit(), true).await?;
        }
        Ok(())
    }

    /// Adds one, and writes the unit that it makes full.
    async fn add(&self, cx: &Cx, cow: &Leg, end: &mut End, entry: Entry) -> Result<(), i32> {
        let (at, byte) = self.place(end.area, end.entries);
        let place = byte..byte + ENTRY as usize;
        end.unit.get_mut(place).ok_or(libc::ENOSPC)?.copy_from_slice(&entry.bytes());
        end.entries += 1;
        if byte + ENTRY as usize == end.unit.len() {
            write(cx, cow, at, &end.unit, self.layout.unit(), true).await?;
            end.unit.fill(0);
            if end.entries == self.layout.entries() {
                (end.area, end.entries) = (end.area + 1, 0);
            }
        }
        Ok(())
    }

    /// The area that the last exception is in, and how many that area has. None when there is no exception.
    fn last_area(&self, end: &End) -> Option<(u64, u64)> {
        match end.entries {
            0 => Some((end.area.checked_sub(1)?, self.layout.entries())),
            entries => Some((end.area, entries)),
        }
    }

    /// The last exceptions of the list, at most `most` and all of one area; the last first, those that follow each other both
    /// in the origin and in the store as one. None of them where there are none at all.
    ///
    /// # Errors
    /// The device's, or an entry that cannot be.
    pub async fn tail(&self, cx: &Cx, cow: &Leg, end: &End, most: u64) -> Result<Vec<Run>, StoreError> {
        let Some((area, entries)) = self.last_area(end) else { return Ok(Vec::new()) };
        let mut runs: Vec<Run> = Vec::new();
        let mut unit: Option<(u64, Vec<u8>)> = None;
        for n in (entries.saturating_sub(most)..entries).rev() {
            let (at, byte) = self.place(area, n);
            let bytes = match &mut unit {
                Some((known, bytes)) if *known == at => bytes,
                other => &mut other.insert((at, read(cx, cow, at, self.layout.unit()).await?)).1,
            };
            let entry = bytes.get(byte..).and_then(Entry::read);
            let entry = entry.filter(|entry| self.layout.is_data(entry.new) && entry.old < u64::MAX);
            let why = "which is not what was read before";
            let Entry { old, new } = entry.ok_or(StoreError::Entry { n, old: 0, new: 0, why })?;
            match runs.last_mut() {
                Some(run) if old.checked_add(1) == Some(run.old) && new + 1 == run.new => {
                    *run = Run { old, new, len: run.len + 1 };
                }
                _ => runs.push(Run { old, new, len: 1 }),
            }
        }
        Ok(runs)
    }

    /// Takes the last `n` exceptions off the list, which are all in one area. When it ends that outlasts anything. What
    /// was in the store must be in the origin durably by then: only the store's own device is flushed here.
    ///
    /// # Errors
    /// The device's.
    pub async fn take_back(&self, cx: &Cx, cow: &Leg, end: &mut End, n: u64) -> Result<(), StoreError> {
        let failed = |at, errno| StoreError::Io { doing: "write metadata", at, errno };
        let last = self.last_area(end).and_then(|(area, entries)| Some((area, entries, entries.checked_sub(n)?)));
        let (area, mut entries, left) = last.ok_or(failed(0, libc::EINVAL))?;
        cx.io(cow, Action::Flush, 0, 0, Vec::new()).await.map_err(|errno| failed(0, errno))?;
        // Backwards, so that there is never an entry behind the end.
        while entries > left {
            let (at, byte) = self.place(area, entries - 1);
            let here = byte as u64 / ENTRY + 1;
            let keep = here - here.min(entries - left);
            let mut unit = read(cx, cow, at, self.layout.unit()).await?;
            // The second numbers alone: a write that stops between the two of an entry must not make another one of it.
            for entry in unit.chunks_exact_mut(ENTRY as usize).skip(keep as usize) {
                entry[ENTRY as usize / 2..].fill(0);
            }
            write(cx, cow, at, &unit, self.layout.unit(), true).await.map_err(|errno| failed(at, errno))?;
            entries -= here - keep;
            unit[(keep * ENTRY) as usize..].fill(0);
            *end = End { area, entries, unit };
        }
        Ok(())
    }
}
