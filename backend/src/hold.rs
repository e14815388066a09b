//! Whether a disk's components are this process's to write, and to read: which of the two is up to how each was opened.
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
use crate::targets::Stateful;

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

    /// Whether the components are ours now.
    pub fn is_held(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).held
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

    /// The disk's table changes from `old` to `new`. Its queues have drained, and start again on `new`; or on `old`, if
    /// this fails. Of those that have a component, it waits for nobody but this process itself.
    ///
    /// # Errors
    /// Who has a component of `new`. Then everything is as before.
    pub fn exchange(&self, old: &Chain, new: &Chain) -> Result<Exchanged, OpenError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Who does not hold what the old table leads to takes the new one's with the first queue that starts; unless the new
        // one's targets write by themselves.
        if !state.held && kept(new).is_none() {
            return Ok(Exchanged(None));
        }
        let taken = take(new)?;
        let held = std::mem::replace(&mut state.held, true);
        if held {
            all(old).for_each(|component| component.leave());
        }
        Ok(Exchanged(Some((held, taken))))
    }

    /// The table is still `old`: what [`Hold::exchange`] has taken is given back, and a disk that held nothing holds nothing.
    /// No queue has started since, and nothing that the new table's targets have begun is under way.
    ///
    /// # Errors
    /// Who has a component of `old`, which was held and was given up with another disk since. Then nothing is held, and a queue
    /// does not start before it is.
    pub fn undo(&self, old: &Chain, exchanged: Exchanged) -> Result<(), OpenError> {
        let Some((held, mut taken)) = exchanged.0 else { return Ok(()) };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the others go: what both lead to is locked all the time.
        let again = if held { take(old).map(drop) } else { Ok(()) };
        state.held = held && again.is_ok();
        state.away |= again.is_err();
        taken.settle();
        taken.give_back();
        again
    }

    /// The disk's targets become live, which may write by themselves.
    ///
    /// # Errors
    /// Who has a component. Then everything is as before.
    pub fn begin(&self, chain: &Chain) -> Result<(), OpenError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.held && kept(chain).is_some() {
            take(chain)?;
            state.held = true;
        }
        Ok(())
    }

    /// The disk is no more. Locks and claims stay, for whoever else has the components; they go with the open files.
    pub fn end(&self, chain: &Chain) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.held) {
            all(chain).for_each(|component| component.leave());
        }
    }

    /// A queue has drained. With the last one everything is given up if `handed_over`.
    pub fn leave(&self, chain: &Chain, handed_over: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.queues = state.queues.saturating_sub(1);
        if state.queues > 0 || !handed_over || !state.held {
            return;
        }
        if let Some(kept) = kept(chain) {
            // What it does beside requests goes on, and its last words are still to come: both write.
            return limited!(
                chain.limiters.control,
                error,
                "{}: {kept:?} goes on writing to its components when the guest has stopped; they are kept, and the destination \
                 cannot have them",
                chain.name
            );
        }
        if let Err(error) = all(chain).try_for_each(|component| component.settle()) {
            return log::error!(
                "{}: {error}; its components are kept, and the destination cannot have them",
                chain.name
            );
        }
        (state.held, state.away) = (false, true);
        let taken: Vec<&str> = all(chain).filter(|one| !one.give_up()).map(|one| one.name.as_str()).collect();
        let stopped = format_args!("{}: the guest has stopped while it migrates", chain.name);
        if taken.is_empty() {
            limited!(chain.limiters.control, info, "{stopped}; its components are free for the destination");
        } else {
            limited!(
                chain.limiters.control,
                warn,
                "{stopped}; the destination cannot have {} until the other disks of this process that use it are handed over too",
                taken.join(", ")
            );
        }
    }
}

/// What a change of tables has taken, so that it can be undone: [`Hold::undo`]. Nothing, or whether the disk held what the old
/// table leads to, and what the new one leads to.
#[derive(Debug)]
pub struct Exchanged(Option<(bool, Taken)>);

/// Components that were taken, and which of them were not locked before.
#[derive(Debug, Default)]
struct Taken(Vec<(Arc<Component>, bool)>);

impl Taken {
    /// Targets may have written to them: who has them next must find that, or not get them.
    fn settle(&mut self) {
        for (component, locked) in self.0.iter_mut().filter(|(_, locked)| *locked) {
            if let Err(error) = component.settle() {
                log::error!("{error}; it stays locked as long as this process has it open");
                *locked = false;
            }
        }
    }

    fn give_back(self) {
        for (component, locked) in self.0 {
            // Locks that were there before are not this attempt's to give up.
            if locked { component.put_back() } else { component.leave() }
        }
    }
}

/// Takes all components of a disk, or none.
fn take(chain: &Chain) -> Result<Taken, OpenError> {
    let mut taken = Taken::default();
    for component in all(chain) {
        match component.take() {
            Ok(locked) => taken.0.push((component.clone(), locked)),
            Err(error) => {
                taken.give_back();
                return Err(error);
            }
        }
    }
    Ok(taken)
}

/// A target that writes to its components beside requests, and remembers things there.
fn kept(chain: &Chain) -> Option<&Arc<Stateful>> {
    chain.map.targets().iter().find(|target| target.is_kept())
}

fn all(chain: &Chain) -> impl Iterator<Item = &Arc<Component>> {
    chain.reached().map(|(_, component)| component)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    use dm_table::{Format, Source};

    use crate::device::{Options, Registry, Slots};
    use crate::map::{Lower, Map};

    /// Image files, and tables over them.
    struct Bench {
        dir: tempfile::TempDir,
        registry: Registry,
        slots: Slots,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { dir: tempfile::tempdir().unwrap(), registry: Registry::new(), slots: Slots::default() }
        }

        fn path(&self, name: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            if !path.exists() {
                std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
            }
            path
        }

        fn chain(&mut self, names: &[&str], incoming: bool) -> Chain {
            let line = |(n, name): (usize, &&str)| format!("{} 8 linear {} 0\n", 8 * n, self.path(name).display());
            let text: String = names.iter().enumerate().map(line).collect();
            self.table(&names.concat(), text, incoming)
        }

        fn mirror(&mut self, names: &[&str], incoming: bool) -> Chain {
            let legs: String = names.iter().map(|name| format!(" {} 0", self.path(name).display())).collect();
            self.table(&names.concat(), format!("0 8 mirror core 1 8 {}{legs}\n", names.len()), incoming)
        }

        fn table(&mut self, name: &str, text: String, incoming: bool) -> Chain {
            let source = Arc::new(Source::new("test", text));
            let file = dm_table::parse(source.clone(), Format::Auto).unwrap();
            let options = Options { incoming, ..Options::default() };
            let mut components = Vec::new();
            let map = Map::build(&source, &file.devices[0].table, false, &mut |dev| {
                let component = self.registry.open(&dev.text, None, &options).unwrap();
                let ix = self.slots.slot(&component).unwrap();
                components.push((ix, component.clone()));
                Ok(Lower::Device { ix, name: dev.text.clone(), size: component.size, limits: component.limits })
            });
            Chain {
                name: name.to_owned(),
                map: Arc::new(map.unwrap().0),
                components: components.into_iter().collect(),
                read_only: false,
                limiters: Arc::default(),
                events: Arc::default(),
            }
        }

        /// A stranger's opening, if it is let in.
        fn stranger(&self, name: &str) -> Option<Arc<Component>> {
            Registry::new().open(self.path(name).to_str().unwrap(), None, &Options::default()).ok()
        }

        fn free(&self, names: &[&str]) -> Vec<bool> {
            names.iter().map(|name| self.stranger(name).is_some()).collect()
        }
    }

    #[test]
    fn a_change_of_tables_takes_the_new_components_and_leaves_the_old_to_whom_has_them() {
        let mut bench = Bench::new();
        let hold = Hold::new(true);
        let old = bench.chain(&["a", "b"], true);
        hold.enter(&old, || true).unwrap();
        assert_eq!(bench.free(&["a", "b", "c"]), [false, false, true]);
        let new = bench.chain(&["b", "c"], true);
        assert!(bench.free(&["c"])[0], "not before the tables change");
        hold.exchange(&old, &new).unwrap();
        assert_eq!(bench.free(&["a", "b", "c"]), [false; 3], "the old table may be somebody's");
        drop(old);
        assert_eq!(bench.free(&["a", "b", "c"]), [true, false, false]);
        hold.leave(&new, true);
        assert_eq!(bench.free(&["a", "b", "c"]), [true; 3]);
    }

    #[test]
    fn a_change_that_fails_leaves_everything_as_it_was() {
        let mut bench = Bench::new();
        let hold = Hold::new(true);
        let old = bench.chain(&["a"], true);
        hold.enter(&old, || true).unwrap();
        // "b" was locked when it was opened, "c" would be by the change.
        let (_opened, new) = (bench.chain(&["b"], false), bench.chain(&["a", "b", "c", "d"], true));
        let theirs = bench.stranger("d").unwrap();
        let error = hold.exchange(&old, &new).unwrap_err();
        assert!(error.to_string().contains("/d: "), "{error}");
        assert_eq!(bench.free(&["a", "b", "c"]), [false, false, true]);
        drop(theirs);
        hold.exchange(&old, &new).unwrap();
        assert_eq!(bench.free(&["a", "b", "c", "d"]), [false; 4]);
        hold.leave(&new, true);
        assert_eq!(bench.free(&["a", "b", "c", "d"]), [true; 4], "each is counted once");
    }

    #[test]
    fn a_disk_that_is_not_served_takes_the_new_components_with_its_first_queue() {
        let mut bench = Bench::new();
        let hold = Hold::new(true);
        let (old, new) = (bench.chain(&["a"], true), bench.chain(&["b"], true));
        hold.exchange(&old, &new).unwrap();
        assert_eq!(bench.free(&["a", "b"]), [true; 2]);
        hold.enter(&new, || true).unwrap();
        assert_eq!(bench.free(&["a", "b"]), [true, false]);
    }

    #[test]
    fn what_was_taken_for_a_change_that_is_undone_is_given_back() {
        let mut bench = Bench::new();
        let hold = Hold::new(true);
        let (plain, mirror) = (bench.chain(&["a"], true), bench.mirror(&["b", "c"], true));
        let theirs = bench.stranger("a").unwrap();
        let exchanged = hold.exchange(&plain, &mirror).unwrap();
        assert_eq!(bench.free(&["b", "c"]), [false; 2]);
        hold.undo(&plain, exchanged).unwrap();
        assert!(!hold.is_held());
        assert_eq!(bench.free(&["b", "c"]), [true; 2]);
        hold.enter(&plain, || false).unwrap_err();
        drop(theirs);
        hold.enter(&plain, || false).unwrap();
        assert_eq!(bench.free(&["a"]), [false]);
        hold.leave(&plain, true);
        assert_eq!(bench.free(&["a", "b", "c"]), [true; 3], "each is counted once");
    }

    #[test]
    fn a_disk_that_is_held_is_so_after_a_change_that_is_undone() {
        let mut bench = Bench::new();
        let (hold, other) = (Hold::new(true), Hold::new(true));
        let (old, new) = (bench.chain(&["a", "b"], true), bench.mirror(&["b", "c"], true));
        hold.enter(&old, || true).unwrap();
        let exchanged = hold.exchange(&old, &new).unwrap();
        hold.leave(&old, false);
        hold.undo(&old, exchanged).unwrap();
        assert_eq!((hold.is_held(), bench.free(&["a", "b", "c"])), (true, vec![false, false, true]));
        hold.enter(&old, || false).unwrap();
        hold.leave(&old, true);
        assert_eq!(bench.free(&["a", "b", "c"]), [true; 3], "each is counted once");
        // Another disk was handed over meanwhile, and took along what was the old table's.
        hold.enter(&old, || true).unwrap();
        let shared = bench.chain(&["a"], true);
        other.enter(&shared, || true).unwrap();
        let exchanged = hold.exchange(&old, &new).unwrap();
        hold.leave(&old, false);
        other.leave(&shared, true);
        let theirs = bench.stranger("a").unwrap();
        hold.undo(&old, exchanged).unwrap_err();
        assert!(!hold.is_held());
        hold.enter(&old, || false).unwrap_err();
        drop(theirs);
        hold.enter(&old, || false).unwrap();
        assert_eq!(bench.free(&["a", "b"]), [false; 2]);
        // One that was not taken is none to give back.
        let idle = Hold::new(true);
        let exchanged = idle.exchange(&shared, &shared).unwrap();
        idle.undo(&shared, exchanged).unwrap();
        hold.leave(&old, true);
        assert_eq!(bench.free(&["a", "b"]), [true; 2]);
    }

    #[test]
    fn a_disk_that_shares_a_component_keeps_it_when_the_other_leaves() {
        let mut bench = Bench::new();
        let (one, two) = (Hold::new(true), Hold::new(true));
        let (shared, other) = (bench.chain(&["a"], true), bench.chain(&["b"], true));
        one.enter(&shared, || true).unwrap();
        two.enter(&shared, || true).unwrap();
        one.exchange(&shared, &other).unwrap();
        assert_eq!(bench.free(&["a", "b"]), [false; 2]);
        one.leave(&other, true);
        assert_eq!(bench.free(&["a", "b"]), [false, true]);
        two.leave(&shared, true);
        assert_eq!(bench.free(&["a", "b"]), [true; 2]);
    }

    #[test]
    fn a_disk_that_is_removed_does_not_keep_another_from_going() {
        let mut bench = Bench::new();
        let (one, two) = (Hold::new(false), Hold::new(false));
        let (gone, stays) = (bench.chain(&["a"], false), bench.chain(&["a"], false));
        one.enter(&gone, || true).unwrap();
        two.enter(&stays, || true).unwrap();
        one.leave(&gone, false);
        one.end(&gone);
        one.end(&gone);
        drop((one, gone));
        assert_eq!(bench.free(&["a"]), [false]);
        two.leave(&stays, true);
        assert_eq!(bench.free(&["a"]), [true]);
    }

    #[test]
    fn a_table_that_writes_by_itself_takes_its_components_before_anyone_is_served() {
        let mut bench = Bench::new();
        let (hold, other) = (Hold::new(true), Hold::new(true));
        let (plain, mirror) = (bench.chain(&["a"], true), bench.mirror(&["a", "b"], true));
        let theirs = bench.stranger("b").unwrap();
        hold.exchange(&plain, &mirror).unwrap_err();
        assert_eq!(bench.free(&["a"]), [true]);
        drop(theirs);
        hold.exchange(&plain, &mirror).unwrap();
        assert_eq!(bench.free(&["a", "b"]), [false; 2]);
        // A disk that is served by one of its legs gives that up, and the mirror does not.
        other.enter(&plain, || true).unwrap();
        other.leave(&plain, true);
        assert_eq!(bench.free(&["a", "b"]), [false; 2]);
        // Nor when it is served itself.
        hold.enter(&mirror, || true).unwrap();
        hold.leave(&mirror, true);
        assert_eq!(bench.free(&["a", "b"]), [false; 2]);
        // Nobody is served what comes after it.
        hold.exchange(&mirror, &plain).unwrap();
        drop(mirror);
        assert_eq!(bench.free(&["a", "b"]), [false, true]);
        hold.enter(&plain, || true).unwrap();
        hold.leave(&plain, true);
        assert_eq!(bench.free(&["a"]), [true]);
    }
}
