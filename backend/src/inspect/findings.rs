//! What speaks against making a disk of pieces.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::Contents;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It may go wrong, and often does not.
    Warn,
    /// It destroys data, or cannot work.
    Refuse,
}

/// Something that speaks against a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is given to `--force` so that it does not refuse.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, with the name of the piece: a sentence without a full stop.
    pub text: String,
    /// What would be better.
    pub help: Option<String>,
}

/// A part of a file or device that is to be part of a disk.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// What messages call it: `root`, `line 3`. With the path.
    pub name: String,
    /// The file or device.
    pub path: PathBuf,
    /// Its first sector on that.
    pub start: u64,
    /// Its length in sectors.
    pub len: u64,
    /// Its first sector on the disk.
    pub at: u64,
    /// Whether the guest may write it.
    pub write: bool,
    /// Sectors that a file system which begins with the piece may have, where what follows on the disk continues it.
    /// Otherwise its length.
    pub room: Option<u64>,
    /// What it contains, where the caller knows.
    pub contents: Option<Contents>,
}

/// What speaks against a disk of these pieces: the worst first, then in the order of the pieces.
pub fn findings(pieces: &[Piece]) -> Vec<Finding> {
    let _ = pieces;
    Vec::new()
}

/// Makes warnings of the refusals that the user knows of.
pub fn force(findings: &mut [Finding], ids: &BTreeSet<String>) {
    for finding in findings.iter_mut().filter(|finding| ids.contains(finding.id)) {
        finding.severity = finding.severity.min(Severity::Warn);
    }
}
