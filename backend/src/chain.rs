//! A table made real: the map, and the opened component devices it leads to. Workers serve from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dm_table::Sectors;

use crate::device::Component;
use crate::event::Events;
use crate::guest::Mapping;
use crate::limit::Limiters;
use crate::map::{DevIx, Map};

/// Errors of a component after which no more events are raised for it (DM_IO_ERROR_THRESHOLD of dm-stripe.c).
const MOST_EVENTS: u32 = 15;

/// What a queue serves. It never changes; another table is another chain.
pub struct Chain {
    /// The disk's name, for the log.
    pub name: String,
    /// Where each sector of the disk is.
    pub map: Arc<Map>,
    /// The devices that the map's indices mean.
    pub components: Components,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How much is said of the disk in the log.
    pub limiters: Arc<Limiters>,
    /// Where it is told that a component fails.
    pub events: Arc<Events>,
}

impl Chain {
    /// The same under another name.
    pub fn renamed(&self, name: String) -> Chain {
        Chain {
            name,
            map: self.map.clone(),
            components: self.components.iter().map(|(ix, component)| (ix, component.clone())).collect(),
            read_only: self.read_only,
            limiters: self.limiters.clone(),
            events: self.events.clone(),
        }
    }

    /// Length of the disk.
    pub fn len(&self) -> Sectors {
        self.map.len()
    }

    /// Whether the disk has no sector.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The mapping of a component that has one.
    #[inline]
    pub fn mapping(&self, dev: DevIx) -> Option<&Mapping> {
        self.components.get(dev)?.mapping.as_ref()
    }

    /// Sectors in a logical block of the disk.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.map.limits().logical_block) / dm_table::SECTOR_SIZE
    }

    /// The components that a request can reach.
    pub fn reached(&self) -> impl Iterator<Item = (DevIx, &Arc<Component>)> {
        self.map.devices().iter().filter_map(|ix| Some((*ix, self.components.get(*ix)?)))
    }

    /// The components that it writes; none if the disk is read-only.
    pub fn written(&self) -> impl Iterator<Item = &Arc<Component>> {
        let written = self.map.written().iter().filter(|_| !self.read_only);
        written.filter_map(|ix| self.components.get(*ix))
    }

    /// The components that a flush must reach, besides those of stateful targets, which do that themselves.
    pub fn flushed(&self) -> impl Iterator<Item = (DevIx, &Arc<Component>)> {
        self.map.flush_set().iter().filter_map(|ix| Some((*ix, self.components.get(*ix)?)))
    }

    /// An operation on a component has failed.
    pub fn failed(&self, dev: DevIx) {
        if self.components.count_error(dev) <= MOST_EVENTS {
            self.events.raise();
        }
    }
}

/// Components by the indices that they have in the whole process; of those, the ones that a map leads to.
#[derive(Debug, Default)]
pub struct Components(Vec<Option<(Arc<Component>, AtomicU32)>>);

impl Components {
    /// The component behind an index.
    #[inline]
    pub fn get(&self, dev: DevIx) -> Option<&Arc<Component>> {
        self.0.get(usize::from(dev.0))?.as_ref().map(|(component, _)| component)
    }

    /// How many operations on it have failed.
    pub fn errors(&self, dev: DevIx) -> u32 {
        self.place(dev).map_or(0, |(_, errors)| errors.load(Ordering::Relaxed))
    }

    fn count_error(&self, dev: DevIx) -> u32 {
        // Counts to the limit of events at least, and never round to zero.
        self.place(dev).map_or(u32::MAX, |(_, errors)| {
            errors.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1)).map_or(u32::MAX, |n| n + 1)
        })
    }

    fn place(&self, dev: DevIx) -> Option<&(Arc<Component>, AtomicU32)> {
        self.0.get(usize::from(dev.0))?.as_ref()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (DevIx, &Arc<Component>)> {
        let indexed = self.0.iter().enumerate();
        indexed.filter_map(|(ix, place)| Some((DevIx(ix as u16), &place.as_ref()?.0)))
    }
}

impl FromIterator<(DevIx, Arc<Component>)> for Components {
    fn from_iter<T: IntoIterator<Item = (DevIx, Arc<Component>)>>(all: T) -> Self {
        let mut components = Vec::new();
        for (ix, component) in all {
            let at = usize::from(ix.0);
            if components.len() <= at {
                components.resize_with(at + 1, || None);
            }
            components[at] = Some((component, AtomicU32::new(0)));
        }
        Components(components)
    }
}

impl FromIterator<Arc<Component>> for Components {
    fn from_iter<T: IntoIterator<Item = Arc<Component>>>(all: T) -> Self {
        (0..=u16::MAX).map(DevIx).zip(all).collect()
    }
}
