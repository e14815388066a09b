//! `delay`: holds requests back (dm-delay.c).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Cx, Io, Target};
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;

/// A class of requests: where they go, and after which time in milliseconds.
#[derive(Clone, Debug)]
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
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    held: [AtomicU64; 3],
    // Nothing is held back: the device is being suspended, or is.
    released: AtomicBool,
}

impl Delay {
    /// With classes for reads, writes and flushes.
    pub fn new(classes: [Class; 3]) -> Delay {
        Delay { classes, state: Arc::default() }
    }

    async fn hold(&self, cx: &Cx, class: usize) {
        let due = cx.now() + u64::from(self.classes[class].ms) * 1_000_000;
        let over = || cx.now() >= due || self.state.released.load(Ordering::Acquire) || cx.is_hurried();
        if over() {
            return;
        }
        self.state.held[class].fetch_add(1, Ordering::Relaxed);
        while !over() {
            cx.nap(due).await;
        }
        self.state.held[class].fetch_sub(1, Ordering::Relaxed);
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
        let [reads, writes, flushes] = [0, 1, 2].map(|class: usize| self.state.held[class].load(Ordering::Relaxed));
        format!("{reads} {writes} {flushes}")
    }

    fn presuspend(&self) {
        self.state.released.store(true, Ordering::Release);
    }

    fn resume(&self) {
        self.state.released.store(false, Ordering::Release);
    }

    fn again(&self, legs: Vec<Leg>) -> Delay {
        let mut classes = self.classes.clone();
        // As many as the line names: the last of them is for the classes that it does not name, too.
        let last = legs.last().cloned();
        for (class, leg) in classes.iter_mut().zip(legs.into_iter().map(Some).chain(std::iter::repeat(last))) {
            if let Some(leg) = leg {
                class.leg = leg;
            }
        }
        Delay { classes, state: self.state.clone() }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.classes.iter().flat_map(|class| class.leg.devices().iter().copied()).collect()
    }
}
