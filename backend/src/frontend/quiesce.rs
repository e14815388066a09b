//! Bringing the queues of several sessions to rest at a time, and going back on it.
//!
//! While this lasts the front ends' own messages about their queues wait, as they would for a drain of their own.

use std::sync::MutexGuard;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Session;
use super::control::{Busy, QueueControl, State};
use crate::worker::ops::UnderWay;

/// How long the drain is waited for before anyone is asked whether to go on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two attempts to have a queue that somebody else steers.
const SHORT: Duration = Duration::from_millis(1);
/// Time between two looks at whether the drain is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// The one who asked for it wants it no longer.
#[derive(Debug, thiserror::Error)]
#[error("taken back")]
pub struct TakenBack;

/// Whoever waits for a drain.
pub trait Waits {
    /// Whether it has been taken back.
    fn gone(&self) -> bool;
    /// Called about every second with what is under way.
    fn tell(&self, under_way: &[(String, UnderWay)]);
}

/// A queue that a worker has been asked to hold.
struct Held<'a> {
    control: &'a QueueControl,
    state: MutexGuard<'a, State>,
    rest: Receiver<()>,
}

/// The waiting of the one who asked.
struct Wait<'a> {
    waits: &'a dyn Waits,
    started: Instant,
    // How many times he has been told.
    told: u64,
}

impl Wait<'_> {
    /// Queues go on if it has been taken back.
    fn is_wanted(&self, held: &mut [Held<'_>]) -> Result<(), TakenBack> {
        if self.waits.gone() {
            held.iter_mut().for_each(Held::go);
            return Err(TakenBack);
        }
        Ok(())
    }

    /// Once more in vain: the same, and tells now and then what is under way in queues from `drains` on.
    fn goes_on(&mut self, held: &mut [Held<'_>], drains: Option<usize>) -> Result<(), TakenBack> {
        self.is_wanted(held)?;
        let due = self.started.elapsed().as_secs() / PATIENCE.as_secs();
        if due > self.told {
            self.told = due;
            let drains = drains.and_then(|at| held.get(at..)).unwrap_or_default();
            self.waits.tell(&drains.iter().flat_map(Held::under_way).collect::<Vec<_>>());
        }
        Ok(())
    }
}

/// Stops all queues of these sessions when everything that was under way has ended; they must not be able to start again
/// meanwhile (`Disk::block`). Requests that have come since stay in the rings.
///
/// # Errors
/// When it was taken back; then all queues go on, as soon as they may.
pub fn quiesce(sessions: &[&Session], waits: &dyn Waits) -> Result<(), TakenBack> {
    let mut wait = Wait { waits, started: Instant::now(), told: 0 };
    let mut held: Vec<Held<'_>> = Vec::new();
    for queue in sessions.iter().flat_map(|session| session.queues()) {
        loop {
            match queue.hold() {
                Ok(holding) => {
                    held.extend(holding.map(Held::from));
                    break;
                }
                // Its front end stops it, for example, and a device lets it wait for that.
                Err(Busy) => std::thread::sleep(SHORT),
            }
            wait.goes_on(&mut held, None)?;
        }
    }
    for at in 0..held.len() {
        loop {
            match held[at].rest.recv_timeout(LOOK) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            wait.goes_on(&mut held, Some(at))?;
        }
    }
    // One who went before he could be told counts on it that the queues go on.
    wait.is_wanted(&mut held)?;
    let stopping: Vec<_> = held.iter_mut().map(|queue| queue.control.begin_stop(&mut queue.state)).collect();
    for (queue, stopping) in held.iter_mut().zip(stopping) {
        if let Some(stopping) = stopping {
            queue.control.end_stop(&mut queue.state, stopping, false);
        }
    }
    Ok(())
}

impl Held<'_> {
    fn go(&mut self) {
        self.control.go(&self.state);
    }

    fn under_way(&self) -> Vec<(String, UnderWay)> {
        self.control.under_way(&self.state)
    }
}

impl<'a> From<(&'a QueueControl, MutexGuard<'a, State>, Receiver<()>)> for Held<'a> {
    fn from((control, state, rest): (&'a QueueControl, MutexGuard<'a, State>, Receiver<()>)) -> Held<'a> {
        Held { control, state, rest }
    }
}
