//! What every stateful target has to stand, whatever it is for. Each is registered in [`cases`] by the tables that it is
//! tried in; each case has these tests, over simulated components and by seeds:
//!
//! - It does nothing outside of the ranges that its table names (in all tests: see `Bench::fence`).
//! - Any cut of a request, in any order, gives the same bytes.
//! - An error at any operation reaches the guest as an error, and what comes later works.
//! - What a flush, or a durable write, has acknowledged survives a crash at any moment.
//! - A suspend in the middle of requests and of what it does in the background comes to its end; it goes on as it was, over
//!   tables that were built anew, too.
//! - A suspend waits for devices, and for nothing that is held back for no other reason than time.
//! - It may be probed, activated, sent to its background and retired in any order that makes sense, again and again.
//! - Its table's text is read as it was printed.
//! - In the end nothing is left behind: no slot of a task or an operation, no buffer, no job.
//!
//! A failing seed is printed. `DM_TEST_SEED` repeats one, `DM_TEST_SEEDS` asks for more of them.

mod bench;
mod cases;
mod checks;
mod driver;
mod logging;
mod merging;
mod mirroring;
mod model;
mod stores;

/// Tables, what they lie on, and what is to be expected of them.
pub(super) struct Case {
    /// Sizes of components c0, c1, ... in sectors.
    parts: &'static [u64],
    /// From the bottom up; those above know the first as /dev/mapper/t0. The last is the disk.
    tables: &'static [&'static str],
    /// To each target that takes them, before anything else.
    messages: &'static [&'static [&'static str]],
    /// Where a sector of the disk is at first: component, and sector there; none of zeroes.
    place: fn(u64) -> Option<(usize, u64)>,
    /// Changes the components' first contents: as they are, each sector is like no other.
    prepare: fn(&mut [Vec<u8>]),
    /// Sectors of a logical block of the components.
    block: u64,
    /// Components that the target may use all of, wherever its ranges begin.
    whole: &'static [usize],
    /// An error on a component need not be one of the disk: there is another place.
    masks: bool,
    /// After an error it may refuse everything.
    breaks: bool,
    /// How requests are cut changes where bytes are on the components.
    rewrites: bool,
    /// What was written is there after a crash.
    lasts: bool,
}

/// What most cases have in common.
const PLAIN: Case = Case {
    parts: &[],
    tables: &[],
    messages: &[],
    place: |at| Some((0, at)),
    prepare: |_| {},
    block: 1,
    whole: &[],
    masks: false,
    breaks: false,
    rewrites: false,
    lasts: true,
};
