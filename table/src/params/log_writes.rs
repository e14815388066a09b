//! `log-writes <device> <log device>`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, LookupFailure, Params};

/// Passes everything on to a device and logs what is written on another, in the order in which it became
/// durable. Further arguments are accepted and forgotten, as by the kernel.
///
/// Both are used from their first sector on: the line should be the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWrites {
    /// The device.
    pub dev: DevRef,
    /// Where the log goes.
    pub log: DevRef,
}

#[derive(Debug, Error)]
enum LogWritesError {
    #[error("Invalid argument count")]
    ArgumentCount,
}

impl Params for LogWrites {
    const TYPE: &'static str = "log-writes";
    const USAGE: &'static str = "<start> <length> log-writes <device> <device for the log>";

    fn parse(args: &Args<'_>) -> Result<LogWrites, Fault> {
        if args.count() < 2 {
            return Err(args.wrong_count(2, LogWritesError::ArgumentCount));
        }
        Ok(LogWrites { dev: args.device(0), log: args.device(1) })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        [&self.dev, &self.log].get(n).copied()
    }

    fn lookup_failure(&self, n: usize) -> LookupFailure {
        let text = if n == 0 { Self::LOOKUP_FAILED } else { "Log device lookup failed" };
        LookupFailure { text, errno: None }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {}", name(&self.dev), name(&self.log))
    }
}
