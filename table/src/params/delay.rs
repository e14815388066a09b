//! `delay <device> <start> <ms> [<device> <start> <ms> [<device> <start> <ms>]]`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};
use crate::{Sectors, Span};

/// Holds requests back for a time, each class of requests on a device and for a time of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Reads.
    pub read: DelayLeg,
    /// Writes and discards; as [`read`](Delay::read) where the line has one group.
    pub write: Option<DelayLeg>,
    /// Flushes; as [`write`](Delay::write) where the line has two groups, as `read` where it has one. Never
    /// there without `write`.
    pub flush: Option<DelayLeg>,
}

/// One class of requests of a [`Delay`] target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayLeg {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
    /// Milliseconds that a request is held back; 0 for not at all.
    pub ms: u32,
}

impl Delay {
    /// What reads, writes and flushes go to, in this order.
    pub fn classes(&self) -> [&DelayLeg; 3] {
        let write = self.write.as_ref().unwrap_or(&self.read);
        [&self.read, write, self.flush.as_ref().unwrap_or(write)]
    }

    fn legs(&self) -> impl Iterator<Item = &DelayLeg> {
        [Some(&self.read), self.write.as_ref(), self.flush.as_ref()].into_iter().flatten()
    }
}

#[derive(Debug, Error)]
enum DelayError {
    #[error("Requires exactly 3, 6 or 9 arguments")]
    ArgumentCount,
    #[error("Invalid device sector")]
    DeviceSector,
    #[error("Invalid delay")]
    Delay,
}

impl Params for Delay {
    const TYPE: &'static str = "delay";
    const USAGE: &'static str = "<start> <length> delay <device> <start on the device> <milliseconds>, \
                                 once for all, twice for reads and writes, or for reads, writes and flushes";

    fn parse(args: &Args<'_>) -> Result<Delay, Fault> {
        if !matches!(args.count(), 3 | 6 | 9) {
            let whole = (args.count().min(9) / 3 * 3).max(3);
            return Err(args.wrong_count(whole, DelayError::ArgumentCount));
        }
        let leg = |n: usize| {
            let start = args.offset(n + 1, DelayError::DeviceSector)?;
            let ms = args
                .number(n + 2, 0..=u32::MAX, DelayError::Delay)
                .map_err(|fault| fault.expected("a decimal number of milliseconds, without sign, unit or point"))?;
            Ok(DelayLeg { dev: args.device(n), start, start_span: args.span(n + 1), ms })
        };
        let given = |n: usize| (n < args.count()).then(|| leg(n)).transpose();
        Ok(Delay { read: leg(0)?, write: given(3)?, flush: given(6)? })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.legs().nth(n).map(|leg| &leg.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        for (index, leg) in self.legs().enumerate() {
            let blank = if index > 0 { " " } else { "" };
            write!(f, "{blank}{} {} {}", name(&leg.dev), leg.start, leg.ms)?;
        }
        Ok(())
    }
}
