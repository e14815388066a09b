//! `striped <stripes> <chunk> [<device> <start>]…`

use super::DevRef;
use crate::{Sectors, Span};

/// Chunks dealt out over several devices in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Striped {
    /// The chunk size; any number of sectors from 1.
    pub chunk: Sectors,
    /// The stripes in turn, at least one. Each holds the line's length / number of stripes.
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
