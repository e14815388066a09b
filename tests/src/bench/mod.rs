//! The benchmark: a client that measures one back end, and a comparison of two.

pub mod client;
pub mod compare;
pub mod cpu;
pub mod histogram;
pub mod rows;

pub use client::{Job, Mode, Pattern, Sample, run};
