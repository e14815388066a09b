//! `dust`: a device with bad blocks, which a write repairs (dm-dust.c).
//!
//! Where the kernel looks at one block of an operation only, all of them count here: those of a discard, and both where a
//! line does not begin on a block. And a flush is no write to the line's first block, which it repairs there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dm_table::DustMessage;

use super::{Cx, Io, Refused, Target};
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;

/// Bad blocks that one target may have: a client can add them for ever.
const MOST: usize = 1 << 20;

/// See the module's text.
pub struct Dust {
    leg: Leg,
    /// As the table has it, for the status line.
    device: String,
    // First sector on the device; blocks are counted from the device's start.
    start: u64,
    // Sectors of the device.
    size: u64,
    // Sectors of a block; a power of two.
    block: u64,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    // Bad blocks, and how many writes to each fail before one repairs it.
    bad: Mutex<BTreeMap<u64, u8>>,
    enabled: AtomicBool,
    quiet: AtomicBool,
}

impl Dust {
    /// On `leg`, which begins at sector `start` of a device of `size` sectors that is called `device` in the table; with
    /// blocks of so many sectors, a power of two.
    pub fn new(leg: Leg, device: String, (start, size): (u64, u64), block: u64) -> Dust {
        Dust { leg, device, start, size, block, state: Arc::default() }
    }

    fn bad(&self) -> MutexGuard<'_, BTreeMap<u64, u8>> {
        self.state.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks of a range that fail an operation on it. A write that does not repairs them.
    fn failing(&self, at: u64, len: u64, write: bool) -> Vec<u64> {
        let first = (self.start + at) / self.block;
        let last = (self.start + at + len.max(1) - 1) / self.block;
        let mut bad = self.bad();
        if !write {
            return bad.range(first..=last).map(|(block, _)| *block).collect();
        }
        let (mut failing, mut repaired) = (Vec::new(), Vec::new());
        for (block, fails) in bad.range_mut(first..=last) {
            match fails.checked_sub(1) {
                Some(left) => {
                    *fails = left;
                    failing.push(*block);
                }
                None => repaired.push(*block),
            }
        }
        for block in repaired {
            bad.remove(&block);
            if !self.state.quiet.load(Ordering::Relaxed) {
                log::info!("dust: block {block} removed from badblocklist by write");
            }
        }
        failing
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn add(&self, block: u64, fails: u8) -> Result<(), Refused> {
        let mut bad = self.bad();
        let full = bad.len() >= MOST;
        match bad.entry(block) {
            Entry::Occupied(_) => Err(format!("dust: dust_add_block: block {block} already in badblocklist")),
            Entry::Vacant(_) if full => Err("dust: dust_add_block: badblock allocation failed".into()),
            Entry::Vacant(place) => {
                place.insert(fails);
                Ok(())
            }
        }
    }

    fn remove(&self, block: u64) -> Result<(), Refused> {
        let removed = self.bad().remove(&block);
        removed.map(drop).ok_or_else(|| format!("dust: dust_remove_block: block {block} not found in badblocklist"))
    }
}

/// Sectors `[skip, skip + len)` of a piece's data.
fn part(data: &[HostSlice], skip: u64, len: u64) -> Vec<HostSlice> {
    let mut cursor = Cursor::new(data);
    let mut part = Vec::new();
    cursor.skip(skip * dm_table::SECTOR_SIZE);
    cursor.take(len * dm_table::SECTOR_SIZE, |slice| part.push(slice));
    part
}

impl Target for Dust {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let Io { action, at, len, data } = io;
        if action == Action::Flush || !self.state.enabled.load(Ordering::Acquire) {
            return cx.io(&self.leg, action, at, len, data).await;
        }
        let failing = self.failing(at, len, action != Action::Read);
        if failing.is_empty() {
            return cx.io(&self.leg, action, at, len, data).await;
        }
        // What lies between those that fail is done, as by the kernel, which cuts requests at blocks.
        let (mut next, end) = (at, at + len);
        for block in failing.into_iter().map(Some).chain([None]) {
            let until = block.map_or(end, |block| (block * self.block).saturating_sub(self.start).max(next));
            if until > next {
                let data = part(&data, next - at, until - next);
                // It fails in any case.
                let _ = cx.io(&self.leg, action, next, until - next, data).await;
            }
            next = block.map_or(end, |block| ((block + 1) * self.block).saturating_sub(self.start).min(end));
        }
        Err(libc::EIO)
    }

    fn status(&self, name: &dyn Fn(&str) -> String) -> String {
        let mode = if self.state.enabled.load(Ordering::Relaxed) { "fail_read_on_bad_block" } else { "bypass" };
        let words = if self.state.quiet.load(Ordering::Relaxed) { "quiet" } else { "verbose" };
        format!("{} {mode} {words}", name(&self.device))
    }

    fn message(&self, args: &[&str]) -> Result<Option<String>, Refused> {
        let parsed = DustMessage::parse(args, self.blocks());
        let message = parsed.map_err(|error| error.kernel().map_or_else(|| error.to_string(), str::to_owned))?;
        match message {
            DustMessage::AddBadBlock { block, write_fails } => self.add(block, write_fails).map(|()| None),
            DustMessage::RemoveBadBlock { block } => self.remove(block).map(|()| None),
            DustMessage::QueryBlock { block } => {
                let not = if self.bad().contains_key(&block) { "" } else { "not " };
                Ok(Some(format!("dust_query_block: block {block} {not}found in badblocklist")))
            }
            DustMessage::CountBadBlocks => Ok(Some(format!("countbadblocks: {} badblock(s) found", self.bad().len()))),
            DustMessage::ListBadBlocks => {
                let list: Vec<String> = self.bad().keys().map(u64::to_string).collect();
                Ok(Some(if list.is_empty() { "No blocks in badblocklist".into() } else { list.join("\n") }))
            }
            DustMessage::ClearBadBlocks => {
                let all = std::mem::take(&mut *self.bad());
                let said = if all.is_empty() { "no badblocks found" } else { "badblocks cleared" };
                Ok(Some(format!("dust_clear_badblocks: {said}")))
            }
            DustMessage::Enable | DustMessage::Disable => {
                self.state.enabled.store(message == DustMessage::Enable, Ordering::Release);
                Ok(None)
            }
            DustMessage::Quiet => {
                self.state.quiet.fetch_not(Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    fn again(&self, legs: Vec<Leg>) -> Dust {
        let leg = legs.into_iter().next().unwrap_or_else(|| self.leg.clone());
        Dust { leg, device: self.device.clone(), state: self.state.clone(), ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.leg.devices().to_vec()
    }
}
