//! Image files: size, limits, discard, direct I/O, and one opening to a process.

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::{Loop, Mount, Need, RO, RW, can_run, dir, dir_in, image, mke2fs, open};
use dm_table::Sectors;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl};
use vhost_user_dm::device::{Access, Cache, DiscardMethod, Options, Registry};

const BUFFERED: Options = Options { read_only: false, cache: Cache::Buffered, incoming: false };
const DIRECT: Options = Options { read_only: false, cache: Cache::Direct, incoming: false };

fn flags(file: impl AsFd) -> OFlags {
    fcntl_getfl(file).expect("F_GETFL")
}

/// Whether the file system itself takes O_DIRECT, asked without the code under test.
fn takes_direct(path: &Path) -> bool {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECT, rustix::fs::Mode::empty()).is_ok()
}

#[test]
fn the_size_is_whole_sectors_and_the_rest_is_warned_of() {
    let dir = dir();
    let whole = open(&image(dir.path(), "whole", 40960 * 512), &RW).expect("a file");
    assert_eq!((whole.size, whole.warnings.as_slice()), (Sectors::new(40960), &[][..]));
    let odd = open(&image(dir.path(), "odd", 3 * 512 + 100), &RW).expect("a file");
    assert_eq!(odd.size, Sectors::new(3));
    assert_eq!(odd.warnings, ["its size of 1636 bytes is no multiple of 512; the last 100 bytes are not used"]);
}

#[test]
fn a_file_without_a_sector_is_refused() {
    let dir = dir();
    for (bytes, why) in [(0, "the file is empty"), (511, "the file has 511 bytes, less than a sector")] {
        let path = image(dir.path(), "small", bytes);
        let error = open(&path, &RW).expect_err(why);
        assert_eq!(error.to_string(), format!("{}: {why}", path.display()));
        assert_eq!(error.errno_name(), "EINVAL");
        assert!(error.help().is_some());
    }
}

#[test]
fn a_file_has_sector_blocks_and_its_file_systems_physical_blocks() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let component = open(&path, &RW).expect("a file");
    let limits = component.limits;
    assert_eq!((limits.logical_block, limits.alignment_offset, limits.io_opt), (512, 0, 0));
    let block = u32::try_from(fs::metadata(&path).expect("stat").blksize()).expect("a block size").min(4096);
    assert_eq!((limits.physical_block, limits.io_min), (block, block));
    assert_eq!(component.name, "disk.img");
}

/// Opens with `Cache::Auto` and checks that the file is read just as the component says it must be.
fn check_access(path: &Path) -> Access {
    let component = open(path, &RW).expect("a file");
    let set = flags(component.file());
    match component.access {
        Access::Direct { mem_align, offset_align } => {
            assert!(set.contains(OFlags::DIRECT) && takes_direct(path));
            assert!(offset_align <= 512 && mem_align.is_power_of_two());
            // The alignment is the one that the engine may rely on: just so, and no better.
            let mem = mem_align as usize;
            let mut buffer = vec![0_u8; 1 << 16];
            let start = buffer.as_ptr().align_offset(4096.max(2 * mem)) + mem;
            let read = component.file().read_at(&mut buffer[start..start + offset_align as usize], offset_align.into());
            assert_eq!(read.expect("an aligned read"), offset_align as usize);
        }
        Access::Buffered | Access::Mapped => assert!(!set.contains(OFlags::DIRECT)),
    }
    if component.access == Access::Mapped {
        assert!(component.mapping.is_some());
    }
    assert!(!set.contains(OFlags::NONBLOCK), "an engine would give EAGAIN to the guest");
    let close_on_exec = rustix::io::fcntl_getfd(component.file()).expect("F_GETFD");
    assert!(close_on_exec.contains(rustix::io::FdFlags::CLOEXEC));
    component.access
}

#[test]
fn direct_io_is_the_default_where_the_file_system_takes_it() {
    let dir = dir();
    let access = check_access(&image(dir.path(), "disk.img", 1 << 20));
    // Files of the usual file systems; a temporary directory on tmpfs or the like proves nothing here.
    let fs_type = rustix::fs::statfs(dir.path()).expect("statfs").f_type as u64;
    const EXT4: u64 = 0xef53;
    assert!(fs_type != EXT4 || matches!(access, Access::Direct { .. }), "{access:?}");
}

/// overlayfs does not report its alignment, so it is tried.
#[test]
fn alignment_that_is_not_reported_is_tried() {
    if !can_run("alignment_that_is_not_reported_is_tried", &[Need::Mount]) {
        return;
    }
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(at(name)).expect("a directory");
    }
    let dirs = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let arguments = ["-t", "overlay", "overlay", "-o", &dirs].map(AsRef::as_ref);
    let mount = Mount::new(&arguments, &at("merged"));
    let upper = takes_direct(&image(&at("upper"), "probe.img", 1 << 20));
    let access = check_access(&image(&mount.at, "disk.img", 1 << 20));
    assert_eq!(matches!(access, Access::Direct { .. }), upper, "{access:?}");
}

/// A guest may read any sector of a file, and this file system can only read 4096 bytes at once directly.
#[test]
fn a_file_system_with_larger_blocks_than_a_sector_is_buffered() {
    if !can_run("a_file_system_with_larger_blocks_than_a_sector_is_buffered", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let device = Loop::attach(&image(dir.path(), "host.img", 16 << 20), &["--sector-size", "4096"]);
    mke2fs(&device.node);
    let mount = Mount::new(&[device.node.as_os_str()], &dir.path().join("mnt"));
    let path = image(&mount.at, "disk.img", 1 << 20);
    assert_eq!(check_access(&path), Access::Buffered);
    let error = open(&path, &DIRECT).expect_err("offsets are too coarse");
    assert_eq!(error.errno_name(), "EINVAL");
    assert!(
        error
            .to_string()
            .ends_with("the file system needs offsets that are multiples of 4096 bytes, and the guest may use 512"),
        "{error}"
    );
}

#[test]
fn the_page_cache_can_be_demanded() {
    let dir = dir();
    let component = open(&image(dir.path(), "disk.img", 1 << 20), &BUFFERED).expect("a file");
    assert_eq!(component.access, Access::Buffered);
    assert!(!flags(component.file()).contains(OFlags::DIRECT));
}

#[test]
fn a_file_in_memory_is_mapped_and_punches_holes() {
    if !can_run("a_file_in_memory_is_mapped_and_punches_holes", &[Need::Tmpfs]) {
        return;
    }
    let dir = dir_in("/dev/shm".as_ref());
    let path = image(dir.path(), "disk.img", 1 << 20);
    let component = open(&path, &RW).expect("a file");
    // Swap would make touching a page wait for a disk.
    let swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
    assert_eq!(component.access, if swap { Access::Buffered } else { Access::Mapped });
    assert!(!flags(component.file()).contains(OFlags::DIRECT));
    assert_eq!(component.limits.discard.map(|discard| discard.method), Some(DiscardMethod::PunchHole));
    assert!(component.limits.write_zeroes);
    drop(component);
    let error = open(&path, &DIRECT).expect_err("tmpfs has no device below");
    assert_eq!(
        error.to_string(),
        format!(
            "{}: direct I/O is not possible: tmpfs keeps its data in memory, there is no device to be direct to",
            path.display()
        )
    );
    assert!(error.help().is_some_and(|help| help.contains("--cache=auto")));
}

/// The probe asks the file system to punch; neither data nor allocation may show it.
#[test]
fn probing_for_discard_changes_nothing() {
    let dir = dir();
    for (name, bytes) in [("even", 16 * 4096_u64), ("odd", 16 * 4096 + 512)] {
        let path = dir.path().join(name);
        let file = File::create(&path).expect("a file");
        let data: Vec<u8> = (0..bytes).map(|at| (at * 7 + 3) as u8).collect();
        file.write_all_at(&data, 0).expect("data");
        // Blocks beyond the end belong to someone who asked for them.
        let reserved = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 64 * 4096);
        file.sync_all().expect("fsync");
        let before = file.metadata().expect("stat");
        let component = open(&path, &RW).expect("a file");
        let after = file.metadata().expect("stat");
        assert_eq!((after.len(), after.blocks()), (before.len(), before.blocks()), "reserved: {reserved:?}");
        assert_eq!(fs::read(&path).expect("data"), data);
        // And the answer is true: a hole can be punched where the data is.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let works = fallocate(component.file(), punch, 0, 4096).is_ok();
        assert_eq!(component.limits.discard.is_some(), works);
        assert_eq!(component.limits.write_zeroes, works);
    }
}

#[test]
fn a_file_system_without_holes_has_no_discard() {
    if !can_run("a_file_system_without_holes_has_no_discard", &[Need::Mount]) {
        return;
    }
    let dir = dir();
    let mount = Mount::new(&["-t".as_ref(), "ramfs".as_ref(), "none".as_ref()], &dir.path().join("ram"));
    let path = image(&mount.at, "disk.img", 1 << 20);
    let component = open(&path, &RW).expect("a file on ramfs");
    assert_eq!((component.limits.discard, component.limits.write_zeroes), (None, false));
    assert_eq!(
        component.describe(),
        format!("{}: file, 2048 sectors, 512-byte blocks, mapped, no discard, read-write", path.display())
    );
}

#[test]
fn read_only_changes_nothing_and_offers_no_discard() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let component = open(&path, &Options { read_only: true, cache: Cache::Buffered, incoming: false }).expect("a file");
    assert!(component.read_only);
    assert_eq!((component.limits.discard, component.limits.write_zeroes), (None, false));
    assert!(component.file().write_at(b"x", 0).is_err());
    assert_eq!(
        component.describe(),
        format!("{}: file, 2048 sectors, 512-byte blocks, buffered, no discard, read-only", path.display())
    );
}

#[test]
fn a_read_only_file_system_refuses_writable_serving() {
    if !can_run("a_read_only_file_system_refuses_writable_serving", &[Need::Mount]) {
        return;
    }
    let dir = dir();
    let mount = Mount::new(&["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref()], &dir.path().join("ro"));
    let path = image(&mount.at, "disk.img", 1 << 20);
    common::run("mount", ["-o".as_ref(), "remount,ro".as_ref(), mount.at.as_os_str()]);
    let error = open(&path, &RW).expect_err("the mount is read-only");
    assert_eq!(error.errno_name(), "EROFS");
    assert_eq!(
        error.to_string(),
        format!("{}: cannot be written: its file system is mounted read-only", path.display())
    );
    assert!(error.help().is_some_and(|help| help.starts_with("--read-only")));
    assert!(open(&path, &RO).is_ok());
}

#[test]
fn a_running_program_is_refused() {
    let dir = dir();
    let path = dir.path().join("program");
    fs::copy("/bin/sleep", &path).expect("a program");
    let mut program = std::process::Command::new(&path).arg("1000").spawn().expect("it runs");
    let (refused, read) = (open(&path, &RW), open(&path, &RO));
    program.kill().and_then(|()| program.wait()).expect("it ends");
    assert_eq!(
        refused.expect_err("it runs").to_string(),
        format!("{}: cannot be served writable: it is a program that is running, or active swap", path.display())
    );
    read.expect("reading harms nobody");
}

#[test]
fn one_file_is_one_component_whatever_leads_to_it() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let (link, hard) = (dir.path().join("link"), dir.path().join("hard"));
    symlink(&path, &link).expect("a link");
    fs::hard_link(&path, &hard).expect("a hard link");
    let roundabout = dir.path().join(".").join("disk.img");
    let mut registry = Registry::new();
    let mut open = |path: &Path, opts| registry.open(path.to_str().expect("UTF-8"), None, &opts).expect("shared");
    let first = open(&path, RW);
    for other in [&path, &link, &hard, &roundabout] {
        assert!(Arc::ptr_eq(&first, &open(other, RW)));
        let reader = open(other, RO);
        assert!(reader.read_only && reader.identity == first.identity, "who reads has a file that cannot be written");
    }
    let other = image(dir.path(), "other.img", 1 << 20);
    assert_ne!(first.identity, open(&other, RW).identity);
}

#[test]
fn a_writer_may_follow_a_reader_in_the_same_process() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let text = path.to_str().expect("UTF-8");
    let mut registry = Registry::new();
    let reader = registry.open(text, None, &RO).expect("a reader");
    let writer = registry.open(text, None, &RW).expect("a writer beside our own reader");
    assert!(reader.read_only && !writer.read_only);
    assert!(Arc::ptr_eq(&reader, &registry.open(text, None, &RO).expect("shared")));
    for (component, errno) in [(&reader, Some(libc::EBADF)), (&writer, None)] {
        let written = std::os::unix::fs::FileExt::write_at(&*component.file(), &[0; 512], 0);
        // A buffer of no alignment at all is what direct I/O refuses it for, at most.
        let refused = written.err().and_then(|error| error.raw_os_error()).filter(|errno| *errno != libc::EINVAL);
        assert_eq!(refused, errno);
    }
    // The reader is still protected when its process's writer has gone, from writers alone.
    drop(writer);
    assert_eq!(open(&path, &RW).expect_err("still read here").errno_name(), "EBUSY");
    open(&path, &RO).expect("no writer is left");
    let again = registry.open(text, None, &RW).expect("another writer");
    assert_eq!(open(&path, &RO).expect_err("written here").errno_name(), "EBUSY");
    drop((reader, again));
    open(&path, &RW).expect("nobody is left");
}

#[test]
fn a_reader_may_follow_a_writer_in_the_same_process() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let text = path.to_str().expect("UTF-8");
    let mut registry = Registry::new();
    let writer = registry.open(text, None, &RW).expect("a writer");
    let reader = registry.open(text, None, &RO).expect("a reader beside our own writer");
    assert!(reader.read_only && !writer.read_only);
    assert_eq!(open(&path, &RO).expect_err("written here").errno_name(), "EBUSY");
    drop(reader);
    assert_eq!(open(&path, &RO).expect_err("written here").errno_name(), "EBUSY");
    let reader = registry.open(text, None, &RO).expect("another reader");
    drop(writer);
    assert_eq!(open(&path, &RW).expect_err("still read here").errno_name(), "EBUSY");
    open(&path, &RO).expect("readers share");
    drop(reader);
    open(&path, &RW).expect("nobody is left");
}

#[test]
fn a_stranger_keeps_a_writer_out_and_our_reader_stays_protected() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let text = path.to_str().expect("UTF-8");
    let mut registry = Registry::new();
    let _reader = registry.open(text, None, &RO).expect("a reader");
    let stranger = open(&path, &RO).expect("readers share");
    assert_eq!(registry.open(text, None, &RW).expect_err("a stranger reads").errno_name(), "EBUSY");
    drop(stranger);
    assert_eq!(open(&path, &RW).expect_err("we read").errno_name(), "EBUSY");
}

#[test]
fn contradicting_cache_modes_are_refused() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", 1 << 20);
    let text = path.to_str().expect("UTF-8");
    let mut registry = Registry::new();
    let first = registry.open(text, None, &BUFFERED).expect("buffered");
    assert!(Arc::ptr_eq(&first, &registry.open(text, None, &RW).expect("auto takes what is there")));
    let error = registry.open(text, None, &DIRECT).expect_err("it is buffered");
    assert_eq!(error.errno_name(), "EBUSY");
    assert!(error.to_string().ends_with("this process has it open through the page cache already"));
}
