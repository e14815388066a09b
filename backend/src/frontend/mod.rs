//! The vhost-user side: one [`Session`] for each front end that connects, steering the queues of one disk.
//!
//! `vhost-user-backend` runs the protocol. It spawns no workers for us; its vring calls are the mailbox to ours.

pub mod config;
pub mod control;
pub mod relay;
mod session;
mod vring;

pub use session::Session;
