//! Volumes of LVM2 without LVM2: its metadata is read, and tables are made of it.
//!
//! Nothing is written and no lock of LVM2's is taken, so a volume that is active on this machine is refused. What another
//! machine does with a shared group cannot be seen from here.

mod group;
pub(crate) mod label;
mod tables;
mod text;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use group::{Found, Group};

/// A table made of LVM2's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The table file's text.
    pub text: String,
    /// It is of the concise form, with several devices or a read-only one; the volume asked for is the one that no other
    /// lies on.
    pub concise: bool,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// The name is neither `VG/LV` nor `VG`.
    #[error("{0:?} is no name of a volume: VG/LV is expected, or VG for all of a group")]
    Name(String),
    /// A device cannot be read.
    #[error("{}: cannot look for an LVM2 label: {source}", path.display())]
    Read {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A device was named that is no physical volume.
    #[error("{}: no LVM2 label in its first four sectors", .0.display())]
    NoLabel(PathBuf),
    /// No device has the group.
    #[error(
        "no readable device has metadata of the volume group {name}{}{}",
        if found.is_empty() { String::new() } else { format!("; there is {}", found.join(", ")) },
        if damaged.is_empty() { String::new() } else { format!("; {}", damaged.join("; ")) }
    )]
    NoGroup {
        /// Its name.
        name: String,
        /// Groups that there are.
        found: Vec<String>,
        /// Metadata that cannot be used.
        damaged: Vec<String>,
    },
    /// Two groups have one name.
    #[error("two volume groups are called {name}: name the physical volumes of one with --pv")]
    Twins {
        /// Their name.
        name: String,
    },
    /// Two devices are one physical volume.
    #[error("{} and {} are the same physical volume, or copies of one: name one of them with --pv", one.display(), other.display())]
    SameVolume {
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
    },
    /// A group that makes no sense.
    #[error("volume group {name}: {why}")]
    Group {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A volume of which no table can be made.
    #[error("{name}: {why}")]
    Volume {
        /// The group's name and its own.
        name: String,
        /// Why.
        why: String,
    },
    /// A volume is active on this machine.
    #[error("{name} is active on this machine ({}): use that device, or end its use first: `lvchange -an {name}`", devices.join(", "))]
    Active {
        /// The volume or the group.
        name: String,
        /// The kernel's devices.
        devices: Vec<String>,
    },
}

/// Tables of `VG/LV`, or of all visible volumes of `VG`. Its physical volumes are looked for among `devices`, or, where none
/// is given, among all block devices that can be read.
///
/// # Errors
/// Why there are none: see [`LvmError`].
pub fn tables(name: &str, devices: &[PathBuf]) -> Result<Made, LvmError> {
    tables_below(Path::new("/sys"), name, devices)
}

/// The same, with another place for what the kernel says of its devices.
///
/// # Errors
/// As above.
pub fn tables_below(sys: &Path, name: &str, devices: &[PathBuf]) -> Result<Made, LvmError> {
    let (group_name, volume) = split(name)?;
    let group = group::read(group_name, search(sys, devices)?)?;
    let active = active(sys, &group, volume);
    if !active.is_empty() {
        let name = volume.map_or(group_name.to_owned(), |volume| format!("{group_name}/{volume}"));
        return Err(LvmError::Active { name, devices: active });
    }
    let mut tables = tables::Tables::new(&group);
    let mut left_out = Vec::new();
    match volume {
        Some(volume) => tables.add(volume)?,
        None => {
            for volume in group.logical.iter().filter(|volume| volume.visible) {
                left_out.extend(tables.add(&volume.name).err().map(|error| format!("left out: {error}")));
            }
        }
    }
    let (text, concise) = tables.text();
    if text.is_empty() {
        let why = left_out.first().cloned().unwrap_or_else(|| "it has no logical volume".to_owned());
        return Err(LvmError::Group { name: group_name.to_owned(), why });
    }
    let found = std::mem::take(&mut tables.warnings);
    let warnings = group.warnings.iter().cloned().chain(found).chain(left_out).collect();
    Ok(Made { text, concise, warnings })
}

fn split(name: &str) -> Result<(&str, Option<&str>), LvmError> {
    let short = name.strip_prefix("/dev/").unwrap_or(name);
    match short.split('/').collect::<Vec<_>>().as_slice() {
        [group] if !group.is_empty() => Ok((group, None)),
        [group, volume] if !group.is_empty() && !volume.is_empty() => Ok((group, Some(volume))),
        _ => Err(LvmError::Name(name.to_owned())),
    }
}

/// The physical volumes among these devices. One that was named must be one; of all the others those that are.
fn search(sys: &Path, devices: &[PathBuf]) -> Result<Vec<Found>, LvmError> {
    if devices.is_empty() {
        let nodes = block_devices(sys);
        return Ok(nodes.iter().filter_map(|node| Found::open(node).ok().flatten()).collect());
    }
    let open = |path: &PathBuf| match Found::open(path) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(LvmError::NoLabel(path.clone())),
        Err(source) => Err(LvmError::Read { path: path.clone(), source }),
    };
    devices.iter().map(open).collect()
}

/// Nodes of the block devices that may hold physical volumes: not those of volumes themselves.
fn block_devices(sys: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(sys.join("class/block")).into_iter().flatten().flatten();
    let mut nodes: Vec<PathBuf> = entries
        .filter(|entry| !uuid(&entry.path()).starts_with("LVM-"))
        .map(|entry| Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/")))
        .collect();
    nodes.sort();
    nodes
}

fn uuid(device: &Path) -> String {
    fs::read_to_string(device.join("dm/uuid")).unwrap_or_default().trim_end().to_owned()
}

/// The kernel's devices of a volume, or of any of a group. Their uuids begin with the group's and the volume's.
fn active(sys: &Path, group: &Group, volume: Option<&str>) -> Vec<String> {
    let volume = volume.and_then(|name| group.logical.iter().find(|volume| volume.name == name));
    let volume = volume.map(|volume| tables::plain(&volume.uuid)).unwrap_or_default();
    let prefix = format!("LVM-{}{volume}", tables::plain(&group.uuid));
    let entries = fs::read_dir(sys.join("class/block")).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| uuid(&entry.path()).starts_with(&prefix));
    let name = |entry: fs::DirEntry| {
        let kernel = entry.file_name().to_string_lossy().into_owned();
        let name = fs::read_to_string(entry.path().join("dm/name")).unwrap_or_default();
        format!("{kernel}, {}", name.trim_end())
    };
    let mut devices: Vec<String> = ours.map(name).collect();
    devices.sort();
    devices
}
