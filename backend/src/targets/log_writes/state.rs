//! What a log's writers share: what is held back, what comes next, and the memory of both.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::Mutex as AsyncMutex;
use dm_table::SECTOR_SIZE;
use event_listener::Event;

use super::Writer;
use crate::event::Events;
use crate::guest::{Buffer, HostSlice};
use crate::log_writes::{Flags, Header};
use crate::map::Key;
use crate::targets::Shared;

/// Entries that are written to the log at a time.
pub const BATCH: usize = 64;
/// Bytes at which a batch is full.
const FULL: u64 = 4 << 20;

/// What an entry is followed by.
pub enum Data {
    /// Nothing.
    None,
    /// A mark's text, in its own block.
    Text(Vec<u8>),
    /// Zeroes.
    Zeroes,
    /// So many bytes of the buffer that it holds.
    Held(usize),
}

/// One of the log, or one that is to be.
pub struct Entry {
    pub header: Header,
    data: Data,
    held: Option<Held>,
    // First sector in the log, once it has one.
    at: AtomicU64,
}

impl Entry {
    pub fn new(header: Header, data: Data, held: Option<Held>) -> Entry {
        Entry { header, data, held, at: AtomicU64::new(0) }
    }

    /// Takes over room that others use, too.
    pub fn keep(&mut self, held: Held) {
        self.held = Some(held);
    }

    pub fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    pub fn text(&self) -> &[u8] {
        match &self.data {
            Data::Text(text) => text,
            _ => &[],
        }
    }

    pub fn data_sectors(&self, state: &State) -> u64 {
        self.header.data_blocks() * state.block_sectors()
    }

    /// Its data, in order.
    pub fn slices(&self, state: &State, zeroes: &HostSlice, mut f: impl FnMut(HostSlice)) {
        match &self.data {
            Data::Held(bytes) => {
                let buffer = self.held.as_ref().and_then(|held| held.buffer.as_ref());
                buffer.into_iter().for_each(|buffer| f(buffer.slice().part(0, *bytes)));
            }
            Data::Zeroes => {
                let mut left = (self.data_sectors(state) * SECTOR_SIZE) as usize;
                while left > 0 {
                    let part = zeroes.part(0, left);
                    left -= part.len();
                    f(part);
                }
            }
            _ => {}
        }
    }

    /// Blocks of the device.
    fn range(&self) -> Range<u64> {
        let Header { sector, nr_sectors, .. } = self.header;
        sector..sector.saturating_add(nr_sectors)
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        let own = self.range();
        own.start < range.end && range.start < own.end
    }
}

/// Memory of all entries of a log.
pub struct Budget {
    most: usize,
    of: Mutex<Memory>,
    /// There may be room, or something that can make some.
    pub changed: Event,
}

impl Budget {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Memory {
    used: usize,
    // By the logarithm of their length.
    spare: Vec<Vec<Buffer>>,
    kept: usize,
}

/// A part of it.
pub struct Held {
    bytes: usize,
    buffer: Option<Buffer>,
    budget: Arc<Budget>,
}

impl Held {
    /// Gets a buffer of as many bytes as it counts for, a power of two. It is there as long as this is.
    pub fn fill(&mut self) -> io::Result<HostSlice> {
        let class = self.bytes.trailing_zeros() as usize;
        let spare = {
            let mut memory = self.budget.memory();
            let spare = memory.spare.get_mut(class).and_then(Vec::pop);
            memory.kept -= spare.as_ref().map_or(0, |_| self.bytes);
            spare
        };
        let buffer = spare.map_or_else(|| Buffer::new(self.bytes), Ok)?;
        Ok(self.buffer.insert(buffer).slice())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut memory = self.budget.memory();
        memory.used -= self.bytes;
        if let Some(buffer) = self.buffer.take()
            && memory.kept + self.bytes <= self.budget.most / 4
        {
            let class = self.bytes.trailing_zeros() as usize;
            memory.kept += self.bytes;
            let classes = memory.spare.len().max(class + 1);
            memory.spare.resize_with(classes, Vec::new);
            memory.spare[class].push(buffer);
        }
        drop(memory);
        self.budget.changed.notify(usize::MAX);
    }
}

/// See the module's text.
pub struct State {
    /// Bytes of a block.
    pub block: u32,
    end: u64,
    /// Memory.
    pub budget: Arc<Budget>,
    inner: Mutex<Inner>,
    spilling: AtomicBool,
    /// Who holds it writes to the log.
    pub writer: AsyncMutex<Writer>,
    /// There is something for the background.
    pub wake: Event,
    // Where it is known whose the log is.
    claim: Mutex<Option<(Arc<Shared>, Key)>>,
    // Its device's.
    events: Mutex<Option<Arc<Events>>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.status())
    }
}

struct Inner {
    enabled: bool,
    // Logged entries, and the next free sector of the log.
    entries: u64,
    next: u64,
    // What has ended and is not known to be durable, by its number.
    unflushed: VecDeque<(u64, Entry)>,
    ended: u64,
    // What has its place in the log and is not there yet.
    queue: VecDeque<Arc<Entry>>,
    written: u64,
    marks: usize,
    live: bool,
    stopped: bool,
}

/// Ends a spill where it is dropped.
pub struct Spilling<'a>(&'a State);

impl Drop for Spilling<'_> {
    fn drop(&mut self) {
        self.0.spilling.store(false, Ordering::Release);
        self.0.budget.changed.notify(usize::MAX);
    }
}

impl State {
    pub fn new(writer: Writer, block: u32, end: u64, most: usize) -> State {
        let inner = Inner {
            enabled: true,
            entries: 0,
            next: u64::from(block) / SECTOR_SIZE,
            unflushed: VecDeque::new(),
            ended: 0,
            queue: VecDeque::new(),
            written: 0,
            marks: 0,
            live: false,
            stopped: false,
        };
        State {
            block,
            end,
            budget: Arc::new(Budget { most, of: Mutex::default(), changed: Event::new() }),
            inner: Mutex::new(inner),
            spilling: AtomicBool::new(false),
            writer: AsyncMutex::new(writer),
            wake: Event::new(),
            claim: Mutex::default(),
            events: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sectors of a block.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.block) / SECTOR_SIZE
    }

    pub fn enabled(&self) -> bool {
        self.inner().enabled
    }

    /// Room for so many bytes, where there is that. What is larger than all room there is gets it alone.
    pub fn take(&self, bytes: usize) -> Option<Held> {
        let mut memory = self.budget.memory();
        if memory.used > 0 && memory.used + bytes > self.budget.most {
            return None;
        }
        memory.used += bytes;
        Some(Held { bytes, buffer: None, budget: self.budget.clone() })
    }

    /// Where there is something that can be made durable, for the first who asks.
    pub fn begin_spill(&self) -> Option<Spilling<'_>> {
        if self.inner().unflushed.is_empty() || self.spilling.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Spilling(self))
    }

    /// How many writes have ended by now.
    pub fn before(&self) -> u64 {
        self.inner().ended
    }

    /// What had ended `before` a flush is durable. Returns up to where the log is to be written.
    pub fn flushed(&self, before: u64, flush: Option<Entry>) -> u64 {
        let mut inner = self.inner();
        while inner.unflushed.front().is_some_and(|(number, _)| *number < before)
            && let Some((_, entry)) = inner.unflushed.pop_front()
        {
            self.enter(&mut inner, entry);
        }
        if let Some(flush) = flush {
            self.enter(&mut inner, flush);
        }
        inner.goal()
    }

    /// Writes have ended. Returns up to where the log is to be written, if they were durable.
    pub fn ended(&self, entries: Vec<Entry>) -> Option<u64> {
        let mut inner = self.inner();
        if !inner.enabled {
            drop(inner);
            return None;
        }
        let mut goal = None;
        for entry in entries {
            if entry.header.flags.has(Flags::FUA) {
                self.supersede(&mut inner, &entry);
                self.enter(&mut inner, entry);
                goal = Some(inner.goal());
            } else {
                let number = inner.ended;
                inner.ended += 1;
                inner.unflushed.push_back((number, entry));
            }
        }
        drop(inner);
        // Whoever waits for room can make some now.
        self.budget.changed.notify(usize::MAX);
        goal
    }

    /// What a durable write was written over comes before it, or a replay would bring it back; and so does what that was
    /// written over, and so on.
    fn supersede(&self, inner: &mut Inner, durable: &Entry) {
        if !inner.unflushed.iter().any(|(_, entry)| entry.overlaps(&durable.range())) {
            return;
        }
        // Each adjoins those that came after it, so all of them are one range.
        let mut over = durable.range();
        let (mut before, mut rest) = (VecDeque::new(), VecDeque::new());
        for (number, entry) in std::mem::take(&mut inner.unflushed).into_iter().rev() {
            if entry.overlaps(&over) {
                let range = entry.range();
                over = over.start.min(range.start)..over.end.max(range.end);
                before.push_front(entry);
            } else {
                rest.push_front((number, entry));
            }
        }
        inner.unflushed = rest;
        before.into_iter().for_each(|entry| self.enter(inner, entry));
    }

    /// Gives an entry its place in the log.
    fn enter(&self, inner: &mut Inner, entry: Entry) {
        if !inner.enabled {
            return;
        }
        entry.at.store(inner.next, Ordering::Relaxed);
        inner.next += self.block_sectors() + entry.data_sectors(self);
        if inner.next >= self.end {
            inner.disable("Ran out of space on the logdev");
            return;
        }
        inner.entries += 1;
        inner.queue.push_back(Arc::new(entry));
    }

    /// A mark comes to the log behind what is there, unless so many wait. The background is to write it.
    pub fn mark(&self, mark: Entry, most: usize) -> Option<u64> {
        let mut inner = self.inner();
        if inner.marks >= most {
            return None;
        }
        let before = inner.queue.len();
        self.enter(&mut inner, mark);
        inner.marks += inner.queue.len() - before;
        let goal = inner.goal();
        drop(inner);
        self.wake.notify(usize::MAX);
        Some(goal)
    }

    /// What is to be written next, one behind the other; nothing once `goal` is reached.
    pub fn batch(&self, goal: u64) -> Option<Vec<Arc<Entry>>> {
        let inner = self.inner();
        if inner.written >= goal {
            return None;
        }
        let mut bytes = 0;
        let within = |entry: &&Arc<Entry>| {
            let fits = bytes < FULL;
            bytes += entry.data_sectors(self) * SECTOR_SIZE;
            fits
        };
        let batch: Vec<_> = inner.queue.iter().take(BATCH).take_while(within).cloned().collect();
        (!batch.is_empty()).then_some(batch)
    }

    /// Entries that are in the log.
    pub fn count_written(&self) -> u64 {
        self.inner().written
    }

    /// A batch is in the log, or is not and nothing will be any more.
    pub fn written(&self, batch: &[Arc<Entry>], result: Result<(), i32>) {
        let mut gone = VecDeque::new();
        let mut inner = self.inner();
        for _ in batch {
            gone.extend(inner.queue.pop_front());
        }
        inner.written += batch.len() as u64;
        inner.marks -= batch.iter().filter(|entry| entry.header.flags.has(Flags::MARK)).count();
        if let Err(errno) = result {
            gone.append(&mut inner.queue);
            (inner.written, inner.marks) = (inner.entries, 0);
            // At once: what would come next would be counted, behind what is not there.
            inner.disable(&format!("Error writing log block, error={errno}"));
        }
        drop(inner);
        drop(gone);
        self.budget.changed.notify(usize::MAX);
    }

    /// Nothing is logged any more. What has its place in the log still comes there.
    pub fn disable(&self, why: &str) {
        self.inner().disable(why);
        self.budget.changed.notify(usize::MAX);
    }

    /// It has the log, as far as others know.
    pub fn claims(&self, shared: &Arc<Shared>, key: Key) {
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = Some((shared.clone(), key));
    }

    /// Where that is known.
    pub fn claimed(&self) -> Option<(Arc<Shared>, Key)> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whose target it is.
    pub fn set_events(&self, events: &Arc<Events>) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.clone());
    }

    /// Where that is known.
    pub fn events(&self) -> Option<Arc<Events>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It is live.
    pub fn live(&self) {
        self.inner().live = true;
    }

    /// It is no longer, and what was held back comes to the log as it is. Tells whether it was live.
    pub fn end(&self) -> bool {
        let mut inner = self.inner();
        let was = std::mem::replace(&mut inner.live, false);
        while was && let Some((_, entry)) = inner.unflushed.pop_front() {
            self.enter(&mut inner, entry);
        }
        was
    }

    pub fn stop(&self, stopped: bool) {
        self.inner().stopped = stopped;
        self.wake.notify(usize::MAX);
    }

    pub fn is_stopped(&self) -> bool {
        self.inner().stopped
    }

    /// The kernel's: logged entries, and the last sector of the log that has been given away.
    pub fn status(&self) -> String {
        let inner = self.inner();
        let disabled = if inner.enabled { "" } else { " logging_disabled" };
        format!("{} {}{disabled}", inner.entries, inner.next - 1)
    }
}

impl Inner {
    fn disable(&mut self, why: &str) {
        // Those that were under way when it ended have their reasons, too.
        if self.enabled {
            log::error!("log-writes: {why}");
        }
        self.enabled = false;
        // What waits for a flush has no other place to go to.
        self.unflushed = VecDeque::new();
    }

    /// Entries that have a place in the log.
    fn goal(&self) -> u64 {
        self.written + self.queue.len() as u64
    }
}
