//! `delay`: holds requests back (dm-delay.c).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Cx, Io, Target};
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;

/// A class of requests: where they go, and after which time in milliseconds.
pub struct Class {
    /// What they go to.
    pub leg: Leg,
    /// How long each is held back, in milliseconds; the device's own time is added.
    pub ms: u32,
}

/// See the module's text.
pub struct Delay {
    // Reads, writes (discards too), flushes.
    classes: [Class; 3],
    held: [AtomicU64; 3],
    // Nothing is held back: the device is being suspended, or is.
    released: AtomicBool,
}

impl Delay {
    /// With classes for reads, writes and flushes.
    pub fn new(classes: [Class; 3]) -> Delay {
        Delay { classes, held: Default::default(), released: AtomicBool::new(false) }
    }

    async fn hold(&self, cx: &Cx, class: usize) {
        let due = cx.now() + u64::from(self.classes[class].ms) * 1_000_000;
        let over = || cx.now() >= due || self.released.load(Ordering::Acquire);
        if over() {
            return;
        }
        self.held[class].fetch_add(1, Ordering::Relaxed);
        while !over() {
            cx.nap(due).await;
        }
        self.held[class].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target for Delay {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let class = match io.action {
            Action::Read => 0,
            Action::Write { .. } | Action::Discard | Action::Zero { .. } => 1,
            Action::Flush => 2,
        };
        self.hold(cx, class).await;
        if io.action == Action::Flush {
            // The kernel flushes what the class of flushes goes to, and leaves what was written elsewhere where it is.
            cx.io(&self.classes[1].leg, Action::Flush, 0, 0, Vec::new()).await?;
        }
        cx.io(&self.classes[class].leg, io.action, io.at, io.len, io.data).await
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        let [reads, writes, flushes] = [0, 1, 2].map(|class: usize| self.held[class].load(Ordering::Relaxed));
        format!("{reads} {writes} {flushes}")
    }

    fn presuspend(&self) {
        self.released.store(true, Ordering::Release);
    }

    fn resume(&self) {
        self.released.store(false, Ordering::Release);
    }

    fn devices(&self) -> Vec<DevIx> {
        self.classes.iter().flat_map(|class| class.leg.devices().iter().copied()).collect()
    }
}
