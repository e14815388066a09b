//! What a piece contains: file systems of the real tools, as blkid sees them too; and whatever else may be on a disk.

mod common;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Mount, Need, can_run, dir, image, run};
use proptest::prelude::*;
use vhost_user_dm::inspect::{Contents, Kind, look, look_at_path};

const MIB: u64 = 1 << 20;

/// How a file system is made: tool, its arguments before the file.
const MADE: [(&str, Kind, &str, &[&str]); 11] = [
    ("ext2", Kind::Ext2, "mke2fs", &["-q", "-F", "-t", "ext2", "-L", "two"]),
    ("ext3", Kind::Ext3, "mke2fs", &["-q", "-F", "-t", "ext3", "-L", "three"]),
    ("ext4", Kind::Ext4, "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root of all"]),
    ("xfs", Kind::Xfs, "mkfs.xfs", &["-q", "-f", "-L", "archive"]),
    ("ntfs", Kind::Ntfs, "mkfs.ntfs", &["-q", "-F", "-f", "-L", "Windows 10"]),
    ("fat12", Kind::Fat, "mkfs.fat", &["-F12", "-n", "SMALL", "-s", "64"]),
    ("fat16", Kind::Fat, "mkfs.fat", &["-F16", "-n", "BOOT"]),
    ("fat32", Kind::Fat, "mkfs.fat", &["-F32", "-n", "ESP"]),
    ("exfat", Kind::Exfat, "mkfs.exfat", &["-L", "camera"]),
    ("btrfs", Kind::Btrfs, "mkfs.btrfs", &["-q", "-f", "-L", "snap"]),
    ("swap", Kind::Swap, "mkswap", &["-q", "-L", "spare"]),
];
const SIZE: u64 = 400 * MIB;

fn make(dir: &Path, name: &str, size: u64) -> (PathBuf, Kind) {
    let (_, kind, tool, args) = MADE.iter().find(|made| made.0 == name).expect("one of the list");
    let path = image(dir, name, size);
    let args = args.iter().map(|arg| arg.as_ref()).chain([path.as_os_str()]);
    run(tool, args);
    (path, *kind)
}

/// What blkid says: fields by name.
fn blkid(path: &Path) -> BTreeMap<String, String> {
    let said = run("blkid", ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), path.as_os_str()]);
    // Its blanks have a backslash before them.
    let said = said.replace('\\', "");
    said.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

fn contents(path: &Path) -> Contents {
    let len = path.metadata().expect("a file").len();
    look_at_path(path, 0, len).expect("it can be read")
}

/// Writes bytes into a file.
fn poke(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.write_all_at(bytes, at)).expect("a file to write");
}

fn peek(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at)).expect("a file to read");
    bytes
}

#[test]
fn file_systems_are_what_blkid_says() {
    if !can_run("file_systems_are_what_blkid_says", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    for (name, ..) in MADE {
        let (path, kind) = make(dir.path(), name, if name == "fat12" { 16 * MIB } else { SIZE });
        let (ours, theirs) = (contents(&path), blkid(&path));
        let len = path.metadata().expect("a file").len();
        assert_eq!(ours.kind, kind, "{name}");
        assert_eq!(ours.label.as_ref(), theirs.get("LABEL"), "{name}");
        assert_eq!(ours.uuid.as_ref(), theirs.get("UUID"), "{name}");
        assert!(!ours.dirty && !ours.hibernated, "{name}: {ours:?}");
        let size = ours.size.expect("all of these tell their size");
        assert!(size <= len && size + MIB > len, "{name}: {size} of {len}");
        // It says the same when the file is cut, which is how a piece that is too small is found.
        assert_eq!(look_at_path(&path, 0, len / 2).expect("readable").size, ours.size, "{name}");
        std::fs::remove_file(&path).expect("to remove a file");
    }
}

#[test]
fn file_systems_in_use_or_asleep_are_marked() {
    if !can_run("file_systems_in_use_or_asleep_are_marked", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let (path, _) = make(dir.path(), "ext4", SIZE);
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), "feature +needs_recovery".as_ref(), path.as_os_str()]);
    assert!(contents(&path).dirty);
    let (path, _) = make(dir.path(), "ext2", SIZE);
    poke(&path, 1024 + 0x3A, &[0, 0]);
    assert!(contents(&path).dirty);
    for (name, at) in [("fat16", 0x25), ("fat32", 0x41), ("exfat", 106)] {
        let (path, _) = make(dir.path(), name, SIZE);
        let flag = if name == "exfat" { 2 } else { 1 };
        let byte = peek(&path, at, 1)[0];
        poke(&path, at, &[byte | flag]);
        assert!(contents(&path).dirty, "{name}");
    }
    // Windows keeps the flag in the table itself, which begins after the reserved sectors.
    let (path, _) = make(dir.path(), "fat32", SIZE);
    let reserved = peek(&path, 14, 2);
    let table = 512 * u64::from(u16::from_le_bytes([reserved[0], reserved[1]]));
    poke(&path, table + 7, &[0x07]);
    assert!(contents(&path).dirty);
    let (path, _) = make(dir.path(), "btrfs", SIZE);
    poke(&path, 65536 + 0x60, &4096u64.to_le_bytes());
    assert!(contents(&path).dirty);
    let (path, _) = make(dir.path(), "swap", SIZE);
    poke(&path, 4096 - 10, b"S1SUSPEND\0");
    assert!(contents(&path).hibernated);
}

#[test]
fn a_windows_that_sleeps_is_told_from_one_that_does_not() {
    if !can_run("a_windows_that_sleeps_is_told_from_one_that_does_not", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let put = |volume: &Path, name: &str, bytes: &[u8]| {
        let file = dir.path().join("put");
        std::fs::write(&file, bytes).expect("a file");
        run("ntfscp", ["-q".as_ref(), volume.as_os_str(), file.as_os_str(), name.as_ref()]);
    };
    let sleeping = [b"hibr".as_slice(), &[7; 100_000]].concat();
    let woken = vec![0; 100_000];
    let (path, _) = make(dir.path(), "ntfs", SIZE);
    assert!(!contents(&path).hibernated, "no such file");
    put(&path, "hiberfil.sys", &woken);
    assert!(!contents(&path).hibernated, "a file of zeroes");
    put(&path, "hiberfil.sys", &sleeping);
    assert!(contents(&path).hibernated);
    // The same in a root directory that is a tree of several blocks, from a record far from the first.
    let (path, _) = make(dir.path(), "ntfs", SIZE);
    for number in 0..60 {
        put(&path, &format!("a file with a long name that fills the directory {number}"), b"x");
    }
    assert!(!contents(&path).hibernated);
    put(&path, "HIBERFIL.SYS", &[b"HIBR".as_slice(), &[1; 50]].concat());
    let seen = contents(&path);
    assert!(seen.hibernated, "{seen:?}");
}

#[test]
fn partition_tables_are_what_sfdisk_wrote() {
    if !can_run("partition_tables_are_what_sfdisk_wrote", &[Need::Filesystems]) {
        return;
    }
    let dir = dir();
    let made = |name: &str, script: &str| {
        let path = image(dir.path(), name, 64 * MIB);
        let file = dir.path().join("script");
        std::fs::write(&file, script).expect("a script");
        let input = File::open(file).expect("a script");
        let mut sfdisk = std::process::Command::new("sfdisk");
        assert!(sfdisk.arg("--quiet").arg(&path).stdin(input).status().expect("sfdisk").success());
        contents(&path)
    };
    let id = "7A1C39E8-02BE-4D6B-9C0F-4C2D9E1B7A55";
    let gpt = made(
        "gpt",
        &format!("label: gpt\nlabel-id: {id}\nstart=2048, size=4096, type=U, name=\"EFI\"\nstart=8192, size=2048\n"),
    );
    assert_eq!((gpt.kind, gpt.uuid.as_deref()), (Kind::Gpt, Some(id.to_lowercase().as_str())));
    assert_eq!((gpt.size, gpt.reserved), (Some(64 * MIB), 34));
    let first = &gpt.partitions[0];
    assert_eq!((first.number, first.start, first.len, first.name.as_deref()), (1, 2048, 4096, Some("EFI")));
    assert_eq!(first.kind, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    assert_eq!((gpt.partitions[1].start, gpt.partitions[1].len, gpt.partitions.len()), (8192, 2048, 2));
    let mbr = made(
        "mbr",
        "label: dos\nlabel-id: 0x5a1c39e8\nstart=2048, size=4096, type=7, bootable\nstart=8192, type=5\n\
         start=10240, size=100\nstart=20480, size=200\n",
    );
    assert_eq!((mbr.kind, mbr.uuid.as_deref()), (Kind::Mbr, Some("5a1c39e8")));
    let seen: Vec<_> = mbr.partitions.iter().map(|p| (p.number, p.start, p.len, p.kind.as_str())).collect();
    assert_eq!(
        seen,
        [(1, 2048, 4096, "07"), (2, 8192, 64 * MIB / 512 - 8192, "05"), (5, 10240, 100, "83"), (6, 20480, 200, "83")]
    );
}

/// What no tool here makes, made by hand after its structure.
#[test]
fn labels_and_members_are_known_by_their_marks() {
    let zeroes = vec![0; MIB as usize];
    let kind = |marks: &[(usize, &[u8])]| {
        let mut bytes = zeroes.clone();
        marks.iter().for_each(|(at, mark)| bytes[*at..at + mark.len()].copy_from_slice(mark));
        look(&bytes, MIB).expect("memory can be read").kind
    };
    assert_eq!(kind(&[]), Kind::Blank);
    assert_eq!(kind(&[(70, b"x")]), Kind::Unknown);
    assert_eq!(kind(&[(0, b"LUKS\xba\xbe\0\x02")]), Kind::Luks);
    assert_eq!(kind(&[(0, b"LUKS\xba\xbe\0\x09")]), Kind::Unknown);
    let magic = 0xa92b_4efcu32.to_le_bytes();
    assert_eq!(kind(&[(4096, &magic), (4100, &[1]), (4096 + 144, &[8])]), Kind::Md);
    assert_eq!(kind(&[(4096, &magic), (4100, &[1]), (4096 + 144, &[9])]), Kind::Unknown);
    let (sectors, end) = (MIB / 512 - 16, MIB as usize - 8192);
    assert_eq!(kind(&[(end, &magic), (end + 4, &[1]), (end + 144, &sectors.to_le_bytes())]), Kind::Md);
    assert_eq!(kind(&[(MIB as usize - 65536, &magic), (MIB as usize - 65536 + 8, &[90])]), Kind::Md);
    assert_eq!(kind(&[(32768, b"\x01CD001\x01")]), Kind::Iso9660);
    let label = 0x8256_4557u32.to_le_bytes();
    assert_eq!(kind(&[(512, &label), (512 + 132, &label)]), Kind::Disklabel);
    assert_eq!(kind(&[(512, &label)]), Kind::Unknown);
    // The magic of a boot sector is none of a partition table.
    assert_eq!(kind(&[(510, b"\x55\xaa")]), Kind::Unknown);
    assert_eq!(kind(&[(510, b"\x55\xaa"), (450, &[0x83]), (458, &[9])]), Kind::Mbr);
    assert_eq!(kind(&[(510, b"\x55\xaa"), (446, &[0x33]), (450, &[0x83]), (458, &[9])]), Kind::Unknown);
}

#[test]
fn an_extended_partition_that_goes_in_circles_ends() {
    let mut disk = vec![0; 64 << 10];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    disk[450] = 5;
    disk[454] = 8;
    disk[458] = 100;
    let record = 8 * 512;
    disk[record + 510..record + 512].copy_from_slice(b"\x55\xaa");
    disk[record + 462 + 4] = 5;
    disk[record + 462 + 8] = 0;
    // The next record is at 8 + 1, and leads to itself.
    disk[record + 462 + 8] = 1;
    let next = 9 * 512;
    disk[next + 510..next + 512].copy_from_slice(b"\x55\xaa");
    disk[next + 446 + 4] = 0x83;
    disk[next + 446 + 12] = 3;
    disk[next + 462 + 4] = 5;
    disk[next + 462 + 8] = 1;
    let seen = look(&disk, disk.len() as u64).expect("memory can be read");
    assert_eq!(seen.kind, Kind::Mbr);
    assert!(seen.partitions.len() < 128);
}

/// The beginning of a file of each kind, made once; where the tools are missing, nothing.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SAMPLES.get_or_init(|| {
        if !can_run("samples of nothing_on_a_disk_can_do_harm", &[Need::Filesystems]) {
            return Vec::new();
        }
        let dir = dir();
        let begin = |name: &str| {
            let (path, _) = make(dir.path(), name, if name == "fat12" { 16 * MIB } else { SIZE });
            if name == "ntfs" {
                let file = dir.path().join("put");
                std::fs::write(&file, b"hibr").expect("a file");
                run("ntfscp", ["-q".as_ref(), path.as_os_str(), file.as_os_str(), "hiberfil.sys".as_ref()]);
            }
            peek(&path, 0, 256 << 10)
        };
        MADE.iter().map(|made| begin(made.0)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever is changed of a file system, looking at it ends, without a panic.
    #[test]
    fn nothing_on_a_disk_can_do_harm(
        which in 0usize..MADE.len(),
        changes in prop::collection::vec((0usize..131_072, any::<[u8; 8]>(), 1usize..9), 0..24),
        size in prop_oneof![Just(256u64 << 10), 0u64..(256 << 10)],
        near in any::<bool>(),
    ) {
        let mut bytes = samples().get(which).cloned().unwrap_or_else(|| vec![0; 256 << 10]);
        for (at, with, len) in changes {
            // Most of what is read lies in a few structures at the beginning.
            let at = if near { at % 2048 + [0, 0, 1024, 16384, 65536][at % 5] } else { at };
            bytes[at..at + len].copy_from_slice(&with[..len]);
        }
        let seen = look(&bytes, size).expect("what is within the size can be read");
        prop_assert!(!seen.describe().is_empty());
    }

    #[test]
    fn noise_is_nothing_known(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let seen = look(&bytes, bytes.len() as u64).expect("memory can be read");
        let blank = bytes.iter().all(|byte| *byte == 0);
        prop_assert_eq!(seen.kind, if blank { Kind::Blank } else { Kind::Unknown });
    }
}

/// Whether xfs_logprint finds something to do in the log.
fn log_is_dirty(path: &Path) -> bool {
    let said = run("xfs_logprint", ["-t".as_ref(), path.as_os_str()]);
    assert!(said.contains("<CLEAN>") != said.contains("<DIRTY>"), "{said}");
    said.contains("<DIRTY>")
}

#[test]
fn the_log_of_an_xfs_is_clean_when_it_was_unmounted() {
    let name = "the_log_of_an_xfs_is_clean_when_it_was_unmounted";
    if !can_run(name, &[Need::Filesystems, Need::Loop]) {
        return;
    }
    let dir = dir();
    let (path, _) = make(dir.path(), "xfs", SIZE);
    assert!(!contents(&path).dirty && !log_is_dirty(&path));
    let is_known = std::fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("\txfs\n"));
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..if is_known { 6 } else { 0 } {
        let mount = Mount::new(&["-o".as_ref(), "loop".as_ref(), path.as_os_str()], &dir.path().join("at"));
        for file in 0..rng.usize(1..400) {
            std::fs::write(mount.at.join(format!("{round}-{file}")), [1; 100]).expect("a file");
        }
        rustix::fs::syncfs(File::open(&mount.at).expect("the mount")).expect("sync");
        let copy = dir.path().join("copy");
        run("cp", ["--sparse=always".as_ref(), path.as_os_str(), copy.as_os_str()]);
        assert_eq!(contents(&copy).dirty, log_is_dirty(&copy), "mounted in round {round}");
        assert!(contents(&copy).dirty);
        drop(mount);
        assert!(!contents(&path).dirty && !log_is_dirty(&path), "unmounted after round {round}");
    }
    // A log that makes no sense says nothing, and panics nowhere.
    for _ in 0..300 {
        let at = rng.u64(48..200);
        let was = peek(&path, at, 1);
        poke(&path, at, &[rng.u8(..)]);
        let _ = look_at_path(&path, 0, SIZE);
        poke(&path, at, &was);
    }
}
