//! `error [<device> <start>]`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};
use crate::Sectors;

/// Fails every read and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorTarget {
    /// With exactly two arguments: a device of which only size and limits count, and a start sector on it.
    /// Any other number of arguments is accepted and forgotten.
    pub dev: Option<(DevRef, Sectors)>,
}

#[derive(Debug, Error)]
enum ErrorError {
    #[error("Invalid device sector")]
    DeviceSector,
}

impl Params for ErrorTarget {
    const TYPE: &'static str = "error";
    const USAGE: &'static str = "<start> <length> error, or … error <device> <start on the device>";

    fn parse(args: &Args<'_>) -> Result<ErrorTarget, Fault> {
        if args.count() != 2 {
            return Ok(ErrorTarget { dev: None });
        }
        let start = args.offset(1, ErrorError::DeviceSector)?;
        Ok(ErrorTarget { dev: Some((args.device(0), start)) })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.dev.as_ref().filter(|_| n == 0).map(|(dev, _)| dev)
    }

    /// Nothing, even where there are arguments: so prints the kernel.
    fn print(&self, _: &mut fmt::Formatter<'_>, _: &DeviceName<'_>) -> fmt::Result {
        Ok(())
    }
}
