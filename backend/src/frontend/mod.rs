//! The vhost-user side: one [`Session`] for each front end that connects, steering the queues of one disk.
//!
//! `vhost-user-backend` runs the protocol, but for the messages that the [`interposer`] in front of it answers. It spawns no
//! workers for us; its vring calls are the mailbox to ours.

mod channel;
pub mod config;
pub mod control;
pub mod interposer;
pub mod private;
pub mod quiesce;
mod session;
mod vring;
mod wire;

pub use session::Session;
