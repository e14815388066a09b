//! Whose a log is: of two targets that write to one, each would destroy the other's entries.
//!
//! A target has its log from its activation on. Another takes it over while the device of the first is suspended, as another
//! table of that device does; at any other time it is refused. Until the new one goes on the log may go back. One that has
//! lost it logs no more.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, Weak};

use super::state::State;
use crate::map::Key;

/// The logs of a process, by their devices.
#[derive(Debug, Default)]
pub struct Logs(Mutex<HashMap<Key, Claim>>);

#[derive(Debug)]
struct Claim {
    now: Weak<State>,
    // Who has it again if the other does not go on.
    before: Weak<State>,
}

impl Logs {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<Key, Claim>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// It is to have the log. False when another has it whose device is not suspended.
    pub fn take(&self, key: Key, state: &Weak<State>) -> bool {
        self.with(|all| {
            all.retain(|_, claim| claim.now.strong_count() + claim.before.strong_count() > 0);
            let claim = all.entry(key).or_insert_with(|| Claim { now: state.clone(), before: Weak::new() });
            if claim.now.ptr_eq(state) {
                return true;
            }
            if claim.now.upgrade().is_some_and(|other| !other.is_stopped()) {
                return false;
            }
            claim.before = std::mem::replace(&mut claim.now, state.clone());
            true
        })
    }

    /// It goes on. False when another has the log: it does not get it again.
    pub fn keep(&self, key: Key, state: &Weak<State>) -> bool {
        self.with(|all| {
            let Some(claim) = all.get_mut(&key) else { return false };
            let is_its = claim.now.ptr_eq(state);
            if is_its || claim.before.ptr_eq(state) {
                claim.before = Weak::new();
            }
            is_its
        })
    }

    /// It ends. Whether it may still write to the log.
    pub fn leave(&self, key: Key, state: &Weak<State>) -> bool {
        self.with(|all| {
            let Some(claim) = all.get_mut(&key) else { return false };
            if claim.now.ptr_eq(state) {
                claim.now = std::mem::take(&mut claim.before);
                return true;
            }
            // The other has not begun.
            let is_last = claim.before.ptr_eq(state);
            if is_last {
                claim.before = Weak::new();
            }
            is_last
        })
    }
}
