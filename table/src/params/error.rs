//! `error [<device> <start>]`

use super::DevRef;
use crate::Sectors;

/// Fails every read and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorTarget {
    /// With exactly two arguments: a device of which only size and limits count, and a start sector on it.
    pub dev: Option<(DevRef, Sectors)>,
}
