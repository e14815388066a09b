//! The control socket.

pub mod schema;
