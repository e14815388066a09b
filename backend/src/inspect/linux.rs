//! What Linux keeps on disks: file systems, swap, LUKS, md; and ISO 9660.

use std::io;

use super::bytes::{Fields, Medium};
use super::{Contents, Kind};

/// `struct ext4_super_block` (fs/ext4/ext4.h), 1024 bytes from the beginning.
pub(super) fn ext(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(block) = medium.get(1024, 1024)? else { return Ok(None) };
    Ok(ext_super(Fields(&block)))
}

fn ext_super(sb: Fields<'_>) -> Option<Contents> {
    // EXT4_FEATURE_INCOMPAT_*, _COMPAT_ and _RO_COMPAT_ that matter here.
    const HAS_JOURNAL: u32 = 0x4;
    const RECOVER: u32 = 0x4;
    const JOURNAL_DEV: u32 = 0x8;
    const BITS_64: u32 = 0x80;
    const INCOMPAT_EXT3: u32 = 0x2 | RECOVER | JOURNAL_DEV | 0x10;
    const RO_COMPAT_EXT3: u32 = 0x1 | 0x2 | 0x4;
    const CLEAN: u16 = 1;
    if sb.le16(0x38)? != 0xEF53 {
        return None;
    }
    let (compat, incompat, ro_compat) = (sb.le32(0x5C)?, sb.le32(0x60)?, sb.le32(0x64)?);
    if incompat & JOURNAL_DEV != 0 {
        return None;
    }
    let shift = sb.le32(0x18)?;
    let high = if incompat & BITS_64 != 0 { sb.le32(0x150)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(sb.le32(0x4)?);
    let size = 1024u64.checked_shl(shift).filter(|_| shift <= 6)?.checked_mul(blocks)?;
    let journal = compat & HAS_JOURNAL != 0;
    let kind = match (incompat & !INCOMPAT_EXT3, ro_compat & !RO_COMPAT_EXT3) {
        (0, 0) if journal => Kind::Ext3,
        (0, 0) => Kind::Ext2,
        _ => Kind::Ext4,
    };
    Some(Contents {
        size: Some(size),
        label: sb.text(0x78, 16),
        uuid: sb.uuid(0x68),
        dirty: incompat & RECOVER != 0 || (!journal && sb.le16(0x3A)? & CLEAN == 0),
        ..Contents::of(kind)
    })
}

/// `struct btrfs_super_block` (include/uapi/linux/btrfs_tree.h), 64 KiB from the beginning. The size is that of this
/// device; there may be others.
pub(super) fn btrfs(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    const DEV_ITEM: usize = 0xC9;
    let Some(block) = medium.get(65536, 4096)? else { return Ok(None) };
    let read = |sb: Fields<'_>| {
        if !sb.has(0x40, b"_BHRfS_M") {
            return None;
        }
        Some(Contents {
            size: sb.le64(DEV_ITEM + 8),
            label: sb.text(0x12B, 256),
            uuid: sb.uuid(0x20),
            // The log tree of what was synced since the last transaction.
            dirty: sb.le64(0x60)? != 0,
            ..Contents::of(Kind::Btrfs)
        })
    };
    Ok(read(Fields(&block)))
}

/// `union swap_header` (include/linux/swap.h), with its magic at the end of the first page, whatever the page's size; and
/// what hibernation puts in the magic's place.
pub(super) fn swap(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    const SLEEPING: [&[u8]; 4] = [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"];
    for page in [4096u64, 8192, 16384, 32768, 65536] {
        let Some(magic) = medium.get(page - 10, 10)? else { break };
        let hibernated = SLEEPING.contains(&magic.as_slice());
        if !hibernated && magic != b"SWAPSPACE2" {
            continue;
        }
        let Some(header) = medium.get(1024, 512)? else { break };
        let header = Fields(&header);
        let pages = header.le32(4).map(|last| u64::from(last) + 1);
        return Ok(Some(Contents {
            size: pages.map(|pages| pages * page),
            label: header.text(28, 16),
            uuid: header.uuid(12),
            hibernated,
            ..Contents::of(Kind::Swap)
        }));
    }
    Ok(None)
}

/// `struct luks_phdr` and `struct luks2_hdr_disk` (cryptsetup's lib/luks1/luks.h, lib/luks2/luks2.h).
pub(super) fn luks(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(block) = medium.get(0, 512)? else { return Ok(None) };
    let read = |header: Fields<'_>| {
        if !header.has(0, b"LUKS\xba\xbe") {
            return None;
        }
        let label = match header.be16(6)? {
            1 => None,
            2 => header.text(24, 48),
            _ => return None,
        };
        Some(Contents { label, uuid: header.text(168, 40), ..Contents::of(Kind::Luks) })
    };
    Ok(read(Fields(&block)))
}

/// `struct mdp_superblock_1` (include/uapi/linux/raid/md_p.h) at its three places, and the magic of version 0.90.
pub(super) fn md(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    const MAGIC: u32 = 0xa92b_4efc;
    let sectors = medium.size / 512;
    // Version 1.0 lies 8 KiB from the end, rounded down to 4 KiB.
    let last = sectors.checked_sub(16).map(|sector| (sector & !7) * 512);
    for at in [Some(4096), Some(0), last].into_iter().flatten() {
        let Some(block) = medium.get(at, 256)? else { continue };
        let sb = Fields(&block);
        let here = sb.le64(144).and_then(|sector| sector.checked_mul(512)) == Some(at);
        if sb.le32(0) == Some(MAGIC) && sb.le32(4) == Some(1) && here {
            let contents = Contents::of(Kind::Md);
            return Ok(Some(Contents { label: sb.text(32, 32), uuid: sb.uuid(16), ..contents }));
        }
    }
    // Version 0.90 lies 64 KiB from the end, rounded down to 64 KiB.
    let Some(at) = (sectors & !127).checked_sub(128).map(|sector| sector * 512) else { return Ok(None) };
    let Some(block) = medium.get(at, 64)? else { return Ok(None) };
    let sb = Fields(&block);
    let is_ours = sb.le32(0) == Some(MAGIC) && sb.le32(4) == Some(0) && sb.le32(8).is_some_and(|minor| minor <= 91);
    Ok(is_ours.then(|| Contents::of(Kind::Md)))
}

/// ECMA-119, 8.4: the primary volume descriptor, in sector 16 of 2048 bytes.
pub(super) fn iso(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(block) = medium.get(16 * 2048, 2048)? else { return Ok(None) };
    let read = |descriptor: Fields<'_>| {
        if !descriptor.has(0, b"\x01CD001\x01") {
            return None;
        }
        let size = u64::from(descriptor.le32(80)?) * u64::from(descriptor.le16(128)?);
        Some(Contents { size: Some(size), label: descriptor.text(40, 32), ..Contents::of(Kind::Iso9660) })
    };
    Ok(read(Fields(&block)))
}
