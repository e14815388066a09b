//! Components, tables over them, and what every sector must hold.
//!
//! A sector's place in one generation's table and in the next three never coincide with another sector's: each table lies in
//! one of four images of the movable part of the disk, in pieces that are cut and shuffled anew. So what a request did tells
//! which table it went through. The last part of the disk is pinned: all tables have it in the same place, so that what is
//! done twice, or late, shows there.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use dm_tests::files;
use fastrand::Rng;
use tempfile::TempDir;

pub const SECTOR: usize = 512;
/// Generations whose tables share no place but the pinned ones.
pub const IMAGES: u64 = 4;
const COMPONENTS: usize = 3;
/// Sectors of an image on a component.
const ZONE: u64 = 2048;
const MOVABLE: u64 = COMPONENTS as u64 * ZONE;
const PINNED: u64 = 2048;
/// Sectors of the disk.
pub const SECTORS: u64 = MOVABLE + PINNED;
const COMPONENT: u64 = IMAGES * ZONE + PINNED;
/// Of stripes, in sectors.
const CHUNK: u64 = 8;

/// What a sector holds: nothing but zeroes, or what can be told by this number.
pub type Stamp = u64;
pub const ZEROES: Stamp = 0;

/// A sector of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub component: usize,
    pub sector: u64,
}

/// The bytes of a sector.
pub fn write_sector(stamp: Stamp, out: &mut [u8]) {
    if stamp == ZEROES {
        return out.fill(0);
    }
    for (at, word) in out.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at as u32).to_le_bytes());
    }
}

pub fn bytes_of(stamps: &[Stamp]) -> Vec<u8> {
    let mut bytes = vec![0; stamps.len() * SECTOR];
    for (sector, stamp) in bytes.chunks_exact_mut(SECTOR).zip(stamps) {
        write_sector(*stamp, sector);
    }
    bytes
}

/// A table: its text, and where it has each sector.
pub struct Table {
    pub text: String,
    pub places: Vec<Place>,
}

enum Slot {
    Linear(Place, u64),
    /// Two legs of so many sectors each.
    Striped(Place, Place, u64),
}

/// The components' bytes, each page read once.
pub struct Look<'a> {
    files: &'a [File],
    pages: HashMap<(usize, u64), Vec<u8>>,
}

impl Look<'_> {
    pub fn holds(&mut self, place: Place, stamp: Stamp) -> bool {
        let at = place.sector * SECTOR as u64;
        let (page, skip) = (at & !4095, (at & 4095) as usize);
        let bytes =
            self.pages.entry((place.component, page)).or_insert_with(|| read_page(&self.files[place.component], page));
        let mut sector = [0; SECTOR];
        write_sector(stamp, &mut sector);
        bytes[skip..][..SECTOR] == sector
    }
}

/// By direct I/O, in pages of memory and disk: past a page cache that may be behind the direct writes.
fn read_page(file: &File, at: u64) -> Vec<u8> {
    let mut space = vec![0; 8192];
    let skip = space.as_ptr().align_offset(4096);
    let page = &mut space[skip..skip + 4096];
    file.read_exact_at(page, at).expect("read a component");
    page.to_vec()
}

/// Makes tables.
#[derive(Clone)]
pub struct Layout {
    paths: Vec<PathBuf>,
}

/// The components and what they must hold.
pub struct Ground {
    pub layout: Layout,
    files: Vec<File>,
    held: Vec<Vec<Stamp>>,
    _dirs: [TempDir; 2],
}

impl Ground {
    pub fn new() -> Ground {
        let dirs = [files::disk_dir(), files::memory_dir().unwrap_or_else(files::disk_dir)];
        let paths: Vec<PathBuf> =
            (0..COMPONENTS).map(|n| dirs[usize::from(n == 1)].path().join(format!("component{n}"))).collect();
        let initial = |n: usize| (0..COMPONENT).map(|sector| 1 << 63 | (n as u64) << 40 | sector).collect();
        let held: Vec<Vec<Stamp>> = (0..COMPONENTS).map(initial).collect();
        for (path, held) in paths.iter().zip(&held) {
            files::component(path, &bytes_of(held));
        }
        let files = paths.iter().map(open).collect();
        Ground { layout: Layout { paths }, files, held, _dirs: dirs }
    }

    /// What must be there.
    pub fn held(&self, place: Place) -> Stamp {
        self.held[place.component][place.sector as usize]
    }

    pub fn set(&mut self, place: Place, stamp: Stamp) {
        self.held[place.component][place.sector as usize] = stamp;
    }

    /// What is there indeed.
    pub fn look(&self) -> Look<'_> {
        Look { files: &self.files, pages: HashMap::new() }
    }

    /// Asserts that the components hold what they must, to the last sector.
    pub fn check(&self) {
        for (path, held) in self.layout.paths.iter().zip(&self.held) {
            let bytes = std::fs::read(path).expect("read a component");
            let wrong = bytes.chunks(SECTOR).zip(held).position(|(sector, stamp)| sector != bytes_of(&[*stamp]));
            assert_eq!(wrong, None, "first wrong sector of {}", path.display());
            assert_eq!(bytes.len(), held.len() * SECTOR);
        }
    }
}

impl Layout {
    /// A table for a generation.
    pub fn table(&self, generation: u64, rng: &mut Rng) -> Table {
        let image = generation % IMAGES * ZONE;
        let place = |component, sector| Place { component, sector: image + sector };
        let cuts = cut(ZONE, rng, CHUNK);
        let mut slots: Vec<Slot> = Vec::new();
        for &(start, len) in &cuts {
            let (one, other) = (place(0, start), place(1, start));
            if rng.bool() {
                slots.push(Slot::Striped(one, other, len));
            } else {
                slots.extend([Slot::Linear(one, len), Slot::Linear(other, len)]);
            }
        }
        slots.extend(cut(ZONE, rng, 1).into_iter().map(|(start, len)| Slot::Linear(place(2, start), len)));
        rng.shuffle(&mut slots);
        let pinned = |(start, len)| Slot::Linear(Place { component: 0, sector: IMAGES * ZONE + start }, len);
        slots.extend(cut(PINNED, rng, 1).into_iter().map(pinned));
        self.lay(&slots)
    }

    fn lay(&self, slots: &[Slot]) -> Table {
        let mut table = Table { text: String::new(), places: Vec::with_capacity(SECTORS as usize) };
        let name = |place: &Place| self.paths[place.component].display();
        for slot in slots {
            let start = table.places.len();
            let at = |place: &Place, offset| Place { sector: place.sector + offset, ..*place };
            match slot {
                Slot::Linear(place, len) => {
                    let _ = writeln!(table.text, "{start} {len} linear {} {}", name(place), place.sector);
                    table.places.extend((0..*len).map(|offset| at(place, offset)));
                }
                Slot::Striped(one, other, len) => {
                    let legs = format!("{} {} {} {}", name(one), one.sector, name(other), other.sector);
                    let _ = writeln!(table.text, "{start} {} striped 2 {CHUNK} {legs}", 2 * len);
                    for row in (0..*len).step_by(CHUNK as usize) {
                        table.places.extend((row..row + CHUNK).map(|offset| at(one, offset)));
                        table.places.extend((row..row + CHUNK).map(|offset| at(other, offset)));
                    }
                }
            }
        }
        assert_eq!(table.places.len() as u64, SECTORS, "test bug");
        table
    }
}

fn open(path: &PathBuf) -> File {
    let direct = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path);
    direct.or_else(|_| File::open(path)).expect("open a component")
}

/// Cuts `len` sectors into random pieces of a multiple of `unit` sectors.
fn cut(len: u64, rng: &mut Rng, unit: u64) -> Vec<(u64, u64)> {
    let mut cuts: Vec<u64> = (0..rng.u64(2..10)).map(|_| rng.u64(1..len / unit) * unit).collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect()
}
