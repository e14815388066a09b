//! A device's event number, and who waits for the next one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Counts changes of state that someone may wait for: a component's error, a swap of tables.
#[derive(Debug, Default)]
pub struct Events(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    // The device's.
    name: String,
    number: u32,
    gone: bool,
    // Who waits, and for a number above which.
    waiters: Vec<(u32, OwnedFd)>,
}

impl Events {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's name, for what others are told of it.
    pub fn name(&self) -> String {
        self.state().name.clone()
    }

    /// It has that name from now on.
    pub fn set_name(&self, name: &str) {
        self.state().name = name.to_owned();
    }

    /// The event number.
    pub fn number(&self) -> u32 {
        self.state().number
    }

    /// Something has happened.
    pub fn raise(&self) {
        let mut state = self.state();
        state.number = state.number.wrapping_add(1);
        let number = state.number;
        state.waiters.retain(|(above, waiter)| {
            let stays = number <= *above;
            if !stays {
                ring(waiter);
            }
            stays
        });
    }

    /// Nothing will happen any more.
    pub fn end(&self) {
        let mut state = self.state();
        state.gone = true;
        state.waiters.drain(..).for_each(|(_, waiter)| ring(&waiter));
    }

    /// A descriptor that becomes readable when the event number is above `above` (by default the number now), or nothing
    /// will happen any more.
    ///
    /// # Errors
    /// No descriptor.
    pub fn wait(&self, above: Option<u32>) -> std::io::Result<OwnedFd> {
        let waiter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut state = self.state();
        let above = above.unwrap_or(state.number);
        if state.number > above || state.gone {
            ring(&waiter);
        } else {
            // It is not known which of them nobody waits for any more.
            if state.waiters.len() >= MOST_WAITERS {
                ring(&state.waiters.remove(0).1);
            }
            state.waiters.push((above, waiter.try_clone()?));
        }
        Ok(waiter)
    }
}

/// Most who wait for a device; the one who waits longest is woken when there is another.
const MOST_WAITERS: usize = 256;

fn ring(waiter: &impl AsFd) {
    let _ = rustix::io::write(waiter, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_ready(waiter: &OwnedFd) -> bool {
        poll(&mut [PollFd::new(waiter, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn who_waits_is_woken_by_the_next_event_and_only_then() {
        let events = Events::default();
        let (next, second) = (events.wait(None).unwrap(), events.wait(Some(1)).unwrap());
        assert!(!is_ready(&next) && !is_ready(&second));
        events.raise();
        assert!(is_ready(&next) && !is_ready(&second));
        assert!(is_ready(&events.wait(Some(0)).unwrap()), "it has come already");
        events.raise();
        assert!(is_ready(&second));
        assert_eq!(events.number(), 2);
    }

    #[test]
    fn a_device_that_goes_wakes_all() {
        let events = Events::default();
        let waiter = events.wait(Some(100)).unwrap();
        events.end();
        assert!(is_ready(&waiter) && is_ready(&events.wait(None).unwrap()));
    }

    #[test]
    fn waiters_that_nobody_reads_are_bounded() {
        let events = Events::default();
        let first = events.wait(None).unwrap();
        for _ in 0..2 * MOST_WAITERS {
            drop(events.wait(None).unwrap());
        }
        assert!(is_ready(&first), "the one who waits longest looks again");
        assert_eq!(events.state().waiters.len(), MOST_WAITERS);
    }
}
