//! A component that one process has open twice, for reading and for writing.
//!
//! To the kernel the locks of the two openings are those of two strangers, of whom one excludes the other. So the reader
//! gives up what excludes a writer as long as there is a writer that has its own locks: these exclude all others for both.
//! The reader gives it up when the writer's locks are there, and takes it back before they end, be it that the writer is
//! refused, that it is closed or that it is handed over: at no time can a stranger come in that writes what is read.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::component::{Component, Options};
use super::error::OpenError;
use super::fence::Fence;
use super::locks::{self, Refusal, Use};
use super::lookup::Located;
use super::opening::{Opening, State};
use crate::limit::Limiter;
use crate::limited;

/// How long one of this process's threads is waited for that has the file of an opening that ends.
const OPEN: Duration = Duration::from_secs(5);
/// How long the kernel is waited for, after that, to let go of what nobody has any more.
const LETTING_GO: Duration = Duration::from_secs(2);
/// How long, after that, what some living process has is waited for: this one may be it, between two lines of a thread.
const UNTOLD: Duration = Duration::from_millis(250);
/// First and longest time between two attempts.
const NAPS: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// The openings of a component, and whose turn it is to change their locks.
#[derive(Debug, Default)]
pub(super) struct Pair(Mutex<Both>);

#[derive(Debug, Default)]
pub(super) struct Both {
    reader: Weak<Opening>,
    writer: Weak<Opening>,
    // Files of those that have ended: all that somebody still has, and the last.
    ended: Vec<Weak<File>>,
    limiter: Limiter,
}

/// What the locks of an opening are taken beside.
pub(super) enum Beside {
    /// Nothing of this process's.
    Nothing,
    /// A writer that has its own.
    Writer,
    /// A reader, which lets the writer in.
    Reader(Arc<File>),
}

impl Pair {
    /// Opens the component for a use for which this process does not have it open.
    ///
    /// # Errors
    /// Who else has it.
    pub fn open(
        self: &Arc<Self>,
        fence: &mut Fence,
        located: &Located,
        opts: &Options,
    ) -> Result<Component, OpenError> {
        // Let go of after the guard: an opening that is dropped wants its turn.
        let other: Option<Arc<Opening>>;
        let mut both = self.turn();
        other = both.other(opts.read_only);
        let component = both.beside(other.as_deref().filter(|_| !opts.incoming), opts.read_only, |beside| {
            fence.open(located, opts, (beside, self))
        })?;
        let opening = Arc::downgrade(&component.opening);
        *(if opts.read_only { &mut both.reader } else { &mut both.writer }) = opening;
        Ok(component)
    }

    /// A disk that leads to the opening starts to be served: `lock` takes locks and claim unless they are there. Tells whether
    /// they were not.
    pub fn taken(
        &self,
        opening: &Opening,
        lock: impl FnOnce(&mut State, &Beside) -> Result<(), OpenError>,
    ) -> Result<bool, OpenError> {
        let other: Option<Arc<Opening>>;
        let both = self.turn();
        other = both.other(opening.read_only);
        let mut state = opening.state();
        let locks = !state.owned;
        if locks {
            both.beside(other.as_deref(), opening.read_only, |beside| lock(&mut state, beside))?;
        }
        state.users += 1;
        Ok(locks)
    }

    /// A disk that leads to the opening is not served any more. With the last one locks and claim go. `handed_over`: so that
    /// another process can have the component, for which those of the other opening must go too unless it is served itself. Tells whether nothing of this process is in the
    /// way of that.
    pub fn given_up(&self, opening: &Opening, handed_over: bool) -> bool {
        let other: Option<Arc<Opening>>;
        let both = self.turn();
        other = both.other(opening.read_only);
        let mut state = opening.state();
        state.users = state.users.saturating_sub(1);
        if state.users > 0 {
            return false;
        }
        let mut beside = other.as_deref().map(|other| (other, other.state())).filter(|(_, state)| state.owned);
        if let Some((other, its)) = beside.as_mut() {
            if handed_over && its.users == 0 {
                other.release(its);
            } else if !opening.read_only {
                shut(&its.file);
            }
        }
        if state.owned {
            opening.release(&mut state);
        }
        let Some((_, its)) = beside.filter(|(_, its)| its.owned) else { return !state.owned };
        if state.owned && !opening.read_only {
            // The writer has failed to let go.
            let _ = locks::let_writer_in(&its.file);
        }
        false
    }

    /// The locks of an opening end, with its file. `held`: it had some.
    pub fn ends(&self, read_only: bool, held: bool, file: Weak<File>) {
        let reader: Option<Arc<Opening>>;
        let mut both = self.turn();
        both.ended.retain(|file| file.strong_count() > 0);
        both.ended.push(file);
        let told = if read_only { &mut both.reader } else { &mut both.writer };
        if told.strong_count() == 0 {
            *told = Weak::new();
        }
        reader = both.reader.upgrade().filter(|_| held && !read_only);
        if let Some(state) = reader.as_ref().map(|reader| reader.state()).filter(|state| state.owned) {
            shut(&state.file);
        }
    }

    /// Tries what the locks of an opening may be in the way of that this process is just closing: those are no other
    /// user's. An opening ends when its last user has dropped it, on whatever thread that is, and its file when no queue has
    /// it any more; so this must not be called by who has its turn.
    pub fn after_our_own<T>(&self, mut attempt: impl FnMut() -> Result<T, OpenError>) -> Result<T, OpenError> {
        let (mut open, mut closed, mut nap) = (Duration::ZERO, Duration::ZERO, NAPS[0]);
        loop {
            let error = match attempt() {
                Err(error) if error.is_taken() => error,
                ended => return ended,
            };
            // Looked at after the attempt: what was closed between the two must be tried again.
            let (waited, most) = match self.ending() {
                None => return Err(error),
                Some(true) => {
                    closed = Duration::ZERO;
                    (&mut open, OPEN)
                }
                Some(false) if error.is_passing() => (&mut closed, LETTING_GO),
                Some(false) => (&mut closed, UNTOLD),
            };
            if *waited >= most {
                self.forget();
                return Err(error);
            }
            std::thread::sleep(nap);
            *waited += nap;
            nap = (2 * nap).min(NAPS[1]);
        }
    }

    /// Whether an opening of this process that has ended, or ends now, still has its file; if there has been one.
    fn ending(&self) -> Option<bool> {
        let both = self.turn();
        let untold = |opening: &Weak<Opening>| opening.strong_count() == 0 && !opening.ptr_eq(&Weak::new());
        let is_open = |file: &Weak<File>| file.strong_count() > 0;
        if untold(&both.reader) || untold(&both.writer) || both.ended.iter().any(is_open) {
            return Some(true);
        }
        (!both.ended.is_empty()).then_some(false)
    }

    /// It is not this process that has it: who asks again need not wait again.
    fn forget(&self) {
        let mut both = self.turn();
        if both.ended.iter().all(|file| file.strong_count() == 0) {
            both.ended.clear();
        }
    }

    /// Whether an opening, or the file of one that has ended, is there.
    pub fn is_open(&self) -> bool {
        let both = self.turn();
        // One that has ended is there until it has said so.
        [&both.reader, &both.writer].iter().any(|opening| !opening.ptr_eq(&Weak::new()))
            || both.ended.iter().any(|file| file.strong_count() > 0)
    }

    fn turn(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Both {
    /// The other opening than that for reading, or for writing.
    fn other(&self, reads: bool) -> Option<Arc<Opening>> {
        if reads { self.writer.upgrade() } else { self.reader.upgrade() }
    }

    /// Does `lock` with the locks of the `other` opening as that needs it. They are as they were if it fails.
    fn beside<T>(
        &self,
        other: Option<&Opening>,
        reads: bool,
        lock: impl FnOnce(&Beside) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let beside = match other.map(Opening::state).filter(|state| state.owned) {
            None => Beside::Nothing,
            Some(_) if reads => Beside::Writer,
            Some(reader) => Beside::Reader(reader.file.clone()),
        };
        let done = lock(&beside);
        // No program comes in that heeds locks; whoever does must not go unnoticed.
        if let (Err(_), Beside::Reader(file), Some(reader)) = (&done, &beside, other)
            && let Some(why) = locks::intruder(file)
        {
            let path = reader.path.display();
            limited!(self.limiter, error, "{path}: it is locked for reading, and may change all the same: {why}");
        }
        done
    }
}

/// The reader excludes writers again.
fn shut(reader: &File) {
    if let Err(error) = locks::shut_writers_out(reader) {
        log::error!("a component that is read cannot be locked against writers any more: {error}");
    }
}

impl Beside {
    /// Takes the locks for `usage`. After a refusal they are given back, with [`Beside::give_back`].
    pub fn acquire(&self, file: &File, usage: Use) -> Result<(), Refusal> {
        match self {
            Beside::Writer => locks::join(file),
            Beside::Nothing => locks::acquire(file, usage),
            Beside::Reader(reader) => {
                locks::announce(file, usage)?;
                // If it does not, the writer finds that.
                let _ = locks::let_writer_in(reader);
                locks::check(file, usage)
            }
        }
    }

    /// The locks that were acquired, all or some of them, are given up; `file` must not be closed before.
    pub fn give_back(&self, file: &File) {
        if let Beside::Reader(reader) = self {
            shut(reader);
        }
        let _ = locks::release(file);
    }
}

#[cfg(test)]
mod tests;
