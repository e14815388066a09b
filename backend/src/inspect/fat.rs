//! FAT and exFAT.

use std::io;

use super::bytes::{Fields, Medium};
use super::{Contents, Kind};

/// The BIOS parameter block and what follows it (Microsoft's "FAT: General Overview of On-Disk Format", 1.03). It has no
/// magic; what it has is checked.
pub(super) fn fat(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(sector) = medium.get(0, 512)? else { return Ok(None) };
    let Some(bpb) = Bpb::read(Fields(&sector)) else { return Ok(None) };
    // The two highest bits of the second entry: cleanly unmounted, no I/O errors. FAT12 has none.
    let second = medium.get(bpb.reserved * bpb.sector, 8)?;
    let second = second.as_deref().map(Fields);
    let clean = match bpb.clusters {
        0..4085 => None,
        4085..65525 => second.and_then(|fat| fat.le16(2)).map(|entry| entry & 0x8000 != 0),
        _ => second.and_then(|fat| fat.le32(4)).map(|entry| entry & 0x0800_0000 != 0),
    };
    Ok(Some(Contents {
        size: Some(bpb.total * bpb.sector),
        label: bpb.label,
        uuid: Some(format!("{:04X}-{:04X}", bpb.serial >> 16, bpb.serial & 0xFFFF)),
        dirty: bpb.marked || clean == Some(false),
        ..Contents::of(Kind::Fat)
    }))
}

struct Bpb {
    /// Bytes in a sector.
    sector: u64,
    /// Sectors before the first FAT.
    reserved: u64,
    /// Sectors of the file system.
    total: u64,
    clusters: u64,
    label: Option<String>,
    serial: u32,
    /// Linux has set its dirty bit.
    marked: bool,
}

impl Bpb {
    fn read(sb: Fields<'_>) -> Option<Bpb> {
        let jump = sb.u8(0)?;
        let sector = u64::from(sb.le16(11)?);
        let cluster = u64::from(sb.u8(13)?);
        let (reserved, fats) = (u64::from(sb.le16(14)?), u64::from(sb.u8(16)?));
        let plausible = sb.has(510, b"\x55\xaa")
            && matches!(jump, 0xEB | 0xE9)
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && cluster.is_power_of_two()
            && reserved > 0
            && matches!(fats, 1 | 2)
            && sb.u8(21)? >= 0xF0;
        if !plausible {
            return None;
        }
        let wide = sb.le16(22)? == 0;
        let fat = if wide { u64::from(sb.le32(36)?) } else { u64::from(sb.le16(22)?) };
        let total = match u64::from(sb.le16(19)?) {
            0 => u64::from(sb.le32(32)?),
            few => few,
        };
        let root = (u64::from(sb.le16(17)?) * 32).div_ceil(sector);
        let data = total.checked_sub(reserved + fats * fat + root)?;
        if fat == 0 || data < cluster {
            return None;
        }
        // The extended boot record begins later in FAT32.
        let record = if wide { 64 } else { 36 };
        let extended = matches!(sb.u8(record + 2)?, 0x28 | 0x29);
        let label = sb.text(record + 7, 11).filter(|label| extended && label != "NO NAME");
        Some(Bpb {
            sector,
            reserved,
            total,
            clusters: data / cluster,
            label,
            serial: if extended { sb.le32(record + 3)? } else { 0 },
            marked: sb.u8(record + 1)? & 1 != 0,
        })
    }
}

/// "exFAT file system specification", 3.1: the main boot sector.
pub(super) fn exfat(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    const VOLUME_DIRTY: u16 = 2;
    let Some(sector) = medium.get(0, 512)? else { return Ok(None) };
    let sb = Fields(&sector);
    let shifts =
        sb.u8(108).zip(sb.u8(109)).filter(|(bytes, cluster)| (9..=12).contains(bytes) && *cluster <= 25 - bytes);
    let Some((bytes, cluster)) = shifts.filter(|_| sb.has(3, b"EXFAT   ") && sb.has(510, b"\x55\xaa")) else {
        return Ok(None);
    };
    let (bytes, cluster) = (u32::from(bytes), u32::from(cluster));
    let serial = sb.le32(100).unwrap_or(0);
    let root = sb.le32(96).and_then(|number| number.checked_sub(2)).zip(sb.le32(88));
    let root = root.map(|(index, heap)| (u64::from(heap) << bytes) + (u64::from(index) << (bytes + cluster)));
    let entries = match root {
        // The volume label stands among the first entries of the root directory.
        Some(at) => medium.get(at, 512)?.unwrap_or_default(),
        None => Vec::new(),
    };
    let label = entries.chunks_exact(32).map(Fields).find(|entry| entry.u8(0) == Some(0x83));
    let label = label.and_then(|entry| entry.utf16(2, 2 * usize::from(entry.u8(1)?.min(11))));
    Ok(Some(Contents {
        size: sb.le64(72).and_then(|sectors| sectors.checked_mul(1 << bytes)),
        label,
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF)),
        dirty: sb.le16(106).is_some_and(|flags| flags & VOLUME_DIRTY != 0),
        ..Contents::of(Kind::Exfat)
    }))
}
