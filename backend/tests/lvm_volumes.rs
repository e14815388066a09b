//! Volume groups of the real LVM2 tools, and damaged copies of them.
//!
//! The tools work on loop devices, and without the kernel's device-mapper (`global/activation=0`). Where they refuse to make
//! a volume without it (raid1), they restore one from a text, which they check.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Dir, Loop, Need, can_run, dir, image, run, try_run};
use dm_table::{Format, Source};
use vhost_user_dm::inspect::{Kind, look_at_path};
use vhost_user_dm::lvm::{LvmError, Made, tables, tables_below};

const MIB: u64 = 1 << 20;
const CONFIG: &str = "devices { use_devicesfile=0 filter=[\"a|/dev/loop|\",\"r|.*|\"] } \
    activation { monitoring=0 udev_sync=0 udev_rules=0 } global { activation=0 use_lvmpolld=0 } \
    backup { backup=0 archive=0 }";

/// Runs a tool of LVM2 with everything off that belongs to this machine.
fn lvm(tool: &str, args: &[&str]) -> String {
    run(tool, ["-q", "--config", CONFIG].iter().chain(args))
}

/// Three physical volumes of 64 MiB in files, made into a group by `make`, which has the group's devices.
fn group(dir: &Dir, make: impl FnOnce(&[&str])) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = ["a", "b", "c"].map(|name| image(dir.path(), name, 64 * MIB)).into();
    let loops: Vec<Loop> = files.iter().map(|file| Loop::attach(file, &[])).collect();
    let nodes: Vec<&str> = loops.iter().map(|device| device.node.to_str().expect("ASCII")).collect();
    lvm("pvcreate", &nodes);
    lvm("vgcreate", &[&["-s", "1M", "vg-0"], nodes.as_slice()].concat());
    make(&nodes);
    files
}

fn create(args: &[&str]) {
    lvm("lvcreate", &[&["-an", "-Zn", "-Wn"], args].concat());
}

/// The devices of the text, each with its lines, file names without their directory.
fn devices(made: &Made, dir: &Dir) -> Vec<(String, Vec<String>)> {
    let format = if made.concise { Format::Concise } else { Format::Auto };
    let file = dm_table::parse(Arc::new(Source::new("lvm", made.text.clone())), format).expect("a table");
    file.load_order().expect("no circles");
    let place = format!("{}/", dir.path().display());
    let lines = |table: &dm_table::Table| table.to_string().replace(&place, "").lines().map(str::to_owned).collect();
    file.devices.iter().map(|device| (device.name.clone().unwrap_or_default(), lines(&device.table))).collect()
}

/// The only device of a plain table.
fn lines(made: &Made, dir: &Dir) -> Vec<String> {
    assert!(!made.concise, "{}", made.text);
    devices(made, dir).remove(0).1
}

fn ready(test: &str) -> bool {
    can_run(test, &[Need::Loop, Need::Lvm])
}

#[test]
fn linear_and_striped_volumes_become_tables() {
    if !ready("linear_and_striped_volumes_become_tables") {
        return;
    }
    let dir = dir();
    let pvs = group(&dir, |nodes| {
        create(&["-L", "20M", "-n", "root", "vg-0", nodes[0]]);
        create(&["-i2", "-I", "16k", "-L", "16M", "-n", "fast-er", "vg-0", nodes[0], nodes[1]]);
        lvm("lvextend", &["-L", "+60M", "vg-0/root", nodes[0], nodes[2]]);
    });
    for pv in &pvs {
        let contents = look_at_path(pv, 0, 64 * MIB).expect("readable");
        assert_eq!((contents.kind, contents.size), (Kind::Lvm, Some(64 * MIB)));
    }
    let made = tables("vg-0/root", &pvs).expect("a linear volume");
    // Extents of 2048 sectors behind 2048 sectors of metadata: 20, then what is left behind 8 of the stripes, then the rest.
    assert_eq!(
        lines(&made, &dir),
        ["0 40960 linear a 2048", "40960 71680 linear a 59392", "112640 51200 linear c 2048"]
    );
    assert_eq!(made.warnings, Vec::<String>::new());
    let made = tables("/dev/vg-0/fast-er", &pvs).expect("a striped volume");
    assert_eq!(lines(&made, &dir), ["0 32768 striped 2 32 a 43008 b 2048"]);
    // Any one has the metadata; whose extents are elsewhere is said.
    let made = tables("vg-0/root", &pvs[..1]).expect("a part of a volume");
    assert_eq!(lines(&made, &dir)[2], "112640 51200 error ");
    assert!(made.warnings[0].contains("is missing: extents 55+25 of root fail"), "{:?}", made.warnings);
    let made = tables("vg-0", &pvs).expect("the group");
    let names: Vec<String> = devices(&made, &dir).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["vg--0-root", "vg--0-fast--er"]);
    // Without names the physical volumes are looked for among the machine's devices, and these are files.
    let error = tables("vg-0/root", &[]).expect_err("files are no devices");
    assert!(matches!(error, LvmError::NoGroup { .. }), "{error}");
    let loops: Vec<Loop> = pvs.iter().map(|pv| Loop::attach(pv, &["--read-only"])).collect();
    let made = tables("vg-0/root", &[]).expect("they are devices now");
    assert!(made.text.contains(&loops[0].name()), "{}", made.text);
    for (name, why) in [
        ("vg-0/none", "vg-0/none: the group has no volume none"),
        ("other/root", "no readable device has metadata of the volume group other; there is vg-0"),
        ("a/b/c", "\"a/b/c\" is no name of a volume"),
    ] {
        let error = tables(name, &pvs).expect_err(why).to_string();
        assert!(error.starts_with(why), "{error}");
    }
    let copies = [pvs.as_slice(), &[dir.path().join("d")]].concat();
    fs::copy(&pvs[0], &copies[3]).expect("a copy");
    let error = tables("vg-0/root", &copies).expect_err("one volume twice");
    assert!(error.to_string().contains("are the same physical volume"), "{error}");
    let none = image(dir.path(), "none", MIB);
    let error = tables("vg-0/root", &[none]).expect_err("no label");
    assert!(error.to_string().contains("no LVM2 label in its first four sectors"), "{error}");
}

/// A raid1 of two copies of 8 MiB, as `lvcreate --type raid1 -m1` describes it; and a snapshot, which is no arithmetic.
const RAID: &str = r#"
logical_volumes {
    safe { id = "abcdef-0000-0000-0000-0000-0000-000001" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
        segment1 { start_extent = 0 extent_count = 8 type = "raid1" device_count = 2 region_size = 4096
            raids = ["safe_rmeta_0", "safe_rimage_0", "safe_rmeta_1", "safe_rimage_1"] } }
    safe_rmeta_0 { id = "abcdef-0000-0000-0000-0000-0000-000002" status = ["READ", "WRITE"] segment_count = 1
        segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
    safe_rimage_0 { id = "abcdef-0000-0000-0000-0000-0000-000003" status = ["READ", "WRITE"] segment_count = 1
        segment1 { start_extent = 0 extent_count = 8 type = "striped" stripe_count = 1 stripes = ["pv0", 1] } }
    safe_rmeta_1 { id = "abcdef-0000-0000-0000-0000-0000-000004" status = ["READ", "WRITE"] segment_count = 1
        segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv1", 0] } }
    safe_rimage_1 { id = "abcdef-0000-0000-0000-0000-0000-000005" status = ["READ", "WRITE"] segment_count = 1
        segment1 { start_extent = 0 extent_count = 8 type = "striped" stripe_count = 1 stripes = ["pv1", 1] } }
}
"#;

/// What dm-raid writes at the beginning of a metadata volume.
fn superblock(pv: &Path, events: u64, failed: u64, copied: u64) {
    let mut bytes = b"DmRd".to_vec();
    bytes.extend([0; 12]);
    [events, failed, copied].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(pv).expect("a volume");
    file.write_all_at(&bytes, 2048 * 512).expect("to write a superblock");
}

#[test]
fn one_good_copy_of_a_raid1_is_read() {
    if !ready("one_good_copy_of_a_raid1_is_read") {
        return;
    }
    let dir = dir();
    let pvs = group(&dir, |_| {
        let text = dir.path().join("text");
        let file = text.to_str().expect("UTF-8");
        lvm("vgcfgbackup", &["-f", file, "vg-0"]);
        // The group's own closing brace is the last.
        let backup = fs::read_to_string(&text).expect("a backup");
        let (group, rest) = backup.split_once("\n}\n").expect("a group ends");
        fs::write(&text, format!("{group}\n{RAID}\n}}\n{rest}")).expect("a text");
        lvm("vgcfgrestore", &["-f", file, "vg-0"]);
    });
    let leg = |pvs: &[PathBuf]| {
        let made = tables("vg-0/safe", pvs)?;
        assert!(
            made.concise && made.text.contains(",ro,0 16384 linear /dev/mapper/vg--0-safe_rimage_"),
            "{}",
            made.text
        );
        let (_, lines) = devices(&made, &dir).remove(0);
        Ok::<_, LvmError>((lines[0].clone(), made.warnings))
    };
    let (line, warnings) = leg(&pvs).expect("never active");
    assert_eq!(line, "0 16384 linear a 4096");
    assert!(warnings[0].contains("no copy has a superblock"), "{warnings:?}");
    assert!(warnings[1].contains("read-only, as its 1 other copy would not learn of writes"), "{warnings:?}");
    for (first, second, expected) in [
        ((7, 0, u64::MAX), (7, 0, u64::MAX), Some("a")),
        ((6, 0, u64::MAX), (7, 0, u64::MAX), Some("b")),
        ((7, 1, u64::MAX), (7, 1, u64::MAX), Some("b")),
        ((7, 0, 0), (7, 0, u64::MAX), Some("b")),
        ((7, 0, 0), (7, 2, u64::MAX), None),
    ] {
        superblock(&pvs[0], first.0, first.1, first.2);
        superblock(&pvs[1], second.0, second.1, second.2);
        let line = leg(&pvs).ok().map(|(line, _)| line);
        assert_eq!(line, expected.map(|pv| format!("0 16384 linear {pv} 4096")), "{first:?} {second:?}");
    }
    superblock(&pvs[0], 7, 0, u64::MAX);
    superblock(&pvs[1], 7, 0, u64::MAX);
    assert_eq!(leg(&pvs[1..]).expect("one is there").0, "0 16384 linear b 4096");
    let error = leg(&pvs[2..]).expect_err("none is there").to_string();
    assert!(error.contains("none of its 2 copies is both there and in step"), "{error}");
}

/// What the kernel says of its devices, played.
#[test]
fn what_is_active_here_is_refused() {
    if !ready("what_is_active_here_is_refused") {
        return;
    }
    let dir = dir();
    let mut uuids = String::new();
    let pvs = group(&dir, |nodes| {
        create(&["-L", "8M", "-n", "one", "vg-0", nodes[0]]);
        create(&["-L", "8M", "-n", "two", "vg-0", nodes[0]]);
        uuids = lvm("lvs", &["--noheadings", "-o", "vg_uuid,lv_uuid", "vg-0/one"]);
    });
    let device = dir.path().join("sys/class/block/dm-3/dm");
    fs::create_dir_all(&device).expect("a directory");
    let uuid: String = uuids.split_whitespace().map(|uuid| uuid.replace('-', "")).collect();
    fs::write(device.join("uuid"), format!("LVM-{uuid}\n")).expect("a uuid");
    fs::write(device.join("name"), "vg--0-one\n").expect("a name");
    let sys = dir.path().join("sys");
    let error = tables_below(&sys, "vg-0/one", &pvs).expect_err("it is active").to_string();
    assert!(error.starts_with("vg-0/one is active on this machine (dm-3, vg--0-one)"), "{error}");
    assert!(error.contains("lvchange -an vg-0/one"), "{error}");
    tables_below(&sys, "vg-0/two", &pvs).expect("its neighbour is not");
    let error = tables_below(&sys, "vg-0", &pvs).expect_err("a part of it is active").to_string();
    assert!(error.contains("dm-3"), "{error}");
    // The kernel's device of another group with the same names.
    fs::write(device.join("uuid"), format!("LVM-{}\n", uuid.replace(|c: char| c.is_ascii_alphanumeric(), "x")))
        .expect("a uuid");
    tables_below(&sys, "vg-0/one", &pvs).expect("another group's");
}

/// From a volume group to the bytes of a disk, by the commands.
#[test]
fn assemble_makes_a_disk_of_a_volume() {
    if !ready("assemble_makes_a_disk_of_a_volume") {
        return;
    }
    let dir = dir();
    let pvs = group(&dir, |nodes| {
        create(&["-L", "8M", "-n", "root", "vg-0", nodes[0]]);
        create(&["-i2", "-I", "16k", "-L", "16M", "-n", "fast", "vg-0", nodes[0], nodes[1]]);
    });
    use std::os::unix::fs::FileExt;
    // Each chunk of the stripes has its number: 32 sectors on one volume and the other in turn.
    let write = |pv: usize, sector: u64, bytes: &[u8]| {
        let file = fs::OpenOptions::new().write(true).open(&pvs[pv]).expect("a volume");
        file.write_all_at(bytes, sector * 512).expect("to fill a volume");
    };
    let chunks: Vec<Vec<u8>> = (0..1024u32).map(|number| vec![number as u8; 16384]).collect();
    for (number, chunk) in chunks.iter().enumerate() {
        let (pv, row) = (number % 2, number as u64 / 2);
        write(pv, [2048 + 16384, 2048][pv] + row * 32, chunk);
    }
    let program = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-dm"));
        let output = command.current_dir(dir.path()).args(args).output().expect("the program");
        let said = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), said(output.stdout), said(output.stderr))
    };
    let assemble = |name: &str, out: &str| program(&["assemble", "--lvm", name, "--pv", "a", "b", "c", "-o", out]);
    let (status, out, err) = assemble("vg-0/fast", "fast.table");
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    let (status, _, err) = program(&["export", "fast.table", "--to", "fast.img"]);
    assert_eq!(status, Some(0), "{err}");
    assert!(fs::read(dir.path().join("fast.img")).expect("a file") == chunks.concat());
    let (status, out, err) = assemble("vg-0", "all.table");
    assert_eq!(status, Some(0), "{out}{err}");
    let (status, out, err) = program(&["check", "all.table"]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("vg--0-root: 16384 sectors") && out.contains("vg--0-fast: 32768 sectors"), "{out}");
    // While a volume group's device is there, its physical volumes are not free.
    let _used = Loop::attach(&pvs[0], &[]);
    let (status, _, err) = assemble("vg-0/root", "root.table");
    assert_eq!(status, Some(1));
    assert!(err.contains("error[loop]") && !dir.path().join("root.table").exists(), "{err}");
}

#[test]
fn damage_is_told_and_never_believed() {
    if !ready("damage_is_told_and_never_believed") {
        return;
    }
    let dir = dir();
    let pvs = group(&dir, |nodes| {
        create(&["-L", "8M", "-n", "one", "vg-0", nodes[0]]);
    });
    let good = fs::read(&pvs[0]).expect("a volume");
    let expected = tables("vg-0/one", &pvs[..1]).expect("a volume").text;
    let area = 4096usize;
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().expect("8 bytes")) as usize;
    let (text, len) = (area + number(area + 40), number(area + 48));
    let copy = dir.path().join("copy");
    let made = |bytes: &[u8]| {
        fs::write(&copy, bytes).expect("a copy");
        tables("vg-0/one", std::slice::from_ref(&copy))
    };
    // Only what is in use is copied: that is quick enough for every place.
    let good = &good[..2 * MIB as usize];
    let expected = expected.replace(pvs[0].to_str().expect("UTF-8"), copy.to_str().expect("UTF-8"));
    assert_eq!(made(good).expect("a copy is as good").text, expected);
    let places = (512 + 20..1024).step_by(7).chain((area..area + 512).step_by(7)).chain((text..text + len).step_by(29));
    for at in places {
        let mut bad = good.to_vec();
        bad[at] ^= 0x04;
        let error = made(&bad).expect_err("a wrong bit").to_string();
        assert!(error.contains("checksum") || error.contains("no LVM2 label"), "byte {at}: {error}");
    }
    for len in (0..text + len).step_by(251) {
        let error = made(&good[..len]).expect_err("cut short").to_string();
        let words = ["no LVM2 label", "beyond the end of the device", "no readable device has metadata"];
        assert!(words.iter().any(|word| error.contains(word)), "{len} bytes: {error}");
    }
    // A second physical volume has the metadata still, and what is wrong with the first is said.
    let mut bad = good.to_vec();
    bad[text] ^= 1;
    fs::write(&copy, &bad).expect("a copy");
    let made = tables("vg-0/one", &[copy.clone(), pvs[1].clone()]).expect("another copy of the metadata");
    assert_eq!(made.text, expected);
    assert!(made.warnings[0].contains("text with a wrong checksum"), "{:?}", made.warnings);
    // A tool that is there says the same of the good one.
    assert!(
        try_run("pvck", ["--config", CONFIG, "--dump", "metadata", pvs[0].to_str().expect("UTF-8")]).status.success()
    );
}
