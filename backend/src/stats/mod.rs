//! What a disk is doing, in numbers.
//!
//! Workers count in [`Lane`]s, one for each queue, with plain loads and stores; [`Disk`] adds them up when it is asked.
//! Operations, sectors and errors are exact. Times are measured for whatever a device has a part in; of what is done at
//! once a sample is timed (see [`Clock`]).

mod clock;
mod disk;
mod histogram;
mod lane;
mod meter;
mod metrics;
mod openmetrics;
mod region;
mod regions;
mod snapshot;

pub use clock::{Clock, now};
pub use disk::Disk;
pub use lane::{Kind, Lane};
pub use meter::Meter;
pub use metrics::{MetricsError, Writer};
pub use openmetrics::openmetrics;
pub use regions::Regions;
pub(crate) use regions::Watch;
pub use snapshot::{Component, Counters, Device, KINDS, Latency, Segment, Snapshot, Worker};
