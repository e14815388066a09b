//! Components that grow and shrink while this process has them open.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{Loop, Need, RO, RW, can_run, dir, dir_in, image, open, run};
use dm_table::{Format, Sectors, Source};
use vhost_user_dm::chain::Chain;
use vhost_user_dm::device::{Access, Component, OpenError, Options, Registry, Slots};
use vhost_user_dm::hold::Hold;
use vhost_user_dm::map::{DevIx, Lower, Map};

const MIB: u64 = 1 << 20;

fn sectors(bytes: u64) -> Sectors {
    Sectors::new(bytes / 512)
}

fn resize(path: &Path, bytes: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("another size");
}

fn again(registry: &mut Registry, path: &Path, opts: &Options) -> Arc<Component> {
    registry.open(path.to_str().expect("UTF-8"), None, opts).expect("a component")
}

/// What a guest writes, and a flush that fails or not; whether it is believed.
fn write(component: &Component, bytes: std::ops::Range<u64>) {
    let unflushed = component.unflushed.as_ref().expect("it can be flushed");
    unflushed.written(bytes, unflushed.stamp());
}

fn flush(component: &Component, success: bool) -> bool {
    let unflushed = component.unflushed.as_ref().expect("it can be flushed");
    let flush = unflushed.begin();
    unflushed.end(flush, success) && !flush.began().lost()
}

/// Both are one to the rest of the machine and to flushes, whichever goes first.
fn are_one(older: &Component, newer: &Component) {
    assert!(Arc::ptr_eq(&older.file(), &newer.file()));
    assert_eq!(
        (older.identity, older.access, older.read_only, &older.name),
        (newer.identity, newer.access, newer.read_only, &newer.name)
    );
    match (&older.unflushed, &newer.unflushed) {
        (Some(older), Some(newer)) => assert!(Arc::ptr_eq(older, newer)),
        (older, newer) => assert!(older.is_none() && newer.is_none()),
    }
}

fn refused(path: &Path) -> OpenError {
    open(path, &RW).expect_err("it is served")
}

#[test]
fn a_file_is_opened_with_the_size_that_it_has_now() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    let mut registry = Registry::new();
    let first = again(&mut registry, &path, &RW);
    assert!(Arc::ptr_eq(&first, &again(&mut registry, &path, &RW)));
    resize(&path, 3 * MIB + 100);
    assert_eq!((first.size, first.current_size().expect("a size")), (sectors(MIB), sectors(3 * MIB)));
    let second = again(&mut registry, &path, &RW);
    assert_eq!((first.size, second.size), (sectors(MIB), sectors(3 * MIB)));
    assert_eq!(first.limits, second.limits);
    assert!(second.warnings.iter().any(|text| text.contains("the last 100 bytes are not used")), "{second:?}");
    are_one(&first, &second);
    assert_eq!(again(&mut registry, &path, &RO).size, second.size);
    resize(&path, MIB / 2);
    let third = again(&mut registry, &path, &RW);
    assert_eq!((second.size, third.size), (sectors(3 * MIB), sectors(MIB / 2)));
    are_one(&first, &third);
    // What it once was, it is anew.
    resize(&path, MIB);
    let fourth = again(&mut registry, &path, &RW);
    assert_eq!(fourth.size, first.size);
    are_one(&first, &fourth);
    resize(&path, 511);
    let error = registry.open(path.to_str().expect("UTF-8"), None, &RW).expect_err("no sector");
    assert!(matches!(error, OpenError::Empty { .. }), "{error}");
    assert_eq!(fourth.current_size().expect("a size"), Sectors::ZERO);
}

#[test]
fn locks_last_until_the_last_of_them_is_dropped() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    let mut registry = Registry::new();
    let first = again(&mut registry, &path, &RW);
    resize(&path, 2 * MIB);
    let second = again(&mut registry, &path, &RW);
    drop(first);
    refused(&path);
    resize(&path, 3 * MIB);
    let third = again(&mut registry, &path, &RW);
    drop(third);
    refused(&path);
    assert_eq!(again(&mut registry, &path, &RW).size, sectors(3 * MIB), "not the size of the one that is left");
    drop(second);
    assert_eq!(open(&path, &RW).expect("nobody is left").size, sectors(3 * MIB));
}

#[test]
fn what_a_failed_flush_may_have_lost_is_known_to_all_of_them() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    let mut registry = Registry::new();
    let first = again(&mut registry, &path, &RW);
    write(&first, 0..4096);
    // Larger than the tables of what was written had to be before.
    resize(&path, 200 << 30);
    let second = again(&mut registry, &path, &RW);
    let end = 200 << 30;
    write(&second, end - 4096..end);
    write(&second, end - 8192..end - 8192 + 512);
    assert!(!flush(&first, false));
    drop(first);
    assert!(!flush(&second, true) && second.sync().is_err());
    write(&second, end - 4096..end);
    write(&second, end - 8192..end - 8192 + 512);
    assert!(!flush(&second, true), "what was written by way of the first");
    resize(&path, MIB);
    let third = again(&mut registry, &path, &RW);
    drop(second);
    assert!(third.sync().is_err());
    write(&third, 0..4096);
    assert!(flush(&third, true));
    third.sync().expect("nothing is lost");
}

#[test]
fn a_reader_grows_beside_its_writer() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    let mut registry = Registry::new();
    let reader = again(&mut registry, &path, &RO);
    resize(&path, 2 * MIB);
    let grown = again(&mut registry, &path, &RO);
    are_one(&reader, &grown);
    let writer = again(&mut registry, &path, &RW);
    assert!(!writer.read_only && grown.read_only);
    drop((reader, writer));
    // The reader keeps writers out, though none of its own is left.
    refused(&path);
    resize(&path, 3 * MIB);
    let writer = again(&mut registry, &path, &RW);
    assert_eq!((grown.size, writer.size), (sectors(2 * MIB), sectors(3 * MIB)));
    assert_eq!(again(&mut registry, &path, &RO).size, sectors(3 * MIB));
    drop(grown);
    refused(&path);
    drop(writer);
    open(&path, &RW).expect("nobody is left");
}

#[test]
fn a_mapped_file_is_mapped_anew() {
    if !can_run("a_mapped_file_is_mapped_anew", &[Need::Tmpfs]) {
        return;
    }
    let dir = dir_in("/dev/shm".as_ref());
    let path = image(dir.path(), "disk.img", MIB);
    let mut registry = Registry::new();
    let first = again(&mut registry, &path, &RW);
    resize(&path, 2 * MIB);
    let second = again(&mut registry, &path, &RW);
    are_one(&first, &second);
    if first.access != Access::Mapped {
        // There is swap here, so nothing is mapped.
        return assert_eq!(first.access, Access::Buffered);
    }
    let slice = |component: &Component, at| component.mapping.as_ref().expect("it is mapped").slice(at, 4096);
    assert!(slice(&first, MIB).is_none());
    slice(&second, MIB).expect("it has grown").write(&[7; 4096]);
    slice(&first, MIB - 4096).expect("as before").write(&[8; 4096]);
    let mut data = [0; 8192];
    File::open(&path).and_then(|file| file.read_exact_at(&mut data, MIB - 4096)).expect("the file's data");
    assert!(data[..4096] == [8; 4096] && data[4096..] == [7; 4096]);
    resize(&path, MIB / 2);
    let third = again(&mut registry, &path, &RW);
    assert!(slice(&third, MIB / 2).is_none());
    slice(&third, 0).expect("the rest").write(&[9; 4096]);
    // What the older ones lead to is missing now, which they find without coming to harm.
    slice(&second, MIB).expect("mapped once").write(&[7; 4096]);
    assert!(second.mapping.as_ref().is_some_and(|mapping| mapping.broken()));
    assert!(!third.mapping.as_ref().is_some_and(|mapping| mapping.broken()));
    let mut data = [0; 4096];
    slice(&third, 0).expect("the rest").read(&mut data);
    assert_eq!(data, [9; 4096]);
}

#[test]
fn a_block_device_is_opened_with_the_size_that_it_has_now() {
    if !can_run("a_block_device_is_opened_with_the_size_that_it_has_now", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", 8 * MIB);
    let device = Loop::attach(&path, &[]);
    let mut registry = Registry::new();
    let first = again(&mut registry, &device.node, &RW);
    for bytes in [16 * MIB, 4 * MIB] {
        resize(&path, bytes);
        run("losetup", ["-c".as_ref(), device.node.as_os_str()]);
        assert_eq!(first.current_size().expect("a size"), sectors(bytes));
        let other = again(&mut registry, &device.node, &RW);
        assert_eq!((first.size, other.size), (sectors(8 * MIB), sectors(bytes)));
        are_one(&first, &other);
    }
    let last = again(&mut registry, &device.node, &RW);
    drop(first);
    assert!(matches!(refused(&device.node), OpenError::Claimed { .. }), "the kernel's claim is on the open file");
    drop(last);
    assert_eq!(open(&device.node, &RW).expect("nobody is left").size, sectors(4 * MIB));
}

/// The chain of a disk that is all of a component.
fn chain(component: &Arc<Component>, slots: &mut Slots) -> Chain {
    let ix: DevIx = slots.slot(component).expect("a number");
    let source = Arc::new(Source::new("test", format!("0 {} linear disk 0\n", component.size)));
    let file = dm_table::parse(source.clone(), Format::Auto).expect("a table");
    let map = Map::build(&source, &file.devices[0].table, false, &mut |_| {
        Ok(Lower::Device { ix, name: component.name.clone(), size: component.size, limits: component.limits })
    });
    Chain {
        name: "disk".into(),
        map: Arc::new(map.expect("a map").0),
        components: [(ix, component.clone())].into_iter().collect(),
        read_only: false,
        limiters: Arc::default(),
        events: Arc::default(),
    }
}

/// A guest comes, its disk grows, and it goes on to the next process; the last step is taken back once.
fn grow_while_migrating(path: &Path, grow: impl Fn()) {
    let incoming = Options { incoming: true, ..RW };
    let (mut registry, mut slots) = (Registry::new(), Slots::default());
    let first = again(&mut registry, path, &incoming);
    let source = open(path, &RW).expect("the source has it still");
    let hold = Hold::new(true);
    let old = chain(&first, &mut slots);
    hold.enter(&old, || false).expect_err("the source has it still");
    drop(source);
    hold.enter(&old, || false).expect("the source is gone");
    refused(path);
    grow();
    let second = again(&mut registry, path, &incoming);
    assert!(second.size > first.size);
    let new = chain(&second, &mut slots);
    hold.exchange(&old, &new).expect("its locks are ours");
    refused(path);
    drop((old, first));
    refused(path);
    write(&second, 0..4096);
    hold.leave(&new, true);
    let destination = open(path, &RW).expect("the destination's now");
    assert_eq!(destination.size, second.size);
    hold.enter(&new, || false).expect_err("the destination has it");
    drop(destination);
    hold.enter(&new, || false).expect("the migration has failed");
    refused(path);
    // A third while the second is away: the open file is another one then, and still everybody's.
    hold.leave(&new, true);
    grow();
    let third = again(&mut registry, path, &incoming);
    are_one(&second, &third);
    let newest = chain(&third, &mut slots);
    hold.exchange(&new, &newest).expect("nothing is taken while nothing is served");
    open(path, &RW).expect("it is away");
    hold.enter(&newest, || false).expect("it is free");
    are_one(&second, &third);
    refused(path);
}

#[test]
fn a_file_that_has_grown_goes_from_process_to_process() {
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    grow_while_migrating(&path, || resize(&path, path.metadata().expect("stat").len() + MIB));
}

#[test]
fn a_block_device_that_has_grown_goes_from_process_to_process() {
    if !can_run("a_block_device_that_has_grown_goes_from_process_to_process", &[Need::Loop]) {
        return;
    }
    let dir = dir();
    let path = image(dir.path(), "disk.img", MIB);
    let device = Loop::attach(&path, &[]);
    grow_while_migrating(&device.node, || {
        resize(&path, path.metadata().expect("stat").len() + MIB);
        run("losetup", ["-c".as_ref(), device.node.as_os_str()]);
    });
}
