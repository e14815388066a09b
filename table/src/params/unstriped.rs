//! `unstriped <stripes> <chunk> <stripe> <device> <start>`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, LookupFailure, Params};
use crate::{Sectors, Span, lexer};

/// One stripe out of a device that holds several: the reverse of striped.
///
/// Linux 6.12 takes the number of stripes for a stripe too (they are counted from 0) and serves the first
/// stripe moved by a chunk; that is refused here. With one stripe in all, any number is taken, as there:
/// it skips so many chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstriped {
    /// How many stripes there are, at least 1.
    pub stripes: u32,
    /// The chunk size in sectors: from 1 to 2^32 − 1, no power of two needed. It divides the line's length.
    pub chunk: Sectors,
    /// Which stripe, counted from 0.
    pub stripe: u32,
    /// The device that has all stripes.
    pub dev: DevRef,
    /// Where the first stripe begins on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
}

impl Unstriped {
    /// Where a sector of a line lies on the device; `None` where that passes 2^64 − 1.
    pub fn sector(&self, sector: Sectors) -> Option<Sectors> {
        let (sector, chunk) = (u128::from(sector.get()), u128::from(self.chunk.get()));
        let row = u128::from(self.stripes) * chunk;
        let within = sector % chunk + u128::from(self.stripe) * chunk;
        let at = u128::from(self.start.get()) + sector / chunk * row + within;
        u64::try_from(at).ok().map(Sectors::new)
    }

    /// Where the last sector of a line of `len` sectors ends on the device; `None` where that passes 2^64 − 1.
    ///
    /// The kernel checks only that the device has `len` sectors from the start on, which is too few: it fails
    /// the requests later.
    pub fn reach(&self, len: Sectors) -> Option<Sectors> {
        let last = len.checked_sub(Sectors::new(1))?;
        self.sector(last)?.checked_add(Sectors::new(1))
    }
}

#[derive(Debug, Error)]
enum UnstripedError {
    #[error("Invalid number of arguments")]
    ArgumentCount,
    #[error("Invalid stripe count")]
    StripeCount,
    #[error("Invalid chunk_size")]
    ChunkSize,
    #[error("Invalid stripe number")]
    Stripe,
    #[error("Please provide stripe between [0, # of stripes]")]
    NoSuchStripe,
    #[error("Invalid striped device offset")]
    DeviceSector,
    #[error("Target length not divisible by chunk size")]
    Length,
}

impl Params for Unstriped {
    const TYPE: &'static str = "unstriped";
    const USAGE: &'static str =
        "<start> <length> unstriped <stripes> <sectors per chunk> <stripe> <device> <start on the device>";

    fn parse(args: &Args<'_>) -> Result<Unstriped, Fault> {
        if args.count() != 5 {
            return Err(args.wrong_count(5, UnstripedError::ArgumentCount));
        }
        let stripes = args.count_from_one(0, UnstripedError::StripeCount)?;
        let chunk = args.count_from_one(1, UnstripedError::ChunkSize)?;
        let expected = match stripes {
            1 => "a decimal number: how many chunks to skip".to_owned(),
            stripes => format!("a stripe from 0 to {}", stripes - 1),
        };
        let Some(stripe) = lexer::kernel_u32(args.word(2)) else {
            return Err(args.fault(2, UnstripedError::Stripe).expected(expected));
        };
        if stripe >= stripes && stripes > 1 {
            return Err(args.fault(2, UnstripedError::NoSuchStripe).expected(expected));
        }
        let position = args.position(3, UnstripedError::DeviceSector)?;
        let (len, chunk) = (args.len, u64::from(chunk));
        if !len.is_multiple_of(chunk) {
            return Err(args
                .fault(0, UnstripedError::Length)
                .at(args.len_span)
                .found(len.to_string())
                .expected(format!("a multiple of {chunk} sectors, the size of a chunk"))
                .help(match (len / chunk * chunk, len.checked_next_multiple_of(chunk)) {
                    (0, Some(above)) => format!("the nearest length is {above}"),
                    (below, Some(above)) => format!("the nearest lengths are {below} and {above}"),
                    (below, None) => format!("the nearest length is {below}"),
                }));
        }
        let super::Position { dev, start, start_span } = position;
        Ok(Unstriped { stripes, chunk: Sectors::new(chunk), stripe, dev, start, start_span })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn lookup_failure(&self, _: usize) -> LookupFailure {
        LookupFailure { text: "Couldn't get striped device", errno: Some("EINVAL") }
    }

    /// The kernel prints counts of 2^31 and more as negative numbers.
    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        let Unstriped { stripes, chunk, stripe, dev, start, .. } = self;
        write!(f, "{stripes} {chunk} {stripe} {} {start}", name(dev))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_a_stripe_lie_a_row_apart() {
        let dev = DevRef { text: "/dev/vda".to_owned(), span: Span::default() };
        let (chunk, start) = (Sectors::new(8), Sectors::new(100));
        let unstriped = Unstriped { stripes: 3, chunk, stripe: 1, dev, start, start_span: Span::default() };
        let sector = |at| unstriped.sector(Sectors::new(at)).map(Sectors::get);
        assert_eq!([0, 7, 8, 17].map(sector), [Some(108), Some(115), Some(132), Some(157)]);
        assert_eq!(unstriped.reach(Sectors::new(16)), Some(Sectors::new(140)));
        assert_eq!(unstriped.reach(Sectors::ZERO), None);
        assert_eq!(sector(u64::MAX), None);
    }
}
