//! `zero`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};

/// Stands in for the arguments that a zero target does not have.
pub(crate) struct Zero;

#[derive(Debug, Error)]
enum ZeroError {
    #[error("No arguments required")]
    Arguments,
}

impl Params for Zero {
    const TYPE: &'static str = "zero";
    const USAGE: &'static str = "<start> <length> zero";

    fn parse(args: &Args<'_>) -> Result<Zero, Fault> {
        if args.count() > 0 {
            return Err(args.wrong_count(0, ZeroError::Arguments));
        }
        Ok(Zero)
    }

    fn device(&self, _: usize) -> Option<&DevRef> {
        None
    }

    fn print(&self, _: &mut fmt::Formatter<'_>, _: &DeviceName<'_>) -> fmt::Result {
        Ok(())
    }
}
