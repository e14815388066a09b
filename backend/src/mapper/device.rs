//! One mapped device.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::chain::Chain;
use crate::control::schema::{Info, Which};
use crate::disk::Disk;
use crate::event::Events;
use crate::frontend::Session;
use crate::map::Map;

use super::serve::Serving;
use super::table::{self, Lying, Mapped, Table};
use super::{DmError, MAJOR, Verb};

/// See the module's text.
pub(super) struct Device {
    pub minor: u32,
    pub name: String,
    pub uuid: Option<String>,
    /// As the process sees it when there is no table yet: see [`Disk`].
    pub disk: Arc<Disk>,
    pub events: Arc<Events>,
    pub active: Option<Arc<Table>>,
    pub inactive: Option<Arc<Table>>,
    /// Since when it takes no requests.
    pub suspended: Option<Instant>,
    pub deferred_remove: bool,
    /// A verb is under way that must be the only one.
    pub busy: bool,
    /// Where it is served.
    pub serving: Option<Serving>,
    /// Its answer to GET_ID, which it keeps under another name.
    pub serial: String,
}

impl Device {
    /// The session of the front end that is connected.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.serving.as_ref()?.server.session()
    }

    pub fn is_connected(&self) -> bool {
        self.session().is_some()
    }
}

/// Tables by the minor numbers of their devices.
pub(super) type Tables = BTreeMap<u32, Arc<Table>>;

/// All devices.
#[derive(Default)]
pub(super) struct Devices {
    pub all: BTreeMap<u32, Device>,
    // Nothing is made or changed any more.
    pub closed: bool,
    /// Bytes of the smallest logical block that a guest is shown.
    pub block: u32,
}

impl Devices {
    /// The minor number of a device.
    pub fn find(&self, which: &Which) -> Verb<u32> {
        let found = match which {
            Which { name: Some(name), uuid: None, minor: None } => {
                self.all.values().find(|device| device.name == *name).map(|device| device.minor)
            }
            Which { name: None, uuid: Some(uuid), minor: None } => {
                self.all.values().find(|device| device.uuid.as_ref() == Some(uuid)).map(|device| device.minor)
            }
            Which { name: None, uuid: None, minor: Some(minor) } => self.all.get(minor).map(|device| device.minor),
            _ => {
                return Err(DmError::new(libc::EINVAL).detail("a device is given by one of name, uuid and minor"));
            }
        };
        found.ok_or_else(|| DmError::new(libc::ENXIO))
    }

    pub fn get(&self, minor: u32) -> Verb<&Device> {
        self.all.get(&minor).ok_or_else(|| DmError::new(libc::ENXIO))
    }

    pub fn get_mut(&mut self, minor: u32) -> Verb<&mut Device> {
        self.all.get_mut(&minor).ok_or_else(|| DmError::new(libc::ENXIO))
    }

    /// Devices whose tables, the live ones or any, lie on a device, directly.
    fn directly_above(&self, minor: u32, live_only: bool) -> impl Iterator<Item = u32> {
        let lies_on = move |table: &Option<Arc<Table>>| table.as_ref().is_some_and(|t| t.lowers().contains(&minor));
        let above = self.all.values().filter(move |d| lies_on(&d.active) || (!live_only && lies_on(&d.inactive)));
        above.map(|device| device.minor)
    }

    /// Devices that lie on a device, lower ones first; that device is the first of them.
    pub fn above(&self, minor: u32, live_only: bool) -> Vec<u32> {
        // Longest way from the device to each, so that one comes after all that it lies on.
        let mut depth: BTreeMap<u32, usize> = BTreeMap::from([(minor, 0)]);
        let mut next = vec![minor];
        while let Some(lower) = next.pop() {
            let below = depth.get(&lower).copied().unwrap_or(0);
            // No device lies on itself, so this is bounded by the number of devices; the check is for inactive tables, of
            // which two may lie on each other's devices until one of them is resumed.
            for upper in self.directly_above(lower, live_only) {
                if depth.get(&upper).is_none_or(|known| *known <= below) && below < self.all.len() {
                    depth.insert(upper, below + 1);
                    next.push(upper);
                }
            }
        }
        let mut minors: Vec<u32> = depth.keys().copied().collect();
        minors.sort_by_key(|minor| depth.get(minor).copied());
        minors
    }

    /// Devices that change when a device is resumed, or must not change meanwhile: those above it, which come first and lower
    /// ones first, and those below its inactive table.
    pub fn concerned(&self, minor: u32) -> Vec<u32> {
        let mut all = self.above(minor, true);
        let lowers = self.all.get(&minor).and_then(|device| device.inactive.as_ref()).map(|table| table.lowers());
        for lower in lowers.into_iter().flatten() {
            let more = self.below(lower, &Tables::new()).into_iter().filter(|minor| !all.contains(minor));
            let more: Vec<u32> = more.collect();
            all.extend(more);
        }
        all
    }

    /// Users of a device: its front end, and the devices that lie on it.
    pub fn open_count(&self, minor: u32) -> u32 {
        let connected = self.all.get(&minor).is_some_and(Device::is_connected);
        self.directly_above(minor, false).count() as u32 + u32::from(connected)
    }

    /// Devices whose tables a device's live table is made of, itself included. `tables` are live instead of those that are.
    pub fn below(&self, minor: u32, tables: &Tables) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        let mut next = vec![minor];
        while let Some(minor) = next.pop() {
            if all.insert(minor)
                && let Some(table) = self.live(minor, tables)
            {
                next.extend(table.lowers());
            }
        }
        all
    }

    fn live<'a>(&'a self, minor: u32, tables: &'a Tables) -> Option<&'a Arc<Table>> {
        tables.get(&minor).or_else(|| self.all.get(&minor)?.active.as_ref())
    }

    /// What a table of the device may lie on.
    pub fn mapped(&self, minor: u32) -> Mapped {
        let above: BTreeSet<u32> = self.above(minor, false).into_iter().collect();
        let lying = |device: &Device| Lying {
            minor: device.minor,
            disk: Arc::downgrade(&device.disk),
            name: device.name.clone(),
            read_only: device.active.as_ref().is_some_and(|table| table.declared),
            map: device.active.as_ref().map(|table| table.map.clone()),
            above: above.contains(&device.minor),
        };
        Mapped {
            by_minor: self.all.values().map(|device| (device.minor, lying(device))).collect(),
            by_name: self.all.values().map(|device| (device.name.clone(), device.minor)).collect::<HashMap<_, _>>(),
        }
    }

    /// What is served of a device when `tables` are live, and of the other devices those that are.
    pub fn chain(&self, minor: u32, tables: &Tables) -> Option<Chain> {
        let device = self.all.get(&minor)?;
        let table = self.live(minor, tables)?;
        let below = self.below(minor, tables);
        let all = below.iter().filter_map(|minor| self.live(*minor, tables));
        table.map.own_targets().for_each(|target| target.events(&device.events));
        Some(Chain {
            name: device.disk.name(),
            components: table::components(&table.map, all.map(Arc::as_ref)),
            map: match self.block > table.map.limits().logical_block {
                true => Arc::new(table.map.in_blocks(self.block)),
                false => Arc::<Map>::clone(&table.map),
            },
            read_only: table.read_only,
            limiters: device.disk.limiters.clone(),
            events: device.events.clone(),
        })
    }

    /// Whether a device takes no requests: it is suspended, or one that it lies on is.
    pub fn is_blocked(&self, minor: u32) -> bool {
        self.below(minor, &Tables::new())
            .iter()
            .filter_map(|lower| self.all.get(lower))
            .any(|device| device.suspended.is_some())
    }

    /// The name of a lower device in a table that is printed.
    pub fn number(minor: u32) -> String {
        format!("{MAJOR}:{minor}")
    }

    pub fn info(&self, minor: u32) -> Verb<Info> {
        let device = self.get(minor)?;
        let table = device.active.as_ref();
        Ok(Info {
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            major: MAJOR,
            minor,
            read_only: table.or(device.inactive.as_ref()).is_some_and(|table| table.read_only),
            suspended: device.suspended.is_some(),
            live: table.is_some(),
            inactive: device.inactive.is_some(),
            open_count: self.open_count(minor),
            event_nr: device.events.number(),
            targets: table.map_or(0, |table| table.lines()),
            sectors: table.map_or(0, |table| table.len().get()),
            deferred_remove: device.deferred_remove,
            socket: device.serving.as_ref().map(|serving| serving.shown.clone()),
            connected: device.is_connected(),
        })
    }
}
