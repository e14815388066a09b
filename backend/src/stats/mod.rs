//! What a disk is doing, in numbers.

mod snapshot;

pub use snapshot::{Component, Counters, Device, KINDS, Latency, Segment, Snapshot, Worker};
