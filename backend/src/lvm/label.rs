//! Where LVM2 keeps what on a physical volume: label, header, metadata areas (lib/format_text/layout.h, lib/label/label.h).

use std::io;

use crate::inspect::Bytes;
use crate::inspect::bytes::{Fields, Medium};

const SECTOR: u64 = 512;
/// The label is in one of the first four sectors.
const LABEL_SCAN_SECTORS: u64 = 4;
/// Most areas of either kind that are read; LVM2 makes two at most.
const MOST_AREAS: usize = 16;
/// Longest text that is read: the metadata of the largest groups has some megabytes.
const MOST_TEXT: u64 = 64 << 20;
const AREA_HEADER: u64 = 512;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";

/// What a physical volume says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// As LVM2 prints it, with hyphens.
    pub uuid: String,
    /// Size of the device in bytes, as it was when the volume was made.
    pub size: u64,
    /// Metadata areas: first byte and length.
    pub areas: Vec<(u64, u64)>,
}

/// LVM2's checksum: CRC-32 with another start and without an inversion at the end (lib/misc/crc.c).
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    const INITIAL: u32 = 0xf597_a6cf;
    let mut crc = crc32fast::Hasher::new_with_initial(!INITIAL);
    crc.update(bytes);
    !crc.finalize()
}

/// The label and the header behind it: nothing where there is none.
///
/// # Errors
/// The reader's, or (`InvalidData`) a label that is damaged.
pub(crate) fn header(bytes: &dyn Bytes, size: u64) -> io::Result<Option<Header>> {
    let medium = Medium { bytes, size };
    for number in 0..LABEL_SCAN_SECTORS {
        let Some(sector) = medium.get(number * SECTOR, SECTOR as usize)? else { break };
        let label = Fields(&sector);
        if !label.has(0, b"LABELONE") || label.le64(8) != Some(number) || !label.has(24, b"LVM2 001") {
            continue;
        }
        if label.le32(16) != Some(checksum(&sector[20..])) {
            return Err(damaged(format!("the LVM2 label in sector {number} has a wrong checksum")));
        }
        let read = label.le32(20).and_then(|at| pv_header(label, usize::try_from(at).ok()?));
        return read.map(Some).ok_or_else(|| damaged(format!("the LVM2 label in sector {number} is cut off")));
    }
    Ok(None)
}

fn pv_header(sector: Fields<'_>, at: usize) -> Option<Header> {
    let uuid = hyphenated(sector.slice(at, 32)?)?;
    let size = sector.le64(at.checked_add(32)?)?;
    let mut next = at + 40;
    let mut list = || {
        let mut areas = Vec::new();
        loop {
            let area = (sector.le64(next)?, sector.le64(next + 8)?);
            next += 16;
            if area == (0, 0) || areas.len() == MOST_AREAS {
                return Some(areas);
            }
            areas.push(area);
        }
    };
    let _data = list()?;
    let areas = list()?;
    Some(Header { uuid, size, areas })
}

/// A UUID of LVM2: 32 letters and digits in groups of 6, 4, 4, 4, 4, 4 and 6.
pub(super) fn hyphenated(uuid: &[u8]) -> Option<String> {
    let mut text = String::from_utf8(uuid.to_vec()).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'!' | b'#')) || text.len() != 32 {
        return None;
    }
    [26, 22, 18, 14, 10, 6].into_iter().for_each(|at| text.insert(at, '-'));
    Some(text)
}

/// The text that a metadata area holds: nothing where it holds none, or is not kept up to date.
///
/// # Errors
/// The reader's, or (`InvalidData`) an area that is damaged.
pub(super) fn text(bytes: &dyn Bytes, size: u64, (start, len): (u64, u64)) -> io::Result<Option<String>> {
    const IGNORED: u32 = 1;
    let medium = Medium { bytes, size };
    let which = format!("the LVM2 metadata area at byte {start}");
    let Some(header) = medium.get(start, AREA_HEADER as usize)? else {
        return Err(damaged(format!("{which} lies beyond the end of the device")));
    };
    let header = Fields(&header);
    if header.le32(0) != Some(checksum(&header.0[4..])) {
        return Err(damaged(format!("{which} has a header with a wrong checksum")));
    }
    let as_labelled = header.le64(24) == Some(start) && header.le64(32) == Some(len);
    if !header.has(4, AREA_MAGIC) || header.le32(20) != Some(1) || !as_labelled {
        return Err(damaged(format!("{which} has a header of another version, place or size")));
    }
    // Slot 0 is what was committed; slot 1 would be a change that was not.
    let (Some(offset), Some(used)) = (header.le64(40), header.le64(48)) else { return Ok(None) };
    let (Some(sum), Some(flags)) = (header.le32(56), header.le32(60)) else { return Ok(None) };
    if (offset, used) == (0, 0) || flags & IGNORED != 0 {
        return Ok(None);
    }
    let ring = len.checked_sub(AREA_HEADER).filter(|_| (AREA_HEADER..len).contains(&offset));
    if ring.is_none_or(|ring| used > ring || used > MOST_TEXT) {
        return Err(damaged(format!("{which} has a text of {used} bytes at {offset}, which it has no room for")));
    }
    // What does not fit before the end goes on behind the header.
    let first = used.min(len - offset);
    let parts = [(start.checked_add(offset), first), (start.checked_add(AREA_HEADER), used - first)];
    let mut text = Vec::new();
    for (at, len) in parts {
        let part = at.map(|at| medium.get(at, len as usize)).transpose()?.flatten();
        text.extend(part.ok_or_else(|| damaged(format!("{which} lies beyond the end of the device")))?);
    }
    if checksum(&text) != sum {
        return Err(damaged(format!("{which} has a text with a wrong checksum")));
    }
    String::from_utf8(text).map(Some).map_err(|_| damaged(format!("{which} has a text that is not UTF-8")))
}

fn damaged(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A physical volume of 1 MiB whose metadata area of 8 KiB has a text at `offset`.
    fn volume(text: &str, offset: u64) -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        let (start, len) = (4096usize, 8192u64);
        disk[512..520].copy_from_slice(b"LABELONE");
        disk[520] = 1;
        disk[532] = 32;
        disk[536..544].copy_from_slice(b"LVM2 001");
        disk[544..576].copy_from_slice(b"abcdefghijklmnopqrstuvwxyz012345");
        disk[576..584].copy_from_slice(&(1u64 << 20).to_le_bytes());
        disk[584..592].copy_from_slice(&16384u64.to_le_bytes());
        disk[616..624].copy_from_slice(&(start as u64).to_le_bytes());
        disk[624..632].copy_from_slice(&len.to_le_bytes());
        let sum = checksum(&disk[532..1024]);
        disk[528..532].copy_from_slice(&sum.to_le_bytes());
        let area = &mut disk[start..start + len as usize];
        area[4..20].copy_from_slice(AREA_MAGIC);
        area[20] = 1;
        area[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        area[32..40].copy_from_slice(&len.to_le_bytes());
        area[40..48].copy_from_slice(&offset.to_le_bytes());
        area[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        area[56..60].copy_from_slice(&checksum(text.as_bytes()).to_le_bytes());
        for (into, byte) in text.bytes().enumerate() {
            let at = offset as usize + into;
            area[if at < len as usize { at } else { at - len as usize + 512 }] = byte;
        }
        let sum = checksum(&area[4..512]);
        area[0..4].copy_from_slice(&sum.to_le_bytes());
        disk
    }

    #[test]
    fn a_text_that_goes_round_the_end_of_its_area_is_one_text() {
        let long: String = (0..3000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
        for offset in [512, 4096, 8191, 8192 - 1500, 8192 - 3000] {
            let disk = volume(&long, offset);
            let header = header(&disk, disk.len() as u64).unwrap().unwrap();
            assert_eq!(header.uuid, "abcdef-ghij-klmn-opqr-stuv-wxyz-012345");
            assert_eq!(header.areas, [(4096, 8192)]);
            let read = text(&disk, disk.len() as u64, header.areas[0]).unwrap();
            assert_eq!(read.as_deref(), Some(long.as_str()), "at {offset}");
        }
    }

    #[test]
    fn a_wrong_bit_anywhere_is_seen() {
        let disk = volume("a text", 600);
        let reads = |disk: &Vec<u8>| {
            let header = header(disk, disk.len() as u64).ok()??;
            text(disk, disk.len() as u64, header.areas[0]).ok()?
        };
        assert!(reads(&disk).is_some());
        for at in (512..1024).chain(4096..4608).chain(4096 + 600..4096 + 606) {
            let mut disk = disk.clone();
            disk[at] ^= 0x10;
            assert_eq!(reads(&disk), None, "byte {at}");
        }
        for len in [0, 100, 512, 700, 1023, 1024, 4096, 4607, 4608, 4700] {
            assert_eq!(reads(&disk[..len].to_vec()), None, "{len} bytes");
        }
    }

    #[test]
    fn a_text_that_has_no_room_is_refused() {
        for (offset, len) in [(0u64, 5u64), (511, 5), (8192, 5), (u64::MAX, 5), (512, 7681), (600, u64::MAX)] {
            let mut disk = volume("a text", 600);
            let area = &mut disk[4096..4096 + 512];
            area[40..48].copy_from_slice(&offset.to_le_bytes());
            area[48..56].copy_from_slice(&len.to_le_bytes());
            let sum = checksum(&area[4..]);
            area[0..4].copy_from_slice(&sum.to_le_bytes());
            let error = text(&disk, disk.len() as u64, (4096, 8192)).unwrap_err();
            assert!(error.to_string().contains("no room"), "{error}");
        }
    }
}
