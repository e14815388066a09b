//! Size and limits of a component.

use std::fs::File;
use std::io;

use dm_table::{SECTOR_SIZE, Sectors};
use rustix::fs::{FallocateFlags, SeekFrom, Stat};

use super::limits::{Discard, DiscardMethod, Limits};
use super::sysfs::Disk;

/// Longest discard of a file in bytes, a sector short of 4 GiB as the kernel's loop driver has it. Punching
/// holds the inode's lock, so a longer one would only make other requests wait longer.
const MAX_FILE_DISCARD: u64 = u32::MAX as u64 / SECTOR_SIZE;

/// Largest preferred block of a file that is taken for a physical block: see [`of_file`].
const MAX_FILE_BLOCK: u32 = 4096;

/// Bytes of an open device or file.
pub(super) fn size_in_bytes(file: &File) -> io::Result<u64> {
    // The only way without ioctl that gives the size of a block device; every transfer names its own
    // offset, so the position itself means nothing.
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

/// The limits of a block device from its queue. Without sysfs the block sizes still come from the device, and
/// the rest is left out. What changes data is left out of a read-only opening. Adds to `warnings` what the user should know.
pub(super) fn of_block(
    file: &File,
    disk: Option<&Disk>,
    read_only: bool,
    warnings: &mut Vec<String>,
) -> io::Result<Limits> {
    let logical_block = rustix::fs::ioctl_blksszget(file)?;
    let physical_block = rustix::fs::ioctl_blkpbszget(file)?;
    let Some(disk) = disk else {
        warnings.push("its limits are not known because /sys does not show it; discard is off".into());
        return Ok(Limits {
            logical_block,
            physical_block,
            alignment_offset: 0,
            io_min: 0,
            io_opt: 0,
            discard: None,
            write_zeroes: false,
        });
    };
    let queue = |attribute| disk.queue(attribute).unwrap_or(0);
    let changing = |attribute| if read_only { 0 } else { queue(attribute) };
    let write_zeroes_max = changing("write_zeroes_max_bytes");
    let discard_max = changing("discard_max_bytes");
    let method = match () {
        () if discard_max > 0 => Some(DiscardMethod::BlockCommand),
        () if write_zeroes_max > 0 => Some(DiscardMethod::PunchHole),
        () => None,
    };
    let max_bytes = if discard_max > 0 { discard_max } else { write_zeroes_max };
    let granularity = saturate(queue("discard_granularity")).max(logical_block);
    let alignment_offset = match disk.text("alignment_offset").map(|text| text.parse::<i64>()) {
        // The kernel's mark for a device whose start cannot be aligned to its physical blocks.
        Some(Ok(-1)) => {
            warnings.push("its start is not aligned to its physical blocks, so writes may be slow".into());
            0
        }
        Some(Ok(offset)) => saturate(u64::try_from(offset).unwrap_or(0)),
        _ => 0,
    };
    Ok(Limits {
        logical_block,
        physical_block,
        alignment_offset,
        io_min: saturate(queue("minimum_io_size")),
        io_opt: saturate(queue("optimal_io_size")),
        discard: method.map(|method| Discard { granularity, max_sectors: max_bytes / SECTOR_SIZE, method }),
        write_zeroes: write_zeroes_max > 0,
    })
}

/// The limits of a regular file.
///
/// The logical block is a sector, as a file can be written at any byte. The physical block is the file
/// system's block, because a smaller write makes the page cache or the file system read the rest of it first;
/// values beyond 4096 (huge pages, network file systems that announce a transfer size) say nothing of that
/// kind and would only make guests place partitions at odd distances.
pub(super) fn of_file(file: &File, stat: &Stat, bytes: u64, read_only: bool) -> Limits {
    let preferred = saturate(u64::try_from(stat.st_blksize).unwrap_or(0));
    let block =
        if preferred.is_power_of_two() { preferred.clamp(SECTOR_SIZE as u32, MAX_FILE_BLOCK) } else { MAX_FILE_BLOCK };
    let punches = !read_only && punches_holes(file, bytes);
    Limits {
        logical_block: SECTOR_SIZE as u32,
        physical_block: block,
        alignment_offset: 0,
        io_min: block,
        io_opt: 0,
        discard: punches.then_some(Discard {
            granularity: block,
            max_sectors: MAX_FILE_DISCARD,
            method: DiscardMethod::PunchHole,
        }),
        // A hole reads as zeroes, so whoever can punch can zero.
        write_zeroes: punches,
    }
}

/// Whether the file system of `file` can punch holes.
///
/// It is asked to punch one byte at the end of the file. There is no data there, and the kept size (KEEP_SIZE)
/// means that there is none afterwards. One byte is never a whole block, so even blocks that were allocated
/// beyond the end stay; at most the unused rest of the last block is zeroed, which it must read as anyway.
/// ZERO_RANGE is not asked in the same way: ext4 answers it by allocating the block.
fn punches_holes(file: &File, bytes: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, bytes, 1).is_ok()
}

/// The whole sectors of a component, with a warning where bytes are left over.
pub(super) fn whole_sectors(bytes: u64, warnings: &mut Vec<String>) -> Sectors {
    let rest = bytes % SECTOR_SIZE;
    if rest > 0 {
        warnings.push(format!(
            "its size of {bytes} bytes is no multiple of {SECTOR_SIZE}; the last {rest} bytes are not used"
        ));
    }
    Sectors::from_bytes_floor(bytes)
}

fn saturate(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
