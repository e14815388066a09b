use dm_table::{Diagnostic, Format, Source};

use super::*;
use crate::control::schema::{Create, Load, Query, Remove, Rename, Resume, Suspend};
use crate::worker::pool::WorkerSettings;

mod logs;
mod torn;
mod undone;

fn mapper() -> Arc<Mapper> {
    let pool = Pool::new(0, WorkerSettings::default());
    Mapper::new(Settings::default(), Registry::new(), Arc::new(pool), None)
}

fn start(text: &str) -> Result<(Arc<Mapper>, Vec<String>), Diagnostic> {
    let file = dm_table::parse(Arc::new(Source::new("test", text)), Format::Auto)?;
    let mapper = mapper();
    let warnings = mapper.start(&file, "test")?;
    Ok((mapper, warnings))
}

fn named(name: &str) -> Which {
    Which { name: Some(name.to_owned()), ..Which::default() }
}

fn load(mapper: &Mapper, name: &str, table: &str) -> Verb<schema::Loaded> {
    mapper.load(&Load { which: named(name), table: table.to_owned(), ..Load::default() }, &Patient)
}

fn resume(mapper: &Mapper, name: &str) -> Verb<schema::Resumed> {
    mapper.resume(&Resume { which: named(name), ..Resume::default() }, &Patient)
}

fn suspend(mapper: &Mapper, name: &str) -> Verb<Info> {
    mapper.suspend(&Suspend { which: named(name), noflush: false }, &Patient)
}

fn create(mapper: &Mapper, name: &str) -> Verb<Info> {
    mapper.create(&Create { name: name.to_owned(), ..Create::default() })
}

fn made(mapper: &Mapper, name: &str, table: &str) {
    create(mapper, name).unwrap();
    load(mapper, name, table).unwrap();
    resume(mapper, name).unwrap();
}

fn table(mapper: &Mapper, name: &str, inactive: bool) -> String {
    let lines = mapper.table(&Query { which: named(name), inactive }).unwrap();
    let lines = lines.iter().map(|line| format!("{} {} {} {}", line.start, line.len, line.target, line.params));
    lines.collect::<Vec<_>>().join("|")
}

/// Where the device's sectors are, as its guest sees it.
fn map(mapper: &Mapper, name: &str) -> String {
    let chain = mapper.started().into_iter().find(|started| started.name == name).unwrap().disk.chain();
    let mut steps = Vec::new();
    chain.map.pieces(dm_table::Sectors::ZERO, chain.len(), &mut |piece: crate::map::Piece| {
        steps.push(match piece.step {
            crate::map::Step::Device { at, .. } => format!("{}@{at}", piece.len),
            crate::map::Step::Zero => format!("{}z", piece.len),
            crate::map::Step::Error => format!("{}e", piece.len),
            crate::map::Step::Target { .. } => format!("{}t", piece.len),
        });
    });
    steps.join(" ")
}

#[test]
fn two_disks_that_write_the_same_sectors_are_warned_of() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path().display();
    let warned = |two: &str| {
        let text = format!("one,,,,0 100 linear {path} 0;two,,,{two}");
        start(&text.replace("FILE", &path.to_string())).unwrap().1
    };
    let warnings = warned(",0 100 linear FILE 99");
    assert!(warnings.len() == 1 && warnings[0].starts_with("sectors 99..100 of "), "{warnings:?}");
    assert!(warned(",0 100 linear FILE 100").is_empty());
    assert!(warned("ro,0 100 linear FILE 0").is_empty());
    assert!(warned(",0 100 linear /dev/mapper/one 0").is_empty());
}

#[test]
fn an_empty_table_is_refused() {
    let error = start("# nothing\n").err().unwrap().to_string();
    assert!(error.contains("an empty table has no disk to serve"), "{error}");
}

#[test]
fn a_writable_device_cannot_write_to_read_only_ones_below() {
    let lower = "low,,,ro,0 8 zero;";
    for (access, written) in [("rw", crate::map::Step::Error), ("ro", crate::map::Step::Zero)] {
        let (mapper, _) = start(&format!("{lower}high,,,{access},0 8 linear /dev/mapper/low 0")).unwrap();
        let tops: Vec<_> = mapper.started().into_iter().filter(|started| started.top).collect();
        assert_eq!(tops.iter().map(|top| top.name.as_str()).collect::<Vec<_>>(), ["high"]);
        let chain = tops[0].disk.chain();
        let mut steps = Vec::new();
        chain.map.cut(dm_table::Sectors::ZERO, chain.len(), true, &mut |piece| steps.push(piece.step));
        assert_eq!(steps, [written], "{access}");
        assert_eq!(map(&mapper, "high"), "8z");
    }
}

/// What of a served disk's components is open for writing, and what a stranger may do: `rw`, `ro` or nothing.
fn uses(mapper: &Mapper, name: &str, files: &[&std::path::Path]) -> Vec<(Option<bool>, &'static str)> {
    let chain = mapper.started().into_iter().find(|started| started.name == name).unwrap().disk.chain();
    let of = |path: &&std::path::Path| {
        let ours = chain.components.iter().find(|(_, component)| component.path == **path);
        let open = |read_only| {
            let options = component::Options { read_only, ..Default::default() };
            Registry::new().open(path.to_str().unwrap(), None, &options).is_ok()
        };
        let may = if open(false) {
            "rw"
        } else if open(true) {
            "ro"
        } else {
            ""
        };
        (ours.map(|(_, component)| !component.read_only), may)
    };
    files.iter().map(of).collect()
}

#[test]
fn a_component_is_open_for_what_the_live_table_does_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    });
    let files = [a.as_path(), b.as_path()];
    let (a, b) = (a.display(), b.display());
    let (mapper, _) = start(&format!("disk,,,,0 8 linear {a} 0,8 8 error {b} 0")).unwrap();
    // What an error line names is not even read, so the disk's chain has nothing to do with it.
    assert_eq!(uses(&mapper, "disk", &files), [(Some(true), ""), (None, "ro")]);
    let swap = |table: String| {
        load(&mapper, "disk", &table).unwrap();
        resume(&mapper, "disk").unwrap();
    };
    swap(format!("0 8 error {a} 0\n8 8 linear {b} 0"));
    assert_eq!(uses(&mapper, "disk", &files), [(None, "ro"), (Some(true), "")]);
    swap(format!("0 8 error {b} 0\n8 8 error {a} 0"));
    assert_eq!(uses(&mapper, "disk", &files), [(None, "ro"); 2]);
    // One that a line writes is open for writing, however many others only name it.
    swap(format!("0 8 error {a} 0\n8 8 linear {a} 8"));
    assert_eq!(uses(&mapper, "disk", &files), [(Some(true), ""), (None, "rw")]);
    // A table that is loaded and not resumed may have to be.
    load(&mapper, "disk", &format!("0 8 linear {b} 0\n8 8 error {a} 0")).unwrap();
    assert_eq!(uses(&mapper, "disk", &files), [(Some(true), ""), (None, "")]);
    mapper.clear(&named("disk"), &Patient).unwrap();
    assert_eq!(uses(&mapper, "disk", &files), [(Some(true), ""), (None, "rw")]);
}

#[test]
fn a_read_only_device_reads_by_a_file_that_cannot_be_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let path = file.path();
    let text = format!(
        "one,,,rw,0 100 linear {0} 0;two,,,ro,0 100 linear {0} 0;three,,,rw,0 100 linear /dev/mapper/two 0",
        path.display()
    );
    let (mapper, warnings) = start(&text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for (name, writes) in [("one", true), ("two", false), ("three", false)] {
        assert_eq!(uses(&mapper, name, &[path]), [(Some(writes), "")], "{name}");
    }
    mapper.remove(&Remove { which: named("one"), ..Remove::default() }, &Patient).unwrap();
    assert_eq!(uses(&mapper, "three", &[path]), [(Some(false), "ro")]);
}

#[test]
fn the_serial_number_is_the_uuid_or_the_name() {
    let (mapper, _) = start("a,an-uuid-of-more-than-20-bytes,,,0 8 zero;b,,,,0 8 zero").unwrap();
    let started = mapper.started();
    assert_eq!(&started[0].disk.serial, b"an-uuid-of-more-than");
    assert_eq!(&started[1].disk.serial[..2], b"b\0");
}

#[test]
fn a_table_is_loaded_and_then_resumed() {
    let mapper = mapper();
    assert_eq!(create(&mapper, "a").unwrap().minor, 0);
    assert_eq!(create(&mapper, "a").unwrap_err().errno, libc::EBUSY);
    assert_eq!(table(&mapper, "a", false), "");
    load(&mapper, "a", "0 8 zero").unwrap();
    assert_eq!((table(&mapper, "a", false).as_str(), table(&mapper, "a", true).as_str()), ("", "0 8 zero "));
    let before = resume(&mapper, "a").unwrap().info.event_nr;
    assert_eq!((table(&mapper, "a", false).as_str(), table(&mapper, "a", true).as_str()), ("0 8 zero ", ""));
    // A refused table leaves all as it was.
    let error = load(&mapper, "a", "0 100 nosuch").unwrap_err();
    assert_eq!((error.errno, error.kernel[0].as_str()), (libc::EINVAL, "table: 0:0: nosuch: unknown target type"));
    assert!(!mapper.info(&named("a")).unwrap().inactive);
    load(&mapper, "a", "0 4 zero|4 4 error".replace('|', "\n").as_str()).unwrap();
    assert!(suspend(&mapper, "a").unwrap().suspended);
    assert!(suspend(&mapper, "a").unwrap().inactive);
    assert_eq!(map(&mapper, "a"), "8z");
    let resumed = resume(&mapper, "a").unwrap();
    assert!(resumed.paused_us.is_some() && !resumed.info.suspended && resumed.info.event_nr == before + 1);
    assert_eq!(map(&mapper, "a"), "4z 4e");
    mapper.clear(&named("a"), &Patient).unwrap();
    mapper.clear(&named("a"), &Patient).unwrap();
}

#[test]
fn what_lies_on_a_device_changes_with_it() {
    let mapper = mapper();
    made(&mapper, "low", "0 16 zero");
    made(&mapper, "high", "0 4 error\n4 8 linear /dev/mapper/low 8");
    made(&mapper, "top", "0 12 linear 0:1 0");
    assert_eq!(map(&mapper, "top"), "4e 8z");
    load(&mapper, "low", "0 12 zero\n12 4 error").unwrap();
    resume(&mapper, "low").unwrap();
    assert_eq!((map(&mapper, "high").as_str(), map(&mapper, "top").as_str()), ("4e 4z 4e", "4e 4z 4e"));
    // One that becomes shorter leaves nothing behind its end.
    load(&mapper, "low", "0 10 zero").unwrap();
    resume(&mapper, "low").unwrap();
    assert_eq!(map(&mapper, "top"), "4e 2z 6e");
    load(&mapper, "low", "0 16 zero").unwrap();
    resume(&mapper, "low").unwrap();
    assert_eq!(map(&mapper, "top"), "4e 8z");
    assert_eq!(table(&mapper, "top", false), "0 12 linear 0:1 0");
    assert_eq!(mapper.info(&named("low")).unwrap().open_count, 1);
    let error = mapper.remove(&Remove { which: named("low"), ..Remove::default() }, &Patient).unwrap_err();
    assert_eq!(error.errno, libc::EBUSY);
}

#[test]
fn devices_do_not_lie_on_themselves() {
    let mapper = mapper();
    made(&mapper, "a", "0 8 zero");
    made(&mapper, "b", "0 8 linear /dev/mapper/a 0");
    made(&mapper, "c", "0 8 linear /dev/mapper/b 0");
    for (on, under) in [("a", "a"), ("a", "b"), ("a", "c"), ("b", "c")] {
        let error = load(&mapper, on, &format!("0 8 linear /dev/mapper/{under} 0")).unwrap_err();
        assert_eq!(error.errno, libc::EINVAL);
        assert!(error.kernel[0].ends_with("linear: Device lookup failed (-EINVAL)"), "{error}");
    }
}

#[test]
fn a_suspended_device_blocks_those_on_it() {
    let mapper = mapper();
    made(&mapper, "low", "0 8 zero");
    made(&mapper, "high", "0 8 linear /dev/mapper/low 0");
    made(&mapper, "other", "0 8 zero");
    let blocked = || mapper.started().iter().map(|started| started.disk.is_blocked()).collect::<Vec<_>>();
    suspend(&mapper, "low").unwrap();
    assert_eq!(blocked(), [true, true, false]);
    suspend(&mapper, "high").unwrap();
    resume(&mapper, "low").unwrap();
    assert_eq!(blocked(), [false, true, false]);
    resume(&mapper, "high").unwrap();
    assert_eq!(blocked(), [false; 3]);
}

#[test]
fn a_deferred_removal_comes_when_the_last_user_leaves() {
    let mapper = mapper();
    made(&mapper, "low", "0 8 zero");
    made(&mapper, "high", "0 8 linear /dev/mapper/low 0");
    let remove = |name: &str, deferred| mapper.remove(&Remove { which: named(name), deferred, force: false }, &Patient);
    assert!(remove("low", true).unwrap().deferred);
    assert!(mapper.info(&named("low")).unwrap().deferred_remove);
    assert!(!remove("high", false).unwrap().deferred);
    assert!(mapper.list().is_empty());
}

#[test]
fn a_table_whose_component_has_shrunk_is_dropped_and_leaves_the_device_suspended() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let mapper = mapper();
    made(&mapper, "a", "0 8 zero");
    load(&mapper, "a", &format!("0 2048 linear {} 0", file.path().display())).unwrap();
    file.as_file().set_len(4096).unwrap();
    let error = resume(&mapper, "a").unwrap_err();
    assert!(error.errno == libc::EINVAL && error.kernel[0].contains("too small for target"), "{error}");
    let info = mapper.info(&named("a")).unwrap();
    assert!(info.suspended && !info.inactive && info.live);
    assert!(!resume(&mapper, "a").unwrap().info.suspended);
    assert_eq!(table(&mapper, "a", false), "0 8 zero ");
}

#[test]
fn names_are_the_kernels() {
    let mapper = mapper();
    for wrong in ["", "a/b", ".", "..", "control", "sp ace", "\n", &"n".repeat(128)] {
        assert_eq!(create(&mapper, wrong).unwrap_err().errno, libc::EINVAL, "{wrong:?}");
    }
    create(&mapper, r"sp\x20ace").unwrap();
    create(&mapper, "b").unwrap();
    let rename = |from: &str, to: Option<&str>, uuid: Option<&str>| {
        let (name, uuid) = (to.map(str::to_owned), uuid.map(str::to_owned));
        mapper.rename(&Rename { which: named(from), name, uuid }, &Patient)
    };
    assert_eq!(rename("b", Some(r"sp\x20ace"), None).unwrap_err().errno, libc::EBUSY);
    rename("b", Some("c"), None).unwrap();
    rename("c", None, Some("U1")).unwrap();
    let error = rename("c", None, Some("U2")).unwrap_err();
    assert_eq!(
        error.kernel,
        ["ioctl: Unable to change uuid of mapped device c to U2 because uuid is already set to U1"]
    );
    let error = rename("nosuch", Some("foo"), None).unwrap_err();
    assert_eq!(error.kernel, ["ioctl: Unable to rename non-existent device, nosuch to foo"]);
    let by_uuid = Which { uuid: Some("U1".into()), ..Which::default() };
    assert_eq!(mapper.info(&by_uuid).unwrap().name, "c");
}

#[test]
fn a_device_that_has_the_number_of_a_removed_one_is_not_that_one() {
    let mapper = mapper();
    made(&mapper, "low", "0 8 zero");
    let high = create(&mapper, "high").unwrap().minor;
    let source = Arc::new(Source::new("test", "0 8 linear /dev/mapper/low 0"));
    let text = dm_table::parse(source.clone(), Format::Plain).unwrap().devices.remove(0).table;
    let table = mapper.build(high, (source, text), false, None).unwrap();
    let minor = mapper.info(&named("low")).unwrap().minor;
    let is_grounded = || table.is_grounded(&|lower| Some(mapper.devices().get(lower).ok()?.disk.clone()));
    let rebuilt = || table.rebuild(&mapper.devices().mapped(high), false).map(drop);
    assert!(is_grounded() && rebuilt().is_ok());
    mapper.remove(&Remove { which: named("low"), ..Remove::default() }, &Patient).unwrap();
    assert!(!is_grounded() && rebuilt().is_err());
    assert_eq!(
        mapper.create(&Create { name: "low".into(), minor: Some(minor), ..Create::default() }).unwrap().minor,
        minor
    );
    load(&mapper, "low", "0 8 error").unwrap();
    resume(&mapper, "low").unwrap();
    assert!(!is_grounded());
    let error = rebuilt().unwrap_err();
    assert_eq!(error.reason(), "linear: Device lookup failed (-ENXIO)");
}

#[test]
fn a_change_that_one_disk_cannot_make_leaves_a_destinations_components_to_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut text = Vec::new();
    for name in ["x", "y", "z"] {
        std::fs::File::create(path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    text.push(format!("low,,,,0 8 linear {} 0", path("x")));
    text.push("one,,,,0 8 linear /dev/mapper/low 0".to_owned());
    text.push(format!("two,,,,0 8 linear /dev/mapper/low 0,8 8 linear {} 0", path("z")));
    let components = component::Options { incoming: true, ..component::Options::default() };
    let pool = Pool::new(0, WorkerSettings::default());
    let mapper = Mapper::new(Settings { components, ..Settings::default() }, Registry::new(), Arc::new(pool), None);
    let file = dm_table::parse(Arc::new(Source::new("test", text.join(";"))), Format::Auto).unwrap();
    mapper.start(&file, "test").unwrap();
    let source = |name: &str| Registry::new().open(&path(name), None, &component::Options::default());
    let theirs = source("z").unwrap();
    load(&mapper, "low", &format!("0 8 mirror core 1 8 2 {} 0 {} 0", path("x"), path("y"))).unwrap();
    let error = resume(&mapper, "low").unwrap_err();
    assert_eq!(error.errno, libc::EBUSY, "{error:?}");
    assert!(mapper.started().iter().all(|started| !started.disk.hold.is_held()));
    for name in ["x", "y"] {
        source(name).unwrap();
    }
    drop(theirs);
    load(&mapper, "low", &format!("0 8 mirror core 1 8 2 {} 0 {} 0", path("x"), path("y"))).unwrap();
    resume(&mapper, "low").unwrap();
    for name in ["x", "y", "z"] {
        source(name).unwrap_err();
    }
}
