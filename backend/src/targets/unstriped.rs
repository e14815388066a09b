//! `unstriped`: one stripe out of a range that holds several (dm-unstripe.c).
//!
//! Reads and writes are a matter of arithmetic, and the map does it without a task. What is here is for what the map would
//! cut into too many pieces at once, and for flushes: the kernel's target takes none, so that what was written through it
//! may be lost after a flush; here they reach the device.

use super::{Cx, Io, Target};
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;

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
        if io.action == Action::Flush {
            return cx.io(&self.leg, io.action, 0, 0, io.data).await;
        }
        cx.in_places(io, |parts, at, most| {
            let within = at % self.chunk;
            let len = (self.chunk - within).min(most);
            parts.add(&self.leg, at / self.chunk * self.row + within, len);
            len
        })
        .await
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
