//! The components of a process, each opened once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::component::{Access, Cache, Component, Identity, Options};
use super::error::OpenError;
use super::fence::{Fence, Patience};
use super::lookup::{self, Located};
use super::opening::Opening;
use super::pair::Pair;

/// The components that a process has open, by identity.
///
/// There must be one registry to a process: to a second one the first one's locks are those of a stranger.
/// The registry keeps nothing open; a component is closed when the last disk that uses it drops it.
#[derive(Debug, Default)]
pub struct Registry {
    open: HashMap<Identity, Openings>,
    // How many of them there are when those that are closed are next looked for.
    sweep_at: usize,
    fence: Fence,
}

/// The openings of one component.
#[derive(Debug, Default)]
struct Openings {
    writer: Known,
    reader: Known,
    pair: Arc<Pair>,
}

/// An opening, and the newest component that was made of it.
#[derive(Debug, Default)]
struct Known {
    opening: Weak<Opening>,
    newest: Weak<Component>,
}

impl Known {
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
        Registry { fence: Fence::new(patience), ..Registry::default() }
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
    /// Who only reads gets a file that is open for reading alone, whoever else of this process writes the component, so that
    /// no write can come that way. A reader's and a writer's opening know of each other: the locks of the same process are
    /// no stranger's.
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
        self.sweep(located.identity);
        let Openings { writer, reader, pair } = self.open.entry(located.identity).or_default();
        let (serving, other) = if opts.read_only { (reader, writer) } else { (writer, reader) };
        let (open, other) = (serving.opening.upgrade(), other.opening.upgrade());
        for opening in [&open, &other].into_iter().flatten() {
            fits(opening, &located, opts.cache)?;
        }
        let component = match open {
            Some(opening) => opening.again(serving.newest.upgrade(), &located)?,
            None => {
                let cache = match other.as_ref().map(|other| other.access) {
                    Some(Access::Buffered) => Cache::Buffered,
                    _ => opts.cache,
                };
                let (fence, opts) = (&mut self.fence, Options { cache, ..*opts });
                Arc::new(pair.after_our_own(|| pair.open(fence, &located, &opts))?)
            }
        };
        serving.keep(&component);
        Ok(component)
    }
}

impl Registry {
    /// Forgets those that are closed: often enough that they do not outnumber the others, and seldom enough that many cost no
    /// more for each than few. What is known of the one that is `asked` for may tell that it is just being closed.
    fn sweep(&mut self, asked: Identity) {
        if self.open.len() >= self.sweep_at {
            self.open.retain(|identity, openings| *identity == asked || openings.pair.is_open());
            self.sweep_at = 2 * self.open.len() + 16;
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// An opening that nobody can be given any more, whose file a queue has not let go of yet.
    fn closing(registry: &mut Registry, path: &str, options: &Options) -> Arc<File> {
        registry.open(path, None, options).unwrap().file()
    }

    #[test]
    fn what_this_process_is_closing_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = file.path().to_str().unwrap();
        let (writes, reads) = (Options::default(), Options { read_only: true, ..Options::default() });
        for (before, after) in [(writes, writes), (writes, reads), (reads, writes)] {
            let mut registry = Registry::new();
            let left = closing(&mut registry, path, &before);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(30));
                    drop(left);
                });
                registry.open(path, None, &after).unwrap();
            });
            // The same for one that is open, and was not locked until now.
            let left = closing(&mut registry, path, &before);
            let late = registry.open(path, None, &Options { incoming: true, ..after }).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(30));
                    drop(left);
                });
                late.take().unwrap();
            });
        }
    }

    #[test]
    fn who_opens_what_another_thread_closes_gets_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = file.path().to_str().unwrap();
        let mut registry = Registry::new();
        for n in 0..300 {
            let options = Options { read_only: n % 3 == 0, ..Options::default() };
            let last = registry.open(path, None, &options).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || drop(last));
                registry.open(path, None, &Options::default()).unwrap();
            });
        }
    }

    #[test]
    fn what_is_closed_or_refused_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::new();
        let mut kept = Vec::new();
        for n in 0..400_u64 {
            let path = dir.path().join(n.to_string());
            // Every other one is empty, and refused.
            std::fs::File::create(&path).unwrap().set_len(n % 2 * 4096).unwrap();
            let opened = registry.open(path.to_str().unwrap(), None, &Options::default());
            assert_eq!(opened.is_ok(), n % 2 == 1);
            kept.extend(opened.ok().filter(|_| n % 40 == 1));
            assert!(registry.open.len() <= 2 * kept.len() + 17, "{} for {}", registry.open.len(), kept.len());
        }
        for component in &kept {
            let again = registry.open(component.path.to_str().unwrap(), None, &Options::default()).unwrap();
            assert!(Arc::ptr_eq(component, &again), "{}", component.path.display());
        }
    }
}
