//! Block devices: loop devices with partitions, mounts, swap and exclusive claims, on the real kernel.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Loop, Mount, Need, RO, RW, can_run, dir, image, mke2fs, open, run, try_run};
use dm_table::Sectors;
use vhost_user_dm::device::{Access, DiscardMethod, Kind, OpenError, Registry};

const MIB: u64 = 1 << 20;

/// `major:minor` of a block device node.
fn number(node: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let rdev = fs::metadata(node).expect("a node").rdev();
    (rustix::fs::major(rdev).into(), rustix::fs::minor(rdev).into())
}

fn queue(device: &str, attribute: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/block/{device}/queue/{attribute}")).expect("a queue attribute");
    text.trim().parse().expect("a number")
}

/// Refused as claimed, with a reason and help that hold these texts.
fn claimed(path: &Path, reason: &str, help: &str) {
    let error = open(path, &RW).expect_err("it is claimed");
    assert!(matches!(error, OpenError::Claimed { .. }), "{error}");
    assert_eq!(error.errno_name(), "EBUSY");
    let text = error.to_string();
    assert!(text.contains(reason), "{reason:?} is missing in: {text}");
    // What would work is always offered: to leave it as it is.
    for help in [help, "--read-only", "--overlay=tmp"] {
        assert!(error.help().is_some_and(|text| text.contains(help)), "{help:?} is missing in: {:?}", error.help());
    }
}

#[test]
fn a_block_device_is_found_by_path_link_and_number_and_read_from_sysfs() {
    if !can_run("a_block_device_is_found_by_path_link_and_number_and_read_from_sysfs", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 * MIB), &[]);
    let (major, minor) = number(&device.node);
    let mut registry = Registry::new();
    let component = registry.open(device.node.to_str().expect("UTF-8"), None, &RW).expect("a loop device");
    assert_eq!(component.kind, Kind::Block { major: major as u32, minor: minor as u32 });
    assert_eq!((component.name.as_str(), component.size), (device.name().as_str(), Sectors::new(16384)));
    let limits = component.limits;
    assert_eq!(u64::from(limits.logical_block), queue(&device.name(), "logical_block_size"));
    assert_eq!(u64::from(limits.physical_block), queue(&device.name(), "physical_block_size"));
    assert_eq!(u64::from(limits.io_min), queue(&device.name(), "minimum_io_size"));
    assert_eq!(u64::from(limits.io_opt), queue(&device.name(), "optimal_io_size"));
    let discard_max = queue(&device.name(), "discard_max_bytes");
    assert_eq!(limits.discard.map_or(0, |discard| discard.max_sectors), discard_max / 512);
    if let Some(discard) = limits.discard {
        assert_eq!(discard.method, DiscardMethod::BlockCommand);
        assert_eq!(u64::from(discard.granularity), queue(&device.name(), "discard_granularity"));
    }
    assert_eq!(limits.write_zeroes, queue(&device.name(), "write_zeroes_max_bytes") > 0);
    assert!(matches!(component.access, Access::Direct { offset_align: ..=512, .. }), "{:?}", component.access);
    // As udev's /dev/disk/by-* names do it.
    let link = dir.path().join("by-label");
    symlink(&device.node, &link).expect("a link");
    assert!(Arc::ptr_eq(&component, &registry.open(link.to_str().expect("UTF-8"), None, &RW).expect("a link")));
    let text = format!("{major}:{minor}");
    assert!(Arc::ptr_eq(&component, &registry.open(&text, Some((major, minor)), &RW).expect("a number")));
    drop(component);
    let reader = open(&device.node, &RO).expect("nobody writes");
    assert_eq!((reader.limits.discard, reader.limits.write_zeroes), (None, false), "they change data");
    drop(reader);
    let component = registry.open(&text, Some((major, minor)), &RW).expect("a number");
    assert_eq!(component.path, device.node);
    assert!(component.describe().starts_with(&format!(
        "{}: block device {text}, 16384 sectors, 512-byte blocks, direct (",
        device.node.display()
    )));
}

#[test]
fn a_device_with_4096_byte_blocks_keeps_them() {
    if !can_run("a_device_with_4096_byte_blocks_keeps_them", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 * MIB), &["--sector-size", "4096"]);
    let component = open(&device.node, &RW).expect("a loop device");
    assert_eq!((component.limits.logical_block, component.size), (4096, Sectors::new(16384)));
    assert!(matches!(component.access, Access::Direct { offset_align: ..=4096, .. }), "{:?}", component.access);
}

#[test]
fn a_partition_has_its_own_size_and_its_disks_queue() {
    if !can_run("a_partition_has_its_own_size_and_its_disks_queue", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::with_two_partitions(&image(dir.path(), "disk.img", 32 * MIB));
    let component = open(&device.partition(2), &RW).expect("a partition");
    assert_eq!((component.name.clone(), component.size), (format!("{}p2", device.name()), Sectors::new(16384)));
    assert_eq!(
        component.limits.discard.map_or(0, |discard| discard.max_sectors),
        queue(&device.name(), "discard_max_bytes") / 512
    );
    // The sibling is free, the whole disk is not: both belong to different claims of the kernel.
    open(&device.partition(1), &RW).expect("the other partition");
    assert_eq!(open(&device.node, &RW).expect_err("its partition is served").errno_name(), "EBUSY");
}

#[test]
fn while_a_device_is_served_nobody_else_gets_it() {
    if !can_run("while_a_device_is_served_nobody_else_gets_it", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 * MIB), &[]);
    mke2fs(&device.node);
    let component = open(&device.node, &RW).expect("nobody is there");
    assert_eq!(open(&device.node, &RW).expect_err("served already").errno_name(), "EBUSY");
    assert_eq!(open(&device.node, &RO).expect_err("served writable").errno_name(), "EBUSY");
    let at = dir.path().join("mnt");
    fs::create_dir(&at).expect("a mount point");
    let refused = try_run("mount", [&device.node, &at]);
    assert!(!refused.status.success(), "the host mounted what we serve");
    drop(component);
    let _mount = Mount::new(&[device.node.as_os_str()], &at);
}

#[test]
fn a_mounted_device_is_refused_with_the_mount_and_may_be_read() {
    if !can_run("a_mounted_device_is_refused_with_the_mount_and_may_be_read", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk.img", 8 * MIB);
    let device = Loop::attach(&file, &[]);
    mke2fs(&device.node);
    // A blank, because the kernel escapes it.
    let mount = Mount::new(&[device.node.as_os_str()], &dir.path().join("my mount"));
    let at = mount.at.display();
    claimed(&device.node, &format!("it is mounted on {at} (ext4)"), &format!("umount {at}"));
    let reader = open(&device.node, &RO).expect("reading harms nobody");
    assert_eq!(reader.warnings, [format!("it is mounted on {at} (ext4), so it may change while it is served")]);
    drop(reader);
    // The same through the image file, which no lock and no claim protects.
    let reason =
        format!("it is the backing file of the loop device {}, which is mounted on {at} (ext4)", device.name());
    claimed(&file, &reason, &format!("umount {at}, then losetup -d {}", device.node.display()));
    let hard_link = dir.path().join("hard");
    fs::hard_link(&file, &hard_link).expect("a hard link");
    claimed(&hard_link, &reason, "umount");
    assert_eq!(open(&file, &RO).expect("reading harms nobody").warnings.len(), 1);
}

#[test]
fn a_device_that_is_mounted_read_only_is_read_without_a_warning() {
    if !can_run("a_device_that_is_mounted_read_only_is_read_without_a_warning", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 * MIB), &[]);
    mke2fs(&device.node);
    let _mount = Mount::new(&["-o".as_ref(), "ro".as_ref(), device.node.as_os_str()], &dir.path().join("mnt"));
    claimed(&device.node, "it is mounted on", "umount");
    assert_eq!(open(&device.node, &RO).expect("nobody writes").warnings, [""; 0]);
}

#[test]
fn a_mounted_partition_claims_its_disk_but_not_its_sibling() {
    if !can_run("a_mounted_partition_claims_its_disk_but_not_its_sibling", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk.img", 32 * MIB);
    let device = Loop::with_two_partitions(&file);
    mke2fs(&device.partition(1));
    let mount = Mount::new(&[device.partition(1).as_os_str()], &dir.path().join("mnt"));
    let partition = format!("{}p1 is mounted on {} (ext4)", device.name(), mount.at.display());
    claimed(&device.node, &format!("its partition {partition}"), "umount");
    claimed(&file, &format!("whose partition {partition}"), "umount");
    let sibling = open(&device.partition(2), &RW).expect("the sibling is free");
    assert_eq!(sibling.warnings, [""; 0]);
}

#[test]
fn a_mounted_disk_claims_its_partitions() {
    if !can_run("a_mounted_disk_claims_its_partitions", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::with_two_partitions(&image(dir.path(), "disk.img", 32 * MIB));
    // ext4 leaves the first kilobyte alone, so a file system beside a partition table is possible.
    mke2fs(&device.node);
    let mount = Mount::new(&[device.node.as_os_str()], &dir.path().join("mnt"));
    if !device.partition(1).exists() {
        run("partx", ["-u".as_ref(), device.node.as_os_str()]);
    }
    claimed(
        &device.partition(1),
        &format!("the whole disk {} is mounted on {}", device.name(), mount.at.display()),
        "umount",
    );
}

/// A mount that this process's mount namespace does not show; the kernel's own claim has to do.
#[test]
fn a_device_mounted_in_another_namespace_is_refused() {
    if !can_run("a_device_mounted_in_another_namespace_is_refused", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "disk.img", 8 * MIB), &[]);
    mke2fs(&device.node);
    let at = dir.path().join("mnt");
    fs::create_dir(&at).expect("a mount point");
    let script = r#"mount "$0" "$1" && echo mounted && read line"#;
    let mut elsewhere = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([&device.node, &at])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut answer = [0_u8; 8];
    elsewhere.stdout.as_mut().expect("a pipe").read_exact(&mut answer).expect("the mount");
    let refused = open(&device.node, &RW);
    let read = open(&device.node, &RO);
    drop(elsewhere.stdin.take());
    elsewhere.wait().expect("the shell ends");
    let error = refused.expect_err("it is mounted");
    assert_eq!(error.errno_name(), "EBUSY");
    assert!(error.to_string().contains("the kernel has it claimed for another exclusive user"), "{error}");
    read.expect("reading harms nobody");
}

/// Swap that is switched off on drop, so that the device below can go.
struct Swap<'a>(&'a Path);

impl<'a> Swap<'a> {
    fn on(path: &'a Path) -> Swap<'a> {
        run("mkswap", ["-q".as_ref(), path.as_os_str()]);
        run("swapon", [path]);
        Swap(path)
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        let _ = try_run("swapoff", [self.0]);
    }
}

#[test]
fn active_swap_is_refused() {
    if !can_run("active_swap_is_refused", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk.img", 8 * MIB);
    let device = Loop::attach(&file, &[]);
    let swap = Swap::on(&device.node);
    let off = format!("swapoff {}", device.node.display());
    claimed(&device.node, &format!("it is active swap ({})", device.node.display()), &off);
    claimed(&file, "which is active swap", &off);
    drop(swap);
    open(&device.node, &RW).expect("free again");
}

#[test]
fn a_swap_file_is_refused() {
    if !can_run("a_swap_file_is_refused", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let path = dir.path().join("swapfile");
    fs::write(&path, vec![0_u8; MIB as usize]).expect("a file without holes");
    let swap = Swap::on(&path);
    claimed(&path, &format!("it is active swap ({})", path.display()), "swapoff");
    drop(swap);
    open(&path, &RW).expect("free again");
}

#[test]
fn a_loop_device_claims_its_backing_file() {
    if !can_run("a_loop_device_claims_its_backing_file", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk.img", 8 * MIB);
    let device = Loop::attach(&file, &[]);
    let reason = format!("it is the backing file of the loop device {}", device.name());
    claimed(&file, &reason, &format!("losetup -d {}", device.node.display()));
    drop(device);
    let _read_only = Loop::attach(&file, &["--read-only"]);
    open(&file, &RW).expect("a read-only loop device that nobody uses is no claim");
}

#[test]
fn a_write_protected_device_is_refused_and_may_be_read() {
    if !can_run("a_write_protected_device_is_refused_and_may_be_read", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let file = image(dir.path(), "disk.img", 8 * MIB);
    let check = |device: &Loop| {
        let error = open(&device.node, &RW).expect_err("write-protected");
        assert_eq!(error.errno_name(), "EROFS");
        assert_eq!(
            error.to_string(),
            format!("{}: cannot be written: the device is write-protected", device.node.display())
        );
        assert!(error.help().is_some_and(|help| help.starts_with("--read-only")));
        open(&device.node, &RO).expect("it can be read");
    };
    check(&Loop::attach(&file, &["--read-only"]));
    let device = Loop::attach(&file, &[]);
    run("blockdev", ["--setro".as_ref(), device.node.as_os_str()]);
    check(&device);
}

#[test]
fn a_number_without_its_node_is_searched_below_dev() {
    if !can_run("a_number_without_its_node_is_searched_below_dev", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::with_two_partitions(&image(dir.path(), "disk.img", 32 * MIB));
    let (major, minor) = number(&device.partition(1));
    let text = format!("{major}:{minor}");
    // A node of another name, deeper down, and the usual one away.
    let elsewhere = tempfile::tempdir_in("/dev").expect("a directory in /dev");
    let moved = elsewhere.path().join("node");
    fs::rename(device.partition(1), &moved).expect("rename in devtmpfs");
    let found = Registry::new().open(&text, Some((major, minor)), &RO).map(|component| component.path.clone());
    fs::remove_file(&moved).expect("remove");
    let gone = Registry::new().open(&text, Some((major, minor)), &RO).expect_err("no node is left");
    assert_eq!(found.expect("a node"), moved);
    assert_eq!(gone.errno_name(), "ENXIO");
    assert_eq!(gone.to_string(), format!("{text}: this is {}p1, but no node in /dev leads to it", device.name()));
}

#[test]
fn a_device_without_sectors_is_refused() {
    if !can_run("a_device_without_sectors_is_refused", &[Need::Loop]) {
        return;
    }
    let _dir = dir();
    // A minor of its own, so that no other user of loop devices gets it first.
    let node = Path::new("/dev/loop199");
    let made = try_run("mknod", [node.as_os_str(), "b".as_ref(), "7".as_ref(), "199".as_ref()]);
    let result = open(node, &RO);
    if made.status.success() {
        fs::remove_file(node).expect("remove");
    }
    let error = result.expect_err("nothing is attached");
    assert!(["EINVAL", "ENXIO"].contains(&error.errno_name()), "{error}");
}
