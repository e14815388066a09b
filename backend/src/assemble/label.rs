//! The bytes of partition tables.

use std::io::Write as _;

use gpt::disk::LogicalBlockSize;
use gpt::header::{HeaderBuilder, HeaderError};
use gpt::mbr::{PartRecord, ProtectiveMBR};
use gpt::partition::Partition;
use gpt::partition_types::{OperatingSystem, Type as GptType};
use uuid::Uuid;

use super::host::Scheme;
use super::layout::{ALIGN, Layout, Placed, RECORD};
use super::sparse::Sparse;

/// Bytes of a boot sector that are code.
pub const CODE: usize = 440;

/// What identifies the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Of a GPT.
    Guid(Uuid),
    /// Of an MBR.
    Signature(u32),
}

/// What lies around the partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The disk's first MiB, and after that each extended boot record, [`RECORD`] sectors each.
    pub head: Vec<u8>,
    /// The end of the disk.
    pub tail: Vec<u8>,
}

/// Makes the table of a disk. `boot` is the boot loader: [`CODE`] bytes, and behind the sector that they are in, what an MBR
/// has no other place for.
///
/// # Errors
/// Those of the crate that writes GPTs, which a layout gives no cause for.
pub fn write(layout: &Layout, identity: Identity, boot: &[u8]) -> Result<Label, HeaderError> {
    let mut label = match (layout.shape.scheme, identity) {
        (Scheme::Gpt, Identity::Guid(guid)) => write_gpt(layout, guid)?,
        (_, Identity::Signature(signature)) => write_mbr(layout, signature),
        (Scheme::Mbr, Identity::Guid(guid)) => write_mbr(layout, guid.as_fields().0),
    };
    let code = boot.len().min(CODE);
    label.head[..code].copy_from_slice(&boot[..code]);
    if let Some(rest) = boot.get(512..) {
        label.head[512..512 + rest.len()].copy_from_slice(rest);
    }
    Ok(label)
}

fn write_gpt(layout: &Layout, guid: Uuid) -> Result<Label, HeaderError> {
    let block = layout.shape.block;
    let size = if block == 8 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let mut disk = Sparse::new(layout.len * 512);
    let last = layout.len / block - 1;
    let protective = ProtectiveMBR::with_lb_size(u32::try_from(last).unwrap_or(u32::MAX));
    disk.write_all(&protective.to_bytes())?;
    let mut builder = HeaderBuilder::new();
    builder.disk_guid(guid).backup_lba(last);
    let mut primary = builder.primary(true).build(size)?;
    let mut backup = builder.primary(false).build(size)?;
    for header in [&primary, &backup] {
        for placed in &layout.parts {
            let index = u64::from(placed.number) - 1;
            entry(placed, block).write_to_device(&mut disk, index, header.part_start, size, header.part_size)?;
        }
    }
    // Both sum the entries up that are there.
    primary.write_primary(&mut disk, size)?;
    backup.write_backup(&mut disk, size)?;
    let tail = layout.shape.tail() * 512;
    Ok(Label { head: disk.range(0, (ALIGN * 512) as usize), tail: disk.range(layout.len * 512 - tail, tail as usize) })
}

fn entry(placed: &Placed, block: u64) -> Partition {
    Partition {
        part_type_guid: GptType { guid: placed.part.kind.gpt().unwrap_or_default(), os: OperatingSystem::None },
        part_guid: placed.part.guid,
        first_lba: placed.start / block,
        last_lba: (placed.start + placed.len) / block - 1,
        flags: placed.part.bits,
        name: placed.part.label.clone(),
    }
}

fn write_mbr(layout: &Layout, signature: u32) -> Label {
    let block = layout.shape.block;
    let mut head = vec![0; (ALIGN * 512) as usize];
    let mut first = boot_record();
    first.set_disk_signature(signature.to_le_bytes());
    let logical: Vec<&Placed> = layout.parts.iter().filter(|placed| placed.record.is_some()).collect();
    for placed in layout.parts.iter().filter(|placed| placed.record.is_none()) {
        first.set_partition(placed.number as usize - 1, record(placed, 0, block));
    }
    let end = |placed: &Placed| placed.start + placed.len;
    // Links count from the first record of the chain, partitions from their own record.
    let extended = logical.first().and_then(|placed| placed.record).unwrap_or(0);
    if let Some(last) = logical.last() {
        first.set_partition(3, range(0x0F, extended, end(last) - extended, 0, block));
    }
    head[..512].copy_from_slice(&first.to_bytes());
    for (index, placed) in logical.iter().enumerate() {
        let own = placed.record.unwrap_or(0);
        let mut sector = boot_record();
        sector.set_partition(0, record(placed, own, block));
        if let Some((next, start)) = logical.get(index + 1).and_then(|next| Some((next, next.record?))) {
            sector.set_partition(1, range(0x05, start, end(next) - start, extended, block));
        }
        head.extend_from_slice(&sector.to_bytes());
        head.resize(head.len() + (RECORD * 512 - 512) as usize, 0);
    }
    Label { head, tail: Vec::new() }
}

/// A boot record without partitions.
fn boot_record() -> ProtectiveMBR {
    let mut sector = ProtectiveMBR::new();
    sector.set_partition(0, PartRecord::zero());
    sector
}

fn record(placed: &Placed, base: u64, block: u64) -> PartRecord {
    let kind = placed.part.kind.mbr().unwrap_or(0x83);
    let entry = range(kind, placed.start, placed.len, base, block);
    PartRecord { boot_indicator: if placed.part.active { 0x80 } else { 0 }, ..entry }
}

/// An entry for sectors of 512 bytes, which counts blocks from `base`. Cylinders, heads and sectors are those of the disk,
/// not of what `base` is.
fn range(os_type: u8, start: u64, len: u64, base: u64, block: u64) -> PartRecord {
    let (start_head, start_sector, start_track) = chs(start / block);
    let (end_head, end_sector, end_track) = chs((start + len) / block - 1);
    PartRecord {
        boot_indicator: 0,
        start_head,
        start_sector,
        start_track,
        os_type,
        end_head,
        end_sector,
        end_track,
        // The layout ends where 32 bits do.
        lb_start: ((start - base) / block) as u32,
        lb_size: (len / block) as u32,
    }
}

/// Head, sector and cylinder with 255 heads and 63 sectors, the geometry that everything assumes; the highest numbers for
/// what is beyond (1023, 254, 63).
fn chs(lba: u64) -> (u8, u8, u8) {
    let (cylinder, head, sector) = (lba / (255 * 63), lba / 63 % 255, lba % 63 + 1);
    match cylinder {
        0..=1023 => (head as u8, (sector | (cylinder >> 8) << 6) as u8, cylinder as u8),
        _ => (254, 0xFF, 0xFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cylinders_heads_and_sectors() {
        assert_eq!(chs(0), (0, 1, 0));
        assert_eq!(chs(2048), (32, 33, 0));
        assert_eq!(chs(16065 * 300), (0, 1 | 1 << 6, 44));
        assert_eq!(chs(16065 * 1024), (254, 0xFF, 0xFF));
    }
}
