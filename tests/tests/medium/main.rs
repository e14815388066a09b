//! What happens when the medium or the memory under requests goes, stops or fails: on real file systems and loop devices.
#![allow(missing_docs)]

mod drain;
mod faults;
mod fence;

const SECTOR: usize = 512;
