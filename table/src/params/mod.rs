//! What stands after a target's type, one module per target.

mod error;
mod linear;
mod striped;

pub use error::ErrorTarget;
pub use linear::Linear;
pub use striped::{Stripe, Striped};

use crate::source::Span;

/// A device as the table names it: a path, `MAJOR:MINOR`, or `/dev/mapper/NAME` for another device of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevRef {
    /// The text as the user wrote it.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl DevRef {
    /// Major and minor number where the text is exactly `%u:%u`. The ranges are not checked: the kernel
    /// refuses a major over 4095 or a minor over 1048575 with EOVERFLOW.
    pub fn major_minor(&self) -> Option<(u64, u64)> {
        let (major, minor) = self.text.split_once(':')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        Some((number(major)?, number(minor)?))
    }

    /// NAME where the text is `/dev/mapper/NAME`.
    pub fn mapper_name(&self) -> Option<&str> {
        let name = self.text.strip_prefix("/dev/mapper/")?;
        (!name.is_empty() && !name.contains('/')).then_some(name)
    }
}

/// A target with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A range of another device.
    Linear(Linear),
    /// Chunks dealt out over several devices in turn.
    Striped(Striped),
    /// Reads as zeros, forgets what is written.
    Zero,
    /// Fails every read and write.
    Error(ErrorTarget),
}

impl Target {
    /// The type's name, as a table line has it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Target::Linear(_) => "linear",
            Target::Striped(_) => "striped",
            Target::Zero => "zero",
            Target::Error(_) => "error",
        }
    }
}
