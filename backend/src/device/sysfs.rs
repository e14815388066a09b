//! Block devices as sysfs shows them.

use std::fs;
use std::path::{Path, PathBuf};

/// A disk or partition known to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Its directory below `/sys/devices`.
    dir: PathBuf,
}

impl Disk {
    /// The device with this number; `None` when the kernel knows none, or without a mounted sysfs.
    pub fn numbered(major: u32, minor: u32) -> Option<Disk> {
        Disk::at(Path::new(&format!("/sys/dev/block/{major}:{minor}")))
    }

    /// The disk or partition with this kernel name.
    pub fn named(name: &str) -> Option<Disk> {
        Disk::at(&Path::new("/sys/class/block").join(name.replace('/', "!")))
    }

    /// The device whose directory a link leads to.
    pub fn at(link: &Path) -> Option<Disk> {
        Some(Disk { dir: fs::canonicalize(link).ok()? })
    }

    /// Kernel name, such as `vda1`.
    pub fn name(&self) -> String {
        // A name with a slash (cciss/c0d0) has an exclamation mark in sysfs.
        self.dir.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
    }

    /// `major:minor`.
    pub fn number(&self) -> Option<String> {
        self.text("dev")
    }

    /// The same as stat(2) gives it.
    pub fn rdev(&self) -> Option<u64> {
        let number = self.number()?;
        let (major, minor) = number.split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    /// The node's path below `/dev`, as devtmpfs and udev create it.
    pub fn node(&self) -> Option<PathBuf> {
        let uevent = self.text("uevent")?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(Path::new("/dev").join(name))
    }

    /// An attribute without its newline.
    pub fn text(&self, attribute: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(attribute)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// An attribute that is a decimal number.
    pub fn value(&self, attribute: &str) -> Option<u64> {
        self.text(attribute)?.parse().ok()
    }

    /// A queue limit. A partition has its whole disk's queue.
    pub fn queue(&self, attribute: &str) -> Option<u64> {
        let attribute = format!("queue/{attribute}");
        self.value(&attribute).or_else(|| self.whole()?.value(&attribute))
    }

    /// The disk that this is a partition of.
    pub fn whole(&self) -> Option<Disk> {
        if !self.dir.join("partition").exists() {
            return None;
        }
        Some(Disk { dir: self.dir.parent()?.to_owned() })
    }

    /// The partitions of this disk.
    pub fn partitions(&self) -> Vec<Disk> {
        let dirs = entries(&self.dir).into_iter().filter(|dir| dir.join("partition").exists());
        dirs.map(|dir| Disk { dir }).collect()
    }

    /// Block devices that are built on this one and hold it: md, dm (LVM, LUKS, ...), bcache.
    pub fn holders(&self) -> Vec<Disk> {
        entries(&self.dir.join("holders")).iter().filter_map(|link| Disk::at(link)).collect()
    }

    /// What kind of device this is, with its own name where it has one: `"LVM volume vg-root"`.
    pub fn kind(&self) -> String {
        if let Some(name) = self.text("dm/name") {
            let uuid = self.text("dm/uuid").unwrap_or_default();
            let kind = match uuid.split('-').next() {
                Some("LVM") => "LVM volume",
                Some("CRYPT") => "encrypted volume",
                Some("mpath") => "multipath device",
                _ => "device-mapper device",
            };
            return format!("{kind} {name}");
        }
        match self.dir.join("md").exists() {
            true => "md array".into(),
            false => "block device".into(),
        }
    }

    /// Path that a loop device was given for its backing file.
    pub fn loop_backing(&self) -> Option<PathBuf> {
        self.text("loop/backing_file").map(PathBuf::from)
    }

    /// Whether nothing can be written (`blockdev --setro`, a write-protect switch, `losetup -r`).
    pub fn is_read_only(&self) -> bool {
        self.value("ro") == Some(1)
    }
}

/// Loop devices that have a backing file.
pub(super) fn loops() -> Vec<Disk> {
    let all = entries(Path::new("/sys/block"));
    all.iter().filter(|dir| dir.join("loop").exists()).filter_map(|dir| Disk::at(dir)).collect()
}

/// Kernel names of the devices of a btrfs that has `name` among its devices; empty when none has.
pub(super) fn btrfs_devices(name: &str) -> Vec<String> {
    let systems = entries(Path::new("/sys/fs/btrfs"));
    let ours = systems.iter().map(|dir| dir.join("devices")).find(|dir| dir.join(name).exists());
    let devices = ours.map(|dir| entries(&dir)).unwrap_or_default();
    devices.iter().filter_map(|dir| Some(dir.file_name()?.to_string_lossy().into_owned())).collect()
}

/// What a directory holds, in the order of names; nothing when it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
