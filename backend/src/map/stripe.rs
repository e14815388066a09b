//! Stripe arithmetic (`striped`, DM's dm-stripe).
//!
//! Sector `off` of a striped line lies in chunk `off / chunk`; chunks go round the stripes in turn, and a
//! stripe's chunks lie one after the other on its device.

use std::sync::Arc;

use dm_table::Sectors;

use super::{DevIx, Map, Piece, Step};
use crate::targets::Stateful;

/// A striped segment, or the part of one that a linear line above it uses.
#[derive(Clone, Debug)]
pub(super) struct Striped {
    /// Sectors in a chunk; at least 1.
    pub chunk: u64,
    /// Stripes in turn; at least 2, a single one is a linear segment. Shared by the clipped parts of one striped
    /// line; nothing at run time counts these references.
    pub legs: Arc<[Leg]>,
    /// Sectors of the striped line before this segment.
    pub skip: u64,
    /// `log2(chunk)` where the chunk size is a power of two: a division costs more than all else here.
    chunk_shift: Option<u32>,
    /// The same for the number of stripes.
    legs_shift: Option<u32>,
}

/// A range of a device or of a lower map: one stripe, or what a stateful target lies on.
#[derive(Clone, Debug)]
pub enum Leg {
    /// Of a component device.
    Device {
        /// The device.
        dev: DevIx,
        /// The range's first sector on it.
        start: u64,
    },
    /// Of a lower map.
    Map {
        /// The map.
        map: Arc<Map>,
        /// The range's first sector on it.
        start: u64,
    },
}

/// Which device a leg is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A component device.
    Component(DevIx),
    /// A mapped device of this process, by its minor number.
    Mapped(u32),
}

impl Leg {
    /// The device that it is on; none for a lower map that is no device's.
    pub fn key(&self) -> Option<Key> {
        match self {
            Leg::Device { dev, .. } => Some(Key::Component(*dev)),
            Leg::Map { map, .. } => map.minor.map(Key::Mapped),
        }
    }

    /// Its first sector on that device.
    pub fn start(&self) -> Sectors {
        match self {
            Leg::Device { start, .. } | Leg::Map { start, .. } => Sectors::new(*start),
        }
    }

    /// Cuts `len` sectors at `at` of the range into pieces, as [`Map::cut`].
    pub fn cut(&self, at: Sectors, len: Sectors, write: bool, f: &mut impl FnMut(Piece)) {
        match self {
            Leg::Device { dev, start } => {
                let step = Step::Device { dev: *dev, at: Sectors::new(start + at.get()) };
                f(Piece { step, skip: Sectors::ZERO, len, segment: 0 });
            }
            Leg::Map { map, start } => map.walk((start + at.get(), len.get(), write), 0, None, f),
        }
    }

    /// Cuts them into ranges, as [`Map::ranges`].
    pub fn ranges(&self, at: Sectors, len: Sectors, f: &mut impl FnMut(Step, Sectors, u32)) {
        match self {
            Leg::Device { dev, start } => f(Step::Device { dev: *dev, at: Sectors::new(start + at.get()) }, len, 0),
            Leg::Map { map, start } => map.walk_ranges(start + at.get(), len.get(), None, f),
        }
    }

    /// Component devices behind it.
    pub fn devices(&self) -> &[DevIx] {
        match self {
            Leg::Device { dev, .. } => std::slice::from_ref(dev),
            Leg::Map { map, .. } => map.devices(),
        }
    }

    /// Component devices that a flush of it must reach by itself, besides those of its targets.
    pub fn flush_set(&self) -> &[DevIx] {
        match self {
            Leg::Device { dev, .. } => std::slice::from_ref(dev),
            Leg::Map { map, .. } => map.flush_set(),
        }
    }

    /// Component devices that can be written by way of it.
    pub fn written(&self) -> &[DevIx] {
        match self {
            Leg::Device { dev, .. } => std::slice::from_ref(dev),
            Leg::Map { map, .. } => map.written(),
        }
    }

    /// Stateful targets behind it.
    pub fn targets(&self) -> &[Arc<Stateful>] {
        match self {
            Leg::Device { .. } => &[],
            Leg::Map { map, .. } => map.targets(),
        }
    }
}

/// A place in a striped line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The stripe.
    pub leg: usize,
    /// The stripe's chunk.
    pub row: u64,
    /// Sectors into the chunk.
    pub within: u64,
}

impl Striped {
    pub fn new(chunk: u64, legs: Vec<Leg>) -> Striped {
        let shift = |n: u64| n.is_power_of_two().then(|| n.trailing_zeros());
        Striped { chunk, chunk_shift: shift(chunk), legs_shift: shift(legs.len() as u64), legs: legs.into(), skip: 0 }
    }

    /// The same stripes, beginning `sectors` later.
    pub fn clipped(&self, sectors: u64) -> Striped {
        Striped { skip: self.skip + sectors, ..self.clone() }
    }

    /// The same among other targets: those of lower maps have numbers from `first` on.
    pub fn renumbered(&self, first: u32) -> Striped {
        let leg = |leg: &Leg| match leg {
            Leg::Map { map, start } if !map.targets().is_empty() => {
                Leg::Map { map: Arc::new(map.renumbered(first)), start: *start }
            }
            same => same.clone(),
        };
        Striped { legs: self.legs.iter().map(leg).collect(), ..self.clone() }
    }

    /// Where sector `off` of the striped line (not of the segment) is.
    #[inline]
    pub fn place(&self, off: u64) -> Place {
        let (chunk, within) = divide(off, self.chunk, self.chunk_shift);
        let (row, leg) = divide(chunk, self.legs.len() as u64, self.legs_shift);
        Place { leg: leg as usize, row, within }
    }

    /// The contiguous part of stripe `leg` that lies between two places of the striped line: first sector on
    /// the stripe and number of sectors.
    ///
    /// An edge that falls into another stripe's chunk moves to this stripe's chunk border, which is what the
    /// kernel does with discards (DM's `stripe_map_range`).
    #[inline]
    pub fn leg_range(&self, leg: usize, from: Place, to: Place) -> (u64, u64) {
        let begin = self.leg_sectors_before(leg, from);
        (begin, self.leg_sectors_before(leg, to) - begin)
    }

    /// Sectors of stripe `leg` that lie before a place of the striped line.
    #[inline]
    fn leg_sectors_before(&self, leg: usize, place: Place) -> u64 {
        let in_row = match leg.cmp(&place.leg) {
            std::cmp::Ordering::Less => self.chunk,
            std::cmp::Ordering::Equal => place.within,
            std::cmp::Ordering::Greater => 0,
        };
        place.row * self.chunk + in_row
    }
}

#[inline]
pub(super) fn divide(n: u64, by: u64, shift: Option<u32>) -> (u64, u64) {
    match shift {
        Some(shift) => (n >> shift, n & (by - 1)),
        None => (n / by, n % by),
    }
}
