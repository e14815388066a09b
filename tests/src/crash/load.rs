//! What the guest asks for: the request of a number is the same in every run of a seed.

use fastrand::Rng;

use crate::blk::{Config, SECTOR, Segment, Shape, feature, kind};
use crate::model::{Outcome, World};

/// Largest transfer, sectors.
const LONGEST: u64 = 128;

/// A request, before and while it is outstanding.
#[derive(Clone, Debug)]
pub struct Op {
    /// Its number in the load.
    pub number: u64,
    /// Queue it goes to.
    pub queue: usize,
    /// One of [`kind`].
    pub kind: u32,
    /// What it covers: one range of a transfer, any of the others.
    pub ranges: Vec<Segment>,
    /// Bytes of a write.
    pub data: Vec<u8>,
    /// Component sectors that it touches, sorted.
    pub touched: Vec<(usize, u64)>,
    /// How it lies in memory.
    pub shape: Shape,
}

impl Op {
    /// Whether it changes what it touches.
    pub fn writes(&self) -> bool {
        matches!(self.kind, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES)
    }

    /// Sectors of a transfer.
    pub fn sectors(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.sectors)).sum()
    }

    /// Does it to the model.
    pub fn apply(&self, world: &mut World, device: usize) -> Outcome {
        let mut outcome = Outcome::Done;
        for range in &self.ranges {
            let (sector, sectors) = (range.sector, u64::from(range.sectors));
            let of_range = match self.kind {
                kind::IN => world.read_outcome(device, sector, sectors),
                kind::OUT => world.write(device, sector, &self.data),
                kind::DISCARD => world.discard(device, sector, sectors),
                _ => world.write_zeroes(device, sector, sectors),
            };
            if of_range == Outcome::Failed {
                outcome = Outcome::Failed;
            }
        }
        outcome
    }
}

/// The load of a round.
#[derive(Clone, Debug)]
pub struct Load {
    seed: u64,
    config: Config,
    features: u64,
    queues: usize,
    /// Data descriptors of a request at most.
    pieces: usize,
    next: u64,
}

impl Load {
    /// The load of a seed for a disk of this configuration.
    pub fn new(seed: u64, config: Config, features: u64, queues: usize, pieces: usize) -> Self {
        Load { seed, config, features, queues, pieces, next: 0 }
    }

    /// The next request.
    pub fn next(&mut self, world: &World, device: usize) -> Op {
        let number = self.next;
        self.next += 1;
        let mut rng = Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        let has = |bit| self.features & bit != 0;
        let kind = match rng.u8(..100) {
            0..40 => kind::IN,
            40..45 => kind::FLUSH,
            45..52 if has(feature::DISCARD) => kind::DISCARD,
            52..60 if has(feature::WRITE_ZEROES) => kind::WRITE_ZEROES,
            _ => kind::OUT,
        };
        let ranges = match kind {
            kind::FLUSH => 0,
            kind::DISCARD => rng.u32(1..=self.config.max_discard_seg.clamp(1, 3)),
            kind::WRITE_ZEROES => rng.u32(1..=self.config.max_write_zeroes_seg.clamp(1, 3)),
            _ => 1,
        };
        let ranges: Vec<Segment> = (0..ranges).map(|_| self.range(&mut rng, kind)).collect();
        let mut touched: Vec<(usize, u64)> =
            ranges.iter().flat_map(|r| world.footprint(device, r.sector, u64::from(r.sectors))).collect();
        touched.sort_unstable();
        let data = match (kind, ranges.first()) {
            (kind::OUT, Some(range)) => {
                (0..u64::from(range.sectors)).flat_map(|i| stamp(self.seed, number, range.sector + i)).collect()
            }
            _ => Vec::new(),
        };
        let indirect = has(feature::INDIRECT) && rng.bool();
        let mut shape = Shape::random(&mut rng, self.pieces, indirect);
        if !indirect {
            // All slots together have to fit into the ring.
            shape.header_parts = shape.header_parts.min(self.pieces);
        }
        Op { number, queue: rng.usize(..self.queues), kind, ranges, data, touched, shape }
    }

    fn range(&self, rng: &mut Rng, kind: u32) -> Segment {
        let longest = match kind {
            kind::DISCARD => LONGEST.min(self.config.max_discard_sectors.into()),
            kind::WRITE_ZEROES => LONGEST.min(self.config.max_write_zeroes_sectors.into()),
            _ => LONGEST,
        };
        let most = (1 << rng.u32(0..=7)).min(longest.max(1));
        let sectors = rng.u64(1..=most);
        let flags = if kind == kind::WRITE_ZEROES { rng.u32(0..=1) } else { 0 };
        Segment { sector: rng.u64(0..=self.config.capacity - sectors), sectors: sectors as u32, flags }
    }
}

/// The bytes that request `number` writes to a sector of the disk: both can be told from them.
fn stamp(seed: u64, number: u64, sector: u64) -> [u8; SECTOR as usize] {
    let mut out = [0; SECTOR as usize];
    let mut word = seed ^ (number << 32) ^ sector;
    for (i, bytes) in out.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => number,
            1 => sector,
            _ => {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                word ^ word >> 32
            }
        };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    out
}

/// Says in words what a sector holds.
pub fn describe(seed: u64, bytes: &[u8]) -> String {
    if bytes.iter().all(|&byte| byte == 0) {
        return "zeroes".into();
    }
    let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
    let (number, sector) = (word(0), word(8));
    let right = stamp(seed, number, sector);
    match bytes.iter().zip(&right).position(|(a, b)| a != b) {
        None => format!("what request {number} wrote to sector {sector}"),
        Some(at) if at >= 64 => format!("the first {at} bytes of what request {number} wrote to sector {sector}"),
        Some(_) => "bytes that no request wrote".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_where_it_comes_from() {
        let mut bytes = stamp(3, 4711, 99);
        assert_eq!(describe(3, &bytes), "what request 4711 wrote to sector 99");
        bytes[200] ^= 1;
        assert_eq!(describe(3, &bytes), "the first 200 bytes of what request 4711 wrote to sector 99");
        assert_eq!(describe(4, &bytes), "bytes that no request wrote");
        assert_eq!(describe(3, &[0; 512]), "zeroes");
    }
}
