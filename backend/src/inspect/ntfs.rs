//! NTFS: its boot sector; of its volume whether it is dirty; of its root whether Windows sleeps in `hiberfil.sys`.
//!
//! Structures as in Linux's fs/ntfs3/ntfs.h. Of an attribute whose runs are told in several records the first part is
//! followed: then nothing is said of what the rest would tell.

use std::io;

use super::bytes::{Fields, Medium};
use super::{Contents, Kind};

/// Numbers of records with a meaning of their own.
const LOG: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;

/// The part of a reference to a record that is its number.
const NUMBER: u64 = 0xFFFF_FFFF_FFFF;

/// Types of attributes.
const ATTRIBUTE_LIST: u32 = 0x20;
const VOLUME_NAME: u32 = 0x60;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xA0;

/// Blocks of the root directory that are searched: 4 MiB of it as a rule.
const MOST_INDEX_BLOCKS: u64 = 1024;
/// Largest record and index block.
const MOST_BYTES: u64 = 65536;
/// Runs of an attribute that are followed.
const MOST_RUNS: usize = 4096;
/// Records of one file that are looked at for an attribute.
const MOST_RECORDS: usize = 64;

pub(super) fn ntfs(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(sector) = medium.get(0, 512)? else { return Ok(None) };
    let Some((volume, total)) = Volume::read(*medium, Fields(&sector)) else { return Ok(None) };
    let serial = Fields(&sector).le64(72).unwrap_or(0);
    // The last sector, a copy of the first, is not counted.
    let size = total.checked_add(1).and_then(|sectors| sectors.checked_mul(volume.sector));
    let mut contents = Contents { size, uuid: Some(format!("{serial:016X}")), ..Contents::of(Kind::Ntfs) };
    if let Some(record) = volume.early_record(VOLUME)? {
        let record = Fields(&record);
        contents.label = find(record, VOLUME_NAME).and_then(value).and_then(|name| name.utf16(0, name.0.len()));
        let flags = find(record, VOLUME_INFORMATION).and_then(value).and_then(|information| information.le16(10));
        contents.dirty = flags.is_some_and(|flags| flags & 1 != 0);
    }
    contents.hibernated = volume.hibernated()?;
    Ok(Some(contents))
}

/// Where a volume is written whenever it is mounted: its master file table, and its log.
pub(crate) fn busy(medium: &Medium<'_>) -> io::Result<Vec<u64>> {
    let sector = medium.get(0, 512)?.unwrap_or_default();
    let Some((volume, _)) = Volume::read(*medium, Fields(&sector)) else { return Ok(Vec::new()) };
    let mut places = vec![volume.table];
    if let Some(record) = volume.early_record(LOG)? {
        let runs = find(Fields(&record), DATA).map(runs).unwrap_or_default();
        places.extend(volume.place(&runs, 0));
    }
    Ok(places)
}

struct Volume<'a> {
    medium: Medium<'a>,
    /// Bytes in a sector.
    sector: u64,
    /// Bytes in a cluster.
    cluster: u64,
    /// First byte of the master file table.
    table: u64,
    /// Bytes in one of its records.
    record: u64,
}

impl<'a> Volume<'a> {
    /// `struct NTFS_BOOT`: the volume and its number of sectors.
    fn read(medium: Medium<'a>, boot: Fields<'_>) -> Option<(Volume<'a>, u64)> {
        let sector = u64::from(boot.le16(11)?);
        if !boot.has(3, b"NTFS    ") || !sector.is_power_of_two() || !(256..=4096).contains(&sector) {
            return None;
        }
        let cluster = match boot.u8(13)? {
            0 => return None,
            few @ ..=0x80 => u64::from(few) * sector,
            // The exponent, negative.
            exponent => sector.checked_shl(256 - u32::from(exponent)).filter(|bytes| *bytes <= 2 << 20)?,
        };
        let record = match boot.u8(64)? {
            0 => return None,
            clusters @ ..0x80 => u64::from(clusters) * cluster,
            exponent => 1u64.checked_shl(256 - u32::from(exponent))?,
        };
        let table = boot.le64(48)?.checked_mul(cluster)?;
        if !(256..=MOST_BYTES).contains(&record) {
            return None;
        }
        Some((Volume { medium, sector, cluster, table, record }, boot.le64(40)?))
    }

    /// One of the first records, which lie together at the beginning of the table.
    fn early_record(&self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let at = number.checked_mul(self.record).and_then(|into| self.table.checked_add(into));
        at.map_or(Ok(None), |at| self.protected(at, self.record, b"FILE"))
    }

    /// Any record, by way of the table's own runs.
    fn record(&self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(own) = self.early_record(0)? else { return Ok(None) };
        let runs = find(Fields(&own), DATA).map(runs).unwrap_or_default();
        let at = number.checked_mul(self.record).and_then(|into| self.place(&runs, into));
        at.map_or(Ok(None), |at| self.protected(at, self.record, b"FILE"))
    }

    /// A structure of several sectors, each of which ends with a number that stands in for what belongs there
    /// (`struct NTFS_RECORD_HEADER`).
    fn protected(&self, at: u64, len: u64, magic: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        let Some(mut bytes) = self.medium.get(at, len)? else { return Ok(None) };
        Ok(restore(&mut bytes, magic).map(|()| bytes))
    }

    /// Where byte `into` of what has these runs is on the medium.
    fn place(&self, runs: &[Run], mut into: u64) -> Option<u64> {
        for run in runs {
            let len = run.clusters.checked_mul(self.cluster)?;
            if into < len {
                return run.first?.checked_mul(self.cluster)?.checked_add(into);
            }
            into -= len;
        }
        None
    }

    /// An attribute of a file, wherever it stands: in the file's first record, or in one that its list names.
    fn attribute(&self, record: Fields<'_>, kind: u32) -> io::Result<Option<Vec<u8>>> {
        let own = |record: Fields<'_>| find(record, kind).map(|attribute| attribute.0.to_vec());
        let Some(list) = find(record, ATTRIBUTE_LIST).filter(|_| own(record).is_none()) else { return Ok(own(record)) };
        let list = match value(list) {
            Some(list) => list.0.to_vec(),
            None => {
                let len = list.le64(48).and_then(|len| usize::try_from(len.min(MOST_BYTES)).ok()).unwrap_or(0);
                let at = self.place(&runs(list), 0);
                at.map(|at| self.medium.get(at, len)).transpose()?.flatten().unwrap_or_default()
            }
        };
        for number in listed(Fields(&list), kind).into_iter().take(MOST_RECORDS) {
            let found = self.record(number)?.and_then(|record| own(Fields(&record)));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Whether `hiberfil.sys` begins as one of a system that is to go on from it. One of a system that went on is blank or
    /// begins otherwise.
    fn hibernated(&self) -> io::Result<bool> {
        let Some(number) = self.find_in_root("hiberfil.sys")? else { return Ok(false) };
        let Some(record) = self.record(number)? else { return Ok(false) };
        let Some(data) = self.attribute(Fields(&record), DATA)? else { return Ok(false) };
        let data = Fields(&data);
        let begin = match (value(data), self.place(&runs(data), 0)) {
            (Some(value), _) => value.slice(0, 4).map(<[u8]>::to_vec),
            (None, Some(at)) => self.medium.get(at, 4)?,
            (None, None) => None,
        };
        Ok(begin.is_some_and(|begin| begin.eq_ignore_ascii_case(b"hibr")))
    }

    /// Number of the record of a file of the root directory.
    fn find_in_root(&self, name: &str) -> io::Result<Option<u64>> {
        let Some(root) = self.early_record(ROOT)? else { return Ok(None) };
        let root = Fields(&root);
        let Some(index) = self.attribute(root, INDEX_ROOT)? else { return Ok(None) };
        let Some(index) = value(Fields(&index)) else { return Ok(None) };
        let found = index.0.get(16..).and_then(|node| find_in_node(Fields(node), name));
        let block = u64::from(index.le32(8).unwrap_or(0));
        if found.is_some() || !(512..=MOST_BYTES).contains(&block) {
            return Ok(found);
        }
        let Some(allocation) = self.attribute(root, INDEX_ALLOCATION)? else { return Ok(None) };
        let allocation = Fields(&allocation);
        let size = allocation.le64(48).unwrap_or(0);
        let runs = runs(allocation);
        for number in 0..(size / block).min(MOST_INDEX_BLOCKS) {
            let Some(at) = self.place(&runs, number * block) else { break };
            let Some(bytes) = self.protected(at, block, b"INDX")? else { continue };
            let found = bytes.get(24..).and_then(|node| find_in_node(Fields(node), name));
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Puts the bytes back that the numbers at the ends of sectors stand in for.
fn restore(bytes: &mut [u8], magic: &[u8]) -> Option<()> {
    const SECTOR: usize = 512;
    let header = Fields(bytes);
    let (at, count) = (usize::from(header.le16(4)?), usize::from(header.le16(6)?));
    let numbers = header.slice(at, count.checked_mul(2)?)?.to_vec();
    if !header.has(0, magic) || count != bytes.len() / SECTOR + 1 {
        return None;
    }
    for (sector, kept) in bytes.chunks_exact_mut(SECTOR).zip(numbers.chunks_exact(2).skip(1)) {
        let end = sector.get_mut(SECTOR - 2..)?;
        if *end != numbers[..2] {
            return None;
        }
        end.copy_from_slice(kept);
    }
    Some(())
}

/// The attributes of a record (`struct ATTRIB`).
fn attributes(record: Fields<'_>) -> impl Iterator<Item = Fields<'_>> {
    let mut at = record.le16(20).map(usize::from);
    std::iter::from_fn(move || {
        let here = at?;
        let len = usize::try_from(record.le32(here + 4)?).ok()?;
        if record.le32(here)? == u32::MAX || len < 24 {
            return None;
        }
        at = here.checked_add(len);
        record.slice(here, len).map(Fields)
    })
}

/// An attribute of a record; one whose value is elsewhere from its first cluster on. Data has a name where it is a stream of
/// its own; an index always has one.
fn find(record: Fields<'_>, kind: u32) -> Option<Fields<'_>> {
    attributes(record).find(|attribute| {
        let begins = attribute.u8(8) == Some(0) || attribute.le64(16) == Some(0);
        attribute.le32(0) == Some(kind) && begins && (kind != DATA || attribute.u8(9) == Some(0))
    })
}

/// Value of an attribute that stands in the record.
fn value(attribute: Fields<'_>) -> Option<Fields<'_>> {
    let len = usize::try_from(attribute.le32(16)?).ok()?;
    let value = attribute.slice(usize::from(attribute.le16(20)?), len).map(Fields);
    value.filter(|_| attribute.u8(8) == Some(0))
}

/// The records that an attribute list names for an attribute (`struct ATTR_LIST_ENTRY`).
fn listed(list: Fields<'_>, kind: u32) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut at = 0;
    while let Some(len) = list.le16(at + 4).filter(|len| *len >= 26) {
        if list.le32(at) == Some(kind) && list.le64(at + 8) == Some(0) {
            numbers.extend(list.le64(at + 16).map(|reference| reference & NUMBER));
        }
        at += usize::from(len);
    }
    numbers
}

/// Clusters that lie together.
struct Run {
    clusters: u64,
    /// None: a hole.
    first: Option<u64>,
}

/// Pairs of lengths and distances, each as long as its head says.
fn runs(attribute: Fields<'_>) -> Vec<Run> {
    let mut runs = Vec::new();
    if attribute.u8(8) != Some(1) {
        return runs;
    }
    let mut at = attribute.le16(32).map_or(0, usize::from);
    let mut cluster = 0i64;
    while let Some(head) = attribute.u8(at).filter(|head| *head != 0 && at != 0 && runs.len() < MOST_RUNS) {
        let (len, offset) = (usize::from(head & 15), usize::from(head >> 4));
        let Some(clusters) = attribute.slice(at + 1, len).and_then(signed) else { break };
        let Some(distance) = attribute.slice(at + 1 + len, offset).and_then(signed) else { break };
        let Some(next) = cluster.checked_add(distance) else { break };
        let (Ok(clusters), Ok(first)) = (u64::try_from(clusters), u64::try_from(next)) else { break };
        cluster = next;
        runs.push(Run { clusters, first: (offset > 0).then_some(first) });
        at += 1 + len + offset;
    }
    runs
}

/// A signed number of up to eight bytes, little-endian.
fn signed(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut wide = [if negative { 0xFF } else { 0 }; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(wide))
}

/// Record number of the file with this name, whatever its case, among the entries of an index node (`struct INDEX_HDR`).
fn find_in_node(node: Fields<'_>, name: &str) -> Option<u64> {
    let mut at = usize::try_from(node.le32(0)?).ok()?;
    let end = usize::try_from(node.le32(4)?).ok()?.min(node.0.len());
    while at < end {
        let len = usize::from(node.le16(at.checked_add(8)?)?);
        let entry = Fields(node.slice(at, len)?);
        let key = usize::from(entry.le16(10)?);
        if key >= 0x42 {
            let file = Fields(entry.slice(16, key)?);
            let its_name = file.utf16(0x42, 2 * usize::from(file.u8(0x40)?));
            if its_name.is_some_and(|its| its.eq_ignore_ascii_case(name)) {
                return Some(entry.le64(0)? & NUMBER);
            }
        }
        // The last entry has no key; nor does the next begin where this one does.
        if entry.le16(12)? & 2 != 0 || len < 16 {
            return None;
        }
        at += len;
    }
    None
}
