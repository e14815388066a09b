//! A volume group as its metadata describes it, on the physical volumes that were found.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::LvmError;
use super::label::{self, Header};
use super::text::{self, Section, Value};

/// A device with a label.
#[derive(Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    pub file: File,
    pub header: Header,
}

/// A physical volume of a group.
#[derive(Debug)]
pub(super) struct Physical {
    /// As the metadata calls it: `pv0`.
    pub name: String,
    pub uuid: String,
    /// First sector of its first extent.
    pub start: u64,
    /// Number of extents.
    pub extents: u64,
    /// Where it is; none where it is missing.
    pub found: Option<Found>,
}

/// A piece of a logical volume.
#[derive(Debug)]
pub(super) struct Segment {
    /// First extent of the logical volume.
    pub start: u64,
    /// Number of extents.
    pub len: u64,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Stripes of so many sectors in turn; of a single stripe the size means nothing.
    Striped {
        size: u64,
        stripes: Vec<Area>,
    },
    /// Copies: the logical volumes with their metadata and with their data.
    Raid1(Vec<(String, String)>),
    /// As the targets of the same names.
    Zero,
    Error,
    /// What no table of ours can say.
    Other(String),
}

/// Extents of something: of a physical volume, or of a logical one.
#[derive(Debug)]
pub(super) struct Area {
    pub of: String,
    pub extent: u64,
}

#[derive(Debug)]
pub(super) struct Logical {
    pub name: String,
    pub uuid: String,
    pub visible: bool,
    pub writable: bool,
    pub segments: Vec<Segment>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Group {
    pub name: String,
    pub uuid: String,
    /// Sectors in an extent.
    pub extent: u64,
    pub physical: Vec<Physical>,
    pub logical: Vec<Logical>,
    /// What is doubtful.
    pub warnings: Vec<String>,
}

impl Found {
    /// Looks for a label on a device or file.
    ///
    /// # Errors
    /// The system's, or a label that is damaged.
    pub fn open(path: &Path) -> io::Result<Option<Found>> {
        let file = File::open(path)?;
        let size = size(&file)?;
        let header = label::header(&file, size)?;
        Ok(header.map(|header| Found { path: path.to_owned(), file, header }))
    }

    /// The texts of its metadata areas, and what is wrong with the others.
    fn texts(&self) -> (Vec<String>, Vec<String>) {
        let size = size(&self.file).unwrap_or(0);
        let (mut texts, mut wrong) = (Vec::new(), Vec::new());
        for area in &self.header.areas {
            match label::text(&self.file, size, *area) {
                Ok(text) => texts.extend(text),
                Err(error) => wrong.push(format!("{}: {error}", self.path.display())),
            }
        }
        (texts, wrong)
    }

    /// The first sector of what a metadata volume of a raid has there.
    pub fn sector(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut sector = vec![0; 512];
        self.file.read_exact_at(&mut sector, number.saturating_mul(512))?;
        Ok(sector)
    }
}

/// The size of a file or block device in bytes.
fn size(mut file: &File) -> io::Result<u64> {
    use std::io::Seek;
    file.seek(io::SeekFrom::End(0))
}

/// The group of this name on these devices: by the newest of its texts.
pub(super) fn read(name: &str, found: Vec<Found>) -> Result<Group, LvmError> {
    let mut warnings = Vec::new();
    let mut newest: Option<(u64, Section)> = None;
    let mut groups: BTreeMap<String, String> = BTreeMap::new();
    for device in &found {
        let (texts, wrong) = device.texts();
        warnings.extend(wrong);
        for text in texts {
            let (its_name, uuid, number, group) = match identified(&text) {
                Ok(identified) => identified,
                Err(why) => {
                    warnings.push(format!("{}: cannot read its LVM2 metadata: {why}", device.path.display()));
                    continue;
                }
            };
            if its_name == name && groups.get(&its_name).is_some_and(|other| *other != uuid) {
                return Err(LvmError::Twins { name: name.into() });
            }
            if its_name == name && newest.as_ref().is_none_or(|(newest, _)| *newest < number) {
                newest = Some((number, group));
            }
            groups.insert(its_name, uuid);
        }
    }
    let Some((_, group)) = newest else {
        let names = groups.into_keys().collect();
        return Err(LvmError::NoGroup { name: name.into(), found: names, damaged: warnings });
    };
    let mut read = describe(name, &group).map_err(|why| LvmError::Group { name: name.into(), why })?;
    for device in found {
        let ours = read.physical.iter_mut().find(|physical| physical.uuid == device.header.uuid);
        match ours {
            Some(Physical { found: Some(first), .. }) => {
                return Err(LvmError::SameVolume { one: first.path.clone(), other: device.path });
            }
            Some(physical) => physical.found = Some(device),
            None => {}
        }
    }
    warnings.extend(foreign(&group));
    read.warnings = warnings;
    Ok(read)
}

/// The group that a text describes: name, uuid, sequence number, and all of it.
fn identified(text: &str) -> Result<(String, String, u64, Section), String> {
    let all = text::parse(text)?;
    let (name, group) = all.sections().next().ok_or("it names no group")?;
    Ok((name.to_owned(), group.text("id")?.to_owned(), group.number("seqno")?, group.clone()))
}

/// What other hosts may do with the group.
fn foreign(group: &Section) -> Vec<String> {
    let mut warnings = Vec::new();
    if group.has("status", "EXPORTED") {
        warnings.push("the group is exported: another host may have imported it".to_owned());
    }
    if let Ok(kind) = group.text("lock_type").map(str::to_owned)
        && kind != "none"
    {
        warnings.push(format!("the group is shared between hosts ({kind}), whose locks are not taken here"));
    }
    if let Ok(host) = group.text("system_id").map(str::to_owned)
        && !host.is_empty()
    {
        warnings.push(format!("the group belongs to the host with the system id {host:?}"));
    }
    warnings
}

fn describe(name: &str, group: &Section) -> Result<Group, String> {
    let extent = group.number("extent_size")?;
    if extent == 0 {
        return Err("an extent of no sectors".into());
    }
    let physical = group.section("physical_volumes")?.sections().map(|(name, volume)| {
        let read = || {
            Ok(Physical {
                name: name.to_owned(),
                uuid: volume.text("id")?.to_owned(),
                start: volume.number("pe_start")?,
                extents: volume.number("pe_count")?,
                found: None,
            })
        };
        read().map_err(|why: String| format!("physical volume {name}: {why}"))
    });
    let physical = physical.collect::<Result<_, _>>()?;
    // A group without volumes has no section of them.
    let none = Section::default();
    let logical = group.section("logical_volumes").unwrap_or(&none).sections();
    let logical = logical
        .map(|(name, volume)| logical_volume(name, volume).map_err(|why| format!("logical volume {name}: {why}")));
    Ok(Group {
        name: name.to_owned(),
        uuid: group.text("id")?.to_owned(),
        extent,
        physical,
        logical: logical.collect::<Result<_, _>>()?,
        warnings: Vec::new(),
    })
}

fn logical_volume(name: &str, volume: &Section) -> Result<Logical, String> {
    let mut segments = Vec::new();
    for (its_name, segment) in volume.sections().filter(|(name, _)| name.starts_with("segment")) {
        let read = || {
            let kind = kind(segment)?;
            Ok(Segment { start: segment.number("start_extent")?, len: segment.number("extent_count")?, kind })
        };
        segments.push(read().map_err(|why: String| format!("{its_name}: {why}"))?);
    }
    segments.sort_by_key(|segment| segment.start);
    let mut next = 0u64;
    for segment in &segments {
        let end = segment.start.checked_add(segment.len).filter(|_| segment.len > 0 && segment.start == next);
        next = end.ok_or_else(|| format!("its segments leave out, or share, extents at {next}"))?;
    }
    let told = volume.number("segment_count")?;
    if told != segments.len() as u64 || segments.is_empty() {
        return Err(format!("it has {} segments, and says {told}", segments.len()));
    }
    Ok(Logical {
        name: name.to_owned(),
        uuid: volume.text("id")?.to_owned(),
        visible: volume.has("status", "VISIBLE"),
        writable: volume.has("status", "WRITE"),
        segments,
    })
}

fn kind(segment: &Section) -> Result<Kind, String> {
    // What follows a plus says how the kernel is to do it.
    let name = segment.text("type")?;
    match name.split('+').next().unwrap_or_default() {
        "striped" | "linear" => {
            let stripes = areas(segment.list("stripes")?)?;
            if segment.number("stripe_count")? != stripes.len() as u64 || stripes.is_empty() {
                return Err("it has another number of stripes than it says".into());
            }
            let size = if stripes.len() > 1 { segment.number("stripe_size")? } else { 0 };
            Ok(Kind::Striped { size, stripes })
        }
        "raid1" => {
            let names = segment.list("raids")?.chunks(2).map(|pair| match pair {
                [Value::Text(metadata), Value::Text(data)] => Ok((metadata.clone(), data.clone())),
                _ => Err("`raids` is no list of pairs of volumes".to_owned()),
            });
            names.collect::<Result<Vec<_>, _>>().map(Kind::Raid1)
        }
        "zero" => Ok(Kind::Zero),
        "error" => Ok(Kind::Error),
        _ => Ok(Kind::Other(name.to_owned())),
    }
}

fn areas(list: &[Value]) -> Result<Vec<Area>, String> {
    let area = |pair: &[Value]| match pair {
        [Value::Text(of), Value::Number(extent)] if *extent >= 0 => {
            Ok(Area { of: of.clone(), extent: extent.unsigned_abs() })
        }
        _ => Err("`stripes` is no list of volumes and extents".to_owned()),
    };
    list.chunks(2).map(area).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lvm::tables::Tables;

    /// A group of every kind of segment, with a snapshot and a thin volume among them.
    const TEXT: &str = r#"g { id = "g" seqno = 3 extent_size = 8 status = ["READ", "EXPORTED"] lock_type = "sanlock"
        physical_volumes { pv0 { id = "a" pe_start = 2048 pe_count = 9 } pv1 { id = "b" pe_start = 2048 pe_count = 9 } }
        logical_volumes {
            one { id = "1" status = ["WRITE", "VISIBLE"] segment_count = 2
                segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 1] }
                segment2 { start_extent = 2 extent_count = 4 type = "striped" stripe_count = 2 stripe_size = 8
                    stripes = ["pv0", 3, "pv1", 3] } }
            up { id = "2" status = ["VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["one", 1] } }
            self { id = "3" status = ["VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["self", 0] } }
            thin { id = "4" status = ["VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "thin" } }
            copy { id = "5" status = ["VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "raid1" raids = ["m", "up", "m", "self"] } }
            far { id = "6" status = ["VISIBLE"] segment_count = 1
                segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 9] } } } }"#;

    /// The text of every volume, or why there is none.
    fn tables(text: &str) -> Result<Vec<Result<String, String>>, String> {
        let all = text::parse(text)?;
        let (name, group) = all.sections().next().ok_or("no group")?;
        foreign(group);
        let group = describe(name, group)?;
        let made = |volume: &Logical| {
            let mut tables = Tables::new(&group);
            tables.add(&volume.name).map(|()| tables.text().0).map_err(|error| error.to_string())
        };
        Ok(group.logical.iter().map(made).collect())
    }

    #[test]
    fn volumes_that_are_no_arithmetic_are_refused_in_words() {
        let made = tables(TEXT).unwrap();
        assert_eq!(made[0].as_deref(), Ok("0 16 error\n16 32 error\n"), "its physical volumes are missing");
        assert!(made[1].as_ref().is_ok_and(|text| text.contains("g-up,LVM-g2,,ro,0 8 linear /dev/mapper/g-one 8")));
        let why = |index: usize| made[index].as_ref().unwrap_err().as_str();
        assert_eq!(why(2), "g/self: self lies on itself");
        assert!(why(3).contains("thin is of the type `thin`, which is more than arithmetic"), "{}", why(3));
        assert!(why(4).contains("none of its 2 copies"), "{}", why(4));
        assert!(why(5).contains("extents 9+1 of physical volume pv0, which has 9"), "{}", why(5));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        /// A text whose checksum is right may still be anybody's.
        #[test]
        fn no_text_does_harm(changes in prop::collection::vec((0usize..TEXT.len(), "[ -~]{0,3}", 0usize..30), 1..6)) {
            let mut text = TEXT.to_owned();
            for (at, with, len) in changes {
                let at = at.min(text.len());
                text.replace_range(at..(at + len).min(text.len()), &with);
            }
            if let Err(why) = tables(&text) {
                prop_assert!(!why.is_empty());
            }
        }

        #[test]
        fn no_number_does_harm(which in 0usize..60, number in prop_oneof![any::<i64>(), -2i64..20, Just(i64::MAX)]) {
            let numbers: Vec<_> = TEXT.match_indices(|c: char| c.is_ascii_digit()).collect();
            let (at, _) = numbers[which % numbers.len()];
            let text = format!("{}{number}{}", &TEXT[..at], &TEXT[at + 1..]);
            if let Err(why) = tables(&text) {
                prop_assert!(!why.is_empty());
            }
        }
    }
}
