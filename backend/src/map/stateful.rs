//! From a line of a table to its stateful target.

use std::collections::HashSet;

use dm_table::{DevRef, Diagnostic, Ebs, Line, SECTOR_SIZE, Sectors, SnapshotMerge, Source, Span, Table, Target};

use super::build::Area;
use super::mirror;
use super::snapshots;
use super::stripe::Leg;
use crate::stats;
use crate::targets::{self, Class, Corrupt, Delay, Dust, Features, Flakey, LogWrites, Stateful, Switch, Unstriped};

/// A device that a line names, and from which sector on.
pub struct Position<'t> {
    /// The device.
    pub dev: &'t DevRef,
    /// First sector on it.
    pub start: Sectors,
    /// Where that stands in the text.
    pub start_span: Span,
    /// Whether the target writes there.
    pub write: bool,
    /// The whole device is for the target's own records: nothing of the disk is on it, and its limits are not the disk's.
    pub aside: bool,
    /// All of the device from there on is used, however long the line is.
    pub whole: bool,
}

impl<'t> Position<'t> {
    fn written(dev: &'t DevRef, start: Sectors, start_span: Span) -> Position<'t> {
        Position { dev, start, start_span, write: true, aside: false, whole: false }
    }

    /// A device that is used from the same sectors on as its line: of it the line's length counts.
    fn same(dev: &'t DevRef, write: bool) -> Position<'t> {
        Position { write, ..Position::written(dev, Sectors::ZERO, dev.span) }
    }
}

/// Whether a target is one of those that this module makes.
pub(super) fn is_one(target: &Target) -> bool {
    matches!(
        target,
        Target::Delay(_)
            | Target::Flakey(_)
            | Target::Dust(_)
            | Target::Unstriped(_)
            | Target::Switch(_)
            | Target::Ebs(_)
            | Target::Snapshot(_)
            | Target::SnapshotOrigin(_)
            | Target::SnapshotMerge(_)
            | Target::LogWrites(_)
            | Target::Mirror(_)
    )
}

/// The device ranges that a line of a stateful target names, each as long as [`reach`] says, in its order.
pub fn positions(target: &Target) -> Vec<Position<'_>> {
    match target {
        Target::Delay(delay) => {
            let legs = [Some(&delay.read), delay.write.as_ref(), delay.flush.as_ref()];
            let legs = legs.into_iter().flatten();
            legs.map(|leg| Position::written(&leg.dev, leg.start, leg.start_span)).collect()
        }
        Target::Flakey(flakey) => {
            vec![Position::written(&flakey.dev, flakey.start, flakey.start_span)]
        }
        Target::Dust(dust) => vec![Position::written(&dust.dev, dust.start, dust.start_span)],
        Target::Unstriped(unstriped) => {
            vec![Position::written(&unstriped.dev, unstriped.start, unstriped.start_span)]
        }
        Target::Switch(switch) => {
            switch.paths.iter().map(|path| Position::written(&path.dev, path.start, path.start_span)).collect()
        }
        Target::Ebs(ebs) => vec![Position::written(&ebs.dev, ebs.start, ebs.start_span)],
        Target::Snapshot(snapshot) => {
            let cow = Position { whole: true, ..Position::same(&snapshot.cow, true) };
            vec![Position::same(&snapshot.origin, snapshot.discard_passdown_origin), cow]
        }
        Target::SnapshotMerge(merge) => {
            let cow = Position { whole: true, ..Position::same(&merge.0.cow, true) };
            vec![Position::same(&merge.0.origin, true), cow]
        }
        Target::SnapshotOrigin(origin) => vec![Position::same(&origin.dev, true)],
        Target::LogWrites(log_writes) => {
            let [dev, log] =
                [&log_writes.dev, &log_writes.log].map(|dev| Position::written(dev, Sectors::ZERO, dev.span));
            vec![dev, Position { aside: true, ..log }]
        }
        Target::Mirror(mirror) => mirror::positions(mirror),
        _ => Vec::new(),
    }
}

/// The devices that the lines of a table write to, as the table names them.
pub fn writes(table: &Table) -> HashSet<&str> {
    fn of_line(line: &Line) -> Vec<&str> {
        match &line.target {
            Target::Linear(linear) => vec![&linear.dev.text],
            Target::Striped(striped) => striped.stripes.iter().map(|stripe| stripe.dev.text.as_str()).collect(),
            // Nothing reaches what an error line names.
            Target::Error(_) | Target::Zero => Vec::new(),
            other => positions(other).into_iter().filter(|at| at.write).map(|at| at.dev.text.as_str()).collect(),
        }
    }
    table.lines.iter().flat_map(of_line).collect()
}

/// Sectors of the blocks in which an ebs line reads and writes its device, whose own are of `logical_block` bytes.
pub(super) fn underlying(ebs: &Ebs, logical_block: u32) -> Sectors {
    let own = Sectors::new((u64::from(logical_block) / SECTOR_SIZE).max(1));
    // Smaller ones than the device's would fail.
    ebs.underlying.map_or(own, |given| given.max(own))
}

/// What a constructor finds wrong with the devices that a line names; it has found all of them.
pub(super) fn check(source: &Source, line: &Line, areas: &[Area<'_>]) -> Result<(), Diagnostic> {
    if let Target::Mirror(mirror) = &line.target {
        return mirror::check(source, line, mirror, areas);
    }
    if let Target::Snapshot(snapshot) | Target::SnapshotMerge(SnapshotMerge(snapshot)) = &line.target {
        return snapshots::check(source, line.target.type_name(), snapshot, areas);
    }
    let (Target::Ebs(ebs), [area]) = (&line.target, areas) else { return Ok(()) };
    let block = underlying(ebs, area.limits().logical_block);
    if ebs.start.get().is_multiple_of(block.get()) {
        return Ok(());
    }
    Err(Diagnostic::error(source, ebs.start_span, format!("ebs: {}", Ebs::UNALIGNED))
        .found(format!("{}, which is inside a block", ebs.start))
        .expected(format!("a multiple of {block} sectors, the block size of {}", area.name())))
}

/// What it finds worth a word.
pub(super) fn remark(source: &Source, line: &Line, areas: &[Area<'_>]) -> Option<Diagnostic> {
    if let (Target::LogWrites(target), [dev, log]) = (&line.target, areas) {
        let (own, its) = (dev.limits().logical_block, log.limits().logical_block);
        return (own < its).then(|| {
            let reason = format!("log-writes: entries have blocks of {own} bytes, as {}", dev.name());
            Diagnostic::warning(source, target.log.span, reason)
                .found(format!("{}, with blocks of {its} bytes", log.name()))
                .help(
                    "it may refuse them, and then nothing is logged: a log on a file or device with small blocks works",
                )
        });
    }
    let (Target::Ebs(ebs), [area]) = (&line.target, areas) else { return None };
    let superfluous = ebs.underlying.is_none() && underlying(ebs, area.limits().logical_block) == ebs.emulated;
    superfluous.then(|| {
        let reason = "ebs: Emulation superfluous: emulated equal to underlying block size";
        Diagnostic::warning(source, line.span, reason).help("a linear line does the same")
    })
}

/// How far behind its positions a line that begins at `start` begins on its devices. Some targets of the kernel do not take
/// the line's start off.
pub fn shift(target: &Target, start: Sectors) -> Sectors {
    match target {
        Target::LogWrites(_) => start,
        _ => Sectors::ZERO,
    }
}

/// How many sectors of its devices a line of `len` sectors can reach, from where it begins on each.
pub fn reach(target: &Target, len: Sectors) -> Sectors {
    match target {
        Target::Unstriped(unstriped) => {
            let end = unstriped.reach(len).unwrap_or(Sectors::new(u64::MAX));
            end.checked_sub(unstriped.start).unwrap_or(len)
        }
        _ => len,
    }
}

/// The target of a line over what its devices are. `read_only`: nothing of it is written.
pub(super) fn make(
    source: &Source,
    line: &Line,
    areas: &[Area<'_>],
    legs: Vec<Leg>,
    read_only: bool,
) -> Result<Stateful, Diagnostic> {
    let wrong = |why: String| Diagnostic::error(source, line.span, format!("{}: {why}", line.target.type_name()));
    let (Some(leg), Some(area)) = (legs.first().cloned(), areas.first()) else {
        return Err(wrong("it names no device".into()));
    };
    match &line.target {
        Target::Delay(delay) => {
            let ms = delay.classes().map(|class| class.ms);
            let write = legs.get(1).unwrap_or(&leg).clone();
            let flush = legs.get(2).unwrap_or(&write).clone();
            let [read_ms, write_ms, flush_ms] = ms;
            Ok(Stateful::Delay(Delay::new([
                Class { leg, ms: read_ms },
                Class { leg: write, ms: write_ms },
                Class { leg: flush, ms: flush_ms },
            ])))
        }
        Target::Flakey(flakey) => {
            let asked = flakey.features;
            let corrupt =
                asked.corrupt.map(|c| Corrupt { nth: c.nth.into(), write: c.write, value: c.value, flags: c.flags });
            let features = Features {
                error_reads: asked.error_reads,
                drop_writes: asked.drop_writes,
                error_writes: asked.error_writes,
                corrupt,
                random_read: asked.random_read_corrupt,
                random_write: asked.random_write_corrupt,
            };
            let made = Flakey::new(leg, (flakey.up, flakey.down), features, stats::now());
            made.map(Stateful::Flakey).map_err(|error| wrong(format!("no memory: {error}")))
        }
        Target::Dust(dust) => {
            let device = dust.dev.text.clone();
            Ok(Stateful::Dust(Dust::new(leg, device, (dust.start.get(), area.size()), dust.block.get())))
        }
        Target::Switch(switch) => {
            let made = Switch::new(legs, switch.region.get(), switch.regions(line.len));
            made.map(Stateful::Switch).map_err(|why| wrong(format!("{why} (-ENOMEM)")))
        }
        Target::Ebs(ebs) => {
            let block = underlying(ebs, area.limits().logical_block);
            Ok(Stateful::Ebs(targets::Ebs::new(leg, line.len.get(), block.get())))
        }
        Target::LogWrites(_) => {
            let (Some(log), Some(log_area)) = (legs.get(1), areas.get(1)) else {
                return Err(wrong("it names no device for the log".into()));
            };
            let limits = area.limits();
            let place = (area.start, limits.logical_block);
            let made = LogWrites::new(leg, place, log.clone(), log_area.size());
            let made = made.map_err(|error| wrong(format!("no memory: {error}")))?;
            Ok(Stateful::LogWrites(made.passing_discards(limits.discard.is_some()).read_only(read_only)))
        }
        Target::Unstriped(line) => Ok(Stateful::Unstriped(Unstriped::new(leg, unstriped(line).1))),
        Target::Snapshot(snapshot) => {
            let made = snapshots::make(line, snapshot, areas, legs);
            let made = made.map(|made| made.read_only(read_only));
            made.map(Stateful::Snapshot).ok_or_else(|| wrong("it names no store".into()))
        }
        Target::SnapshotMerge(merge) => {
            let made = snapshots::make(line, &merge.0, areas, legs).map(targets::SnapshotMerge::new);
            made.map(Stateful::SnapshotMerge).ok_or_else(|| wrong("it names no store".into()))
        }
        Target::SnapshotOrigin(_) => {
            Ok(Stateful::SnapshotOrigin(targets::SnapshotOrigin::new(leg, line.start.get(), area.size())))
        }
        _ => Err(wrong("it is not stateful".into())),
    }
}

/// Sectors before its stripe's first chunk; and of a chunk, and from one to the next.
pub(super) fn unstriped(line: &dm_table::Unstriped) -> (u64, (u64, u64)) {
    let chunk = line.chunk.get();
    (u64::from(line.stripe) * chunk, (chunk, u64::from(line.stripes) * chunk))
}
