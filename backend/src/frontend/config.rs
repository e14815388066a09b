//! The virtio-blk side of a disk as a driver sees it: features and configuration space (virtio 1.2, 5.2.3 and 5.2.4).

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::chain::Chain;
use crate::request::MAX_RANGES;
use crate::worker::queue::{MAX_RANGE_SECTORS, SEG_MAX, SIZE_MAX};

/// Length of `struct virtio_blk_config` up to the write-zeroes fields, in bytes.
pub const LEN: usize = 60;
/// Offset of the `writeback` field, the only one a driver may write.
pub const WRITEBACK: usize = 32;

/// What is offered besides the disk itself.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Request queues.
    pub num_queues: u16,
    /// Largest ring, a power of two.
    pub queue_size: u16,
}

impl Default for Offer {
    fn default() -> Self {
        Offer { num_queues: 1, queue_size: 256 }
    }
}

/// Virtio features of the disk, and the transport's.
pub fn features(chain: &Chain) -> u64 {
    let mut features = (VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL).bits();
    let mut offer = |bit: u32| features |= 1 << bit;
    for bit in [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ,
    ] {
        offer(bit);
    }
    if chain.read_only {
        offer(VIRTIO_BLK_F_RO);
        return features;
    }
    offer(VIRTIO_BLK_F_CONFIG_WCE);
    // Where a component cannot, zeroes are written: every writable disk takes it, as under the kernel's block layer.
    offer(VIRTIO_BLK_F_WRITE_ZEROES);
    if chain.map.limits().discard.is_some() {
        offer(VIRTIO_BLK_F_DISCARD);
    }
    features
}

/// The configuration space. `writeback` is the cache mode now (5.2.4).
pub fn space(chain: &Chain, offer: Offer, writeback: bool) -> [u8; LEN] {
    let limits = chain.map.limits();
    let block = limits.logical_block.max(512);
    let physical = limits.physical_block.max(block);
    let in_blocks = |bytes: u32| bytes / block;
    let exponent = (physical / block).max(1).ilog2() as u8;
    let alignment = u8::try_from(in_blocks(limits.alignment_offset)).unwrap_or(0);
    let min_io = u16::try_from(in_blocks(limits.io_min)).unwrap_or(u16::MAX).max(1);
    let seg_max = SEG_MAX.min(u32::from(offer.queue_size) - 2);
    let sectors = |bytes: u64| (bytes / dm_table::SECTOR_SIZE).clamp(1, u64::from(u32::MAX)) as u32;
    let (discard_sectors, discard_align) = match &limits.discard {
        Some(d) => (
            u32::try_from(d.max_sectors).unwrap_or(u32::MAX).min(MAX_RANGE_SECTORS),
            sectors(u64::from(d.granularity.max(block))),
        ),
        None => (0, 0),
    };

    let mut space = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &chain.len().get().to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &seg_max.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(24, &[exponent, alignment]);
    put(26, &min_io.to_le_bytes());
    put(28, &in_blocks(limits.io_opt).to_le_bytes());
    put(WRITEBACK, &[u8::from(writeback)]);
    put(34, &offer.num_queues.to_le_bytes());
    put(36, &discard_sectors.to_le_bytes());
    put(40, &(if discard_sectors == 0 { 0 } else { MAX_RANGES as u32 }).to_le_bytes());
    put(44, &discard_align.to_le_bytes());
    if !chain.read_only {
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
    }
    space
}

/// The `max_discard_sectors` field.
pub fn discard_sectors(space: &[u8; LEN]) -> u32 {
    u32::from_le_bytes([space[36], space[37], space[38], space[39]])
}

/// `size` bytes of the space from `offset`; zeroes where it ends. The answer to GET_CONFIG must have the size asked for.
pub fn window(space: &[u8; LEN], offset: u32, size: u32) -> Vec<u8> {
    let at = |i: u32| offset.checked_add(i).and_then(|i| space.get(i as usize)).copied().unwrap_or(0);
    (0..size).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_the_size_asked_for() {
        let mut space = [0; LEN];
        space[59] = 7;
        assert_eq!(window(&space, 58, 4), [0, 7, 0, 0]);
        assert_eq!(window(&space, u32::MAX, 2), [0, 0]);
        assert!(window(&space, 0, 0).is_empty());
    }
}
