//! From a line of a table to its snapshot.

use dm_table::{Diagnostic, Line, SECTOR_SIZE, Snapshot, Source};

use super::build::Area;
use super::stripe::Leg;
use crate::targets::snapshot;

/// Bytes of a block that both devices can be written in.
fn block(areas: &[Area<'_>]) -> u32 {
    areas.iter().map(|area| area.limits().logical_block).max().unwrap_or(SECTOR_SIZE as u32)
}

/// What the constructor finds wrong once it has the devices; `kind` is the type of the target.
pub(super) fn check(source: &Source, kind: &str, params: &Snapshot, areas: &[Area<'_>]) -> Result<(), Diagnostic> {
    let [origin, cow] = areas else { return Ok(()) };
    if origin.key().is_some() && origin.key() == cow.key() {
        let reason = format!("{kind}: {}", Snapshot::SAME_DEVICE);
        return Err(Diagnostic::error(source, params.cow.span, reason)
            .found(format!("{}, which is {}", cow.name(), origin.name()))
            .expected("a device of its own for what is written"));
    }
    if params.chunk.is_zero() {
        return Ok(());
    }
    let block = block(areas);
    let layout = snapshot::format::Layout::new(params.chunk.get(), cow.size(), block);
    layout.map(|_| ()).map_err(|why| {
        Diagnostic::error(source, params.chunk_span, format!("{kind}: {}", Snapshot::NO_STORE))
            .found(format!("{} sectors: {why}", params.chunk))
            .expected(format!("a power of 2, and a multiple of the devices' blocks of {block} bytes"))
    })
}

/// The target of a line.
pub(super) fn make(line: &Line, params: &Snapshot, areas: &[Area<'_>], legs: Vec<Leg>) -> Option<snapshot::Snapshot> {
    let ([origin, cow], Ok(legs)) = (areas, <[Leg; 2]>::try_from(legs)) else { return None };
    let wanted = snapshot::store::Wanted {
        persistent: params.persistence.is_persistent(),
        chunk: params.chunk.get(),
        size: cow.size(),
        block: block(areas),
    };
    let features = snapshot::Features {
        start: line.start.get(),
        len: line.len.get(),
        origin_size: origin.size(),
        overflows: params.persistence == dm_table::Persistence::Overflow,
        discard_zeroes_cow: params.discard_zeroes_cow,
        discard_passdown_origin: params.discard_passdown_origin,
    };
    Some(snapshot::Snapshot::new(legs, wanted, features))
}
