//! The benchmark: a client that measures one back end, and a comparison of two, round by round in turn.

pub mod client;
pub mod compare;
pub mod cpu;
pub mod ground;
pub mod histogram;
pub mod limit;
pub mod process;
pub mod report;
pub mod restart;
pub mod rival;
pub mod rows;
pub mod save;
pub mod stats;

pub use client::{Job, Mode, Pattern, Sample, run};
