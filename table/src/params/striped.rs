//! `striped <stripes> <chunk> [<device> <start>]…`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};
use crate::{Sectors, Span};

/// Chunks dealt out over several devices in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Striped {
    /// The chunk size in sectors: from 1 to 2^32 − 1, no power of two needed.
    pub chunk: Sectors,
    /// The stripes in turn, at least one. Each holds the line's length / number of stripes, a whole number of
    /// chunks.
    pub stripes: Vec<Stripe>,
}

/// One device of a [`Striped`] target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripe {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
}

#[derive(Debug, Error)]
enum StripedError {
    #[error("Not enough arguments")]
    Arguments,
    #[error("Invalid stripe count")]
    StripeCount,
    #[error("Invalid chunk_size")]
    ChunkSize,
    #[error("Target length not divisible by number of stripes")]
    LengthByStripes,
    #[error("Target length not divisible by chunk size")]
    LengthByChunk,
    #[error("Not enough destinations specified")]
    Destinations,
    #[error("Couldn't parse stripe destination")]
    Destination,
}

impl Params for Striped {
    const TYPE: &'static str = "striped";
    const USAGE: &'static str =
        "<start> <length> striped <stripes> <sectors per chunk> <device> <start on the device> for each stripe";
    const LOOKUP_FAILED: &'static str = "Couldn't parse stripe destination";

    fn parse(args: &Args<'_>) -> Result<Striped, Fault> {
        if args.count() < 2 {
            return Err(args.wrong_count(args.count(), StripedError::Arguments));
        }
        let stripes = args.count_from_one(0, StripedError::StripeCount)?;
        let chunk = args.count_from_one(1, StripedError::ChunkSize)?;
        check_length(args, stripes, chunk)?;

        let want = 2 + 2 * u64::from(stripes);
        if args.count() as u64 != want {
            let pairs = format!("a device and a start sector for each of {stripes} stripes: {want} arguments in all");
            let first_wrong = usize::try_from(want).unwrap_or(usize::MAX);
            return Err(args.wrong_count(first_wrong, StripedError::Destinations).expected(pairs));
        }
        let stripe = |n| {
            let start = args.offset(n + 1, StripedError::Destination)?;
            Ok(Stripe { dev: args.device(n), start, start_span: args.span(n + 1) })
        };
        let stripes = (2..args.count()).step_by(2).map(stripe).collect::<Result<_, Fault>>()?;
        Ok(Striped { chunk: Sectors::new(chunk.into()), stripes })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.stripes.get(n).map(|stripe| &stripe.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {}", self.stripes.len(), self.chunk)?;
        for stripe in &self.stripes {
            write!(f, " {} {}", name(&stripe.dev), stripe.start)?;
        }
        Ok(())
    }
}

fn check_length(args: &Args<'_>, stripes: u32, chunk: u32) -> Result<(), Fault> {
    let (len, stripes, chunk) = (args.len, u64::from(stripes), u64::from(chunk));
    let reason = if !len.is_multiple_of(stripes) {
        StripedError::LengthByStripes
    } else if !(len / stripes).is_multiple_of(chunk) {
        StripedError::LengthByChunk
    } else {
        return Ok(());
    };
    let row = stripes * chunk;
    let nearest = match (len / row * row, (len / row).checked_add(1).and_then(|rows| rows.checked_mul(row))) {
        (0, Some(above)) => format!("the nearest length is {above}"),
        (below, Some(above)) => format!("the nearest lengths are {below} and {above}"),
        (below, None) => format!("the nearest length is {below}"),
    };
    Err(args
        .fault(0, reason)
        .at(args.len_span)
        .found(len.to_string())
        .expected(format!("a multiple of {row} sectors: {stripes} stripes of {chunk} sectors to a chunk"))
        .help(nearest))
}
