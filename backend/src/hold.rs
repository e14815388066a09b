//! Whether a disk's components are this process's to write.
//!
//! They are from its start to its end, with one exception: a guest that migrates takes its disk along. The source gives
//! the components up when the guest has stopped, which it can tell by its last queue's stopping while the front end logs
//! dirty pages; should the migration fail, it takes them back with the first queue that starts. The destination
//! (`--incoming`) takes them with the first queue that starts. A queue does not start without.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::chain::Chain;
use crate::device::{Component, OpenError, Patience};
use crate::limit::Limiter;
use crate::limited;

/// How long a component is waited for that a living process has: the source's kernel may take a moment to let go.
const LIVE: Duration = Duration::from_secs(5);
/// Time between two attempts.
const NAP: Duration = Duration::from_millis(50);
/// After waiting in vain a disk's other queues do not wait again.
const IN_VAIN: Duration = Duration::from_secs(3);

/// See the module's text.
#[derive(Debug)]
pub struct Hold(Mutex<State>);

#[derive(Debug)]
struct State {
    held: bool,
    // Another process may have had the components since they were ours.
    away: bool,
    // Queues that are being served.
    queues: usize,
    failed: Option<Instant>,
    limiter: Limiter,
}

impl Hold {
    /// The hold on a disk's components; `incoming` if they are to be taken with the first queue only.
    pub fn new(incoming: bool) -> Hold {
        // Components that are not incoming were locked when they were opened. A disk becomes their user with its first queue:
        // one that nobody is served must not keep them from being handed over.
        Hold(Mutex::new(State { held: false, away: incoming, queues: 0, failed: None, limiter: Limiter::default() }))
    }

    /// A queue is about to be served. Waits for whoever has a component, within bounds, as long as `go_on` says so.
    ///
    /// # Errors
    /// Who has a component.
    pub fn enter(&self, chain: &Chain, go_on: impl Fn() -> bool) -> Result<(), OpenError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.held {
            let started = Instant::now();
            let waited_before = state.failed.is_some_and(|at| at.elapsed() < IN_VAIN);
            let mut told = false;
            while let Err(error) = take(chain) {
                let most = if error.is_passing() { Patience::COMMAND } else { LIVE };
                if waited_before || started.elapsed() > most || !go_on() {
                    state.failed = Some(Instant::now());
                    return Err(error);
                }
                if !std::mem::replace(&mut told, true) {
                    limited!(state.limiter, info, "{}: {error}; waiting for it", chain.name);
                }
                std::thread::sleep(NAP);
            }
            state.held = true;
            if std::mem::take(&mut state.away) {
                limited!(state.limiter, info, "{}: its components are locked", chain.name);
            }
        }
        state.queues += 1;
        Ok(())
    }

    /// A queue has drained. With the last one everything is given up if `handed_over`.
    pub fn leave(&self, chain: &Chain, handed_over: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.queues = state.queues.saturating_sub(1);
        if state.queues > 0 || !handed_over || !state.held {
            return;
        }
        if let Err(error) = written(chain).try_for_each(|component| component.settle()) {
            return log::error!(
                "{}: {error}; its components are kept, and the destination cannot have them",
                chain.name
            );
        }
        (state.held, state.away) = (false, true);
        written(chain).for_each(|component| component.give_up());
        limited!(
            chain.limiters.control,
            info,
            "{}: the guest has stopped while it migrates; its components are free for the destination",
            chain.name
        );
    }
}

/// Takes all components of a disk, or none.
fn take(chain: &Chain) -> Result<(), OpenError> {
    let mut taken: Vec<&Arc<Component>> = Vec::new();
    for component in written(chain) {
        if let Err(error) = component.take() {
            taken.iter().for_each(|component| component.give_up());
            return Err(error);
        }
        taken.push(component);
    }
    Ok(())
}

/// The components that a disk writes.
fn written(chain: &Chain) -> impl Iterator<Item = &Arc<Component>> {
    chain.flushed().filter(|_| !chain.read_only).map(|(_, component)| component)
}
