//! The same disk as on the host, with a copy of its partition table, and only those partitions real that are named.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use dm_table::SECTOR_SIZE;

use super::host::Origin;
use super::product::{From, Product, Row};
use super::types::{BIOS_BOOT, ESP, Type};
use crate::check::{count, human};
use crate::inspect::{self, Contents, Inside, Kind, Partition};

/// Most that is copied of a disk at one place: a boot loader and a partition table need a tenth of it.
const MOST_COPIED: u64 = 16 << 11;
/// Most extended boot records that are followed: one for each logical partition.
const MOST_RECORDS: usize = 128;

/// What the partitions that are not named become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rest {
    /// Whatever touches them fails
    Error,
    /// They read as zeroes and forget what is written
    Zero,
    /// The guest can read them; to write them fails
    Ro,
}

/// What is wanted of the disk.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The disk or image.
    pub path: &'a Path,
    /// Numbers of the partitions that are real; all if none is given.
    pub only: Option<BTreeSet<u32>>,
    /// Files in the place of partitions.
    pub replace: BTreeMap<u32, PathBuf>,
    /// What becomes of the others.
    pub rest: Rest,
}

/// A part of the disk that is not simply the rest.
struct Area {
    start: u64,
    len: u64,
    what: What,
}

enum What {
    /// Goes to the file of the header.
    Copy(String),
    /// Goes to the file of what is at the end.
    Tail,
    Partition(Partition),
}

/// Puts the disk together.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn build(wanted: &Wanted<'_>) -> Result<Product, String> {
    let shown = wanted.path.display();
    let failed = |what: String| format!("vhost-user-dm: --from={shown}: {what}");
    let disk = Origin::open(wanted.path).map_err(|error| failed(error.to_string()))?;
    let sectors = disk.bytes / SECTOR_SIZE;
    let table = disk.look(0, sectors).map_err(|error| failed(error.to_string()))?;
    if !matches!(table.kind, Kind::Gpt | Kind::Mbr) {
        return Err(failed(format!("it has no partition table, but {}", table.describe())));
    }
    if table.kind == Kind::Mbr && disk.block != 512 {
        return Err(failed(format!("an MBR on a disk with blocks of {} bytes is not read", disk.block)));
    }
    let block = if table.kind == Kind::Gpt { disk.gpt_block() } else { disk.block.into() };
    let areas = areas(&disk, &table, sectors, wanted).map_err(&failed)?;
    let mut product = Product { block, ..Product::default() };
    product.what = format!(
        "the disk of {shown} ({}), {}, {sectors} sectors ({})",
        table.kind.name(),
        count(table.partitions.len(), "partition"),
        human(sectors * SECTOR_SIZE)
    );
    product.uefi = table.partitions.iter().any(|p| Type::parse(&p.kind).and_then(Type::gpt) == Some(ESP));
    let mut at = 0;
    for area in areas {
        // Not as an error, also where partitions are: guests read whole pages, which may begin there.
        product.push(area.start - at, From::Zero, None);
        at = area.start + area.len;
        put(&mut product, area, &disk, wanted).map_err(&failed)?;
    }
    product.push(sectors - at, From::Zero, None);
    if block > u64::from(disk.block) {
        product.notes.push(super::build::blocks_note(block));
    }
    Ok(product)
}

/// All areas in the order in which they lie, none over another.
fn areas(disk: &Origin, table: &Contents, sectors: u64, wanted: &Wanted<'_>) -> Result<Vec<Area>, String> {
    let is_extended =
        |partition: &&Partition| table.kind == Kind::Mbr && matches!(partition.kind.as_str(), "05" | "0f" | "85");
    let mut partitions: Vec<&Partition> = table.partitions.iter().filter(|p| !is_extended(p)).collect();
    partitions.sort_by_key(|partition| partition.start);
    let have: BTreeSet<u32> = partitions.iter().map(|partition| partition.number).collect();
    for number in wanted.only.iter().flatten().chain(wanted.replace.keys()) {
        if !have.contains(number) {
            let numbers: Vec<String> = have.iter().map(u32::to_string).collect();
            return Err(format!("there is no partition {number} to take; there are {}", numbers.join(", ")));
        }
    }
    let mut areas: Vec<Area> = Vec::new();
    let tail = tail(disk, table, sectors);
    let first = partitions.first().map_or(sectors, |partition| partition.start);
    let head = first.min(tail.as_ref().map_or(sectors, |tail| tail.start)).min(MOST_COPIED).min(sectors);
    if head < table.reserved {
        return Err(format!("partition {} lies over the partition table", partitions.first().map_or(0, |p| p.number)));
    }
    areas.push(Area {
        start: 0,
        len: head,
        what: What::Copy(format!("copy of {}'s partition table", disk.path.display())),
    });
    if table.kind == Kind::Mbr {
        areas.extend(records(disk, table, sectors)?);
    }
    for partition in partitions {
        areas.push(Area { start: partition.start, len: partition.len, what: What::Partition(partition.clone()) });
    }
    areas.extend(tail);
    areas.sort_by_key(|area| area.start);
    in_order(&areas, sectors)?;
    Ok(areas)
}

/// Refuses areas that lie over one another or beyond the end: such a table is not one to go by.
fn in_order(areas: &[Area], sectors: u64) -> Result<(), String> {
    let mut end = 0;
    for area in areas {
        let name = match &area.what {
            What::Partition(partition) => format!("partition {}", partition.number),
            What::Copy(_) | What::Tail => "a part of the partition table".to_owned(),
        };
        let fits = area.start.checked_add(area.len).is_some_and(|end| end <= sectors);
        if area.start < end || !fits {
            let why = if fits { "lies over what is before it" } else { "ends beyond the end of the disk" };
            let (start, len) = (area.start, area.len);
            return Err(format!("{name}, {len} sectors from {start} on, {why}: the table is not one to go by"));
        }
        end = area.start + area.len;
    }
    Ok(())
}

/// The extended boot records, as much as is before the partition of each.
fn records(disk: &Origin, table: &Contents, sectors: u64) -> Result<Vec<Area>, String> {
    let extended = table.partitions.iter().find(|p| matches!(p.kind.as_str(), "05" | "0f" | "85"));
    let Some(extended) = extended else { return Ok(Vec::new()) };
    let mut areas = Vec::new();
    let mut at = extended.start;
    for _ in 0..MOST_RECORDS {
        if at >= sectors || areas.iter().any(|area: &Area| area.start == at) {
            return Err("its chain of extended boot records leads nowhere".into());
        }
        let sector = disk.read(at, 1).map_err(|error| format!("the extended boot record at sector {at}: {error}"))?;
        // The next thing that lies there is a partition or another record.
        let starts = table.partitions.iter().map(|partition| partition.start).filter(|start| *start > at);
        let room = starts.min().unwrap_or(sectors) - at;
        let what = What::Copy("copy of an extended boot record".to_owned());
        areas.push(Area { start: at, len: room.min(super::layout::RECORD), what });
        let link = [446, 462].iter().find_map(|entry| {
            let kind = sector[entry + 4];
            let start =
                u32::from_le_bytes([sector[entry + 8], sector[entry + 9], sector[entry + 10], sector[entry + 11]]);
            (matches!(kind, 0x05 | 0x0F | 0x85) && start > 0).then_some(u64::from(start))
        });
        match link {
            Some(link) => at = extended.start + link,
            None => return Ok(areas),
        }
    }
    Err(format!("it has more than {MOST_RECORDS} extended boot records"))
}

/// The backup of a GPT, where it is there.
fn tail(disk: &Origin, table: &Contents, sectors: u64) -> Option<Area> {
    let end = table.size.filter(|_| table.kind == Kind::Gpt)? / SECTOR_SIZE;
    let start = disk.last_usable()?.checked_add(1)?;
    let len = end.checked_sub(start)?;
    (end <= sectors && len > 0 && len <= MOST_COPIED).then_some(Area { start, len, what: What::Tail })
}

fn put(product: &mut Product, area: Area, disk: &Origin, wanted: &Wanted<'_>) -> Result<(), String> {
    let read = |area: &Area| {
        let bytes = disk.read(area.start, area.len);
        bytes.map_err(|error| format!("{} sectors from {} on cannot be read: {error}", area.len, area.start))
    };
    let partition = match &area.what {
        What::Copy(comment) => {
            let comment = Some(comment.clone());
            let at = product.head.len() as u64 / SECTOR_SIZE;
            product.head.extend(read(&area)?);
            product.push(area.len, From::Head(at), comment);
            return Ok(());
        }
        What::Tail => {
            product.tail = read(&area)?;
            product.push(area.len, From::Tail, Some("copy of the backup of the GPT".to_owned()));
            return Ok(());
        }
        What::Partition(partition) => partition,
    };
    let kind = Type::parse(&partition.kind);
    let name = partition.name.as_deref().map(|name| format!("{name:?}, ")).unwrap_or_default();
    let described = format!("{name}{}", kind.map_or_else(|| partition.kind.clone(), Type::describe));
    let real = wanted.only.as_ref().is_none_or(|only| only.contains(&partition.number));
    let bios = kind.and_then(Type::gpt) == Some(BIOS_BOOT) && area.len <= MOST_COPIED;
    let mut notes = Vec::new();
    let what = if let Some(path) = wanted.replace.get(&partition.number) {
        replaced(product, partition, path, &described, &mut notes)?
    } else if real {
        taken(product, partition, disk, &described, false)
    } else if bios {
        // Part of the boot loader, as what lies between an MBR and the first partition is.
        let at = product.head.len() as u64 / SECTOR_SIZE;
        product.head.extend(read(&area)?);
        let what = format!("{described}, a copy");
        product.push(area.len, From::Head(at), Some(format!("partition {}: {what}", partition.number)));
        what
    } else {
        left(product, partition, disk, &described, wanted.rest)
    };
    product.rows.push(Row { number: partition.number, start: area.start, len: area.len, what, notes });
    Ok(())
}

/// A partition of the host; `frozen` if the guest must not write it.
fn taken(product: &mut Product, partition: &Partition, disk: &Origin, described: &str, frozen: bool) -> String {
    let (path, start) = match node(disk, partition) {
        Some(node) => (node, 0),
        None => (disk.path.clone(), partition.start),
    };
    let shown = path.display().to_string();
    let contents = disk.look(partition.start, partition.len).ok();
    let contains = contents.as_ref().map(|contents| format!(" ({})", contents.describe())).unwrap_or_default();
    let how = if frozen { ", read-only" } else { "" };
    let what = format!("{described}, {shown}{contains}{how}");
    let comment = Some(format!("partition {}: {what}", partition.number));
    product.doubted.push(inspect::Piece {
        name: format!("partition {} ({shown})", partition.number),
        path,
        start,
        len: partition.len,
        at: partition.start,
        write: !frozen,
        inside: contents.map_or(Inside::Look, Inside::Known),
        ..inspect::Piece::default()
    });
    product.push(partition.len, From::Linear { path: shown, start, frozen }, comment);
    what
}

/// A partition that was not named.
fn left(product: &mut Product, partition: &Partition, disk: &Origin, described: &str, rest: Rest) -> String {
    let (from, how) = match rest {
        Rest::Ro => return taken(product, partition, disk, described, true),
        Rest::Error => (From::Error, "not there: fails"),
        Rest::Zero => (From::Zero, "not there: reads as zeroes"),
    };
    let what = format!("{described}, {how}");
    product.push(partition.len, from, Some(format!("partition {}: {what}", partition.number)));
    what
}

/// A file in the place of a partition.
fn replaced(
    product: &mut Product,
    partition: &Partition,
    path: &Path,
    described: &str,
    notes: &mut Vec<String>,
) -> Result<String, String> {
    let shown = path.display();
    let number = partition.number;
    let failed = |error: io::Error| format!("--replace={number}={shown}: {error}");
    let origin = Origin::open(path).map_err(failed)?;
    let text = origin.path.display().to_string();
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(format!(
            "--replace={number}={shown}: a table cannot name this path: make a symbolic link to it without blanks and #"
        ));
    }
    let len = origin.bytes / SECTOR_SIZE;
    if len == 0 || origin.bytes % SECTOR_SIZE != 0 || len > partition.len {
        return Err(format!(
            "--replace={number}={shown}: it has {} bytes, and the partition {} ({}): give a file of whole sectors that is \
             no larger",
            origin.bytes,
            partition.len * SECTOR_SIZE,
            human(partition.len * SECTOR_SIZE)
        ));
    }
    let contents = origin.look(0, len).map_err(failed)?;
    let what = format!("{described}, {text} ({}) in its place", contents.describe());
    product.doubted.push(inspect::Piece {
        name: format!("partition {number} ({text})"),
        path: origin.path,
        start: 0,
        len,
        at: partition.start,
        write: true,
        inside: Inside::Known(contents),
        ..inspect::Piece::default()
    });
    product.push(
        len,
        From::Linear { path: text, start: 0, frozen: false },
        Some(format!("partition {number}: {what}")),
    );
    if len < partition.len {
        notes.push(format!("the last {} of it read as zeroes", human((partition.len - len) * SECTOR_SIZE)));
        product.push(partition.len - len, From::Zero, None);
    }
    Ok(what)
}

/// The partition's own block device, by a name that lasts where there is one. It can be had while others of the disk are
/// in use, and nothing else can be reached through it.
fn node(disk: &Origin, partition: &Partition) -> Option<PathBuf> {
    let same = |found: &crate::device::sysfs::Disk| {
        let value = |attribute| found.value(attribute);
        (value("partition"), value("start"), value("size"))
            == (Some(partition.number.into()), Some(partition.start), Some(partition.len))
    };
    let node = disk.sysfs()?.partitions().into_iter().find(same)?.node()?;
    let lasting = partition.uuid.as_ref().map(|uuid| PathBuf::from(format!("/dev/disk/by-partuuid/{uuid}")));
    let leads_there = |link: &PathBuf| std::fs::canonicalize(link).is_ok_and(|to| to == node);
    Some(lasting.filter(leads_there).unwrap_or(node))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use fastrand::Rng;

    use super::*;
    use crate::assemble::build::{self, Wanted as Pieces};
    use crate::assemble::host::Scheme;
    use crate::assemble::spec::Spec;

    /// A disk of 7 partitions, as a file of holes.
    fn image(path: &Path, scheme: Scheme) {
        let specs = (0..7).map(|n| Spec::parse("piece", format!("zero=2048,label=p{n}")).unwrap()).collect();
        let pieces =
            Pieces { scheme, block: None, size: None, guid: None, signature: None, reproducible: true, boot: vec![] };
        let made = build::build(specs, &pieces).unwrap();
        let file = fs::File::create(path).unwrap();
        let mut at = 0;
        for segment in &made.segments {
            let bytes = match segment.from {
                From::Head(from) => &made.head[from as usize * 512..][..segment.len as usize * 512],
                From::Tail => &made.tail,
                _ => &[],
            };
            file.write_all_at(bytes, at * 512).unwrap();
            at += segment.len;
        }
        file.set_len(at * 512).unwrap();
    }

    fn random(rng: &mut Rng) -> [u8; 4] {
        match rng.u8(..4) {
            0 => [0; 4],
            1 => [0xFF; 4],
            2 => rng.u32(..40_000).to_le_bytes(),
            _ => rng.u32(..).to_le_bytes(),
        }
    }

    /// What a table says that somebody else wrote is refused or made, and what is made is the size of the disk.
    fn survive(scheme: Scheme, damage: fn(&mut Rng, &mut [u8])) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        image(&path, scheme);
        let whole = fs::read(&path).unwrap();
        let mut made = 0;
        for seed in 0..150 {
            let mut rng = Rng::with_seed(seed);
            let mut bytes = whole.clone();
            damage(&mut rng, &mut bytes);
            fs::write(&path, &bytes).unwrap();
            let only = rng.bool().then(|| [5].into());
            let wanted = Wanted { path: &path, only, replace: BTreeMap::new(), rest: Rest::Error };
            if let Ok(product) = build(&wanted) {
                let len: u64 = product.segments.iter().map(|segment| segment.len).sum();
                assert_eq!(len * 512, bytes.len() as u64, "seed {seed}");
                made += 1;
            }
        }
        assert!(made > 0, "every table is refused");
    }

    #[test]
    fn an_mbr_that_leads_anywhere_is_survived() {
        survive(Scheme::Mbr, |rng, bytes| {
            for _ in 0..rng.usize(1..4) {
                // A field of an entry in the first sector, or in that of an extended boot record.
                let sector = [0, 8192, 12288, 16384, 20480][rng.usize(..5)] * 512;
                let at = sector + 446 + 16 * rng.usize(..4) + 4 * rng.usize(..4);
                let word = random(rng);
                bytes[at..at + 4].copy_from_slice(&word);
            }
        });
    }

    #[test]
    fn a_gpt_that_leads_anywhere_is_survived() {
        survive(Scheme::Gpt, |rng, bytes| {
            for _ in 0..rng.usize(1..4) {
                // A field of the header or of an entry, and the checksums as they should be.
                let at = if rng.bool() {
                    512 + 24 + 4 * rng.usize(..16)
                } else {
                    1024 + 32 + 128 * rng.usize(..8) + 4 * rng.usize(..4)
                };
                let word = random(rng);
                bytes[at..at + 4].copy_from_slice(&word);
            }
            let entries = crc32fast::hash(&bytes[1024..1024 + 128 * 128]);
            bytes[512 + 88..512 + 92].copy_from_slice(&entries.to_le_bytes());
            bytes[512 + 16..512 + 20].fill(0);
            let header = crc32fast::hash(&bytes[512..512 + 92]);
            bytes[512 + 16..512 + 20].copy_from_slice(&header.to_le_bytes());
        });
    }
}
