//! `flakey <device> <start> <up> <down> [<number of feature arguments> <feature>…]`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params};
use crate::{Sectors, Span};

/// Works for a time, fails for a time, and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flakey {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
    /// Seconds for which it works; 0 for never.
    pub up: u32,
    /// Seconds for which it then fails. The sum with [`up`](Flakey::up) is not 0 and fits 32 bits.
    pub down: u32,
    /// What it does while it is down.
    pub features: Features,
}

/// What a [`Flakey`] target does while it is down. Where the line asks for nothing, reads and writes fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Reads fail.
    pub error_reads: bool,
    /// Writes, flushes and discards succeed and do nothing. Never together with
    /// [`error_writes`](Features::error_writes).
    pub drop_writes: bool,
    /// Writes, flushes and discards fail.
    pub error_writes: bool,
    /// A byte of each request becomes another. Given twice, the last counts.
    pub corrupt: Option<CorruptByte>,
    /// The chance, in parts of 10^9, that a random byte of a read becomes a random other one.
    pub random_read_corrupt: u32,
    /// The same for writes.
    pub random_write_corrupt: u32,
}

/// `corrupt_bio_byte` of a [`Flakey`] target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptByte {
    /// Which byte of the request, counted from 1.
    pub nth: u32,
    /// Of writes; else of reads.
    pub write: bool,
    /// What it becomes.
    pub value: u8,
    /// Bits of the kernel's `bi_opf` that a request must have, all of them. Their meanings change from kernel
    /// to kernel.
    pub flags: u32,
}

/// Most feature arguments.
const FEATURE_ARGS: u32 = 11;
/// A certainty, for random corruption.
const BILLION: u32 = 1_000_000_000;

#[derive(Debug, Error)]
enum FlakeyError {
    #[error("Invalid argument count")]
    ArgumentCount,
    #[error("Invalid device sector")]
    DeviceSector,
    // Linux 6.12 says so of the down interval too.
    #[error("Invalid up interval")]
    Interval,
    #[error("Total (up + down) interval is zero")]
    NoInterval,
    #[error("Interval overflow")]
    IntervalOverflow,
    #[error("Invalid number of feature args")]
    FeatureCount,
    #[error("Insufficient feature arguments")]
    FewFeatures,
    #[error("Unrecognised flakey feature requested")]
    UnknownFeature,
    #[error("Feature {0} duplicated")]
    Duplicated(&'static str),
    #[error("Feature {0} conflicts with feature {1}")]
    Conflicts(&'static str, &'static str),
    #[error("Feature corrupt_bio_byte requires parameters")]
    CorruptParameters,
    #[error("Invalid corrupt bio byte")]
    CorruptByte,
    #[error("Invalid corrupt bio direction (r or w)")]
    CorruptDirection,
    #[error("Invalid corrupt value to write into bio byte (0-255)")]
    CorruptValue,
    #[error("Invalid corrupt bio flags mask")]
    CorruptFlags,
    #[error("Feature {0} requires a parameter")]
    Parameter(&'static str),
    #[error("Invalid random corrupt argument")]
    Chance,
    #[error("{0} is incompatible with corrupt_bio_byte with the WRITE flag set")]
    CorruptsNoWrites(&'static str),
}

impl Params for Flakey {
    const TYPE: &'static str = "flakey";
    const USAGE: &'static str = "<start> <length> flakey <device> <start on the device> <seconds up> <seconds down> \
                                 [<number of feature arguments> <feature>…]";

    fn parse(args: &Args<'_>) -> Result<Flakey, Fault> {
        if args.count() < 4 {
            return Err(args.wrong_count(4, FlakeyError::ArgumentCount));
        }
        let start = args.offset(1, FlakeyError::DeviceSector)?;
        let seconds = |n: usize| {
            let number = args.number(n, 0..=u32::MAX, FlakeyError::Interval);
            number.map_err(|fault| fault.expected("a decimal number of seconds, without sign, unit or point"))
        };
        let (up, down) = (seconds(2)?, seconds(3)?);
        let at_both = |reason| {
            let mut both = args.span(2);
            both.end = args.span(3).end;
            args.fault(2, reason).at(both).found(format!("{up} and {down} seconds"))
        };
        if up.wrapping_add(down) == 0 {
            return Err(at_both(FlakeyError::NoInterval).expected("at least one second, up or down"));
        }
        if up.checked_add(down).is_none() {
            return Err(at_both(FlakeyError::IntervalOverflow).expected("at most 4294967295 seconds together"));
        }
        let features = FeatureWords::new(args)?.read()?;
        Ok(Flakey { dev: args.device(0), start, start_span: args.span(1), up, down, features })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} {}", name(&self.dev), self.start, self.up, self.down, self.features)
    }
}

impl fmt::Display for Features {
    /// The group as `dmsetup table` prints it: the number of arguments, and these in the kernel's order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Features { error_reads, drop_writes, error_writes, corrupt, random_read_corrupt, random_write_corrupt } =
            *self;
        let words = u8::from(error_reads)
            + u8::from(drop_writes)
            + u8::from(error_writes)
            + 5 * u8::from(corrupt.is_some())
            + 2 * u8::from(random_read_corrupt > 0)
            + 2 * u8::from(random_write_corrupt > 0);
        write!(f, "{words}")?;
        for (given, word) in
            [(error_reads, "error_reads"), (drop_writes, "drop_writes"), (error_writes, "error_writes")]
        {
            if given {
                write!(f, " {word}")?;
            }
        }
        if let Some(CorruptByte { nth, write, value, flags }) = corrupt {
            write!(f, " corrupt_bio_byte {nth} {} {value} {flags}", if write { 'w' } else { 'r' })?;
        }
        for (chance, word) in
            [(random_read_corrupt, "random_read_corrupt"), (random_write_corrupt, "random_write_corrupt")]
        {
            if chance > 0 {
                write!(f, " {word} {chance}")?;
            }
        }
        Ok(())
    }
}

/// The words from the number of feature arguments on, and how far they are read.
struct FeatureWords<'a, 'b> {
    args: &'a Args<'b>,
    /// The next word.
    at: usize,
    /// Words that the group has left. Below 0 where a feature took more than the group has: the kernel then
    /// reads on to the line's end, and finds too little there.
    left: isize,
    corrupt_at: usize,
}

impl<'a, 'b> FeatureWords<'a, 'b> {
    fn new(args: &'a Args<'b>) -> Result<FeatureWords<'a, 'b>, Fault> {
        let count = if args.count() > 4 { args.group(4, FEATURE_ARGS, FlakeyError::FeatureCount)? } else { 0 };
        Ok(FeatureWords { args, at: 5, left: count as isize, corrupt_at: 0 })
    }

    fn next(&mut self) -> usize {
        self.at += 1;
        self.left -= 1;
        self.at - 1
    }

    fn read(mut self) -> Result<Features, Fault> {
        let mut features = Features::default();
        while self.left != 0 {
            let n = self.next();
            if n >= self.args.count() {
                return Err(self
                    .args
                    .fault(4, FlakeyError::FewFeatures)
                    .expected("the number of all words that follow: a feature's parameters count too"));
            }
            self.read_one(n, &mut features)?;
        }
        self.check(&features)?;
        if features == Features::default() {
            (features.error_reads, features.error_writes) = (true, true);
        }
        Ok(features)
    }

    fn read_one(&mut self, n: usize, features: &mut Features) -> Result<(), Fault> {
        let twice = |feature| Err(self.args.fault(n, FlakeyError::Duplicated(feature)).expected("each feature once"));
        let both = |one, other| {
            let fault = self.args.fault(n, FlakeyError::Conflicts(one, other));
            Err(fault.expected("writes that are dropped, or writes that fail"))
        };
        match self.args.word(n).to_ascii_lowercase().as_str() {
            "error_reads" if features.error_reads => return twice("error_reads"),
            "error_reads" => features.error_reads = true,
            "drop_writes" if features.drop_writes => return twice("drop_writes"),
            "drop_writes" if features.error_writes => {
                return both("drop_writes", "error_writes");
            }
            "drop_writes" => features.drop_writes = true,
            "error_writes" if features.error_writes => return twice("error_writes"),
            "error_writes" if features.drop_writes => {
                return both("error_writes", "drop_writes");
            }
            "error_writes" => features.error_writes = true,
            "corrupt_bio_byte" => features.corrupt = Some(self.read_corrupt(n)?),
            "random_read_corrupt" => features.random_read_corrupt = self.read_chance(n, "random_read_corrupt")?,
            "random_write_corrupt" => features.random_write_corrupt = self.read_chance(n, "random_write_corrupt")?,
            _ => {
                return Err(self.args.fault(n, FlakeyError::UnknownFeature).expected(
                    "error_reads, drop_writes, error_writes, corrupt_bio_byte <nth byte> <r or w> <value> <flags>, \
                     random_read_corrupt <chance> or random_write_corrupt <chance>",
                ));
            }
        }
        Ok(())
    }

    fn read_corrupt(&mut self, n: usize) -> Result<CorruptByte, Fault> {
        if self.left == 0 {
            return Err(self
                .args
                .fault(n, FlakeyError::CorruptParameters)
                .expected("corrupt_bio_byte <nth byte> <r or w> <value> <flags>, 5 of the counted arguments"));
        }
        self.corrupt_at = n;
        let nth = self.args.number(self.next(), 1..=u32::MAX, FlakeyError::CorruptByte)?;
        let direction = self.next();
        let write = match self.args.word(direction) {
            "w" | "W" => true,
            "r" | "R" => false,
            // Linux 6.12 reads a null pointer where the word is missing.
            _ => return Err(self.args.fault(direction, FlakeyError::CorruptDirection).expected("r or w")),
        };
        let value = self.args.number(self.next(), 0..=255, FlakeyError::CorruptValue)? as u8;
        let flags = self.args.number(self.next(), 0..=u32::MAX, FlakeyError::CorruptFlags)?;
        Ok(CorruptByte { nth, write, value, flags })
    }

    fn read_chance(&mut self, n: usize, feature: &'static str) -> Result<u32, Fault> {
        if self.left == 0 {
            let expected = format!("{feature} <parts of 1000000000>, 2 of the counted arguments");
            return Err(self.args.fault(n, FlakeyError::Parameter(feature)).expected(expected));
        }
        self.args.number(self.next(), 0..=BILLION, FlakeyError::Chance)
    }

    fn check(&self, features: &Features) -> Result<(), Fault> {
        let writes = features.corrupt.is_some_and(|corrupt| corrupt.write);
        let what = match features {
            _ if !writes => return Ok(()),
            Features { drop_writes: true, .. } => "drop_writes",
            Features { error_writes: true, .. } => "error_writes",
            _ => return Ok(()),
        };
        Err(self
            .args
            .fault(self.corrupt_at, FlakeyError::CorruptsNoWrites(what))
            .expected("a corruption of reads, or writes that reach the device"))
    }
}
