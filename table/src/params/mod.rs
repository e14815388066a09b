//! What stands after a target's type: one module for each target, and the list of them.
//!
//! To add a target: write its module (a type that implements [`Params`], with its own error enum), name the
//! module and its public types here, and add its line to the list in `targets!`.

mod args;
mod delay;
mod device;
mod dust;
mod ebs;
mod error;
mod flakey;
mod linear;
mod log_writes;
mod mirror;
mod snapshot;
mod striped;
mod switch;
mod unstriped;
mod zero;

use std::fmt;

pub(crate) use args::{Args, Fault};
pub use delay::{Delay, DelayLeg};
pub use device::{DevRef, Position};
pub use dust::Dust;
pub use ebs::Ebs;
pub use error::ErrorTarget;
pub use flakey::{CorruptByte, Features, Flakey};
pub use linear::Linear;
pub use log_writes::LogWrites;
pub use mirror::{Mirror, MirrorLog, Resync};
pub use snapshot::{Persistence, Snapshot, SnapshotMerge, SnapshotOrigin};
pub use striped::{Stripe, Striped};
pub use switch::Switch;
pub use unstriped::Unstriped;

/// How a device is written when a table is printed.
pub(crate) type DeviceName<'a> = dyn Fn(&DevRef) -> String + 'a;

/// The arguments of one target.
pub(crate) trait Params {
    /// The type as a table line has it.
    const TYPE: &'static str;
    /// A line of this type, to show what is expected.
    const USAGE: &'static str;
    /// The text of the kernel's constructor when a device cannot be had.
    const LOOKUP_FAILED: &'static str = "Device lookup failed";

    /// Checks the arguments in the order of the kernel's constructor; a device's name is left unread.
    fn parse(args: &Args<'_>) -> Result<Self, Fault>
    where
        Self: Sized;

    /// The `n`th device that the arguments name, counted from 0.
    fn device(&self, n: usize) -> Option<&DevRef>;

    /// What the kernel says where the `n`th device cannot be had.
    fn lookup_failure(&self, _n: usize) -> LookupFailure {
        LookupFailure { text: Self::LOOKUP_FAILED, errno: None }
    }

    /// The arguments as `dmsetup table` prints them, separated by one blank.
    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result;
}

/// What a constructor says where a device cannot be had.
pub(crate) struct LookupFailure {
    pub(crate) text: &'static str,
    /// The errno, where it is the same whatever the reason is.
    pub(crate) errno: Option<&'static str>,
}

/// A type of targets.
pub(crate) struct Type {
    pub(crate) name: &'static str,
    /// A line of this type, to show what is expected.
    pub(crate) usage: &'static str,
    pub(crate) construct: fn(&Args<'_>) -> Result<Target, Fault>,
}

macro_rules! targets {
    ($( $(#[$doc:meta])* $variant:ident $(($held:ty))? : $params:path ),* $(,)?) => {
        /// A target with its arguments: those that a long table has few of behind a box, as all take the room of the largest.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Target {
            $( $(#[$doc])* $variant $(($held))?, )*
        }

        const TYPES: &[Type] = &[
            $( Type {
                name: <$params as Params>::TYPE,
                usage: <$params as Params>::USAGE,
                construct: |args| {
                    <$params as Params>::parse(args).map(|_held| targets!(@make $variant, _held $(, $held)?))
                },
            }, )*
        ];

        impl Target {
            /// The type's name, as a table line has it.
            pub fn type_name(&self) -> &'static str {
                match self { $( Target::$variant { .. } => <$params as Params>::TYPE, )* }
            }

            fn lookup_failure(&self, n: usize) -> LookupFailure {
                match self {
                    $( targets!(@pack $variant, _held $(, $held)?) =>
                        targets!(@held $params, _held $(, $held)?).lookup_failure(n), )*
                }
            }

            fn device(&self, n: usize) -> Option<&DevRef> {
                match self {
                    $( targets!(@pack $variant, _held $(, $held)?) =>
                        targets!(@held $params, _held $(, $held)?).device(n), )*
                }
            }

            pub(crate) fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
                match self {
                    $( targets!(@pack $variant, _held $(, $held)?) =>
                        targets!(@held $params, _held $(, $held)?).print(f, name), )*
                }
            }
        }
    };
    (@make $variant:ident, $bind:ident) => { Target::$variant };
    (@make $variant:ident, $bind:ident, $held:ty) => { Target::$variant($bind.into()) };
    (@pack $variant:ident, $bind:ident) => { Target::$variant };
    (@pack $variant:ident, $bind:ident, $held:ty) => { Target::$variant($bind) };
    (@held $params:path, $bind:ident) => { $params };
    (@held $params:path, $bind:ident, $held:ty) => { $bind };
}

targets! {
    /// A range of another device.
    Linear(Linear): linear::Linear,
    /// Chunks dealt out over several devices in turn.
    Striped(Striped): striped::Striped,
    /// Reads as zeros, forgets what is written.
    Zero: zero::Zero,
    /// Fails every read and write.
    Error(ErrorTarget): error::ErrorTarget,
    /// Holds requests back for a time.
    Delay(Box<Delay>): delay::Delay,
    /// Works for a time, fails for a time.
    Flakey(Box<Flakey>): flakey::Flakey,
    /// Has bad blocks.
    Dust(Box<Dust>): dust::Dust,
    /// One stripe out of a device that holds several.
    Unstriped(Box<Unstriped>): unstriped::Unstriped,
    /// Regions of which each lies on one of several devices.
    Switch(Switch): switch::Switch,
    /// Shows a device of large blocks as one of small blocks.
    Ebs(Box<Ebs>): ebs::Ebs,
    /// Logs what is written.
    LogWrites(Box<LogWrites>): log_writes::LogWrites,
    /// A device as it was, with what is written kept elsewhere.
    Snapshot(Box<Snapshot>): snapshot::Snapshot,
    /// A device that has snapshots.
    SnapshotOrigin(SnapshotOrigin): snapshot::SnapshotOrigin,
    /// A snapshot on its way back into its origin.
    SnapshotMerge(SnapshotMerge): snapshot::SnapshotMerge,
    /// The same data on several devices.
    Mirror(Box<Mirror>): mirror::Mirror,
}

impl Target {
    /// The devices that the arguments name, in order, as often as they are named.
    pub fn device_refs(&self) -> impl Iterator<Item = &DevRef> {
        (0..).map_while(|n| self.device(n))
    }

    /// The kernel's text where the `n`th of the [devices](Target::device_refs) cannot be had:
    /// `linear: Device lookup failed (-ENOENT)`. `errno` is a symbolic name without a sign, as `ENOENT`; some
    /// targets have the same for every reason.
    pub fn lookup_failed(&self, n: usize, errno: &str) -> String {
        let LookupFailure { text, errno: always } = self.lookup_failure(n);
        format!("{}: {text} (-{})", self.type_name(), always.unwrap_or(errno))
    }
}

/// The types of targets that a table may have, as table lines have them.
pub fn target_types() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|kind| kind.name)
}

/// The type called `name`, if there is one.
pub(crate) fn find(name: &str) -> Option<&'static Type> {
    TYPES.iter().find(|kind| kind.name == name)
}
