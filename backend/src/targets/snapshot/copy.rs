//! Copies of chunks from the origin into the store, with what a guest writes on top.

use std::sync::OnceLock;

use crate::guest::{Buffer, HostSlice};
use crate::map::Leg;
use crate::targets::{Cx, LONGEST};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;
use dm_table::SECTOR_SIZE;

/// Where a snapshot's data is.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    /// The device as it was.
    pub origin: &'a Leg,
    /// Its sectors.
    pub origin_size: u64,
    /// The store's device.
    pub cow: &'a Leg,
}

/// What a guest writes on top of a copy: at this sector of the origin, so many sectors.
#[derive(Clone, Copy)]
pub struct OnTop<'a> {
    /// First sector.
    pub at: u64,
    /// Sectors.
    pub len: u64,
    /// The data.
    pub data: &'a [HostSlice],
}

impl OnTop<'_> {
    /// Lays what there is for sectors `[at, at + len)` into a buffer that begins with them.
    fn lay(&self, at: u64, len: u64, buffer: HostSlice) {
        let (from, to) = (self.at.max(at), (self.at + self.len).min(at + len));
        if from >= to {
            return;
        }
        let mut cursor = Cursor::new(self.data);
        cursor.skip((from - self.at) * SECTOR_SIZE);
        let mut filled = ((from - at) * SECTOR_SIZE) as usize;
        cursor.take((to - from) * SECTOR_SIZE, |slice| {
            buffer.part(filled, slice.len()).copy_from(&slice);
            filled += slice.len();
        });
    }

    /// Whether there is something for all of these sectors.
    pub fn covers(&self, at: u64, len: u64) -> bool {
        self.at <= at && at + len <= self.at + self.len
    }
}

/// Copies `len` sectors from sector `from` of the origin to sector `to` of the store; what is behind the end of the origin is
/// left out.
///
/// # Errors
/// A device's.
pub async fn copy(
    cx: &Cx,
    places: &Places<'_>,
    (from, to, len): (u64, u64, u64),
    on_top: Option<OnTop<'_>>,
    durable: bool,
) -> Result<(), i32> {
    let len = len.min(places.origin_size.saturating_sub(from));
    let longest = LONGEST as u64 / SECTOR_SIZE;
    if len == 0 {
        return Ok(());
    }
    let lease = cx.buffer((len.min(longest) * SECTOR_SIZE) as usize).await?;
    let mut done = 0;
    while done < len {
        let (at, now) = (from + done, (len - done).min(longest));
        let buffer = lease.slice().part(0, (now * SECTOR_SIZE) as usize);
        if !on_top.is_some_and(|on_top| on_top.covers(at, now)) {
            cx.io(places.origin, Action::Read, at, now, vec![buffer]).await?;
        }
        if let Some(on_top) = on_top {
            on_top.lay(at, now, buffer);
        }
        cx.io(places.cow, Action::Write { durable }, to + done, now, vec![buffer]).await?;
        done += now;
    }
    Ok(())
}

/// Sectors that [`zeroes`] can make zeroes for.
pub const MOST_ZEROES: u64 = 64 * LONGEST as u64 / SECTOR_SIZE;

/// So many sectors of zeroes, at most [`MOST_ZEROES`], to be written from.
///
/// # Errors
/// ENOMEM.
pub fn zeroes(len: u64) -> Result<Vec<HostSlice>, i32> {
    // Nobody writes to it: one for all.
    static ZEROES: OnceLock<Option<Buffer>> = OnceLock::new();
    let buffer = ZEROES.get_or_init(|| Buffer::new(LONGEST).ok()).as_ref().ok_or(libc::ENOMEM)?;
    let mut left = (len * SECTOR_SIZE) as usize;
    let mut all = Vec::new();
    while left > 0 {
        let slice = buffer.slice().part(0, left);
        left -= slice.len();
        all.push(slice);
    }
    Ok(all)
}

/// Writes zeroes over `len` sectors from sector `at` of a device.
///
/// # Errors
/// The device's.
pub async fn zero(cx: &Cx, leg: &Leg, at: u64, len: u64) -> Result<(), i32> {
    let mut done = 0;
    while done < len {
        let now = (len - done).min(MOST_ZEROES);
        cx.io(leg, Action::Write { durable: false }, at + done, now, zeroes(now)?).await?;
        done += now;
    }
    Ok(())
}
