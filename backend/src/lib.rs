//! The back end as a library, so that tests and the binary share it.
#![deny(unsafe_code)]

pub mod chain;
pub mod device;
pub mod engine;
pub mod guest;
pub mod limit;
pub mod map;
pub mod request;
pub mod uring;
pub mod vring;
pub mod worker;
