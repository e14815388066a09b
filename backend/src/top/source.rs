//! Where the numbers come from.

use std::path::{Path, PathBuf};

use super::state::Answer;
use crate::control::VARIABLE;
use crate::control::client::{Client, ClientError};
use crate::control::schema::{StatsQuery, Which};
use crate::stats::Snapshot;

/// A process's control socket, connected to when that is needed, again if it must be.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    client: Option<Client>,
}

impl Source {
    /// The socket that is named on the command line or else by the variable.
    ///
    /// # Errors
    /// [`ClientError::Nowhere`].
    pub fn new(given: Option<&Path>) -> Result<Source, ClientError> {
        let variable = || std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = given.map(Path::to_owned).or_else(variable).ok_or(ClientError::Nowhere)?;
        Ok(Source { path, client: None })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of a device or of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stats(&mut self, which: Option<Which>, segments: bool) -> Result<Vec<Snapshot>, ClientError> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect(&self.path)?),
        };
        let called = client.call("stats", &StatsQuery { which, segments });
        if matches!(called, Err(ClientError::Connect { .. } | ClientError::Broken { .. })) {
            self.client = None;
        }
        called
    }

    /// A device with its segments; None if it is there no more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn detail(&mut self, minor: u32) -> Result<Option<Snapshot>, ClientError> {
        match self.stats(Some(Which { minor: Some(minor), ..Which::default() }), true) {
            Ok(snapshots) => Ok(snapshots.into_iter().next()),
            Err(ClientError::Refused(error)) if error.errno == libc::ENXIO => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The devices of these names, or all if there are none; with the segments of the one that is selected, or of the first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn answer(&mut self, names: &[String], selected: Option<u32>) -> Result<Answer, ClientError> {
        let mut devices = self.stats(None, false)?;
        let is_named =
            |device: &Snapshot, name: &str| device.name == name || Some(&device.name) == mangled(name).as_ref();
        let missing = names.iter().filter(|name| !devices.iter().any(|device| is_named(device, name)));
        let missing = missing.cloned().collect();
        if !names.is_empty() {
            devices.retain(|device| names.iter().any(|name| is_named(device, name)));
        }
        let selected = selected.filter(|minor| devices.iter().any(|device| device.minor == *minor));
        let selected = selected.or_else(|| devices.first().map(|device| device.minor));
        let detail = selected.map(|minor| self.detail(minor)).transpose()?.flatten();
        Ok(Answer { devices, detail, missing })
    }
}

/// A name in the kernel's form.
pub(super) fn mangled(name: &str) -> Option<String> {
    dm_table::mangle(name)
}
