//! Reads the transcripts in `tests/data/oracle`: what a real kernel and a real dmsetup said about tables.
//!
//! Only std, so that other crates' tests take this file in with `#[path]`.

// Each of the tests that take this in reads only a part of what a transcript has.
#![allow(dead_code)]

/// One `--- [label] table: …` of a transcript.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// The name in brackets.
    pub label: String,
    /// The table's text as dmsetup read it, lines ended by `\n`.
    pub table: String,
    /// What dmsetup said on stderr, line by line.
    pub stderr: Vec<String>,
    /// Whether dmsetup exited with 0.
    pub accepted: bool,
    /// Lines of the kernel log.
    pub kernel: Vec<String>,
    /// What `dmsetup table` printed, line by line with blanks at the end kept.
    pub printed: Vec<String>,
    /// What `dmsetup status` printed, in the same way.
    pub status: Vec<String>,
}

impl Case {
    /// The line of the kernel log that says why, without `device-mapper: table: MAJOR:MINOR: ` and without a
    /// closing ` (-EINVAL)`, which goes without saying; else dmsetup's own line. `None` for what was accepted.
    pub fn reason(&self) -> Option<&str> {
        if self.accepted {
            return None;
        }
        let said = self.kernel.iter().filter_map(|line| kernel_text(line));
        let mut said = said.filter(|text| !text.contains("alignment inconsistency"));
        said.next().or(self.stderr.first().map(String::as_str))
    }

    /// Lines of the kernel log that warn, without their prefix.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.kernel.iter().filter_map(|line| kernel_text(line)).filter(|text| text.contains("alignment inconsistency"))
    }

    /// The types of the table's lines, as far as they can be seen by splitting at blanks.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        let lines = self.table.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.filter_map(|line| line.split_ascii_whitespace().nth(2))
    }
}

fn kernel_text(line: &str) -> Option<&str> {
    let text = line.strip_prefix("device-mapper: table: ")?;
    // The mapped device's own numbers: `253:0: `.
    let (_, text) = text.split_once(": ")?;
    Some(text.strip_suffix(" (-EINVAL)").unwrap_or(text))
}

/// One `$ dmsetup …` of a transcript.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The arguments, as the shell's echo has them: without quotes.
    pub args: String,
    /// What was printed before the exit status, stderr and stdout.
    pub output: Vec<String>,
    /// Whether it exited with 0.
    pub accepted: bool,
    /// Lines of the kernel log.
    pub kernel: Vec<String>,
}

/// One `dmsetup message` of a transcript.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The table before it: the last one that was loaded, or printed.
    pub table: String,
    /// The message: sector and words.
    pub args: String,
    /// What was printed before the exit status, stderr and stdout.
    pub output: Vec<String>,
    /// Whether dmsetup exited with 0.
    pub accepted: bool,
    /// Lines of the kernel log.
    pub kernel: Vec<String>,
}

/// All messages of a transcript, in order.
pub fn messages(text: &str) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    let (mut table, mut open, mut exited) = (String::new(), false, true);
    for line in text.lines() {
        let args = line.strip_prefix("--- msg: ").or_else(|| line.strip_prefix("$ dmsetup message x "));
        if let Some(args) = args {
            messages.push(Message { table: table.clone(), args: args.to_owned(), ..Message::default() });
            (open, exited) = (true, false);
        } else if let Some((_, text)) = line.strip_prefix("--- [").and_then(|rest| rest.split_once("] table: ")) {
            table = text.trim_end_matches('|').to_owned();
            open = false;
        } else if line.starts_with("=== ") {
            table.clear();
            open = false;
        } else if line.starts_with("$ ") || line.starts_with("---") {
            open = false;
        } else if let (true, Some(message)) = (open, messages.last_mut()) {
            if let Some(log) = line.strip_prefix("K: device-mapper: ") {
                message.kernel.push(log.to_owned());
            } else if let (false, Some(code)) = (exited, line.strip_prefix("rc=")) {
                message.accepted = code == "0";
                exited = true;
            } else if !exited {
                message.output.push(line.to_owned());
            }
        }
    }
    messages
}

/// Types of targets that the kernel of the transcript had, from the list at its head.
pub fn kernel_types(text: &str) -> Vec<&str> {
    let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let versions = words.filter(|words| matches!(words[..], [_, version] if version.starts_with('v')));
    versions.map(|words| words[0]).collect()
}

/// All table cases of a transcript, in order.
pub fn cases(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut open = false;
    let mut exited = false;
    for line in text.lines() {
        if let Some((label, table)) = line.strip_prefix("--- [").and_then(|rest| rest.split_once("] table: ")) {
            let table = table.split('|').map(|line| format!("{line}\n")).collect();
            cases.push(Case { label: label.to_owned(), table, ..Case::default() });
            (open, exited) = (true, false);
        } else if line.starts_with("---") && !line.ends_with('|')
            || line.starts_with("####")
            || line.starts_with("====")
        {
            open = false;
        } else if let (true, Some(case)) = (open, cases.last_mut()) {
            if let Some(code) = line.strip_prefix("rc=") {
                case.accepted = code == "0";
                exited = true;
            } else if let Some(log) = line.strip_prefix("K: ") {
                case.kernel.push(log.to_owned());
            } else if !exited {
                case.stderr.push(line.to_owned());
            } else if let Some(printed) = line.strip_suffix('|') {
                case.printed.push(printed.to_owned());
            }
        }
    }
    cases.iter_mut().for_each(split_status);
    cases
}

/// `dmsetup table`, as many lines of `dmsetup status`: the first half is the table.
fn split_status(case: &mut Case) {
    case.status = case.printed.split_off(case.printed.len() / 2);
}

/// All commands of a transcript, in order.
pub fn commands(text: &str) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    let mut exited = true;
    for line in text.lines() {
        if let Some(args) = line.strip_prefix("$ dmsetup ") {
            commands.push(Command { args: args.to_owned(), ..Command::default() });
            exited = false;
        } else if let Some(command) = commands.last_mut() {
            if let Some(log) = line.strip_prefix("K: ") {
                command.kernel.push(log.to_owned());
            } else if !exited && let Some(code) = line.strip_prefix("rc=") {
                command.accepted = code == "0";
                exited = true;
            } else if !exited {
                command.output.push(line.to_owned());
            }
        }
    }
    commands
}
