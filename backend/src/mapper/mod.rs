//! The devices of a process, each with an active and an inactive table: dm's second half.
//!
//! The verbs are the kernel's ioctls (dm-ioctl.c), with its errors. A verb that changes a device claims it, and whatever lies on
//! it where that changes too; the lock on the devices themselves is never held while something may wait.

mod device;
mod durable;
mod error;
mod keep;
mod life;
mod serve;
mod start;
pub mod state;
mod swap;
mod table;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dm_table::Source;

pub use error::DmError;
pub use keep::ComeBack;
pub use start::Started;

use crate::chain::Chain;
use crate::control::schema::{self, Info, Which};
use crate::device::{self as component, Registry, Slots};
use crate::disk::Disk;
use crate::frontend::config::Offer;
use crate::map::Map;
use crate::worker::pool::Pool;
use device::{Device, Devices};
use life::Lives;
use state::StateDir;
use table::{Ground, Table};

/// Major number of our devices. No block device has it, so that a table that we print can never mean one of this machine's.
pub const MAJOR: u32 = 0;
/// Largest minor number: the kernel has 20 bits for it.
const MAX_MINOR: u32 = (1 << 20) - 1;
/// Longest name, in bytes.
const NAME_LEN: usize = 127;
/// Longest uuid, in bytes.
const UUID_LEN: usize = 128;
/// Time between two looks at whether a caller who waits for a device is still there.
const LOOK: Duration = Duration::from_millis(100);
/// So many looks later the caller is told what it waits for.
const TELL: u32 = 10;

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

/// Waits for an event of a device.
pub struct Waiter {
    /// An eventfd that becomes readable when the event has come or the device is gone.
    pub ready: OwnedFd,
}

/// Result of a verb.
pub type Verb<T> = Result<T, DmError>;

/// How the devices of a process are made and served.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How component devices are opened.
    pub components: component::Options,
    /// Queues and ring size.
    pub offer: Offer,
    /// Answer to GET_ID; by default the uuid, or the name.
    pub serial: Option<String>,
    /// Bytes of the smallest logical block that a guest is shown.
    pub block_size: u32,
    /// Where devices that are created get a socket.
    pub socket_dir: Option<PathBuf>,
}

/// See the module's text.
pub struct Mapper {
    devices: Mutex<Devices>,
    // Something is no longer busy.
    free: Condvar,
    components: Mutex<(Registry, Slots)>,
    settings: Settings,
    pool: Arc<Pool>,
    lives: Lives,
    state: Option<StateDir>,
    myself: std::sync::Weak<Mapper>,
}

/// A device's table, and what is needed to print it.
struct Queried {
    /// Of all devices, by minor number.
    names: std::collections::BTreeMap<u32, String>,
    table: Option<Arc<Table>>,
    /// What is served of it, if it is the live one.
    chain: Option<Arc<Chain>>,
}

/// Devices that a verb has for itself; dropped, others may have them.
struct Claim<'a> {
    mapper: &'a Mapper,
    minors: Vec<u32>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut devices = self.mapper.devices();
        for minor in &self.minors {
            if let Ok(device) = devices.get_mut(*minor) {
                device.busy = false;
            }
        }
        let deferred = devices.all.values().filter(|device| device.deferred_remove);
        let going: Vec<u32> = deferred.map(|device| device.minor).collect();
        drop(devices);
        self.mapper.free.notify_all();
        // Their last users may have left meanwhile, or be a table that was dropped.
        going.into_iter().for_each(|minor| self.mapper.left(minor));
    }
}

impl Mapper {
    /// No devices yet. They are kept in `state`, if there is one.
    pub fn new(settings: Settings, registry: Registry, pool: Arc<Pool>, state: Option<StateDir>) -> Arc<Mapper> {
        Arc::new_cyclic(|myself| Mapper {
            devices: Mutex::new(Devices { block: settings.block_size, ..Devices::default() }),
            free: Condvar::new(),
            components: Mutex::new((registry, Slots::default())),
            settings,
            pool,
            lives: Lives::default(),
            state,
            myself: myself.clone(),
        })
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a device, and those that `more` names, for a verb. Waits for verbs that have them.
    fn claim(
        &self,
        which: &Which,
        caller: &dyn Caller,
        more: impl Fn(&Devices, u32) -> Vec<u32>,
    ) -> Verb<(u32, Claim<'_>)> {
        let mut devices = self.devices();
        for look in 1_u32.. {
            let minor = devices.find(which)?;
            if devices.closed {
                return Err(DmError::new(libc::ESHUTDOWN).detail("the process is ending"));
            }
            let mut minors = more(&devices, minor);
            minors.retain(|minor| devices.all.contains_key(minor));
            let busy = |minor: &u32| devices.all.get(minor).is_some_and(|device| device.busy);
            if !minors.iter().any(busy) {
                for minor in &minors {
                    devices.get_mut(*minor)?.busy = true;
                }
                return Ok((minor, Claim { mapper: self, minors }));
            }
            devices = self.free.wait_timeout(devices, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            if caller.gone() {
                return Err(DmError::new(libc::EINTR));
            }
            if look.is_multiple_of(TELL) {
                let name = devices.get(minor).map(|device| device.name.clone()).unwrap_or_default();
                let what = format!("{name}: waiting for another verb, which has this device or one that it lies on");
                caller.tell(&schema::Waiting { what, ..schema::Waiting::default() });
            }
        }
        Err(DmError::new(libc::EINTR))
    }

    fn claim_one(&self, which: &Which, caller: &dyn Caller) -> Verb<(u32, Claim<'_>)> {
        self.claim(which, caller, |_, minor| vec![minor])
    }

    /// DM_DEV_CREATE.
    ///
    /// # Errors
    /// Name or uuid in use (EBUSY), minor number in use (ENXIO), or not possible (EINVAL).
    pub fn create(&self, new: &schema::Create) -> Verb<Info> {
        self.create_with(new, None)
    }

    /// With another answer to GET_ID than the settings give.
    fn create_with(&self, new: &schema::Create, serial: Option<&str>) -> Verb<Info> {
        check_name(&new.name)?;
        if let Some(uuid) = &new.uuid {
            check_uuid(uuid)?;
        }
        let mut devices = self.devices();
        if new.minor.is_some_and(|minor| devices.all.contains_key(&minor)) {
            return Err(DmError::new(libc::ENXIO).detail("another device has this minor number"));
        }
        let taken = |device: &Device| device.name == new.name || (new.uuid.is_some() && device.uuid == new.uuid);
        if devices.closed || devices.all.values().any(taken) {
            return Err(DmError::new(libc::EBUSY));
        }
        let minor = match new.minor {
            Some(minor) if minor > MAX_MINOR => return Err(DmError::new(libc::EINVAL)),
            Some(minor) => minor,
            None => (0..=MAX_MINOR)
                .find(|minor| !devices.all.contains_key(minor))
                .ok_or_else(|| DmError::new(libc::EBUSY))?,
        };
        devices.all.insert(minor, self.device(new, minor, serial)?);
        devices.info(minor)
    }

    fn device(&self, new: &schema::Create, minor: u32, serial: Option<&str>) -> Verb<Device> {
        let shown = dm_table::unmangle(&new.name);
        let serial = serial.or(self.settings.serial.as_deref()).or(new.uuid.as_deref()).unwrap_or(&shown).to_owned();
        let nothing = dm_table::Table::default();
        let (map, _) = Map::build(&Source::new("", ""), &nothing, false, &mut |_| Err(table::none()))
            .map_err(|diagnostic| table::refused(minor, &diagnostic))?;
        let events = Arc::<crate::event::Events>::default();
        events.set_name(&shown);
        let chain = Chain {
            name: shown,
            map: Arc::new(map),
            components: Default::default(),
            read_only: false,
            limiters: Arc::default(),
            events: events.clone(),
        };
        let incoming = self.settings.components.incoming;
        Ok(Device {
            minor,
            name: new.name.clone(),
            uuid: new.uuid.clone(),
            disk: Arc::new(Disk::new(chain, &serial, self.settings.offer, incoming)),
            events,
            active: None,
            inactive: None,
            suspended: None,
            deferred_remove: false,
            busy: false,
            serving: None,
            serial,
        })
    }

    /// DM_DEV_RENAME.
    ///
    /// # Errors
    /// No such device (ENXIO), name in use (EBUSY), uuid set already (EINVAL).
    pub fn rename(&self, rename: &schema::Rename, caller: &dyn Caller) -> Verb<Info> {
        let (minor, _claim) = self.claim_one(&rename.which, caller).map_err(|error| match (error.errno, rename) {
            (libc::ENXIO, schema::Rename { which: Which { name: Some(old), .. }, name: Some(name), .. }) => {
                error.kernel(format!("ioctl: Unable to rename non-existent device, {old} to {name}"))
            }
            _ => error,
        })?;
        match (&rename.name, &rename.uuid) {
            (Some(name), None) => self.set_name(minor, name),
            (None, Some(uuid)) => self.set_uuid(minor, uuid),
            _ => Err(DmError::new(libc::EINVAL).detail("either a new name or a uuid")),
        }
    }

    fn set_name(&self, minor: u32, name: &str) -> Verb<Info> {
        check_name(name)?;
        let mut devices = self.devices();
        let old = devices.get(minor)?.name.clone();
        if devices.all.values().any(|device| device.name == name) {
            return Err(DmError::new(libc::EBUSY).kernel(format!(
                "ioctl: Unable to change name on mapped device {old} to one that already exists: {name}"
            )));
        }
        let path = self.settings.socket_dir.as_deref().map(|dir| serve::socket_path(dir, name));
        let device = devices.get_mut(minor)?;
        if let (Some(serving), Some(path)) = (&mut device.serving, path) {
            serving.move_to(&path).map_err(|error| serve::unservable(&error))?;
        }
        device.name = name.to_owned();
        let chain = device.disk.chain();
        device.disk.exchange(Arc::new(chain.renamed(dm_table::unmangle(name))));
        device.events.set_name(&dm_table::unmangle(name));
        device.events.raise();
        drop(devices);
        self.keep_changed()?;
        self.devices().info(minor)
    }

    fn set_uuid(&self, minor: u32, uuid: &str) -> Verb<Info> {
        check_uuid(uuid)?;
        let mut devices = self.devices();
        let device = devices.get(minor)?;
        if let Some(set) = &device.uuid {
            return Err(DmError::new(libc::EINVAL).kernel(format!(
                "ioctl: Unable to change uuid of mapped device {} to {uuid} because uuid is already set to {set}",
                device.name
            )));
        }
        if devices.all.values().any(|device| device.uuid.as_deref() == Some(uuid)) {
            return Err(DmError::new(libc::EBUSY).kernel(format!(
                "ioctl: Unable to change uuid on mapped device {} to one that already exists: {uuid}",
                device.name
            )));
        }
        devices.get_mut(minor)?.uuid = Some(uuid.to_owned());
        drop(devices);
        self.keep_changed()?;
        self.devices().info(minor)
    }

    /// DM_TABLE_LOAD.
    ///
    /// # Errors
    /// What is wrong with the table or its devices.
    pub fn load(&self, load: &schema::Load, caller: &dyn Caller) -> Verb<schema::Loaded> {
        let (minor, _claim) = self.claim_one(&load.which, caller)?;
        let source = Arc::new(Source::new(load.source.as_deref().unwrap_or("table"), load.table.as_str()));
        let file = dm_table::parse(source.clone(), dm_table::Format::Plain);
        let mut file = file.map_err(|diagnostic| match diagnostic.reason().ends_with('.') {
            // dmsetup's own words, before the kernel sees the table.
            true => table::refused(minor, &diagnostic),
            false => table::refused(minor, &diagnostic).kernel("ioctl: error adding target to table"),
        })?;
        let text = match (file.devices.pop(), file.devices.is_empty()) {
            (Some(device), true) if !device.table.is_empty() => device.table,
            (None | Some(_), true) => {
                return Err(DmError::new(libc::EINVAL)
                    .kernel("ioctl: No targets specified")
                    .detail("a line is `START LENGTH TARGET ARGUMENTS`, for example `0 2048 linear disk.img 0`"));
            }
            _ => return Err(DmError::new(libc::EINVAL).detail("the table is of several devices")),
        };
        let directory = table::directory(load.directory.as_deref());
        let mut table = self
            .build(minor, (source, text), load.read_only, directory)
            .map_err(|diagnostic| table::refused(minor, &diagnostic).kernel("ioctl: error adding target to table"))?;
        table.force = load.force;
        let mut warnings = std::mem::take(&mut table.warnings);
        warnings.extend(self.shared(Some((minor, &table))));
        let table = Arc::new(table);
        self.probe(minor, &table)
            .map_err(|unwilling| unwilling.error(minor).kernel("ioctl: error adding target to table"))?;
        let mut devices = self.devices();
        // One may have been removed meanwhile, and another made in its place.
        if !table.is_grounded(&|lower| Some(devices.get(lower).ok()?.disk.clone())) {
            return Err(DmError::new(libc::ENXIO).detail("a device that the table lies on was removed meanwhile"));
        }
        // Dropped without the lock: files may be closed.
        let old = devices.get_mut(minor)?.inactive.replace(table);
        let info = devices.info(minor)?;
        drop(devices);
        drop(old);
        Ok(schema::Loaded { warnings, info })
    }

    fn build(
        &self,
        minor: u32,
        text: (Arc<Source>, Arc<dm_table::Table>),
        read_only: bool,
        directory: Option<PathBuf>,
    ) -> Result<Table, dm_table::Diagnostic> {
        let (mapped, disk) = {
            let devices = self.devices();
            (devices.mapped(minor), devices.get(minor).ok().map(|device| device.disk.clone()))
        };
        // Asked without the lock: whoever waits for a component has the answer.
        let held = disk.is_some_and(|disk| disk.hold.is_held());
        let settings = self.settings.components;
        let options = component::Options {
            read_only: read_only || settings.read_only,
            // What a guest has that runs here is locked when it is opened.
            incoming: settings.incoming && !held,
            ..settings
        };
        let mut components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        let (registry, slots) = &mut *components;
        Table::build(text, &mapped, &mut Ground { minor, registry, slots, options, declared: read_only, directory })
    }

    /// DM_TABLE_CLEAR.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn clear(&self, which: &Which, caller: &dyn Caller) -> Verb<Info> {
        let (minor, _claim) = self.claim_one(which, caller)?;
        let old = self.devices().get_mut(minor)?.inactive.take();
        drop(old);
        self.devices().info(minor)
    }

    /// DM_TARGET_MSG.
    ///
    /// # Errors
    /// As the kernel's (EINVAL).
    pub fn message(&self, message: &schema::Message) -> Verb<schema::Reply> {
        let devices = self.devices();
        let minor = devices.find(&message.which)?;
        let invalid = |why: String| Err(DmError::new(libc::EINVAL).kernel(why));
        let Some(first) = message.args.first() else { return invalid("ioctl: Empty message received.".into()) };
        if first == "@cancel_deferred_remove" && message.args.len() == 1 {
            drop(devices);
            self.devices().get_mut(minor)?.deferred_remove = false;
            return Ok(schema::Reply::default());
        }
        let disk = &devices.get(minor)?.disk;
        if let Some(done) = disk.stats.message(&message.args, disk.chain().len().get()) {
            return done.map(|text| schema::Reply { text });
        }
        if first.starts_with('@') {
            return invalid(format!("ioctl: Unsupported message sent to DM core: {first}"));
        }
        match &devices.get(minor)?.active {
            None => invalid("ioctl: The device has no table.".into()),
            Some(table) if message.sector >= table.len().get() => {
                invalid("ioctl: Target message sector outside device.".into())
            }
            Some(table) => {
                let Some(target) = table.target_at(message.sector) else {
                    return invalid("ioctl: Target type does not support messages".into());
                };
                drop(devices);
                let args: Vec<&str> = message.args.iter().map(String::as_str).collect();
                match target.message(&args) {
                    Ok(text) => Ok(schema::Reply { text }),
                    Err(why) => invalid(why),
                }
            }
        }
    }

    /// DM_DEV_STATUS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn info(&self, which: &Which) -> Verb<Info> {
        let devices = self.devices();
        devices.info(devices.find(which)?)
    }

    /// DM_LIST_DEVICES, with what DM_DEV_STATUS says of each.
    pub fn list(&self) -> Vec<Info> {
        let devices = self.devices();
        devices.all.keys().filter_map(|minor| devices.info(*minor).ok()).collect()
    }

    /// DM_TABLE_STATUS with DM_STATUS_TABLE_FLAG.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn table(&self, query: &schema::Query) -> Verb<Vec<schema::Line>> {
        let Queried { table, .. } = self.queried(query)?;
        Ok(table.map(|table| table.print(&Devices::number)).unwrap_or_default())
    }

    /// DM_TABLE_STATUS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn status(&self, query: &schema::Query) -> Verb<Vec<schema::Line>> {
        let Queried { table, chain, .. } = self.queried(query)?;
        Ok(table.map(|table| table.status(chain.as_deref(), &Devices::number)).unwrap_or_default())
    }

    /// DM_TABLE_DEPS.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn deps(&self, query: &schema::Query) -> Verb<Vec<schema::Dep>> {
        let Queried { names, table, .. } = self.queried(query)?;
        let name = |minor: u32| names.get(&minor).cloned().unwrap_or_else(|| Devices::number(minor));
        Ok(table.map(|table| table.deps(&name)).unwrap_or_default())
    }

    /// What is asked about, out of the lock.
    fn queried(&self, query: &schema::Query) -> Verb<Queried> {
        let devices = self.devices();
        let device = devices.get(devices.find(&query.which)?)?;
        let table = if query.inactive { &device.inactive } else { &device.active };
        let names = devices.all.values().map(|device| (device.minor, device.name.clone())).collect();
        let chain = (!query.inactive).then(|| device.disk.chain());
        Ok(Queried { names, table: table.clone(), chain })
    }

    /// DM_LIST_VERSIONS.
    pub fn targets(&self) -> Vec<schema::TargetType> {
        let version = |name: &str| match name {
            "linear" => [1, 4, 0],
            "striped" => [1, 6, 0],
            "zero" => [1, 2, 0],
            "error" => [1, 7, 0],
            "delay" => [1, 4, 0],
            "flakey" => [1, 5, 0],
            "unstriped" | "switch" | "log-writes" => [1, 1, 0],
            "ebs" => [1, 0, 1],
            "snapshot" => [1, 16, 0],
            "snapshot-origin" => [1, 9, 0],
            "snapshot-merge" => [1, 5, 0],
            "mirror" => [1, 14, 0],
            _ => [1, 0, 0],
        };
        let types = dm_table::target_types().filter(|name| crate::map::served(name));
        types.map(|name| schema::TargetType { name: name.to_owned(), version: version(name) }).collect()
    }

    /// DM_DEV_WAIT: a waiter that is ready when the device's event number is above the one asked for; [`Mapper::info`] then
    /// says what has become of it.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn wait(&self, wait: &schema::Wait) -> Verb<Waiter> {
        let events = {
            let devices = self.devices();
            devices.get(devices.find(&wait.which)?)?.events.clone()
        };
        let ready = events.wait(wait.event_nr).map_err(|error| system(&error))?;
        Ok(Waiter { ready })
    }

    /// What the devices are doing.
    ///
    /// # Errors
    /// No such device (ENXIO).
    pub fn stats(&self, query: &schema::StatsQuery) -> Verb<Vec<crate::stats::Snapshot>> {
        let disks: Vec<(String, u32, Arc<Disk>)> = {
            let devices = self.devices();
            let minors = match &query.which {
                Some(which) => vec![devices.find(which)?],
                None => devices.all.keys().copied().collect(),
            };
            let told = |minor: u32| {
                Some((devices.get(minor).ok()?.name.clone(), minor, devices.get(minor).ok()?.disk.clone()))
            };
            minors.into_iter().filter_map(told).collect()
        };
        // Without the lock: it may take a while.
        let told = |(name, minor, disk): &(String, u32, Arc<Disk>)| {
            disk.stats.snapshot(name, *minor, &disk.chain(), query.segments)
        };
        Ok(disks.iter().map(told).collect())
    }
}

fn system(error: &std::io::Error) -> DmError {
    DmError::new(error.raw_os_error().unwrap_or(libc::EIO)).detail(error.to_string())
}

/// As the kernel checks it, and that nothing else than a name's own bytes is in it: it becomes a file's name.
fn check_name(name: &str) -> Verb<()> {
    let invalid = |why: String| Err(DmError::new(libc::EINVAL).kernel(format!("ioctl: {why}")));
    match name {
        "" => invalid("name not supplied when creating device".into()),
        "control" | "." | ".." => invalid("device name cannot be \"control\", \".\", or \"..\"".into()),
        _ if name.contains('/') => invalid("device name cannot contain '/'".into()),
        _ if name.len() > NAME_LEN => invalid(format!("a name has at most {NAME_LEN} bytes")),
        _ if dm_table::mangle(name).as_deref() != Some(name) => {
            invalid("bytes of a name other than 0-9A-Za-z#+-.:=@_ must stand as \\xNN".into())
        }
        _ => Ok(()),
    }
}

fn check_uuid(uuid: &str) -> Verb<()> {
    let right = !uuid.is_empty() && uuid.len() <= UUID_LEN && dm_table::mangle(uuid).as_deref() == Some(uuid);
    match right {
        true => Ok(()),
        false => Err(DmError::new(libc::EINVAL).detail(format!(
            "a uuid has 1 to {UUID_LEN} bytes, of which those other than 0-9A-Za-z#+-.:=@_ stand as \\xNN"
        ))),
    }
}

#[cfg(test)]
mod tests;
