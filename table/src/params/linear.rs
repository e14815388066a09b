//! `linear <device> <start>`

use super::DevRef;
use crate::{Sectors, Span};

/// A range of another device, from `start` on, as long as the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
}
