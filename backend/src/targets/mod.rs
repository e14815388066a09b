//! Stateful targets: those that delay, fail, remember or copy what passes through them.
//!
//! A plain chain (linear, striped, zero, error) knows nothing of this. A piece of a request that falls on a stateful target
//! becomes a task ([`Stateful::run`]), which does what it has to by a [`Cx`], and nothing else.

mod buffers;
#[cfg(test)]
mod conformance;
pub mod cx;
mod delay;
mod dust;
mod ebs;
mod flakey;
mod log_writes;
pub mod mirror;
mod ranges;
mod shared;
pub mod snapshot;
mod switch;
mod unstriped;

pub use buffers::{LONGEST, Lease};
pub use cx::Cx;
pub use delay::{Class, Delay};
pub use dust::Dust;
pub use ebs::Ebs;
pub use flakey::{Corrupt, Features, Flakey};
pub use log_writes::LogWrites;
pub use mirror::Mirror;
pub use shared::Shared;
pub use snapshot::{Snapshot, SnapshotMerge, SnapshotOrigin};
pub use switch::Switch;
pub use unstriped::Unstriped;

use std::sync::Arc;

use crate::event::Events;
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;

/// What is asked of a target.
pub struct Io {
    /// What to do.
    pub action: Action,
    /// First sector, counted from the start of the target's line.
    pub at: u64,
    /// Sectors; 0 for a flush.
    pub len: u64,
    /// Data, of a read or write.
    pub data: Vec<HostSlice>,
}

/// Why a message is refused: what the kernel's log says, without its prefix `device-mapper: `.
pub type Refused = String;

macro_rules! stateful {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => {
        /// A stateful target.
        pub enum Stateful { $( $(#[$doc])* $name($name), )* }

        impl std::fmt::Debug for Stateful {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $( Stateful::$name(_) => f.write_str(stringify!($name)), )* }
            }
        }

        impl Stateful {
            /// Does what is asked.
            ///
            /// # Errors
            /// An errno.
            pub async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
                match self { $( Stateful::$name(target) => target.run(cx, io).await, )* }
            }

            /// What `dmsetup status` prints behind the type. `name` shows a device.
            pub fn status(&self, name: &dyn Fn(&str) -> String) -> String {
                match self { $( Stateful::$name(target) => target.status(name), )* }
            }

            /// A message for it.
            ///
            /// # Errors
            /// See [`Refused`].
            pub fn message(&self, args: &[&str]) -> Result<Option<String>, Refused> {
                match self { $( Stateful::$name(target) => target.message(args), )* }
            }

            /// Reads what its devices must have on them, before anything is served: the constructor's part. Writes nothing.
            ///
            /// # Errors
            /// See [`Refused`].
            pub async fn probe(&self, cx: &Cx) -> Result<(), Refused> {
                match self { $( Stateful::$name(target) => target.probe(cx).await, )* }
            }

            /// It becomes live: its devices are ours, and no request for it is under way. Also when they were away.
            ///
            /// # Errors
            /// See [`Refused`].
            pub async fn activate(&self, cx: &Cx, shared: &Arc<Shared>) -> Result<(), Refused> {
                match self { $( Stateful::$name(target) => target.activate(cx, shared).await, )* }
            }

            /// What it does beside requests. After [`Stateful::presuspend`] it does nothing that a request would have to wait
            /// for; soon after [`Stateful::postsuspend`] it ends. Tasks are polled after both. It must not end after the first
            /// alone: a suspend may be taken back between the two, and then [`Stateful::resume`] is called, but this is not
            /// started again.
            pub async fn background(&self, cx: &Cx) {
                match self { $( Stateful::$name(target) => target.background(cx).await, )* }
            }

            /// It is live no longer: another table has taken its place, or the device goes. Nothing of it is under way.
            pub async fn retire(&self, cx: &Cx) {
                match self { $( Stateful::$name(target) => target.retire(cx).await, )* }
            }

            /// The device is being suspended: what it holds back for no other reason than time goes on. Tasks are polled
            /// after this.
            pub fn presuspend(&self) {
                match self { $( Stateful::$name(target) => target.presuspend(), )* }
            }

            /// The requests that were under way have ended: what it does in the background is to end, too.
            pub fn postsuspend(&self) {
                match self { $( Stateful::$name(target) => target.postsuspend(), )* }
            }

            /// The device goes on.
            pub fn resume(&self) {
                match self { $( Stateful::$name(target) => target.resume(), )* }
            }

            /// Where it tells that something has happened to its device.
            pub fn events(&self, events: &Arc<Events>) {
                match self { $( Stateful::$name(target) => target.events(events), )* }
            }

            /// The same target, with what it remembers, over other ranges: a device that it lies on has another table.
            pub fn again(&self, legs: Vec<Leg>) -> Stateful {
                match self { $( Stateful::$name(target) => Stateful::$name(target.again(legs)), )* }
            }

            /// The line of its table as it is printed, where that has become another than it was loaded.
            pub fn printed(&self, line: &dm_table::Target) -> Option<dm_table::Target> {
                match self { $( Stateful::$name(target) => target.printed(line), )* }
            }

            /// Component devices that it reads or writes.
            pub fn devices(&self) -> Vec<DevIx> {
                match self { $( Stateful::$name(target) => target.devices(), )* }
            }
        }
    };
}

stateful! {
    /// Holds requests back for a time.
    Delay,
    /// Fails, drops or corrupts them in intervals.
    Flakey,
    /// Has bad blocks.
    Dust,
    /// One stripe of several.
    Unstriped,
    /// Regions on one of several paths each.
    Switch,
    /// Large blocks as small ones.
    Ebs,
    /// Shows a device as it was, and keeps what is written elsewhere.
    Snapshot,
    /// Has snapshots.
    SnapshotOrigin,
    /// Goes back into its origin.
    SnapshotMerge,
    /// Logs what is written.
    LogWrites,
    /// Has the same data on several legs.
    Mirror,
}

impl Stateful {
    /// Whether what it remembers is on its components: it must be read anew when another process has had them.
    pub fn is_kept(&self) -> bool {
        match self {
            Stateful::Delay(_) | Stateful::Flakey(_) | Stateful::Dust(_) => false,
            Stateful::Unstriped(_) | Stateful::Switch(_) | Stateful::Ebs(_) => false,
            Stateful::Snapshot(_) | Stateful::SnapshotOrigin(_) | Stateful::SnapshotMerge(_) => true,
            Stateful::LogWrites(_) | Stateful::Mirror(_) => true,
        }
    }
}

/// What targets have in common; [`Stateful`] has the same methods.
trait Target {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32>;
    fn status(&self, name: &dyn Fn(&str) -> String) -> String;
    fn message(&self, _: &[&str]) -> Result<Option<String>, Refused> {
        Err("ioctl: Target type does not support messages".into())
    }
    async fn probe(&self, _: &Cx) -> Result<(), Refused> {
        Ok(())
    }
    async fn activate(&self, _: &Cx, _: &Arc<Shared>) -> Result<(), Refused> {
        Ok(())
    }
    /// Does not end between `presuspend` and `postsuspend`: nobody would start it again if the suspend is taken back.
    async fn background(&self, _: &Cx) {}
    async fn retire(&self, _: &Cx) {}
    fn presuspend(&self) {}
    fn postsuspend(&self) {}
    fn resume(&self) {}
    fn events(&self, _: &Arc<Events>) {}
    fn printed(&self, _: &dm_table::Target) -> Option<dm_table::Target> {
        None
    }
    /// `legs` are as many as it has.
    fn again(&self, legs: Vec<Leg>) -> Self;
    fn devices(&self) -> Vec<DevIx>;
}
