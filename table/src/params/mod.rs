//! What stands after a target's type: one module for each target, and the list of them.
//!
//! To add a target: write its module (a type that implements [`Params`], with its own error enum), name the
//! module and its public types here, and add its line to the list in `targets!`.

mod args;
mod device;
mod error;
mod linear;
mod striped;
mod zero;

use std::fmt;

pub(crate) use args::{Args, Fault};
pub use device::DevRef;
pub use error::ErrorTarget;
pub use linear::Linear;
pub use striped::{Stripe, Striped};

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

    /// The arguments as `dmsetup table` prints them, separated by one blank.
    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result;
}

/// A type of targets.
pub(crate) struct Type {
    pub(crate) name: &'static str,
    /// A line of this type, to show what is expected.
    pub(crate) usage: &'static str,
    pub(crate) construct: fn(&Args<'_>) -> Result<Target, Fault>,
}

macro_rules! targets {
    ($( $(#[$doc:meta])* $variant:ident $(($held:ident))? : $params:path ),* $(,)?) => {
        /// A target with its arguments.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Target {
            $( $(#[$doc])* $variant $(($held))?, )*
        }

        const TYPES: &[Type] = &[
            $( Type {
                name: <$params as Params>::TYPE,
                usage: <$params as Params>::USAGE,
                construct: |args| {
                    <$params as Params>::parse(args).map(|_held| targets!(@pack $variant, _held $(, $held)?))
                },
            }, )*
        ];

        impl Target {
            /// The type's name, as a table line has it.
            pub fn type_name(&self) -> &'static str {
                match self { $( Target::$variant { .. } => <$params as Params>::TYPE, )* }
            }

            fn lookup_text(&self) -> &'static str {
                match self { $( Target::$variant { .. } => <$params as Params>::LOOKUP_FAILED, )* }
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
    (@pack $variant:ident, $bind:ident) => { Target::$variant };
    (@pack $variant:ident, $bind:ident, $held:ident) => { Target::$variant($bind) };
    (@held $params:path, $bind:ident) => { $params };
    (@held $params:path, $bind:ident, $held:ident) => { $bind };
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
}

impl Target {
    /// The devices that the arguments name, in order, as often as they are named.
    pub fn device_refs(&self) -> impl Iterator<Item = &DevRef> {
        (0..).map_while(|n| self.device(n))
    }

    /// The kernel's text for a device that cannot be had: `linear: Device lookup failed (-ENOENT)`.
    /// `errno` is a symbolic name without a sign, as `ENOENT`.
    pub fn lookup_failed(&self, errno: &str) -> String {
        format!("{}: {} (-{errno})", self.type_name(), self.lookup_text())
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
