//! An independent vhost-user-blk front end, a naive model of device-mapper tables, and what starts and
//! watches the processes under test.
//!
//! Nothing here shares code with the back end: the wire protocol ([`wire`]), guest memory ([`memory`]),
//! the split ring ([`ring`]) and the virtio-blk requests ([`blk`]) are written from the specifications, so
//! that a misreading on one side shows up as a failure and not as agreement.
#![deny(unsafe_code)]

pub mod bench;
pub mod blk;
pub mod control;
pub mod crash;
pub mod daemon;
pub mod files;
pub mod fuzz;
pub mod locks;
pub mod loops;
pub mod mapping;
pub mod memory;
pub mod model;
pub mod operations;
pub mod ring;
pub mod rng;
pub mod skip;
pub mod vmm;
pub mod wire;
