//! Who else on this machine uses a device or an image file: mounts, swap, holders and loop devices.
//!
//! For block devices the kernel has the last word (an exclusive open), but only says EBUSY; this module finds
//! the reason. For image files nothing but this module stands between a guest and a mounted file system.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::component::Identity;
use super::proc::{self, Mount};
use super::sysfs::{self, Disk};

/// Mounts that are named for one device; the rest is counted.
const MOST_NAMED: usize = 3;

/// Depth to which holders of holders are followed to their mounts (disk, md, LUKS, LVM, and some to spare).
const HOLDER_DEPTH: u32 = 8;

/// A use of a device or file by this machine that excludes serving it writable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Short name of the use: `mounted`, `swap`, `md`, `lvm`, `held`, `loop`.
    pub id: &'static str,
    /// What the use is, with the name of the mount: `"it is mounted on /srv (ext4)"`.
    pub what: String,
    /// Whether the machine may change the data.
    pub writes: bool,
    /// What ends the use: `"umount /srv"`.
    pub release: String,
}

/// The claims on a block device, on its partitions and on the disk that it is a partition of.
pub(super) fn of_block(disk: &Disk, identity: Identity) -> Vec<Claim> {
    let host = Host::look();
    let mut claims: Vec<Claim> = host.direct(disk).into_iter().map(|claim| claim.prefixed("it is ")).collect();
    for partition in disk.partitions() {
        let prefix = format!("its partition {} is ", partition.name());
        claims.extend(host.direct(&partition).into_iter().map(|claim| claim.prefixed(&prefix)));
    }
    if let Some(whole) = disk.whole() {
        let prefix = format!("the whole disk {} is ", whole.name());
        claims.extend(host.direct(&whole).into_iter().map(|claim| claim.prefixed(&prefix)));
    }
    claims.extend(host.loops(identity));
    claims
}

/// The claims on an image file.
pub(super) fn of_file(identity: Identity) -> Vec<Claim> {
    let host = Host::look();
    let mut claims = host.loops(identity);
    claims.extend(host.swap(identity).map(|claim| claim.prefixed("it is ")));
    claims
}

impl Claim {
    fn prefixed(mut self, prefix: &str) -> Claim {
        self.what.insert_str(0, prefix);
        self
    }
}

/// The machine's state at one moment.
struct Host {
    mounts: Vec<Mount>,
    swaps: Vec<(PathBuf, Identity)>,
}

impl Host {
    fn look() -> Host {
        let swaps = proc::swaps().into_iter().filter_map(|path| Some((path.clone(), identity(&path)?)));
        Host { mounts: proc::mounts(), swaps: swaps.collect() }
    }

    /// Claims on exactly this device.
    fn direct(&self, disk: &Disk) -> Vec<Claim> {
        let mut claims: Vec<Claim> = self.mounted(disk).into_iter().collect();
        if let Some(rdev) = disk.rdev() {
            claims.extend(self.swap(Identity::Block { rdev }));
        }
        claims.extend(disk.holders().iter().map(|holder| self.held(holder)));
        claims
    }

    fn mounted(&self, disk: &Disk) -> Option<Claim> {
        let number = disk.number()?;
        let mut mounts: Vec<&Mount> = self.mounts.iter().filter(|mount| mount.dev == number).collect();
        // btrfs is mounted with a number of its own; its devices are known by name.
        let siblings = sysfs::btrfs_devices(&disk.name());
        if mounts.is_empty() && !siblings.is_empty() {
            let nodes: Vec<PathBuf> = siblings.iter().filter_map(|name| Disk::named(name)?.node()).collect();
            let is_ours = |mount: &&Mount| {
                let source = fs::canonicalize(&mount.source).unwrap_or_else(|_| mount.source.clone());
                mount.fs_type == "btrfs" && nodes.contains(&source)
            };
            mounts = self.mounts.iter().filter(is_ours).collect();
            if mounts.is_empty() {
                let what = format!("part of a mounted btrfs ({})", siblings.join(", "));
                return Some(Claim { id: "mounted", what, writes: true, release: "unmount that btrfs".into() });
            }
        }
        let first = mounts.first()?;
        let fs_type = first.fs_type.clone();
        let writes = mounts.iter().any(|mount| !mount.read_only);
        let places = name_some(mounts.iter().map(|mount| mount.at.display().to_string()).collect());
        Some(Claim {
            id: "mounted",
            what: format!("mounted on {places} ({fs_type})"),
            writes,
            release: format!("umount {}", first.at.display()),
        })
    }

    fn swap(&self, identity: Identity) -> Option<Claim> {
        let (path, _) = self.swaps.iter().find(|(_, swap)| *swap == identity)?;
        let path = path.display();
        let what = format!("active swap ({path})");
        Some(Claim { id: "swap", what, writes: true, release: format!("swapoff {path}") })
    }

    fn held(&self, holder: &Disk) -> Claim {
        let what = format!("held by {} ({})", holder.name(), holder.kind());
        let release = format!("stop {} ({})", holder.name(), holder.kind());
        let id = match holder.kind() {
            kind if kind.starts_with("md") => "md",
            kind if kind.starts_with("LVM") => "lvm",
            _ => "held",
        };
        match self.mounts_above(holder, HOLDER_DEPTH) {
            Some(mounted) => Claim {
                id,
                what: format!("{what}, {}", mounted.what),
                release: format!("{}, then {release}", mounted.release),
                writes: true,
            },
            None => Claim { id, what, release, writes: true },
        }
    }

    fn mounts_above(&self, disk: &Disk, depth: u32) -> Option<Claim> {
        let here = self.mounted(disk);
        if here.is_some() || depth == 0 {
            return here;
        }
        let above = disk.holders().into_iter().chain(disk.partitions());
        above.filter_map(|disk| self.mounts_above(&disk, depth - 1)).next()
    }

    /// Loop devices over this file or device, however their path spells it.
    fn loops(&self, of: Identity) -> Vec<Claim> {
        let loops = sysfs::loops();
        let ours = loops.iter().filter(|disk| disk.loop_backing().is_some_and(|path| identity(&path) == Some(of)));
        ours.filter_map(|disk| self.loop_claim(disk)).collect()
    }

    fn loop_claim(&self, disk: &Disk) -> Option<Claim> {
        let name = disk.name();
        let detach = format!("losetup -d /dev/{name}");
        let partitions = disk.partitions().into_iter().flat_map(|partition| {
            let prefix = format!("whose partition {} is ", partition.name());
            self.direct(&partition).into_iter().map(move |claim| claim.prefixed(&prefix))
        });
        let whole = self.direct(disk).into_iter().map(|claim| claim.prefixed("which is "));
        let claims: Vec<Claim> = whole.chain(partitions).collect();
        if claims.is_empty() {
            // A read-only loop device that nobody uses neither changes the file nor relies on it.
            let writable = !disk.is_read_only();
            let what = format!("it is the backing file of the loop device {name}");
            return writable.then_some(Claim { id: "loop", what, writes: true, release: detach });
        }
        let uses: Vec<&str> = claims.iter().map(|claim| claim.what.as_str()).collect();
        let releases: Vec<&str> = claims.iter().map(|claim| claim.release.as_str()).collect();
        Some(Claim {
            id: "loop",
            what: format!("it is the backing file of the loop device {name}, {}", uses.join(" and ")),
            writes: claims.iter().any(|claim| claim.writes),
            release: format!("{}, then {detach}", releases.join(" and ")),
        })
    }
}

/// What a path leads to, if it is a file or a block device.
fn identity(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok()?;
    match meta.file_type() {
        kind if kind.is_block_device() => Some(Identity::Block { rdev: meta.rdev() }),
        kind if kind.is_file() => Some(Identity::File { dev: meta.dev(), inode: meta.ino() }),
        _ => None,
    }
}

fn name_some(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMED);
    names.truncate(MOST_NAMED);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn long_lists_of_mounts_are_cut() {
        let names = |count: usize| (0..count).map(|n| format!("/m{n}")).collect::<Vec<_>>();
        assert_eq!(name_some(names(3)), "/m0, /m1, /m2");
        assert_eq!(name_some(names(5)), "/m0, /m1, /m2 and 2 more");
    }

    /// A device directory as sysfs has it: attributes with their text.
    fn device(root: &Path, name: &str, attributes: &[(&str, &str)]) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(dir.join("holders")).unwrap();
        for (attribute, text) in attributes {
            fs::create_dir_all(dir.join(attribute).parent().unwrap()).unwrap();
            fs::write(dir.join(attribute), format!("{text}\n")).unwrap();
        }
        dir
    }

    fn hold(device: &Path, holder: &Path) {
        symlink(holder, device.join("holders").join(holder.file_name().unwrap())).unwrap();
    }

    /// Holders need a kernel with md or dm; their directories are played here.
    #[test]
    fn holders_are_named_with_what_they_are_and_where_they_are_mounted() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let disk = device(root, "sda", &[("dev", "8:0")]);
        let partition = device(&disk, "sda2", &[("dev", "8:2"), ("partition", "2")]);
        let md = device(root, "md0", &[("dev", "9:0"), ("md/level", "raid1")]);
        let crypt = device(root, "dm-0", &[("dev", "253:0"), ("dm/name", "vault"), ("dm/uuid", "CRYPT-LUKS2-1-vault")]);
        let volume = device(root, "dm-1", &[("dev", "253:1"), ("dm/name", "vg-root"), ("dm/uuid", "LVM-abc")]);
        hold(&partition, &md);
        hold(&md, &crypt);
        hold(&crypt, &volume);
        let mount = Mount {
            dev: "253:1".into(),
            at: "/".into(),
            fs_type: "xfs".into(),
            source: "/dev/mapper/vg-root".into(),
            read_only: false,
        };
        let host = Host { mounts: vec![mount], swaps: Vec::new() };
        let claims = host.direct(&Disk::at(&partition).unwrap());
        assert_eq!(
            claims,
            [Claim {
                id: "md",
                what: "held by md0 (md array), mounted on / (xfs)".into(),
                writes: true,
                release: "umount /, then stop md0 (md array)".into(),
            }]
        );
        let claims = host.direct(&Disk::at(&md).unwrap());
        assert_eq!(claims[0].what, "held by dm-0 (encrypted volume vault), mounted on / (xfs)");
        let host = Host { mounts: Vec::new(), swaps: Vec::new() };
        let claims = host.direct(&Disk::at(&crypt).unwrap());
        assert_eq!((claims[0].id, claims[0].what.as_str()), ("lvm", "held by dm-1 (LVM volume vg-root)"));
        assert_eq!(host.direct(&Disk::at(&volume).unwrap()), []);
        // The partition is found from its disk, and the disk from its partition.
        let whole = Disk::at(&disk).unwrap();
        assert_eq!(whole.partitions().iter().map(Disk::name).collect::<Vec<_>>(), ["sda2"]);
        assert_eq!(Disk::at(&partition).unwrap().whole().map(|disk| disk.name()).as_deref(), Some("sda"));
    }

    #[test]
    fn swap_is_found_by_its_number() {
        let root = tempfile::tempdir().unwrap();
        let disk = device(root.path(), "sdb", &[("dev", "8:16")]);
        let rdev = rustix::fs::makedev(8, 16);
        let host = Host { mounts: Vec::new(), swaps: vec![("/dev/sdb".into(), Identity::Block { rdev })] };
        let claims = host.direct(&Disk::at(&disk).unwrap());
        assert_eq!(claims[0].what, "active swap (/dev/sdb)");
        assert_eq!(claims[0].release, "swapoff /dev/sdb");
    }
}
