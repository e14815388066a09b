//! What the host knows of a piece: what it is, how large, and what its own partition table says of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dm_table::SECTOR_SIZE;
use uuid::Uuid;

use super::types::Type;
use crate::device::sysfs::Disk;
use crate::inspect::{self, Contents, Kind};

/// A file or block device of the host, open for reading for this moment, without locks.
#[derive(Debug)]
pub struct Origin {
    /// Absolute, as the user wrote it otherwise: what a stable link leads to is for the one who opens it later.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes of its logical blocks; 512 for files, which take blocks of any size.
    pub block: u32,
    file: File,
    /// Number of the block device.
    rdev: Option<u64>,
}

/// A partition table's scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// What a partition table of the host says of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of which kind the table is.
    pub scheme: Scheme,
    /// The disk that has the table, for people.
    pub disk: String,
    /// The disk's signature, of an MBR.
    pub signature: Option<u32>,
    /// Its number there.
    pub number: u32,
    /// Its type.
    pub kind: Type,
    /// Its GUID, of a GPT.
    pub guid: Option<Uuid>,
    /// Its name, of a GPT.
    pub label: Option<String>,
    /// Its attributes, of a GPT.
    pub bits: u64,
    /// Whether it is marked active, of an MBR.
    pub active: bool,
}

impl Origin {
    /// Opens it.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` with the reason for what is neither a file nor a block device.
    pub fn open(path: &Path) -> io::Result<Origin> {
        let path = std::path::absolute(path)?;
        // A FIFO would wait for its other end.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        let meta = file.metadata()?;
        let kind = meta.file_type();
        let (bytes, block, rdev) = if kind.is_block_device() {
            use rustix::fs::{SeekFrom, ioctl_blksszget, seek};
            (seek(&file, SeekFrom::End(0))?, ioctl_blksszget(&file)?, Some(meta.rdev()))
        } else if kind.is_file() {
            (meta.len(), SECTOR_SIZE as u32, None)
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"));
        };
        Ok(Origin { path, bytes, block, file, rdev })
    }

    /// What a range of it contains.
    ///
    /// # Errors
    /// The system's.
    pub fn look(&self, start: u64, len: u64) -> io::Result<Contents> {
        let (start, len) = (start * SECTOR_SIZE, len * SECTOR_SIZE);
        inspect::look(&inspect::Window { bytes: &self.file, start, len }, len)
    }

    /// Reads sectors.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, start: u64, sectors: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(sectors * SECTOR_SIZE).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, start * SECTOR_SIZE)?;
        Ok(bytes)
    }

    /// The kernel's view of the block device.
    pub fn sysfs(&self) -> Option<Disk> {
        let rdev = self.rdev?;
        Disk::numbered(rustix::fs::major(rdev), rustix::fs::minor(rdev))
    }

    /// What the host's partition table says of `range`, or of the whole where it is a partition.
    ///
    /// # Errors
    /// Why the table of the disk that it is a partition of cannot be read.
    pub fn entry(&self, range: Option<(u64, u64)>) -> Result<Option<Entry>, String> {
        if let Some((start, len)) = range {
            let table = self.look(0, self.bytes / SECTOR_SIZE).ok();
            let found = table.as_ref().and_then(|table| {
                let fits = |partition: &&inspect::Partition| partition.start == start && partition.len == len;
                Some((table, table.partitions.iter().find(fits)?))
            });
            return Ok(found.and_then(|(table, partition)| self.entry_of(table, partition)));
        }
        let Some((partition, whole)) = self.sysfs().and_then(|disk| Some((disk.clone(), disk.whole()?))) else {
            return Ok(None);
        };
        let node =
            whole.node().ok_or_else(|| format!("the disk that {} is a partition of is unknown", partition.name()))?;
        let (number, start) = (partition.value("partition"), partition.value("start"));
        let read = Origin::open(&node).and_then(|disk| {
            let table = disk.look(0, disk.bytes / SECTOR_SIZE)?;
            let same = |p: &&inspect::Partition| Some(u64::from(p.number)) == number && Some(p.start) == start;
            Ok(table.partitions.iter().find(same).and_then(|found| disk.entry_of(&table, found)))
        });
        match read {
            Ok(entry) => Ok(entry),
            // Who may open a partition need not be allowed to open the disk; udev has looked as root.
            Err(error) => match partition.number().and_then(|number| udev(&number, &node)) {
                Some(entry) => Ok(Some(entry)),
                None => Err(format!("the partition table of {} cannot be read: {error}", node.display())),
            },
        }
    }

    /// An entry of the table on this disk.
    fn entry_of(&self, table: &Contents, partition: &inspect::Partition) -> Option<Entry> {
        let scheme = match table.kind {
            Kind::Gpt => Scheme::Gpt,
            Kind::Mbr => Scheme::Mbr,
            _ => return None,
        };
        Some(Entry {
            scheme,
            disk: self.path.display().to_string(),
            signature: signature(table),
            number: partition.number,
            kind: Type::parse(&partition.kind)?,
            guid: partition.uuid.as_deref().and_then(|guid| Uuid::try_parse(guid).ok()),
            label: partition.name.clone(),
            bits: if scheme == Scheme::Gpt { self.bits(partition.number).unwrap_or(0) } else { 0 },
            active: scheme == Scheme::Mbr && self.active(partition.number),
        })
    }

    /// Bytes of the blocks that a GPT is made of, whose checksums have been looked at.
    pub fn gpt_block(&self) -> u64 {
        if self.u64_at(512) == Some(u64::from_le_bytes(*b"EFI PART")) { 512 } else { 4096 }
    }

    /// The last sector that the partitions of a GPT may have.
    pub fn last_usable(&self) -> Option<u64> {
        let block = self.gpt_block();
        self.u64_at(block + 48)?.checked_add(1)?.checked_mul(block / SECTOR_SIZE)?.checked_sub(1)
    }

    /// Attributes of an entry of a GPT.
    fn bits(&self, number: u32) -> Option<u64> {
        let block = self.gpt_block();
        let entries = self.u64_at(block + 72)?.checked_mul(block)?;
        let size = u64::from(u32::try_from(self.u64_at(block + 84)? & 0xFFFF_FFFF).ok()?);
        self.u64_at(entries.checked_add(size * u64::from(number.checked_sub(1)?))?.checked_add(48)?)
    }

    fn active(&self, number: u32) -> bool {
        let entry = (1..=4).contains(&number).then(|| self.u64_at(446 + 16 * u64::from(number - 1))).flatten();
        entry.is_some_and(|entry| entry & 0xFF == 0x80)
    }

    fn u64_at(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// Signature of a disk with an MBR.
pub fn signature(table: &Contents) -> Option<u32> {
    let text = table.uuid.as_deref().filter(|_| table.kind == Kind::Mbr)?;
    u32::from_str_radix(text, 16).ok()
}

/// What udev's data base says of a partition (`ID_PART_ENTRY_*` of libblkid).
fn udev(number: &str, disk: &Path) -> Option<Entry> {
    let text = std::fs::read_to_string(format!("/run/udev/data/b{number}")).ok()?;
    from_udev(&text, disk)
}

fn from_udev(text: &str, disk: &Path) -> Option<Entry> {
    let get = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix("E:ID_PART_ENTRY_")?.strip_prefix(key)?.strip_prefix('='))
    };
    let scheme = match get("SCHEME")? {
        "gpt" => Scheme::Gpt,
        "dos" => Scheme::Mbr,
        _ => return None,
    };
    let kind = match scheme {
        Scheme::Gpt => Type::parse(get("TYPE")?)?,
        Scheme::Mbr => Type::parse(&format!("{:0>2}", get("TYPE")?.strip_prefix("0x")?))?,
    };
    let flags = get("FLAGS").and_then(|flags| u64::from_str_radix(flags.strip_prefix("0x")?, 16).ok()).unwrap_or(0);
    let uuid = get("UUID");
    Some(Entry {
        scheme,
        disk: disk.display().to_string(),
        signature: uuid.and_then(|uuid| u32::from_str_radix(uuid.split_once('-')?.0, 16).ok()),
        number: get("NUMBER")?.parse().ok()?,
        kind,
        guid: uuid.and_then(|uuid| Uuid::try_parse(uuid).ok()).filter(|_| scheme == Scheme::Gpt),
        label: get("NAME").and_then(unescape),
        bits: if scheme == Scheme::Gpt { flags } else { 0 },
        active: scheme == Scheme::Mbr && flags == 0x80,
    })
}

/// udev writes what is unusual as `\xNN`.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split("\\x");
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udev_knows_entries_of_disks_that_we_may_not_read() {
        let gpt = "S:disk/by-partuuid/x\nE:DEVTYPE=partition\nE:ID_PART_ENTRY_SCHEME=gpt\n\
                   E:ID_PART_ENTRY_NAME=EFI\\x20system\\x20\u{e9}\nE:ID_PART_ENTRY_UUID=5a1c39e8-0000-4000-8000-000000000001\n\
                   E:ID_PART_ENTRY_TYPE=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\nE:ID_PART_ENTRY_FLAGS=0x8000000000000001\n\
                   E:ID_PART_ENTRY_NUMBER=3\n";
        let entry = from_udev(gpt, Path::new("/dev/sda")).unwrap();
        assert_eq!(entry.label.as_deref(), Some("EFI system \u{e9}"));
        assert_eq!((entry.number, entry.bits, entry.scheme), (3, 0x8000_0000_0000_0001, Scheme::Gpt));
        assert_eq!(entry.kind, Type::parse("esp").unwrap());
        assert_eq!(entry.guid.unwrap().to_string(), "5a1c39e8-0000-4000-8000-000000000001");
        let mbr = "E:ID_PART_ENTRY_SCHEME=dos\nE:ID_PART_ENTRY_UUID=5a1c39e8-02\nE:ID_PART_ENTRY_TYPE=0x7\n\
                   E:ID_PART_ENTRY_FLAGS=0x80\nE:ID_PART_ENTRY_NUMBER=2\n";
        let entry = from_udev(mbr, Path::new("/dev/sda")).unwrap();
        assert_eq!((entry.kind, entry.active, entry.bits), (Type::Mbr(7), true, 0));
        assert_eq!((entry.signature, entry.guid), (Some(0x5a1c_39e8), None));
        assert_eq!(from_udev("E:ID_FS_TYPE=ext4\n", Path::new("/dev/sda")), None);
    }
}
