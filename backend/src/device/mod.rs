//! Component devices: image files, block devices and partitions.

mod limits;

pub use limits::{Discard, DiscardMethod, Limits};
