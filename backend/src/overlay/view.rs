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
use crate::device::Component;
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
    let Some(read) = reading(mapper, path).map_err(|error| error.told())? else { return Ok((viewed, warnings)) };
    let disk = base::assembled(mapper, &split).map_err(|error| error.told())?;
    belongs(&read.kept, &disk, force, &mut warnings).map_err(|error| error.told())?;
    if let Some(chain) = stack(mapper, &split, name, &read, &mut warnings)? {
        viewed.chain = chain;
    }
    Ok((viewed, warnings))
}

/// An overlay that nobody writes as long as this is there.
struct Read {
    kept: Kept,
    // The registry knows of an opening only while somebody has it, and its locks go with it.
    component: Arc<Component>,
}

/// Puts what is in an overlay over its base, if there is anything.
fn stack(
    mapper: &Mapper,
    split: &Split,
    name: &str,
    Read { kept, component }: &Read,
    warnings: &mut Vec<String>,
) -> Result<Option<Arc<Chain>>, String> {
    let Head::Store { chunk, .. } = kept.head else { return Ok(None) };
    let wrong = |source| OverlayError::System { path: kept.path.clone(), what: "cannot be read", source }.told();
    let runs = runs(kept, split.sectors, chunk).map_err(wrong)?;
    let top = table(split, &runs, &kept.path.to_string_lossy());
    warnings.extend(mapper.start(&top, name).map_err(|diagnostic| diagnostic.to_string())?);
    let chain = base::chain(mapper, split.top.name.as_deref().unwrap_or(name)).map_err(|error| error.told())?;
    // The table names it by its path, and that may lead to another file by now.
    let is_there = chain.components.iter().any(|(_, its)| its.identity == component.identity);
    match is_there || runs.is_empty() {
        true => Ok(Some(chain)),
        false => Err(wrong(replaced())),
    }
}

fn replaced() -> io::Error {
    io::Error::other("it was just replaced")
}

/// What is there, with the locks of a reader. Nothing where it is to be made.
fn reading(mapper: &Mapper, path: &Path) -> Result<Option<Read>, OverlayError> {
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
        true => Ok(Some(Read { kept, component })),
        false => Err(wrong(replaced())),
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
    let device = Device { name_span: NOWHERE, table: Arc::new(Table { lines }), read_only: true, ..split.top.clone() };
    TableFile { source: Arc::new(Source::new("--overlay", "")), devices: vec![device] }
}

#[cfg(test)]
mod tests {

    use dm_table::Format;

    use super::*;
    use crate::device::{Options, Registry};
    use crate::mapper::Settings;
    use crate::targets::snapshot::format::{Entry, Header};
    use crate::worker::pool::{Pool, WorkerSettings};

    fn mapper() -> Arc<Mapper> {
        let components = Options { read_only: true, ..Options::default() };
        let settings = Settings { components, ..Settings::default() };
        Mapper::new(settings, Registry::new(), Arc::new(Pool::new(0, WorkerSettings::default())), None)
    }

    /// A store that has the second chunk of its disk.
    fn store() -> Vec<u8> {
        let mut bytes = vec![7; 1 << 18];
        bytes[..2 * 4096].fill(0);
        bytes[..16].copy_from_slice(&Header { valid: true, version: 1, chunk: 8 }.bytes());
        bytes[4096..][..16].copy_from_slice(&Entry { old: 1, new: 2 }.bytes());
        bytes
    }

    /// What is read of an overlay is read under the locks of a reader, up to the table that is made of it.
    #[test]
    fn nobody_writes_an_overlay_while_its_table_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (base, cow) = (dir.path().join("base"), dir.path().join("cow"));
        std::fs::write(&base, vec![1; 32 << 10]).unwrap();
        std::fs::write(&cow, store()).unwrap();
        let text = format!("0 64 linear {} 0\n", base.display());
        let file = dm_table::parse(Arc::new(Source::new("test", text)), Format::Auto).unwrap();
        let split = base::split(&file, "disk", None, true).unwrap();
        let stranger = mapper();
        let writes = || stranger.hold(cow.to_str().unwrap(), false).is_ok();
        for replaced in [false, true] {
            let mapper = mapper();
            mapper.start(&split.file, "disk").unwrap();
            let read = reading(&mapper, &cow).unwrap().unwrap();
            assert!(!writes(), "a stranger has it for writing while it is read");
            if replaced {
                std::fs::write(dir.path().join("other"), store()).unwrap();
                std::fs::rename(dir.path().join("other"), &cow).unwrap();
            }
            let stacked = stack(&mapper, &split, "disk", &read, &mut Vec::new());
            drop(read);
            match stacked {
                Ok(stacked) => {
                    let chain = stacked.expect("it has a chunk");
                    assert!(!replaced && !writes() && chain.components.iter().count() == 2);
                }
                Err(why) => assert!(replaced && why.contains("it was just replaced"), "{why}"),
            }
        }
    }
}
