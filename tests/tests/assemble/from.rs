//! The host's disk with a copy of its partition table.

use std::fs;
use std::path::Path;

use dm_tests::daemon::{Daemon, flag, run};
use dm_tests::vmm::{Setup, Vmm};

use crate::ground::{Ground, sfdisk, sgdisk};
use crate::takeover::host;

const GPT: &str = "label: gpt\n\
    start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
    start=8192, size=8192\nstart=16384, size=4096\nstart=24576, size=8192\n";

const MBR: &str = "label: dos\nlabel-id: 0x5a1c39e8\nstart=63, size=4033, type=7\nstart=4096, size=40960, type=f\n\
    start=6144, size=4096\nstart=12288, size=8192\nstart=24576, size=63\n";

/// Serves the table and writes `A5` over every sector of the disk; returns which of them could be written.
pub fn overwrite(ground: &Ground) -> Vec<bool> {
    const STEP: u64 = 64;
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let mut daemon = Daemon::start([flag("--socket-path", &socket), flag("--table", &ground.path("disk.table"))]);
    daemon.wait_listening(&socket);
    let mut vmm = Vmm::connect(&socket, &Setup::default()).expect("connect");
    let sectors = vmm.config.capacity;
    let mut written = Vec::new();
    for at in (0..sectors).step_by(STEP as usize) {
        // Where a piece ends within the range, its sectors are tried one by one.
        let len = STEP.min(sectors - at);
        let whole = vmm.write(0, at, &vec![0xA5; len as usize * 512]).is_ok();
        written.extend((at..at + len).map(|sector| whole || vmm.write(0, sector, &[0xA5; 512]).is_ok()));
    }
    vmm.flush(0).expect("flush");
    drop(vmm);
    daemon.stop();
    written
}

/// What changed in a file: the sectors that are not what they were, all of which must be overwritten.
pub fn changed(before: &[u8], path: &Path) -> Vec<(u64, u64)> {
    let after = fs::read(path).expect("the host's disk");
    assert_eq!(before.len(), after.len());
    let differs = before.chunks(512).zip(after.chunks(512)).map(|(before, after)| {
        assert!(before == after || after == [0xA5; 512]);
        before != after
    });
    ranges(differs)
}

/// Where it is true: first sectors, and those behind the last.
pub fn ranges(of: impl Iterator<Item = bool>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (at, _) in (0..).zip(of).filter(|(_, is)| *is) {
        match ranges.last_mut() {
            Some((_, end)) if *end == at => *end += 1,
            _ => ranges.push((at, at + 1)),
        }
    }
    ranges
}

#[test]
fn only_the_named_partitions_of_a_gpt_can_be_reached() {
    let ground = Ground::new();
    let host = host(&ground, "host", GPT);
    let (before, table) = (fs::read(&host).expect("the host's disk"), sfdisk(&host));
    let other = ground.piece("other", 8000);
    let said = ground.assemble(&["--from=host", "--only=3", "--replace=4=other"]);
    assert!(said.contains("BIOS boot, a copy") && said.contains("not there: fails"), "{said}");
    let image = ground.image();
    let copy = sfdisk(&image);
    for key in ["label", "id", "firstlba", "lastlba", "sectorsize"] {
        assert_eq!(copy[key], table[key], "{key}");
    }
    for (index, part) in table["partitions"].as_array().expect("partitions").iter().enumerate() {
        for key in ["start", "size", "type", "uuid"] {
            assert_eq!(copy["partitions"][index][key], part[key]);
        }
        sgdisk(&image, index as u64 + 1);
    }
    let assembled = fs::read(&image).expect("the disk");
    assert!(assembled[..4096 * 512] == before[..4096 * 512], "table, boot gap and the boot loader's partition");

    let written = overwrite(&ground);
    assert_eq!(changed(&before, &host), [(16384, 20480)]);
    assert_eq!(ranges(written.iter().map(|written| !written)), [(8192, 16384)]);
    assert!(fs::read(&other).expect("the other file").iter().all(|byte| *byte == 0xA5));
}

#[test]
fn only_the_named_partitions_of_an_mbr_can_be_reached() {
    let ground = Ground::new();
    let host = host(&ground, "host", MBR);
    let (before, table) = (fs::read(&host).expect("the host's disk"), sfdisk(&host));
    ground.assemble(&["--from=host", "--only=1,6", "--rest=zero"]);
    let copy = sfdisk(&ground.image());
    assert_eq!((&copy["id"], &copy["label"]), (&table["id"], &table["label"]));
    let parts = table["partitions"].as_array().expect("partitions");
    assert_eq!(parts.len(), 5, "{table}");
    for (index, part) in parts.iter().enumerate() {
        for key in ["start", "size", "type"] {
            assert_eq!(copy["partitions"][index][key], part[key]);
        }
    }
    let written = overwrite(&ground);
    assert_eq!(changed(&before, &host), [(63, 4096), (12288, 20480)]);
    assert_eq!(ranges(written.iter().map(|written| !written)), []);
}

#[test]
fn what_cannot_be_made_is_said() {
    let ground = Ground::new();
    host(&ground, "host", GPT);
    ground.piece("large", 5000);
    ground.piece("plain", 5000);
    for (args, want) in [
        (["--from=host", "--only=9"].as_slice(), "--from=host: there is no partition 9 to take; there are 1, 2, 3, 4"),
        (&["--from=host", "--replace=3=large"], "--replace=3=large: it has 2560000 bytes, and the partition 2097152"),
        (&["--from=plain"], "--from=plain: it has no partition table, but unknown data"),
        (&["--from=nothing"], "--from=nothing: No such file or directory"),
        (&["--from=host", "--replace=3"], "the partition's number, = and a path"),
    ] {
        let said = ground.try_assemble(args);
        assert!(!said.good && said.err.contains(want), "{args:?}: {}", said.err);
    }
    // A table that leads nowhere.
    let mut bytes = fs::read(ground.path("host")).expect("the host's disk");
    bytes.truncate(20000 * 512);
    fs::write(ground.path("host"), bytes).expect("cut the disk short");
    let said = ground.try_assemble(&["--from=host"]);
    assert!(
        said.err.contains("partition 3, 4096 sectors from 16384 on, ends beyond the end of the disk"),
        "{}",
        said.err
    );
}

#[test]
fn a_part_of_a_disk_may_be_read_only() {
    let ground = Ground::new();
    let host = host(&ground, "host", GPT);
    let before = fs::read(&host).expect("the host's disk");
    ground.assemble(&["--from=host", "--only=3", "--rest=ro"]);
    let exported = ground.path("exported");
    let table = ground.path("disk.table");
    let (status, _, said) = run(["export", &table.display().to_string(), &flag("--to", &exported)]).expect("export");
    assert_eq!(status, 0, "{said}");
    let shown = run(["show", &table.display().to_string()]).expect("show").1;
    assert!(shown.lines().any(|line| line.contains("linear host 8192, read-only")), "{shown}");
    let image = fs::read(exported).expect("the disk");
    for part in [0..4096, 8192..20480, 24576..32768] {
        let part = part.start * 512..part.end * 512;
        assert!(image[part.clone()] == before[part], "all partitions can be read");
    }
    let written = overwrite(&ground);
    let sectors = |range: std::ops::Range<usize>| ranges(written[range].iter().copied());
    assert_eq!((sectors(8192..16384), sectors(16384..20480)), (vec![], vec![(0, 4096)]));
    assert_eq!(sectors(24576..32768), []);
    assert_eq!(changed(&before, &host), [(16384, 20480)]);

    ground.assemble(&["a=host@8192+8192,ro", "b=host@16384+4096", "--force=changed"]);
    let table = ground.table();
    assert!(table.starts_with("disk,,,rw,\n# made by vhost-user-dm assemble"), "{table}");
    let lower = format!(";\ndisk-ro,,,ro,\n0 8192 linear {} 8192;\n", host.display());
    assert!(table.ends_with(&lower), "{table}");
    assert!(table.contains("\n2048 8192 linear /dev/mapper/disk-ro 0\n"), "{table}");
    let written = overwrite(&ground);
    assert_eq!(ranges(written[2048..14336].iter().copied()), [(8192, 12288)]);
    // Its mark is found in this form too.
    ground.assemble(&["--from=host", "--only=1", "--rest=ro", "--force=changed"]);
}

#[test]
fn all_of_a_disk_may_be_read_only() {
    let ground = Ground::new();
    let host = host(&ground, "host", GPT);
    let before = fs::read(&host).expect("the host's disk");
    ground.assemble(&["a=host@8192+8192,ro,label=a\\,b", "b=host@16384+4096,ro"]);
    assert!(sgdisk(&ground.image(), 1).iter().any(|(key, value)| key == "Attribute flags" && value.starts_with('1')));
    assert_eq!(ranges(overwrite(&ground).iter().copied()), []);
    assert!(fs::read(&host).expect("the host's disk") == before);
    // Its mark is found in this form too.
    ground.assemble(&["--from=host", "--only=3", "--rest=ro", "--read-only"]);
    assert_eq!(ranges(overwrite(&ground).iter().copied()), []);
    assert!(fs::read(&host).expect("the host's disk") == before);
    let image = fs::read(ground.image()).expect("the disk");
    for part in [0..4096, 8192..20480, 24576..32768] {
        let part = part.start * 512..part.end * 512;
        assert!(image[part.clone()] == before[part], "all partitions can be read");
    }
    ground.assemble(&["a=host@8192+8192,ro", "b=host@16384+4096,ro"]);
}

#[test]
fn a_table_for_large_blocks_is_served_with_them() {
    let ground = Ground::new();
    ground.piece("root", 4096);
    let said = ground.assemble(&["root=root", "--sector-size=4096"]);
    assert!(said.contains("--block-size=4096"), "{said}");
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let table = flag("--table", &ground.path("disk.table"));
    let args = [flag("--socket-path", &socket), table, "--block-size=4096".to_owned()];
    let mut daemon = Daemon::start(args);
    daemon.wait_listening(&socket);
    let mut vmm = Vmm::connect(&socket, &Setup::default()).expect("connect");
    assert_eq!(vmm.config.blk_size, 4096);
    let block = vmm.read(0, 8, 4096).expect("the second block");
    assert_eq!(&block[..8], b"EFI PART");
    for (sector, len) in [(1, 4096), (2048, 512)] {
        assert!(vmm.read(0, sector, len).is_err() && vmm.write(0, sector, &vec![1; len]).is_err());
    }
    vmm.write(0, 2048, &[0xA5; 4096]).expect("write");
    vmm.flush(0).expect("flush");
    drop(vmm);
    assert_eq!(fs::read(ground.path("root")).expect("the root")[..4096], [0xA5; 4096]);
    daemon.stop();
}

#[test]
fn what_check_finds_is_said_when_it_is_served() {
    let ground = Ground::new();
    let host = host(&ground, "host", GPT);
    for (at, warned) in [(0, false), (2048, true)] {
        let zeroes = if at > 0 { format!("0 {at} zero\n") } else { String::new() };
        fs::write(ground.path("disk.table"), format!("{zeroes}{at} 32768 linear {} 0\n", host.display()))
            .expect("a table");
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let mut daemon = Daemon::start([flag("--socket-path", &socket), flag("--table", &ground.path("disk.table"))]);
        daemon.wait_listening(&socket);
        assert_eq!(daemon.log().contains("[nested-table]"), warned, "{}", daemon.log());
        daemon.stop();
    }
}
