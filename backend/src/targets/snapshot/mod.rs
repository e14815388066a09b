//! `snapshot`, `snapshot-origin` and what `snapshot-merge` needs (dm-snap.c, dm-exception-store.c).
//!
//! * [`format`]: the bytes of the kernel's persistent store, and its layout. Pure.
//! * [`exceptions`]: which chunks are in the store, in memory. Pure.
//! * [`store`]: the store on its device: open, format, commit, take back.
//! * `live`: a snapshot that is in use: exceptions that are complete or pending, the group commit, what goes to whom.
//! * `target`, `origin`: the targets. [`crate::targets::Shared`] brings them together.
//!
//! # For `snapshot-merge`, and for the commands that merge
//!
//! ```text
//! let opened = Store::open(cx, &cow, &wanted).await?;      // reads the header and all exceptions, changes nothing
//! loop {
//!     let mut end = opened.store.end().await;              // one merger at a time; also excludes commits
//!     let Some(run) = opened.store.last(cx, &cow, &mut end, most).await? else { break };   // from the last one backwards
//!     // copy chunks run.new.. of the COW to chunks run.old.. of the origin, clipped at the origin's end; flush the origin
//!     opened.store.take_back(cx, &cow, &mut end, run.len).await?;   // durable when it ends
//! }
//! ```
//!
//! The driver is responsible for: the bounds of the origin (`run.old` may be anything that no 64-bit sector number overflows
//! on; a chunk behind the origin's end is dropped), the copies that other snapshots of the origin need first
//! (`Shared::origin`, `live::Live::protect`), and a flush of the origin before `take_back`. A crash between
//! the two copies the same run again, which changes nothing.
//!
//! A `snapshot-merge` target is a `live::Live` as a snapshot is (so the handover works in both directions): it calls
//! `live::Live::merge_last` and `live::Live::merge_commit`, which keep the exceptions in memory in step with the store and
//! hold requests for chunks that are being merged: see there.

pub mod copy;
pub mod exceptions;
pub mod format;
pub mod grace;
mod life;
pub mod live;
mod origin;
pub mod store;
mod target;

pub use origin::{SnapshotOrigin, write_to};
pub use target::{Features, Snapshot};
