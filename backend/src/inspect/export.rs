//! `vhost-user-dm export`: the bytes of a disk as a sparse file, and their digest.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use dm_table::{SECTOR_SIZE, Sectors};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};

use super::Assembled;
use crate::map::{DevIx, Step};

/// Bytes that are read at a time.
const WINDOW: u64 = 4 << 20;
/// Blocks that are left out of the file where they are all zero.
const BLOCK: usize = 4096;

/// What becomes of segments that fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Errors {
    /// They refuse the export
    #[default]
    Refuse,
    /// They become zeroes
    Zero,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A file to make.
    pub to: Option<PathBuf>,
    /// Whether to sum.
    pub sha256: bool,
    /// Segments that fail.
    pub errors: Errors,
    /// Whether to show on a terminal how far it is.
    pub progress: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes written to the file; the rest are holes.
    pub written: u64,
    /// Hexadecimal.
    pub sha256: Option<String>,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Sectors that fail.
    #[error("{}: these cannot be read by anybody", Ranges(.0))]
    Failing(Vec<(u64, u64)>),
    /// The file cannot be made.
    #[error("{}: {what}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A component cannot be read.
    #[error("{0}")]
    Input(io::Error),
}

/// Sector ranges, of a long list the first.
struct Ranges<'a>(&'a [(u64, u64)]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 8;
        let some: Vec<String> = self.0.iter().take(MOST).map(|(start, end)| format!("{start}..{end}")).collect();
        let more =
            if self.0.len() > MOST { format!(" and {} more ranges", self.0.len() - MOST) } else { String::new() };
        write!(f, "sectors {}{more} are error segments", some.join(", "))
    }
}

impl ExportError {
    /// What would work.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            ExportError::Failing(_) => Some("--errors=zero puts zeroes in their place"),
            ExportError::Output { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                Some("nothing is written over: remove it first, or name another file")
            }
            _ => None,
        }
    }
}

/// Reads all of a disk.
///
/// # Errors
/// See [`ExportError`]; a file that was begun is removed.
pub fn export(disk: &Assembled, options: &Options) -> Result<Report, ExportError> {
    if options.errors == Errors::Refuse {
        let failing = failing(disk);
        if !failing.is_empty() {
            return Err(ExportError::Failing(failing));
        }
    }
    let Some(path) = &options.to else { return copy(disk, None, options) };
    let output = |what, source| ExportError::Output { path: path.clone(), what, source };
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    let file = made.map_err(|source| output("cannot be made", source))?;
    let sized = file.set_len(disk.size()).map_err(|source| output("cannot have the disk's size", source));
    let report = sized.and_then(|()| copy(disk, Some((path, &file)), options));
    let report = report.and_then(|report| file.sync_all().map(|()| report).map_err(|e| output("cannot be synced", e)));
    if report.is_err() {
        let _ = fs::remove_file(path);
    }
    report
}

/// The sectors that fail, neighbours together.
fn failing(disk: &Assembled) -> Vec<(u64, u64)> {
    let mut failing: Vec<(u64, u64)> = Vec::new();
    let map = &disk.chain().map;
    // Only where a segment is, or may be, one: a long striped disk has a piece for every chunk.
    for place in map.places().filter(|place| matches!(place.target, "error" | "striped")) {
        map.pieces(Sectors::new(place.start), Sectors::new(place.len), &mut |piece| {
            let start = place.start + piece.skip.get();
            let end = start + piece.len.get();
            match (piece.step, failing.last_mut()) {
                (Step::Error, Some((_, last))) if *last == start => *last = end,
                (Step::Error, _) => failing.push((start, end)),
                _ => {}
            }
        });
    }
    failing
}

fn copy(disk: &Assembled, to: Option<(&Path, &File)>, options: &Options) -> Result<Report, ExportError> {
    let bar = if options.progress { ProgressBar::new(disk.size()) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut sum = options.sha256.then(Sha256::new);
    let mut reader = Reader { disk, extents: HashMap::new() };
    let mut window = vec![0; WINDOW.min(disk.size()) as usize];
    let (mut at, mut written) = (0, 0);
    while at < disk.size() {
        let len = WINDOW.min(disk.size() - at) as usize;
        let part = window.get_mut(..len).unwrap_or_default();
        let has_data = reader.fill(at, part, options.errors).map_err(ExportError::Input)?;
        if let Some(sum) = &mut sum {
            sum.update(&*part);
        }
        if let Some((path, file)) = to.filter(|_| has_data) {
            let failed = |source| ExportError::Output { path: path.to_owned(), what: "cannot be written", source };
            written += write_data(file, at, part).map_err(failed)?;
        }
        at += len as u64;
        bar.set_position(at);
    }
    bar.finish_and_clear();
    let sha256 = sum.map(|sum| sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
    Ok(Report { size: disk.size(), written, sha256 })
}

/// Writes the blocks that are not all zero, neighbours together. Tells how many bytes that is.
fn write_data(file: &File, at: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let mut begin = None;
    let ends = (0..=bytes.len()).step_by(BLOCK);
    for start in ends {
        let block = bytes.get(start..bytes.len().min(start + BLOCK)).unwrap_or_default();
        let is_data = block.iter().any(|byte| *byte != 0);
        match (begin, is_data) {
            (None, true) => begin = Some(start),
            (Some(from), false) => {
                file.write_all_at(&bytes[from..start], at + from as u64)?;
                written += (start - from) as u64;
                begin = None;
            }
            _ => {}
        }
    }
    if let Some(from) = begin {
        file.write_all_at(&bytes[from..], at + from as u64)?;
        written += (bytes.len() - from) as u64;
    }
    Ok(written)
}

struct Reader<'a> {
    disk: &'a Assembled,
    /// Of each component, the range that was asked for last: its end, and whether it holds data.
    extents: HashMap<DevIx, (u64, u64, bool)>,
}

impl Reader<'_> {
    /// Fills a window, and tells whether it may hold anything but zeroes.
    fn fill(&mut self, at: u64, window: &mut [u8], errors: Errors) -> io::Result<bool> {
        window.fill(0);
        let len = Sectors::new(window.len() as u64 / SECTOR_SIZE);
        let mut has_data = false;
        let mut result = Ok(());
        let map = self.disk.chain().map.clone();
        map.pieces(Sectors::new(at / SECTOR_SIZE), len, &mut |piece| {
            let (from, len) = (piece.skip.bytes() as usize, piece.len.bytes() as usize);
            let Some(part) = window.get_mut(from..from + len).filter(|_| result.is_ok()) else { return };
            match piece.step {
                Step::Zero => {}
                Step::Device { dev, at } => match self.read(dev, at.bytes(), part) {
                    Ok(data) => has_data |= data,
                    Err(error) => result = Err(error),
                },
                Step::Target { .. } => {
                    result = Err(io::Error::other("a stateful target, which is read by a guest only"))
                }
                Step::Error if errors == Errors::Zero => {}
                Step::Error => result = Err(io::Error::other("an error segment")),
            }
        });
        result.map(|()| has_data)
    }

    /// Reads what is no hole.
    fn read(&mut self, dev: DevIx, at: u64, part: &mut [u8]) -> io::Result<bool> {
        let mut data = false;
        let mut done = 0;
        while done < part.len() {
            let here = at + done as u64;
            let (end, is_data) = self.extent(dev, here)?;
            let len = usize::try_from(end - here).unwrap_or(usize::MAX).min(part.len() - done);
            if let Some(rest) = part.get_mut(done..done + len).filter(|_| is_data) {
                // Extents are whole bytes of a file; sectors are read.
                self.disk.read_component(dev, Sectors::new(here / SECTOR_SIZE), rest)?;
                data = true;
            }
            done += len;
        }
        Ok(data)
    }

    /// Where the data or the hole ends that is at a byte of a component, in whole sectors. What cannot tell is all data.
    fn extent(&mut self, dev: DevIx, at: u64) -> io::Result<(u64, bool)> {
        if let Some((start, end, is_data)) = self.extents.get(&dev)
            && (*start..*end).contains(&at)
        {
            return Ok((*end, *is_data));
        }
        let file = self.disk.file(dev)?;
        let seek = |from| rustix::fs::seek(file, from);
        let round = |end: u64| end / SECTOR_SIZE * SECTOR_SIZE;
        let (end, is_data) = match seek(SeekFrom::Data(at)) {
            Ok(data) if round(data) > at => (round(data), false),
            // There is no more data.
            Err(rustix::io::Errno::NXIO) => (u64::MAX, false),
            Ok(_) => match seek(SeekFrom::Hole(at)) {
                Ok(hole) => (hole.next_multiple_of(SECTOR_SIZE).max(at + SECTOR_SIZE), true),
                Err(_) => (u64::MAX, true),
            },
            Err(_) => (u64::MAX, true),
        };
        self.extents.insert(dev, (at, end, is_data));
        Ok((end, is_data))
    }
}
