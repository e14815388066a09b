//! The components of a process, each opened once.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use dm_table::Sectors;

use super::{Access, Component, Identity, Kind, Limits, OpenError, Options};

/// The components that this process has open, by identity.
#[derive(Debug, Default)]
pub struct Registry {
    open: HashMap<Identity, Weak<Component>>,
}

impl Registry {
    /// A registry without components.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Opens the component that a table names, or gives the one that is open already.
    pub fn open(
        &mut self,
        text: &str,
        _major_minor: Option<(u64, u64)>,
        opts: &Options,
    ) -> Result<Arc<Component>, OpenError> {
        let path = PathBuf::from(text);
        let io = |doing| {
            let path = path.clone();
            move |source| OpenError::Io { path, doing, source }
        };
        let mut file = OpenOptions::new().read(true).write(!opts.read_only).open(&path).map_err(io("open"))?;
        let meta = file.metadata().map_err(io("stat"))?;
        let identity = Identity::File { dev: meta.dev(), inode: meta.ino() };
        if let Some(component) = self.open.get(&identity).and_then(Weak::upgrade) {
            return Ok(component);
        }
        let size = Sectors::from_bytes_floor(file.seek(SeekFrom::End(0)).map_err(io("seek"))?);
        let limits = Limits {
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 0,
            io_min: 0,
            io_opt: 0,
            discard: None,
            write_zeroes: false,
        };
        let component = Arc::new(Component {
            file,
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            path,
            kind: Kind::File,
            identity,
            size,
            limits,
            read_only: opts.read_only,
            access: Access::Buffered,
            warnings: Vec::new(),
            promoted: OnceLock::new(),
        });
        self.open.insert(identity, Arc::downgrade(&component));
        Ok(component)
    }
}
