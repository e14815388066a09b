//! Any small stack of tables over devices that are not there.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use dm_table::{DevRef, Format, Sectors, Source, Table, Target, parse};
use vhost_user_dm::device::Limits;
use vhost_user_dm::map::{DevIx, LookupError, Lower, Map, Step};

/// Sizes of the devices, in sectors.
const DISKS: [u64; 4] = [97, 256, 1 << 20, (1 << 54) - 1];
/// Longest request that is followed sector by sector.
const SHORT: u64 = 512;

/// Makes a stack of tables of `data`, builds their maps, and follows requests through the topmost.
///
/// # Panics
/// Where a sector is not where the tables say, or a table is taken or refused wrongly.
pub fn map(data: &[u8]) {
    // An input that ends early gives a smaller stack.
    let _ = stacked(&mut Unstructured::new(data));
}

#[derive(Default)]
struct Stack {
    tables: Vec<Arc<Table>>,
    maps: Vec<Arc<Map>>,
    // Logical blocks of the devices, in sectors.
    blocks: [u64; DISKS.len()],
}

/// Where a sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Disk(usize, u64),
    Zero,
    Error,
}

/// What a name in a table stands for: `dN` for a device, `/dev/mapper/mN` for a table.
enum Named {
    Disk(usize),
    Table(usize),
}

fn named(dev: &DevRef) -> Named {
    let number = |text: &str| text[1..].parse().expect("the generator wrote a number");
    match dev.mapper_name() {
        Some(name) => Named::Table(number(name)),
        None => Named::Disk(number(&dev.text)),
    }
}

fn stacked(u: &mut Unstructured<'_>) -> Result<()> {
    let mut stack = Stack { blocks: [1; DISKS.len()], ..Stack::default() };
    if u.ratio(1, 8)? {
        stack.blocks[2] = 1 << u.int_in_range(0..=3)?;
        stack.blocks[3] = 1 << u.int_in_range(0..=3)?;
    }
    for _ in 0..u.int_in_range(1..=6)? {
        let text = stack.text(u)?;
        if !stack.add(&text) {
            break;
        }
    }
    let Some(top) = stack.maps.len().checked_sub(1) else { return Ok(()) };
    let size = stack.maps[top].len().get();
    for _ in 0..8 {
        let at = number(u, size - 1)?.min(size - 1);
        let len = number(u, size - at)?.clamp(1, size - at);
        stack.short(top, at, len.min(SHORT));
        stack.long(top, at, len);
        if u.is_empty() {
            break;
        }
    }
    Ok(())
}

/// A number that is likely to be at or near a border: mostly up to `most`.
fn number(u: &mut Unstructured<'_>, most: u64) -> Result<u64> {
    Ok(match u.int_in_range(0..=7u8)? {
        0..=2 => u.int_in_range(0..=most.min(255))?,
        3 | 4 => u.int_in_range(0..=most)?,
        5 => most,
        6 => most.wrapping_add(1).wrapping_sub(u.int_in_range(0..=255)?),
        _ => u.arbitrary()?,
    })
}

impl Stack {
    /// A name to use, and its size.
    fn lower(&self, u: &mut Unstructured<'_>) -> Result<(String, u64)> {
        let pick = u.int_in_range(0..=DISKS.len() + self.tables.len() - 1)?;
        Ok(match pick.checked_sub(DISKS.len()) {
            None => (format!("d{pick}"), DISKS[pick]),
            Some(n) => (format!("/dev/mapper/m{n}"), self.maps[n].len().get()),
        })
    }

    fn text(&self, u: &mut Unstructured<'_>) -> Result<String> {
        let mut text = String::new();
        let mut at = 0u64;
        for _ in 0..u.int_in_range(1..=5)? {
            let (len, params) = self.line(u)?;
            text += &format!("{at} {len} {params}\n");
            at = at.wrapping_add(len);
        }
        Ok(text)
    }

    fn line(&self, u: &mut Unstructured<'_>) -> Result<(u64, String)> {
        Ok(match u.int_in_range(0..=7u8)? {
            0..=3 => {
                let (name, size) = self.lower(u)?;
                let start = number(u, size)?;
                (number(u, size.saturating_sub(start))?, format!("linear {name} {start}"))
            }
            4 | 5 => {
                let stripes = u.int_in_range(1..=5u64)?;
                let (chunk, rows) = (number(u, 64)?, number(u, 16)?);
                let each = chunk.wrapping_mul(rows);
                let mut params = format!("striped {stripes} {chunk}");
                for _ in 0..stripes {
                    let (name, size) = self.lower(u)?;
                    params += &format!(" {name} {}", number(u, size.saturating_sub(each))?);
                }
                (each.wrapping_mul(stripes), params)
            }
            6 => (number(u, 255)?, "zero".to_owned()),
            _ => (number(u, 255)?, "error".to_owned()),
        })
    }

    /// Adds a table if it is one; a refusal must have its reason.
    fn add(&mut self, text: &str) -> bool {
        let source = Arc::new(Source::new("fuzz", text));
        let Ok(mut file) = parse(Arc::clone(&source), Format::Plain) else { return false };
        let table = file.devices.remove(0).table;
        let mut resolve = |dev: &DevRef| {
            Ok::<_, LookupError>(match named(dev) {
                Named::Table(n) => Lower::Map(Arc::clone(&self.maps[n])),
                Named::Disk(n) => Lower::Device {
                    ix: DevIx(n as u16),
                    name: dev.text.clone(),
                    size: Sectors::new(DISKS[n]),
                    limits: limits(self.blocks[n]),
                },
            })
        };
        let fits = self.fits(&table);
        match Map::build(&source, &table, false, &mut resolve) {
            Ok((map, warnings)) => {
                assert!(fits, "a line reaches beyond its device\n{text}");
                assert_eq!(map.len(), table.len());
                warnings.iter().for_each(|warning| assert!(!warning.to_string().is_empty()));
                self.tables.push(table);
                self.maps.push(Arc::new(map));
                true
            }
            Err(refusal) => {
                // Larger blocks are the one other thing that can be wrong with so small a stack.
                let aligned = self.blocks.iter().all(|&block| block == 1);
                assert!(!(fits && aligned), "refused although nothing is wrong: {refusal}\n{text}");
                false
            }
        }
    }

    /// Whether every line lies within the devices it names.
    fn fits(&self, table: &Table) -> bool {
        let within = |dev: &DevRef, start: u64, len: u64| {
            let size = match named(dev) {
                Named::Disk(disk) => DISKS[disk],
                Named::Table(table) => self.tables[table].len().get(),
            };
            u128::from(start) + u128::from(len) <= u128::from(size)
        };
        table.lines.iter().all(|line| match &line.target {
            Target::Linear(linear) => within(&linear.dev, linear.start.get(), line.len.get()),
            Target::Striped(striped) => {
                let len = line.len.get() / striped.stripes.len() as u64;
                striped.stripes.iter().all(|stripe| within(&stripe.dev, stripe.start.get(), len))
            }
            Target::Zero | Target::Error(_) => true,
            // Where the sectors of a stateful target are is for the target to say.
            _ => false,
        })
    }

    /// The model: where the tables say that a sector is.
    fn place(&self, table: usize, sector: u64) -> Place {
        let lines = &self.tables[table].lines;
        let line = lines.iter().find(|line| sector < line.start.get() + line.len.get()).expect("within the table");
        let off = sector - line.start.get();
        match &line.target {
            Target::Zero => Place::Zero,
            Target::Linear(linear) => self.below(&linear.dev, linear.start.get() + off),
            Target::Striped(striped) => {
                let (chunk, stripes) = (striped.chunk.get(), striped.stripes.len() as u64);
                let stripe = &striped.stripes[(off / chunk % stripes) as usize];
                self.below(&stripe.dev, stripe.start.get() + off / (chunk * stripes) * chunk + off % chunk)
            }
            _ => Place::Error,
        }
    }

    fn below(&self, dev: &DevRef, sector: u64) -> Place {
        match named(dev) {
            Named::Disk(disk) => Place::Disk(disk, sector),
            Named::Table(table) => self.place(table, sector),
        }
    }

    /// Every sector of a request, by pieces and by ranges.
    fn short(&self, top: usize, at: u64, len: u64) {
        let map = &self.maps[top];
        let mut expected: Vec<Place> = (at..at + len).map(|sector| self.place(top, sector)).collect();
        let mut found = Vec::new();
        map.pieces(Sectors::new(at), Sectors::new(len), &mut |piece| {
            assert!(piece.skip.get() == found.len() as u64 && !piece.len.is_zero(), "{piece:?}");
            found.extend(places(piece.step, piece.len));
        });
        assert_eq!(found, expected, "pieces of {at}+{len}");
        let mut found = Vec::new();
        map.ranges(Sectors::new(at), Sectors::new(len), &mut |step, len, _| {
            assert!(!len.is_zero());
            found.extend(places(step, len));
        });
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "ranges of {at}+{len}");
        for place in expected {
            if let Place::Disk(disk, _) = place {
                assert!(map.flush_set().contains(&DevIx(disk as u16)), "disk {disk} is not flushed");
            }
        }
    }

    /// A request of any length, by ranges: they are as long as it, inside their devices, and hold what it holds.
    fn long(&self, top: usize, at: u64, len: u64) {
        let mut found = Vec::new();
        self.maps[top].ranges(Sectors::new(at), Sectors::new(len), &mut |step, len, _| found.push((step, len.get())));
        assert_eq!(found.iter().map(|&(_, len)| len).sum::<u64>(), len, "{at}+{len}");
        for &(step, len) in &found {
            if let Step::Device { dev, at } = step {
                assert!(at.get() + len <= DISKS[usize::from(dev.0)], "{step:?} and {len} sectors");
            }
        }
        for n in 0..=8 {
            let sector = at + (u128::from(len - 1) * n / 8) as u64;
            let place = self.place(top, sector);
            let holds = |&(step, len): &(Step, u64)| match (step, place) {
                (Step::Device { dev, at }, Place::Disk(disk, sector)) => {
                    usize::from(dev.0) == disk && sector.checked_sub(at.get()).is_some_and(|into| into < len)
                }
                (Step::Zero, Place::Zero) | (Step::Error, Place::Error) => true,
                _ => false,
            };
            assert!(found.iter().any(holds), "sector {sector} of {at}+{len}, {place:?}, is in no range");
        }
    }
}

fn limits(block: u64) -> Limits {
    let bytes = (block * dm_table::SECTOR_SIZE) as u32;
    Limits {
        logical_block: bytes,
        physical_block: bytes,
        alignment_offset: 0,
        io_min: bytes,
        io_opt: 0,
        discard: None,
        write_zeroes: false,
    }
}

fn places(step: Step, len: Sectors) -> impl Iterator<Item = Place> {
    (0..len.get()).map(move |i| match step {
        Step::Device { dev, at } => Place::Disk(usize::from(dev.0), at.get() + i),
        Step::Zero => Place::Zero,
        Step::Error | Step::Target { .. } => Place::Error,
    })
}
