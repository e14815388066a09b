//! `snapshot`, `snapshot-origin` and what `snapshot-merge` needs (dm-snap.c, dm-exception-store.c).
//!
//! * [`mod@format`]: the bytes of the kernel's persistent store, and its layout. Pure.
//! * [`exceptions`]: which chunks are in the store, in memory. Pure.
//! * [`store`]: the store on its device: open, format, commit, take back.
//! * `list`: its list of exceptions, read when it is opened.
//! * `live`: a snapshot that is in use: exceptions that are complete or pending, the group commit, what goes to whom.
//! * [`owner`]: whose it is, and how another table's target takes it over.
//! * `protect`: what writers of the origin wait for.
//! * `target`, `origin`: the targets. [`crate::targets::Shared`] brings them together.
//! * `merge`: `snapshot-merge`, which is a `live::Live` as a snapshot is, so that each can take over from the other.

pub mod copy;
pub mod exceptions;
pub mod format;
pub mod grace;
mod life;
mod list;
pub mod live;
mod merge;
mod origin;
pub mod owner;
mod protect;
pub mod store;
mod target;

pub use merge::SnapshotMerge;
pub use origin::{SnapshotOrigin, write_to};
pub use target::{Features, Snapshot};
