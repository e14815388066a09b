//! `export` and `show` of a disk, beside what a front end reads of it.
#![allow(missing_docs)]

use std::fs;

use dm_tests::daemon::{self, Served};
use dm_tests::vmm::Setup;
use dm_tests::{files, rng};

/// Three components, with holes, striped and linear, one of them in memory where there is such a place.
fn table(dirs: [&std::path::Path; 2]) -> String {
    let mut random = fastrand::Rng::with_seed(11);
    let name = |number: usize| dirs[number % 2].join(format!("c{number}")).display().to_string();
    for number in 0..3 {
        let mut bytes = rng::bytes(&mut random, 1 << 20);
        bytes[4096..300_000].fill(0);
        files::component(name(number).as_ref(), &bytes);
    }
    let (a, b, c) = (name(0), name(1), name(2));
    format!(
        "0 1000 linear {a} 1048\n1000 4000 zero\n5000 1024 striped 3 8 {a} 0 {b} 64 {c} 128\n6024 100 linear {c} 500\n"
    )
    // A length that the stripes divide.
    .replace("5000 1024", "5000 1008")
    .replace("6024 100", "6008 100")
}

#[test]
fn the_bytes_are_those_that_a_front_end_reads() {
    let disk = files::disk_dir();
    let memory = files::memory_dir().unwrap_or_else(files::disk_dir);
    let table = table([disk.path(), memory.path()]);
    let file = disk.path().join("disk.table");
    let image = disk.path().join("out.img");
    fs::write(&file, &table).expect("write the table");
    let (code, sum, err) =
        daemon::run(["export".as_ref(), file.as_os_str(), "--sha256".as_ref(), "--to".as_ref(), image.as_os_str()])
            .expect("run");
    assert_eq!(code, 0, "{err}");
    let exported = fs::read(&image).expect("read the export");
    let mut served = Served::table(&table, &[]);
    let mut vmm = served.vmm(&Setup::default());
    assert!(vmm.read_all(0).expect("read") == exported);
    assert_eq!(exported.len(), 6108 * 512);
    let sum = sum.split(' ').next().expect("a digest").to_owned();
    assert!(sum.len() == 64, "{sum}");
    // A disk that somebody writes has no bytes to export; its picture lacks what it contains, not its segments.
    let (code, _, err) = daemon::run(["export".as_ref(), file.as_os_str(), "--sha256".as_ref()]).expect("run");
    assert!(code != 0 && err.contains("c0"), "{err}");
    let (code, picture, err) = daemon::run(["show".as_ref(), file.as_os_str()]).expect("run");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("what it contains is not shown"), "{err}");
    assert!(picture.contains("striped 3 8") && picture.contains("zero"), "{picture}");
}

#[test]
fn a_picture_names_segments_and_what_they_contain() {
    let disk = files::disk_dir();
    let table = table([disk.path(), disk.path()]);
    let file = disk.path().join("disk.table");
    fs::write(&file, &table).expect("write the table");
    let (code, picture, err) = daemon::run(["show".as_ref(), file.as_os_str()]).expect("run");
    assert_eq!((code, err.as_str()), (0, ""));
    for part in ["disk: 6108 sectors (3.0 MiB)", "linear c0 1048", "3 stripes of 8 sectors", "unknown data", "+---"] {
        assert!(picture.contains(part), "{part:?} is not in\n{picture}");
    }
    let svg = disk.path().join("disk.svg");
    let (code, out, err) =
        daemon::run(["show".as_ref(), file.as_os_str(), "--svg".as_ref(), svg.as_os_str()]).expect("run");
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let text = fs::read_to_string(&svg).expect("read the picture");
    assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n") && text.contains("linear c0 1048"), "{text}");
    let (code, out, _) =
        daemon::run(["show".as_ref(), file.as_os_str(), "--qemu".as_ref(), "--libvirt".as_ref()]).expect("run");
    assert!(code == 0 && out.contains("share=on") && out.contains("<access mode='shared'/>"), "{out}");
    assert!(out.contains("--socket-path=disk.sock"), "{out}");
}
