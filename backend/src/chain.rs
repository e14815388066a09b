//! A table made real: the map, and the opened component devices it leads to. Workers serve from it.

use std::sync::Arc;

use dm_table::Sectors;

use crate::device::Component;
use crate::guest::Mapping;
use crate::limit::Limiters;
use crate::map::{DevIx, Map};

/// What a queue serves. It never changes; another table is another chain.
pub struct Chain {
    /// The disk's name, for the log.
    pub name: String,
    /// Where each sector of the disk is.
    pub map: Arc<Map>,
    /// The devices that the map's indices mean.
    pub components: Vec<Arc<Component>>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How much is said of it in the log.
    pub limiters: Limiters,
}

impl Chain {
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
        self.components.get(usize::from(dev.0))?.mapping.as_ref()
    }

    /// Sectors in a logical block of the disk.
    pub fn block_sectors(&self) -> u64 {
        u64::from(self.map.limits().logical_block) / dm_table::SECTOR_SIZE
    }
}
