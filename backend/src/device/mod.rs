//! Component devices: image files, block devices and partitions.
//!
//! A [`Registry`] turns the device text of a table line into an open [`Component`]. Everything a map or an
//! engine must know about the device is settled here, once, at the opening: what it is, how large it is, what
//! it can do, whether its data may be changed, and how its file wants to be read. Nothing here transfers
//! guest data.
//!
//! Who else uses the device is settled here too. A component that is served writable is ours alone: a mount,
//! swap, a holder (md, dm, LVM), a loop device over the file, QEMU's image locks or another process of this
//! program refuse it, and while it is served they are refused in turn where the kernel offers a way (an
//! exclusive open of block devices, open-file-description locks of QEMU's lock bytes). Served read-only it is
//! shared with other readers; a writer that takes no lock (a mount) leads to a warning.

mod access;
mod claims;
mod component;
mod error;
mod facts;
mod fence;
mod handover;
pub(crate) mod holder;
mod limits;
mod locks;
mod lookup;
mod marks;
mod open;
mod opening;
mod pair;
mod proc;
mod registry;
#[cfg(test)]
mod simulated;
mod slots;
mod survey;
pub(crate) mod sysfs;
mod unflushed;

pub use component::{Access, Cache, Component, Identity, Kind, Options};
pub use error::OpenError;
pub use fence::Patience;
pub use limits::{Discard, DiscardMethod, Limits};
pub(crate) use locks::lock_alone;
pub use registry::Registry;
pub use slots::Slots;
pub use survey::{Survey, Use, survey};
pub use unflushed::{Flush, Stamp, Unflushed};
