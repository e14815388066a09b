//! The control socket: JSON-RPC 2.0 over a Unix stream socket, one message a line, for whoever may do what the process itself
//! may (its user, and root). [`schema`] has the methods; `control.schema.json` says all of it for other languages.
//!
//! A thread per client, so that a client that waits, sends nothing or reads nothing is in nobody's way.

pub mod client;
mod connection;
mod dispatch;
pub mod schema;
#[cfg(test)]
mod schema_file;
mod server;
mod wire;

pub use server::Server;

/// Variable with the socket's path, for clients.
pub const VARIABLE: &str = "VHOST_USER_DM_CONTROL";
/// Longest line that is taken, in bytes, without its end.
pub const MAX_LINE: usize = 16 << 20;
/// Most clients at a time.
pub const MAX_CLIENTS: usize = 64;
