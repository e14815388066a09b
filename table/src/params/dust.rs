//! `dust <device> <start> <block size in bytes>`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, LookupFailure, Params, args};
use crate::{SECTOR_SIZE, Sectors, Span, lexer};

/// Has bad blocks, which fail reads until they are written. Which blocks, messages say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dust {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
    /// The size of a block: a power of two, at most 2^21 sectors and at most the line's length. Blocks are
    /// counted from the start of the device, not of the line.
    pub block: Sectors,
}

/// Largest block, in sectors.
const MAX_BLOCK: u64 = 2_097_152;

#[derive(Debug, Error)]
enum DustError {
    #[error("Invalid argument count")]
    ArgumentCount,
    #[error("Invalid block size parameter")]
    BlockSize,
    #[error("Block size must be at least 512")]
    BlockTooSmall,
    #[error("Block size must be a power of 2")]
    BlockPowerOfTwo,
    #[error("Block size is too large")]
    BlockTooLarge,
    #[error("Invalid device offset sector")]
    DeviceSector,
}

impl Params for Dust {
    const TYPE: &'static str = "dust";
    const USAGE: &'static str = "<start> <length> dust <device> <start on the device> <block size in bytes>";

    fn parse(args: &Args<'_>) -> Result<Dust, Fault> {
        if args.count() != 3 {
            return Err(args.wrong_count(3, DustError::ArgumentCount));
        }
        let most = args.len.min(MAX_BLOCK);
        let expected = format!("a power of 2 from 512 to {} bytes", Sectors::new(most).bytes());
        let fault = |reason| args.fault(2, reason).expected(&expected);
        let bytes = match lexer::kernel_u32(args.word(2)) {
            None | Some(0) => {
                let fault = fault(DustError::BlockSize);
                let meant = args.meant_bytes(2).map(|bytes| format!("{} is {bytes} bytes", args.word(2)));
                return Err(meant.into_iter().fold(fault, Fault::help));
            }
            Some(..512) => return Err(fault(DustError::BlockTooSmall)),
            Some(bytes) if !bytes.is_power_of_two() => {
                let nearest = args::nearest_powers_of_two(bytes.into());
                return Err(fault(DustError::BlockPowerOfTwo).help(nearest));
            }
            Some(bytes) => bytes,
        };
        let block = u64::from(bytes) / SECTOR_SIZE;
        if block > most {
            return Err(fault(DustError::BlockTooLarge));
        }
        let start = args.offset(1, DustError::DeviceSector)?;
        Ok(Dust { dev: args.device(0), start, start_span: args.span(1), block: Sectors::new(block) })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn lookup_failure(&self, _: usize) -> LookupFailure {
        LookupFailure { text: Self::LOOKUP_FAILED, errno: Some("EINVAL") }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {} {}", name(&self.dev), self.start, self.block.bytes())
    }
}
