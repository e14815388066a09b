//! Whose a log is: of two targets that write to one, each would destroy the other's entries.
//!
//! A target has its log from its activation until it is live no longer and all of it is written. Meanwhile another table of the
//! same device may take it over, whose verbs come one after the other; other devices are refused, suspended or not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::state::State;
use crate::event::Events;
use crate::map::Key;
use crate::targets::Refused;

/// The logs of a process, by their devices.
#[derive(Debug, Default)]
pub struct Logs(Mutex<HashMap<Key, Claim>>);

#[derive(Debug)]
struct Claim {
    device: Arc<Events>,
    // Of its tables, of which one writes at a time.
    targets: Vec<Weak<State>>,
}

impl Claim {
    /// # Errors
    /// Why a target of a device may not write to the log.
    fn admits(&self, device: Option<&Arc<Events>>) -> Result<(), Refused> {
        if !device.is_some_and(|device| Arc::ptr_eq(device, &self.device)) {
            let name = self.device.name();
            return Err(format!(
                "log-writes: device `{name}` writes its log to the same device, suspended or not, and each would destroy the \
                 other's entries: give each a device of its own, or remove `{name}` or load another table into it first"
            ));
        }
        if self.targets.iter().filter_map(Weak::upgrade).any(|other| !other.is_stopped()) {
            return Err(
                "log-writes: another line of the table writes its log to the same device, and each would destroy the \
                        other's entries: give each a device of its own"
                    .into(),
            );
        }
        Ok(())
    }
}

impl Logs {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<Key, Claim>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A target of a device is to have the log.
    ///
    /// # Errors
    /// Another has it.
    pub fn take(&self, key: Key, device: Option<Arc<Events>>, state: &Weak<State>) -> Result<(), Refused> {
        self.with(|all| {
            all.retain(|_, claim| {
                claim.targets.retain(|target| target.strong_count() > 0);
                !claim.targets.is_empty()
            });
            if let Some(claim) = all.get_mut(&key) {
                if !claim.targets.iter().any(|target| target.ptr_eq(state)) {
                    claim.admits(device.as_ref())?;
                    claim.targets.push(state.clone());
                }
                return Ok(());
            }
            // One whose device is not known is the only one of it.
            all.insert(key, Claim { device: device.unwrap_or_default(), targets: vec![state.clone()] });
            Ok(())
        })
    }

    /// A target writes to the log no more.
    pub fn leave(&self, key: Key, state: &Weak<State>) {
        self.with(|all| {
            if let Some(claim) = all.get_mut(&key) {
                claim.targets.retain(|target| !target.ptr_eq(state));
                if claim.targets.is_empty() {
                    all.remove(&key);
                }
            }
        });
    }
}
