//! One stripe out of a range that holds several (`unstriped`, DM's dm-unstripe): the reverse of striped.

use super::stripe::{Leg, divide};
use super::{Map, Piece, Step};
use dm_table::Sectors;
use std::sync::Arc;

/// An unstriped segment, or the part of one that a linear line above it uses.
#[derive(Clone, Debug)]
pub(super) struct Unstriped {
    /// Begins where the stripe's first chunk does.
    pub leg: Leg,
    /// Sectors in a chunk; at least 1.
    pub chunk: u64,
    /// Sectors from one chunk of the stripe to the next, on the leg.
    pub row: u64,
    /// Sectors of the unstriped line before this segment.
    pub skip: u64,
    /// Its target, which takes flushes, and ranges: of those, chunks would make more pieces at once than there is room for.
    pub target: u32,
    /// `log2(chunk)` where the chunk size is a power of two.
    chunk_shift: Option<u32>,
}

impl Unstriped {
    pub fn new(leg: Leg, (chunk, row): (u64, u64), target: u32) -> Unstriped {
        let chunk_shift = chunk.is_power_of_two().then(|| chunk.trailing_zeros());
        Unstriped { leg, chunk, row, skip: 0, target, chunk_shift }
    }

    /// The same stripe, beginning `sectors` later.
    pub fn clipped(&self, sectors: u64) -> Unstriped {
        Unstriped { skip: self.skip + sectors, ..self.clone() }
    }

    /// The same among other targets: those of its map have numbers from `first` on.
    pub fn renumbered(&self, first: u32) -> Unstriped {
        let leg = match &self.leg {
            Leg::Map { map, start } if !map.targets().is_empty() => {
                Leg::Map { map: Arc::new(map.renumbered(first)), start: *start }
            }
            same => same.clone(),
        };
        Unstriped { leg, target: self.target + first, ..self.clone() }
    }

    /// The ranges of the leg that hold `len` sectors at `off` of the segment: where each begins, and its length.
    #[inline]
    pub fn chunks(&self, off: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let (chunk, mut within) = divide(self.skip + off, self.chunk, self.chunk_shift);
        let (mut begin, mut left) = (chunk * self.row, len);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let (at, take) = (begin + within, left.min(self.chunk - within));
            // Not past what there is: the last chunk may end where numbers do.
            begin = begin.saturating_add(self.row);
            (within, left) = (0, left - take);
            Some((at, take))
        })
    }

    pub fn walk(&self, (off, len, write): (u64, u64, bool), mut skip: u64, segment: u32, f: &mut dyn FnMut(Piece)) {
        for (into, take) in self.chunks(off, len) {
            match &self.leg {
                Leg::Device { dev, start } => f(Piece {
                    step: Step::Device { dev: *dev, at: Sectors::new(start + into) },
                    skip: Sectors::new(skip),
                    len: Sectors::new(take),
                    segment,
                }),
                Leg::Map { map, start } => Map::walk(map, (start + into, take, write), skip, Some(segment), f),
            }
            skip += take;
        }
    }
}
