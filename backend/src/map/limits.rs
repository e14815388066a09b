//! The limits layer: what the disk promises its guest, and the refusals that follow from its components.
//!
//! Modelled on the kernel's `dm_calculate_queue_limits` and `blk_stack_limits` (Linux 6.12), as far as a
//! virtio-blk guest can see the result. Left out: zoned devices, secure erase, the alignment of discards, and
//! limits on a request's size, which the engine takes care of.

use dm_table::{Diagnostic, SECTOR_SIZE, Sectors, SnapshotMerge, Source, Span, Target};

use super::build::{Area, Resolved};
use crate::device;

/// Longest discard of a target without devices: the kernel's `UINT_MAX` sectors (2 TiB).
const NO_DEVICE_DISCARD: u64 = u32::MAX as u64;

/// Longest discard of a log-writes target whose device takes none, in sectors.
const LOGGED_DISCARD: u64 = (u32::MAX / SECTOR_SIZE as u32) as u64;

/// Alignment warnings given one by one; the rest is a number. A table of thousands of lines on a disk with
/// 4 KiB physical blocks may earn one for every line.
const MOST_WARNINGS: usize = 8;

/// Limits of a disk, stacked from those of its components. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// Smallest unit that can be read or written: the largest of all components; 512 without any.
    pub logical_block: u32,
    /// Unit that all components write without read-modify-write.
    pub physical_block: u32,
    /// Offset of sector 0 against the physical blocks; means nothing where `misaligned`.
    pub alignment_offset: u32,
    /// Preferred smallest I/O size; the chunk size of striped lines.
    pub io_min: u32,
    /// Preferred I/O size, 0 where there is none: one chunk on every stripe for striped lines.
    pub io_opt: u32,
    /// Discard ability: there is one if every line can take a discard. `zero` and `error` can, the first
    /// ignores it, the second fails it.
    pub discard: Option<StackedDiscard>,
    /// Whether all components with data can zero a range without data transfer.
    ///
    /// The kernel says no as soon as one line is `zero` or `error` and then writes zeros; here those lines
    /// need no data for it and do not count.
    pub write_zeroes: bool,
    /// Whether the components' physical blocks do not line up with one another.
    pub misaligned: bool,
    /// Greatest common divisor of the chunk sizes, in sectors; 0 without striped lines.
    chunk: u64,
}

/// Discard ability of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackedDiscard {
    /// Smallest unit that every component frees, in bytes.
    pub granularity: u32,
    /// Longest range of one discard that every component takes, in sectors.
    pub max_sectors: u64,
}

impl StackedDiscard {
    fn stack(self, bottom: StackedDiscard) -> StackedDiscard {
        StackedDiscard {
            granularity: self.granularity.max(bottom.granularity),
            max_sectors: self.max_sectors.min(bottom.max_sectors),
        }
    }
}

impl From<&device::Limits> for Stacked {
    /// A device that reports nonsense (a block size of 0, a physical block below the logical one) gets the
    /// nearest sense, as the kernel's own validation does.
    fn from(limits: &device::Limits) -> Stacked {
        let logical_block = limits.logical_block.max(SECTOR_SIZE as u32);
        let physical_block = limits.physical_block.max(logical_block);
        Stacked {
            logical_block,
            physical_block,
            alignment_offset: limits.alignment_offset,
            io_min: limits.io_min.max(physical_block),
            io_opt: limits.io_opt,
            discard: limits.discard.map(|discard| StackedDiscard {
                granularity: discard.granularity.max(logical_block),
                max_sectors: discard.max_sectors,
            }),
            write_zeroes: limits.write_zeroes,
            misaligned: false,
            chunk: 0,
        }
    }
}

impl Stacked {
    /// What stacking begins with (`blk_set_stacking_limits`): the limits that narrow nothing.
    fn unbounded() -> Stacked {
        let block = SECTOR_SIZE as u32;
        Stacked {
            logical_block: block,
            physical_block: block,
            alignment_offset: 0,
            io_min: block,
            io_opt: 0,
            discard: Some(StackedDiscard { granularity: block, max_sectors: u64::MAX }),
            write_zeroes: true,
            misaligned: false,
            chunk: 0,
        }
    }

    fn granularity(&self) -> u64 {
        u64::from(self.physical_block.max(self.io_min))
    }

    /// Offset of sector `start` against the physical blocks (`queue_limit_alignment_offset`).
    fn alignment_at(&self, start: u64) -> u64 {
        let granularity = self.granularity();
        let beyond = (start % (granularity / SECTOR_SIZE).max(1)) * SECTOR_SIZE;
        (granularity + u64::from(self.alignment_offset) - beyond) % granularity
    }

    /// Puts `bottom`, used from sector `start` on, under these limits (`blk_stack_limits`); false where their
    /// alignments do not fit.
    fn stack(&mut self, bottom: &Stacked, start: u64) -> bool {
        let mut fits = true;
        let alignment = bottom.alignment_at(start);
        let own = u64::from(self.alignment_offset);
        if own != alignment {
            let (a, b) = (self.granularity() + own, bottom.granularity() + alignment);
            fits &= a.max(b) % a.min(b) == 0;
        }
        self.logical_block = self.logical_block.max(bottom.logical_block);
        self.physical_block = self.physical_block.max(bottom.physical_block);
        self.io_min = self.io_min.max(bottom.io_min);
        self.io_opt = lcm_not_zero(self.io_opt.into(), bottom.io_opt.into());
        self.chunk = gcd(self.chunk, bottom.chunk);

        if !self.physical_block.is_multiple_of(self.logical_block) {
            self.physical_block = self.logical_block;
            fits = false;
        }
        if !self.io_min.is_multiple_of(self.physical_block) {
            self.io_min = self.physical_block;
            fits = false;
        }
        if !self.io_opt.is_multiple_of(self.physical_block) {
            self.io_opt = 0;
            fits = false;
        }
        if !self.chunk.is_multiple_of(u64::from(self.physical_block) / SECTOR_SIZE) {
            self.chunk = 0;
            fits = false;
        }
        let common = u64::from(lcm_not_zero(own, alignment)) % self.granularity();
        self.alignment_offset = common as u32;
        fits &= self.alignment_offset.is_multiple_of(self.logical_block);

        self.discard = match (self.discard, bottom.discard) {
            (Some(top), Some(bottom)) => Some(top.stack(bottom)),
            _ => None,
        };
        self.write_zeroes &= bottom.write_zeroes;
        self.misaligned |= bottom.misaligned || !fits;
        fits
    }

    /// The same for a place that is only read: what it cannot do to its data, it need not.
    pub(super) fn for_reading(self) -> Stacked {
        let granularity = self.logical_block;
        let discard = Some(StackedDiscard { granularity, max_sectors: NO_DEVICE_DISCARD });
        Stacked { discard, write_zeroes: true, ..self }
    }

    /// The same with logical blocks of `block` bytes at least.
    pub(super) fn in_blocks(self, block: u32) -> Stacked {
        let logical_block = self.logical_block.max(block);
        let physical_block = self.physical_block.max(logical_block);
        let larger =
            |discard: StackedDiscard| StackedDiscard { granularity: discard.granularity.max(logical_block), ..discard };
        Stacked {
            logical_block,
            physical_block,
            io_min: self.io_min.max(physical_block),
            discard: self.discard.map(larger),
            ..self
        }
    }

    /// What a target adds of its own (`io_hints`).
    fn hint(&mut self, target: &Target) {
        match target {
            Target::Striped(striped) => {
                self.chunk = striped.chunk.get();
                let chunk = striped.chunk.bytes();
                // A preference that virtio has no room for is none.
                if let Ok(bytes) = u32::try_from(chunk) {
                    self.io_min = bytes;
                }
                let stripes = striped.stripes.len() as u64;
                let row = chunk.checked_mul(stripes).map(u32::try_from);
                self.io_opt = row.and_then(Result::ok).unwrap_or(0);
            }
            Target::Ebs(ebs) => {
                let in_bytes = |blocks: Sectors| u32::try_from(blocks.bytes()).unwrap_or(u32::MAX);
                self.physical_block = in_bytes(super::stateful::underlying(ebs, self.logical_block));
                self.logical_block = in_bytes(ebs.emulated);
                self.alignment_offset = self.physical_block;
                self.io_min = self.logical_block;
                let whole = |discard: StackedDiscard| {
                    let granularity = discard.granularity.max(self.physical_block);
                    StackedDiscard { granularity, ..discard }
                };
                self.discard = self.discard.map(whole);
            }
            // Those that its device does not take are logged, too.
            Target::LogWrites(_) => {
                self.io_min = self.physical_block;
                let logged = StackedDiscard { granularity: self.logical_block, max_sectors: LOGGED_DISCARD };
                self.discard.get_or_insert(logged);
            }
            // Only with `discard_zeroes_cow` does a snapshot take discards, and frees nothing smaller than a chunk.
            Target::Snapshot(snapshot) | Target::SnapshotMerge(SnapshotMerge(snapshot)) => {
                self.write_zeroes = false;
                let chunk = u32::try_from(snapshot.chunk.bytes()).unwrap_or(u32::MAX);
                let whole = |discard: StackedDiscard| {
                    let granularity = discard.granularity.max(chunk);
                    StackedDiscard { granularity, ..discard }
                };
                self.discard = self.discard.filter(|_| snapshot.discard_zeroes_cow).map(whole);
            }
            Target::SnapshotOrigin(_) => {
                self.discard = None;
                self.write_zeroes = false;
            }
            // The kernel's takes no discards.
            Target::Unstriped(unstriped) => {
                self.chunk = unstriped.chunk.get();
                self.discard = None;
            }
            // A device named by an error line counts for block sizes only: no data ever reaches it.
            Target::Zero | Target::Error(_) => {
                self.discard = Some(StackedDiscard { granularity: SECTOR_SIZE as u32, max_sectors: NO_DEVICE_DISCARD });
                self.write_zeroes = true;
            }
            _ => {}
        }
    }
}

/// The limits of the whole table, or the first refusal. Alignments that do not fit are warnings.
pub(super) fn calculate(
    source: &Source,
    lines: &[Resolved<'_>],
    warnings: &mut Vec<Diagnostic>,
) -> Result<Stacked, Diagnostic> {
    let mut whole = Stacked::unbounded();
    let mut blocks = Vec::with_capacity(lines.len());
    let mut misaligned = 0;
    for resolved in lines {
        let line = resolved.line;
        let mut target = Stacked::unbounded();
        for area in resolved.areas.iter().filter(|area| !area.aside) {
            let limits = area.limits();
            if !target.stack(&limits, area.start) {
                misaligned += 1;
                if misaligned <= MOST_WARNINGS {
                    warnings.push(device_misaligned(source, area, &limits));
                }
            }
        }
        blocks.push(target.logical_block);
        // A target that shows smaller blocks than its device has (ebs) would have to write beyond a line that ends inside of
        // one. The kernel's does.
        let devices = target.logical_block;
        target.hint(&line.target);
        for area in resolved.areas.iter().filter(|area| !area.aside) {
            check_area(source, resolved, area, target.logical_block.max(devices))?;
        }
        if !whole.stack(&target, 0) {
            misaligned += 1;
            if misaligned <= MOST_WARNINGS {
                warnings.push(target_misaligned(source, resolved));
            }
        }
    }
    if let (Some(last), Some(more @ 1..)) = (lines.last(), misaligned.checked_sub(MOST_WARNINGS)) {
        let reason = format!("{more} more alignment inconsistencies in this table");
        warnings.push(Diagnostic::warning(source, last.line.span, reason));
    }
    check_boundaries(source, lines, &blocks, whole.logical_block)?;
    if lines.is_empty() {
        whole.discard = None;
        whole.write_zeroes = false;
    }
    if let Some(discard) = &mut whole.discard {
        discard.granularity = discard.granularity.max(whole.logical_block);
    }
    Ok(whole)
}

/// Whether a device range lies inside the device and on its blocks (`device_area_is_invalid`).
///
/// The kernel lets a device of size 0 pass and fails its I/O later; an empty component is refused here.
fn check_area(source: &Source, resolved: &Resolved<'_>, area: &Area<'_>, block: u32) -> Result<(), Diagnostic> {
    let (start, len, size, name) = (area.start, area.len, area.size(), area.name());
    if start.checked_add(len).is_none_or(|end| end > size) {
        return Err(too_small(source, resolved, area));
    }
    let sectors = u64::from(block) / SECTOR_SIZE;
    let unaligned = |what: &str, value: u64, span: Span| {
        let reason = format!("{what}={value} not aligned to h/w logical block size {block} of {name}");
        let above = (value - value % sectors).saturating_add(sectors);
        Err(Diagnostic::error(source, span, reason)
            .found(format!("{value}, which is inside a block"))
            .expected(format!("a multiple of {sectors} sectors, e.g. {above}"))
            .help(format!("the devices of this line can only be read and written in blocks of {block} bytes")))
    };
    if !start.is_multiple_of(sectors) {
        return unaligned("start", start, area.start_span);
    }
    if !len.is_multiple_of(sectors) {
        return unaligned("len", len, resolved.line.len_span);
    }
    Ok(())
}

fn too_small(source: &Source, resolved: &Resolved<'_>, area: &Area<'_>) -> Diagnostic {
    let (start, len, size, name) = (area.start, area.len, area.size(), area.name());
    let reason = format!("{name} too small for target: start={start}, len={len}, dev_size={size}");
    let available = size.saturating_sub(start);
    let stripes = resolved.areas.len();
    let span = if available == 0 {
        area.start_span
    } else if stripes > 1 {
        area.dev.span
    } else {
        resolved.line.len_span
    };
    let expected = match available {
        0 if size == 0 => format!("a device with data; {name} is empty"),
        0 => format!("a start sector below {size}"),
        _ => format!("at most {available} sectors from sector {start} on"),
    };
    let found = match stripes {
        _ if available == 0 => format!("sector {start}"),
        0 | 1 => format!("a line of {len} sectors"),
        _ => format!("a stripe of {len} sectors, the line's length divided by {stripes}"),
    };
    let bytes = u128::from(size) * u128::from(SECTOR_SIZE);
    Diagnostic::error(source, span, reason)
        .found(found)
        .expected(expected)
        .help(format!("{name} has {size} sectors ({bytes} bytes): make the line shorter or the device larger"))
}

/// Whether a request of whole blocks that crosses lines gives every line whole blocks
/// (`validate_hardware_logical_block_alignment`). Line numbers in the text count from 0, as the kernel's do.
fn check_boundaries(source: &Source, lines: &[Resolved<'_>], blocks: &[u32], block: u32) -> Result<(), Diagnostic> {
    let sectors = u64::from(block) / SECTOR_SIZE;
    // Sectors that a request still has to give to the lines after one, if it began on a block border.
    let mut remaining = 0;
    let mut refused = lines.len();
    for (i, (resolved, own)) in lines.iter().zip(blocks).enumerate() {
        let len = resolved.line.len.get();
        if remaining < len && remaining % (u64::from(*own) / SECTOR_SIZE) != 0 {
            refused = i;
            break;
        }
        let end = resolved.line.start.get().saturating_add(len) % sectors;
        remaining = if end == 0 { 0 } else { sectors - end };
    }
    let Some(at) = lines.get(refused).or(lines.last()) else {
        return Ok(());
    };
    if remaining == 0 {
        return Ok(());
    }
    let (start, len) = (at.line.start, at.line.len);
    let reason =
        format!("table line {refused} (start sect {start} len {len}) not aligned to h/w logical block size {block}");
    let (span, found) = if refused == lines.len() {
        let end = start.get().saturating_add(len.get());
        (at.line.len_span, format!("an end of the table at sector {end}, inside a block"))
    } else {
        let start_span = at.line.start_span;
        (start_span, format!("a start at sector {start}, inside a block"))
    };
    Err(Diagnostic::error(source, span, reason).found(found).expected(format!("a multiple of {sectors} sectors")).help(
        format!(
            "the disk gets logical blocks of {block} bytes, the largest of its devices: \
             lines must begin and end on them"
        ),
    ))
}

fn device_misaligned(source: &Source, area: &Area<'_>, limits: &Stacked) -> Diagnostic {
    let reason = format!(
        "adding target device {} caused an alignment inconsistency: physical_block_size={}, \
         logical_block_size={}, alignment_offset={}, start={}",
        area.name(),
        limits.physical_block,
        limits.logical_block,
        limits.alignment_offset,
        u128::from(area.start) * u128::from(SECTOR_SIZE),
    );
    Diagnostic::warning(source, area.start_span, reason)
        .found(format!("sector {}, which is inside a physical block", area.start))
        .help("writes may be slower than they could be; start on a multiple of the physical block size")
}

fn target_misaligned(source: &Source, resolved: &Resolved<'_>) -> Diagnostic {
    let line = resolved.line;
    let reason =
        format!("adding target device (start sect {} len {}) caused an alignment inconsistency", line.start, line.len);
    Diagnostic::warning(source, line.span, reason)
        .help("writes may be slower than they could be: chunk sizes and physical blocks do not fit each other")
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The least common multiple; the other number where one is 0, and 0, no preference, where it has no room.
fn lcm_not_zero(a: u64, b: u64) -> u32 {
    let lcm = match (a, b) {
        (0, n) | (n, 0) => Some(n),
        _ => (a / gcd(a, b)).checked_mul(b),
    };
    lcm.and_then(|lcm| u32::try_from(lcm).ok()).unwrap_or(0)
}
