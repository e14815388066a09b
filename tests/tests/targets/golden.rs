//! Tables, messages and requests that a kernel was given, given to the back end: transcripts 2, 3 and 8.

#[path = "../../../table/tests/common/transcript.rs"]
mod transcript;

use std::collections::HashMap;

use dm_tests::blk::{IOERR, Segment, kind};
use dm_tests::control::Controlled;
use dm_tests::daemon;
use dm_tests::files;
use dm_tests::loops::{self, Loop};
use dm_tests::skip;
use dm_tests::vmm::{Failed, Setup, Vmm};
use transcript::Case;

const ARGUMENTS: &str = include_str!("../../data/oracle/out612-2.txt");
const BLOCKS: &str = include_str!("../../data/oracle/out612-8.txt");

/// Of the transcripts' disks.
const SECTORS: u64 = 131_072;
const SECTOR: usize = 512;
const OURS: [&str; 6] = ["delay", "flakey", "dust", "unstriped", "switch", "ebs"];

/// What is refused here that the kernel takes, and should not: a stripe that there is not, and a last block of which the
/// line has only a part, so that whoever writes it writes beyond the line.
const REFUSED: [(&str, &str); 2] = [
    ("un-eq", "unstriped: Please provide stripe between [0, # of stripes]"),
    ("eb-unal", "len=9 not aligned to h/w logical block size 4096 of "),
];

/// The machine of the transcripts: vda and sda, and vdb with blocks of 4096 bytes.
struct Machine {
    disks: [(&'static str, Loop); 3],
    _dir: tempfile::TempDir,
}

impl Machine {
    /// All bytes are 0x11.
    fn new() -> Machine {
        let dir = files::disk_dir();
        let disks = [("vda", 512), ("sda", 512), ("vdb", 4096)].map(|(name, block)| {
            let image = dir.path().join(name);
            files::component(&image, &vec![0x11; SECTORS as usize * SECTOR]);
            (name, Loop::with_blocks(&image, block).expect("a loop device"))
        });
        Machine { disks, _dir: dir }
    }

    /// A line of a transcript, with the names and numbers that things have here.
    fn here(&self, line: &str) -> String {
        let mut line = line.replace("253:", "0:");
        for (name, device) in &self.disks {
            let node = device.node.to_str().expect("a path of ASCII");
            let minor = node.strip_prefix("/dev/loop").expect("a loop device");
            let number = match *name {
                "vda" => "254:0 ",
                "vdb" => "254:16 ",
                _ => "8:0 ",
            };
            line = line.replace(&format!("/dev/{name}"), node).replace(number, &format!("7:{minor} "));
        }
        line
    }
}

fn ours(text: &str) -> impl Iterator<Item = Case> {
    let cases = transcript::cases(text).into_iter();
    cases.filter(|case| case.types().next().is_some() && case.types().all(|kind| OURS.contains(&kind)))
}

/// What the kernel says to a table, or we do instead; `None` where it takes it.
fn reason(case: &Case) -> Option<&str> {
    REFUSED.iter().find(|(label, _)| *label == case.label).map(|(_, why)| *why).or(case.reason())
}

#[test]
fn tables_load_or_are_refused_as_by_the_kernel() {
    if let Some(why) = loops::missing() {
        return skip::skip("tables_load_or_are_refused_as_by_the_kernel", why);
    }
    let (machine, controlled) = (Machine::new(), Controlled::empty());
    controlled.must(&["create", "x", "--notable"]);
    let (mut taken, mut refused) = (0, 0);
    for case in ours(ARGUMENTS).chain(ours(BLOCKS)) {
        let (label, table) = (&case.label, machine.here(&case.table));
        match reason(&case) {
            Some(reason) => {
                let said = controlled.must_not(&["reload", "x", "--table", table.trim_end()]);
                assert!(said.contains(&machine.here(reason)), "{label}: {reason:?} is not in\n{said}");
                refused += 1;
            }
            None => {
                let output = controlled.dmsetup(&["reload", "x", "--table", table.trim_end()]);
                let warned = case.kernel.iter().filter_map(|line| line.rsplit_once(": ")).map(|(_, text)| text);
                let warned: Vec<&str> = warned.filter(|text| !text.starts_with("error adding target")).collect();
                assert!(output.code == 0 && output.stderr.is_empty() == warned.is_empty(), "{label}: {output:?}");
                assert!(warned.iter().all(|text| output.stderr.contains(text)), "{label}: {output:?}");
                controlled.must(&["resume", "x"]);
                let lines = |lines: &[String]| lines.iter().map(|line| machine.here(line) + "\n").collect::<String>();
                assert_eq!(controlled.must(&["table", "x"]), lines(&case.printed), "{label}");
                assert_eq!(controlled.must(&["status", "x"]), lines(&case.status), "{label}");
                taken += 1;
            }
        }
    }
    assert_eq!((taken, refused), (30, 63));
    controlled.stop();
}

#[test]
fn the_command_line_refuses_what_the_kernel_does() {
    if let Some(why) = loops::missing() {
        return skip::skip("the_command_line_refuses_what_the_kernel_does", why);
    }
    let machine = Machine::new();
    let dir = tempfile::tempdir().unwrap();
    let mut cases = 0;
    for case in ours(ARGUMENTS).chain(ours(BLOCKS)) {
        let file = dir.path().join(format!("{}.table", case.label));
        std::fs::write(&file, machine.here(&case.table)).unwrap();
        let (code, out, err) = daemon::run(["check".as_ref(), file.as_os_str()]).unwrap();
        match reason(&case) {
            Some(reason) => {
                // A device that is not there has its own way to be told on the command line.
                let devices = reason.contains("lookup failed") || reason.contains("Couldn't get striped device");
                let said = err.contains(&machine.here(reason)) || devices && err.contains("/dev/nope");
                assert!(code != 0 && said, "{}: {reason:?} is not in\n{err}", case.label);
            }
            None => assert_eq!(code, 0, "{}: {out}{err}", case.label),
        }
        cases += 1;
    }
    assert_eq!(cases, 30 + 63);
}

/// One `--- msg` or `$ io` of a transcript: its arguments, and what was said before the exit status and in the log.
struct Step<'t> {
    io: bool,
    args: &'t str,
    said: Vec<&'t str>,
    refused: bool,
    kernel: Vec<&'t str>,
}

/// Those of a part of a transcript.
fn steps<'t>(text: &'t str, from: &str, to: &str) -> Vec<Step<'t>> {
    let part = text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).expect("such a part").0;
    let mut steps: Vec<Step<'t>> = Vec::new();
    // What stands behind the exit status is of something else, but for the log.
    let (mut open, mut exited) = (false, false);
    for line in part.lines() {
        let (message, io) = (line.strip_prefix("--- msg: "), line.strip_prefix("$ io /dev/mapper/x "));
        if let Some(args) = message.or(io) {
            steps.push(Step { io: io.is_some(), args, said: Vec::new(), refused: false, kernel: Vec::new() });
            (open, exited) = (true, false);
        } else if line.starts_with("---") || line.starts_with("$ ") {
            // What the tables and statuses between them are is compared elsewhere, or by the case itself.
            open = false;
        } else if let (true, Some(step)) = (open, steps.last_mut()) {
            if let Some(log) = line.strip_prefix("K: ") {
                step.kernel.push(log);
            } else if let Some(code) = line.strip_prefix("rc=") {
                (step.refused, exited) = (code != "0", true);
            } else if !exited {
                step.said.push(line);
            }
        }
    }
    steps
}

/// Sends a message and compares what comes of it.
fn message(controlled: &Controlled, step: &Step<'_>) {
    let args: Vec<&str> = ["message", "x"].into_iter().chain(step.args.split(' ')).collect();
    if !step.refused {
        assert_eq!(controlled.must(&args).lines().collect::<Vec<_>>(), step.said, "{}", step.args);
        return;
    }
    let said = controlled.must_not(&args);
    for line in step.kernel.iter().chain(&step.said) {
        assert!(said.lines().any(|said| said == *line), "{}: {line:?} is not in\n{said}", step.args);
    }
}

#[test]
fn switch_takes_the_messages_that_the_kernel_takes() {
    let dir = files::disk_dir();
    let paths = ["a", "b", "c"].map(|name| {
        let path = dir.path().join(name);
        files::component(&path, &[0; 64 * SECTOR]);
        path.display().to_string() + " 0"
    });
    let controlled = Controlled::start(&format!("x,,,,0 64 switch 3 8 0 {}", paths.join(" ")), &[]);
    let steps = steps(ARGUMENTS, "##### SWITCH", "##### LOGWRITES");
    steps.iter().for_each(|step| message(&controlled, step));
    assert_eq!(steps.len(), 9);
    controlled.stop();
}

/// `r 8 8`, `w 16 8 0x22`, `f`, `d 8 16`, `z 8 16`: as the transcript prints what became of them.
fn io(vmm: &mut Vmm, args: &str) -> Vec<String> {
    let mut words = args.split(' ');
    let mut said = Vec::new();
    while let Some(word) = words.next() {
        let mut number = || words.next().expect("a number").parse::<u64>().expect("a number");
        let (at, len) = if word == "f" { (0, 0) } else { (number(), number()) };
        let ranges = [Segment { sector: at, sectors: len as u32, flags: 0 }];
        let bytes = len as usize * SECTOR;
        let (name, done) = match word {
            "r" => (
                "read",
                vmm.read(0, at, bytes).map(|read| {
                    let firsts: Vec<String> = read.chunks(SECTOR).map(|sector| format!("{:02x}", sector[0])).collect();
                    format!("{bytes} bytes: {}", firsts.join(" "))
                }),
            ),
            "w" => {
                let value = words.next().and_then(|word| u8::from_str_radix(word.strip_prefix("0x")?, 16).ok());
                let data = vec![value.expect("a byte"); bytes];
                ("write", vmm.write(0, at, &data).map(|()| format!("{bytes} bytes")))
            }
            "f" => ("fsync", vmm.flush(0).map(|()| "ok".to_owned())),
            "d" => ("discard", vmm.ranges(0, kind::DISCARD, &ranges).map(|()| "ok".to_owned())),
            "z" => ("zeroout", vmm.ranges(0, kind::WRITE_ZEROES, &ranges).map(|()| "ok".to_owned())),
            other => panic!("{other:?} in {args:?}"),
        };
        let what = done.unwrap_or_else(|failed| {
            assert_eq!(failed, Failed(IOERR), "{args}");
            "Input/output error".to_owned()
        });
        said.push(format!("{name} {at}+{len}: {what}"));
    }
    said
}

/// Where dust is not as in the kernel, by the step's number from 0: the step is another.
///
/// The kernel takes the block behind the last; a flush counts as a write to the first block, and repairs it; a discard
/// repairs the first of its blocks only.
fn dust_differs() -> HashMap<usize, (&'static str, &'static [&'static str])> {
    HashMap::from([
        (7, ("0 addbadblock 16384", &["device-mapper: dust: selected block value out of range"][..])),
        (9, ("0 countbadblocks", &["countbadblocks: 3 badblock(s) found"][..])),
        (10, ("0 listbadblocks", &["2", "3", "4"][..])),
        (13, ("0 removebadblock 16384", &["device-mapper: dust: selected block value out of range"][..])),
        (28, ("0 listbadblocks", &["1", "4"][..])),
        (32, ("0 listbadblocks", &["1", "4"][..])),
        (34, ("0 listbadblocks", &["1", "4"][..])),
    ])
}

#[test]
fn dust_does_what_the_kernel_did() {
    let dir = files::disk_dir();
    let disk = dir.path().join("vda");
    files::component(&disk, &vec![0x11; SECTORS as usize * SECTOR]);
    let mut controlled = Controlled::start(&format!("x,,,,0 64 dust {} 8 4096", disk.display()), &[]);
    let mut vmm = controlled.vmm("x", &Setup::default());
    let (steps, differs) = (steps(BLOCKS, "[du-dev]", "##### EBS"), dust_differs());
    for (number, mut step) in steps.into_iter().enumerate() {
        if let Some((args, said)) = differs.get(&number) {
            assert_eq!(step.args, *args, "step {number}");
            let refused = said[0].starts_with("device-mapper: ");
            (step.said, step.refused, step.kernel) = (said.to_vec(), refused, Vec::new());
        }
        if step.io {
            assert_eq!(io(&mut vmm, step.args), step.said, "step {number}: {}", step.args);
        } else {
            message(&controlled, &step);
        }
    }
    drop(vmm);
    controlled.stop();
}
