//! `linear <device> <start>`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};
use crate::{Sectors, Span};

/// A range of another device, from `start` on, as long as the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
}

#[derive(Debug, Error)]
enum LinearError {
    #[error("Invalid argument count")]
    ArgumentCount,
    #[error("Invalid device sector")]
    DeviceSector,
}

impl Params for Linear {
    const TYPE: &'static str = "linear";
    const USAGE: &'static str = "<start> <length> linear <device> <start on the device>";

    fn parse(args: &Args<'_>) -> Result<Linear, Fault> {
        if args.count() != 2 {
            return Err(args.wrong_count(2, LinearError::ArgumentCount));
        }
        let start = args.offset(1, LinearError::DeviceSector)?;
        Ok(Linear { dev: args.device(0), start, start_span: args.span(1) })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {}", name(&self.dev), self.start)
    }
}
