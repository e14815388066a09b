//! `flakey`: works for a time, fails for a time, and again (dm-flakey.c).

use std::sync::{Arc, Mutex};

use fastrand::Rng;

use super::{Cx, Io, Target};
use crate::guest::{Buffer, HostSlice};
use crate::map::{DevIx, Leg};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;

/// Chances are parts of this.
const BILLION: u32 = 1_000_000_000;
/// REQ_FUA of Linux 6.12, the only flag of a request that reaches us.
const REQ_FUA: u32 = 1 << 17;

/// A byte of each request that becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Which byte, counted from 1.
    pub nth: u64,
    /// In writes; else in reads.
    pub write: bool,
    /// What it becomes.
    pub value: u8,
    /// Flags that a request must have, as the kernel's `bi_opf`. One with others than FUA is never met.
    pub flags: u32,
}

/// What happens while it is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Reads fail.
    pub error_reads: bool,
    /// Writes, flushes and discards succeed and do nothing.
    pub drop_writes: bool,
    /// They fail.
    pub error_writes: bool,
    /// One byte is another.
    pub corrupt: Option<Corrupt>,
    /// Chance in a billion that some byte of a read is another.
    pub random_read: u32,
    /// The same for writes.
    pub random_write: u32,
}

/// See the module's text.
pub struct Flakey {
    leg: Leg,
    up: u64,
    down: u64,
    features: Features,
    // On the engine's clock.
    born: u64,
    // Every byte there is, to take the place of others.
    bytes: Arc<Buffer>,
    rng: Mutex<Rng>,
}

impl Flakey {
    /// Up and down for so many seconds each, together at least 1, since `born` (nanoseconds of the engine's clock).
    ///
    /// # Errors
    /// No memory.
    pub fn new(leg: Leg, (up, down): (u32, u32), features: Features, born: u64) -> std::io::Result<Flakey> {
        let bytes = Arc::new(Buffer::new(256)?);
        let all: Vec<u8> = (0..=255).collect();
        bytes.slice().write(&all);
        let (up, down, rng) = (up.into(), down.into(), Mutex::new(Rng::new()));
        Ok(Flakey { leg, up, down, features, born, bytes, rng })
    }

    fn is_down(&self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.born) / 1_000_000_000;
        elapsed % (self.up + self.down).max(1) >= self.up
    }

    /// Which bytes become which: one that the table says, one by chance.
    fn corrupted(&self, action: Action, len: u64) -> [Option<(u64, u8)>; 2] {
        let write = action != Action::Read;
        let bytes = len * dm_table::SECTOR_SIZE;
        let durable = matches!(action, Action::Write { durable: true });
        let told = self.features.corrupt.filter(|corrupt| {
            let flags = corrupt.flags == 0 || (corrupt.flags == REQ_FUA && durable);
            corrupt.write == write && (1..=bytes).contains(&corrupt.nth) && flags
        });
        let told = told.map(|corrupt| (corrupt.nth - 1, corrupt.value));
        let chance = if write { self.features.random_write } else { self.features.random_read };
        let mut rng = self.rng.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let by_chance = chance > 0 && rng.u32(..BILLION) < chance;
        [told, by_chance.then(|| (rng.u64(..bytes.max(1)), rng.u8(..)))]
    }

    /// The data with one byte from elsewhere: the guest's own memory stays as it is.
    fn replaced(&self, data: &[HostSlice], at: u64, value: u8) -> Vec<HostSlice> {
        let mut cursor = Cursor::new(data);
        let mut replaced = Vec::new();
        cursor.take(at, |slice| replaced.push(slice));
        cursor.skip(1);
        replaced.push(self.bytes.slice().part(usize::from(value), 1));
        cursor.take(u64::MAX >> 1, |slice| replaced.push(slice));
        replaced
    }
}

impl Target for Flakey {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let Io { action, at, len, data } = io;
        if !self.is_down(cx.now()) {
            return cx.io(&self.leg, action, at, len, data).await;
        }
        if action == Action::Read {
            if self.features.error_reads {
                return Err(libc::EIO);
            }
            let corrupted = self.corrupted(action, len);
            let read = data.clone();
            cx.io(&self.leg, action, at, len, data).await?;
            for (byte, value) in corrupted.into_iter().flatten() {
                let mut cursor = Cursor::new(&read);
                cursor.skip(byte);
                cursor.take(1, |slice| slice.set_first(value));
            }
            return Ok(());
        }
        if self.features.drop_writes {
            return Ok(());
        }
        if self.features.error_writes {
            return Err(libc::EIO);
        }
        let corrupted = if matches!(action, Action::Write { .. }) { self.corrupted(action, len) } else { [None; 2] };
        let replaced = |data: Vec<HostSlice>, (byte, value)| self.replaced(&data, byte, value);
        let data = corrupted.into_iter().flatten().fold(data, replaced);
        cx.io(&self.leg, action, at, len, data).await
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        String::new()
    }

    fn again(&self, legs: Vec<Leg>) -> Flakey {
        let leg = legs.into_iter().next().unwrap_or_else(|| self.leg.clone());
        Flakey { leg, bytes: self.bytes.clone(), rng: Mutex::new(Rng::new()), ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.leg.devices().to_vec()
    }
}
