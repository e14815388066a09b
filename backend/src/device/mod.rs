//! Component devices: image files, block devices and partitions.

mod component;
mod error;
mod limits;
mod registry;

pub use component::{Access, Cache, Component, Identity, Kind, Options};
pub use error::OpenError;
pub use limits::{Discard, DiscardMethod, Limits};
pub use registry::Registry;
