//! The components of a process, each opened once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::component::{Access, Cache, Component, Identity, Options};
use super::error::OpenError;
use super::fence::{Fence, Patience};
use super::locks;
use super::lookup::{self, Located};
use super::opening::Opening;

/// The components that a process has open, by identity.
///
/// There must be one registry to a process: to a second one the first one's locks are those of a stranger.
/// The registry keeps nothing open; a component is closed when the last disk that uses it drops it.
#[derive(Debug, Default)]
pub struct Registry {
    open: HashMap<Identity, Openings>,
    fence: Fence,
}

/// The openings of one component.
#[derive(Debug, Default)]
struct Openings {
    writer: Known,
    reader: Known,
}

/// An opening, and the newest component that was made of it.
#[derive(Debug, Default)]
struct Known {
    opening: Weak<Opening>,
    newest: Weak<Component>,
}

impl Known {
    fn is_open(&self) -> bool {
        self.opening.strong_count() > 0
    }

    fn keep(&mut self, component: &Arc<Component>) {
        *self = Known { opening: Arc::downgrade(&component.opening), newest: Arc::downgrade(component) };
    }
}

impl Registry {
    /// A registry without components. What others have is refused at once.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// The same, but what nobody who lives has is waited for: see [`Patience`].
    pub fn patient(patience: Patience) -> Registry {
        Registry { open: HashMap::new(), fence: Fence::new(patience) }
    }

    /// From now on what dead processes have is waited for in this way.
    pub fn wait(&mut self, patience: Patience) {
        self.fence = Fence::new(patience);
    }

    /// Opens the component that a table names, or gives the opening that serves for this use too.
    ///
    /// `text` is the device text of the table line. `major_minor` is its `%u:%u` form where it has exactly that
    /// form; it is looked up as a number then, and otherwise as a path (dm's `dm_devt_from_path`). Regular
    /// files are an extension.
    ///
    /// A component that is open writable serves read-only users as well. One that is open for reading is
    /// opened a second time for a writer, under the locks of the same process.
    ///
    /// What is given has the size and the limits that the device has now. A component that was given before is given again
    /// as long as they are the same, and goes on with those that it has when they are not: see [`Component`].
    pub fn open(
        &mut self,
        text: &str,
        major_minor: Option<(u64, u64)>,
        opts: &Options,
    ) -> Result<Arc<Component>, OpenError> {
        let located = lookup::locate(text, major_minor)?;
        self.open.retain(|_, openings| openings.writer.is_open() || openings.reader.is_open());
        let openings = self.open.entry(located.identity).or_default();
        let reader = openings.reader.opening.upgrade();
        let serving = match openings.writer.is_open() || !opts.read_only {
            true => &mut openings.writer,
            false => &mut openings.reader,
        };
        let component = match serving.opening.upgrade() {
            Some(opening) => {
                fits(&opening, &located, opts.cache)?;
                opening.again(serving.newest.upgrade(), &located)?
            }
            None => match reader {
                None => Arc::new(self.fence.open(&located, opts)?),
                Some(reader) => beside(&mut self.fence, &reader, &located, opts)?,
            },
        };
        serving.keep(&component);
        Ok(component)
    }
}

/// Opens a writer beside this process's own reader. The reader's locks cannot be told from a stranger's, so
/// those that exclude a writer are given up; from then on the writer's locks, which the reader keeps alive,
/// stand for both. A stranger who writes in between makes the opening fail.
fn beside(fence: &mut Fence, reader: &Opening, located: &Located, opts: &Options) -> Result<Arc<Component>, OpenError> {
    let io_error = |source| OpenError::Io { path: located.path.clone(), doing: "cannot change its locks", source };
    // A file system without locks has already been warned of, and there is nothing to give up.
    let locked = locks::let_writer_in(&reader.file()).is_ok();
    match fence.open(located, opts) {
        Ok(writer) => {
            let writer = Arc::new(writer);
            // Never set before: a writer that a reader keeps alive is found by its Weak and shared.
            let _ = reader.writer.set(writer.opening.clone());
            Ok(writer)
        }
        Err(error) => {
            if locked {
                locks::shut_writers_out(&reader.file()).map_err(io_error)?;
            }
            Err(error)
        }
    }
}

/// Whether an opening that exists is what a further user asks for.
fn fits(opening: &Opening, located: &Located, cache: Cache) -> Result<(), OpenError> {
    let why = match (cache, opening.access) {
        (Cache::Direct, Access::Buffered | Access::Mapped) => "this process has it open through the page cache already",
        (Cache::Buffered, Access::Direct { .. }) => "this process has it open with direct I/O already",
        _ => return Ok(()),
    };
    Err(OpenError::Conflict { path: located.path.clone(), why: why.into() })
}
