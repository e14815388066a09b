//! Partition tables: GPT, DOS, BSD.

use std::io;

use super::bytes::{Fields, Medium};
use super::{Contents, Kind, Partition};

/// Most entries that are read; the usual number, and more than anybody has.
const MOST_ENTRIES: usize = 128;
/// Most logical partitions that are followed.
const MOST_LOGICAL: u32 = 124;

/// UEFI 2.10, 5.3: the header in logical block 1, whichever size blocks have. Its checksum must be right.
pub(super) fn gpt(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    for block in [512u64, 4096] {
        let Some(header) = medium.get(block, 512)? else { continue };
        let header = Fields(&header);
        let Some((entries_at, number, entry)) = gpt_header(header) else { continue };
        let len = number.min(MOST_ENTRIES) * entry;
        let entries = entries_at.checked_mul(block).map(|at| medium.get(at, len)).transpose()?.flatten();
        let entries = entries.unwrap_or_default();
        let sectors = block / 512;
        let partitions = (1..).zip(entries.chunks_exact(entry));
        let partitions = partitions.filter_map(|(number, entry)| gpt_entry(number, Fields(entry), sectors)).collect();
        // As many blocks as all entries take, of which there are more than are read where somebody wants them.
        let blocks = (number as u64 * entry as u64).div_ceil(block);
        let table = entries_at.checked_add(blocks).and_then(|end| end.checked_mul(sectors));
        return Ok(Some(Contents {
            size: header.le64(32).and_then(|last| last.checked_add(1)?.checked_mul(block)),
            uuid: header.guid(56),
            partitions,
            // The header is the table's own, wherever it says that the entries are.
            reserved: table.unwrap_or(34).max(2 * sectors),
            reserved_end: (blocks + 1) * sectors,
            ..Contents::of(Kind::Gpt)
        }));
    }
    Ok(None)
}

/// The header that the last logical block has.
pub(super) fn gpt_copy(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    for block in [512u64, 4096] {
        let Some(header) = medium.size.checked_sub(block).map(|at| medium.get(at, 512)).transpose()?.flatten() else {
            continue;
        };
        let header = Fields(&header);
        // It says itself that the other one is the first.
        if gpt_header(header).is_some() && header.le64(32) == Some(1) {
            return Ok(Some(Contents { uuid: header.guid(56), ..Contents::of(Kind::GptCopy) }));
        }
    }
    Ok(None)
}

/// Block of the entries, their number and their size.
fn gpt_header(header: Fields<'_>) -> Option<(u64, usize, usize)> {
    let size = usize::try_from(header.le32(12)?).ok()?;
    if !header.has(0, b"EFI PART") || !(92..=512).contains(&size) {
        return None;
    }
    let mut summed = header.slice(0, size)?.to_vec();
    summed.get_mut(16..20)?.fill(0);
    if crc32fast::hash(&summed) != header.le32(16)? {
        return None;
    }
    let entry = usize::try_from(header.le32(84)?).ok().filter(|size| (128..=4096).contains(size))?;
    Some((header.le64(72)?, usize::try_from(header.le32(80)?).ok()?, entry))
}

fn gpt_entry(number: u32, entry: Fields<'_>, sectors: u64) -> Option<Partition> {
    let kind = entry.guid(0)?;
    let (first, last) = (entry.le64(32)?, entry.le64(40)?);
    let blocks = last.checked_sub(first)?.checked_add(1)?;
    Some(Partition {
        number,
        start: first.checked_mul(sectors)?,
        len: blocks.checked_mul(sectors)?,
        kind,
        name: entry.utf16(56, 72),
        uuid: entry.guid(16),
    })
}

/// The table in a master boot record. Boot sectors of file systems end with the same magic, so these are recognised before,
/// and what stands here must be possible.
pub(super) fn mbr(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(sector) = medium.get(0, 512)? else { return Ok(None) };
    let sb = Fields(&sector);
    let Some(entries) = dos_entries(sb) else { return Ok(None) };
    let used: Vec<(u32, DosEntry)> = (1..).zip(entries).filter(|(_, entry)| entry.kind != 0).collect();
    let possible = |(_, entry): &(u32, DosEntry)| matches!(entry.flag, 0 | 0x80) && entry.len > 0;
    if used.is_empty() || !used.iter().all(possible) {
        return Ok(None);
    }
    let mut partitions: Vec<Partition> = used.iter().map(|(number, entry)| entry.partition(*number, 0)).collect();
    for (_, extended) in used.iter().filter(|(_, entry)| entry.is_extended()) {
        logical(medium, extended.start, &mut partitions)?;
    }
    let signature = sb.le32(440).filter(|signature| *signature != 0);
    Ok(Some(Contents {
        uuid: signature.map(|signature| format!("{signature:08x}")),
        partitions,
        // A boot loader's first part and its second: what dm(4) of NetBSD asks to leave alone at least.
        reserved: 2,
        ..Contents::of(Kind::Mbr)
    }))
}

struct DosEntry {
    flag: u8,
    kind: u8,
    start: u64,
    len: u64,
}

impl DosEntry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    fn partition(&self, number: u32, base: u64) -> Partition {
        let kind = format!("{:02x}", self.kind);
        Partition { number, start: base + self.start, len: self.len, kind, ..Partition::default() }
    }
}

fn dos_entries(sector: Fields<'_>) -> Option<Vec<DosEntry>> {
    if !sector.has(510, b"\x55\xaa") {
        return None;
    }
    let entry = |at: usize| {
        let (start, len) = (sector.le32(at + 8)?, sector.le32(at + 12)?);
        Some(DosEntry { flag: sector.u8(at)?, kind: sector.u8(at + 4)?, start: start.into(), len: len.into() })
    };
    [446, 462, 478, 494].into_iter().map(entry).collect()
}

/// The chain of extended boot records: in each, a logical partition and the next link, which counts from the first record.
/// It may go in circles, so it is cut.
fn logical(medium: &Medium<'_>, extended: u64, partitions: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = extended;
    for number in 5..=MOST_LOGICAL {
        let Some(sector) = medium.get(at.saturating_mul(512), 512)? else { break };
        let Some(entries) = dos_entries(Fields(&sector)) else { break };
        let (data, link): (Vec<_>, Vec<_>) = entries.iter().take(2).partition(|entry| !entry.is_extended());
        if let Some(entry) = data.iter().find(|entry| entry.kind != 0 && entry.len > 0) {
            partitions.push(entry.partition(number, at));
        }
        match link.first() {
            Some(next) if next.start > 0 => at = extended + next.start,
            _ => break,
        }
    }
    Ok(())
}

/// `struct disklabel` (NetBSD's sys/disklabel.h) where ports with DOS tables keep it, and where others do.
pub(super) fn disklabel(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    const MAGIC: u32 = 0x8256_4557;
    for at in [512, 64] {
        let Some(label) = medium.get(at, 404)? else { continue };
        let label = Fields(&label);
        if label.le32(0) != Some(MAGIC) || label.le32(132) != Some(MAGIC) {
            continue;
        }
        let number = label.le16(138).unwrap_or(0).min(16);
        let partition = |index: u16| {
            let at = 148 + 16 * usize::from(index);
            let (len, start, kind) = (label.le32(at)?, label.le32(at + 4)?, label.u8(at + 12)?);
            (len > 0 && kind != 0).then(|| Partition {
                number: u32::from(index) + 1,
                start: start.into(),
                len: len.into(),
                kind: format!("{kind:02x}"),
                ..Partition::default()
            })
        };
        return Ok(Some(Contents {
            label: label.text(8, 16),
            partitions: (0..number).filter_map(partition).collect(),
            // The label and the boot program around it: dm(4) of NetBSD, for i386.
            reserved: 65,
            ..Contents::of(Kind::Disklabel)
        }));
    }
    Ok(None)
}
