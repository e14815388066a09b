//! From a parsed table to a flat map: look-up, limits layer, flattening, in the order in which the kernel does
//! the first two and with its texts.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dm_table::{DevRef, Diagnostic, Line, Source, Span, Table, Target};

use crate::targets::Stateful;

use super::index::Index;
use super::mirror;
use super::stateful;
use super::stripe::{Key, Leg, Striped};
use super::{
    DevIx, Entry, LookupError, Lower, MAX_SEGMENTS, MAX_STRIPED_DEPTH, Map, Segment, Stacked, limits, overlap,
};

/// A line of the table with its devices looked up.
pub(super) struct Resolved<'t> {
    pub line: &'t Line,
    /// The device ranges it names: one for linear, one per stripe, none for zero.
    pub areas: Vec<Area<'t>>,
}

/// A range of a device or lower map that a line names. Not yet checked to lie inside it.
pub(super) struct Area<'t> {
    pub dev: &'t DevRef,
    pub start: u64,
    pub start_span: Span,
    pub len: u64,
    pub lower: Lower,
    /// Whether the target writes there.
    pub write: bool,
    /// Nothing of the disk is there: see [`stateful::Position::aside`].
    pub aside: bool,
}

impl Area<'_> {
    /// The name the kernel would print; for a lower map, the one the table gives it.
    pub fn name(&self) -> &str {
        match &self.lower {
            Lower::Device { name, .. } => name,
            Lower::Map(_) => self.dev.mapper_name().unwrap_or(&self.dev.text),
        }
    }

    pub fn size(&self) -> u64 {
        match &self.lower {
            Lower::Device { size, .. } => size.get(),
            Lower::Map(map) => map.end,
        }
    }

    /// Which device it is on.
    pub fn key(&self) -> Option<Key> {
        own_leg(self).key()
    }

    pub fn limits(&self) -> Stacked {
        match &self.lower {
            Lower::Device { limits, .. } if self.write => Stacked::from(limits),
            Lower::Device { limits, .. } => Stacked::from(limits).for_reading(),
            Lower::Map(map) if self.write => map.limits,
            Lower::Map(map) => map.limits.for_reading(),
        }
    }
}

type Resolve<'r> = &'r mut dyn FnMut(&DevRef) -> Result<Lower, LookupError>;

pub(super) fn build(
    source: &Source,
    table: &Table,
    read_only: bool,
    resolve: Resolve<'_>,
    previous: Option<&Map>,
) -> Result<(Map, Vec<Diagnostic>), Diagnostic> {
    let mut resolved = Vec::with_capacity(table.lines.len());
    for line in &table.lines {
        let areas = look_up(source, line, resolve)?;
        resolved.push(Resolved { line, areas });
    }
    let mut warnings: Vec<Diagnostic> =
        resolved.iter().filter_map(|line| stateful::remark(source, line.line, &line.areas)).collect();
    let stacked = limits::calculate(source, &resolved, &mut warnings)?;
    let mut flat = Flat { previous, read_only, entries: Vec::with_capacity(table.lines.len()), ..Flat::default() };
    for line in &resolved {
        flat.add(source, line)?;
    }
    let names = names(&resolved);
    if !read_only {
        overlap::warn(source, &resolved, &names, &mut warnings);
    }
    let (mut devices, flush_set) = reached(&flat.entries);
    devices.extend(flat.targets.iter().flat_map(|target| target.devices()));
    let mut written = flush_set.clone();
    written.extend(&flat.targets_write);
    let map = Map {
        flush_set: flush_set.into_iter().collect(),
        written: written.into_iter().collect(),
        devices: devices.into_iter().collect(),
        own: flat.own.into(),
        targets: flat.targets.into(),
        targets_write: flat.targets_write.into_iter().collect(),
        index: Index::new(&flat.entries),
        entries: flat.entries.into(),
        end: flat.end,
        limits: stacked,
        names,
        depth: flat.depth,
        minor: previous.and_then(|map| map.minor),
    };
    Ok((map, warnings))
}

/// Whether there is something that serves targets of this type; the table language knows more.
pub(crate) fn served(type_name: &str) -> bool {
    matches!(
        type_name,
        "linear"
            | "striped"
            | "zero"
            | "error"
            | "delay"
            | "flakey"
            | "dust"
            | "unstriped"
            | "switch"
            | "ebs"
            | "snapshot"
            | "snapshot-origin"
            | "snapshot-merge"
            | "log-writes"
            | "mirror"
    )
}

fn unknown_type(source: &Source, line: &Line) -> Diagnostic {
    let name = line.target.type_name();
    Diagnostic::error(source, line.type_span, format!("{name}: unknown target type")).found(format!("\"{name}\""))
}

/// The part of the constructors that dm-table leaves: finding the devices.
fn look_up<'t>(source: &Source, line: &'t Line, resolve: Resolve<'_>) -> Result<Vec<Area<'t>>, Diagnostic> {
    if !served(line.target.type_name()) {
        return Err(unknown_type(source, line));
    }
    let mut area = |dev: &'t DevRef, start: u64, start_span, len: u64, failure: &str| {
        let lower = resolve(dev).map_err(|error| refused(source, dev, failure, error))?;
        Ok(Area { dev, start, start_span, len, lower, write: true, aside: false })
    };
    match &line.target {
        Target::Linear(linear) => Ok(vec![area(
            &linear.dev,
            linear.start.get(),
            linear.start_span,
            line.len.get(),
            "linear: Device lookup failed",
        )?]),
        Target::Striped(striped) => {
            if let Some(reason) = wrong_geometry(line, striped) {
                return Err(Diagnostic::error(source, line.span, reason));
            }
            let len = line.len.get() / striped.stripes.len() as u64;
            let stripes = striped.stripes.iter().map(|stripe| {
                area(
                    &stripe.dev,
                    stripe.start.get(),
                    stripe.start_span,
                    len,
                    "striped: Couldn't parse stripe destination",
                )
            });
            stripes.collect()
        }
        Target::Error(error) => match &error.dev {
            None => Ok(Vec::new()),
            Some((dev, start)) => {
                Ok(vec![area(dev, start.get(), dev.span, line.len.get(), "error: Device lookup failed")?])
            }
        },
        Target::Zero => Ok(Vec::new()),
        other => {
            let positions = stateful::positions(other).into_iter().enumerate();
            let len = stateful::reach(other, line.len).get();
            let area = |(n, at): (usize, stateful::Position<'t>)| {
                let failed = |error: LookupError| because(source, at.dev, other.lookup_failed(n, error.errno), error);
                let lower = resolve(at.dev).map_err(failed)?;
                let shift = if at.aside { 0 } else { stateful::shift(other, line.start).get() };
                let (start, write, aside) = (at.start.get().saturating_add(shift), at.write, at.aside);
                let mut area = Area { dev: at.dev, start, start_span: at.start_span, len, lower, write, aside };
                if aside || at.whole {
                    area.len = area.size().saturating_sub(start);
                }
                Ok(area)
            };
            let areas: Vec<Area<'t>> = positions.map(area).collect::<Result<_, _>>()?;
            stateful::check(source, line, &areas)?;
            Ok(areas)
        }
    }
}

/// The parser refuses these; a table made by hand must not lead to wrong sectors either.
fn wrong_geometry(line: &Line, striped: &dm_table::Striped) -> Option<&'static str> {
    let (len, chunk, stripes) = (line.len.get(), striped.chunk.get(), striped.stripes.len() as u64);
    if stripes == 0 {
        Some("striped: Invalid stripe count")
    } else if chunk == 0 {
        Some("striped: Invalid chunk_size")
    } else if !len.is_multiple_of(stripes) {
        Some("striped: Target length not divisible by number of stripes")
    } else if !(len / stripes).is_multiple_of(chunk) {
        Some("striped: Target length not divisible by chunk size")
    } else {
        None
    }
}

fn refused(source: &Source, dev: &DevRef, failure: &str, error: LookupError) -> Diagnostic {
    because(source, dev, format!("{failure} (-{})", error.errno), error)
}

fn because(source: &Source, dev: &DevRef, reason: String, error: LookupError) -> Diagnostic {
    let refusal = Diagnostic::error(source, dev.span, reason).found(error.why);
    match error.help {
        Some(help) => refusal.help(help),
        None => refusal,
    }
}

/// The map's arrays while they grow.
#[derive(Default)]
struct Flat<'p> {
    // The map of the same table that this one replaces.
    previous: Option<&'p Map>,
    // Nothing is written.
    read_only: bool,
    entries: Vec<Entry>,
    end: u64,
    depth: u32,
    targets: Vec<Arc<Stateful>>,
    targets_write: BTreeSet<DevIx>,
    own: Vec<(u64, u32)>,
    // Lower maps whose targets are among `targets`, with the number of the first.
    above: HashMap<*const Map, u32>,
}

impl Flat<'_> {
    /// The number that a lower map's first target has here.
    fn first_target(&mut self, map: &Arc<Map>) -> u32 {
        let next = self.targets.len() as u32;
        let first = *self.above.entry(Arc::as_ptr(map)).or_insert(next);
        if first == next {
            self.targets.extend(map.targets().iter().cloned());
            self.targets_write.extend(&map.targets_write);
        }
        first
    }

    fn add(&mut self, source: &Source, resolved: &Resolved<'_>) -> Result<(), Diagnostic> {
        let line = resolved.line;
        match (&line.target, resolved.areas.as_slice()) {
            (Target::Zero, _) => self.push(source, line, Segment::Zero, line.len.get()),
            (Target::Error(_), _) => self.push(source, line, Segment::Error, line.len.get()),
            // One stripe deals its chunks out in order: nothing is striped about it.
            (Target::Linear(_) | Target::Striped(_), [area]) => self.add_linear(source, line, area),
            (Target::Linear(_), _) => self.push(source, line, Segment::Error, line.len.get()),
            (Target::Unstriped(unstriped), [area]) => self.add_unstriped(source, line, unstriped, area),
            (target, areas) if stateful::is_one(target) => self.add_stateful(source, line, areas),
            (Target::Striped(striped), areas) => {
                let mut legs = Vec::with_capacity(areas.len());
                for area in areas {
                    legs.push(self.leg(source, area)?);
                }
                let striped = Box::new(Striped::new(striped.chunk.get(), legs));
                self.push(source, line, Segment::Striped(striped), line.len.get())
            }
            _ => Err(unknown_type(source, line)),
        }
    }

    fn add_linear(&mut self, source: &Source, line: &Line, area: &Area<'_>) -> Result<(), Diagnostic> {
        match &area.lower {
            Lower::Device { ix, .. } => {
                let segment = Segment::Linear { dev: *ix, start: area.start };
                self.push(source, line, segment, area.len)
            }
            Lower::Map(map) => {
                let first = self.first_target(map);
                for (segment, into, take) in map.covered(area.start, area.len) {
                    if let Segment::Striped(_) | Segment::Unstriped(_) = segment.inner() {
                        self.depth = self.depth.max(map.depth);
                    }
                    let mut clipped = segment.clipped(into);
                    if first > 0 {
                        clipped.renumber(first);
                    }
                    self.push(source, line, clipped, take)?;
                }
                Ok(())
            }
        }
    }

    fn add_stateful(&mut self, source: &Source, line: &Line, areas: &[Area<'_>]) -> Result<(), Diagnostic> {
        let legs: Vec<Leg> = areas.iter().map(own_leg).collect();
        let target = match self.previous.and_then(|map| map.own_target(line.start)) {
            // It keeps what it remembers.
            Some(target) => target.again(legs),
            None => match &line.target {
                Target::Mirror(of) => mirror::make(line, of, areas, legs, self.read_only),
                _ => stateful::make(source, line, areas, legs, self.read_only)?,
            },
        };
        let number = self.own_target(line, target, areas);
        self.push(source, line, Segment::Target { target: number, skip: 0 }, line.len.get())
    }

    /// The number of a line's target.
    fn own_target(&mut self, line: &Line, target: Stateful, areas: &[Area<'_>]) -> u32 {
        let number = self.targets.len() as u32;
        let written = areas.iter().filter(|area| area.write);
        self.targets_write.extend(written.flat_map(|area| own_leg(area).written().to_vec()));
        self.targets.push(Arc::new(target));
        self.own.push((line.start.get(), number));
        number
    }

    fn add_unstriped(
        &mut self,
        source: &Source,
        line: &Line,
        unstriped: &dm_table::Unstriped,
        area: &Area<'_>,
    ) -> Result<(), Diagnostic> {
        let (before, (chunk, row)) = stateful::unstriped(unstriped);
        let (start, len) = (area.start + before, area.len - before);
        let stripe = Area {
            dev: area.dev,
            start,
            start_span: area.start_span,
            len,
            lower: area.lower.clone(),
            write: area.write,
            aside: area.aside,
        };
        // The only stripe is the whole, or what is left of it.
        if chunk == row {
            return self.add_linear(source, line, &stripe);
        }
        let target =
            stateful::make(source, line, std::slice::from_ref(&stripe), vec![own_leg(&stripe)], self.read_only)?;
        let leg = self.leg(source, &stripe)?;
        let number = self.own_target(line, target, std::slice::from_ref(&stripe));
        let segment = super::Unstriped::new(leg, (chunk, row), number);
        self.push(source, line, Segment::Unstriped(Box::new(segment)), line.len.get())
    }

    fn leg(&mut self, source: &Source, area: &Area<'_>) -> Result<Leg, Diagnostic> {
        let start = area.start;
        match &area.lower {
            Lower::Device { ix, .. } => Ok(Leg::Device { dev: *ix, start }),
            Lower::Map(map) => {
                let mut parts = map.covered(start, area.len);
                if let (Some((Segment::Linear { dev, start }, into, _)), None) = (parts.next(), parts.next()) {
                    let start = start + into;
                    return Ok(Leg::Device { dev: *dev, start });
                }
                if map.depth >= MAX_STRIPED_DEPTH {
                    return Err(too_deep(source, area));
                }
                self.depth = self.depth.max(map.depth + 1);
                let map = match map.targets().is_empty() {
                    true => Arc::clone(map),
                    false => Arc::new(map.renumbered(self.first_target(map))),
                };
                Ok(Leg::Map { map, start })
            }
        }
    }

    fn push(&mut self, source: &Source, line: &Line, segment: Segment, len: u64) -> Result<(), Diagnostic> {
        if self.entries.len() == MAX_SEGMENTS {
            return Err(too_many(source, line));
        }
        let start = self.end;
        self.end = start.saturating_add(len);
        self.entries.push(Entry { start, end: self.end, segment });
        Ok(())
    }
}

/// What a stateful target lies on. The targets of a lower map are its to reach, not this map's.
fn own_leg(area: &Area<'_>) -> Leg {
    match &area.lower {
        Lower::Device { ix, .. } => Leg::Device { dev: *ix, start: area.start },
        Lower::Map(map) => Leg::Map { map: Arc::clone(map), start: area.start },
    }
}

fn too_deep(source: &Source, area: &Area<'_>) -> Diagnostic {
    let reason = format!("striped: more than {MAX_STRIPED_DEPTH} striped targets on top of one another");
    Diagnostic::error(source, area.dev.span, reason)
        .found(format!("{}, itself {MAX_STRIPED_DEPTH} striped levels deep", area.name()))
        .expected(format!("at most {MAX_STRIPED_DEPTH} striped levels"))
        .help("linear lines on top of one another cost nothing and have no bound; stripe over the devices themselves")
}

fn too_many(source: &Source, line: &Line) -> Diagnostic {
    let reason = format!("more than {MAX_SEGMENTS} segments");
    Diagnostic::error(source, line.span, reason)
        .found("the line that passes the bound")
        .expected(format!("at most {MAX_SEGMENTS} segments, as the kernel allows lines in a table"))
        .help(
            "a line over another device of the file counts as many segments as the part it uses has; \
               have fewer lines over the devices that have many lines themselves",
        )
}

/// Devices whose data a request can reach, and of them those that a write can; without what is behind stateful targets.
fn reached(entries: &[Entry]) -> (BTreeSet<DevIx>, BTreeSet<DevIx>) {
    let (mut all, mut written) = (BTreeSet::new(), BTreeSet::new());
    // Clipped parts of one striped line share their stripes, of which there may be many.
    let mut seen = HashSet::new();
    for Entry { segment, .. } in entries {
        let read_only = matches!(segment, Segment::ReadOnly(_));
        match segment.inner() {
            Segment::Linear { dev, .. } => {
                all.insert(*dev);
                written.extend((!read_only).then_some(*dev));
            }
            Segment::Striped(striped) if seen.insert((striped.legs.as_ptr(), read_only)) => {
                for leg in striped.legs.iter() {
                    all.extend(leg.devices());
                    written.extend(leg.flush_set().iter().filter(|_| !read_only));
                }
            }
            // What is written there, its target writes and flushes.
            Segment::Unstriped(unstriped) => all.extend(unstriped.leg.devices()),
            _ => {}
        }
    }
    (all, written)
}

fn names(resolved: &[Resolved<'_>]) -> BTreeMap<DevIx, Arc<str>> {
    let mut names = BTreeMap::new();
    let mut seen = HashSet::new();
    for area in resolved.iter().flat_map(|line| &line.areas) {
        match &area.lower {
            Lower::Device { ix, name, .. } => {
                names.entry(*ix).or_insert_with(|| Arc::from(name.as_str()));
            }
            Lower::Map(map) => {
                if seen.insert(Arc::as_ptr(map)) {
                    names.extend(map.names.iter().map(|(ix, name)| (*ix, Arc::clone(name))));
                }
            }
        }
    }
    names
}
