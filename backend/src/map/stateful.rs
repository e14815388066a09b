//! From a line of a table to its stateful target.

use dm_table::{DevRef, Diagnostic, Line, Sectors, Source, Span, Target};

use super::build::Area;
use super::stripe::Leg;
use crate::stats;
use crate::targets::{Class, Corrupt, Delay, Dust, Features, Flakey, Stateful};

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
    matches!(target, Target::Delay(_) | Target::Flakey(_) | Target::Dust(_))
}

/// The device ranges that a line of a stateful target names, as long as the line each, in its order.
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
        _ => Vec::new(),
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
        _ => Err(wrong("it is not stateful".into())),
    }
}
