//! What of the devices is kept for a successor, and when: see [`super::state`].

use std::sync::Arc;

use dm_table::{Diagnostic, Format, Source};

use crate::control::schema::Create;

use super::device::{Device, Devices, Tables};
use super::state::{Committed, Kept, Prepared, State, StateError};
use super::{DmError, Mapper, Verb};

/// Why a process does not come back with what was kept.
#[derive(Debug, thiserror::Error)]
pub enum ComeBack {
    /// The state itself.
    #[error(transparent)]
    State(#[from] StateError),
    /// One of its tables.
    #[error("the table of {name}, as it was served last:\n{diagnostic}")]
    Table {
        /// The device.
        name: String,
        /// What is wrong with it now.
        diagnostic: Box<Diagnostic>,
    },
    /// One of its devices.
    #[error("the device {name}, as it was served last: {error}")]
    Device {
        /// The device.
        name: String,
        /// What is wrong with it.
        error: DmError,
    },
}

impl Mapper {
    /// Makes the devices that were kept. Nothing if none ever were.
    ///
    /// # Errors
    /// See [`ComeBack`]; then it is not known what to serve.
    pub fn come_back(&self) -> Result<Option<Vec<String>>, ComeBack> {
        let Some(state) = self.state.as_ref().map(|dir| dir.read()).transpose()?.flatten() else { return Ok(None) };
        let mut warnings = Vec::new();
        for kept in state.devices {
            let refused =
                |diagnostic: Diagnostic| ComeBack::Table { name: kept.name.clone(), diagnostic: Box::new(diagnostic) };
            let failed = |error| ComeBack::Device { name: kept.name.clone(), error };
            let source = Arc::new(Source::new(format!("state of {}", kept.name), kept.table.as_str()));
            let mut file = dm_table::parse(source.clone(), Format::Plain).map_err(refused)?;
            let Some(device) = file.devices.pop() else { continue };
            let create = Create { name: kept.name.clone(), uuid: kept.uuid.clone(), minor: Some(kept.minor) };
            let info = self.create_with(&create, kept.serial.as_deref()).map_err(failed)?;
            let directory = kept.directory.clone().map(Into::into);
            let table = self.build(info.minor, (source, device.table), kept.read_only, directory).map_err(refused)?;
            warnings.extend(table.warnings.iter().cloned());
            let table = Arc::new(table);
            self.probe(info.minor, &table).map_err(|unwilling| failed(unwilling.error(info.minor)))?;
            self.make_live(info.minor, table).map_err(failed)?;
        }
        warnings.extend(self.shared(None));
        Ok(Some(warnings))
    }

    /// Keeps what there is now.
    ///
    /// # Errors
    /// It cannot be kept; what was kept before is.
    pub fn keep(&self) -> Result<(), StateError> {
        match &self.state {
            Some(dir) => dir.save(|| kept(&self.devices(), &Tables::new(), None)),
            None => Ok(()),
        }
    }

    /// The same for a verb that has changed something already.
    pub(super) fn keep_changed(&self) -> Verb<()> {
        self.keep().map_err(|error| unkept(&error))
    }

    /// Keeps what there will be without a device. To be settled when it is gone.
    pub(super) fn keep_without(&self, minor: u32) -> Verb<Option<Committed<'_>>> {
        let Some(dir) = &self.state else { return Ok(None) };
        dir.commit(|| kept(&self.devices(), &Tables::new(), Some(minor))).map(Some).map_err(|error| unkept(&error))
    }

    /// Makes ready to keep what there will be when `tables` are live.
    pub(super) fn prepare_to_keep(&self, tables: &Tables) -> Verb<Option<Prepared<'_>>> {
        let Some(dir) = &self.state else { return Ok(None) };
        dir.prepare(|| kept(&self.devices(), tables, None)).map(Some).map_err(|error| unkept(&error))
    }
}

pub(super) fn unkept(error: &StateError) -> DmError {
    let errno = match error {
        StateError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EIO,
    };
    DmError::new(errno).detail(format!("the devices cannot be kept (--state-dir): {error}"))
}

/// Devices with live tables, lower ones first.
fn kept(devices: &Devices, tables: &Tables, without: Option<u32>) -> State {
    let lower = |minor: u32| match devices.all.get(&minor) {
        Some(device) => format!("/dev/mapper/{}", device.name),
        None => Devices::number(minor),
    };
    let keep = |device: &Device| {
        let table = tables.get(&device.minor).or(device.active.as_ref())?;
        Some(Kept {
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            minor: device.minor,
            read_only: table.read_only,
            table: table.as_loaded(&lower),
            directory: table.directory().map(|path| path.display().to_string()),
            serial: Some(device.serial.clone()),
            socket: device.serving.as_ref().map(|serving| serving.shown.clone()),
        })
    };
    let mut all: Vec<&Device> = devices.all.values().filter(|device| Some(device.minor) != without).collect();
    // Whatever a device lies on has less below it.
    all.sort_by_key(|device| devices.below(device.minor, tables).len());
    State { devices: all.into_iter().filter_map(keep).collect() }
}
