//! XFS, and whether its log is clean: fs/xfs/libxfs/xfs_format.h and xfs_log_format.h, fs/xfs/xfs_log_recover.c.

use std::io;

use super::bytes::{Fields, Medium};
use super::{Contents, Kind};

/// Bytes in a basic block, the log's unit.
const BLOCK: u64 = 512;
/// Basic blocks in which the last record of a log lies: 256 KiB of data, and their headers.
const RECORD: u64 = 528;
/// What a record begins with.
const MAGIC: u32 = 0xFEED_BABE;

/// `struct xfs_dsb`.
pub(super) fn xfs(medium: &Medium<'_>) -> io::Result<Option<Contents>> {
    let Some(block) = medium.get(0, 512)? else { return Ok(None) };
    let sb = Fields(&block);
    let read = || {
        let block_size = sb.be32(4)?;
        if !sb.has(0, b"XFSB") || !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            return None;
        }
        let size = u64::from(block_size).checked_mul(sb.be64(8)?)?;
        Some(Contents { size: Some(size), label: sb.text(108, 12), uuid: sb.uuid(32), ..Contents::of(Kind::Xfs) })
    };
    let Some(contents) = read() else { return Ok(None) };
    let dirty = match Log::of(sb) {
        Some(log) => log.is_dirty(medium)?,
        None => None,
    };
    Ok(Some(Contents { dirty: dirty.unwrap_or(false), ..contents }))
}

/// Where the log is.
struct Log {
    // In bytes.
    start: u64,
    // In basic blocks.
    len: u64,
}

impl Log {
    /// None where it is on another device, or nowhere that makes sense.
    fn of(sb: Fields<'_>) -> Option<Log> {
        let (block, group, shift) = (u64::from(sb.be32(4)?), u64::from(sb.be32(84)?), u32::from(sb.u8(124)?));
        let (start, blocks) = (sb.be64(48)?, u64::from(sb.be32(96)?));
        if start == 0 || shift >= u64::BITS {
            return None;
        }
        let first = (start >> shift).checked_mul(group)?.checked_add(start & ((1 << shift) - 1))?;
        let len = blocks.checked_mul(block)? / BLOCK;
        Some(Log { start: first.checked_mul(block)?, len }).filter(|log| log.len > 1)
    }

    /// It is clean where the last record says that the file system was unmounted (`xlog_check_unmount_rec`). None where
    /// there is no last record.
    fn is_dirty(&self, medium: &Medium<'_>) -> io::Result<Option<bool>> {
        let Some(head) = self.head(medium)? else { return Ok(None) };
        let back = head.min(RECORD);
        let Some(mut bytes) = self.get(medium, head - back, back)? else { return Ok(None) };
        // The log is a ring.
        let round = (RECORD - back).min(self.len - head);
        if round > 0 {
            let Some(end) = self.get(medium, self.len - round, round)? else { return Ok(None) };
            bytes.splice(..0, end);
        }
        let blocks = bytes.len() / BLOCK as usize;
        let is_record = |at: &usize| Fields(&bytes).be32(at * BLOCK as usize) == Some(MAGIC);
        let Some(last) = (0..blocks).rev().find(is_record) else { return Ok(None) };
        let record = Fields(&bytes[last * BLOCK as usize..]);
        Ok(unmounted(record, blocks - last).map(|unmounted| !unmounted))
    }

    /// Where the next record would be: the block after the last that was written, found by the number of the round that each
    /// was written in (`xlog_find_head`, without what it does about writes that a crash left out of order).
    fn head(&self, medium: &Medium<'_>) -> io::Result<Option<u64>> {
        let (Some(first), Some(last)) = (self.cycle(medium, 0)?, self.cycle(medium, self.len - 1)?) else {
            return Ok(None);
        };
        if first == 0 {
            return Ok(None);
        }
        if first == last {
            return Ok(Some(self.len));
        }
        let (mut before, mut after) = (0, self.len - 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            match self.cycle(medium, middle)? {
                Some(cycle) if cycle == last => after = middle,
                Some(_) => before = middle,
                None => return Ok(None),
            }
        }
        Ok(Some(after))
    }

    /// The round in which a block was written; 0 for never.
    fn cycle(&self, medium: &Medium<'_>, block: u64) -> io::Result<Option<u32>> {
        let Some(bytes) = self.get(medium, block, 1)? else { return Ok(None) };
        let block = Fields(&bytes);
        // A record's header begins with something else.
        Ok(match block.be32(0) {
            Some(MAGIC) => block.be32(4),
            cycle => cycle,
        })
    }

    fn get(&self, medium: &Medium<'_>, block: u64, blocks: u64) -> io::Result<Option<Vec<u8>>> {
        match block.checked_mul(BLOCK).and_then(|at| at.checked_add(self.start)) {
            Some(at) => medium.get(at, (blocks * BLOCK) as usize),
            None => Ok(None),
        }
    }
}

/// Whether a record, which begins `blocks` basic blocks before the head, is that of an unmount and ends there.
fn unmounted(record: Fields<'_>, blocks: usize) -> Option<bool> {
    /// `XLOG_UNMOUNT_TRANS`.
    const UNMOUNT: u8 = 0x20;
    /// Bytes whose first words one header has room for.
    const HEADER: u32 = 32 << 10;
    let block = BLOCK as usize;
    let (version, len, operations, size) = (record.be32(8)?, record.be32(12)?, record.be32(40)?, record.be32(320)?);
    let headers = if version & 2 != 0 && size > HEADER { size.div_ceil(HEADER) as usize } else { 1 };
    let end = headers.checked_add(usize::try_from(len).ok()?.div_ceil(block))?;
    if operations != 1 || end != blocks {
        return Some(false);
    }
    Some(record.u8(headers * block + 9)? & UNMOUNT != 0)
}
