//! A disk to be served, and how a table file becomes disks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dm_table::{DevRef, Device, Diagnostic, Sectors, Span, TableFile};

use crate::chain::Chain;
use crate::device::{self, Component, Identity, Registry};
use crate::frontend::config::Offer;
use crate::hold::Hold;
use crate::map::{DevIx, LookupError, Lower, Map};
use crate::request::ID_LEN;

/// One disk: what a socket serves.
pub struct Disk {
    /// Its name in the table file, or the file's.
    pub name: String,
    /// The table it was made of, as `dmsetup table` prints it.
    pub table: String,
    /// Map and components.
    pub chain: Arc<Chain>,
    /// Whether the components are ours to write.
    pub hold: Arc<Hold>,
    /// Answer to GET_ID, filled up with zeroes.
    pub serial: [u8; ID_LEN],
    /// Queues and ring size.
    pub offer: Offer,
    /// The driver asked for write-through (CONFIG_WCE). Outlives sessions: see `frontend::Session`.
    pub chose_write_through: AtomicBool,
}

/// How disks are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Serve read-only whatever the table file says.
    pub read_only: bool,
    /// How component devices are cached on this machine.
    pub cache: device::Cache,
    /// A guest brings the components along when it migrates: see [`crate::hold`].
    pub incoming: bool,
    /// Queues and ring size.
    pub offer: Offer,
    /// Answer to GET_ID; by default the uuid, or the name.
    pub serial: Option<String>,
}

/// What a table file has become.
pub struct Loaded {
    /// Its disks, in the file's order.
    pub disks: Vec<Disk>,
    /// Disks that no other disk of the file lies on, as indices.
    pub tops: Vec<usize>,
    /// What is doubtful though not wrong.
    pub warnings: Vec<String>,
}

/// Opens the component devices of a table file and builds the maps of all its devices, lower ones first.
///
/// # Errors
/// The first thing wrong, where it is.
pub fn load(file: &TableFile, name: &str, options: &Options, registry: &mut Registry) -> Result<Loaded, Diagnostic> {
    let order = file.load_order()?;
    let mut loader = Loader {
        file,
        options,
        registry,
        names: file.mapper_names(),
        maps: vec![None; file.devices.len()],
        components: Vec::new(),
        by_identity: HashMap::new(),
        by_text: HashMap::new(),
        used: vec![false; file.devices.len()],
    };
    let mut warnings = Vec::new();
    for &index in &order {
        let device = &file.devices[index];
        let read_only = options.read_only || device.read_only;
        let mut resolve = |dev: &DevRef| loader.resolve(dev, read_only);
        let (map, doubts) = Map::build(&file.source, &device.table, read_only, &mut resolve)?;
        if map.is_empty() {
            return Err(Diagnostic::error(
                &file.source,
                device.name_span,
                "no targets: an empty table has no disk to serve",
            )
            .help("a line is `START LENGTH TARGET ARGUMENTS`, for example `0 2048 linear disk.img 0`"));
        }
        warnings.extend(doubts.iter().map(ToString::to_string));
        loader.maps[index] = Some(Arc::new(map));
    }
    for component in &loader.components {
        warnings.extend(component.warnings.iter().map(|w| format!("{}: {w}", component.path.display())));
    }
    let tops: Vec<usize> = (0..file.devices.len()).filter(|i| !loader.used[*i]).collect();
    warnings.extend(loader.shared_by(&tops));
    let Loader { maps, components, .. } = loader;
    let disk =
        |(device, map): (&Device, Option<Arc<Map>>)| map.map(|map| disk(device, map, &components, name, options));
    let disks = file.devices.iter().zip(maps).filter_map(disk).collect();
    Ok(Loaded { disks, tops, warnings })
}

fn disk(device: &Device, map: Arc<Map>, components: &[Arc<Component>], name: &str, options: &Options) -> Disk {
    let name = device.name.as_deref().unwrap_or(name).to_owned();
    let text = options.serial.as_deref().or(device.uuid.as_deref()).unwrap_or(&name);
    let mut serial = [0; ID_LEN];
    for (to, from) in serial.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    let chain = Arc::new(Chain {
        name: name.clone(),
        map,
        components: components.iter().cloned().collect(),
        read_only: options.read_only || device.read_only,
        limiters: Arc::default(),
        events: Arc::default(),
    });
    Disk {
        table: device.table.to_string(),
        hold: Arc::new(Hold::new(options.incoming)),
        chain,
        serial,
        offer: options.offer,
        chose_write_through: AtomicBool::new(false),
        name,
    }
}

struct Loader<'a> {
    file: &'a TableFile,
    options: &'a Options,
    registry: &'a mut Registry,
    names: dm_table::MapperNames,
    maps: Vec<Option<Arc<Map>>>,
    components: Vec<Arc<Component>>,
    by_identity: HashMap<(Identity, bool), DevIx>,
    // A table names a device once for each of its lines; it is looked up once.
    by_text: HashMap<(String, bool), DevIx>,
    used: Vec<bool>,
}

impl Loader<'_> {
    /// Component sectors that two disks would write.
    fn shared_by(&self, tops: &[usize]) -> Vec<String> {
        let writable = |i: &&usize| !self.options.read_only && !self.file.devices[**i].read_only;
        let (disks, maps): (Vec<usize>, Vec<&Map>) =
            tops.iter().filter(writable).filter_map(|i| Some((*i, self.maps[*i].as_deref()?))).unzip();
        let name = |disk: usize| self.file.devices[disks[disk]].name.as_deref().unwrap_or("disk");
        let tell = |shared: &crate::map::Shared| {
            let component = self.components.get(usize::from(shared.dev.0)).map_or("a component", |c| c.name.as_str());
            format!(
                "sectors {}..{} of {component} are reachable through {} and {}: what one guest writes changes under the other",
                shared.start,
                shared.end,
                name(shared.disks.0),
                name(shared.disks.1),
            )
        };
        crate::map::shared(&maps).iter().map(tell).collect()
    }

    fn resolve(&mut self, dev: &DevRef, read_only: bool) -> Result<Lower, LookupError> {
        match self.names.get(dev) {
            Some(index) => self.lower(index, read_only),
            None => self.component(dev, read_only),
        }
    }

    fn lower(&mut self, index: usize, read_only: bool) -> Result<Lower, LookupError> {
        self.used[index] = true;
        let device = &self.file.devices[index];
        if device.read_only && !read_only {
            return Err(LookupError {
                errno: "EROFS",
                why: format!("{} is read-only in this file", device.name.as_deref().unwrap_or("the lower device")),
                help: Some("make the lower device `rw`, or this one `ro`".into()),
            });
        }
        match &self.maps[index] {
            Some(map) => Ok(Lower::Map(map.clone())),
            // load_order puts lower devices first.
            None => Err(LookupError { errno: "ELOOP", why: "it is not built yet".into(), help: None }),
        }
    }

    fn component(&mut self, dev: &DevRef, read_only: bool) -> Result<Lower, LookupError> {
        let key = (dev.text.clone(), read_only);
        let ix = match self.by_text.get(&key) {
            Some(ix) => *ix,
            None => {
                let ix = self.open(dev, read_only)?;
                self.by_text.insert(key, ix);
                ix
            }
        };
        let component = &self.components[usize::from(ix.0)];
        Ok(Lower::Device { ix, name: component.name.clone(), size: component.size, limits: component.limits })
    }

    fn open(&mut self, dev: &DevRef, read_only: bool) -> Result<DevIx, LookupError> {
        let options = device::Options { read_only, cache: self.options.cache, incoming: self.options.incoming };
        let component = self.registry.open(&dev.text, dev.major_minor(), &options).map_err(|error| LookupError {
            errno: error.errno_name(),
            why: error.to_string(),
            help: error.help(),
        })?;
        let key = (component.identity, component.read_only);
        if let Some(ix) = self.by_identity.get(&key) {
            return Ok(*ix);
        }
        let ix = u16::try_from(self.components.len()).map(DevIx).map_err(|_| LookupError {
            errno: "EMFILE",
            why: "a table file can lead to at most 65536 component devices".into(),
            help: None,
        })?;
        self.components.push(component);
        self.by_identity.insert(key, ix);
        Ok(ix)
    }
}

/// The table of one plain file or partition, as `--blk-file` serves it.
pub fn whole(path: &str, size: Sectors) -> TableFile {
    use dm_table::{Line, Linear, Source, Table, Target};
    let span = Span { start: 0, end: path.len() };
    let dev = DevRef { text: path.to_owned(), span };
    let target = Target::Linear(Linear { dev, start: Sectors::ZERO, start_span: span });
    let line =
        Line { start: Sectors::ZERO, len: size, target, span, start_span: span, len_span: span, type_span: span };
    let table = Table { lines: vec![line] };
    TableFile {
        source: Arc::new(Source::new("--blk-file", path)),
        devices: vec![Device { name: None, name_span: span, uuid: None, minor: None, read_only: false, table }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dm_table::{Format, Source};

    fn load_text(text: &str) -> Result<Loaded, Diagnostic> {
        let file = dm_table::parse(Arc::new(Source::new("test", text)), Format::Auto)?;
        let options = Options {
            read_only: false,
            cache: device::Cache::Auto,
            incoming: false,
            offer: Offer::default(),
            serial: None,
        };
        load(&file, "test", &options, &mut Registry::new())
    }

    #[test]
    fn two_disks_that_write_the_same_sectors_are_warned_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let path = file.path().display();
        let warned = |two: &str| {
            let text = format!("one,,,,0 100 linear {path} 0;two,,,{two}");
            load_text(&text.replace("FILE", &path.to_string())).unwrap().warnings
        };
        let warnings = warned(",0 100 linear FILE 99");
        assert!(warnings.len() == 1 && warnings[0].starts_with("sectors 99..100 of "), "{warnings:?}");
        assert!(warned(",0 100 linear FILE 100").is_empty());
        assert!(warned("ro,0 100 linear FILE 0").is_empty());
        assert!(warned(",0 100 linear /dev/mapper/one 0").is_empty());
    }

    #[test]
    fn an_empty_table_is_refused() {
        let error = load_text("# nothing\n").err().unwrap().to_string();
        assert!(error.contains("an empty table has no disk to serve"), "{error}");
    }

    #[test]
    fn a_writable_device_needs_writable_ones_below() {
        let lower = "low,,,ro,0 8 zero;";
        let error = load_text(&format!("{lower}high,,,rw,0 8 linear /dev/mapper/low 0")).err().unwrap();
        assert_eq!(error.reason(), "linear: Device lookup failed (-EROFS)");
        let loaded = load_text(&format!("{lower}high,,,ro,0 8 linear /dev/mapper/low 0")).unwrap();
        assert_eq!(loaded.tops, [1]);
    }

    #[test]
    fn the_serial_number_is_the_uuid_or_the_name() {
        let loaded = load_text("a,an-uuid-of-more-than-20-bytes,,,0 8 zero;b,,,,0 8 zero").unwrap();
        assert_eq!(&loaded.disks[0].serial, b"an-uuid-of-more-than");
        assert_eq!(&loaded.disks[1].serial[..2], b"b\0");
    }
}
