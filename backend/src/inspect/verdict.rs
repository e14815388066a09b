//! What `check` finds in a table file, and how it ends.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dm_table::{DevRef, Diagnostic, Line, Sectors, TableFile, Target};
use serde::Serialize;

use super::findings::{Extent, Inside, Known, Piece, Severity, findings, force, on_label};
use super::{Assembled, Finding, IDS, Layout};
use crate::check;
use crate::mapper::Started;
use crate::overlay::{Checked, OTHER_BASE};

/// How `check` is to judge.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Judging {
    /// Print everything as JSON
    #[arg(long)]
    pub json: bool,

    /// Let warnings fail, too: with status 3
    #[arg(long)]
    pub strict: bool,

    /// Take a finding for a warning; once for each. What the kernel or a lock refuses stays refused
    #[arg(long, value_name = "FINDING", value_parser = clap::builder::PossibleValuesParser::new(IDS.into_iter().chain([OTHER_BASE])))]
    pub force: Vec<String>,
}

/// Everything that is said of a table file.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    /// `clean`, `warned` or `refused`.
    pub verdict: &'static str,
    /// What speaks against it, the worst first.
    pub findings: Vec<Finding>,
    /// What is doubtful besides.
    pub warnings: Vec<String>,
    /// Why it cannot be served at all.
    pub error: Option<String>,
    /// What would be served.
    pub devices: Vec<Described>,
    /// What lies over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Checked>,
    #[serde(skip)]
    text: String,
}

/// A device, for JSON.
#[derive(Debug, Serialize)]
pub struct Described {
    name: String,
    block_size: u32,
    read_only: bool,
    components: Vec<PathBuf>,
    #[serde(flatten)]
    layout: Layout,
}

/// Status for warnings where they count.
const WARNED: u8 = 3;

/// What is to be said of a table file, and of what became of starting it; to be [settled](Verdict::settled).
pub fn judge(file: &TableFile, started: Result<(Vec<Started>, Vec<String>), Diagnostic>, read_only: bool) -> Verdict {
    let mut all = findings(&components(file, read_only, started.is_err()));
    let mut verdict = Verdict { verdict: "clean", ..Verdict::default() };
    match started {
        Err(diagnostic) => verdict.error = Some(diagnostic.to_string().trim_end().to_owned()),
        Ok((started, warnings)) => {
            verdict.devices = started.iter().map(described).collect();
            for (device, of) in verdict.devices.iter().zip(&started).filter(|(_, of)| of.top) {
                all.extend(findings(&device.layout.pieces(&device.name, !of.disk.chain().read_only)));
            }
            // The map knows better than the lines what is reached in two ways; and claims are told with what they mean.
            let (shared, others): (Vec<_>, Vec<_>) =
                warnings.into_iter().partition(|text| text.contains(" reachable "));
            all.retain(|finding| finding.id != "overlap");
            all.extend(shared.into_iter().map(|text| overlap(&text)));
            verdict.warnings =
                others.into_iter().filter(|text| !text.ends_with(", so it may change while it is served")).collect();
            verdict.text = check::report(&started, &[]);
        }
    }
    verdict.findings = all;
    verdict
}

/// Pieces of a disk up to which a process looks into them before it serves it: longer tables are not put together of
/// partitions by hand, and it is not to be late for them. [`judge`] looks into them.
const MOST_PIECES: usize = 256;

/// What a process that serves the table file warns of: what [`judge`] finds in the components, once each. What others claim has
/// been refused or warned of, as have sectors that are reached in two ways.
pub fn doubts(file: &TableFile, started: &[Started], read_only: bool) -> Vec<String> {
    let mut all = on_labels(file, read_only);
    let is_short = |device: &&Started| device.disk.chain().map.segments() <= MOST_PIECES;
    for device in started.iter().filter(|device| device.top).filter(is_short) {
        let described = described(device);
        all.extend(findings(&described.layout.pieces(&device.name, !described.read_only)));
    }
    let told = ["overlap", "mounted", "swap", "md", "lvm", "held", "loop"];
    all.retain(|finding| finding.severity >= Severity::Warn && !told.contains(&finding.id));
    let line = |finding: &Finding| match &finding.help {
        Some(help) => format!("{} [{}]; {help}", finding.text, finding.id),
        None => format!("{} [{}]", finding.text, finding.id),
    };
    all.iter().map(line).collect()
}

fn overlap(warning: &str) -> Finding {
    Finding {
        id: "overlap",
        severity: Severity::Refuse,
        text: warning.trim_end().trim_start_matches("warning: ").to_owned(),
        help: None,
    }
}

fn described(started: &Started) -> Described {
    let chain = started.disk.chain();
    let components = chain.components.iter().map(|(_, component)| component.path.clone()).collect();
    let (block_size, read_only) = (chain.map.limits().logical_block, chain.read_only);
    let layout = Assembled::new(chain).map(|disk| Layout::of(&disk)).unwrap_or_default();
    Described { name: started.name.clone(), block_size, read_only, components, layout }
}

/// What `findings` has of [`components`] that is warned of, without a list of them: it is in the way of a long table's start.
fn on_labels(file: &TableFile, read_only: bool) -> Vec<Finding> {
    let mut known = HashMap::new();
    let mut all = Vec::new();
    each_component(file, read_only, &mut |named| {
        let component =
            known.entry(&named.dev.text).or_insert_with(|| Known::of(&named.dev.text, named.dev.major_minor()));
        let finding = component.as_ref().and_then(|known| on_label(named.extent, known, &|| named.name(file)));
        all.extend(finding);
    });
    all
}

/// A component as a line names it.
struct Named<'a> {
    line: &'a Line,
    dev: &'a DevRef,
    extent: Extent,
    /// It is all that the line consists of.
    alone: bool,
}

impl Named<'_> {
    fn name(&self, file: &TableFile) -> String {
        let (number, _) = file.source.line_col(self.line.span.start);
        format!("line {number} ({})", self.dev.text)
    }
}

/// The components of all devices of a file, line by line; what they contain is looked at, or is not.
pub(crate) fn components(file: &TableFile, read_only: bool, look: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    each_component(file, read_only, &mut |named| {
        let Extent { start, len, at, write } = named.extent;
        pieces.push(Piece {
            name: named.name(file),
            path: Path::new(&named.dev.text).to_owned(),
            number: named.dev.major_minor(),
            start,
            len,
            at,
            write,
            room: None,
            inside: if look && named.alone { Inside::Look } else { Inside::Skip },
        });
    });
    pieces
}

/// Not those that are devices of the file themselves.
fn each_component<'a>(file: &'a TableFile, read_only: bool, visit: &mut dyn FnMut(Named<'a>)) {
    let names = file.mapper_names();
    for device in &file.devices {
        let write = !(read_only || device.read_only);
        for line in &device.table.lines {
            let mut add = |dev: &'a DevRef, start: Sectors, len: u64, alone: bool| {
                if names.get(dev).is_none() {
                    let extent = Extent { start: start.get(), len, at: line.start.get(), write };
                    visit(Named { line, dev, extent, alone });
                }
            };
            match &line.target {
                Target::Linear(linear) => add(&linear.dev, linear.start, line.len.get(), true),
                Target::Striped(striped) => {
                    let len = line.len.get() / (striped.stripes.len() as u64).max(1);
                    striped.stripes.iter().for_each(|stripe| add(&stripe.dev, stripe.start, len, false));
                }
                _ => {}
            }
        }
    }
}

impl Verdict {
    /// Of a text that is no table.
    pub fn unreadable(error: String) -> Verdict {
        Verdict { verdict: "refused", error: Some(error.trim_end().to_owned()), ..Verdict::default() }
    }

    /// Comes to the verdict itself.
    pub fn settled(mut self, judging: &Judging) -> Verdict {
        force(&mut self.findings, &judging.force.iter().cloned().collect::<BTreeSet<_>>());
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let worst = self.findings.first().map(|finding| finding.severity);
        self.verdict = match worst {
            _ if self.error.is_some() => "refused",
            Some(Severity::Refuse) => "refused",
            Some(Severity::Warn) => "warned",
            _ if !self.warnings.is_empty() => "warned",
            _ => "clean",
        };
        self
    }

    /// For people: the devices, then what speaks against them.
    pub fn human(&self) -> String {
        let mut text = self.text.clone();
        text.extend(self.overlay.iter().map(Checked::human));
        for finding in &self.findings {
            let kind = match finding.severity {
                Severity::Refuse => "refused",
                Severity::Warn => "warning",
                Severity::Note => "note",
            };
            text.push_str(&format!("{kind}[{}]: {}\n", finding.id, finding.text));
            text.extend(finding.help.iter().map(|help| format!("  = help: {help}\n")));
        }
        for warning in &self.warnings {
            let prefix = if warning.starts_with("warning") { "" } else { "warning: " };
            text.push_str(&format!("{prefix}{}\n", warning.trim_end()));
        }
        text
    }

    /// 0, 1 where something refuses, 3 where warnings count and there is one.
    pub fn status(&self, strict: bool) -> ExitCode {
        match self.verdict {
            "refused" => ExitCode::FAILURE,
            "warned" if strict => ExitCode::from(WARNED),
            _ => ExitCode::SUCCESS,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dm_table::{Format, Source, parse};

    use super::*;

    #[test]
    fn what_is_warned_of_when_serving_is_what_check_finds_besides_claims_and_overlaps() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        // A master boot record, whose first partition begins at sector 2048.
        let mut disk = vec![0; 4 << 20];
        disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(path("disk"), &disk).unwrap();
        std::fs::write(path("blank"), vec![0; 4 << 20]).unwrap();
        let (disk, blank, gone) = (path("disk"), path("blank"), path("gone"));
        let text = format!(
            "0 8 linear {blank} 0\n8 8 linear {disk} 0\n16 8 linear {disk} 2048\n24 8 linear {disk} 1\n32 8 linear {gone} 1\n\
             40 16 striped 2 8 {disk} 1 {blank} 8\n56 8 linear {blank} 0\n64 64 linear {disk} 64\n"
        );
        let file = parse(Arc::new(Source::new("t", text)), Format::Auto).unwrap();
        let warned_of = on_labels(&file, false);
        let mut found = findings(&components(&file, false, false));
        found.retain(|finding| finding.id != "overlap");
        assert_eq!(warned_of, found);
        assert_eq!(warned_of.len(), 3, "{warned_of:?}");
        assert!(warned_of[0].text.starts_with(&format!("line 2 ({disk}): ")), "{warned_of:?}");
        assert_eq!(on_labels(&file, true), []);
    }
}
