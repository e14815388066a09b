//! The devices of a table file, all at once.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use dm_table::{Diagnostic, TableFile};

use crate::control::schema::Create;
use crate::device::{self as component, Component, OpenError};
use crate::disk::Disk;
use crate::map::{Map, shared};

use super::device::{Device, Tables};
use super::table::Table;
use super::{DmError, Mapper};

/// A device as it was started.
pub struct Started {
    /// Its minor number.
    pub minor: u32,
    /// Its name in the table file, or the file's.
    pub name: String,
    /// Name of its socket, where it has one among others.
    pub socket: String,
    /// What is served of it.
    pub disk: Arc<Disk>,
    /// No other device lies on it.
    pub top: bool,
    live: Option<Arc<Table>>,
}

impl Started {
    /// Its table as its author wrote it. Printed when asked for: a long one takes longer than all else that is known here.
    pub fn table(&self) -> String {
        self.live.as_ref().map(|table| table.written()).unwrap_or_default()
    }
}

impl Mapper {
    /// Makes the devices of a table file and resumes them, lower ones first. What is doubtful is returned. `name` is for the
    /// device of a plain file.
    ///
    /// # Errors
    /// The first thing wrong, where it is.
    pub fn start(&self, file: &TableFile, name: &str) -> Result<Vec<String>, Diagnostic> {
        let mut warnings = Vec::new();
        for index in file.load_order()? {
            let device = &file.devices[index];
            if device.table.is_empty() {
                return Err(Diagnostic::error(
                    &file.source,
                    device.name_span,
                    "no targets: an empty table has no disk to serve",
                )
                .help("a line is `START LENGTH TARGET ARGUMENTS`, for example `0 2048 linear disk.img 0`"));
            }
            let wanted = |error: &DmError| {
                let reason = format!("create ioctl on {} failed: {}", device.name.as_deref().unwrap_or(name), error);
                Diagnostic::error(&file.source, device.name_span, reason)
            };
            let info = self.create(&created(device, name)).map_err(|error| wanted(&error))?;
            let text = (file.source.clone(), device.table.clone());
            let table = self.build(info.minor, text, device.read_only, None)?;
            warnings.extend(table.warnings.iter().cloned());
            let table = Arc::new(table);
            self.probe(info.minor, &table).map_err(|unwilling| {
                let line = device.table.lines.iter().find(|line| line.start == unwilling.start);
                let span = line.map_or(device.name_span, |line| line.span);
                Diagnostic::error(&file.source, span, unwilling.why)
            })?;
            self.make_live(info.minor, table).map_err(|error| wanted(&error))?;
        }
        warnings.extend(self.started().iter().filter_map(|started| unreachable_end(&started.disk)));
        let mut seen = std::collections::HashSet::new();
        warnings.retain(|warning| seen.insert(warning.clone()));
        warnings.extend(self.shared(None));
        Ok(warnings)
    }

    /// Opens a component before a table names it, and locks it: the table that does so gets this opening.
    ///
    /// # Errors
    /// It is not there, or somebody else has it.
    pub fn hold(&self, path: &str, read_only: bool) -> Result<Arc<Component>, OpenError> {
        let options = component::Options { read_only, ..self.settings.components };
        let mut components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        components.0.open(path, None, &options)
    }

    pub(super) fn make_live(&self, minor: u32, table: Arc<Table>) -> Result<(), DmError> {
        let mut devices = self.devices();
        let chain = devices.chain(minor, &Tables::from([(minor, table.clone())]));
        let device = devices.get_mut(minor)?;
        if let Some(chain) = chain {
            device.disk.exchange(Arc::new(chain));
        }
        device.active = Some(table);
        Ok(())
    }

    /// Component sectors that two disks would write; with a table that is to be live, those that it shares with others.
    pub(super) fn shared(&self, loaded: Option<(u32, &Table)>) -> Vec<String> {
        let devices = self.devices();
        let below = |minor: u32| loaded.is_some_and(|(_, table)| table.lowers().contains(&minor));
        let is_disk = |device: &Device| device.is_connected() || devices.above(device.minor, false).len() == 1;
        let mut disks: Vec<(u32, &Table)> = devices
            .all
            .values()
            .filter(|device| {
                is_disk(device) && !below(device.minor) && loaded.is_none_or(|(minor, _)| minor != device.minor)
            })
            .filter_map(|device| Some((device.minor, device.active.as_deref()?)))
            .collect();
        disks.extend(loaded);
        disks.retain(|(_, table)| !table.read_only);
        let mut first = HashMap::new();
        let mut same = HashMap::new();
        let chains = devices.all.values().map(|device| device.disk.chain());
        let found: Vec<_> = chains
            .flat_map(|chain| chain.components.iter().map(|(ix, c)| (ix, c.clone())).collect::<Vec<_>>())
            .collect();
        let loaded_ones = loaded.into_iter().flat_map(|(_, table)| table.components().map(|(ix, c)| (ix, c.clone())));
        for (ix, component) in found.into_iter().chain(loaded_ones) {
            let (one, name) = first.entry(component.identity).or_insert((ix, component.name.clone()));
            same.insert(ix, (*one, name.clone()));
        }
        let name = |minor: u32| devices.all.get(&minor).map_or_else(String::new, |device| device.disk.name());
        let tell = |shared: &crate::map::Shared| {
            let (one, other) = (disks[shared.disks.0].0, disks[shared.disks.1].0);
            let component = same.get(&shared.dev).map_or("a component", |(_, name)| name.as_str());
            let concerned = loaded.is_none_or(|(minor, _)| one == minor || other == minor);
            concerned.then(|| {
                format!(
                    "sectors {}..{} of {component} are reachable through {} and {}: what one guest writes changes under the \
                     other",
                    shared.start,
                    shared.end,
                    name(one),
                    name(other),
                )
            })
        };
        let maps: Vec<&Map> = disks.iter().map(|(_, table)| &*table.map).collect();
        shared(&maps, &|dev| same.get(&dev).map_or(dev, |(one, _)| *one)).iter().filter_map(tell).collect()
    }

    /// The devices, in the order in which they were made.
    pub fn started(&self) -> Vec<Started> {
        let devices = self.devices();
        let started = |(minor, device): (&u32, &Device)| Started {
            minor: *minor,
            name: device.disk.name(),
            socket: super::serve::socket_name(&device.name),
            disk: device.disk.clone(),
            top: devices.above(*minor, false).len() == 1,
            live: device.active.clone(),
        };
        devices.all.iter().map(started).collect()
    }
}

/// A guest asks for whole blocks, and cannot say what lies behind the last.
fn unreachable_end(disk: &Disk) -> Option<String> {
    let chain = disk.chain();
    let (beyond, block) = (chain.len().get() % chain.block_sectors(), chain.map.limits().logical_block);
    let name = disk.name();
    (beyond > 0)
        .then(|| format!("{name}: a guest cannot reach the last {beyond} sectors, which are no block of {block} bytes"))
}

fn created(device: &dm_table::Device, name: &str) -> Create {
    // The file of a plain table may be called anything.
    let plain = || dm_table::mangle(name).unwrap_or_else(|| "disk".to_owned());
    let mangled = device.mapper_name().unwrap_or_else(plain);
    Create { name: mangled, uuid: device.uuid.clone(), minor: device.minor }
}
