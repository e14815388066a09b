//! The list of exceptions as it is read when a store is opened: many areas at a time, for which the devices are asked at once.

use async_lock::Mutex;
use dm_table::SECTOR_SIZE;

use super::exceptions::Run;
use super::format::{ENTRY, Entry, Layout};
use super::store::{End, Opened, StoreError};
use crate::map::Leg;
use crate::targets::{Cx, LONGEST, Lease};
use crate::worker::ops::Action;

/// Parts of areas that are read at a time, at most, and no more than [`LONGEST`] bytes.
const MOST_AHEAD: u64 = 64;

/// The metadata of all areas, one behind the other, in parts of at most [`LONGEST`] bytes.
#[derive(Clone, Copy)]
struct Parts {
    layout: Layout,
    bytes: u64,
    // Of one area, and of all that the device has.
    each: u64,
    all: u64,
}

impl Parts {
    fn new(layout: Layout) -> Parts {
        let bytes = layout.chunk_bytes().min(LONGEST as u64);
        let each = layout.chunk_bytes() / bytes;
        Parts { layout, bytes, each, all: layout.areas() * each }
    }

    /// Its area, and its first byte there.
    fn place(&self, part: u64) -> (u64, u64) {
        (part / self.each, part % self.each * self.bytes)
    }

    /// Its first sector on the device.
    fn sector(&self, part: u64) -> u64 {
        let (area, byte) = self.place(part);
        self.layout.area(area) * self.layout.chunk() + byte / SECTOR_SIZE
    }

    /// Reads `count` from `part` on, into the first bytes of a buffer.
    async fn read(&self, cx: &Cx, cow: &Leg, part: u64, count: u64) -> Result<Lease, i32> {
        let len = (count * self.bytes) as usize;
        let lease = cx.buffer(len).await?;
        let add = |part| (self.sector(part), self.bytes / SECTOR_SIZE);
        let sectors = (part..part + count).map(add);
        let data = vec![lease.slice().part(0, len)];
        cx.parts(Action::Read, data, |cut| sectors.for_each(|(at, len)| cut.add(cow, at, len))).await?;
        Ok(lease)
    }
}

impl Opened {
    /// Reads the list up to its end, and what else is in the area that it ends in.
    pub(super) async fn read_all(&mut self, cx: &Cx, cow: &Leg) -> Result<(), StoreError> {
        let layout = self.store.layout();
        let parts = Parts::new(layout);
        let mut bytes = vec![0; parts.bytes as usize];
        let mut end = None;
        let (mut part, mut ahead) = (0, 1);
        while part < parts.all && end.as_ref().is_none_or(|end: &End| end.area == parts.place(part).0) {
            let count = ahead.min(parts.all - part).min(LONGEST as u64 / parts.bytes);
            let lease = match parts.read(cx, cow, part, count).await {
                Ok(lease) => lease,
                // It may be one behind the end of the list, which nobody needs.
                Err(_) if count > 1 => {
                    ahead = 1;
                    continue;
                }
                Err(errno) => return Err(StoreError::Io { doing: "read metadata", at: parts.sector(part), errno }),
            };
            for n in 0..count {
                let (area, byte) = parts.place(part + n);
                if end.as_ref().is_some_and(|end| end.area != area) {
                    break;
                }
                lease.slice().part((n * parts.bytes) as usize, bytes.len()).read(&mut bytes);
                self.read_part(&mut end, (area, byte), &bytes)?;
            }
            part += count;
            ahead = (2 * count).min(MOST_AHEAD);
        }
        let end =
            end.unwrap_or_else(|| End { area: layout.areas(), entries: 0, unit: vec![0; layout.unit() as usize] });
        if !self.exceptions.is_one_to_one() {
            let (n, why) = (self.exceptions.len(), "some chunk of which is there twice");
            return Err(StoreError::Entry { n, old: 0, new: self.next, why });
        }
        self.next = layout.next(self.next);
        self.store.end = Mutex::new(end);
        Ok(())
    }

    /// Takes the entries of a part that begins at `byte` of an area, as long as the list has not ended.
    fn read_part(&mut self, end: &mut Option<End>, (area, byte): (u64, u64), bytes: &[u8]) -> Result<(), StoreError> {
        let unit = self.store.layout().unit();
        for (n, entry) in (byte / ENTRY..).zip(bytes.chunks_exact(ENTRY as usize)) {
            match (Entry::read(entry), end.is_some()) {
                (Some(entry), false) => self.take(entry)?,
                (None, false) => {
                    let at = n * ENTRY;
                    let mut last = vec![0; unit as usize];
                    let known = bytes.get((at / unit * unit - byte) as usize..(at - byte) as usize);
                    known.into_iter().for_each(|known| last[..known.len()].copy_from_slice(known));
                    *end = Some(End { area, entries: n, unit: last });
                }
                (Some(_), true) => self.torn = Some((n * ENTRY / unit + 1) * unit),
                (None, true) => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, Entry { old, new }: Entry) -> Result<(), StoreError> {
        let (layout, n) = (self.store.layout(), self.exceptions.len());
        let wrong = |why| Err(StoreError::Entry { n, old, new, why });
        if !layout.is_data(new) {
            return wrong("which is none for data");
        }
        if old.checked_add(1).and_then(|next| next.checked_mul(layout.chunk_bytes())).is_none() {
            return wrong("which no device can have");
        }
        if !self.exceptions.insert(Run { old, new, len: 1 }) {
            return wrong("but that is there already");
        }
        self.next = self.next.max(new + 1);
        Ok(())
    }
}
