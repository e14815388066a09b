//! What speaks against making a disk of pieces.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use serde::Serialize;

use super::{Contents, Kind, look_at_path};
use crate::check::human;
use crate::device::{Identity, Survey, survey};

/// Every id that a finding can have.
pub const IDS: [&str; 11] = [
    "mounted",
    "swap",
    "md",
    "lvm",
    "held",
    "loop",
    "overlap",
    "nested-table",
    "label-area",
    "fs-too-large",
    // These only ever warn: hibernated systems, file systems that were not unmounted.
    "unclean",
];

/// Pieces whose contents are looked at; the rest of a very long table is not.
pub(super) const MOST_LOOKS: usize = 1024;

/// Findings of one kind; the rest is left out.
const MOST_OVERLAPS: usize = 8;

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
    /// What is given to `--force` so that it does not refuse: one of [`IDS`].
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, with the name of the piece: a sentence without a full stop.
    pub text: String,
    /// What would be better.
    pub help: Option<String>,
}

/// How what a piece contains is found.
#[derive(Clone, Debug, Default)]
pub enum Inside {
    /// It is looked at, at the piece's beginning.
    #[default]
    Look,
    /// The caller knows.
    Known(Contents),
    /// The piece goes on with what begins elsewhere.
    Skip,
}

/// A part of a file or device that is to be part of a disk.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// What messages call it, with its path: `root (/dev/sda3)`, `line 3 (disk.img)`.
    pub name: String,
    /// The file or device as the user wrote it. Empty for a piece of which only the contents count.
    pub path: PathBuf,
    /// Its number, where it was written as `major:minor`.
    pub number: Option<(u64, u64)>,
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
    /// What it contains.
    pub inside: Inside,
}

/// What is known of a component: looked up once, in however many pieces it is.
pub(super) struct Known {
    survey: Survey,
    /// Of the whole of it; nothing where that cannot be read.
    label: OnceCell<Option<Contents>>,
}

impl Known {
    /// Nothing where it cannot be found: opening it will say why.
    pub(super) fn of(text: &str, number: Option<(u64, u64)>) -> Option<Known> {
        Some(Known { survey: survey(text, number).ok()?, label: OnceCell::new() })
    }
}

/// Sectors of a component that are to be part of a disk: those of a [`Piece`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub start: u64,
    pub len: u64,
    pub at: u64,
    pub write: bool,
}

/// What speaks against a disk of these pieces: the worst first, then in the order of the pieces.
///
/// A piece that cannot be found or read has no findings: opening it will say why.
pub fn findings(pieces: &[Piece]) -> Vec<Finding> {
    let mut components = HashMap::new();
    for piece in pieces.iter().filter(|piece| !piece.path.as_os_str().is_empty()) {
        let known = || Known::of(piece.path.to_str()?, piece.number);
        components.entry((&piece.path, piece.number)).or_insert_with(known);
    }
    let known: Vec<(&Piece, Option<&Known>)> = pieces
        .iter()
        .map(|piece| (piece, components.get(&(&piece.path, piece.number)).and_then(Option::as_ref)))
        .collect();
    let mut all = Vec::new();
    let mut told = BTreeSet::new();
    for (piece, known) in known.iter().filter_map(|(piece, known)| Some((piece, (*known)?))) {
        // A device in use is that once, in however many pieces.
        if told.insert((&piece.path, piece.number, piece.write)) {
            in_use(piece, &known.survey, &mut all);
        }
        let extent = Extent { start: piece.start, len: piece.len, at: piece.at, write: piece.write };
        all.extend(on_label(extent, known, &|| piece.name.clone()));
    }
    let known: Vec<(&Piece, Option<&Survey>)> =
        known.into_iter().map(|(piece, known)| (piece, known.map(|known| &known.survey))).collect();
    overlaps(&known, &mut all);
    for (piece, survey) in known.iter().take(MOST_LOOKS) {
        let contents = match (&piece.inside, survey) {
            (Inside::Known(contents), _) => Some(contents.clone()),
            (Inside::Look, Some(survey)) => {
                look_at_path(&survey.path, piece.start.saturating_mul(512), piece.len.saturating_mul(512)).ok()
            }
            _ => None,
        };
        if let Some(contents) = contents {
            // What is mounted here is dirty because of that, and that is said already.
            let in_use = survey.is_some_and(|survey| !survey.uses.is_empty());
            inside(piece, &Contents { dirty: contents.dirty && !in_use, ..contents }, &mut all);
        }
    }
    all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    all
}

/// Makes warnings of the refusals that the user knows of.
pub fn force(findings: &mut [Finding], ids: &BTreeSet<String>) {
    for finding in findings.iter_mut().filter(|finding| ids.contains(finding.id)) {
        finding.severity = finding.severity.min(Severity::Warn);
    }
}

fn in_use(piece: &Piece, survey: &Survey, all: &mut Vec<Finding>) {
    for its in survey.uses.iter().filter(|its| piece.write || its.writes) {
        let (severity, consequence) = match piece.write {
            true => (Severity::Refuse, "two that write it destroy it"),
            false => (Severity::Warn, "it may change while the guest reads it"),
        };
        all.push(Finding {
            id: its.id,
            severity,
            text: format!("{}: {}: {consequence}", piece.name, its.what),
            help: Some(format!(
                "`{}` first, or let the guest have it read-only (--read-only), or mount it read-only and serve it with \
                 --overlay=tmp or --overlay=COWFILE, which keeps what the guest writes elsewhere",
                its.release
            )),
        });
    }
}

/// dm(4) of NetBSD: who maps a whole disk must leave its disklabel alone. `name` is what messages call the piece.
pub(super) fn on_label(extent: Extent, known: &Known, name: &dyn Fn() -> String) -> Option<Finding> {
    let survey = &known.survey;
    // Where the disk is passed on as it is, the label is the guest's own.
    if !extent.write || survey.whole.is_some() || extent.at == extent.start {
        return None;
    }
    let size = survey.size?.bytes();
    let label = known.label.get_or_init(|| look_at_path(&survey.path, 0, size).ok()).as_ref()?;
    let end = extent.start.saturating_add(extent.len);
    let backup = label.reserved_end > 0 && end > (size / 512).saturating_sub(label.reserved_end);
    let (where_, help) = if extent.start < label.reserved {
        let help = format!("begin at sector {} of it at least, or take one of its partitions", label.reserved);
        (format!("sectors {}..{}", extent.start, label.reserved), help)
    } else if backup {
        ("the sectors at the end with the backup".into(), "end before them, or take one of its partitions".to_owned())
    } else {
        return None;
    };
    Some(Finding {
        id: "label-area",
        severity: Severity::Refuse,
        text: format!("{}: a guest could write the {} of that disk in {where_}", name(), label.kind.name()),
        help: Some(help),
    })
}

/// A range of a medium, under the whole disk where it is a partition.
struct Range<'a> {
    medium: Identity,
    start: u64,
    end: u64,
    piece: &'a Piece,
}

fn overlaps(known: &[(&Piece, Option<&Survey>)], all: &mut Vec<Finding>) {
    let range = |(piece, survey): &(&'_ Piece, Option<&Survey>)| {
        let survey = (*survey)?;
        let (medium, offset) = survey.whole.unwrap_or((survey.identity, 0));
        let start = offset.checked_add(piece.start)?;
        Some((medium, start, start.checked_add(piece.len)?))
    };
    let mut ranges: Vec<Range<'_>> = known
        .iter()
        .filter_map(|known| range(known).map(|(medium, start, end)| Range { medium, start, end, piece: known.0 }))
        .collect();
    let order = |identity: &Identity| match identity {
        Identity::File { dev, inode } => (0, *dev, *inode),
        Identity::Block { rdev } => (1, *rdev, 0),
    };
    ranges.sort_by_key(|range| (order(&range.medium), range.start));
    let mut furthest: Option<&Range<'_>> = None;
    let mut count = 0;
    for range in &ranges {
        let before = furthest.filter(|before| before.medium == range.medium);
        if let Some(before) = before.filter(|before| before.end > range.start) {
            count += 1;
            if count <= MOST_OVERLAPS {
                all.push(overlap(before, range));
            }
        }
        if before.is_none_or(|before| range.end > before.end) {
            furthest = Some(range);
        }
    }
}

fn overlap(before: &Range<'_>, range: &Range<'_>) -> Finding {
    let write = before.piece.write || range.piece.write;
    let sectors = before.end.min(range.end) - range.start;
    let (one, other) = (&before.piece.name, &range.piece.name);
    Finding {
        id: "overlap",
        severity: if write { Severity::Refuse } else { Severity::Note },
        text: format!("{one} and {other} have {sectors} sectors of one medium in common"),
        help: write.then(|| "give each its own sectors, or let the guest have both read-only".to_owned()),
    }
}

fn inside(piece: &Piece, contents: &Contents, all: &mut Vec<Finding>) {
    let name = &piece.name;
    let what = contents.kind.name();
    if contents.kind.is_partition_table() && piece.at > 0 {
        all.push(Finding {
            id: "nested-table",
            severity: Severity::Refuse,
            text: format!("{name}: it has a {what} of its own, so the guest would see a disk within its disk"),
            help: Some("take one of its partitions, for example with @SECTOR+COUNT".into()),
        });
    }
    let room = piece.room.unwrap_or(piece.len).saturating_mul(512);
    if let Some(size) = contents.size.filter(|size| *size > room && !contents.kind.is_partition_table()) {
        all.push(Finding {
            id: "fs-too-large",
            severity: Severity::Refuse,
            text: format!(
                "{name}: its {what} has {} and the piece {}: the rest would be missing",
                human(size),
                human(room)
            ),
            help: Some(format!("make the piece {} sectors long, or shrink the file system first", size.div_ceil(512))),
        });
    }
    let (why, help) = match (contents.hibernated, contents.kind) {
        (true, Kind::Ntfs) => (
            "Windows hibernated, and thinks that it still has it mounted",
            "boot that Windows and shut it down (`shutdown /s /f /t 0`, fast start-up off)",
        ),
        (true, _) => ("a system hibernated into it", "wake and shut that system down"),
        _ if contents.dirty => {
            ("it was not cleanly unmounted, or is in use", "unmount it where it is mounted, or check it (fsck, chkdsk)")
        }
        _ => return,
    };
    all.push(Finding {
        id: "unclean",
        severity: Severity::Warn,
        text: format!("{name}: {what}: {why}"),
        help: Some(help.into()),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MiB with nothing but the header of a GPT in block 1, which says where its entries begin and how many there are.
    fn gpt(block: usize, entries_at: u64, number: u32) -> tempfile::NamedTempFile {
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        header[32..40].copy_from_slice(&((1 << 20) / block as u64 - 1).to_le_bytes());
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80..84].copy_from_slice(&number.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let sum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let mut disk = vec![0; 1 << 20];
        disk[block..block + 92].copy_from_slice(&header);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), disk).unwrap();
        file
    }

    #[test]
    fn the_header_of_a_gpt_is_its_own_wherever_it_says_that_its_entries_are() {
        let cases: [(usize, u64, u32, u64, u64); 9] = [
            (512, 2, 128, 34, 33),
            (512, 2, 0, 2, 1),
            (512, 1, 0, 2, 1),
            (512, 0, 0, 2, 1),
            (512, 0, 1, 2, 2),
            // More than are read.
            (512, 2, 256, 66, 65),
            // Moved away from the header, as sgdisk -j does.
            (512, 102, 128, 134, 33),
            (4096, 2, 128, 48, 40),
            (4096, 2, 1, 24, 16),
        ];
        for (block, entries_at, number, reserved, at_end) in cases {
            let file = gpt(block, entries_at, number);
            let known = Known::of(file.path().to_str().unwrap(), None).unwrap();
            let found = |start, len| {
                let extent = Extent { start, len, at: start + 1, write: true };
                on_label(extent, &known, &|| "a".into()).map(|found| found.text)
            };
            let first = found(1, 1).unwrap_or_else(|| panic!("{entries_at} {number}"));
            assert!(first.ends_with(&format!("sectors 1..{reserved}")), "{first}");
            assert_eq!(found(reserved, 64), None, "{entries_at} {number}");
            // The copy of the header, and of the entries.
            let last = found(1900, 148 - (at_end - 1));
            assert!(last.is_some_and(|last| last.contains("backup")), "{block} {entries_at} {number}");
            assert_eq!(found(1900, 148 - at_end), None, "{block} {entries_at} {number}");
        }
    }
}
