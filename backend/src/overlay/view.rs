//! A disk with its overlay, to be read without a guest.
//!
//! To who only reads it an overlay is a table: `linear` segments of the base, and in their midst those of the overlay's file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use dm_table::{DevRef, Device, Line, Linear, Sectors, Source, Span, Table, TableFile, Target};

use super::base::Split;
use super::kept::{Head, Kept};
use super::{Overlay, OverlayError, base, belongs};
use crate::chain::Chain;
use crate::mapper::Mapper;

/// Segments that such a table may have: as many as any.
const MOST: usize = 1 << 20;
/// What stands in no text has no place in one.
const NOWHERE: Span = Span { start: 0, end: 0 };

/// A disk that is read.
pub struct Viewed {
    /// Its name.
    pub name: String,
    /// What a guest would read.
    pub chain: Arc<Chain>,
    /// The disk below, whose segments are those that somebody wrote.
    pub below: Arc<Chain>,
}

/// Opens a disk and its overlay for reading, as other readers may have them; one that is to be made has nothing in it yet. The
/// mapper is to open everything read-only. What is doubtful is returned.
///
/// # Errors
/// Why not, for the user.
pub fn view(
    mapper: &Mapper,
    (file, name): (&TableFile, &str),
    (overlay, device, force): (&Overlay, Option<&str>, &[String]),
) -> Result<(Viewed, Vec<String>), String> {
    let split = base::split(file, name, device, true).map_err(|error| OverlayError::from(error).told())?;
    let mut warnings = mapper.start(&split.file, name).map_err(|diagnostic| diagnostic.to_string())?;
    let below = base::chain(mapper, &split.base_name).map_err(|error| error.told())?;
    let mut viewed = Viewed { name: split.shown.clone(), chain: below.clone(), below };
    let Overlay::Kept(path) = overlay else { return Ok((viewed, warnings)) };
    let Some(kept) = reading(mapper, path).map_err(|error| error.told())? else { return Ok((viewed, warnings)) };
    let disk = base::assembled(mapper, &split).map_err(|error| error.told())?;
    belongs(&kept, &disk, force, &mut warnings).map_err(|error| error.told())?;
    if let Head::Store { chunk, .. } = kept.head {
        let wrong = |source| OverlayError::System { path: path.clone(), what: "cannot be read", source }.told();
        let runs = runs(&kept, split.sectors, chunk).map_err(wrong)?;
        let top = table(&split, &runs, &kept.path.to_string_lossy());
        warnings.extend(mapper.start(&top, name).map_err(|diagnostic| diagnostic.to_string())?);
        let shown = split.top.name.as_deref().unwrap_or(name);
        viewed.chain = base::chain(mapper, shown).map_err(|error| error.told())?;
    }
    Ok((viewed, warnings))
}

/// What is there, with the locks of a reader. Nothing where it is to be made.
fn reading(mapper: &Mapper, path: &Path) -> Result<Option<Kept>, OverlayError> {
    let looked = match Kept::open(path, false) {
        Err(OverlayError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        looked => looked?,
    };
    if looked.size == 0 {
        return Ok(None);
    }
    let text = looked.path.to_str().ok_or_else(|| OverlayError::NotOne {
        path: path.to_owned(),
        why: "is no UTF-8, and a table cannot name it",
    })?;
    let component = mapper.hold(text, true).map_err(OverlayError::Open)?;
    let kept = Kept::open(path, false)?;
    let wrong = |source| OverlayError::System { path: path.to_owned(), what: "cannot be looked at", source };
    match kept.identity().map_err(wrong)? == component.identity {
        true => Ok(Some(kept)),
        false => Err(wrong(io::Error::other("it was just replaced"))),
    }
}

/// Sectors of the disk that lie in the store, in their order: first sector, length, first sector in the store.
fn runs(kept: &Kept, sectors: u64, chunk: u64) -> io::Result<Vec<(u64, u64, u64)>> {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    let join = |last: &mut (u64, u64, u64), (old, len, new): (u64, u64, u64)| {
        let joins = last.0 + last.1 == old && last.2 + last.1 == new;
        last.1 += if joins { len } else { 0 };
        joins
    };
    kept.each(&mut |entry| {
        let old = entry.old.saturating_mul(chunk);
        let run = (old, chunk.min(sectors.saturating_sub(old)), entry.new * chunk);
        let joined = runs.last_mut().is_some_and(|last| join(last, run));
        // One too many, to be told of.
        if run.1 > 0 && !joined && runs.len() <= MOST {
            runs.push(run);
        }
    })?;
    runs.sort_unstable();
    runs.dedup_by(|next, last| join(last, *next));
    if runs.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk of the disk is in it twice"));
    }
    match runs.len() {
        // As many of the base lie between them.
        pieces @ ..MOST if 2 * pieces < MOST => Ok(runs),
        _ => {
            Err(io::Error::other("what is in it is in too many pieces for a table; serve it, and read it from a guest"))
        }
    }
}

fn table(split: &Split, runs: &[(u64, u64, u64)], cow: &str) -> TableFile {
    let base = format!("/dev/mapper/{}", split.base_name);
    let mut lines = Vec::new();
    let mut add = |start: u64, len: u64, text: &str, at: u64| {
        let dev = DevRef { span: NOWHERE, text: text.to_owned() };
        let linear = Linear { dev, start: Sectors::new(at), start_span: NOWHERE };
        lines.push(Line {
            start: Sectors::new(start),
            len: Sectors::new(len),
            target: Target::Linear(linear),
            span: NOWHERE,
            start_span: NOWHERE,
            len_span: NOWHERE,
            type_span: NOWHERE,
        });
    };
    let mut at = 0;
    for (start, len, there) in runs {
        if *start > at {
            add(at, start - at, &base, at);
        }
        add(*start, *len, cow, *there);
        at = start + len;
    }
    if at < split.sectors {
        add(at, split.sectors - at, &base, at);
    }
    let device = Device { name_span: NOWHERE, table: Table { lines }, read_only: true, ..split.top.clone() };
    TableFile { source: Arc::new(Source::new("--overlay", "")), devices: vec![device] }
}
