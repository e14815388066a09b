//! The flat map from sectors of a disk to sectors of its component devices.
//!
//! A [`Map`] is built once, when a table is loaded, and only read afterwards: every request of the data plane
//! goes through [`Map::pieces`] (reads, writes) or [`Map::ranges`] (discard, write-zeroes), which allocate
//! nothing, count no references and call nothing dynamic.
//!
//! **Flattening.** A linear line over another map takes over that map's segments, shifted and clipped, so a
//! chain of linear maps of any depth costs what one costs. A striped segment stays arithmetic, clipped where a
//! linear line above it uses a part. A stripe over another map becomes a stripe over a device where the part
//! it uses is one linear piece; otherwise it refers to the lower map and is walked at run time, at most
//! [`MAX_STRIPED_DEPTH`] levels deep. A striped line with a single stripe is a linear one.
//!
//! **Segments are not merged**, even where two lines continue each other on one device: a segment is the unit
//! of statistics, and a table's author may expect requests to be cut where the lines are.
//!
//! The kernel's counterpart is `dm_table` with `dm_calculate_queue_limits` for the limits; the texts of
//! refusals are the kernel's own.

mod build;
mod index;
mod limits;
mod mirror;
mod overlap;
mod place;
mod snapshots;
mod stateful;
mod stripe;
#[cfg(test)]
mod tests;
mod unstripe;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

use dm_table::{Diagnostic, Sectors, Source, Table};

use crate::device;
pub(crate) use build::served;
use index::Index;
pub use limits::{Stacked, StackedDiscard};
pub use overlap::{Shared, shared};
pub use place::Place;
pub use stateful::{Position, positions, reach, shift, writes};
use stripe::Striped;
pub use stripe::{Key, Leg};
use unstripe::Unstriped;

use crate::targets::Stateful;

/// Most segments of one map after flattening: the kernel's own bound for the lines of a table
/// (`DM_MAX_TARGETS`). Lines over big lower maps multiply, so this is checked before memory is taken.
pub const MAX_SEGMENTS: usize = 1_048_576;

/// Most striped lines on top of one another, where the lower one could not be flattened away. The walk of a
/// request recurses once per level; this keeps its stack small.
pub const MAX_STRIPED_DEPTH: u32 = 64;

/// Index of a component device in the list that the caller keeps. One numbering for a whole process: lower
/// maps and the maps above them use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevIx(pub u16);

/// What a device name in a table stands for.
#[derive(Clone, Debug)]
pub enum Lower {
    /// A component device.
    Device {
        /// Its index in the caller's list.
        ix: DevIx,
        /// Its name for diagnostics, as the kernel prints it (`vda1`), or a file's name.
        name: String,
        /// Its size in whole sectors.
        size: Sectors,
        /// Its queue limits.
        limits: device::Limits,
    },
    /// Another device of the table file, already built.
    Map(Arc<Map>),
}

/// Why a device name stands for nothing that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupError {
    /// The symbolic errno the kernel would print, e.g. `ENOENT`.
    pub errno: &'static str,
    /// What was tried and why it failed.
    pub why: String,
    /// What would work, if that is known.
    pub help: Option<String>,
}

/// What is to be done with a piece of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do it on a component device.
    Device {
        /// The device.
        dev: DevIx,
        /// The first sector on it.
        at: Sectors,
    },
    /// Reads give zeros; everything else succeeds and does nothing (`zero`).
    Zero,
    /// Fails with an I/O error (`error`).
    Error,
    /// Give it to a stateful target.
    Target {
        /// Which one: see [`Map::target`].
        target: u32,
        /// Its first sector, counted from the start of the target's line.
        at: Sectors,
    },
}

/// A part of a request that goes to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it goes.
    pub step: Step,
    /// Sectors of the request before this piece.
    pub skip: Sectors,
    /// Its length in sectors, never 0.
    pub len: Sectors,
    /// The segment that it lies in, as a place in [`Map::places`]; what lies beyond the end has the place after the last.
    pub segment: u32,
}

/// A range of the disk that is mapped in one way.
#[derive(Clone, Debug)]
enum Segment {
    /// The segment's first sector is `start` on `dev`.
    Linear {
        dev: DevIx,
        start: u64,
    },
    Striped(Box<Striped>),
    Unstriped(Box<Unstriped>),
    Zero,
    Error,
    /// The segment begins `skip` sectors into the target's line.
    Target {
        target: u32,
        skip: u64,
    },
    /// Of a read-only device below one that is not: reads go where they would go, anything else fails. Never one in another.
    ReadOnly(Box<Segment>),
}

impl Segment {
    /// The segment itself, whether or not it may be written.
    fn inner(&self) -> &Segment {
        match self {
            Segment::ReadOnly(inner) => inner,
            other => other,
        }
    }

    /// The same, beginning `sectors` later.
    fn clipped(&self, sectors: u64) -> Segment {
        match self {
            Segment::Linear { dev, start } => Segment::Linear { dev: *dev, start: start + sectors },
            Segment::Striped(striped) => Segment::Striped(Box::new(striped.clipped(sectors))),
            Segment::Unstriped(unstriped) => Segment::Unstriped(Box::new(unstriped.clipped(sectors))),
            Segment::Zero => Segment::Zero,
            Segment::Error => Segment::Error,
            Segment::Target { target, skip } => Segment::Target { target: *target, skip: skip + sectors },
            Segment::ReadOnly(inner) => Segment::ReadOnly(Box::new(inner.clipped(sectors))),
        }
    }

    /// The same among other targets: those of its map have numbers from `first` on.
    fn renumber(&mut self, first: u32) {
        match self {
            Segment::Target { target, .. } => *target += first,
            Segment::Striped(striped) => **striped = striped.renumbered(first),
            Segment::Unstriped(unstriped) => **unstriped = unstriped.renumbered(first),
            Segment::ReadOnly(inner) => inner.renumber(first),
            Segment::Linear { .. } | Segment::Zero | Segment::Error => {}
        }
    }
}

/// A segment and where it lies: what a request that falls into it needs to know, in one cache line. At random places of a long
/// table each line is fetched from afar.
#[derive(Clone, Debug)]
#[repr(align(32))]
struct Entry {
    /// Its first sector.
    start: u64,
    /// The first sector behind it.
    end: u64,
    segment: Segment,
}

const _: () = assert!(size_of::<Entry>() == 32);

/// Where the data of a disk is: sector ranges in order, from sector 0 without a gap.
#[derive(Clone, Debug)]
pub struct Map {
    /// The first begins at 0, the others where the one before ends.
    entries: Box<[Entry]>,
    index: Index,
    /// Sectors of the disk: where the last segment ends.
    end: u64,
    limits: Stacked,
    /// Sorted, without repetition.
    flush_set: Box<[DevIx]>,
    /// Names for diagnostics of every device that data of this map can be on, also through lower maps.
    names: BTreeMap<DevIx, Arc<str>>,
    /// Sorted, without repetition: those of the flush set and those of stateful targets.
    devices: Box<[DevIx]>,
    /// First sectors of its own lines that have stateful targets, and the numbers of those; ascending.
    own: Box<[(u64, u32)]>,
    /// Stateful targets that its segments lead to, those of lower maps included.
    targets: Box<[Arc<Stateful>]>,
    /// What they write; sorted, without repetition.
    targets_write: Box<[DevIx]>,
    /// Sorted, without repetition: those of the flush set and those that stateful targets write.
    written: Box<[DevIx]>,
    /// Striped levels that a walk has to recurse through.
    depth: u32,
    /// The mapped device that it is the table of.
    minor: Option<u32>,
}

impl Map {
    /// Builds the map of `table`, which was read from `source`, and the warnings it gave.
    ///
    /// `resolve` is asked for every device that the table names, line by line, as often as it is named; a
    /// refusal becomes the kernel's look-up error for that line. After all lines the kernel's limits layer
    /// follows: sizes and block alignment of every range, then the table's own boundaries
    /// (`dm_calculate_queue_limits`). The first thing wrong is the error; its [`Diagnostic::reason`] is the
    /// kernel's text.
    ///
    /// An empty table gives an empty map. `read_only` says that nothing will be written, so that one component
    /// sector reachable in two ways is no cause for a warning.
    pub fn build(
        source: &Source,
        table: &Table,
        read_only: bool,
        resolve: &mut dyn FnMut(&dm_table::DevRef) -> Result<Lower, LookupError>,
    ) -> Result<(Map, Vec<Diagnostic>), Diagnostic> {
        build::build(source, table, read_only, resolve, None)
    }

    /// The same in place of `previous`, which was built of the same table: its stateful targets keep what they remember.
    ///
    /// # Errors
    /// As [`Map::build`].
    pub fn rebuild(
        source: &Source,
        table: &Table,
        read_only: bool,
        resolve: &mut dyn FnMut(&dm_table::DevRef) -> Result<Lower, LookupError>,
        previous: &Map,
    ) -> Result<(Map, Vec<Diagnostic>), Diagnostic> {
        build::build(source, table, read_only, resolve, Some(previous))
    }

    /// The same map, at least so many sectors long: what lies beyond its end fails. For a map that others lie on and that
    /// has become shorter.
    pub fn padded(&self, len: Sectors) -> Map {
        let mut map = self.clone();
        if len.get() <= self.end || self.entries.len() >= MAX_SEGMENTS {
            return map;
        }
        let beyond = Entry { start: self.end, end: len.get(), segment: Segment::Error };
        map.entries = self.entries.iter().cloned().chain([beyond]).collect();
        map.end = len.get();
        map.index = Index::new(&map.entries);
        map
    }

    /// The same map as that of a mapped device, by its minor number.
    pub fn of_device(mut self, minor: u32) -> Map {
        self.minor = Some(minor);
        self
    }

    /// The size of the disk in sectors.
    #[inline]
    pub fn len(&self) -> Sectors {
        Sectors::new(self.end)
    }

    /// Whether the disk has no sectors.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Number of segments after flattening.
    pub fn segments(&self) -> usize {
        self.entries.len()
    }

    /// A stateful target, by its number in a step.
    #[inline]
    pub fn target(&self, number: u32) -> Option<&Arc<Stateful>> {
        self.targets.get(number as usize)
    }

    /// The stateful target of the line that begins at `start`, if it has one. Not one of a lower map.
    pub fn own_target(&self, start: Sectors) -> Option<&Arc<Stateful>> {
        let at = self.own.binary_search_by_key(&start.get(), |(start, _)| *start).ok()?;
        self.target(self.own[at].1)
    }

    /// Those of its own lines.
    pub fn own_targets(&self) -> impl Iterator<Item = &Arc<Stateful>> {
        self.own.iter().filter_map(|(_, number)| self.target(*number))
    }

    /// The same, with the first sectors of the lines.
    pub fn own_lines(&self) -> impl Iterator<Item = (Sectors, &Arc<Stateful>)> {
        self.own.iter().filter_map(|(start, number)| Some((Sectors::new(*start), self.target(*number)?)))
    }

    /// All stateful targets.
    pub fn targets(&self) -> &[Arc<Stateful>] {
        &self.targets
    }

    /// The same map for use among other targets: its own have numbers from `first` on.
    fn renumbered(&self, first: u32) -> Map {
        let mut map = self.clone();
        map.entries.iter_mut().for_each(|entry| entry.segment.renumber(first));
        map
    }

    /// The limits of the disk, stacked from those of its components.
    pub fn limits(&self) -> &Stacked {
        &self.limits
    }

    /// The devices that a request can reach, ascending, each once.
    pub fn devices(&self) -> &[DevIx] {
        &self.devices
    }

    /// The devices that a request, or a stateful target by itself, can write to; ascending, each once. The others are read at
    /// most.
    pub fn written(&self) -> &[DevIx] {
        &self.written
    }

    /// The same map where nothing may be written: whatever is not a read or a flush fails. For a read-only device that a
    /// writable one lies on. (The kernel only warns of such writes, and does them: `bio_check_ro` of blk-core.c.)
    pub fn for_reading(&self) -> Map {
        let guarded = |entry: &Entry| match &entry.segment {
            Segment::Error | Segment::ReadOnly(_) => entry.clone(),
            other => Entry { segment: Segment::ReadOnly(Box::new(other.clone())), ..*entry },
        };
        Map {
            entries: self.entries.iter().map(guarded).collect(),
            targets_write: Box::default(),
            written: Box::default(),
            flush_set: Box::default(),
            limits: self.limits.for_reading(),
            ..self.clone()
        }
    }

    /// The same map as a disk of blocks of `block` bytes at least, whatever smaller ones its devices have.
    pub fn in_blocks(&self, block: u32) -> Map {
        Map { limits: self.limits.in_blocks(block), ..self.clone() }
    }

    /// The devices that a flush must reach, ascending, each once: those that a write to this disk can reach.
    ///
    /// Where a stripe uses a part of a lower map, all devices of that lower map count.
    pub fn flush_set(&self) -> &[DevIx] {
        &self.flush_set
    }
}
