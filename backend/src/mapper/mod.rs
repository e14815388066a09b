//! The devices of a process, each with an active and an inactive table: dm's second half.

mod error;

use std::os::fd::OwnedFd;

pub use error::DmError;

use crate::control::schema::{self, Info, Which};

/// Who waits for a verb that may take long.
pub trait Caller {
    /// Whether the verb is to be taken back: its caller is gone.
    fn gone(&self) -> bool;
    /// What it waits for; called about every second.
    fn tell(&self, waiting: &schema::Waiting);
}

/// A caller that waits for ever.
pub struct Patient;

impl Caller for Patient {
    fn gone(&self) -> bool {
        false
    }
    fn tell(&self, _: &schema::Waiting) {}
}

/// See the module's text.
pub struct Mapper;

/// Waits for an event of a device.
pub struct Waiter {
    /// An eventfd that becomes readable when the event has come or the device is gone.
    pub ready: OwnedFd,
}

/// Result of a verb.
pub type Verb<T> = Result<T, DmError>;

impl Mapper {
    /// DM_DEV_CREATE.
    ///
    /// # Errors
    /// Name or uuid in use (EBUSY), or not possible (EINVAL).
    pub fn create(&self, _new: &schema::Create) -> Verb<Info> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_DEV_REMOVE.
    ///
    /// # Errors
    /// No such device (ENXIO), in use (EBUSY).
    pub fn remove(&self, _remove: &schema::Remove, _caller: &dyn Caller) -> Verb<schema::Removed> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_DEV_RENAME.
    ///
    /// # Errors
    /// No such device (ENXIO), name in use (EBUSY), uuid set already (EINVAL).
    pub fn rename(&self, _rename: &schema::Rename) -> Verb<Info> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_TABLE_LOAD.
    ///
    /// # Errors
    /// What is wrong with the table or its devices.
    pub fn load(&self, _load: &schema::Load, _caller: &dyn Caller) -> Verb<schema::Loaded> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_TABLE_CLEAR.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn clear(&self, _which: &Which) -> Verb<Info> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_DEV_SUSPEND with DM_SUSPEND_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO), caller gone (EINTR).
    pub fn suspend(&self, _suspend: &schema::Suspend, _caller: &dyn Caller) -> Verb<Info> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_DEV_SUSPEND without DM_SUSPEND_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO), the new table cannot be used (EINVAL ...), caller gone (EINTR).
    pub fn resume(&self, _resume: &schema::Resume, _caller: &dyn Caller) -> Verb<schema::Resumed> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_TARGET_MSG.
    ///
    /// # Errors
    /// As the kernel's (EINVAL).
    pub fn message(&self, _message: &schema::Message) -> Verb<schema::Reply> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_DEV_STATUS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn info(&self, _which: &Which) -> Verb<Info> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_LIST_DEVICES, with what DM_DEV_STATUS says of each.
    pub fn list(&self) -> Vec<Info> {
        Vec::new()
    }

    /// DM_TABLE_STATUS with DM_STATUS_TABLE_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn table(&self, _query: &schema::Query) -> Verb<Vec<schema::Line>> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_TABLE_STATUS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn status(&self, _query: &schema::Query) -> Verb<Vec<schema::Line>> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_TABLE_DEPS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn deps(&self, _query: &schema::Query) -> Verb<Vec<schema::Dep>> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// DM_LIST_VERSIONS.
    pub fn targets(&self) -> Vec<schema::TargetType> {
        Vec::new()
    }

    /// DM_DEV_WAIT: a waiter that is ready when the device's event number is above the one asked for; [`Mapper::info`] then
    /// says what has become of it.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn wait(&self, _wait: &schema::Wait) -> Verb<Waiter> {
        Err(DmError::new(libc::ENOSYS))
    }

    /// What the devices are doing.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn stats(&self, _query: &schema::StatsQuery) -> Verb<Vec<crate::stats::Snapshot>> {
        Err(DmError::new(libc::ENOSYS))
    }
}
