//! What Linux 6.12's device-mapper said to several hundred tables (tests/data/oracle), said here too: the same
//! verdict, the same reason, the same table line. Devices are the ones of that machine, faked.

#[path = "../../table/tests/common/transcript.rs"]
mod transcript;

use std::sync::Arc;

use dm_table::{DevRef, Diagnostic, Format, Sectors, Source, parse};
use transcript::Case;
use vhost_user_dm::device::Limits;
use vhost_user_dm::map::{DevIx, LookupError, Lower, Map};

const PARSER: &str = include_str!("../../tests/data/oracle/out612-1.txt");
const ARGUMENTS: &str = include_str!("../../tests/data/oracle/out612-2.txt");

/// The targets that are built here.
const OURS: [&str; 4] = ["linear", "striped", "zero", "error"];

/// The component devices: name, device number, block size; 64 MiB each.
const DEVICES: [(&str, (u64, u64), u32); 3] = [("vda", (254, 0), 512), ("sda", (8, 0), 512), ("vdb", (254, 16), 4096)];

/// Whether a case is about the language or our targets: it uses no other target that the kernel had.
fn is_ours(case: &Case, others: &[&str]) -> bool {
    !case.types().any(|kind| others.contains(&kind))
}

/// Which device a name meant on that machine: dmsetup ran in `/dev` in the one case, elsewhere in the others.
fn device(dev: &DevRef, in_dev: bool) -> Result<usize, &'static str> {
    if let Some(number) = dev.major_minor() {
        if number.0 > 4095 || number.1 > 1_048_575 {
            return Err("EOVERFLOW");
        }
        return DEVICES.iter().position(|d| d.1 == number).ok_or("ENXIO");
    }
    let path = match dev.text.as_str() {
        "/dev/null" => return Err("ENOTBLK"),
        "/dev/../dev/vda" | "/dev/mapper/../vda" => "/dev/vda".to_owned(),
        relative if in_dev && !relative.starts_with('/') => format!("/dev/{relative}"),
        text => text.to_owned(),
    };
    let name = path.strip_prefix("/dev/").ok_or("ENOENT")?;
    DEVICES.iter().position(|d| d.0 == name).ok_or("ENOENT")
}

fn lower(ix: usize) -> Lower {
    let (name, _, block) = DEVICES[ix];
    Lower::Device {
        ix: DevIx(ix as u16),
        name: name.to_owned(),
        size: Sectors::new(131_072),
        limits: Limits {
            logical_block: block,
            physical_block: block,
            alignment_offset: 0,
            io_min: block,
            io_opt: 0,
            discard: None,
            write_zeroes: false,
        },
    }
}

/// The table as `dmsetup table` would print it on that machine, and the warnings.
fn load(case: &Case) -> Result<(String, Vec<Diagnostic>), Diagnostic> {
    let in_dev = case.label == "rel-in-dev";
    let source = Arc::new(Source::new("<stdin>", case.table.as_str()));
    let file = parse(Arc::clone(&source), Format::Plain)?;
    let table = &file.devices[0].table;
    let (map, warnings) = Map::build(&source, table, false, &mut |dev| {
        device(dev, in_dev).map(lower).map_err(|errno| LookupError {
            errno,
            why: format!("{:?} was not there", dev.text),
            help: None,
        })
    })?;
    assert_eq!(map.len(), table.len(), "{}", case.label);
    let number = |dev: &DevRef| {
        let ix = device(dev, in_dev).expect("looked up before");
        let (major, minor) = DEVICES[ix].1;
        format!("{major}:{minor}")
    };
    Ok((table.display_with(&number).to_string(), warnings))
}

/// Runs every case of a transcript that is about targets built here; returns how many those are.
fn check(text: &str) -> usize {
    let mut others = transcript::kernel_types(text);
    others.retain(|kind| !OURS.contains(kind));
    let mut checked = 0;
    for case in transcript::cases(text).iter().filter(|case| is_ours(case, &others)) {
        let label = &case.label;
        match (load(case), case.reason()) {
            (Ok((table, warnings)), None) => {
                assert_eq!(table, case.printed.join("\n"), "{label}");
                let warnings: Vec<&str> = warnings.iter().map(Diagnostic::reason).collect();
                // The kernel calculates limits twice, and warns twice.
                let mut expected: Vec<&str> = case.warnings().collect();
                expected.dedup();
                assert_eq!(warnings, expected, "{label}");
            }
            (Err(refusal), Some(reason)) => assert_eq!(refusal.reason(), reason, "{label}"),
            (Ok(_), Some(reason)) => panic!("{label}: accepted, the kernel said {reason:?}"),
            (Err(refusal), None) => panic!("{label}: the kernel accepted it\n{refusal}"),
        }
        checked += 1;
    }
    checked
}

#[test]
fn parser_linear_zero_and_error_are_as_in_the_kernel() {
    assert_eq!(check(PARSER), 67);
}

#[test]
fn look_up_and_striped_are_as_in_the_kernel() {
    assert_eq!(check(ARGUMENTS), 24);
}
