//! Random stacks of random tables against a model that knows nothing of flattening, segments or legs: a
//! function from one sector to the place it is, computed by reading the tables from the top down.

use std::sync::Arc;

use dm_table::{DevRef, Format, Sectors, Source, Target, parse};
use proptest::prelude::*;
use vhost_user_dm::device::Limits;
use vhost_user_dm::map::{DevIx, LookupError, Lower, Map, Step};

const LIMITS: Limits = Limits {
    logical_block: 512,
    physical_block: 512,
    alignment_offset: 0,
    io_min: 512,
    io_opt: 0,
    discard: None,
    write_zeroes: false,
};

/// Sizes of the component devices, in sectors.
const DISKS: [u64; 3] = [97, 256, 1000];

/// Random numbers that shrink to short lists of small ones; past the end they are 0.
struct Choices<'c>(std::slice::Iter<'c, u32>);

impl Choices<'_> {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        u64::from(self.0.next().copied().unwrap_or(0)) % bound
    }

    fn is_spent(&self) -> bool {
        self.0.len() == 0
    }
}

/// A stack of tables; each may use the disks and the tables before it.
#[derive(Default)]
struct Stack {
    texts: Vec<String>,
    tables: Vec<Arc<dm_table::Table>>,
    maps: Vec<Arc<Map>>,
}

/// Where a sector is: a disk and a sector on it, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Disk(usize, u64),
    Zero,
    Error,
    /// A target takes it where it belongs; for ranges only.
    Target,
}

/// What a name in a random table stands for.
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

impl Stack {
    fn generate(choices: &mut Choices<'_>) -> Stack {
        let mut stack = Stack::default();
        let levels = 1 + choices.below(8);
        for _ in 0..levels {
            let text = stack.table(choices);
            stack.add(text);
        }
        stack
    }

    /// A name to use, and its size. Prefers the latest table, so that stacks grow high.
    fn lower(&self, choices: &mut Choices<'_>, at_least: u64) -> (String, u64) {
        let tables = self.tables.len() as u64;
        let pick = choices.below(2 * tables + DISKS.len() as u64);
        let (name, size) = match pick.checked_sub(DISKS.len() as u64) {
            None => (format!("d{pick}"), DISKS[pick as usize]),
            Some(n) => {
                let n = if n < tables { n } else { tables - 1 };
                let size = self.tables[n as usize].len().get();
                (format!("/dev/mapper/m{n}"), size)
            }
        };
        if size >= at_least { (name, size) } else { ("d2".to_owned(), DISKS[2]) }
    }

    fn table(&self, choices: &mut Choices<'_>) -> String {
        let mut text = String::new();
        let mut at = 0;
        for _ in 0..1 + choices.below(6) {
            let (len, params) = self.line(choices);
            text += &format!("{at} {len} {params}\n");
            at += len;
            if choices.is_spent() {
                break;
            }
        }
        text
    }

    fn line(&self, choices: &mut Choices<'_>) -> (u64, String) {
        match choices.below(10) {
            0..=3 => {
                let (name, size) = self.lower(choices, 1);
                let start = choices.below(size);
                let len = 1 + choices.below((size - start).min(200));
                (len, format!("linear {name} {start}"))
            }
            4 | 5 => {
                let (stripes, chunk, rows) = (1 + choices.below(4), 1 + choices.below(9), 1 + choices.below(6));
                let mut params = format!("striped {stripes} {chunk}");
                for _ in 0..stripes {
                    let (name, size) = self.lower(choices, chunk * rows);
                    let start = choices.below(size - chunk * rows + 1);
                    params += &format!(" {name} {start}");
                }
                (stripes * chunk * rows, params)
            }
            8 | 9 => {
                let (stripes, chunk, rows) = (1 + choices.below(4), 1 + choices.below(9), 1 + choices.below(6));
                let (name, size) = self.lower(choices, stripes * chunk * rows);
                let start = choices.below(size - stripes * chunk * rows + 1);
                let stripe = choices.below(stripes);
                (chunk * rows, format!("unstriped {stripes} {chunk} {stripe} {name} {start}"))
            }
            6 => (1 + choices.below(20), "zero".to_owned()),
            _ => (1 + choices.below(20), "error".to_owned()),
        }
    }

    fn add(&mut self, text: String) {
        let source = Arc::new(Source::new("random", text.as_str()));
        let file = parse(Arc::clone(&source), Format::Plain).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let table = file.devices[0].table.clone();
        let mut resolve = |dev: &DevRef| {
            Ok::<_, LookupError>(match named(dev) {
                Named::Table(n) => Lower::Map(Arc::clone(&self.maps[n])),
                Named::Disk(n) => Lower::Device {
                    ix: DevIx(n as u16),
                    name: dev.text.clone(),
                    size: Sectors::new(DISKS[n]),
                    limits: LIMITS,
                },
            })
        };
        let (map, _) =
            Map::build(&source, &table, false, &mut resolve).unwrap_or_else(|error| panic!("{text}\n{error}"));
        self.texts.push(text);
        self.tables.push(table);
        self.maps.push(Arc::new(map));
    }

    /// The model.
    fn place(&self, table: usize, sector: u64) -> Place {
        for line in &self.tables[table].lines {
            let (start, len) = (line.start.get(), line.len.get());
            if sector >= start + len {
                continue;
            }
            let off = sector - start;
            return match &line.target {
                Target::Zero => Place::Zero,
                Target::Linear(linear) => self.below(&linear.dev, linear.start.get() + off),
                Target::Striped(striped) => {
                    // Deal the chunks out one by one.
                    let stripes = &striped.stripes;
                    let mut dealt = vec![0; stripes.len()];
                    let mut left = off;
                    let mut turn = 0;
                    while left >= striped.chunk.get() {
                        left -= striped.chunk.get();
                        dealt[turn] += striped.chunk.get();
                        turn = (turn + 1) % stripes.len();
                    }
                    let stripe = &stripes[turn];
                    self.below(&stripe.dev, stripe.start.get() + dealt[turn] + left)
                }
                Target::Unstriped(unstriped) => {
                    // Count the stripe's chunks off the device one by one.
                    let (chunk, stripes) = (unstriped.chunk.get(), u64::from(unstriped.stripes));
                    let mut sectors = (0..).filter(|at| at / chunk % stripes == u64::from(unstriped.stripe));
                    let at = sectors.nth(off as usize).expect("there is no end to it");
                    self.below(&unstriped.dev, unstriped.start.get() + at)
                }
                _ => Place::Error,
            };
        }
        panic!("sector {sector} is beyond table {table}");
    }

    fn below(&self, dev: &DevRef, sector: u64) -> Place {
        match named(dev) {
            Named::Disk(disk) => Place::Disk(disk, sector),
            Named::Table(table) => self.place(table, sector),
        }
    }
}

fn places(step: Step, len: Sectors) -> impl Iterator<Item = Place> {
    (0..len.get()).map(move |i| match step {
        Step::Device { dev, at } => Place::Disk(usize::from(dev.0), at.get() + i),
        Step::Zero => Place::Zero,
        Step::Error => Place::Error,
        Step::Target { .. } => Place::Target,
    })
}

/// The sectors of a request as `pieces` gives them; checks order, lengths and that nothing is left out.
fn by_pieces(map: &Map, at: u64, len: u64) -> Vec<Place> {
    let mut found = Vec::new();
    map.pieces(Sectors::new(at), Sectors::new(len), &mut |piece| {
        assert_eq!(piece.skip.get(), found.len() as u64, "pieces are in order");
        assert!(!piece.len.is_zero(), "no piece is empty");
        found.extend(places(piece.step, piece.len));
    });
    found
}

fn by_ranges(map: &Map, at: u64, len: u64) -> Vec<Place> {
    let mut found = Vec::new();
    map.ranges(Sectors::new(at), Sectors::new(len), &mut |step, len, _| {
        assert!(!len.is_zero(), "no range is empty");
        found.extend(places(step, len));
    });
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_sector_is_where_the_tables_say(
        choices in prop::collection::vec(any::<u32>(), 0..250),
        requests in prop::collection::vec((any::<u32>(), any::<u32>()), 1..20),
    ) {
        let stack = Stack::generate(&mut Choices(choices.iter()));
        let top = stack.maps.len() - 1;
        let map = &stack.maps[top];
        let size = map.len().get();
        prop_assert_eq!(map.len(), stack.tables[top].len());
        let model: Vec<Place> = (0..size).map(|sector| stack.place(top, sector)).collect();
        let whole = std::iter::once((0, size));
        let random = requests.iter().map(|&(at, len)| {
            let at = u64::from(at) % size;
            (at, u64::from(len) % (size - at) + 1)
        });
        for (at, len) in whole.chain(random) {
            let expected = &model[at as usize..(at + len) as usize];
            let found = by_pieces(map, at, len);
            prop_assert_eq!(
                found.as_slice(), expected,
                "pieces of {}+{} in\n{}", at, len, stack.texts.join("--\n")
            );
            // Ranges come in any order; each sector of the request has its place touched exactly once.
            let found = by_ranges(map, at, len);
            prop_assert_eq!(found.len() as u64, len);
            let mut expected = expected.to_vec();
            expected.sort();
            for place in found.into_iter().filter(|place| *place != Place::Target) {
                let found = expected.binary_search(&place);
                prop_assert!(found.is_ok(), "{:?} in ranges of {}+{} in\n{}", place, at, len, stack.texts.join("--\n"));
                found.map(|found| expected.remove(found)).ok();
            }
        }
        prop_assert!(map.flush_set().is_sorted_by(|a, b| a < b));
        let mut flushed = map.flush_set().to_vec();
        flushed.extend(map.targets().iter().flat_map(|target| target.devices()));
        for place in model {
            if let Place::Disk(disk, _) = place {
                prop_assert!(flushed.contains(&DevIx(disk as u16)), "disk {} is not flushed", disk);
            }
        }
    }
}
