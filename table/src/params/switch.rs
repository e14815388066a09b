//! `switch <paths> <region size> <number of optional arguments> [<device> <start>]…`

use std::fmt;

use thiserror::Error;

use super::{Args, DevRef, DeviceName, Fault, Params, Position};
use crate::{Sectors, lexer};

/// Regions of which each lies on one of several devices. Which, messages say; at first, they are dealt out in
/// turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The size of a region in sectors: from 1 to 2^32 − 1, no power of two needed.
    pub region: Sectors,
    /// The devices, at least one. Each has room for the whole line.
    pub paths: Vec<Position>,
}

impl Switch {
    /// How many regions a line of `len` sectors has; the last may be shorter.
    ///
    /// With small regions of a large line that is more than memory has entries for. The kernel says
    /// [`NO_REGION_TABLE`](Switch::NO_REGION_TABLE) then.
    pub fn regions(&self, len: Sectors) -> u64 {
        len.get().div_ceil(self.region.get().max(1))
    }

    /// The kernel's reason (ENOMEM) where there is no room for the table of regions.
    pub const NO_REGION_TABLE: &'static str = "Cannot allocate region table";
}

/// Most paths: as many as the kernel allocates at once on 64-bit machines.
const MAX_PATHS: u32 = 262_141;

#[derive(Debug, Error)]
enum SwitchError {
    #[error("Invalid number of paths")]
    Paths,
    #[error("Invalid region size")]
    RegionSize,
    #[error("Invalid number of optional args")]
    OptionalArguments,
    #[error("Incorrect number of path arguments")]
    PathArguments,
    #[error("Invalid device starting offset")]
    DeviceSector,
}

impl Params for Switch {
    const TYPE: &'static str = "switch";
    const USAGE: &'static str =
        "<start> <length> switch <paths> <sectors per region> 0 <device> <start on the device> for each path";

    fn parse(args: &Args<'_>) -> Result<Switch, Fault> {
        let paths = args.number(0, 1..=MAX_PATHS, SwitchError::Paths)?;
        let region = args.number(1, 1..=u32::MAX, SwitchError::RegionSize)?;
        args.number(2, 0..=0, SwitchError::OptionalArguments)
            .map_err(|fault| fault.expected("0: there are none yet"))?;
        let want = 3 + 2 * paths as usize;
        if args.count() != want {
            let pairs = format!("a device and a start sector for each of {paths} paths: {want} arguments in all");
            return Err(args.wrong_count(want, SwitchError::PathArguments).expected(pairs));
        }
        let path = |n: usize| match lexer::kernel_strict_u64(args.word(n + 1)) {
            Some(start) => {
                Ok(Position { dev: args.device(n), start: Sectors::new(start), start_span: args.span(n + 1) })
            }
            // The same remarks as for other targets; what they read otherwise, a number beyond 64 bits, has none.
            None => Err(args.offset(n + 1, SwitchError::DeviceSector).err().unwrap_or_else(|| {
                args.fault(n + 1, SwitchError::DeviceSector).expected("at most 18446744073709551615")
            })),
        };
        let paths = (3..want).step_by(2).map(path).collect::<Result<_, Fault>>()?;
        Ok(Switch { region: Sectors::new(region.into()), paths })
    }

    fn device(&self, n: usize) -> Option<&DevRef> {
        self.paths.get(n).map(|path| &path.dev)
    }

    fn print(&self, f: &mut fmt::Formatter<'_>, name: &DeviceName<'_>) -> fmt::Result {
        write!(f, "{} {} 0", self.paths.len(), self.region)?;
        for path in &self.paths {
            write!(f, " {} {}", name(&path.dev), path.start)?;
        }
        Ok(())
    }
}
