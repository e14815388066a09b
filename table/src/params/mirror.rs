//! `mirror <log type> <number of log arguments> <log argument>… <legs> [<device> <start>]…
//! [<number of features> <feature>…]`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, LookupFailure, Params, Position, args};
use crate::{Sectors, Span, lexer};

/// The same data on several devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where it is kept which regions are the same on all legs.
    pub log: MirrorLog,
    /// The devices, from 2 to 9; the first is the one to trust.
    pub legs: Vec<Position>,
    /// A write error waits for help instead of being passed over.
    pub handle_errors: bool,
    /// Goes on without the log device where that fails. Never without [`handle_errors`](Mirror::handle_errors).
    pub keep_log: bool,
}

/// The log of a [`Mirror`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorLog {
    /// The device that has the log (`disk`); in memory only (`core`) where there is none.
    pub dev: Option<DevRef>,
    /// The size of a region: a power of two of at least 2 sectors, at most the line's length.
    pub region: Sectors,
    /// Where the region size stands in the text.
    pub region_span: Span,
    /// What is copied from the first leg to the others at first.
    pub resync: Resync,
}

/// What a [`Mirror`] copies from the first leg to the others at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// What the log says; with a new log, or one in memory, everything.
    AsLogged,
    /// `sync`: everything.
    All,
    /// `nosync`: nothing.
    Nothing,
}

impl Resync {
    /// The word, where there is one.
    fn word(self) -> Option<&'static str> {
        match self {
            Resync::AsLogged => None,
            Resync::All => Some("sync"),
            Resync::Nothing => Some("nosync"),
        }
    }
}

#[derive(Debug, Error)]
enum MirrorError {
    #[error("Insufficient mirror log arguments")]
    FewLogArguments,
    #[error("Invalid mirror log argument count")]
    LogCount,
    #[error("Error creating mirror dirty log")]
    Log,
    #[error("Invalid number of mirrors")]
    Legs,
    #[error("Too few mirror arguments")]
    FewArguments,
    #[error("Invalid offset")]
    DeviceSector,
    #[error("Invalid number of features")]
    FeatureCount,
    #[error("Not enough arguments to support feature count")]
    FewFeatures,
    #[error("Unrecognised feature requested")]
    UnknownFeature,
    #[error("keep_log feature requires the handle_errors feature")]
    KeepLogOnly,
    #[error("Too many mirror arguments")]
    ManyArguments,
}

impl Params for Mirror {
    const TYPE: &'static str = "mirror";
    const USAGE: &'static str = "<start> <length> mirror <core or disk> <number of log arguments> [<log device>] \
                                 <sectors per region> [<sync or nosync>] <legs> <device> <start on the device> for \
                                 each leg [<number of features> <feature>…]";

    fn parse(args: &Args<'_>) -> Result<Mirror, Fault> {
        let (log, at) = log(args)?;
        let legs = match lexer::kernel_uint(args.word(at)) {
            Some(legs @ 2..=9) => legs as usize,
            _ => return Err(args.fault(at, MirrorError::Legs).expected("the number of legs, from 2 to 9")),
        };
        let first = at + 1;
        let after = first + 2 * legs;
        if args.count() < after {
            let pairs = format!("a device and a start sector for each of {legs} legs");
            return Err(args.wrong_count(args.count(), MirrorError::FewArguments).expected(pairs));
        }
        let leg = |n: usize| args.position(n, MirrorError::DeviceSector);
        let legs = (first..after).step_by(2).map(leg).collect::<Result<_, Fault>>()?;
        let (handle_errors, keep_log, end) = features(args, after)?;
        if args.count() > end {
            let refusal = args.wrong_count(end, MirrorError::ManyArguments);
            return Err(refusal.expected("the end of the line, or the number of features and the features"));
        }
        Ok(Mirror { log, legs, handle_errors, keep_log })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.log.dev.iter().chain(self.legs.iter().map(|leg| &leg.dev)).nth(n)
    }

    fn lookup_failure(&self, n: usize) -> LookupFailure {
        if self.log.dev.is_some() && n == 0 {
            LookupFailure { text: "Error creating mirror dirty log", errno: Some("EINVAL") }
        } else {
            LookupFailure { text: "Device lookup failure", errno: Some("ENXIO") }
        }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        let MirrorLog { dev, region, resync, .. } = &self.log;
        let words = 1 + u8::from(dev.is_some()) + u8::from(resync.word().is_some());
        match dev {
            None => write!(f, "core {words} {region}")?,
            Some(dev) => write!(f, "disk {words} {} {region}", name(dev))?,
        }
        if let Some(word) = resync.word() {
            write!(f, " {word}")?;
        }
        write!(f, " {}", self.legs.len())?;
        for leg in &self.legs {
            write!(f, " {} {}", name(&leg.dev), leg.start)?;
        }
        match (self.handle_errors, self.keep_log) {
            (false, _) => Ok(()),
            (true, false) => f.write_str(" 1 handle_errors"),
            (true, true) => f.write_str(" 2 handle_errors keep_log"),
        }
    }
}

/// The log, and where its words end. What the kernel has against one it says in a line of its own, before the
/// constructor's.
fn log(args: &Args<'_>) -> Result<(MirrorLog, usize), Fault> {
    if args.count() < 2 {
        return Err(args.wrong_count(2, MirrorError::FewLogArguments));
    }
    let said = |why: &str| format!("the kernel log says: dirty region log: {why}");
    let refused = |n: usize, why: &str| args.fault(n, MirrorError::Log).help(said(why));
    let Some(count) = lexer::kernel_uint(args.word(1)) else {
        return Err(args.fault(1, MirrorError::LogCount).expected("the number of log arguments that follow"));
    };
    let words = count as usize;
    if args.count() < count.wrapping_add(2) as usize {
        return Err(args.wrong_count(args.count(), MirrorError::FewLogArguments).expected(format!(
            "{words} log {}, as the number says",
            if words == 1 { "argument" } else { "arguments" }
        )));
    }
    // Words in front of the region size.
    let devices = match args.word(0) {
        "core" => 0,
        "disk" => 1,
        kind => {
            let refusal = refused(0, &format!("Module for logging type \"{kind}\" not found."));
            return Err(refusal.expected("core for a log in memory, or disk for one on a device"));
        }
    };
    if words < devices + 1 || words > devices + 2 {
        let kind = if devices == 0 { "dirty region log" } else { "disk mirror log" };
        let refusal = refused(1, &format!("wrong number of arguments to {kind}"));
        return Err(refusal.expected(match devices {
            0 => "1 or 2: the region size, and sync or nosync",
            _ => "2 or 3: the log device, the region size, and sync or nosync",
        }));
    }
    let at = 2 + devices;
    let resync = match (words > devices + 1, args.word(at + 1)) {
        (false, _) => Resync::AsLogged,
        (true, "sync") => Resync::All,
        (true, "nosync") => Resync::Nothing,
        (true, other) => {
            let refusal = refused(at + 1, &format!("unrecognised sync argument to dirty region log: {other}"));
            return Err(refusal.expected("sync or nosync"));
        }
    };
    let region = region(args, at).map_err(|nearest| {
        let refusal = args
            .sectors_fault(at, MirrorError::Log)
            .expected(format!("a power of 2 from 2 to {}, the line's length", args.len));
        nearest.into_iter().fold(refusal, Fault::help).help(said(&format!("invalid region size {}", args.word(at))))
    })?;
    let dev = (devices > 0).then(|| args.device(2));
    Ok((MirrorLog { dev, region, region_span: args.span(at), resync }, 2 + words))
}

/// The region size; if it is none, perhaps what would be.
fn region(args: &Args<'_>, n: usize) -> Result<Sectors, Option<String>> {
    match lexer::kernel_uint(args.word(n)).map(u64::from) {
        Some(region) if region < 2 || region > args.len => Err(None),
        Some(region) if region.is_power_of_two() => Ok(Sectors::new(region)),
        Some(region) => Err(Some(args::nearest_powers_of_two(region))),
        None => Err(None),
    }
}

/// The features from word `at` on, and where they end.
fn features(args: &Args<'_>, at: usize) -> Result<(bool, bool, usize), Fault> {
    if at >= args.count() {
        return Ok((false, false, at));
    }
    let Some(count) = lexer::kernel_uint(args.word(at)) else {
        return Err(args.fault(at, MirrorError::FeatureCount).expected("the number of features that follow"));
    };
    let (first, count) = (at + 1, count as usize);
    let there = args.count() - first;
    if count > there {
        return Err(args
            .fault(at, MirrorError::FewFeatures)
            .expected(format!("the number of features that follow: {there}")));
    }
    let (mut handle_errors, mut keep_log) = (false, None);
    for n in first..first + count {
        match args.word(n) {
            "handle_errors" => handle_errors = true,
            "keep_log" => keep_log = Some(n),
            _ => {
                let refusal = args.fault(n, MirrorError::UnknownFeature);
                return Err(refusal.expected("handle_errors, or handle_errors and keep_log"));
            }
        }
    }
    match keep_log {
        Some(n) if !handle_errors => Err(args.fault(n, MirrorError::KeepLogOnly).expected("handle_errors beside it")),
        keep_log => Ok((handle_errors, keep_log.is_some(), first + count)),
    }
}
