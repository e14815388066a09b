//! `assemble`: what its disks look like to tools that know partition tables, what it takes over from the host, and what it
//! refuses.
#![allow(missing_docs)]

mod from;
mod ground;
mod refusals;
mod takeover;

use std::fs;

use dm_tests::rng::{self, Repeat};
use fastrand::Rng;
use ground::{Ground, sfdisk, sgdisk};

/// What a partition must be read back as.
#[derive(Clone, Debug)]
struct Wanted {
    word: String,
    len: u64,
    kind: &'static str,
    label: String,
    guid: Option<String>,
    bootable: bool,
    /// The mark at its first sector.
    mark: Option<String>,
    gap: bool,
}

/// Types: what is typed, and what sfdisk says of it.
const GPT_TYPES: [(&str, &str); 4] = [
    ("esp", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
    ("home", "933AC7E1-2EB4-4F13-B844-0E14E2AEF915"),
    ("root-arm64", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "E6D6D379-F507-44C2-A23C-238F2A3DF928"),
];
const MBR_TYPES: [(&str, &str); 4] = [("83", "83"), ("swap", "82"), ("0x0c", "c"), ("esp", "ef")];

/// A character that shells, tables, formats and people make something of.
fn label(rng: &mut Rng) -> String {
    let chars = ['a', 'Z', '0', ' ', '=', '@', ',', '+', '-', '_', 'é', '漢', '/', ':'];
    let len = rng.usize(1..=36);
    let text: String = (0..len).map(|_| chars[rng.usize(..chars.len())]).collect();
    // Tools do not show blanks around a name.
    text.trim().replace("  ", " .")
}

fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| ("=@,\\".contains(c)).then_some('\\').into_iter().chain([c])).collect()
}

fn guid(rng: &mut Rng) -> String {
    let n = rng.u128(1..);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A random list of pieces, with the files that they need.
fn pieces(rng: &mut Rng, ground: &Ground, gpt: bool) -> Vec<Wanted> {
    let mut list = Vec::new();
    let count = if gpt { rng.usize(1..=12) } else { rng.usize(1..=7) };
    let active = rng.usize(..2 * count);
    for index in 0..count {
        if rng.u8(..4) == 0 {
            let len = rng.u64(1..5000);
            let word = format!("gap={len}");
            list.push(Wanted {
                word,
                len,
                kind: "",
                label: String::new(),
                guid: None,
                bootable: false,
                mark: None,
                gap: true,
            });
        }
        let (typed, kind) = if gpt { GPT_TYPES } else { MBR_TYPES }[rng.usize(..4)];
        let name = format!("p{index}");
        let len = rng.u64(1..9000);
        let (mut word, mark) = match rng.u8(..4) {
            0 => (format!("zero={len}"), None),
            1 => {
                let (start, whole) = (2048 * rng.u64(0..3), rng.u64(0..3000));
                ground.piece(&name, start + len + whole);
                (format!("{name}={name}@{start}+{len}"), Some(format!("{name} {start}")))
            }
            _ => {
                ground.piece(&name, len);
                (format!("{name}={name}"), Some(format!("{name} 0")))
            }
        };
        let shown = match rng.bool() {
            true => {
                let label = label(rng);
                word.push_str(&format!(",label={}", escaped(&label)));
                label
            }
            false if word.starts_with("zero") => "zero".to_owned(),
            false => name,
        };
        word.push_str(&format!(",type={typed}"));
        let guid = (gpt && rng.bool()).then(|| guid(rng));
        word.extend(guid.iter().map(|guid| format!(",guid={guid}")));
        let bootable = if gpt { rng.u8(..4) == 0 } else { index == active };
        word.push_str(if bootable { ",bootable" } else { "" });
        list.push(Wanted { word, len, kind, label: shown, guid, bootable, mark, gap: false });
    }
    list
}

/// What sfdisk reads must be what was asked for, in order, aligned, and lead to the pieces' bytes.
fn check_sfdisk(ground: &Ground, list: &[Wanted], gpt: bool) {
    let image = ground.image();
    let table = sfdisk(&image);
    assert_eq!(table["label"], if gpt { "gpt" } else { "dos" });
    let found: Vec<_> =
        table["partitions"].as_array().expect("partitions").iter().filter(|p| p["type"] != "f").collect();
    let wanted: Vec<_> = list.iter().filter(|piece| !piece.gap).collect();
    assert_eq!(found.len(), wanted.len());
    let bytes = fs::read(&image).expect("the disk");
    let mut end = 0;
    let mut gap = 0;
    let mut next = found.iter();
    for piece in list {
        if piece.gap {
            gap += piece.len;
            continue;
        }
        let part = next.next().expect("a partition");
        let number = |key: &str| part[key].as_u64().expect("a number");
        let (start, size) = (number("start"), number("size"));
        assert_eq!((size, start % 2048), (piece.len, 0), "{part}");
        assert!(start >= end + gap, "{part}");
        (end, gap) = (start + size, 0);
        assert_eq!(part["type"], piece.kind, "{part}");
        if gpt {
            assert_eq!(part["name"].as_str().unwrap_or_default(), piece.label, "{part}");
            if let Some(guid) = &piece.guid {
                assert_eq!(part["uuid"].as_str().expect("a GUID").to_lowercase(), *guid);
            }
            assert_eq!(part["attrs"] == "LegacyBIOSBootable", piece.bootable, "{part}");
        } else {
            assert_eq!(part["bootable"] == true, piece.bootable, "{part}");
        }
        let mark = piece.mark.as_deref().unwrap_or("\0\0\0\0");
        assert!(bytes[start as usize * 512..].starts_with(mark.as_bytes()), "{part} is not {mark:?}");
    }
}

/// The other tool reads the same.
fn check_sgdisk(ground: &Ground) {
    let image = ground.path("disk.img");
    let table = sfdisk(&image);
    for (index, part) in table["partitions"].as_array().expect("partitions").iter().enumerate() {
        let info = sgdisk(&image, index as u64 + 1);
        let value = |key: &str| {
            let found = info.iter().find(|(known, _)| known == key);
            found.unwrap_or_else(|| panic!("no {key} in {info:?}")).1.split(' ').next().unwrap_or_default().to_owned()
        };
        assert_eq!(value("Partition GUID code"), part["type"].as_str().expect("a type"));
        assert_eq!(value("Partition unique GUID"), part["uuid"].as_str().expect("a GUID"));
        assert_eq!(value("First sector"), part["start"].to_string());
        assert_eq!(value("Partition size"), part["size"].to_string());
    }
}

#[test]
fn two_tools_read_back_random_gpts_as_asked() {
    for seed in rng::seeds(7000, 8) {
        let mut rng = Rng::with_seed(seed);
        let ground = Ground::new();
        let list = pieces(&mut rng, &ground, true);
        let mut args: Vec<String> = list.iter().map(|piece| piece.word.clone()).collect();
        let _repeat = Repeat { seed, context: args.join("\n") };
        args.push("--label=gpt".into());
        if rng.bool() {
            args.push("--size=160MiB".into());
        }
        ground.assemble(&args);
        check_sfdisk(&ground, &list, true);
        check_sgdisk(&ground);
    }
}

#[test]
fn sfdisk_reads_back_random_mbrs_as_asked() {
    for seed in rng::seeds(8000, 8) {
        let mut rng = Rng::with_seed(seed);
        let ground = Ground::new();
        let list = pieces(&mut rng, &ground, false);
        let mut args: Vec<String> = list.iter().map(|piece| piece.word.clone()).collect();
        let _repeat = Repeat { seed, context: args.join("\n") };
        let signature = rng.u32(1..);
        args.extend(["--label=mbr".to_owned(), format!("--signature={signature:08x}")]);
        ground.assemble(&args);
        check_sfdisk(&ground, &list, false);
        assert_eq!(sfdisk(&ground.path("disk.img"))["id"], format!("0x{signature:08x}"));
    }
}

#[test]
fn a_gpt_takes_128_partitions() {
    let ground = Ground::new();
    let words: Vec<String> = (0..128).map(|index| format!("zero=1,label=number {}", index + 1)).collect();
    ground.assemble(&words);
    let table = sfdisk(&ground.image());
    let parts = table["partitions"].as_array().expect("partitions");
    assert_eq!(parts.len(), 128);
    assert_eq!(parts[127]["name"], "number 128");
    let said = ground.try_assemble(&[words, vec!["zero=1".to_owned()]].concat());
    assert!(said.err.contains("129 partitions are more than the 128 entries of a GPT"), "{}", said.err);
}

#[test]
fn numbers_may_be_given() {
    let ground = Ground::new();
    ground.assemble(&["zero=2048,number=7,label=seven", "zero=2048,label=one", "zero=2048,number=128,label=last"]);
    let table = sfdisk(&ground.image());
    let names: Vec<_> =
        table["partitions"].as_array().expect("partitions").iter().map(|p| (&p["node"], &p["name"])).collect();
    let names: Vec<_> =
        names.iter().map(|(node, name)| (node.as_str().unwrap_or(""), name.as_str().unwrap_or(""))).collect();
    let ends = |index: usize, end: &str| names[index].0.ends_with(&format!("disk.img{end}"));
    assert!(ends(0, "1") && ends(1, "7") && ends(2, "128"), "{names:?}");
    assert_eq!(names.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["one", "seven", "last"]);
}

#[test]
fn the_same_pieces_make_the_same_disk() {
    let ground = Ground::new();
    ground.piece("a", 5000);
    let files = ["disk.table", "disk.head", "disk.tail"];
    let read = || files.map(|name| fs::read(ground.path(name)).unwrap_or_default());
    let words = ["a=a", "zero=1MiB,type=swap", "--reproducible"];
    ground.assemble(&words);
    let first = read();
    ground.assemble(&words);
    assert!(read() == first, "--reproducible");
    ground.assemble(&["a=a", "zero=2MiB,type=swap", "--reproducible"]);
    assert!(read()[1] != first[1], "another disk is another one");
    ground.assemble(&["a=a", "zero=1MiB,type=swap"]);
    let chance = read();
    ground.assemble(&["a=a", "zero=1MiB,type=swap"]);
    assert!(read()[1] != chance[1], "without it, identities are new ones");
    ground.assemble(&["--label=mbr", "a=a", "--reproducible"]);
    let first = read();
    ground.assemble(&["--label=mbr", "a=a", "--reproducible"]);
    assert!(read() == first, "MBR");
    assert!(!ground.path("disk.tail").exists(), "the backup of a GPT that is no more");
}

#[test]
fn a_directory_makes_a_disk_by_the_names_of_its_files() {
    let ground = Ground::new();
    fs::create_dir(ground.path("images")).expect("a directory");
    for name in ["root.img", "root-verity.img", "esp.img", "home.raw", "README"] {
        ground.piece(&format!("images/{name}"), 4096);
    }
    let hash = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
    fs::write(ground.path("images/root.roothash"), hash).expect("a root hash");
    ground.assemble(&["--image-dir=images", "zero=1MiB,label=scratch"]);
    let first = fs::read(ground.path("disk.head")).expect("the header");
    let table = sfdisk(&ground.image());
    let parts = table["partitions"].as_array().expect("partitions");
    let names: Vec<_> = parts.iter().map(|part| part["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["esp", "root", "root-verity", "home", "scratch"]);
    assert_eq!(parts[0]["type"], "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
    assert_eq!(parts[3]["type"], "933AC7E1-2EB4-4F13-B844-0E14E2AEF915");
    assert_eq!(parts[1]["uuid"], "00112233-4455-6677-8899-AABBCCDDEEFF");
    assert_eq!(parts[2]["uuid"], "01234567-89AB-CDEF-0123-456789ABCDEF");
    ground.assemble(&["--discover=images", "zero=1MiB,label=scratch"]);
    assert!(fs::read(ground.path("disk.head")).expect("the header") == first, "reproducible");
}

#[test]
fn what_has_no_type_gets_one_by_its_name_or_contents() {
    let ground = Ground::new();
    let swap = ground.piece("s", 4096);
    ground::tool("mkswap", &["--quiet"], &swap);
    // The same file thrice is good for reading only.
    let types = |args: &[&str]| {
        ground.assemble(args);
        let table = sfdisk(&ground.image());
        let parts = table["partitions"].as_array().expect("partitions");
        parts.iter().map(|part| part["type"].as_str().expect("a type").to_owned()).collect::<Vec<_>>()
    };
    let generic = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
    assert_eq!(
        types(&["home=s", "zero=8", "any=s", "bios-boot=s", "--read-only"]),
        [
            "933AC7E1-2EB4-4F13-B844-0E14E2AEF915",
            generic,
            "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
            "21686148-6449-6E6F-744E-656564454649"
        ]
    );
    assert_eq!(
        types(&["--label=mbr", "home=s", "zero=8", "any=s", "bios-boot=s", "--read-only"]),
        ["83", "83", "82", "83"]
    );
}

#[test]
fn a_dry_run_shows_and_writes_nothing() {
    let ground = Ground::new();
    ground.piece("a", 2048);
    let said = ground.assemble(&["a=a", "--dry-run"]);
    assert!(said.contains("2048 2048 linear ") && said.contains("nothing was written"), "{said}");
    for name in ["disk.table", "disk.head", "disk.tail"] {
        assert!(!ground.path(name).exists(), "{name}");
    }
}
