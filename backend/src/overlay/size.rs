//! How large the chunks of an overlay are, and how large its file.

use dm_table::SECTOR_SIZE;

/// Sectors of the smallest and the largest chunk that is chosen.
const SMALLEST: u64 = 8;
const LARGEST: u64 = 128;
/// Chunks that a disk has at most, unless they are of the largest size: each that is copied takes memory while the overlay is
/// served, and a place in its lists.
const MOST_CHUNKS: u64 = 4 << 20;
/// Bytes of an exception on the medium (dm-snap-persistent.c).
const EXCEPTION: u64 = 16;

/// Bytes at the end of an overlay's file that tell which base it belongs to.
pub(super) const TRAILER: u64 = 16 << 10;
/// They begin at a multiple of this.
const PAGE: u64 = 4096;

/// Sectors of a chunk for a disk of so many: 8 up to 16 GiB, and twice as much for each disk twice as large, up to 128.
pub fn chunk(disk: u64, logical_block: u32) -> u64 {
    let block = u64::from(logical_block) / SECTOR_SIZE;
    let mut chunk = SMALLEST.max(block.next_power_of_two());
    while chunk < LARGEST && disk.div_ceil(chunk) > MOST_CHUNKS {
        chunk *= 2;
    }
    chunk
}

/// Bytes that the store uses once every chunk of the disk has been copied. The list that is full is followed by an empty one.
pub fn store(disk: u64, chunk: u64) -> u64 {
    let copies = disk.div_ceil(chunk);
    let per_list = (chunk * SECTOR_SIZE / EXCEPTION).max(1);
    let chunks = 1 + copies + copies / per_list + 1;
    chunks.saturating_mul(chunk * SECTOR_SIZE)
}

/// Bytes of an overlay's file, with the trailer.
pub fn file(disk: u64, chunk: u64) -> u64 {
    store(disk, chunk).saturating_add(TRAILER).next_multiple_of(PAGE.max(chunk * SECTOR_SIZE))
}

/// Where the trailer of a file or device of so many bytes begins.
pub(super) fn trailer(size: u64) -> Option<u64> {
    Some(size.checked_sub(TRAILER)? / PAGE * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_with_the_disk() {
        const GIB: u64 = 1 << 21;
        for (disk, sectors) in [(1, 8), (16 * GIB, 8), (17 * GIB, 16), (100 * GIB, 64), (1024 * GIB, 128)] {
            assert_eq!(chunk(disk, 512), sectors, "{disk}");
        }
        assert_eq!(chunk(1, 4096), 8);
        assert_eq!(chunk(1, 8192), 16);
    }

    #[test]
    fn the_trailer_lies_behind_all_that_the_store_may_use() {
        for disk in [1, 7, 8, 2040, 2048, 2049, 8 * 256, 8 * 256 * 256 + 1, 40 << 21] {
            for chunk in [8, 16, 32, 64, 128] {
                let size = file(disk, chunk);
                assert!(trailer(size).unwrap() >= store(disk, chunk), "{disk} {chunk}");
                // The kernel's arithmetic: copy number n is in list n / per_list, behind that list's own chunk.
                let per_list = chunk * 512 / 16;
                let last = disk.div_ceil(chunk) - 1;
                let highest = 1 + (last / per_list) * (per_list + 1) + 1 + last % per_list;
                assert!((highest + 1) * chunk * 512 <= store(disk, chunk), "{disk} {chunk}");
                // An empty list may follow.
                let next = 1 + ((last + 1) / per_list) * (per_list + 1);
                assert!((next + 1) * chunk * 512 <= store(disk, chunk), "{disk} {chunk}");
            }
        }
    }
}
