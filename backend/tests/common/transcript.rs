//! Reads the transcripts of a real kernel (tests/data/oracle/README.md).

/// One table and what the kernel and dmsetup said to it.
#[derive(Debug, Default)]
pub struct Case {
    pub label: String,
    /// The table's text, lines ended by `\n`.
    pub table: String,
    /// dmsetup's exit status.
    pub status: i32,
    /// What dmsetup wrote to standard error.
    pub stderr: Vec<String>,
    /// Kernel log lines without their mark.
    pub kernel: Vec<String>,
    /// What `dmsetup table`, `dmsetup status` and `dmsetup info` printed, `|` at line ends removed.
    pub output: Vec<String>,
}

/// All table cases of a transcript, in order.
pub fn cases(text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut current: Option<Case> = None;
    let mut loaded = false;
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("--- ") {
            cases.extend(current.take());
            current = start(head);
            loaded = false;
        } else if line.starts_with("=====") || line.starts_with("##### ") {
            cases.extend(current.take());
        } else if let Some(case) = &mut current {
            if let Some(status) = line.strip_prefix("rc=") {
                case.status = status.parse().expect("an exit status");
                loaded = true;
            } else if let Some(log) = line.strip_prefix("K: ") {
                case.kernel.push(log.to_owned());
            } else if loaded {
                case.output.push(line.trim_end_matches('|').to_owned());
            } else {
                case.stderr.push(line.to_owned());
            }
        }
    }
    cases.extend(current);
    cases
}

/// `[label] table: text`; other heads are not cases.
fn start(head: &str) -> Option<Case> {
    let (label, table) = head.strip_prefix('[')?.split_once("] table: ")?;
    Some(Case { label: label.to_owned(), table: table.replace('|', "\n"), ..Case::default() })
}

impl Case {
    /// Why it was refused, in the words of the layer that refused it; `None` where it was not.
    ///
    /// Without `(-EINVAL)`, which every refusal of a constructor has.
    pub fn reason(&self) -> Option<&str> {
        if self.status == 0 {
            return None;
        }
        let kernel = self.table_log().find(|log| !is_warning(log));
        let reason = kernel.or(self.stderr.first().map(String::as_str))?;
        Some(reason.trim_end_matches(" (-EINVAL)"))
    }

    /// What the kernel warned of while it loaded the table, each text once: it calculates limits twice.
    pub fn warnings(&self) -> Vec<&str> {
        let mut warnings: Vec<&str> = self.table_log().filter(|log| is_warning(log)).collect();
        warnings.dedup();
        warnings
    }

    /// What `dmsetup table` printed, lines joined by `\n`.
    pub fn printed_table(&self) -> String {
        // As many lines of status follow, and one of `dmsetup info`.
        self.output[..self.output.len() / 2].join("\n")
    }

    fn table_log(&self) -> impl Iterator<Item = &str> {
        self.kernel.iter().filter_map(|log| log.strip_prefix("device-mapper: table: 253:0: "))
    }
}

fn is_warning(log: &str) -> bool {
    log.ends_with("caused an alignment inconsistency") || log.contains("caused an alignment inconsistency: ")
}
