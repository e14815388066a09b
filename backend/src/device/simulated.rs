//! Components for simulation: nothing is opened, claimed or locked.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use dm_table::Sectors;

use super::opening::Opening;
use super::{Access, Component, Identity, Kind, Limits};

impl Component {
    /// Component number `number`, whose data is not in `file` but with the engine that knows it by `file`.
    pub(crate) fn simulated(file: File, number: usize, size: Sectors, limits: Limits, access: Access) -> Component {
        let (name, identity) = (format!("c{number}"), Identity::File { dev: 0, inode: number as u64 });
        let opening = Opening::simulated(file, name.clone(), identity, limits, access);
        Component {
            path: PathBuf::from(&name),
            name,
            kind: Kind::File,
            identity,
            size,
            limits,
            read_only: false,
            access,
            mapping: None,
            unflushed: opening.unflushed.clone(),
            warnings: Vec::new(),
            opening: Arc::new(opening),
        }
    }
}

impl Limits {
    /// Those of a device that can do nothing but read and write sectors.
    pub(crate) fn plain() -> Limits {
        Limits {
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            io_min: 0,
            io_opt: 0,
            discard: None,
            write_zeroes: false,
        }
    }
}
