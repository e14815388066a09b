//! The back end as a library, so that tests and the binary share it.
#![deny(unsafe_code)]

pub mod device;
pub mod map;
