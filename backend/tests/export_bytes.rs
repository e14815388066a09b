//! `export` and its digest against a naive model of random tables, and what becomes of holes and of segments that fail.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{dir, image};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const SECTOR: usize = 512;

fn export(dir: &Path, table: &str, flags: &[&str]) -> Output {
    fs::write(dir.join("disk.table"), table).expect("a table");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-dm"));
    command.current_dir(dir).args(["export", "disk.table"]).args(flags).output().expect("export")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A segment of a random table.
#[derive(Clone, Debug)]
enum Segment {
    Linear { file: usize, at: usize, len: usize },
    Striped { chunk: usize, rows: usize, at: [usize; 2] },
    Zero(usize),
}

/// Sectors of the two component files.
const COMPONENT: usize = 4096;

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let linear = (0usize..2, 0usize..COMPONENT, 1usize..900).prop_map(|(file, at, len)| Segment::Linear {
        file,
        at,
        len: len.min(COMPONENT - at),
    });
    let striped = (1usize..40, 1usize..12, 0usize..2000, 0usize..2000)
        .prop_map(|(chunk, rows, a, b)| Segment::Striped { chunk, rows, at: [a, b] });
    let any = prop_oneof![linear, striped, (1usize..3000).prop_map(Segment::Zero)];
    prop::collection::vec(any, 1..12)
}

/// The table's text and the bytes that it means.
fn model(segments: &[Segment], files: [&[u8]; 2]) -> (String, Vec<u8>) {
    let (mut text, mut bytes) = (String::new(), Vec::new());
    let part = |file: usize, at: usize, len: usize| files[file][at * SECTOR..(at + len) * SECTOR].to_vec();
    for segment in segments {
        let start = bytes.len() / SECTOR;
        let target = match segment {
            Segment::Linear { file, at, len } => {
                bytes.extend(part(*file, *at, *len));
                format!("linear c{file} {at}")
            }
            Segment::Striped { chunk, rows, at } => {
                for row in 0..*rows {
                    (0..2).for_each(|file| bytes.extend(part(file, at[file] + row * chunk, *chunk)));
                }
                format!("striped 2 {chunk} c0 {} c1 {}", at[0], at[1])
            }
            Segment::Zero(len) => {
                bytes.resize(bytes.len() + len * SECTOR, 0);
                "zero".into()
            }
        };
        text.push_str(&format!("{start} {} {target}\n", bytes.len() / SECTOR - start));
    }
    (text, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn the_bytes_are_those_that_the_table_means(segments in segments(), seed in any::<u64>()) {
        let dir = dir();
        let mut random = fastrand::Rng::with_seed(seed);
        let files = [0, 1].map(|number| {
            let path = image(dir.path(), &format!("c{number}"), (COMPONENT * SECTOR) as u64);
            let mut bytes = vec![0; COMPONENT * SECTOR];
            let file = fs::OpenOptions::new().write(true).open(path).expect("a component");
            // Data among holes, some of it zeroes.
            for _ in 0..random.usize(0..30) {
                let len = random.usize(1..50_000);
                let at = random.usize(0..bytes.len() - len);
                if random.bool() {
                    random.fill(&mut bytes[at..at + len]);
                }
                use std::os::unix::fs::FileExt;
                file.write_all_at(&bytes[at..at + len], at as u64).expect("to fill a component");
            }
            bytes
        });
        let (table, expected) = model(&segments, [&files[0], &files[1]]);
        let output = export(dir.path(), &table, &["--sha256", "--to=out"]);
        prop_assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
        let got = fs::read(dir.path().join("out")).expect("a file");
        prop_assert!(got == expected, "other bytes\n{table}");
        let said = format!("{}  out\n", hex(&expected));
        prop_assert_eq!(String::from_utf8_lossy(&output.stdout), said);
        let alone = export(dir.path(), &table, &["--sha256"]);
        prop_assert_eq!(String::from_utf8_lossy(&alone.stdout), format!("{}  disk\n", hex(&expected)));
    }
}

#[test]
fn holes_stay_holes() {
    let dir = dir();
    image(dir.path(), "hole", 1 << 30);
    fs::write(dir.path().join("zeroes"), vec![0; 1 << 20]).expect("a file");
    fs::write(dir.path().join("data"), vec![7; 1 << 20]).expect("a file");
    let table =
        "0 2097152 linear hole 0\n2097152 2048 linear zeroes 0\n2099200 2048 linear data 0\n2101248 1073741824 zero\n";
    let output = export(dir.path(), table, &["--to=out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let meta = fs::metadata(dir.path().join("out")).expect("a file");
    assert_eq!(meta.len(), (2_101_248 + 1_073_741_824) * 512);
    let allocated = meta.blocks() * 512;
    assert!((1 << 20..3 << 20).contains(&allocated), "{allocated} bytes for one MiB of data");
}

#[test]
fn segments_that_fail_are_named_and_may_be_zeroes() {
    let dir = dir();
    fs::write(dir.path().join("data"), vec![7; 8192]).expect("a file");
    let table = "0 16 linear data 0\n16 8 error\n24 8 error\n32 16 linear data 0\n48 1 error\n";
    let refused = export(dir.path(), table, &["--to=out", "--sha256"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(said.contains("sectors 16..32, 48..49 are error segments") && said.contains("--errors=zero"), "{said}");
    assert!(!dir.path().join("out").exists());
    let output = export(dir.path(), table, &["--to=out", "--errors=zero"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = [vec![7; 8192], vec![0; 8192], vec![7; 8192], vec![0; 512]].concat();
    assert!(fs::read(dir.path().join("out")).expect("a file") == expected);
    // Nothing is written over.
    let again = export(dir.path(), table, &["--to=data", "--errors=zero"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("nothing is written over"), "{said}");
    assert_eq!(fs::read(dir.path().join("data")).expect("a file"), vec![7; 8192]);
}

#[test]
fn one_device_of_several_is_chosen() {
    let dir = dir();
    fs::write(dir.path().join("data"), vec![7; 8192]).expect("a file");
    let table = "low,,,rw,0 16 linear data 0;disk,,,rw,0 8 linear /dev/mapper/low 8;other,,,rw,0 8 zero";
    let chosen = |name: &str| String::from_utf8(export(dir.path(), table, &["--sha256", name]).stdout).expect("UTF-8");
    assert_eq!(chosen("--device=disk"), format!("{}  disk\n", hex(&[7; 4096])));
    assert_eq!(chosen("--device=low"), format!("{}  low\n", hex(&[7; 8192])));
    let output = export(dir.path(), table, &["--sha256"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("which of disk, other? Say --device=NAME"), "{said}");
}
