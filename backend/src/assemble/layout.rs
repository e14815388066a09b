//! Where partitions lie on the disk, and which segments make it.

use super::host::Scheme;
use super::types::Type;
use uuid::Uuid;

/// Sectors of 512 bytes to which partitions are aligned, and that the header takes: 1 MiB.
pub const ALIGN: u64 = 2048;
/// Sectors that are kept for each extended boot record: a block of 4096 bytes, so that what follows stays aligned in the
/// file that holds them.
pub const RECORD: u64 = 8;
/// Entries of a GPT.
pub const GPT_ENTRIES: usize = 128;
/// Bytes of them.
const GPT_ENTRIES_BYTES: u64 = 128 * 128;

/// What is behind a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// Zeroes.
    Zero,
    /// A part of a file or block device.
    Linear {
        /// Its path.
        path: String,
        /// First sector on it.
        start: u64,
    },
}

/// A partition that is to be placed.
#[derive(Clone, Debug)]
pub struct Part {
    /// Place in the list of pieces.
    pub piece: usize,
    /// Name in the partition table.
    pub label: String,
    /// Type.
    pub kind: Type,
    /// Identity, of a GPT.
    pub guid: Uuid,
    /// Attributes, of a GPT.
    pub bits: u64,
    /// Whether it is marked active, of an MBR.
    pub active: bool,
    /// Number that it must have.
    pub number: Option<u32>,
    /// What is behind it.
    pub back: Back,
    /// Its length in sectors.
    pub len: u64,
}

/// What follows what on the disk.
#[derive(Clone, Debug)]
pub enum Item {
    /// Sectors that belong to nothing.
    Gap(u64),
    /// A partition.
    Part(Box<Part>),
}

/// The disk as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Kind of its partition table.
    pub scheme: Scheme,
    /// Sectors of 512 bytes in a logical block: 1 or 8.
    pub block: u64,
    /// Sectors that it must have.
    pub size: Option<u64>,
}

/// A partition and its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// What it is.
    pub part: Part,
    /// Its number in the table.
    pub number: u32,
    /// First sector.
    pub start: u64,
    /// Length in whole blocks.
    pub len: u64,
    /// Sector of its extended boot record, if it is a logical partition.
    pub record: Option<u64>,
}

/// The disk with all its partitions, in the order in which they lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Its shape.
    pub shape: Shape,
    /// Sectors.
    pub len: u64,
    /// Partitions.
    pub parts: Vec<Placed>,
}

/// Why there is no such disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// More partitions than the table has entries.
    TooMany(usize),
    /// `--size` is less than this.
    Size(u64),
    /// `--size` is not a number of whole blocks.
    Blocks,
    /// A piece wants the number that another one has.
    Number(usize),
    /// A piece wants a number, and logical partitions have theirs by their order.
    NumberOfLogical(usize),
    /// This piece ends where an MBR cannot reach.
    Beyond(usize),
    /// The disk would be larger than any.
    TooLarge,
}

impl Shape {
    /// Sectors that the backup of the table takes at the end.
    pub fn tail(&self) -> u64 {
        match self.scheme {
            Scheme::Gpt => self.gpt_tail(),
            Scheme::Mbr => 0,
        }
    }

    /// What a GPT takes at the end.
    fn gpt_tail(&self) -> u64 {
        self.block + GPT_ENTRIES_BYTES / 512
    }

    /// Places the items one after the other.
    ///
    /// # Errors
    /// Why they cannot be placed.
    pub fn place(self, items: Vec<Item>) -> Result<Layout, Misfit> {
        let count = items.iter().filter(|item| matches!(item, Item::Part(_))).count();
        // The fourth entry of an MBR is then the extended partition.
        let primary = match self.scheme {
            Scheme::Gpt if count > GPT_ENTRIES => return Err(Misfit::TooMany(count)),
            Scheme::Gpt => GPT_ENTRIES,
            Scheme::Mbr if count > 4 => 3,
            Scheme::Mbr => 4,
        };
        let numbers = numbers(&items, primary)?;
        let mut parts: Vec<Placed> = Vec::with_capacity(count);
        let mut at = ALIGN;
        for item in items {
            let part = match item {
                Item::Gap(len) => {
                    at = at.checked_add(len).ok_or(Misfit::TooLarge)?;
                    continue;
                }
                Item::Part(part) => *part,
            };
            at = aligned(at)?;
            let record = (parts.len() >= primary).then_some(at);
            let start = if record.is_some() { at + ALIGN } else { at };
            let len = part.len.checked_next_multiple_of(self.block).ok_or(Misfit::TooLarge)?;
            at = start.checked_add(len).ok_or(Misfit::TooLarge)?;
            if self.scheme == Scheme::Mbr && at / self.block > u64::from(u32::MAX) {
                return Err(Misfit::Beyond(part.piece));
            }
            parts.push(Placed { number: numbers[parts.len()], start, len, record, part });
        }
        let least = at.checked_add(self.tail()).ok_or(Misfit::TooLarge)?;
        let len = match self.size {
            Some(size) if size < least => return Err(Misfit::Size(least)),
            Some(size) if size % self.block != 0 => return Err(Misfit::Blocks),
            Some(size) => size,
            // An MBR may be made into a GPT later.
            None => aligned(at.checked_add(self.gpt_tail()).ok_or(Misfit::TooLarge)?)?,
        };
        if len > dm_table::Sectors::MAX_DEVICE.get() {
            return Err(Misfit::TooLarge);
        }
        Ok(Layout { shape: self, len, parts })
    }
}

fn aligned(at: u64) -> Result<u64, Misfit> {
    at.checked_next_multiple_of(ALIGN).ok_or(Misfit::TooLarge)
}

/// The partitions' numbers: those that were asked for, and for the others the lowest that are free.
fn numbers(items: &[Item], primary: usize) -> Result<Vec<u32>, Misfit> {
    let parts = || items.iter().filter_map(|item| if let Item::Part(part) = item { Some(part) } else { None });
    if primary == 3 {
        return match parts().find(|part| part.number.is_some()) {
            Some(part) => Err(Misfit::NumberOfLogical(part.piece)),
            None => Ok((1..=3).chain(5..).take(parts().count()).collect()),
        };
    }
    let mut taken = [false; GPT_ENTRIES + 1];
    for part in parts() {
        let Some(number) = part.number else { continue };
        match taken.get_mut(number as usize).filter(|_| number as usize <= primary) {
            Some(place) if !*place => *place = true,
            _ => return Err(Misfit::Number(part.piece)),
        }
    }
    let free: Vec<u32> = (1..=primary as u32).filter(|number| !taken[*number as usize]).collect();
    let mut free = free.into_iter();
    // There are as many numbers as partitions at least.
    Ok(parts().map(|part| part.number.or_else(|| free.next()).unwrap_or(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(piece: usize, len: u64) -> Item {
        Item::Part(Box::new(Part {
            piece,
            label: String::new(),
            kind: Type::Mbr(0x83),
            guid: Uuid::nil(),
            bits: 0,
            active: false,
            number: None,
            back: Back::Zero,
            len,
        }))
    }

    fn shape(scheme: Scheme, block: u64) -> Shape {
        Shape { scheme, block, size: None }
    }

    #[test]
    fn partitions_follow_each_other_at_whole_mebibytes() {
        let layout = shape(Scheme::Gpt, 1).place(vec![part(0, 5), Item::Gap(2048), part(2, 4096)]).unwrap();
        let places: Vec<_> = layout.parts.iter().map(|p| (p.number, p.start, p.len)).collect();
        assert_eq!(places, [(1, 2048, 5), (2, 6144, 4096)]);
        assert_eq!(layout.len, 12288);
        let layout = shape(Scheme::Gpt, 8).place(vec![part(0, 5)]).unwrap();
        assert_eq!(layout.parts[0].len, 8, "whole blocks");
        assert_eq!(layout.shape.tail(), 40);
    }

    #[test]
    fn a_fifth_partition_of_an_mbr_makes_the_last_ones_logical() {
        let layout = shape(Scheme::Mbr, 1).place((0..6).map(|piece| part(piece, 2048)).collect()).unwrap();
        let places: Vec<_> = layout.parts.iter().map(|p| (p.number, p.start, p.record)).collect();
        assert_eq!(
            places[2..],
            [(3, 6144, None), (5, 10240, Some(8192)), (6, 14336, Some(12288)), (7, 18432, Some(16384))]
        );
        assert_eq!(layout.len, 22528, "room for a GPT at the end");
    }

    #[test]
    fn misfits_say_which_piece_and_how_much() {
        assert_eq!(
            shape(Scheme::Gpt, 1).place((0..129).map(|p| part(p, 1)).collect()).unwrap_err(),
            Misfit::TooMany(129)
        );
        let sized = Shape { size: Some(4096), ..shape(Scheme::Gpt, 1) };
        assert_eq!(sized.place(vec![part(0, 2048)]).unwrap_err(), Misfit::Size(4129));
        let sized = Shape { size: Some(8193), ..shape(Scheme::Gpt, 8) };
        assert_eq!(sized.place(vec![part(0, 8)]).unwrap_err(), Misfit::Blocks);
        assert_eq!(shape(Scheme::Mbr, 1).place(vec![part(7, 1 << 32)]).unwrap_err(), Misfit::Beyond(7));
        assert!(shape(Scheme::Mbr, 8).place(vec![part(7, 1 << 32)]).is_ok());
        assert_eq!(shape(Scheme::Gpt, 1).place(vec![part(0, u64::MAX)]).unwrap_err(), Misfit::TooLarge);
        assert_eq!(shape(Scheme::Gpt, 1).place(vec![part(0, 1 << 60)]).unwrap_err(), Misfit::TooLarge);
    }

    #[test]
    fn numbers_are_those_asked_for_or_the_lowest_that_are_free() {
        let with = |piece, number| match part(piece, 1) {
            Item::Part(part) => Item::Part(Box::new(Part { number, ..*part })),
            gap => gap,
        };
        let numbers =
            |items| shape(Scheme::Mbr, 1).place(items).map(|l| l.parts.iter().map(|p| p.number).collect::<Vec<_>>());
        assert_eq!(numbers(vec![part(0, 1), with(1, Some(1)), with(2, Some(4)), part(3, 1)]), Ok(vec![2, 1, 4, 3]));
        assert_eq!(numbers(vec![with(0, Some(2)), with(1, Some(2))]), Err(Misfit::Number(1)));
        assert_eq!(numbers(vec![with(0, Some(5))]), Err(Misfit::Number(0)));
        let many = (0..5).map(|piece| with(piece, (piece == 2).then_some(1))).collect();
        assert_eq!(numbers(many), Err(Misfit::NumberOfLogical(2)));
    }
}
