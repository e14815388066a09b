//! What goes over the control socket: JSON-RPC 2.0, one message a line (see [`super`]).
//!
//! The methods are those of the kernel's device-mapper, an ioctl each (dm-ioctl.c); `dmsetup` puts its verbs together from
//! them, and so does ours. Names are in the kernel's form (mangled, `sp\x20ace`). Sectors are 512 bytes.

use serde::{Deserialize, Serialize};

/// A device, by exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
}

/// `create`: a device without a table. Result: [`Info`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Its name, at most 127 bytes.
    pub name: String,
    /// Its uuid, at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The minor number that it is to have; by default the lowest that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
}

/// `remove`. Result: [`Removed`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The device.
    pub which: Which,
    /// If it is in use, when it no longer is.
    #[serde(default)]
    pub deferred: bool,
    /// If it is in use its table is replaced by `error` first, and it is removed when its users have left.
    #[serde(default)]
    pub force: bool,
}

/// Result of `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Removed {
    /// It is still there, until its last user leaves.
    pub deferred: bool,
}

/// `rename`: one of the two. Result: [`Info`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The device.
    pub which: Which,
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uuid, which it gets once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// `load`: a table into the inactive slot. Result: [`Loaded`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// The device.
    pub which: Which,
    /// Lines of the table, as `dmsetup` reads them.
    pub table: String,
    /// What the table is called in messages about it, for example its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Directory in which relative paths of the table begin: the caller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The table is for reading alone.
    #[serde(default)]
    pub read_only: bool,
    /// It may make the disk of a connected front end smaller.
    #[serde(default)]
    pub force: bool,
}

/// Result of `load`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Loaded {
    /// What is doubtful though not wrong, for people.
    pub warnings: Vec<String>,
    /// The device.
    pub info: Info,
}

/// `suspend`. Result: [`Info`]. While it waits for requests that are under way it sends notifications `waiting` with
/// [`Waiting`]; a client that hangs up takes the suspend back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// The device.
    pub which: Which,
    /// Without making what was written durable.
    #[serde(default)]
    pub noflush: bool,
}

/// `resume`. Result: [`Resumed`]. May wait, and be taken back, as [`Suspend`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The device.
    pub which: Which,
    /// Without making what was written to the old table durable.
    #[serde(default)]
    pub noflush: bool,
    /// The new table may make the disk of a connected front end smaller.
    #[serde(default)]
    pub force: bool,
}

/// Result of `resume`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Resumed {
    /// The device.
    pub info: Info,
    /// How long the device took no requests, in microseconds: since `suspend`, or for a swap of tables without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
}

/// Parameters of the notification `waiting`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Waiting {
    /// What for, for people.
    pub what: String,
    /// Operations under way on component devices, the oldest first; at most 16.
    pub under_way: Vec<UnderWay>,
}

/// An operation that a component device has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnderWay {
    /// `read`, `write`, `flush`, `discard` or `write-zeroes`.
    pub kind: String,
    /// The component device.
    pub component: String,
    /// Its first sector there.
    pub sector: u64,
    /// Sectors of it that are not done.
    pub sectors: u64,
    /// How long it has been under way, in milliseconds, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// `message`. Result: [`Reply`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// The device.
    pub which: Which,
    /// A sector of the segment that it is for.
    #[serde(default)]
    pub sector: u64,
    /// Its words; one that begins with `@` is for the device itself (`@stats_create`, `@cancel_deferred_remove`).
    pub args: Vec<String>,
}

/// Result of `message`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reply {
    /// Lines to print, if there is an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// `table` and `status`. Result: a list of [`Line`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The device.
    pub which: Which,
    /// The inactive table.
    #[serde(default)]
    pub inactive: bool,
}

/// A line of a table or status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Line {
    /// First sector of the segment.
    pub start: u64,
    /// Its sectors.
    pub len: u64,
    /// Type of its target.
    pub target: String,
    /// Arguments, or status.
    pub params: String,
}

/// A device that another lies on. `deps` gives a list of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Dep {
    /// Major number; nothing for a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// Minor number; nothing for a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// The kernel's name of it (`vda1`), the name of a device of this process, or the path of a file.
    pub name: String,
    /// Whether it is a device of this process.
    #[serde(default)]
    pub mapped: bool,
}

/// `wait`. Result: [`Info`], when the device's event number is above `event_nr`. A client that hangs up ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The device.
    pub which: Which,
    /// By default the event number at the time of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_nr: Option<u32>,
}

/// What is to be known of a device. `info` gives one, `list` all, by minor number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Major number: the same for all.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Its live table, or if there is none its next one, is for reading alone.
    pub read_only: bool,
    /// It takes no requests.
    pub suspended: bool,
    /// It has a live table.
    pub live: bool,
    /// It has an inactive table.
    pub inactive: bool,
    /// Front ends and devices that use it.
    pub open_count: u32,
    /// Event number.
    pub event_nr: u32,
    /// Segments of its live table.
    pub targets: u32,
    /// Sectors of its live table.
    pub sectors: u64,
    /// It goes with its last user.
    pub deferred_remove: bool,
    /// Where it is served: a path, or a descriptor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// A front end is connected.
    #[serde(default)]
    pub connected: bool,
}

/// A target type. `targets` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TargetType {
    /// Its name.
    pub name: String,
    /// Version of the kernel's target that it behaves like.
    pub version: [u32; 3],
}

/// Result of `version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Version {
    /// This program's.
    pub program: String,
    /// Version of the kernel's device-mapper interface that it behaves like.
    pub driver: String,
}

/// `stats`. Result: a list of [`crate::stats::Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    /// The device; by default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub which: Option<Which>,
    /// With the segments.
    #[serde(default)]
    pub segments: bool,
}

/// `data` of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorData {
    /// Symbolic errno; the error's `code` is its number, its `message` what strerror(3) says of it.
    pub errno: String,
    /// What the kernel's log would say, without its prefix `device-mapper: `.
    #[serde(default)]
    pub kernel: Vec<String>,
    /// More, for people: where in the table, why, what would work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
