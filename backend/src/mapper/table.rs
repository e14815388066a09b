//! A table that has been loaded: its text, what its devices stand for, and the map that was made of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use dm_table::{DevRef, Diagnostic, Sectors, Source, Target};

use crate::chain::{Chain, Components};
use crate::control::schema::{Dep, Line};
use crate::device::{self, Component, Kind, Registry, Slots};
use crate::disk::Disk;
use crate::map::{DevIx, LookupError, Lower, Map};
use crate::targets::Stateful;

use super::{DmError, MAJOR};

/// What a device of a table stands for.
#[derive(Clone)]
enum Found {
    /// Another device of this process, by its minor number; another may have that after it.
    Mapped(u32, Weak<Disk>),
    /// A component device, and its path from the root.
    Component(DevIx, Arc<Component>, PathBuf),
}

/// A device that a table may lie on, as it is when the table is built.
#[derive(Clone)]
pub(super) struct Lying {
    pub minor: u32,
    pub disk: Weak<Disk>,
    pub name: String,
    /// By its own flag.
    pub read_only: bool,
    /// Its live map; none when it has no table.
    pub map: Option<Arc<Map>>,
    /// It lies on the device whose table is built, or is that device.
    pub above: bool,
}

/// The devices of this process that a table may name.
#[derive(Default)]
pub(super) struct Mapped {
    pub by_minor: HashMap<u32, Lying>,
    pub by_name: HashMap<String, u32>,
}

impl Mapped {
    fn named(&self, dev: &DevRef) -> Option<&Lying> {
        let minor = match dev.major_minor() {
            Some((major, minor)) if major == u64::from(MAJOR) => u32::try_from(minor).ok()?,
            Some(_) => return None,
            None => *self.by_name.get(&dm_table::mangle(dev.mapper_name()?)?)?,
        };
        self.by_minor.get(&minor)
    }
}

/// What a table is built from, besides its text.
pub(super) struct Ground<'a> {
    /// The device whose table it is.
    pub minor: u32,
    pub registry: &'a mut Registry,
    pub slots: &'a mut Slots,
    pub options: device::Options,
    /// Whether the table is loaded for reading alone, whatever the options.
    pub declared: bool,
    /// Where relative paths begin; as the process has it by default.
    pub directory: Option<PathBuf>,
}

/// See the module's text.
pub(super) struct Table {
    origin: Arc<Source>,
    text: Arc<dm_table::Table>,
    found: HashMap<String, Found>,
    // Where relative paths begin.
    directory: Option<PathBuf>,
    /// Where its sectors are.
    pub map: Arc<Map>,
    /// For reading alone.
    pub read_only: bool,
    /// For reading alone by its own flag, not because all devices of the process are.
    pub declared: bool,
    /// It may make a guest's disk smaller.
    pub force: bool,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

impl Table {
    /// Finds and opens the devices of a table, and builds its map.
    pub fn build(
        (origin, text): (Arc<Source>, Arc<dm_table::Table>),
        mapped: &Mapped,
        ground: &mut Ground<'_>,
    ) -> Result<Table, Diagnostic> {
        let read_only = ground.options.read_only;
        let written = crate::map::writes(&text);
        let mut found: HashMap<String, Found> = HashMap::new();
        // A table may name a device in each of its lines.
        let mut stood: HashMap<String, Lower> = HashMap::new();
        let mut resolve = |dev: &DevRef| {
            if let Some(lower) = stood.get(&dev.text) {
                return Ok(lower.clone());
            }
            let new = match mapped.named(dev) {
                Some(lying) => Found::Mapped(lying.minor, lying.disk.clone()),
                None => ground.component(dev, !written.contains(dev.text.as_str()))?,
            };
            let lower = stands_for(&new, mapped, ground.declared)?;
            found.insert(dev.text.clone(), new);
            stood.insert(dev.text.clone(), lower.clone());
            Ok(lower)
        };
        let (map, doubts) = Map::build(&origin, &text, read_only, &mut resolve)?;
        let mut warnings: Vec<String> = doubts.iter().map(ToString::to_string).collect();
        let mut seen = BTreeSet::new();
        for component in found.values().filter_map(Found::component) {
            if seen.insert(Arc::as_ptr(component).addr()) {
                warnings.extend(component.warnings.iter().map(|w| format!("{}: {w}", component.path.display())));
            }
        }
        let directory = ground.directory.clone().or_else(|| std::env::current_dir().ok());
        Ok(Table {
            origin,
            text,
            found,
            directory,
            map: Arc::new(map.of_device(ground.minor)),
            read_only,
            declared: ground.declared,
            force: false,
            warnings,
        })
    }

    /// The same over devices that have changed since. Where one has become smaller, and `lenient` is the table it was built
    /// on, what lies beyond its end fails.
    pub fn rebuild(&self, mapped: &Mapped, lenient: bool) -> Result<Table, Diagnostic> {
        // A table may name a device in each of its lines.
        let mut stood: HashMap<String, Lower> = HashMap::new();
        let mut resolve = |dev: &DevRef| {
            if let Some(lower) = stood.get(&dev.text) {
                return Ok(lower.clone());
            }
            let known = self.found.get(&dev.text).ok_or_else(|| gone(&dev.text))?;
            let lower = match (stands_for(known, mapped, self.declared)?, lenient) {
                (Lower::Map(map), true) => match self.reach(dev) {
                    reach if reach > map.len() => Lower::Map(Arc::new(map.padded(reach))),
                    _ => Lower::Map(map),
                },
                (lower, _) => lower,
            };
            Ok(stood.entry(dev.text.clone()).or_insert(lower).clone())
        };
        let (map, _) = Map::rebuild(&self.origin, &self.text, self.read_only, &mut resolve, &self.map)?;
        Ok(Table {
            origin: self.origin.clone(),
            text: self.text.clone(),
            found: self.found.clone(),
            directory: self.directory.clone(),
            map: Arc::new(map),
            read_only: self.read_only,
            declared: self.declared,
            force: self.force,
            warnings: Vec::new(),
        })
    }

    /// How many sectors a device must have that the table names.
    fn reach(&self, dev: &DevRef) -> Sectors {
        let ends = self.text.lines.iter().flat_map(|line| match &line.target {
            Target::Linear(linear) if linear.dev.text == dev.text => vec![linear.start.get() + line.len.get()],
            Target::Error(error) => match &error.dev {
                Some((named, start)) if named.text == dev.text => vec![start.get() + line.len.get()],
                _ => Vec::new(),
            },
            Target::Striped(striped) => {
                let len = line.len.get() / (striped.stripes.len() as u64).max(1);
                let on = striped.stripes.iter().filter(|stripe| stripe.dev.text == dev.text);
                on.map(|stripe| stripe.start.get() + len).collect()
            }
            other => {
                let named = |position: &crate::map::Position<'_>| position.dev.text == dev.text && !position.aside;
                let on = crate::map::positions(other).into_iter().filter(named);
                let reach = crate::map::reach(other, line.len).get() + crate::map::shift(other, line.start).get();
                on.map(|position| position.start.get().saturating_add(reach)).collect()
            }
        });
        Sectors::new(ends.max().unwrap_or(0))
    }

    /// The table as it was loaded, devices of this process as `lower` says.
    pub fn as_loaded(&self, lower: &dyn Fn(u32) -> String) -> String {
        let name = |dev: &DevRef| match self.found.get(&dev.text) {
            Some(Found::Mapped(minor, _)) => lower(*minor),
            _ => dev.text.clone(),
        };
        self.text.display_with(&name).to_string()
    }

    /// Where its relative paths begin.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The table as its author wrote it.
    pub fn written(&self) -> String {
        self.text.to_string()
    }

    /// Sectors of the device.
    pub fn len(&self) -> Sectors {
        self.text.len()
    }

    /// Number of lines.
    pub fn lines(&self) -> u32 {
        u32::try_from(self.text.lines.len()).unwrap_or(u32::MAX)
    }

    /// The devices of this process that it lies on, by minor number.
    pub fn lowers(&self) -> BTreeSet<u32> {
        let minor = |found: &Found| match found {
            Found::Mapped(minor, _) => Some(*minor),
            Found::Component(..) => None,
        };
        self.found.values().filter_map(minor).collect()
    }

    /// Whether the devices that it lies on are still those that it was built on.
    pub fn is_grounded(&self, disk: &dyn Fn(u32) -> Option<Arc<Disk>>) -> bool {
        self.found.values().all(|found| match found {
            Found::Mapped(minor, known) => disk(*minor).is_some_and(|disk| known.ptr_eq(&Arc::downgrade(&disk))),
            Found::Component(..) => true,
        })
    }

    /// Its own component devices; those of devices that it lies on are theirs.
    pub fn components(&self) -> impl Iterator<Item = (DevIx, &Arc<Component>)> {
        self.found.values().filter_map(|found| match found {
            Found::Component(ix, component, _) => Some((*ix, component)),
            Found::Mapped(..) => None,
        })
    }

    /// # Errors
    /// A component device has become smaller than the table needs (EINVAL), or does not tell its size.
    pub fn still_fits(&self, minor: u32) -> Result<(), DmError> {
        for (_, component) in self.components() {
            let now = component.current_size().map_err(|error| {
                DmError::new(error.raw_os_error().unwrap_or(libc::EIO))
                    .detail(format!("{}: cannot find its size: {error}", component.path.display()))
            })?;
            if now < component.size {
                let name = &component.name;
                return Err(DmError::new(libc::EINVAL)
                    .kernel(format!("table: {MAJOR}:{minor}: {name} too small for target: dev_size={now}"))
                    .detail(format!(
                        "{}: it had {} sectors when the table was loaded and has {now} now; load a table that fits",
                        component.path.display(),
                        component.size
                    )));
            }
        }
        Ok(())
    }

    /// The lines as `dmsetup table` prints them: block devices by their numbers, files by their paths, devices of this
    /// process as `lower` says.
    pub fn print(&self, lower: &dyn Fn(u32) -> String) -> Vec<Line> {
        let name = |dev: &DevRef| self.shown(dev, lower);
        let mut text = dm_table::Table::clone(&self.text);
        for line in &mut text.lines {
            if let Some(target) = self.map.own_target(line.start).and_then(|target| target.printed(&line.target)) {
                line.target = target;
            }
        }
        let whole = text.display_with(&name).to_string();
        let params = whole.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned());
        self.text.lines.iter().zip(params).map(|(line, params)| line_of(line, params)).collect()
    }

    /// The stateful target of the line that holds a sector.
    pub fn target_at(&self, sector: u64) -> Option<Arc<Stateful>> {
        let holds = |line: &&dm_table::Line| (line.start.get()..line.start.get() + line.len.get()).contains(&sector);
        self.map.own_target(self.text.lines.iter().find(holds)?.start).cloned()
    }

    /// A device as the lines show it.
    fn shown(&self, dev: &DevRef, lower: &dyn Fn(u32) -> String) -> String {
        self.shown_text(&dev.text, lower)
    }

    fn shown_text(&self, dev: &str, lower: &dyn Fn(u32) -> String) -> String {
        match self.found.get(dev) {
            Some(Found::Mapped(minor, _)) => lower(*minor),
            Some(Found::Component(_, component, path)) => match component.kind {
                Kind::Block { major, minor } => format!("{major}:{minor}"),
                Kind::File => path.display().to_string(),
            },
            None => dev.to_owned(),
        }
    }

    /// The lines as `dmsetup status` prints them. `chain` is what is served of the table, if it is live.
    pub fn status(&self, chain: Option<&Chain>, lower: &dyn Fn(u32) -> String) -> Vec<Line> {
        let failed = |dev: &DevRef| match self.found.get(&dev.text) {
            Some(Found::Component(ix, ..)) => chain.is_some_and(|chain| chain.components.errors(*ix) > 0),
            _ => false,
        };
        let status = |target: &Target| match target {
            Target::Striped(striped) => {
                let names = striped.stripes.iter().map(|stripe| self.shown(&stripe.dev, lower) + " ");
                let health = striped.stripes.iter().map(|stripe| if failed(&stripe.dev) { 'D' } else { 'A' });
                format!("{} {}1 {}", striped.stripes.len(), names.collect::<String>(), health.collect::<String>())
            }
            _ => String::new(),
        };
        let status = |line: &dm_table::Line| match self.map.own_target(line.start) {
            Some(target) => target.status(&|dev| self.shown_text(dev, lower)),
            None => status(&line.target),
        };
        self.text.lines.iter().map(|line| line_of(line, status(line))).collect()
    }

    /// What it lies on, each once.
    pub fn deps(&self, lower: &dyn Fn(u32) -> String) -> Vec<Dep> {
        let mut deps: Vec<Dep> = Vec::new();
        for dev in self.text.device_refs() {
            let dep = match self.found.get(&dev.text) {
                Some(Found::Mapped(minor, _)) => {
                    Dep { major: Some(MAJOR), minor: Some(*minor), name: lower(*minor), mapped: true }
                }
                Some(Found::Component(_, component, path)) => match component.kind {
                    Kind::Block { major, minor } => {
                        Dep { major: Some(major), minor: Some(minor), name: component.name.clone(), mapped: false }
                    }
                    Kind::File => Dep { name: path.display().to_string(), ..Dep::default() },
                },
                None => continue,
            };
            if !deps.contains(&dep) {
                deps.push(dep);
            }
        }
        deps
    }
}

fn line_of(line: &dm_table::Line, params: String) -> Line {
    let target = line.target.type_name().to_owned();
    Line { start: line.start.get(), len: line.len.get(), target, params }
}

impl Found {
    fn component(&self) -> Option<&Arc<Component>> {
        match self {
            Found::Component(_, component, _) => Some(component),
            Found::Mapped(..) => None,
        }
    }
}

/// For a table without devices.
pub(super) fn none() -> LookupError {
    gone("?")
}

fn gone(name: &str) -> LookupError {
    LookupError { errno: "ENXIO", why: format!("the device {name} is gone"), help: None }
}

fn stands_for(found: &Found, mapped: &Mapped, read_only: bool) -> Result<Lower, LookupError> {
    let (minor, disk) = match found {
        Found::Component(ix, component, _) => {
            return Ok(Lower::Device {
                ix: *ix,
                name: component.name.clone(),
                size: component.size,
                limits: component.limits,
            });
        }
        Found::Mapped(minor, disk) => (minor, disk),
    };
    let lying = mapped.by_minor.get(minor).filter(|lying| lying.disk.ptr_eq(disk));
    let lying = lying.ok_or_else(|| gone(&format!("{MAJOR}:{minor}")))?;
    let name = &lying.name;
    if lying.above {
        return Err(LookupError {
            errno: "EINVAL",
            why: format!("{name} is this device, or lies on it"),
            help: Some("devices must stand on each other without coming back to the first".into()),
        });
    }
    match &lying.map {
        Some(map) if lying.read_only && !read_only => Ok(Lower::Map(Arc::new(map.for_reading()))),
        Some(map) => Ok(Lower::Map(map.clone())),
        None => Err(LookupError {
            errno: "ENXIO",
            why: format!("{name} has no live table"),
            help: Some(format!("load one into it and resume it first: `dmsetup load {name}`, `dmsetup resume {name}`")),
        }),
    }
}

impl Ground<'_> {
    fn component(&mut self, dev: &DevRef, only_read: bool) -> Result<Found, LookupError> {
        let path = match (&self.directory, dev.major_minor()) {
            (Some(directory), None) => directory.join(&dev.text),
            _ => PathBuf::from(&dev.text),
        };
        let text = path.to_str().unwrap_or(&dev.text);
        let options = device::Options { read_only: self.options.read_only || only_read, ..self.options };
        let component = self.registry.open(text, dev.major_minor(), &options).map_err(|error| LookupError {
            errno: error.errno_name(),
            why: error.to_string(),
            help: error.help(),
        })?;
        let ix = self.slots.slot(&component)?;
        let path = match dev.major_minor() {
            Some(_) => component.path.clone(),
            None => std::path::absolute(&path).unwrap_or(path),
        };
        Ok(Found::Component(ix, component, path))
    }
}

/// The components that a map leads to, out of those of the tables that it was made of. Of a device that it writes, one that is
/// open for that; of another, one that is not, if there is one; of those the largest.
pub(super) fn components<'t>(map: &Map, tables: impl Iterator<Item = &'t Table>) -> Components {
    let mut chosen: BTreeMap<DevIx, &Arc<Component>> = BTreeMap::new();
    let reached = |ix: &DevIx| map.devices().binary_search(ix).is_ok();
    for (ix, component) in tables.flat_map(Table::components).filter(|(ix, _)| reached(ix)) {
        let written = map.written().binary_search(&ix).is_ok();
        let rank = |component: &Component| (component.read_only != written, component.size);
        let best = chosen.entry(ix).or_insert(component);
        if rank(component) > rank(best) {
            *best = component;
        }
    }
    chosen.into_iter().map(|(ix, component)| (ix, component.clone())).collect()
}

/// A refusal of a table, as the kernel gives it.
pub(super) fn refused(minor: u32, diagnostic: &Diagnostic) -> DmError {
    let mut reason = diagnostic.reason().to_owned();
    // The kernel says the errno behind what a target's constructor gives as its reason; some of these end with a
    // parenthesis of their own.
    let of_target = reason.split_once(": ").is_some_and(|(target, rest)| {
        dm_table::target_types().any(|known| known == target) && !rest.contains(" (-E") && rest != "unknown target type"
    });
    if of_target {
        reason.push_str(" (-EINVAL)");
    }
    let named = reason.rsplit_once("(-").and_then(|(_, rest)| rest.strip_suffix(')'));
    let errno = named.and_then(DmError::number).unwrap_or(libc::EINVAL);
    DmError::new(errno).kernel(format!("table: {MAJOR}:{minor}: {reason}")).detail(diagnostic.to_string())
}

/// Whether a path is one that a table's text can hold.
pub(super) fn directory(text: Option<&str>) -> Option<PathBuf> {
    text.map(Path::new).filter(|path| path.is_absolute()).map(Path::to_path_buf)
}
