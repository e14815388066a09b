//! From a line of a table to its stateful target.

use dm_table::{DevRef, Diagnostic, Ebs, Line, SECTOR_SIZE, Sectors, Source, Span, Target};

use super::build::Area;
use super::stripe::Leg;
use crate::stats;
use crate::targets::{self, Class, Corrupt, Delay, Dust, Features, Flakey, Stateful, Switch, Unstriped};

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
}

impl<'t> Position<'t> {
    fn written(dev: &'t DevRef, start: Sectors, start_span: Span) -> Position<'t> {
        Position { dev, start, start_span, write: true }
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
        _ => Vec::new(),
    }
}

/// Sectors of the blocks in which an ebs line reads and writes its device, whose own are of `logical_block` bytes.
pub(super) fn underlying(ebs: &Ebs, logical_block: u32) -> Sectors {
    let own = Sectors::new((u64::from(logical_block) / SECTOR_SIZE).max(1));
    // Smaller ones than the device's would fail.
    ebs.underlying.map_or(own, |given| given.max(own))
}

/// What a constructor finds wrong with the devices that a line names; it has found all of them.
pub(super) fn check(source: &Source, line: &Line, areas: &[Area<'_>]) -> Result<(), Diagnostic> {
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
    let (Target::Ebs(ebs), [area]) = (&line.target, areas) else { return None };
    let superfluous = ebs.underlying.is_none() && underlying(ebs, area.limits().logical_block) == ebs.emulated;
    superfluous.then(|| {
        let reason = "ebs: Emulation superfluous: emulated equal to underlying block size";
        Diagnostic::warning(source, line.span, reason).help("a linear line does the same")
    })
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

/// The target of a line over what its devices are.
pub(super) fn make(source: &Source, line: &Line, areas: &[Area<'_>], legs: Vec<Leg>) -> Result<Stateful, Diagnostic> {
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
        Target::Unstriped(line) => Ok(Stateful::Unstriped(Unstriped::new(leg, unstriped(line).1))),
        _ => Err(wrong("it is not stateful".into())),
    }
}

/// Sectors before its stripe's first chunk; and of a chunk, and from one to the next.
pub(super) fn unstriped(line: &dm_table::Unstriped) -> (u64, (u64, u64)) {
    let chunk = line.chunk.get();
    (u64::from(line.stripe) * chunk, (chunk, u64::from(line.stripes) * chunk))
}
