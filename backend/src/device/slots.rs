//! The numbering of a process's components: what a [`DevIx`] stands for.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::component::{Component, Identity};
use crate::map::{DevIx, LookupError};

/// Most components that a process has numbers for.
const MOST: usize = 1 << u16::BITS;

/// Gives component devices their numbers. All components that were made of one device, for reading and for writing, before
/// it grew and after, have the same one; in a chain one of them stands for it. A number belongs to a device until nothing
/// has a component of it any more: every chain, queue and statistic that knows it by its number also keeps one.
#[derive(Debug, Default)]
pub struct Slots {
    // The components of each device, none of them dead when it was last looked at.
    places: Vec<Vec<Weak<Component>>>,
    by_identity: HashMap<Identity, DevIx>,
    // Descending, so that the lowest is taken first: vectors indexed by them stay short.
    free: Vec<DevIx>,
    since_sweep: usize,
}

impl Slots {
    /// The number of a component.
    ///
    /// # Errors
    /// There are 65536 other components (EMFILE).
    pub fn slot(&mut self, component: &Arc<Component>) -> Result<DevIx, LookupError> {
        if let Some(ix) = self.by_identity.get(&component.identity) {
            let known = &mut self.places[usize::from(ix.0)];
            if !known.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(component))) {
                known.retain(|known| known.strong_count() > 0);
                known.push(Arc::downgrade(component));
            }
            return Ok(*ix);
        }
        // Often enough that the dead do not outnumber the living, and seldom enough that many components cost no more
        // for each than few.
        if self.free.is_empty() && (2 * self.since_sweep >= self.places.len() || self.places.len() == MOST) {
            self.sweep();
        }
        let ix = match self.free.pop() {
            Some(ix) => ix,
            None => self.append()?,
        };
        self.since_sweep += 1;
        self.places[usize::from(ix.0)] = vec![Arc::downgrade(component)];
        self.by_identity.insert(component.identity, ix);
        Ok(ix)
    }

    fn append(&mut self) -> Result<DevIx, LookupError> {
        let ix = u16::try_from(self.places.len()).map(DevIx).map_err(|_| LookupError {
            errno: "EMFILE",
            why: format!("{MOST} component devices are open in this process, and there are no numbers for more"),
            help: Some("remove devices whose components are not needed any more".into()),
        })?;
        self.places.push(Vec::new());
        Ok(ix)
    }

    fn sweep(&mut self) {
        self.since_sweep = 0;
        for place in &mut self.places {
            place.retain(|component| component.strong_count() > 0);
        }
        let places = &self.places;
        self.by_identity.retain(|_, ix| !places[usize::from(ix.0)].is_empty());
        let dead = (0..=u16::MAX).map(DevIx).zip(&self.places).filter(|(_, place)| place.is_empty());
        self.free = dead.map(|(ix, _)| ix).collect();
        self.free.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    use dm_table::Sectors;

    use crate::device::{Access, Limits};

    fn component(number: usize) -> Arc<Component> {
        let file = std::fs::File::open("/dev/null").unwrap();
        Arc::new(Component::simulated(file, number, Sectors::new(8), Limits::plain(), Access::Mapped))
    }

    #[test]
    fn a_component_keeps_its_number_while_anything_has_it() {
        let mut slots = Slots::default();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut living: Vec<(Arc<Component>, DevIx)> = Vec::new();
        let mut highest = 0;
        for n in 0..2000 {
            if rng.bool() || living.is_empty() {
                let new = component(n);
                let ix = slots.slot(&new).unwrap();
                living.push((new, ix));
            } else {
                living.swap_remove(rng.usize(..living.len()));
            }
            let numbers: HashSet<DevIx> = living.iter().map(|(_, ix)| *ix).collect();
            assert_eq!(numbers.len(), living.len(), "no two have the same");
            for (component, ix) in &living {
                assert_eq!(slots.slot(component).unwrap(), *ix);
            }
            highest = highest.max(living.len());
            assert!(slots.places.len() <= 2 * highest + 2, "{} numbers for {highest} components", slots.places.len());
        }
    }

    #[test]
    fn what_was_made_of_one_device_has_one_number() {
        let mut slots = Slots::default();
        let (first, other, second) = (component(7), component(8), component(7));
        let ix = slots.slot(&first).unwrap();
        assert_eq!(slots.slot(&second).unwrap(), ix);
        assert_ne!(slots.slot(&other).unwrap(), ix);
        drop(first);
        slots.sweep();
        assert_eq!(slots.slot(&second).unwrap(), ix, "it is there as long as one of them is");
        drop(second);
        slots.sweep();
        assert_eq!(slots.slot(&component(9)).unwrap(), ix);
    }

    #[test]
    fn one_component_after_another_takes_no_further_numbers() {
        let mut slots = Slots::default();
        for n in 0..1000 {
            assert!(slots.slot(&component(n)).unwrap() <= DevIx(1));
        }
    }

    #[test]
    fn there_are_as_many_as_numbers_and_the_next_is_refused() {
        let mut slots = Slots::default();
        let first = component(0);
        assert_eq!(slots.slot(&first).unwrap(), DevIx(0));
        // So many open files no process has; what counts is that their places are taken.
        let dear = component(1);
        slots.places.resize(MOST, vec![Arc::downgrade(&dear)]);
        let error = slots.slot(&component(2)).unwrap_err();
        assert_eq!(error.errno, "EMFILE");
        assert_eq!(slots.slot(&first).unwrap(), DevIx(0));
        drop(dear);
        assert_eq!(slots.slot(&component(3)).unwrap(), DevIx(1));
    }
}
