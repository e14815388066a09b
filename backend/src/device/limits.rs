//! What a component device can do: block sizes, discard, write-zeroes.

/// How a range of a component device is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardMethod {
    /// `fallocate(PUNCH_HOLE | KEEP_SIZE)`: files, and block devices that can zero by unmapping.
    PunchHole,
    /// The io_uring block discard command (Linux 6.12 and later). Where the kernel lacks it, hole punching
    /// does it too if the device has [`Limits::write_zeroes`], and otherwise nothing does.
    BlockCommand,
}

/// Discard ability of a component device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Smallest unit that is freed, in bytes.
    pub granularity: u32,
    /// Longest range of one discard, in sectors.
    pub max_sectors: u64,
    /// The operation that does it.
    pub method: DiscardMethod,
}

/// Queue limits of a component device, as the kernel's `/sys/.../queue` shows them. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Smallest unit that can be read or written.
    pub logical_block: u32,
    /// Unit that is written without read-modify-write inside the device.
    pub physical_block: u32,
    /// Offset of the device's start against its physical blocks.
    pub alignment_offset: u32,
    /// Preferred smallest I/O size; 0 when unknown.
    pub io_min: u32,
    /// Preferred I/O size; 0 when unknown.
    pub io_opt: u32,
    /// Discard ability; `None` when the device has none.
    pub discard: Option<Discard>,
    /// Whether a range can be zeroed without transferring data. Without it a block device can still be zeroed
    /// by `FALLOC_FL_ZERO_RANGE`, for which the kernel then writes zeroes.
    pub write_zeroes: bool,
}
