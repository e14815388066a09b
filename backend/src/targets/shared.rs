//! What targets of a process' different devices know of one another.

/// See the module's text. One for all devices of a process.
#[derive(Debug, Default)]
pub struct Shared {}
