//! What dmsetup and a kernel said to 115 commands, said again by `vhost-user-dm dmsetup`: transcript 4, command by command.

use std::collections::VecDeque;

use dm_tests::control::{Controlled, Output};
use dm_tests::files;
use dm_tests::loops::{self, Loop};
use dm_tests::skip;

const TRANSCRIPT: &str = include_str!("../../data/oracle/out612-4.txt");
/// Of the transcript's vda and sda, in sectors.
const SECTORS: u64 = 131_072;

/// The line of `dmsetup targets`.
const TARGETS: usize = 397;

/// One command of the transcript.
#[derive(Debug)]
struct Step {
    line: usize,
    program: String,
    args: Vec<String>,
    /// Standard output and standard error, in one.
    output: Vec<String>,
    code: i32,
    kernel: Vec<String>,
}

/// What does not apply.
#[derive(Clone, Copy, Debug)]
enum Except {
    /// A line that begins so: it may be missing, or another.
    Line(&'static str),
    /// This stands here for that.
    Here(&'static str, &'static str),
    /// No line that begins so, and columns as wide as the rest needs them.
    Narrower(&'static str),
    /// Not all of these lines, and in another order.
    Fewer,
    /// It is refused, and this is in the reason.
    Refused(&'static str),
    /// It works, and says nothing.
    Works,
}

/// By the transcript's line, and why.
const EXCEPTIONS: [(usize, Except); 13] = [
    // No node in /dev, so no read-ahead by the host, and no size to be read from it.
    (25, Except::Line("Read Ahead:")),
    (36, Except::Line("Read Ahead:")),
    (89, Except::Line("Read Ahead:")),
    (378, Except::Line("Read Ahead:")),
    (228, Except::Line("/dev/mapper/n: open failed")),
    // What the kernel finds at resume is found at load, when no harm is done yet; so the resume that follows has nothing to
    // do. (`verbs.rs` has a resume that fails.)
    (141, Except::Refused("table: 253:0: vda too small for target: start=0, len=200000, dev_size=131072")),
    (143, Except::Works),
    // It is not suspended by a failed resume, then; and that a table was exchanged before is an event.
    (148, Except::Here("L-sw    0    1      0", "L--w    0    1      1")),
    (166, Except::Here("L--w    0    1      0", "L--w    0    1      1")),
    // A device of --socket-dir has a socket, and the path of a socket has at most 107 bytes; so it is not in the list either.
    (291, Except::Refused("path must be shorter than SUN_LEN")),
    (304, Except::Narrower("nnnn")),
    // Other targets, and another library.
    (TARGETS, Except::Fewer),
    (414, Except::Line("Library version:")),
];

/// The arguments of a command, of which the transcript has no quotes.
fn words(text: &str) -> Vec<String> {
    for option in ["--table ", "--concise "] {
        if let Some((before, table)) = text.split_once(option) {
            let mut words = words(before.trim_end());
            words.extend([option.trim_end().to_owned(), table.to_owned()]);
            return words;
        }
    }
    // A name with a blank, and an empty message.
    let text = text.replace("sp ace", "sp\u{1}ace");
    text.split(' ').map(|word| word.replace('\u{1}', " ")).collect()
}

fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut open = false;
    for (at, line) in TRANSCRIPT.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            let (program, args) = command.split_once(' ').expect("a command with arguments");
            steps.push(Step {
                line: at + 1,
                program: program.to_owned(),
                args: words(args),
                output: Vec::new(),
                code: 0,
                kernel: Vec::new(),
            });
            open = true;
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        if let Some(log) = line.strip_prefix("K: ") {
            step.kernel.push(log.to_owned());
        } else if let Some(code) = line.strip_prefix("rc=").filter(|_| open) {
            step.code = code.parse().expect("a number");
            open = false;
        } else if open {
            step.output.push(line.to_owned());
        }
    }
    // The second line of a table.
    let two = steps.iter_mut().find(|step| step.args.contains(&"m2".to_owned())).expect("a table of two lines");
    let second = two.output.remove(0);
    two.args.last_mut().expect("a table").push_str(&format!("\n{second}"));
    steps
}

/// The machine of the transcript, and what it is here.
struct Machine {
    controlled: Controlled,
    vda: Loop,
    sda: Loop,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let dir = files::disk_dir();
        let [vda, sda] = ["vda", "sda"].map(|name| {
            let image = dir.path().join(name);
            files::sparse(&image, SECTORS * 512);
            Loop::attach(&image, false).expect("a loop device")
        });
        Machine { controlled: Controlled::empty(), vda, sda, _dir: dir }
    }

    fn node(device: &Loop) -> &str {
        device.node.to_str().expect("a path of ASCII")
    }

    /// A line of the transcript, with the names and numbers that things have here.
    fn here(&self, line: &str) -> String {
        let node = Self::node(&self.vda);
        let name = node.strip_prefix("/dev/").expect("a node");
        let minor = name.strip_prefix("loop").expect("a loop device");
        line.replace("Major, minor:      253,", "Major, minor:      0,")
            // Columns of `info -c`.
            .replace("              253 ", "                0 ")
            .replace("253:", "0:")
            .replace("254:0 ", &format!("7:{minor} "))
            .replace("(254, 0)", &format!("(7, {minor})"))
            .replace("(vda)", &format!("({name})"))
            .replace(": vda too small", &format!(": {name} too small"))
    }

    fn run(&self, step: &Step) -> Output {
        let to_here =
            |arg: &String| arg.replace("/dev/vda", Self::node(&self.vda)).replace("/dev/sda", Self::node(&self.sda));
        let args: Vec<String> = step.args.iter().map(to_here).collect();
        if step.program == "blockdev" {
            let name = step.args[1].strip_prefix("/dev/mapper/").expect("a mapped device");
            let sectors = &self.controlled.client().info(name)["sectors"];
            return Output { code: 0, stdout: format!("{sectors}\n"), stderr: String::new() };
        }
        let mut command = dm_tests::control::dmsetup_command(&self.controlled.control, &args);
        if args[..] == ["create", "--concise"] {
            // What it reads when the table is not on the command line.
            let input = self.controlled.dir().join("stdin");
            std::fs::write(&input, "c13,,,,0 8 zero").expect("write");
            command.stdin(std::fs::File::open(input).expect("open"));
        }
        dm_tests::control::said(&mut command)
    }
}

fn columns(line: &str) -> String {
    line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asserts that a command did what it did there.
fn compare(machine: &Machine, step: &Step, output: &Output) -> Result<(), String> {
    let except = EXCEPTIONS.iter().find(|(line, _)| *line == step.line).map(|(_, except)| *except);
    let mut expected: Vec<String> = step.output.iter().map(|line| machine.here(line)).collect();
    let mut printed = output.stdout.clone();
    let (mut code, mut kernel) = (step.code, &step.kernel[..]);
    match except {
        Some(Except::Line(start)) => {
            expected.retain(|line| !line.starts_with(start));
            printed = printed.split_inclusive('\n').filter(|line| !line.starts_with(start)).collect();
        }
        Some(Except::Here(there, here)) => {
            expected.iter_mut().for_each(|line| *line = line.replace(there, here));
        }
        Some(Except::Narrower(start)) => {
            expected.retain(|line| !line.starts_with(start));
            expected.iter_mut().for_each(|line| *line = columns(line));
            printed = printed.lines().map(|line| columns(line) + "\n").collect();
        }
        Some(Except::Fewer) => {
            expected.retain(|line| printed.contains(line.as_str()));
            expected.sort_unstable();
            // That kernel had neither when the list was made.
            let late = |line: &&str| line.starts_with("dust ") || line.starts_with("ebs ");
            let lines = printed.split_inclusive('\n').filter(|line| !late(line));
            let mut lines: Vec<&str> = lines.collect();
            lines.sort_unstable();
            printed = lines.concat();
        }
        Some(Except::Refused(why)) => {
            return match output.code == 1 && output.stderr.contains(&machine.here(why)) {
                true => Ok(()),
                false => Err(format!("not refused because of {why:?}")),
            };
        }
        Some(Except::Works) => (expected, code, kernel) = (Vec::new(), 0, &[]),
        None => {}
    }
    if output.code != code {
        return Err(format!("exit status {}", output.code));
    }
    // The transcript has both in one. Results go to standard output, whatever is wrong to standard error, with what the
    // kernel would have in its log and what we have to say beyond it.
    let mut stdout: VecDeque<&str> = printed.lines().collect();
    let mut stderr: VecDeque<&str> = output.stderr.lines().collect();
    for line in &expected {
        if stdout.front() == Some(&line.as_str()) {
            stdout.pop_front();
        } else if let Some(at) = stderr.iter().position(|said| said == line) {
            stderr.drain(..=at);
        } else {
            return Err(format!("does not say {line:?}"));
        }
    }
    if !stdout.is_empty() || (code == 0 && !output.stderr.is_empty()) {
        return Err("says more".to_owned());
    }
    if code == 1 && output.stderr.lines().last() != Some("Command failed.") {
        return Err("does not say in the end that it failed".to_owned());
    }
    let mut said = output.stderr.lines();
    match kernel.iter().map(|line| machine.here(line)).find(|line| !said.any(|said| said == line)) {
        Some(missing) => Err(format!("does not say {missing:?}")),
        None => Ok(()),
    }
}

#[test]
fn commands_say_what_dmsetup_says() {
    if let Some(why) = loops::missing() {
        return skip::skip("commands_say_what_dmsetup_says", why);
    }
    let machine = Machine::new();
    let mut wrong = String::new();
    let steps = steps();
    for step in &steps {
        if step.line == TARGETS {
            // The transcript does not show this, but what follows does.
            machine.controlled.must(&["remove", "r"]);
        }
        let output = machine.run(step);
        if let Err(why) = compare(&machine, step, &output) {
            wrong += &format!(
                "line {}: {} {:?}: {why}\n  there (status {}):\n    {}\n  here (status {}):\n    {}\n",
                step.line,
                step.program,
                step.args,
                step.code,
                step.output.iter().chain(&step.kernel).cloned().collect::<Vec<_>>().join("\n    "),
                output.code,
                (output.stdout + &output.stderr).trim_end().replace('\n', "\n    "),
            );
        }
    }
    assert!(steps.len() > 100, "{} commands", steps.len());
    assert!(wrong.is_empty(), "{wrong}");
    machine.controlled.stop();
}
