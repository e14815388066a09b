//! A component that one process has open twice, for reading and for writing.
//!
//! To the kernel the locks of the two openings are those of two strangers, of whom one excludes the other. So the reader
//! gives up what excludes a writer as long as there is a writer that has its own locks: these exclude all others for both.
//! The reader takes it back before the writer's locks end.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::component::{Component, Options};
use super::error::OpenError;
use super::fence::Fence;
use super::locks::{self, Refusal, Use};
use super::lookup::Located;
use super::opening::Opening;

/// The openings of a component, and whose turn it is to change their locks.
#[derive(Debug, Default)]
pub(super) struct Pair(Mutex<Both>);

#[derive(Debug, Default)]
pub(super) struct Both {
    reader: Weak<Opening>,
    writer: Weak<Opening>,
}

/// What the locks of an opening are taken beside.
pub(super) enum Beside {
    /// Nothing of this process's.
    Nothing,
    /// A writer that has its own.
    Writer,
    /// A reader, which has let a writer in.
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
        self.locked(opts.read_only, !opts.incoming, |both, beside| {
            let component = fence.open(located, opts, (beside, self))?;
            let opening = Arc::downgrade(&component.opening);
            *(if opts.read_only { &mut both.reader } else { &mut both.writer }) = opening;
            Ok(component)
        })
    }

    /// Does `lock` while no other locks of the pair change. What it takes is for a reader, or for a writer; the locks of the
    /// other opening are as that needs it, if `take`, and are as they were if it fails.
    pub fn locked<T>(
        &self,
        reads: bool,
        take: bool,
        lock: impl FnOnce(&mut Both, &Beside) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        // Let go of after the guard: an opening that is dropped wants its turn.
        let other: Option<Arc<Opening>>;
        let mut both = self.turn();
        other = if reads { both.writer.upgrade() } else { both.reader.upgrade() };
        let beside = match other.as_ref().map(|other| other.state()).filter(|state| state.owned && take) {
            None => Beside::Nothing,
            Some(_) if reads => Beside::Writer,
            // A file system without locks has already been warned of, and there is nothing to give up.
            Some(reader) if locks::let_writer_in(&reader.file).is_ok() => Beside::Reader(reader.file.clone()),
            Some(_) => Beside::Nothing,
        };
        let done = lock(&mut both, &beside);
        if let (Err(_), Beside::Reader(file)) = (&done, &beside) {
            shut(file);
        }
        done
    }

    /// The writer's locks end. `held`: it had some.
    pub fn writer_ends(&self, held: bool) {
        let reader: Option<Arc<Opening>>;
        let both = self.turn();
        reader = both.reader.upgrade();
        if let Some(state) = reader.as_ref().map(|reader| reader.state()).filter(|state| state.owned && held) {
            shut(&state.file);
        }
    }

    fn turn(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader excludes writers again.
fn shut(reader: &File) {
    if let Err(error) = locks::shut_writers_out(reader) {
        log::error!("a component that is read cannot be locked against writers any more: {error}");
    }
}

impl Beside {
    /// Takes the locks for `usage`.
    pub fn acquire(&self, file: &File, usage: Use) -> Result<(), Refusal> {
        match self {
            Beside::Writer => locks::join(file),
            Beside::Nothing | Beside::Reader(_) => locks::acquire(file, usage),
        }
    }
}
