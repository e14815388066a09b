//! Making durable what was written, with a caller who may lose patience.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::chain::Chain;
use crate::control::schema::Waiting;
use crate::device::Component;

use super::{Caller, DmError, Verb, system};

/// Time between two looks at whether the caller is still there.
const LOOK: Duration = Duration::from_millis(50);
/// Time between two words to the caller.
const WORD: Duration = Duration::from_secs(1);

/// Components that the old chain writes and a flush of the new one does not reach.
pub(super) fn left(old: &Chain, new: &Chain) -> Vec<Arc<Component>> {
    let reached = |component: &Component| new.written().any(|reached| reached.identity == component.identity);
    written(old).into_iter().filter(|component| !reached(component)).collect()
}

/// Components that a chain writes.
pub(super) fn written(chain: &Chain) -> Vec<Arc<Component>> {
    // Memory is all the storage that a mapped file has.
    chain.written().filter(|component| component.unflushed.is_some()).cloned().collect()
}

/// Makes durable what was written to these components. A device that does not answer is left to a thread that waits for it,
/// as nobody can call a flush back.
///
/// # Errors
/// What was written is lost, or may be; or the caller is gone (EINTR).
pub(super) fn sync(components: Vec<Arc<Component>>, caller: &dyn Caller) -> Verb<()> {
    if components.is_empty() {
        return Ok(());
    }
    let (answer, ended) = channel();
    let names: Vec<&str> = components.iter().map(|component| component.name.as_str()).collect();
    let what = format!("waiting for a flush of {}", names.join(", "));
    std::thread::Builder::new()
        .name("flush".into())
        .spawn(move || {
            let ended = components.iter().try_for_each(|component| flush(component));
            // Whoever is told may look whether we have them open.
            drop(components);
            answer.send(ended)
        })
        .map_err(|error| system(&error))?;
    let mut told = Instant::now();
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(ended) => return ended,
            Err(RecvTimeoutError::Disconnected) => return Err(DmError::new(libc::EIO)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if caller.gone() {
            return Err(DmError::new(libc::EINTR));
        }
        if told.elapsed() >= WORD {
            told = Instant::now();
            caller.tell(&Waiting { what: what.clone(), under_way: Vec::new() });
        }
    }
}

fn flush(component: &Component) -> Verb<()> {
    component.sync().map_err(|error| {
        let why = system(&error);
        let path = component.path.display();
        let detail = format!("{path}: what was written is not on it: {error}; --noflush goes on all the same");
        DmError { detail: Some(detail), ..why }
    })
}
