//! A request's data, handed out piece by piece.

use dm_table::Sectors;

use crate::guest::{HostSlice, Mapping};

/// Hands out a list of slices in order, in parts of any length.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    slices: &'a [HostSlice],
    skip: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub fn new(slices: &'a [HostSlice]) -> Cursor<'a> {
        Cursor { slices, skip: 0 }
    }

    #[inline]
    pub fn take(&mut self, bytes: u64, mut f: impl FnMut(HostSlice)) {
        let mut left = bytes as usize;
        while left > 0 {
            let Some(first) = self.slices.first() else { return };
            let part = first.part(self.skip, left);
            left -= part.len();
            self.skip += part.len();
            if self.skip == first.len() {
                self.slices = &self.slices[1..];
                self.skip = 0;
            }
            f(part);
        }
    }

    #[inline]
    pub fn skip(&mut self, bytes: u64) {
        self.take(bytes, |_| {});
    }
}

/// Transfers by way of a mapping; `false`, with nothing taken from the cursor, when it cannot be believed.
#[inline]
pub(super) fn copied(mapping: &Mapping, write: bool, at: Sectors, cursor: &mut Cursor<'_>, len: u64) -> bool {
    if mapping.broken() {
        return false;
    }
    if if write { !mapping.is_writable() } else { !mapping.readable(at.bytes(), len) } {
        return false;
    }
    let Some(file) = mapping.slice(at.bytes(), len) else { return false };
    let mut ahead = *cursor;
    let mut done = 0;
    ahead.take(len, |slice| {
        let here = file.part(done, slice.len());
        done += if write { here.stream_from(&slice) } else { slice.copy_from(&here) };
    });
    if mapping.broken() {
        return false;
    }
    *cursor = ahead;
    true
}
