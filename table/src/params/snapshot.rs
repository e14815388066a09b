//! `snapshot` and `snapshot-merge <origin> <cow device> <P|PO|N> <chunk> [<number of feature arguments>
//! <feature>…]`, `snapshot-origin <device>`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, LookupFailure, Params, args};
use crate::{Sectors, Span, lexer};

/// A device as it was, with what is written kept elsewhere.
///
/// Both devices are used from their first sector on, whatever the line's start is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The device as it was.
    pub origin: DevRef,
    /// The device that has what is written, the store of exceptions. Not the origin:
    /// [`SAME_DEVICE`](Snapshot::SAME_DEVICE).
    pub cow: DevRef,
    /// Whether the store outlives the table.
    pub persistence: Persistence,
    /// Where the persistence stands in the text.
    pub persistence_span: Span,
    /// The size of a chunk: a power of two, at most 2^21 sectors. 0, never with [`Persistence::None`], for what
    /// the store on the device has, or [`DEFAULT_CHUNK`](Snapshot::DEFAULT_CHUNK). A store on the device that has
    /// another size wins; `dmsetup table` then prints that one.
    pub chunk: Sectors,
    /// Where the chunk size stands in the text.
    pub chunk_span: Span,
    /// A discard of a whole chunk that was written zeroes it in the store.
    pub discard_zeroes_cow: bool,
    /// A discard goes to the origin too. Never without [`discard_zeroes_cow`](Snapshot::discard_zeroes_cow).
    pub discard_passdown_origin: bool,
}

/// Whether the store of exceptions of a [`Snapshot`] outlives the table, and what happens when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// `P`: it does; a full store invalidates the snapshot.
    Persistent,
    /// `PO`: it does; a full store fails what needs more room, and the status line says `Overflow`.
    Overflow,
    /// `N`: it does not.
    None,
}

impl Persistence {
    /// Whether there is a store on the device.
    pub fn is_persistent(self) -> bool {
        self != Persistence::None
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Persistence::Persistent => "P",
            Persistence::Overflow => "PO",
            Persistence::None => "N",
        })
    }
}

impl Snapshot {
    /// The chunk size of a new store where the table has 0, unless the device has larger blocks.
    pub const DEFAULT_CHUNK: Sectors = Sectors::new(32);

    /// The kernel's reason (EINVAL) where both devices are the same.
    pub const SAME_DEVICE: &'static str = "COW device cannot be the same as origin device";
    /// The kernel's reason (EINVAL) where the store cannot be made: so where the chunk is no multiple of the
    /// devices' logical block sizes.
    pub const NO_STORE: &'static str = "Couldn't create exception store";
    /// The kernel's reason where the store on the device cannot be read.
    pub const NO_METADATA: &'static str = "Failed to read snapshot metadata";
}

/// A snapshot on its way back into its origin; with a store on the device, as only that can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMerge(
    /// The snapshot.
    pub Box<Snapshot>,
);

/// A device that has snapshots: what is written over goes to them first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOrigin {
    /// The device, used from its first sector on.
    pub dev: DevRef,
}

/// Largest chunk in sectors: below 2^31 bytes.
const MAX_CHUNK: u32 = 1 << 21;

#[derive(Debug, Error)]
enum SnapshotError {
    #[error("requires 4 or more arguments")]
    ArgumentCount,
    #[error("Invalid number of feature arguments")]
    FeatureCount,
    #[error("Unrecognised feature requested")]
    UnknownFeature,
    #[error("discard_passdown_origin feature depends on discard_zeroes_cow")]
    PassdownOnly,
    #[error("{}", Snapshot::NO_STORE)]
    Store,
    #[error("Chunk size not set")]
    NoChunk,
    #[error("Snapshot exception store does not support snapshot-merge.")]
    NoMerge,
    #[error("origin: incorrect number of arguments")]
    OriginArguments,
}

impl Params for Snapshot {
    const TYPE: &'static str = "snapshot";
    const USAGE: &'static str = "<start> <length> snapshot <origin> <cow device> <P, PO or N> <sectors per chunk> \
                                 [<number of feature arguments> <feature>…]";

    fn parse(args: &Args<'_>) -> Result<Snapshot, Fault> {
        if args.count() < 4 {
            return Err(args.wrong_count(4, SnapshotError::ArgumentCount));
        }
        let (discard_zeroes_cow, discard_passdown_origin) = features(args)?;
        let persistence = persistence(args)?;
        let chunk = chunk(args)?;
        if chunk.is_zero() && !persistence.is_persistent() {
            return Err(args
                .fault(3, SnapshotError::NoChunk)
                .expected("a power of 2: there is no store on the device that could say it"));
        }
        Ok(Snapshot {
            origin: args.device(0),
            cow: args.device(1),
            persistence,
            persistence_span: args.span(2),
            chunk,
            chunk_span: args.span(3),
            discard_zeroes_cow,
            discard_passdown_origin,
        })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        [&self.origin, &self.cow].get(n).copied()
    }

    fn lookup_failure(&self, n: usize) -> LookupFailure {
        let text = if n == 0 { "Cannot get origin device" } else { "Cannot get COW device" };
        LookupFailure { text, errno: None }
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", name(&self.origin), name(&self.cow), self.persistence, self.chunk)?;
        match (self.discard_zeroes_cow, self.discard_passdown_origin) {
            (false, _) => Ok(()),
            (true, false) => f.write_str(" 1 discard_zeroes_cow"),
            (true, true) => f.write_str(" 2 discard_zeroes_cow discard_passdown_origin"),
        }
    }
}

fn features(args: &Args<'_>) -> Result<(bool, bool), Fault> {
    if args.count() == 4 {
        return Ok((false, false));
    }
    let count = args.group(4, 2, SnapshotError::FeatureCount)?;
    let (mut zeroes, mut passdown, mut unknown) = (false, None, None);
    for n in 5..5 + count {
        match args.word(n).to_ascii_lowercase().as_str() {
            "discard_zeroes_cow" => zeroes = true,
            "discard_passdown_origin" => passdown = Some(n),
            _ => {
                unknown = Some(n);
                break;
            }
        }
    }
    // Of two faults the kernel says the later one.
    match (passdown, unknown) {
        (Some(n), _) if !zeroes => {
            Err(args.fault(n, SnapshotError::PassdownOnly).expected("discard_zeroes_cow beside it"))
        }
        (_, Some(n)) => Err(args
            .fault(n, SnapshotError::UnknownFeature)
            .expected("discard_zeroes_cow, or discard_zeroes_cow and discard_passdown_origin")),
        _ => Ok((zeroes, passdown.is_some())),
    }
}

fn persistence(args: &Args<'_>) -> Result<Persistence, Fault> {
    let mut letters = args.word(2).chars().map(|letter| letter.to_ascii_uppercase());
    let fault = || args.fault(2, SnapshotError::Store);
    match (letters.next(), letters.next()) {
        (Some('P'), None) => Ok(Persistence::Persistent),
        (Some('P'), Some('O')) => Ok(Persistence::Overflow),
        (Some('P'), Some(_)) => Err(fault()
            .expected("P for a store that is kept, or PO for one that may be full")
            .help(format!("the kernel log says: Unsupported persistent store option: {}", &args.word(2)[1..]))),
        // Whatever follows it.
        (Some('N'), _) => Ok(Persistence::None),
        _ => {
            Err(fault()
                .expected("P for a store that is kept, PO for one that may be full, or N for one that is not kept"))
        }
    }
}

fn chunk(args: &Args<'_>) -> Result<Sectors, Fault> {
    let fault = || {
        args.sectors_fault(3, SnapshotError::Store)
            .expected(format!("a power of 2 of at most {MAX_CHUNK} sectors, or with P 0 for what the store has"))
    };
    match lexer::kernel_u32(args.word(3)) {
        Some(chunk) if chunk > MAX_CHUNK => Err(fault()),
        Some(chunk) if chunk != 0 && !chunk.is_power_of_two() => {
            Err(fault().help(args::nearest_powers_of_two(chunk.into())))
        }
        Some(chunk) => Ok(Sectors::new(chunk.into())),
        None => Err(fault()),
    }
}

impl Params for SnapshotMerge {
    const TYPE: &'static str = "snapshot-merge";
    const USAGE: &'static str = "<start> <length> snapshot-merge <origin> <cow device> <P or PO> <sectors per chunk> \
                                 [<number of feature arguments> <feature>…]";

    fn parse(args: &Args<'_>) -> Result<SnapshotMerge, Fault> {
        let snapshot = Snapshot::parse(args)?;
        if !snapshot.persistence.is_persistent() {
            return Err(args
                .fault(2, SnapshotError::NoMerge)
                .expected("P or PO: what is not kept on the device cannot be merged"));
        }
        Ok(SnapshotMerge(Box::new(snapshot)))
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.0.device(n)
    }

    fn lookup_failure(&self, n: usize) -> LookupFailure {
        self.0.lookup_failure(n)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        self.0.print(f, name)
    }
}

impl Params for SnapshotOrigin {
    const TYPE: &'static str = "snapshot-origin";
    const USAGE: &'static str = "<start> <length> snapshot-origin <device>";
    const LOOKUP_FAILED: &'static str = "Cannot get target device";

    fn parse(args: &Args<'_>) -> Result<SnapshotOrigin, Fault> {
        if args.count() != 1 {
            return Err(args.wrong_count(1, SnapshotError::OriginArguments));
        }
        Ok(SnapshotOrigin { dev: args.device(0) })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        (n == 0).then_some(&self.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        f.write_str(&name(&self.dev))
    }
}
