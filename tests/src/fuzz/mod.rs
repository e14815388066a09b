//! What must hold for every input, however hostile: the bodies of the fuzz targets in `tests/fuzz`, and of the test
//! that replays their corpora.
//!
//! Unlike the rest of this crate this looks at the back end from within, because a fuzzer has to be fast and to see what
//! its input reaches. What is compared with is written from the specifications all the same.
//!
//! Every function takes any bytes, and panics where the back end is wrong.

mod chain;
mod guest;
mod log;
mod map;
mod queue;
mod table;

pub use chain::chain;
pub use log::log;
pub use map::map;
pub use queue::queue;
pub use table::table;

/// A target: its name, which is also that of its corpus, and its check.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [("table", table), ("chain", chain), ("map", map), ("queue", queue), ("log", log)];
