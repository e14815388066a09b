//! `unstriped`: one stripe out of a range that holds several (dm-unstripe.c).
//!
//! Reads and writes are a matter of arithmetic, and the map does it without a task. What is here is for what the map would
//! cut into too many pieces at once, and for flushes: the kernel's target takes none, so that what was written through it
//! may be lost after a flush; here they reach the device.

use super::{Cx, Io, Target};
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;

/// Chunks of a range that are under way at a time.
const AT_A_TIME: usize = 64;

/// See the module's text.
pub struct Unstriped {
    // Begins where the stripe's first chunk does.
    leg: Leg,
    chunk: u64,
    row: u64,
}

impl Unstriped {
    /// Chunks of so many sectors, at least 1; from each to the next are `row` sectors. `leg` begins with the first.
    pub fn new(leg: Leg, (chunk, row): (u64, u64)) -> Unstriped {
        Unstriped { leg, chunk, row }
    }
}

impl Target for Unstriped {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let Io { action, at, len, data } = io;
        let most = match action {
            Action::Flush => return cx.io(&self.leg, action, 0, 0, data).await,
            // As many as there is data for.
            Action::Read | Action::Write { .. } => usize::MAX,
            Action::Discard | Action::Zero { .. } => AT_A_TIME,
        };
        let (mut next, end, mut data, mut result) = (at, at + len, Some(data), Ok(()));
        while next < end {
            let ended = cx.parts(action, data.take().unwrap_or_default(), |parts| {
                for _ in 0..most {
                    if next == end {
                        break;
                    }
                    let within = next % self.chunk;
                    let take = (self.chunk - within).min(end - next);
                    parts.add(&self.leg, next / self.chunk * self.row + within, take);
                    next += take;
                }
            });
            result = result.and(ended.await);
        }
        result
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        String::new()
    }

    fn again(&self, legs: Vec<Leg>) -> Unstriped {
        let leg = legs.into_iter().next().unwrap_or_else(|| self.leg.clone());
        Unstriped { leg, ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.leg.devices().to_vec()
    }
}
