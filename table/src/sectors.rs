//! Sector counts and positions.

use std::fmt;

/// Bytes in a sector: every sector field of a table counts in these, whatever the block size of the devices.
pub const SECTOR_SIZE: u64 = 512;

/// A number of 512-byte sectors, or a position counted in them.
///
/// A type of its own so that bytes and sectors cannot be mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sectors(u64);

impl Sectors {
    /// No sectors, or the first sector.
    pub const ZERO: Sectors = Sectors(0);

    /// The largest device that device-mapper accepts, in sectors: 2^63 − 1 bytes, rounded down.
    pub const MAX_DEVICE: Sectors = Sectors(18_014_398_509_481_983);

    /// `n` sectors of 512 bytes.
    pub const fn new(n: u64) -> Sectors {
        Sectors(n)
    }

    /// The count of 512-byte sectors.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The same in bytes. Saturates at 2^64 − 1, which no position within [`Sectors::MAX_DEVICE`] reaches.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_SIZE)
    }

    /// The whole sectors in `bytes`; a part of a sector at the end does not count.
    pub const fn from_bytes_floor(bytes: u64) -> Sectors {
        Sectors(bytes / SECTOR_SIZE)
    }

    /// The sum, or `None` where it passes 2^64 − 1 sectors.
    pub const fn checked_add(self, other: Sectors) -> Option<Sectors> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Sectors(n)),
            None => None,
        }
    }

    /// The difference, or `None` where it would be negative.
    pub const fn checked_sub(self, other: Sectors) -> Option<Sectors> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(Sectors(n)),
            None => None,
        }
    }

    /// Whether this is no sectors, or the first sector.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Sectors {
    /// The plain decimal number, as a table has it: no unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
