//! Operations on a disk in one line of text each, for whoever carries them out: a front end of these tests, or the kernel
//! of a guest. What they said is compared as text, too.

use std::fmt;
use std::str::FromStr;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// One operation. Positions and lengths count sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `r SECTOR SECTORS`
    Read(u64, u32),
    /// `w SECTOR SECTORS SEED`: of the bytes that [`fill`] makes of the seed.
    Write(u64, u32, u64),
    /// `f`
    Flush,
    /// `d SECTOR SECTORS`
    Discard(u64, u32),
    /// `z SECTOR SECTORS`
    WriteZeroes(u64, u32),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Read(at, len) => write!(f, "r {at} {len}"),
            Operation::Write(at, len, seed) => write!(f, "w {at} {len} {seed}"),
            Operation::Flush => f.write_str("f"),
            Operation::Discard(at, len) => write!(f, "d {at} {len}"),
            Operation::WriteZeroes(at, len) => write!(f, "z {at} {len}"),
        }
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("not an operation: {text:?}");
        let mut words = text.split(' ');
        let kind = words.next().ok_or_else(refused)?;
        let numbers: Vec<u64> = words.map(|word| word.parse().map_err(|_| refused())).collect::<Result<_, _>>()?;
        let short = |len: u64| u32::try_from(len).map_err(|_| refused());
        match (kind, numbers.as_slice()) {
            ("r", &[at, len]) => Ok(Operation::Read(at, short(len)?)),
            ("w", &[at, len, seed]) => Ok(Operation::Write(at, short(len)?, seed)),
            ("f", []) => Ok(Operation::Flush),
            ("d", &[at, len]) => Ok(Operation::Discard(at, short(len)?)),
            ("z", &[at, len]) => Ok(Operation::WriteZeroes(at, short(len)?)),
            _ => Err(refused()),
        }
    }
}

/// What became of an operation; a read has a digest of what it read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done(Option<u64>),
    /// It failed, with this word.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(None) => f.write_str("ok"),
            Outcome::Done(Some(digest)) => write!(f, "ok {digest:016x}"),
            Outcome::Failed(why) => f.write_str(why),
        }
    }
}

/// The bytes of a write: the same in each place that knows the seed, and others in each sector.
pub fn fill(seed: u64, out: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let (words, _) = out.as_chunks_mut::<8>();
    for word in words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
}

/// A digest of whole sectors.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    // Eight bytes at a time: an emulated guest does this, too.
    let (words, _) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_read_as_it_was_written() {
        for text in ["r 1 2", "w 3 4 5", "f", "d 6 7", "z 8 4294967295"] {
            assert_eq!(text.parse::<Operation>().unwrap().to_string(), text);
        }
        for text in ["", "r 1", "r 1 2 3", "f 1", "x 1 2", "r 1 4294967296", "w a b c"] {
            assert!(text.parse::<Operation>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_digest_tells_bytes_and_their_order_apart() {
        let mut bytes = vec![0; 4 * SECTOR];
        fill(7, &mut bytes);
        let right = digest(&bytes);
        bytes.swap(8, 16);
        assert_ne!(digest(&bytes), right);
        bytes.swap(8, 16);
        assert_eq!(digest(&bytes), right);
        let (first, rest) = bytes.split_at(SECTOR);
        assert!(rest.chunks(SECTOR).all(|sector| sector != first));
    }
}
