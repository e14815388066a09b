//! Places of a disk that tell whether somebody has used it: those that change whenever what is on it is mounted for writing.
//!
//! ext4, XFS, btrfs, swap and md change their superblocks then, within the first 128 KiB. Others write elsewhere.

use crate::inspect::bytes::{Fields, Medium};
use crate::inspect::{self, Assembled, Bytes as _, Kind, Window};

/// Where the data of the first logical volume of LVM2 begins, as a rule: 1 MiB.
const LVM_DATA: u64 = 1 << 20;

/// First bytes of those places, for what begins at a byte of a disk: that byte, and others.
pub(super) fn places(disk: &Assembled, start: u64) -> Vec<u64> {
    let len = disk.size().saturating_sub(start);
    let window = Window { bytes: disk, start, len };
    let mut head = [0; 512];
    let mut places = vec![start];
    let known = window.read(0, &mut head).and_then(|()| inspect::look(&window, len));
    let others = known.ok().and_then(|contents| match contents.kind {
        Kind::Ntfs => inspect::busy_of_ntfs(&Medium { bytes: &window, size: len }).ok(),
        Kind::Fat => fat(Fields(&head)),
        Kind::Luks => luks(Fields(&head)),
        Kind::Lvm => Some(vec![LVM_DATA]),
        _ => None,
    });
    places.extend(others.unwrap_or_default().iter().filter_map(|place| start.checked_add(*place)));
    places
}

/// The allocation table, and the root directory with the times of its files.
fn fat(bpb: Fields<'_>) -> Option<Vec<u64>> {
    let sector = u64::from(bpb.le16(11)?);
    let (reserved, tables) = (u64::from(bpb.le16(14)?), u64::from(bpb.u8(16)?));
    let table = match bpb.le16(22)? {
        0 => u64::from(bpb.le32(36)?),
        few => u64::from(few),
    };
    Some(vec![reserved * sector, (reserved + tables * table) * sector])
}

/// What is encrypted: its first sectors are those of what is inside, and change with that.
fn luks(header: Fields<'_>) -> Option<Vec<u64>> {
    // Of version 2 this is the size that cryptsetup gives the headers.
    const SECOND: u64 = 16 << 20;
    Some(vec![match header.be16(6)? {
        1 => u64::from(header.be32(104)?) * 512,
        _ => SECOND,
    }])
}
