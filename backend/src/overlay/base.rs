//! What lies under an overlay.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use dm_table::{DevRef, Device, TableFile};

use super::OverlayError;
use crate::chain::Chain;
use crate::device::{Survey, survey};
use crate::inspect::Assembled;
use crate::mapper::Mapper;
use crate::place::PlaceError;

/// A device of a table file, taken apart for an overlay to come over it.
#[derive(Debug)]
pub(super) struct Split {
    /// The device under another name, and those that it lies on.
    pub file: TableFile,
    /// That name, as it stands under `/dev/mapper/`.
    pub base_name: String,
    /// Name, uuid and minor number for the device over it. Its table is empty.
    pub top: Device,
    /// That name, as devices are found by it.
    pub shown: String,
    /// Its sectors.
    pub sectors: u64,
}

/// Longest name of a device, in bytes.
const NAME_LEN: usize = 127;

/// Takes apart the device with a name, or the one that no other lies on. Its base is for reading alone, or as the file says.
pub(super) fn split(file: &TableFile, name: &str, device: Option<&str>, read_only: bool) -> Result<Split, PlaceError> {
    let names = file.mapper_names();
    let below = |index: usize| file.devices[index].table.device_refs().filter_map(|dev| names.get(dev));
    let shown = |index: usize| file.devices[index].name.clone().unwrap_or_else(|| name.to_owned());
    let list = |all: &[usize]| all.iter().map(|index| shown(*index)).collect::<Vec<_>>().join(", ");
    let all: Vec<usize> = (0..file.devices.len()).collect();
    let chosen = match device {
        Some(wanted) => all
            .iter()
            .copied()
            .find(|index| shown(*index) == wanted)
            .ok_or_else(|| PlaceError::NoSuchDevice { name: wanted.to_owned(), devices: list(&all) })?,
        None => {
            let lower: BTreeSet<usize> = all.iter().flat_map(|index| below(*index)).collect();
            let tops: Vec<usize> = all.iter().copied().filter(|index| !lower.contains(index)).collect();
            match tops.as_slice() {
                [top] => *top,
                [] => return Err(PlaceError::NoDevice),
                tops => return Err(PlaceError::SeveralDevices { devices: list(tops) }),
            }
        }
    };
    let mut needed = BTreeSet::from([chosen]);
    let mut next = vec![chosen];
    while let Some(index) = next.pop() {
        next.extend(below(index).filter(|lower| needed.insert(*lower)));
    }
    let base_name = base_name(file, &shown(chosen));
    let shown = dm_table::mangle(&shown(chosen)).unwrap_or_else(|| "disk".to_owned());
    let of_file = &file.devices[chosen];
    let top = Device { table: Arc::default(), ..of_file.clone() };
    let devices = needed.into_iter().map(|index| {
        let device = Device { read_only: read_only || file.devices[index].read_only, ..file.devices[index].clone() };
        match index == chosen {
            true => Device { name: Some(base_name.clone()), uuid: None, minor: None, ..device },
            false => device,
        }
    });
    let sectors = of_file.table.len().get();
    let file = TableFile { source: file.source.clone(), devices: devices.collect() };
    Ok(Split { file, base_name, top, shown, sectors })
}

/// A name that no device of the file has.
fn base_name(file: &TableFile, name: &str) -> String {
    let taken: BTreeSet<String> = file.devices.iter().filter_map(Device::mapper_name).collect();
    let name = dm_table::mangle(name).unwrap_or_else(|| "disk".to_owned());
    let numbered = (2..).map(|n| format!("base-{n}"));
    let fits = |name: &String| name.len() <= NAME_LEN && !taken.contains(name);
    let mut names = [format!("{name}-base"), "base".to_owned()].into_iter().chain(numbered);
    names.find(fits).unwrap_or_default()
}

/// Refuses a base that this machine may write to, or that has the overlay in it. What is forced is returned.
pub(super) fn changing(split: &Split, overlay: Option<&Path>, force: &[String]) -> Result<Vec<String>, OverlayError> {
    let forced =
        |error: &OverlayError| matches!(error, OverlayError::Changing { id, .. } if force.iter().any(|its| its == id));
    let warn = |error: OverlayError| if forced(&error) { Ok(error.to_string()) } else { Err(error) };
    changes(split, overlay)?.into_iter().map(warn).collect()
}

/// What may change a base under its overlay.
///
/// # Errors
/// The overlay lies in it.
pub(super) fn changes(split: &Split, overlay: Option<&Path>) -> Result<Vec<OverlayError>, OverlayError> {
    let names = split.file.mapper_names();
    let refs = split.file.devices.iter().flat_map(|device| device.table.device_refs());
    let ours = |dev: &&DevRef| names.get(dev).is_some();
    let mut seen = BTreeSet::new();
    let overlay = overlay.and_then(|path| Some((path, survey(std::path::absolute(path).ok()?.to_str()?, None).ok()?)));
    let mut changes = Vec::new();
    for dev in refs.filter(|dev| !ours(dev)).filter(|dev| seen.insert(dev.text.clone())) {
        // What cannot be found is told with its place in the table when it is opened.
        let Ok(component) = survey(&dev.text, dev.major_minor()) else { continue };
        if let Some((path, _)) = overlay.as_ref().filter(|(_, overlay)| touches(overlay, &component)) {
            return Err(OverlayError::Within { path: (*path).to_owned(), component: dev.text.clone() });
        }
        changes.extend(component.uses.iter().filter(|its| its.writes).map(|its| OverlayError::Changing {
            component: dev.text.clone(),
            what: its.what.clone(),
            release: its.release.clone(),
            id: its.id,
        }));
    }
    Ok(changes)
}

fn touches(one: &Survey, other: &Survey) -> bool {
    let whole = |survey: &Survey| survey.whole.map(|(disk, _)| disk);
    one.identity == other.identity || whole(one) == Some(other.identity) || whole(other) == Some(one.identity)
}

/// A device that was started.
pub(super) fn chain(mapper: &Mapper, name: &str) -> Result<Arc<Chain>, OverlayError> {
    let found = mapper.started().into_iter().find(|started| started.name == name);
    let chain = found.map(|found| found.disk.chain());
    chain.ok_or_else(|| OverlayError::Unreadable(std::io::ErrorKind::NotFound.into()))
}

/// The base as a guest would read it.
pub(super) fn assembled(mapper: &Mapper, split: &Split) -> Result<Assembled, OverlayError> {
    Assembled::new(chain(mapper, &split.base_name)?).map_err(OverlayError::Unreadable)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dm_table::{Format, Source};

    use super::*;

    fn parsed(text: &str) -> TableFile {
        dm_table::parse(Arc::new(Source::new("test", text)), Format::Auto).unwrap()
    }

    #[test]
    fn a_device_is_taken_apart_with_all_that_it_lies_on() {
        let file = parsed(
            "low,,,,0 8 zero;other,,,,0 8 zero;top,UU,7,,0 4 linear /dev/mapper/mid 0;\
             mid,,,,0 8 linear /dev/mapper/low 0;top-base,,,,0 8 zero",
        );
        assert!(
            matches!(split(&file, "file", None, true), Err(PlaceError::SeveralDevices { devices }) if devices == "other, top, top-base")
        );
        let Err(PlaceError::NoSuchDevice { devices, .. }) = split(&file, "file", Some("x"), true) else { panic!() };
        assert_eq!(devices, "low, other, top, mid, top-base");
        let top = split(&file, "file", Some("top"), true).unwrap();
        let names: Vec<_> = top.file.devices.iter().filter_map(|device| device.name.as_deref()).collect();
        assert_eq!(names, ["low", "base", "mid"]);
        assert!(top.file.devices.iter().all(|device| device.read_only));
        assert!(top.file.devices.iter().all(|device| device.uuid.is_none() && device.minor.is_none()));
        assert_eq!((top.base_name.as_str(), top.sectors), ("base", 4));
        let over = (top.top.name.as_deref(), top.top.uuid.as_deref(), top.top.minor);
        assert_eq!(over, (Some("top"), Some("UU"), Some(7)));
    }

    #[test]
    fn a_plain_table_has_its_file_s_name() {
        let file = parsed("0 4 zero\n4 4 error\n");
        let plain = split(&file, "my disk", None, true).unwrap();
        assert_eq!((plain.base_name.as_str(), plain.sectors), ("my\\x20disk-base", 8));
        assert_eq!(plain.top.name, None);
        assert_eq!(split(&file, "disk", Some("disk"), true).unwrap().base_name, "disk-base");
    }
}
