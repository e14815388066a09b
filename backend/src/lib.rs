//! The back end as a library, so that tests and the binary share it.
//!
//! One request's way: [`vring`] gives a head, [`request`] makes a block request of it, [`worker`] cuts it by the [`map`]
//! into operations, an [`engine`] does them on [`device`] components, and the head goes back with a status. [`frontend`]
//! decides when a queue is served, [`disk`] what, [`daemon`] on which
//! socket, and [`server`] for whom.
#![deny(unsafe_code)]

pub mod activation;
pub mod args;
pub mod assemble;
pub mod chain;
pub mod check;
pub mod control;
pub mod daemon;
pub mod device;
pub mod disk;
pub mod dmsetup;
pub mod engine;
pub mod event;
pub mod frontend;
pub mod guest;
pub mod hold;
pub mod inflight;
pub mod inspect;
pub mod limit;
pub mod log_writes;
pub mod lvm;
pub mod map;
pub mod mapper;
pub mod overlay;
pub mod place;
pub mod request;
pub mod server;
pub mod sim;
pub mod socket;
pub mod stats;
pub mod targets;
pub mod top;
pub mod uring;
pub mod vring;
pub mod worker;
