//! `log-writes`: writes go to a device, and to a log of them in the order in which they became durable (dm-log-writes.c).
//!
//! **What is in the log, and where.** A write or discard that has ended is held back until a flush ends that was asked for
//! after that: then those that the flush covers come to the log, in the order in which they ended, and the flush behind them.
//! A durable write (FUA) comes to the log when it ends, a mark when its message comes. The format is that of
//! [`crate::log_writes`]. A log begins anew with the table; what was in it is lost with the first entry.
//!
//! **When.** A guest is told of a write when the device has it, and of a flush or durable write when the log has it too, so a
//! log is behind by what no flush has covered, and by nothing else. Entries are written first and counted in the super block
//! then, with every flush, durable write and mark. So a process that is killed leaves a log that ends with the last flush
//! or durable write its guest was told of, or a later one, or a mark; the entries behind are not counted, and there is no
//! mark `dm-log-writes-end`. (The kernel counts with durable writes and marks alone. In the end both have counted all.)
//! Neither brings the log to stable storage before its end.
//!
//! **Memory.** What is held back has a bound. Once it is reached the device is flushed, which makes durable what has ended,
//! and that comes to the log, without a flush of the guest's behind it; whoever writes waits for the room. (The kernel's
//! memory has no bound.)
//!
//! **Failures** of the log end the logging, and `status` tells; the device goes on. So does a log that is full.
//!
//! **A log has one writer** in a process: see [`Logs`]. A log that lies on something composed is known by that device's name
//! alone, and by no other that leads to the same sectors.
//!
//! **Read-only** devices leave their log as it is. (The kernel writes marks to it, and its own at the end.)
//!
//! Where the kernel's log tells what did not happen, this one does not: a write that failed is not in it; a flush that
//! failed leaves what it would have covered to the next one; a flush that ends before another that was asked for earlier has
//! before it what that one covers, too; and a durable write comes behind what it was written over, even if no flush covered
//! that.

mod claim;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use dm_table::{LogWritesMessage, SECTOR_SIZE};

use super::{Cx, Io, Refused, Shared, Target};
use crate::event::Events;
use crate::guest::{Buffer, HostSlice};
use crate::log_writes::{END_MARK, Flags, HEADER, Header, Super, cut};
use crate::map::{DevIx, Leg};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;
pub use claim::Logs;
use state::{Data, Entry, Held, State};

/// Bytes that may be held back, or be on their way to the log, at a time.
const MOST: usize = 64 << 20;
/// Longest write that is one entry, in sectors.
const LONGEST_WRITE: u64 = (1 << 20) / SECTOR_SIZE;
/// Longest range of zeroes that is one: `replay-log` has memory for as much.
const LONGEST_ZEROES: u64 = (32 << 20) / SECTOR_SIZE;
/// What an entry without data counts for, in bytes.
const BARE: usize = 256;
/// Marks that wait for the log.
const MOST_MARKS: usize = 1024;
/// Bytes of zeroes in memory.
const ZEROES: usize = 1 << 20;

/// See the module's text.
pub struct LogWrites {
    dev: Leg,
    log: Leg,
    // First sector of the line, which is also the first that is used of the device.
    start: u64,
    passes_discards: bool,
    // Nothing is written, so there is nothing to log.
    read_only: bool,
    state: Arc<State>,
}

/// What writes to the log, one at a time.
pub(super) struct Writer {
    // For the headers of a batch.
    headers: Buffer,
    zeroes: Buffer,
    begun: bool,
}

impl LogWrites {
    /// On `dev`, from sector `start` of the disk on, in logical blocks of `block` bytes; with the log on `log`, which has so
    /// many sectors.
    ///
    /// # Errors
    /// No memory.
    pub fn new(dev: Leg, (start, block): (u64, u32), log: Leg, sectors: u64) -> std::io::Result<LogWrites> {
        let headers = Buffer::new(state::BATCH * block as usize)?;
        let writer = Writer { headers, zeroes: Buffer::new(ZEROES)?, begun: false };
        let state = Arc::new(State::new(writer, block, sectors, MOST));
        Ok(LogWrites { dev, log, start, passes_discards: true, read_only: false, state })
    }

    /// Its devices are open for reading alone: the log stays as it is, and takes no marks.
    #[must_use]
    pub fn read_only(self, read_only: bool) -> LogWrites {
        LogWrites { read_only, ..self }
    }

    /// The device takes discards; otherwise they end here, and are logged all the same.
    #[must_use]
    pub fn passing_discards(self, passes_discards: bool) -> LogWrites {
        LogWrites { passes_discards, ..self }
    }

    /// An entry about some sectors of the line.
    fn entry(&self, at: u64, len: u64, flags: Flags, data: Data, held: Option<Held>) -> Entry {
        let sectors = self.state.block_sectors();
        let (sector, nr_sectors) = ((self.start + at) / sectors, len / sectors);
        Entry::new(Header { sector, nr_sectors, flags, data_len: 0 }, data, held)
    }

    async fn write(&self, cx: &Cx, io: &Io, durable: bool) -> Result<(), i32> {
        let action = Action::Write { durable };
        let mut cursor = Cursor::new(&io.data);
        let mut done = 0;
        while done < io.len {
            let len = (io.len - done).min(LONGEST_WRITE);
            let bytes = (len * SECTOR_SIZE) as usize;
            let Some((held, copy)) = self.hold(cx, bytes).await else {
                // No log: what is left goes as it is.
                let mut rest = Vec::new();
                cursor.take((io.len - done) * SECTOR_SIZE, |slice| rest.push(slice));
                return cx.io(&self.dev, action, io.at + done, io.len - done, rest).await;
            };
            let mut copied = 0;
            cursor.take(bytes as u64, |slice| copied += copy.part(copied, slice.len()).copy_from(&slice));
            cx.io(&self.dev, action, io.at + done, len, vec![copy]).await?;
            let flags = if durable { Flags::FUA } else { Flags::default() };
            self.ended(cx, vec![self.entry(io.at + done, len, flags, Data::Held(bytes), Some(held))]).await;
            done += len;
        }
        Ok(())
    }

    async fn zero(&self, cx: &Cx, io: &Io, durable: bool) -> Result<(), i32> {
        let count = io.len.div_ceil(LONGEST_ZEROES);
        let held = self.room(cx, count.min(1 << 16) as usize * BARE).await;
        cx.io(&self.dev, io.action, io.at, io.len, Vec::new()).await?;
        let Some(held) = held else { return Ok(()) };
        let flags = if durable { Flags::FUA } else { Flags::default() };
        let entries = (0..count).map(|n| {
            let done = n * LONGEST_ZEROES;
            self.entry(io.at + done, (io.len - done).min(LONGEST_ZEROES), flags, Data::Zeroes, None)
        });
        let mut entries: Vec<Entry> = entries.collect();
        // All of them have their room until the last has been written.
        if let Some(last) = entries.last_mut() {
            last.keep(held);
        }
        self.ended(cx, entries).await;
        Ok(())
    }

    async fn discard(&self, cx: &Cx, io: &Io) -> Result<(), i32> {
        let held = self.room(cx, BARE).await;
        if self.passes_discards {
            cx.io(&self.dev, io.action, io.at, io.len, Vec::new()).await?;
        }
        if held.is_some() {
            self.ended(cx, vec![self.entry(io.at, io.len, Flags::DISCARD, Data::None, held)]).await;
        }
        Ok(())
    }

    async fn flush(&self, cx: &Cx) -> Result<(), i32> {
        let before = self.state.before();
        cx.io(&self.dev, Action::Flush, 0, 0, Vec::new()).await?;
        let flush = Entry::new(Header { flags: Flags::FLUSH, ..Header::default() }, Data::None, None);
        let goal = self.state.flushed(before, Some(flush));
        self.drain(cx, goal).await;
        Ok(())
    }

    /// A write has ended.
    async fn ended(&self, cx: &Cx, entries: Vec<Entry>) {
        if let Some(goal) = self.state.ended(entries) {
            self.drain(cx, goal).await;
        }
    }

    /// A buffer for a write's data; none where nothing is logged.
    async fn hold(&self, cx: &Cx, bytes: usize) -> Option<(Held, HostSlice)> {
        let mut held = self.room(cx, bytes.max(4096).next_power_of_two()).await?;
        match held.fill() {
            Ok(slice) => Some((held, slice.part(0, bytes))),
            Err(error) => {
                self.state.disable(&format!("Error allocing page: {error}"));
                None
            }
        }
    }

    /// Waits until there is room for that; none where nothing is logged.
    async fn room(&self, cx: &Cx, bytes: usize) -> Option<Held> {
        loop {
            let changed = self.state.budget.changed.listen();
            if !self.state.enabled() {
                return None;
            }
            if let Some(held) = self.state.take(bytes) {
                return Some(held);
            }
            match self.state.begin_spill() {
                Some(_spilling) => self.spill(cx).await,
                None => changed.await,
            }
        }
    }

    /// Makes durable what has ended, and so logs it.
    async fn spill(&self, cx: &Cx) {
        let before = self.state.before();
        match cx.io(&self.dev, Action::Flush, 0, 0, Vec::new()).await {
            Ok(()) => {
                let goal = self.state.flushed(before, None);
                self.drain(cx, goal).await;
            }
            Err(errno) => {
                self.state.disable(&format!("no room for more, and the device cannot be flushed, error={errno}"));
            }
        }
    }

    /// Writes to the log what comes to it, in its order, up to the entry of number `goal`.
    async fn drain(&self, cx: &Cx, goal: u64) {
        let mut writer = self.state.writer.lock().await;
        while let Some(batch) = self.state.batch(goal) {
            let written = self.write_batch(cx, &mut writer, &batch).await;
            self.state.written(&batch, written);
        }
    }

    async fn write_batch(&self, cx: &Cx, writer: &mut Writer, batch: &[Arc<Entry>]) -> Result<(), i32> {
        let block = self.state.block as usize;
        if !writer.begun {
            // What an older log says must not be true of this one's entries.
            self.write_super(cx, writer, 0).await?;
            writer.begun = true;
        }
        let mut data = Vec::new();
        let mut len = 0;
        for (n, entry) in batch.iter().enumerate() {
            let header = writer.headers.slice().part(n * block, block);
            header.fill_zero();
            header.write(&entry.header.encode());
            header.part(HEADER, block).write(entry.text());
            data.push(header);
            len += self.state.block_sectors() + entry.data_sectors(&self.state);
            entry.slices(&self.state, &writer.zeroes.slice(), |slice| data.push(slice));
        }
        let Some(first) = batch.first() else { return Ok(()) };
        cx.io(&self.log, Action::Write { durable: false }, first.at(), len, data).await?;
        let counts = Flags::FLUSH.with(Flags::FUA).with(Flags::MARK);
        if batch.iter().any(|entry| entry.header.flags.has(counts)) {
            let entries = self.state.count_written() + batch.len() as u64;
            self.write_super(cx, writer, entries).await?;
        }
        Ok(())
    }

    async fn write_super(&self, cx: &Cx, writer: &Writer, entries: u64) -> Result<(), i32> {
        let block: HostSlice = writer.headers.slice().part(0, self.state.block as usize);
        block.fill_zero();
        block.write(&Super { entries, block: self.state.block }.encode());
        let len = self.state.block_sectors();
        cx.io(&self.log, Action::Write { durable: false }, 0, len, vec![block]).await
    }

    /// What was held back comes to the log if it has been live, which is ended then.
    async fn say_last_words(&self, cx: &Cx) {
        if !self.state.end() || self.read_only {
            return;
        }
        let _ = self.mark(END_MARK);
        self.drain(cx, u64::MAX).await;
        if let Err(errno) = cx.io(&self.log, Action::Flush, 0, 0, Vec::new()).await {
            log::warn!("log-writes: the log is not flushed, error={errno}: a loss of power may take its end away");
        }
    }

    fn mark(&self, name: &str) -> Option<u64> {
        let text = cut(name, self.state.block).to_vec();
        let header = Header { flags: Flags::MARK, data_len: text.len() as u64, ..Header::default() };
        self.state.mark(Entry::new(header, Data::Text(text), None), MOST_MARKS)
    }
}

impl Target for LogWrites {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        if io.action == Action::Read || self.read_only || !self.state.enabled() {
            return match io.action {
                Action::Discard if !self.passes_discards => Ok(()),
                action => cx.io(&self.dev, action, io.at, io.len, io.data).await,
            };
        }
        match io.action {
            Action::Write { durable } => self.write(cx, &io, durable).await,
            Action::Zero { durable, .. } => self.zero(cx, &io, durable).await,
            Action::Discard => self.discard(cx, &io).await,
            Action::Flush | Action::Read => self.flush(cx).await,
        }
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        self.state.status()
    }

    fn message(&self, args: &[&str]) -> Result<Option<String>, Refused> {
        let parsed = LogWritesMessage::parse(args);
        let message = parsed.map_err(|error| error.kernel().map_or_else(|| error.to_string(), str::to_owned))?;
        let LogWritesMessage::Mark(name) = message;
        if self.read_only {
            return Err("log-writes: the log is not written: the device is read-only".into());
        }
        match self.mark(name) {
            Some(_) => Ok(None),
            None => Err(format!("log-writes: {MOST_MARKS} marks wait for the log, which does not take them")),
        }
    }

    async fn activate(&self, _: &Cx, shared: &Arc<Shared>) -> Result<(), Refused> {
        let Some(key) = self.log.key().filter(|_| !self.read_only) else { return Ok(()) };
        shared.logs.take(key, self.state.events(), &Arc::downgrade(&self.state))?;
        self.state.claims(shared, key);
        Ok(())
    }

    async fn background(&self, cx: &Cx) {
        self.state.live();
        loop {
            let woken = self.state.wake.listen();
            self.drain(cx, u64::MAX).await;
            if self.state.is_stopped() {
                return;
            }
            woken.await;
        }
    }

    async fn retire(&self, cx: &Cx) {
        self.say_last_words(cx).await;
        // Not before: another device may have it from here on.
        if let Some((shared, key)) = self.state.claimed() {
            shared.logs.leave(key, &Arc::downgrade(&self.state));
        }
    }

    // Not before: a suspend that is taken back earlier does not start it again.
    fn postsuspend(&self) {
        self.state.stop(true);
    }

    fn resume(&self) {
        self.state.stop(false);
    }

    fn events(&self, events: &Arc<Events>) {
        self.state.set_events(events);
    }

    fn again(&self, legs: Vec<Leg>) -> LogWrites {
        let mut legs = legs.into_iter();
        let dev = legs.next().unwrap_or_else(|| self.dev.clone());
        let log = legs.next().unwrap_or_else(|| self.log.clone());
        LogWrites { dev, log, state: self.state.clone(), ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        [&self.dev, &self.log].into_iter().flat_map(|leg| leg.devices().iter().copied()).collect()
    }
}
