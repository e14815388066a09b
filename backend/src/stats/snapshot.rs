//! Numbers at a moment, as the control socket gives them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Kinds of operation, as keys of [`Device::kinds`] and [`Component::kinds`].
pub const KINDS: [&str; 5] = ["read", "write", "flush", "discard", "write-zeroes"];

/// What a device has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Its minor number.
    pub minor: u32,
    /// Nanoseconds of the monotonic clock at which the numbers were taken, so that two snapshots give rates.
    pub at_ns: u64,
    /// The device as its guest sees it.
    pub device: Device,
    /// Its segments, if they were asked for; since the live table was resumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// The component devices that its live table leads to; since it was resumed.
    pub components: Vec<Component>,
    /// The workers that serve its queues.
    pub workers: Vec<Worker>,
}

/// Requests of a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Device {
    /// Sectors of the device.
    pub sectors: u64,
    /// Queues that are served now.
    pub queues: u32,
    /// Requests under way now.
    pub in_flight: u32,
    /// By kind of request: `read`, `write`, `flush`, `discard`, `write-zeroes`.
    pub kinds: BTreeMap<String, Counters>,
    /// Requests that were no valid ones.
    pub refused: u64,
}

/// What is counted of a kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counters {
    /// Operations that have ended.
    pub ops: u64,
    /// Their sectors.
    pub sectors: u64,
    /// Those that failed.
    pub errors: u64,
    /// How long they took.
    pub latency: Latency,
}

/// Times from the moment an operation was taken to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// Operations that were timed, or stand for others like them that were not.
    pub count: u64,
    /// Sum, in nanoseconds.
    pub sum_ns: u64,
    /// Half of them took no longer than this, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Upper bound in nanoseconds and count of each bucket that is not empty, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<(u64, u64)>,
}

/// A segment of the flat map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Segment {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// `linear`, `striped`, `zero` or `error`.
    pub target: String,
    /// Where it leads, for people: `vda1 384`.
    pub to: String,
    /// Pieces of reads.
    pub reads: u64,
    /// Their sectors.
    pub read_sectors: u64,
    /// Pieces of whatever changes data.
    pub writes: u64,
    /// Their sectors.
    pub written_sectors: u64,
    /// Pieces that failed.
    pub errors: u64,
}

/// A component device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Component {
    /// The kernel's name of it, or a file's name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Direct, buffered or mapped.
    pub access: String,
    /// Operations under way now.
    pub in_flight: u32,
    /// By kind of operation; transfers of mapped files are counted as the pieces that were copied.
    pub kinds: BTreeMap<String, Counters>,
}

/// A worker thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Worker {
    /// Its thread's name.
    pub name: String,
    /// Time since it was started, in nanoseconds.
    pub total_ns: u64,
    /// Of that, asleep.
    pub asleep_ns: u64,
    /// Of that, looking for work in vain; an estimate by samples.
    pub looking_ns: u64,
    /// Turns.
    pub turns: u64,
}
