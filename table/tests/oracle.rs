//! Every recorded case about the targets there are gives the same verdict, reason and table line as a real
//! dmsetup on a real kernel.

#[path = "common/transcript.rs"]
mod transcript;

use std::sync::Arc;

use dm_table::{DevRef, Device, Diagnostic, Format, Source, TableFile, parse};
use transcript::{Case, Command, cases, commands, kernel_types};

const PARSER: &str = include_str!("../../tests/data/oracle/out612-1.txt");
const TARGETS: &str = include_str!("../../tests/data/oracle/out612-2.txt");
const RUNS: &str = include_str!("../../tests/data/oracle/out612-3.txt");
const VERBS: &str = include_str!("../../tests/data/oracle/out612-4.txt");

const STORES: &str = include_str!("../../tests/data/oracle/out612-5.txt");
const BLOCKS: &str = include_str!("../../tests/data/oracle/out612-8.txt");

/// Cases in which the kernel is wrong, by label: what is said here.
const KERNEL_IS_WRONG: [(&str, &str); 1] = [("un-eq", "unstriped: Please provide stripe between [0, # of stripes]")];

/// How a case fares here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Loaded, and printed as the kernel prints it.
    Accepted,
    /// Refused with the same reason.
    Refused,
    /// The kernel refused it for what a device is, or is not; without devices it has nothing wrong.
    NeedsDevices,
    /// The kernel takes it, and should not.
    KernelIsWrong,
}

fn read(text: &str, format: Format) -> Result<TableFile, Diagnostic> {
    parse(Arc::new(Source::new("<stdin>", text)), format)
}

/// Reasons that only devices can give.
fn is_about_devices(reason: &str) -> bool {
    // Not so where the errno says that an argument is wrong.
    let lookup = ["Device lookup failed", "Log device lookup failed", "Couldn't parse stripe destination"];
    let lookup = lookup.iter().any(|text| reason.contains(&format!(": {text} (-")));
    // These have the same errno for every device.
    let always = ["dust: Device lookup failed", "unstriped: Couldn't get striped device"].contains(&reason);
    let block_size = reason == "ebs: Device offset must be multiple of underlying block size";
    lookup
        || always
        || block_size
        || reason.contains(" too small for target: ")
        || reason.contains(" not aligned to h/w ")
}

/// Device names as the kernel printed them in that machine.
fn kernel_name(dev: &DevRef) -> String {
    let number = match dev.text.as_str() {
        "/dev/vda" | "vda" | "/dev/../dev/vda" | "/dev/mapper/../vda" => "254:0",
        "/dev/vdb" => "254:16",
        "/dev/sda" => "8:0",
        other => other,
    };
    number.to_owned()
}

fn judge(case: &Case) -> Verdict {
    let Case { label, table, .. } = case;
    let here = read(table, Format::Plain);
    let guessed = read(table, Format::Auto);
    assert_eq!(here.is_ok(), guessed.is_ok(), "{label}: the format is told from {table:?}");
    match (case.reason(), here) {
        (None, Ok(file)) => {
            let printed = file.devices[0].table.display_with(&kernel_name).to_string();
            assert_eq!(printed, case.printed.join("\n"), "{label}");
            Verdict::Accepted
        }
        (Some(reason), Ok(_)) if is_about_devices(reason) => Verdict::NeedsDevices,
        (Some(reason), Err(refusal)) => {
            assert_eq!(refusal.reason(), reason, "{label}");
            Verdict::Refused
        }
        (None, Err(refusal)) if KERNEL_IS_WRONG.contains(&(label.as_str(), refusal.reason())) => Verdict::KernelIsWrong,
        (None, Err(refusal)) => panic!("{label}: the kernel took it\n{refusal}"),
        (Some(reason), Ok(_)) => panic!("{label}: the kernel refused it: {reason}"),
    }
}

/// Judges the cases that concern us: those of which each type is one of ours, or none of the kernel's.
fn tally(text: &str) -> [usize; 4] {
    let foreign = |kind: &str| kernel_types(text).contains(&kind) && !dm_table::target_types().any(|ours| ours == kind);
    let ours = cases(text).into_iter().filter(|case| !case.types().any(foreign));
    let verdicts: Vec<Verdict> = ours.map(|case| judge(&case)).collect();
    let count = |verdict| verdicts.iter().filter(|&&other| other == verdict).count();
    [Verdict::Accepted, Verdict::Refused, Verdict::NeedsDevices, Verdict::KernelIsWrong].map(count)
}

#[test]
fn parser_linear_zero_and_error() {
    let all = cases(PARSER).len();
    assert_eq!(tally(PARSER), [22, 28, 17, 0]);
    assert_eq!(all, 22 + 28 + 17, "every case of this transcript is about our targets");
}

#[test]
fn arguments_of_all_targets_and_device_names() {
    assert_eq!(tally(TARGETS), [36, 61, 11, 1]);
    assert_eq!(cases(TARGETS).len(), 36 + 61 + 11 + 1, "every case of this transcript is about our targets");
}

#[test]
fn dust_and_ebs() {
    assert_eq!(tally(BLOCKS), [8, 13, 2, 0]);
    assert_eq!(cases(BLOCKS).len(), 8 + 13 + 2, "every case of this transcript is about our targets");
}

#[test]
fn a_missing_device_is_told_as_the_kernel_tells_it() {
    let mut told = 0;
    for text in [PARSER, TARGETS, BLOCKS] {
        for case in cases(text) {
            let Some(reason) = case.reason().filter(|reason| is_about_devices(reason)) else { continue };
            let Ok(file) = read(&case.table, Format::Plain) else { continue };
            let targets = file.devices[0].table.lines.iter().map(|line| &line.target);
            let missing = |dev: &DevRef| dev.text == "/dev/nope";
            let mut failures = targets.flat_map(|target| {
                let refs = target.device_refs().enumerate().filter(|(_, dev)| missing(dev));
                refs.map(|(n, _)| target.lookup_failed(n, "ENOENT"))
            });
            let Some(here) = failures.next() else { continue };
            assert_eq!(here.strip_suffix(" (-EINVAL)").unwrap_or(&here), reason, "{}", case.label);
            told += 1;
        }
    }
    assert_eq!(told, 10);
}

#[test]
fn tables_of_running_devices() {
    let mut seen = 0;
    for text in [RUNS, STORES, BLOCKS] {
        for command in commands(text).into_iter().filter(|command| command.args.starts_with("table ")) {
            let text = command.output.join("\n");
            let thin = text.contains(" thin");
            match read(&text, Format::Plain) {
                Ok(file) => {
                    assert!(!thin, "{text}");
                    assert_eq!(file.devices[0].table.to_string(), text);
                    seen += 1;
                }
                Err(refusal) => assert!(thin, "{refusal}"),
            }
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn crlf_ends_a_line_like_lf() {
    // The terminal that recorded the transcript swallowed the CR of this case.
    let case = cases(PARSER).into_iter().find(|case| case.label == "crlf").expect("the case is recorded");
    let file = read(&case.table.replace('\n', "\r\n"), Format::Auto).expect("accepted");
    assert_eq!(file.devices[0].table.to_string(), case.printed.join("\n"));
}

fn recorded(args: &str) -> Command {
    let found = commands(VERBS).into_iter().find(|command| command.args == args);
    found.unwrap_or_else(|| panic!("no command {args:?} in the transcript"))
}

/// What a refused command said, as `Diagnostic::reason` has it: the kernel's words, else dmsetup's.
fn said(command: &Command) -> &str {
    let kernel = command.kernel.iter().find_map(|line| line.strip_prefix("device-mapper: ioctl: "));
    let first = command.output.first().map(String::as_str).unwrap_or_default();
    kernel.unwrap_or(first.strip_prefix("device-mapper: ").unwrap_or(first))
}

/// Devices of all accepted `create --concise` commands, and the numbers of accepted and refused ones.
fn concise_created() -> (Vec<Device>, usize, usize) {
    let (mut devices, mut accepted, mut refused) = (Vec::new(), 0, 0);
    for command in commands(VERBS) {
        // Without text after it, the text came from stdin and is not recorded.
        let Some(text) = command.args.strip_prefix("create --concise ") else { continue };
        match read(text, Format::Concise) {
            Ok(file) => {
                assert!(command.accepted, "dmsetup refused {text:?}: {:?}", command.output);
                devices.extend(file.devices);
                accepted += 1;
            }
            Err(refusal) => {
                assert!(!command.accepted, "dmsetup took {text:?}\n{refusal}");
                // The word was read as minor 0, which was taken there. Refused here for what it is.
                let reason = if text.contains(",abc,") {
                    "Invalid minor parameter 'abc' must be a number or empty."
                } else {
                    said(&command)
                };
                assert_eq!(refusal.reason(), reason, "{text:?}");
                refused += 1;
            }
        }
    }
    (devices, accepted, refused)
}

#[test]
fn concise_texts() {
    let (devices, accepted, refused) = concise_created();
    assert_eq!((accepted, refused), (6, 5));

    let listed = recorded("table --concise");
    let mut file = read(&listed.output[0], Format::Concise).expect("dmsetup's own output");
    assert_eq!(file.display_concise().to_string(), listed.output[0]);

    // Made from stdin, which is not recorded.
    file.devices.retain(|device| device.name.as_deref() != Some("c13"));
    assert_eq!(file.devices.len(), devices.len());
    for device in devices {
        let same = file.devices.iter().find(|other| other.name == device.name).expect("listed");
        assert_eq!(same.uuid, device.uuid);
        assert_eq!(same.read_only, device.read_only);
        assert!(device.minor.is_none_or(|minor| same.minor == Some(minor)));
        assert_eq!(same.table.to_string(), device.table.display_with(&kernel_name).to_string());
    }

    let one = recorded("table --concise c1");
    let file = read(&one.output[0], Format::Concise).expect("dmsetup's own output");
    assert_eq!(file.display_concise().to_string(), one.output[0]);
}

#[test]
fn names_and_uuids() {
    let n127 = "n".repeat(127);
    let n128 = "n".repeat(128);
    let (u128, u129) = ("u".repeat(128), "u".repeat(129));
    for (args, text) in [
        ("create sp ace --table 0 8 zero".to_owned(), "sp ace,,,,0 8 zero".to_owned()),
        ("create a/b --table 0 8 zero".to_owned(), "a/b,,,,0 8 zero".to_owned()),
        ("create control --table 0 8 zero".to_owned(), "control,,,,0 8 zero".to_owned()),
        ("create .. --table 0 8 zero".to_owned(), "..,,,,0 8 zero".to_owned()),
        (format!("create {n127} --table 0 8 zero"), format!("{n127},,,,0 8 zero")),
        (format!("create {n128} --table 0 8 zero"), format!("{n128},,,,0 8 zero")),
        (format!("create u128 -u {u128} --table 0 8 zero"), format!("u128,{u128},,,0 8 zero")),
        (format!("create u129 -u {u129} --table 0 8 zero"), format!("u129,{u129},,,0 8 zero")),
        ("create c -u U-1 --table 0 100 zero".to_owned(), "b,U-1,,,0 100 zero;c,U-1,,,0 100 zero".to_owned()),
    ] {
        let command = recorded(&args);
        match read(&text, Format::Concise) {
            Ok(_) => assert!(command.accepted, "{args}: {:?}", command.output),
            Err(refusal) => assert_eq!(refusal.reason(), said(&command), "{args}"),
        }
    }
    let again = "create a --table 0 100 linear /dev/vda 0";
    let second = commands(VERBS).into_iter().filter(|command| command.args == again).nth(1).expect("run twice");
    let twice = read("a,,,,0 100 zero;a,,,,0 100 zero", Format::Concise).expect_err("the name is taken");
    assert_eq!(twice.reason(), said(&second));
}

#[test]
fn a_device_in_its_own_table() {
    let command = recorded("load self --table 0 8 linear /dev/mapper/self 0");
    assert!(!command.accepted);
    let file = read("self,,,,0 8 linear /dev/mapper/self 0", Format::Concise).expect("nothing wrong but the loop");
    let refusal = file.load_order().expect_err("a loop");
    let kernel = command.kernel.iter().find_map(|line| line.strip_prefix("device-mapper: table: 253:0: "));
    assert_eq!(Some(refusal.reason()), kernel);
}

#[test]
fn output_of_dmsetup_table_is_read() {
    let listed = recorded("table");
    let text = listed.output.join("\n");
    assert_eq!(text, "a: 0 100 linear 254:0 0\nb: 0 100 zero ");
    let file = read(&text, Format::Auto).expect("dmsetup's own output");
    let printed: Vec<_> =
        file.devices.iter().map(|device| (device.name.as_deref(), device.table.to_string())).collect();
    assert_eq!(printed, [(Some("a"), "0 100 linear 254:0 0".to_owned()), (Some("b"), "0 100 zero ".to_owned())]);
}
