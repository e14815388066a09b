//! The naive model: a random table walked sector by sector, and of each component sector all contents that it may hold.

use std::fmt::Write as _;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use dm_table::{Format, Sectors, Source, parse};
use fastrand::Rng;

use crate::chain::Chain;
use crate::device::{Access, Component, Discard, DiscardMethod, Limits};
use crate::map::{DevIx, LookupError, Lower, Map};
use crate::sim::{Nature, SECTOR, Sim, Temper};

pub(super) type Bytes = [u8; SECTOR];

/// What lies below a line.
#[derive(Clone, Copy, Debug)]
enum Under {
    Component(usize),
    // A table built before this one.
    Table(usize),
}

#[derive(Debug)]
enum Target {
    Linear(Under, u64),
    Striped(u64, Vec<(Under, u64)>),
    Zero,
    Error,
    /// A stateful one through which everything passes as it is; with what comes behind the device.
    Through(&'static str, Under, u64, String),
    /// Regions of so many sectors, on each range in turn, at the same place of it.
    Switch(u64, Vec<(Under, u64)>),
}

#[derive(Debug)]
struct Line {
    len: u64,
    target: Target,
}

/// Where a sector of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    Component(usize, u64),
    Zero,
    Error,
}

/// A content that a sector has, had or may have.
#[derive(Clone)]
pub(super) struct Version {
    pub bytes: Box<Bytes>,
    /// When the driver saw that the sector holds this.
    pub done: Option<u64>,
    /// The driver was promised that it lasts.
    pub durable: bool,
    /// What wrote it has failed: it may be there, and nobody relies on it.
    pub failed: bool,
}

pub(super) struct Sector {
    /// Oldest first.
    pub versions: Vec<Version>,
    /// A request of the driver is at it.
    pub busy: bool,
}

impl Sector {
    pub fn now(&self) -> &Bytes {
        let last = self.versions.iter().rfind(|v| v.done.is_some());
        &last.expect("a sector holds something").bytes
    }
}

pub(super) struct Part {
    pub sectors: Vec<Sector>,
    pub nature: Nature,
    pub method: Option<DiscardMethod>,
    /// What was done before this is on stable storage.
    pub flushed: u64,
    /// When a failure was seen that may have lost something. Until a flush that began later has succeeded, flushes may fail.
    pub lost: Option<u64>,
}

impl Part {
    /// Whether a discard gets through, by one way or the other, and whether it then zeroes.
    pub fn discards(&self) -> (bool, bool) {
        match self.method {
            Some(DiscardMethod::BlockCommand) if self.nature.no_discard.is_none() => (true, false),
            _ => (self.nature.no_punch.is_none(), true),
        }
    }
}

pub(super) struct World {
    pub parts: Vec<Part>,
    tables: Vec<Vec<Line>>,
    pub text: String,
    /// Sectors of a logical block.
    pub block: u64,
    pub len: u64,
    pub read_only: bool,
    pub discard: bool,
    /// Components that data of the disk is on.
    pub flush_set: Vec<usize>,
    pub large: bool,
}

/// A content for a sector: unlike any other, and unlike itself at other offsets.
pub(super) fn content(rng: &mut Rng, pool: &[u8]) -> Box<Bytes> {
    let mut bytes = Box::new([0; SECTOR]);
    let at = rng.usize(..pool.len() - SECTOR);
    bytes.copy_from_slice(&pool[at..at + SECTOR]);
    bytes[..8].copy_from_slice(&rng.u64(..).to_le_bytes());
    bytes
}

/// Whether `seen` begins like `new` and goes on like `old`.
pub(super) fn mixed(old: &Bytes, new: &Bytes, seen: &Bytes) -> bool {
    let begin = seen.iter().zip(new).take_while(|(a, b)| a == b).count();
    seen[begin..] == old[begin..]
}

impl World {
    /// Random components, made known to the engine, and a random table over them.
    pub fn new(rng: &mut Rng, pool: &[u8], sim: &Sim) -> (World, Chain) {
        let block = if rng.u8(..8) == 0 { 8 } else { 1 };
        let large = rng.u8(..24) == 0;
        let discard = rng.u8(..4) != 0;
        let mut parts = Vec::new();
        let mut components = Vec::new();
        for number in 0..rng.usize(1..=4) {
            let size = rng.u64(8..=if large { 400 } else { 20 }) * 8;
            let (part, component) = component(rng, pool, sim, number, size, block, discard);
            parts.push(part);
            components.push(Arc::new(component));
        }
        let mut used = vec![0; parts.len()];
        let mut world = World {
            parts,
            tables: Vec::new(),
            text: String::new(),
            block,
            len: 0,
            read_only: rng.u8(..16) == 0,
            discard: false,
            flush_set: Vec::new(),
            large,
        };
        let mut maps: Vec<Arc<Map>> = Vec::new();
        for _ in 0..rng.usize(1..=2) {
            let lines = world.lines(rng, &mut used);
            let text = world.print(&lines);
            maps.push(Arc::new(world.build(&text, &maps, &components)));
            let _ = writeln!(world.text, "table {}:\n{text}", maps.len() - 1);
            world.len = lines.iter().map(|line| line.len).sum();
            world.tables.push(lines);
        }
        let map = maps.pop().expect("at least one");
        let spots: Vec<Spot> = (0..world.len).map(|s| world.place(s, false).0).collect();
        let on = |n: &usize| spots.iter().any(|s| matches!(s, Spot::Component(number, _) if number == n));
        world.flush_set = (0..world.parts.len()).filter(on).collect();
        world.discard = map.limits().discard.is_some();
        let chain = Chain {
            name: "disk".into(),
            map,
            components: components.into_iter().collect(),
            read_only: world.read_only,
            limiters: Arc::default(),
            events: Arc::default(),
        };
        (world, chain)
    }

    fn under_len(&self, under: Under) -> u64 {
        match under {
            Under::Component(number) => self.parts[number].sectors.len() as u64,
            Under::Table(number) => self.tables[number].iter().map(|line| line.len).sum(),
        }
    }

    /// Up to `most` sectors that no line uses yet, at least one block; `None` if what is tried is full.
    fn room(&self, rng: &mut Rng, used: &mut [u64], most: u64) -> Option<(Under, u64, u64)> {
        let lowest = self.parts.len();
        let number = rng.usize(..used.len());
        let under = if number < lowest { Under::Component(number) } else { Under::Table(number - lowest) };
        let start = used[number] + rng.u64(..4) * self.block;
        let len = self.under_len(under).checked_sub(start)?.min(most) / self.block * self.block;
        if len == 0 {
            return None;
        }
        used[number] = start + len;
        Some((under, start, len))
    }

    fn lines(&self, rng: &mut Rng, used: &mut Vec<u64>) -> Vec<Line> {
        used.resize(self.parts.len() + self.tables.len(), 0);
        let mut lines = Vec::new();
        let few = if self.large { 2000 } else { 80 };
        let wanted = rng.usize(1..=6);
        for _ in 0..40 {
            let len = rng.u64(1..=few / self.block) * self.block;
            let target = match rng.u8(..14) {
                0 => Some((len.min(32), Target::Zero)),
                1 if !lines.is_empty() => Some((len.min(16), Target::Error)),
                10..13 => self.through(rng, used, len),
                13 => self.switch(rng, used, len),
                1..6 => self.room(rng, used, len).map(|(under, start, len)| (len, Target::Linear(under, start))),
                _ => self.striped(rng, used, len),
            };
            lines.extend(target.map(|(len, target)| Line { len, target }));
            if lines.len() == wanted {
                break;
            }
        }
        if lines.is_empty() {
            lines.push(Line { len: 8, target: Target::Zero });
        }
        lines
    }

    fn through(&self, rng: &mut Rng, used: &mut [u64], len: u64) -> Option<(u64, Target)> {
        let (under, start, len) = self.room(rng, used, len)?;
        let (name, behind) = match rng.u8(..4) {
            // A millisecond is a long time here.
            0 => ("delay", if rng.u8(..8) == 0 { "1" } else { "0" }.to_owned()),
            1 => ("flakey", "1000000 1".to_owned()),
            2 => ("dust", (self.block * SECTOR as u64).to_string()),
            _ => ("delay", "0".to_owned()),
        };
        Some((len, Target::Through(name, under, start, behind)))
    }

    fn switch(&self, rng: &mut Rng, used: &mut [u64], len: u64) -> Option<(u64, Target)> {
        let (first, second) = (self.room(rng, used, len)?, self.room(rng, used, len)?);
        let region = rng.u64(1..=6) * self.block;
        Some((first.2.min(second.2), Target::Switch(region, vec![(first.0, first.1), (second.0, second.1)])))
    }

    fn striped(&self, rng: &mut Rng, used: &mut [u64], len: u64) -> Option<(u64, Target)> {
        let chunk = rng.u64(1..=8) * self.block;
        let rows = len.div_ceil(chunk * 2);
        let mut legs = Vec::new();
        let mut least = rows;
        for _ in 0..rng.usize(1..=3) {
            if let Some((under, start, len)) = self.room(rng, used, rows * chunk) {
                legs.push((under, start));
                least = least.min(len / chunk);
            }
        }
        (!legs.is_empty() && least > 0).then(|| (least * chunk * legs.len() as u64, Target::Striped(chunk, legs)))
    }

    fn print(&self, lines: &[Line]) -> String {
        let name = |under: Under| match under {
            Under::Component(number) => format!("c{number}"),
            Under::Table(number) => format!("/dev/mapper/t{number}"),
        };
        let mut text = String::new();
        let mut start = 0;
        for line in lines {
            let _ = write!(text, "{start} {} ", line.len);
            let _ = match &line.target {
                Target::Linear(under, from) => write!(text, "linear {} {from}", name(*under)),
                Target::Striped(chunk, legs) => {
                    let _ = write!(text, "striped {} {chunk}", legs.len());
                    legs.iter().try_for_each(|(under, from)| write!(text, " {} {from}", name(*under)))
                }
                Target::Through(kind, under, from, behind) => {
                    write!(text, "{kind} {} {from} {behind}", name(*under))
                }
                Target::Switch(region, legs) => {
                    let _ = write!(text, "switch {} {region} 0", legs.len());
                    legs.iter().try_for_each(|(under, from)| write!(text, " {} {from}", name(*under)))
                }
                Target::Zero => write!(text, "zero"),
                Target::Error => write!(text, "error"),
            };
            text.push('\n');
            start += line.len;
        }
        text
    }

    fn build(&self, text: &str, maps: &[Arc<Map>], components: &[Arc<Component>]) -> Map {
        let file = parse(Arc::new(Source::new("t", text)), Format::Plain).unwrap_or_else(|e| panic!("{text}{e}"));
        let lower = |name: &str| -> Option<Lower> {
            if let Some(number) = name.strip_prefix('t') {
                return Some(Lower::Map(maps[number.parse::<usize>().ok()?].clone()));
            }
            let number: usize = name.strip_prefix('c')?.parse().ok()?;
            let c = &components[number];
            Some(Lower::Device { ix: DevIx(number as u16), name: c.name.clone(), size: c.size, limits: c.limits })
        };
        let mut resolve = |dev: &dm_table::DevRef| {
            lower(dev.mapper_name().unwrap_or(&dev.text)).ok_or_else(|| LookupError {
                errno: "ENOENT",
                why: dev.text.clone(),
                help: None,
            })
        };
        match Map::build(&file.source, &file.devices[0].table, false, &mut resolve) {
            Ok((map, _)) => map,
            Err(error) => panic!("{text}{error}"),
        }
    }

    /// Where a sector of the disk is, and a number for the operation that a request has there: sectors of one request
    /// that belong together have the same. `legs`: a striped line is one operation for each leg, not for each chunk.
    pub fn place(&self, sector: u64, legs: bool) -> (Spot, u64) {
        self.place_in(self.tables.len() - 1, sector, legs, 1)
    }

    fn place_in(&self, table: usize, sector: u64, whole: bool, path: u64) -> (Spot, u64) {
        let mut start = 0;
        for (number, line) in self.tables[table].iter().enumerate() {
            let inside = sector - start;
            if inside >= line.len {
                start += line.len;
                continue;
            }
            let path = path.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64);
            let (under, at, path) = match &line.target {
                Target::Zero => return (Spot::Zero, path),
                Target::Error => return (Spot::Error, path),
                Target::Linear(under, from) | Target::Through(_, under, from, _) => (*under, from + inside, path),
                Target::Switch(region, legs) => {
                    let (under, from) = legs[(inside / region) as usize % legs.len()];
                    (under, from + inside, path.wrapping_mul(0x9e37_79b9).wrapping_add(inside / region))
                }
                Target::Striped(chunk, legs) => {
                    let count = legs.len() as u64;
                    let (row, leg) = (inside / chunk / count, inside / chunk % count);
                    let (under, from) = legs[leg as usize];
                    let cut = if whole || count == 1 { leg } else { inside / chunk };
                    let path = path.wrapping_mul(0x9e37_79b9).wrapping_add(cut);
                    (under, from + row * chunk + inside % chunk, path)
                }
            };
            return match under {
                Under::Component(number) => (Spot::Component(number, at), path),
                Under::Table(number) => self.place_in(number, at, whole, path),
            };
        }
        panic!("sector {sector} is past the end of table {table}");
    }

    pub fn sector(&mut self, (part, at): (usize, u64)) -> &mut Sector {
        &mut self.parts[part].sectors[at as usize]
    }

    /// Holds an image of what a crash may leave against what the driver was promised.
    pub fn check_durable(&mut self, number: usize, image: &[u8]) {
        let part = &mut self.parts[number];
        for (at, (sector, seen)) in part.sectors.iter_mut().zip(image.chunks(SECTOR)).enumerate() {
            let lasts = |v: &Version| v.durable || (!v.failed && v.done.is_some_and(|done| done < part.flushed));
            let oldest = sector.versions.iter().rposition(lasts).unwrap_or(0);
            sector.versions.drain(..oldest);
            let seen: &Bytes = seen.try_into().expect("whole sectors");
            let right = sector.versions.iter().any(|v| *v.bytes == *seen)
                || sector.versions.windows(2).any(|pair| mixed(&pair[0].bytes, &pair[1].bytes, seen));
            assert!(
                right,
                "sector {at} of c{number}: what was promised to last is not there ({} versions allowed)",
                sector.versions.len()
            );
        }
    }

    /// Whether a flush may fail for what was lost before.
    pub fn has_lost(&self) -> bool {
        self.parts.iter().any(|part| part.lost.is_some())
    }

    /// Holds what the components hold against what they should, when no request is under way.
    pub fn check_now(&self, sim: &Sim) {
        for (number, part) in self.parts.iter().enumerate() {
            sim.look(number, |bytes| {
                for (at, (sector, seen)) in part.sectors.iter().zip(bytes.chunks(SECTOR)).enumerate() {
                    assert!(sector.now() == seen, "sector {at} of c{number} is not what was written there");
                }
            });
        }
    }
}

fn component(
    rng: &mut Rng,
    pool: &[u8],
    sim: &Sim,
    number: usize,
    size: u64,
    block: u64,
    discard: bool,
) -> (Part, Component) {
    let unit = SECTOR as u32 * block as u32;
    let (access, mem_align, unit) = match rng.u8(..5) {
        0 | 1 => (Access::Buffered, 1, 1),
        2 | 3 => (Access::Direct { mem_align: 512, offset_align: unit }, 512, unit),
        _ => (Access::Direct { mem_align: 4096, offset_align: 512 }, 4096, 512),
    };
    let mut refused = |errnos: &[i32]| (rng.u8(..3) == 0).then(|| errnos[rng.usize(..errnos.len())]);
    let nature = Nature {
        mem_align,
        unit,
        no_punch: refused(&[libc::EOPNOTSUPP]),
        no_zero: refused(&[libc::EOPNOTSUPP, libc::ENOSYS, libc::ENODEV]),
        no_discard: refused(&[libc::EOPNOTSUPP, libc::EINVAL, libc::ENOTTY]),
    };
    let method = discard.then(|| if rng.bool() { DiscardMethod::PunchHole } else { DiscardMethod::BlockCommand });
    let limits = Limits {
        logical_block: SECTOR as u32 * block as u32,
        physical_block: SECTOR as u32 * block as u32,
        alignment_offset: 0,
        io_min: 0,
        io_opt: 0,
        discard: method.map(|method| Discard { granularity: 512, max_sectors: 1 << 20, method }),
        write_zeroes: rng.bool(),
    };
    let sectors: Vec<Sector> = (0..size)
        .map(|_| Sector {
            versions: vec![Version { bytes: content(rng, pool), done: Some(0), durable: true, failed: false }],
            busy: false,
        })
        .collect();
    let bytes = sectors.iter().map(|s| &s.now()[..]).collect::<Vec<_>>().concat();
    let file = File::from(rustix::fs::memfd_create("component", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd"));
    assert_eq!(sim.add_device(&file, bytes, nature).expect("a simulated device"), number);
    let component = Component::simulated(file, number, Sectors::new(size), limits, access);
    (Part { sectors, nature, method, flushed: 0, lost: None }, component)
}

/// Quick devices and slow, nervous and calm, sound and failing ones.
pub(super) fn temper(rng: &mut Rng) -> Temper {
    Temper {
        latency: Duration::from_micros([0, 2, 20, 200][rng.usize(..4)]),
        short: [0, 0, 20, 70][rng.usize(..4)],
        again: [0, 0, 5, 30][rng.usize(..4)],
        fail: [0, 0, 10, 60][rng.usize(..4)],
    }
}
