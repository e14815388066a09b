//! From a volume group to tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::LvmError;
use super::group::{Area, Group, Kind, Logical, Physical, Segment};

/// Deepest nesting of logical volumes in one another.
const DEEPEST: u32 = 16;

/// One device of the tables.
pub(super) struct Device {
    /// As the kernel's device is called: `vg-lv`.
    name: String,
    uuid: String,
    read_only: bool,
    lines: Vec<String>,
}

/// What is made of a group, device by device: those that others lie on first.
pub(super) struct Tables<'a> {
    group: &'a Group,
    devices: Vec<Device>,
    /// What each logical volume has become, or why it has not.
    done: BTreeMap<String, Result<bool, String>>,
    pub warnings: Vec<String>,
}

impl<'a> Tables<'a> {
    pub fn new(group: &'a Group) -> Tables<'a> {
        Tables { group, devices: Vec::new(), done: BTreeMap::new(), warnings: Vec::new() }
    }

    /// Adds a logical volume and those that it lies on.
    pub fn add(&mut self, name: &str) -> Result<(), LvmError> {
        let failed = |why| LvmError::Volume { name: format!("{}/{name}", self.group.name), why };
        self.volume(name, 0).map(drop).map_err(failed)
    }

    /// All of them as text: one plain table where that says everything, else the concise form. Tells whether it is that.
    pub fn text(&self) -> (String, bool) {
        match self.devices.as_slice() {
            [device] if !device.read_only => (device.lines.iter().map(|line| format!("{line}\n")).collect(), false),
            devices => {
                let mut text = String::new();
                for (index, device) in devices.iter().enumerate() {
                    let end = if index + 1 < devices.len() { ";" } else { "" };
                    let access = if device.read_only { "ro" } else { "rw" };
                    let lines: Vec<String> = device.lines.iter().map(|line| escaped(line)).collect();
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "{},{},,{access},{}{end}", device.name, device.uuid, lines.join(","));
                }
                (text, true)
            }
        }
    }

    /// Makes a logical volume, once. Tells whether it may be written.
    fn volume(&mut self, name: &str, depth: u32) -> Result<bool, String> {
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        if depth == DEEPEST {
            return Err(format!("{name} lies too deep in other volumes"));
        }
        // Whoever comes here again before it is done lies on itself.
        self.done.insert(name.to_owned(), Err(format!("{name} lies on itself")));
        let volume = self.group.logical.iter().find(|volume| volume.name == name);
        let made = match volume {
            Some(volume) => self.device(volume, depth),
            None => Err(format!("the group has no volume {name}")),
        };
        let result = made.map(|device| {
            let writable = !device.read_only;
            self.devices.push(device);
            writable
        });
        self.done.insert(name.to_owned(), result.clone());
        result
    }

    fn device(&mut self, volume: &Logical, depth: u32) -> Result<Device, String> {
        let mut device = Device {
            name: mapper_name(&self.group.name, &volume.name),
            uuid: format!("LVM-{}{}", plain(&self.group.uuid), plain(&volume.uuid)),
            read_only: !volume.writable,
            lines: Vec::new(),
        };
        for segment in &volume.segments {
            let (start, len) = (self.sectors(segment.start)?, self.sectors(segment.len)?);
            let (target, writable) = self.target(volume, segment, depth)?;
            device.read_only |= !writable;
            device.lines.push(format!("{start} {len} {target}"));
        }
        Ok(device)
    }

    /// Type and arguments, and whether it may be written.
    fn target(&mut self, volume: &Logical, segment: &Segment, depth: u32) -> Result<(String, bool), String> {
        match &segment.kind {
            Kind::Zero => Ok(("zero".into(), true)),
            Kind::Error => Ok(("error".into(), true)),
            Kind::Other(kind) => Err(format!(
                "{} is of the type `{kind}`, which is more than arithmetic: activate it, and use its device",
                volume.name
            )),
            Kind::Striped { size, stripes } => self.striped(volume, segment, (*size, stripes), depth),
            Kind::Raid1(legs) => self.mirrored(volume, segment, legs, depth),
        }
    }

    fn striped(
        &mut self,
        volume: &Logical,
        segment: &Segment,
        (size, stripes): (u64, &[Area]),
        depth: u32,
    ) -> Result<(String, bool), String> {
        let count = stripes.len() as u64;
        let each = segment.len / count;
        if each * count != segment.len {
            return Err(format!("{}: {} extents are not dealt out evenly", volume.name, segment.len));
        }
        let mut places = Vec::new();
        let mut writable = true;
        for area in stripes {
            match self.area(area, each, depth)? {
                Some((place, its)) => {
                    places.push(place);
                    writable &= its;
                }
                None => {
                    let gone = format!("extents {}+{} of {} fail", segment.start, segment.len, volume.name);
                    self.warnings.push(format!("physical volume {} is missing: {gone}", self.uuid(&area.of)));
                    return Ok(("error".into(), true));
                }
            }
        }
        let target = match places.as_slice() {
            [place] => format!("linear {place}"),
            places => format!("striped {count} {size} {}", places.join(" ")),
        };
        Ok((target, writable))
    }

    /// Device and first sector of some extents; none where the physical volume is missing.
    fn area(&mut self, area: &Area, extents: u64, depth: u32) -> Result<Option<(String, bool)>, String> {
        let Some(physical) = self.physical(&area.of) else {
            let writable = self.volume(&area.of, depth + 1)?;
            let name = mapper_name(&self.group.name, &area.of);
            return Ok(Some((format!("/dev/mapper/{name} {}", self.sectors(area.extent)?), writable)));
        };
        let end = area.extent.checked_add(extents);
        if end.is_none_or(|end| end > physical.extents) {
            return Err(format!(
                "extents {}+{extents} of physical volume {}, which has {}",
                area.extent, physical.name, physical.extents
            ));
        }
        let start = self.sectors(area.extent)?.checked_add(physical.start).ok_or("a sector beyond all numbers")?;
        let Some(found) = &physical.found else { return Ok(None) };
        let path = found.path.to_str().filter(|path| !path.contains(char::is_whitespace));
        let path = path.ok_or_else(|| format!("{:?}: a table cannot name a path with blanks", found.path))?;
        Ok(Some((format!("{path} {start}"), true)))
    }

    /// One copy of several. The others would not learn of what is written to it, so it is for reading alone.
    fn mirrored(
        &mut self,
        volume: &Logical,
        segment: &Segment,
        legs: &[(String, String)],
        depth: u32,
    ) -> Result<(String, bool), String> {
        let (leg, doubt) = self.good_leg(legs).ok_or_else(|| {
            format!("{}: none of its {} copies is both there and in step with the others", volume.name, legs.len())
        })?;
        self.warnings.extend(doubt.map(|doubt| format!("{}: {doubt}", volume.name)));
        let writable = self.volume(&leg, depth + 1)? && legs.len() == 1;
        if legs.len() > 1 {
            let others = legs.len() - 1;
            let copies = if others == 1 { "other copy" } else { "other copies" };
            self.warnings.push(format!(
                "{}: it is {leg} alone, read-only, as its {others} {copies} would not learn of writes; put an overlay over \
                 it, or reduce the volume to one copy (lvconvert -m0) to write it",
                volume.name
            ));
        }
        let into = self.sectors(segment.start)?;
        Ok((format!("linear /dev/mapper/{} {into}", mapper_name(&self.group.name, &leg)), writable))
    }

    /// The data volume of a copy that dm-raid's superblocks (`struct dm_raid_superblock`, drivers/md/dm-raid.c) say is
    /// whole, and what is to be said of it.
    fn good_leg(&self, legs: &[(String, String)]) -> Option<(String, Option<String>)> {
        let present: Vec<usize> = (0..legs.len()).filter(|leg| self.is_present(&legs[*leg].1, 0)).collect();
        let state = |leg: &usize| {
            let sector = self.first_sector(&legs[*leg].0)?;
            let number = |at: usize| Some(u64::from_le_bytes(sector.get(at..at + 8)?.try_into().ok()?));
            (sector.get(..4)? == b"DmRd").then_some(())?;
            // Events, failed devices as bits, how far it has been copied to.
            Some((*leg, number(16)?, number(24)?, number(32)?))
        };
        let states: Vec<_> = present.iter().filter_map(state).collect();
        let Some((_, events, failed, _)) = states.iter().copied().max_by_key(|(_, events, ..)| *events) else {
            let doubt = "no copy has a superblock, as if it had never been active; the first is taken";
            return present.first().map(|leg| (legs[*leg].1.clone(), Some(doubt.to_owned())));
        };
        let whole = states.iter().find(|(leg, its_events, _, copied)| {
            let failed = u32::try_from(*leg).ok().and_then(|leg| failed.checked_shr(leg)).is_some_and(|f| f & 1 != 0);
            *its_events == events && !failed && *copied == u64::MAX
        });
        whole.map(|(leg, ..)| (legs[*leg].1.clone(), None))
    }

    fn is_present(&self, name: &str, depth: u32) -> bool {
        let Some(volume) = self.group.logical.iter().find(|volume| volume.name == name) else { return false };
        let here = |area: &Area| match self.physical(&area.of) {
            Some(physical) => physical.found.is_some(),
            None => depth < DEEPEST && self.is_present(&area.of, depth + 1),
        };
        volume.segments.iter().all(|segment| match &segment.kind {
            Kind::Striped { stripes, .. } => stripes.iter().all(here),
            _ => false,
        })
    }

    fn first_sector(&self, name: &str) -> Option<Vec<u8>> {
        let volume = self.group.logical.iter().find(|volume| volume.name == name)?;
        let Kind::Striped { stripes, .. } = &volume.segments.first()?.kind else { return None };
        let area = stripes.first()?;
        let physical = self.physical(&area.of)?;
        let at = self.sectors(area.extent).ok()?.checked_add(physical.start)?;
        physical.found.as_ref()?.sector(at).ok()
    }

    fn physical(&self, name: &str) -> Option<&'a Physical> {
        self.group.physical.iter().find(|physical| physical.name == name)
    }

    fn uuid(&self, name: &str) -> String {
        self.physical(name).map_or_else(String::new, |physical| physical.uuid.clone())
    }

    fn sectors(&self, extents: u64) -> Result<u64, String> {
        extents.checked_mul(self.group.extent).ok_or_else(|| format!("{extents} extents are beyond all numbers"))
    }
}

/// Names as LVM2 gives them to the kernel, with doubled hyphens within.
pub(super) fn mapper_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// A UUID as LVM2 gives it to the kernel.
pub(super) fn plain(uuid: &str) -> String {
    uuid.replace('-', "")
}

/// A field of the concise form.
fn escaped(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.chars() {
        if matches!(c, ',' | ';' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}
