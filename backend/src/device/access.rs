//! Direct or buffered: what the file system and its alignment allow.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use dm_table::Sectors;

use super::component::{Access, Cache};
use crate::guest::{Mapping, page_size};

/// File systems that keep their data in memory. Newer kernels accept `O_DIRECT` on them and ignore it.
const IN_MEMORY: [(u64, &str); 3] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs"), (0x9584_58f6, "hugetlbfs")];

/// Alignments that are tried where the kernel does not report one, smallest first.
const TRIED: [u32; 4] = [512, 1024, 2048, 4096];

/// Largest alignment that is tried or believed, in bytes.
const MAX_ALIGN: usize = 64 * 1024;

/// Makes the open description of `file` direct where `cache` and the file allow it, and maps a file that lies in memory.
/// `Err` says why direct I/O cannot be had although it was demanded.
pub(super) fn choose(
    file: &File,
    cache: Cache,
    logical_block: u32,
    size: Sectors,
    writable: bool,
) -> Result<(Access, Option<Mapping>), String> {
    if cache == Cache::Buffered {
        return Ok((Access::Buffered, None));
    }
    if cache == Cache::Auto && stays_in_memory(file) && (writable || owned(file)) {
        // Without a mapping there is still the page cache, which is where the data is.
        return Ok(match Mapping::new(file, size.bytes(), writable, page_size(file)) {
            Ok(mapping) => (Access::Mapped, Some(mapping)),
            Err(_) => (Access::Buffered, None),
        });
    }
    match direct(file, logical_block) {
        Ok(access) => Ok((access, None)),
        Err(why) => {
            // Reads of a description that stays direct would fail; without the flag it cannot refuse.
            let _ = set_direct(file, false);
            if cache == Cache::Direct { Err(why) } else { Ok((Access::Buffered, None)) }
        }
    }
}

/// The same for a file that is open already, and was found to be read as `before`. The flags of its description are others'
/// too, and stay.
pub(super) fn again(
    file: &File,
    before: Access,
    logical_block: u32,
    size: Sectors,
    writable: bool,
) -> Result<(Access, Option<Mapping>), String> {
    match before {
        Access::Buffered => Ok((Access::Buffered, None)),
        Access::Direct { .. } => Ok((direct(file, logical_block)?, None)),
        Access::Mapped => Ok(match Mapping::new(file, size.bytes(), writable, page_size(file)) {
            Ok(mapping) => (Access::Mapped, Some(mapping)),
            Err(_) => (Access::Buffered, None),
        }),
    }
}

fn direct(file: &File, logical_block: u32) -> Result<Access, String> {
    if let Some(name) = in_memory(file) {
        return Err(format!("{name} keeps its data in memory, there is no device to be direct to"));
    }
    set_direct(file, true).map_err(|error| format!("the file system does not take O_DIRECT ({error})"))?;
    let (mem_align, offset_align) = match reported(file) {
        Some((0, _) | (_, 0)) => return Err("the file system has it off for this file".into()),
        Some(reported) => reported,
        None => (0, probe_offset(file).ok_or("a read with O_DIRECT fails at every alignment up to 4096")?),
    };
    if offset_align > logical_block {
        return Err(format!(
            "the file system needs offsets that are multiples of {offset_align} bytes, and the guest may use {logical_block}"
        ));
    }
    let mem_align = match mem_align {
        0 => probe_memory(file, offset_align).ok_or("a read with O_DIRECT fails with every buffer")?,
        reported => reported,
    };
    if !reads(file, mem_align, offset_align) {
        return Err(format!("a read of {offset_align} bytes into a buffer aligned to {mem_align} fails"));
    }
    Ok(Access::Direct { mem_align, offset_align })
}

fn set_direct(file: &File, on: bool) -> rustix::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    rustix::fs::fcntl_setfl(file, flags)
}

/// Whether the kernel tells us which pages of a file that we do not write are there (mincore(2)).
fn owned(file: &File) -> bool {
    let user = rustix::process::geteuid();
    user.is_root() || rustix::fs::fstat(file).is_ok_and(|stat| stat.st_uid == user.as_raw())
}

/// Whether touching the file's pages never waits for a disk: a tmpfs may be swapped out where there is swap.
fn stays_in_memory(file: &File) -> bool {
    match in_memory(file) {
        Some("tmpfs") => super::proc::swaps().is_empty(),
        Some(_) => true,
        None => false,
    }
}

fn in_memory(file: &File) -> Option<&'static str> {
    let stat = rustix::fs::fstatfs(file).ok()?;
    // The numbers of a file opened on a device node belong to devtmpfs, not to the device.
    let meta = rustix::fs::fstat(file).ok()?;
    if rustix::fs::FileType::from_raw_mode(meta.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    let found = IN_MEMORY.iter().find(|(magic, _)| i128::from(*magic) == i128::from(stat.f_type as u32));
    found.map(|(_, name)| *name)
}

/// Memory and offset alignment as statx reports them (Linux 6.1); zero means that there is no direct I/O.
fn reported(file: &File) -> Option<(u32, u32)> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let has_it = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    has_it.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

fn probe_offset(file: &File) -> Option<u32> {
    TRIED.into_iter().find(|align| reads(file, 4096, *align))
}

fn probe_memory(file: &File, offset_align: u32) -> Option<u32> {
    TRIED.into_iter().find(|align| reads(file, *align, offset_align))
}

/// Whether a read works at an offset, of a length and into a buffer that are aligned just so and no better.
fn reads(file: &File, mem_align: u32, offset_align: u32) -> bool {
    let (mem, len) = (mem_align as usize, offset_align as usize);
    if !mem.is_power_of_two() || mem > MAX_ALIGN || len > MAX_ALIGN {
        return false;
    }
    let mut memory = vec![0_u8; 3 * MAX_ALIGN + len];
    // A multiple of the largest alignment, then off it by one alignment.
    let start = memory.as_ptr().align_offset(MAX_ALIGN) + mem;
    let Some(buffer) = memory.get_mut(start..start + len) else { return false };
    // At the second block too, so that the offset counts; behind the end of a file this is no error.
    [0, u64::from(offset_align)].into_iter().all(|at| match file.read_at(buffer, at) {
        // A bad sector is the guest's to meet; only the alignment is in question here.
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
        Ok(_) => true,
    })
}
