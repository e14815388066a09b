//! Components for simulation: nothing is opened, claimed or locked.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use dm_table::Sectors;

use super::handover::Held;
use super::{Access, Component, Identity, Kind, Limits, Unflushed};

impl Component {
    /// Component number `number`, whose data is not in `file` but with the engine that knows it by `file`.
    pub(crate) fn simulated(file: File, number: usize, size: Sectors, limits: Limits, access: Access) -> Component {
        Component {
            held: Held::new(file, true),
            name: format!("c{number}"),
            path: PathBuf::from(format!("c{number}")),
            kind: Kind::File,
            identity: Identity::File { dev: 0, inode: number as u64 },
            size,
            limits,
            read_only: false,
            access,
            mapping: None,
            unflushed: Some(Arc::new(Unflushed::new(&format!("c{number}"), size.bytes(), access == Access::Buffered))),
            warnings: Vec::new(),
            writer: OnceLock::new(),
        }
    }
}
