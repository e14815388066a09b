//! `ebs <device> <start> <emulated block> [<underlying block>]`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params, args};
use crate::{Sectors, Span, lexer};

/// Shows a device of large blocks as one of small blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ebs {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device: below the line's length, as the kernel wants it.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
    /// The block size that is shown: a power of two, from 1 to 8 sectors.
    pub emulated: Sectors,
    /// The block size in which the device is read and written: a power of two, from 1 to 2^15 sectors. Where
    /// there is none it is the device's logical block size.
    pub underlying: Option<Sectors>,
}

impl Ebs {
    /// The kernel's reason (EINVAL) where [`start`](Ebs::start) is no multiple of the device's logical block
    /// size and no other underlying block size is given.
    pub const UNALIGNED: &'static str = "Device offset must be multiple of underlying block size";
}

/// Largest emulated block in sectors: a page.
const MAX_EMULATED: u16 = 8;

#[derive(Debug, Error)]
enum EbsError {
    #[error("Invalid argument count")]
    ArgumentCount,
    #[error("Invalid device offset sector")]
    DeviceSector,
    #[error("Invalid emulated block size")]
    Emulated,
    #[error("Invalid underlying block size")]
    Underlying,
    #[error("{}", Ebs::UNALIGNED)]
    Unaligned,
}

impl Params for Ebs {
    const TYPE: &'static str = "ebs";
    const USAGE: &'static str = "<start> <length> ebs <device> <start on the device> <sectors per emulated block> \
                                 [<sectors per underlying block>]";

    fn parse(args: &Args<'_>) -> Result<Ebs, Fault> {
        if !matches!(args.count(), 3 | 4) {
            let first_wrong = args.count().clamp(3, 4);
            return Err(args.wrong_count(first_wrong, EbsError::ArgumentCount));
        }
        let start = args.offset(1, EbsError::DeviceSector)?;
        if start.get() >= args.len {
            return Err(args
                .fault(1, EbsError::DeviceSector)
                .expected(format!("a sector below {}, the line's length: so wants the kernel", args.len))
                .help("to begin further in, put a linear device below"));
        }
        let emulated = block(args, 2, MAX_EMULATED, EbsError::Emulated)?;
        let given = (args.count() > 3).then(|| block(args, 3, 1 << 15, EbsError::Underlying));
        let underlying = given.transpose()?;
        if let Some(block) = underlying
            && !start.get().is_multiple_of(block.get())
        {
            return Err(args.fault(1, EbsError::Unaligned).expected(format!("a multiple of {block} sectors")));
        }
        Ok(Ebs { dev: args.device(0), start, start_span: args.span(1), emulated, underlying })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {} {}", name(&self.dev), self.start, self.emulated)?;
        match self.underlying {
            Some(underlying) => write!(f, " {underlying}"),
            None => Ok(()),
        }
    }
}

/// The `n`th word as a block size in sectors, which the kernel takes modulo 2^16.
fn block(args: &Args<'_>, n: usize, most: u16, reason: EbsError) -> Result<Sectors, Fault> {
    let expected = format!("a power of 2 from 1 to {most} sectors");
    match lexer::kernel_ushort(args.word(n)) {
        Some(sectors) if sectors.is_power_of_two() && sectors <= most => Ok(Sectors::new(sectors.into())),
        Some(sectors @ 1..) if sectors < most => {
            Err(args.fault(n, reason).expected(expected).help(args::nearest_powers_of_two(sectors.into())))
        }
        _ => Err(args.sectors_fault(n, reason).expected(expected)),
    }
}
