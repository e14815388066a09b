//! From a line of a table to its mirror.

use dm_table::{Diagnostic, Line, Mirror, Resync, SECTOR_SIZE, Sectors, Source};

use super::build::Area;
use super::stateful::Position;
use super::stripe::Leg;
use crate::targets::{Stateful, mirror};

/// The log's device, where it is on one, and the legs.
pub(super) fn positions(mirror: &Mirror) -> Vec<Position<'_>> {
    let at = |dev, start, start_span, aside| Position { dev, start, start_span, write: true, aside, whole: false };
    let log = mirror.log.dev.as_ref().map(|dev| at(dev, Sectors::ZERO, dev.span, true));
    let legs = mirror.legs.iter().map(|leg| at(&leg.dev, leg.start, leg.start_span, false));
    log.into_iter().chain(legs).collect()
}

fn regions(line: &Line, mirror: &Mirror) -> u64 {
    line.len.get().div_ceil(mirror.log.region.get().max(1))
}

fn log<'a, 't>(areas: &'a [Area<'t>]) -> Option<&'a Area<'t>> {
    areas.first().filter(|area| area.aside)
}

/// Whether there is room for the log, in memory and on its device.
pub(super) fn check(source: &Source, line: &Line, mirror: &Mirror, areas: &[Area<'_>]) -> Result<(), Diagnostic> {
    let refused = |span| Diagnostic::error(source, span, "mirror: Error creating mirror dirty log");
    let (regions, region) = (regions(line, mirror), mirror.log.region);
    if regions > mirror::MOST_REGIONS {
        let least = line.len.get().div_ceil(mirror::MOST_REGIONS).next_power_of_two();
        return Err(refused(mirror.log.region_span)
            .found(format!("{regions} regions of {region} sectors"))
            .expected(format!("at most {}: regions of {least} sectors or more", mirror::MOST_REGIONS)));
    }
    let Some(log) = log(areas) else { return Ok(()) };
    let bytes = mirror::log_len(regions, log.limits().logical_block);
    if bytes <= log.size().saturating_mul(SECTOR_SIZE) {
        return Ok(());
    }
    let need = format!("log device {} too small: need {bytes} bytes", log.name());
    Err(refused(log.dev.span)
        .found(format!("a device of {} sectors", log.size()))
        .expected(format!("at least {} sectors, for {regions} regions", bytes.div_ceil(SECTOR_SIZE)))
        .help(format!("the kernel log says: dirty region log: {need}")))
}

/// The target. `read_only`: nothing of it is written.
pub(super) fn make(line: &Line, mirror: &Mirror, areas: &[Area<'_>], legs: Vec<Leg>, read_only: bool) -> Stateful {
    let setup = mirror::Setup {
        geometry: mirror::Geometry { len: line.len.get(), region: mirror.log.region.get(), legs: mirror.legs.len() },
        begin: match mirror.log.resync {
            Resync::AsLogged => mirror::Begin::Logged,
            Resync::All => mirror::Begin::Dirty,
            Resync::Nothing => mirror::Begin::Clean,
        },
        legs: mirror.legs.iter().map(|leg| (leg.dev.text.clone(), leg.start.get())).collect(),
        log: log(areas).map(|area| (area.dev.text.clone(), area.limits().logical_block)),
        handle_errors: mirror.handle_errors,
        read_only,
    };
    Stateful::Mirror(mirror::Mirror::new(setup, legs))
}
