//! From a log to the disk as it was at some point of it.

use std::fmt;
use std::io;
use std::str::FromStr;

use super::{At, Flags, Image, Log, LogError, cut};

/// Bytes that are copied at a time.
const WINDOW: u64 = 1 << 20;
/// Marks that are named where one is not found.
const MOST_MARKS: usize = 8;

/// A point of a log, behind an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// Behind the first mark of that name.
    Mark(String),
    /// Behind the flush of that number, counted from 1.
    Flush(u64),
    /// Behind the entry of that number, counted from 0 as `replay-log` does.
    Entry(u64),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Until, String> {
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| format!("{digits:?} is no number"));
        match text.split_once(':') {
            Some(("mark", "")) => Err("a mark has a name".into()),
            Some(("mark", name)) => Ok(Until::Mark(name.into())),
            Some(("flush", digits)) => match number(digits)? {
                0 => Err("flushes are counted from 1".into()),
                number => Ok(Until::Flush(number)),
            },
            Some(("entry", digits)) => number(digits).map(Until::Entry),
            _ => Err("mark:NAME, flush:N (from 1) or entry:N (from 0)".into()),
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Until::Mark(name) => write!(f, "mark:{name}"),
            Until::Flush(number) => write!(f, "flush:{number}"),
            Until::Entry(number) => write!(f, "entry:{number}"),
        }
    }
}

/// How far a walk through a log has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Points {
    /// Entries.
    pub entries: u64,
    /// Flushes.
    pub flushes: u64,
    /// The last mark, as it can be shown.
    pub mark: String,
    // The last entry is that mark; its bytes.
    now: Option<Vec<u8>>,
}

impl Points {
    /// Behind the next entry.
    pub(super) fn pass(&mut self, log: &Log<'_>, entry: &At) -> Result<(), LogError> {
        self.entries += 1;
        self.flushes += u64::from(entry.header.flags.has(Flags::FLUSH));
        self.now = None;
        if entry.header.flags.has(Flags::MARK) {
            // It is a string of C for those who write it.
            let mut text = log.text(entry)?;
            text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
            self.mark = String::from_utf8_lossy(&text).chars().filter(|c| !c.is_control()).collect();
            self.now = Some(text);
        }
        Ok(())
    }

    /// Whether that is the point.
    fn is(&self, entry: &At, block: u32, point: &Until) -> bool {
        match point {
            Until::Mark(name) => self.now.as_deref() == Some(cut(name, block)),
            Until::Flush(number) => entry.header.flags.has(Flags::FLUSH) && self.flushes == *number,
            Until::Entry(number) => entry.number == *number,
        }
    }
}

/// Why a log is not replayed, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is no such point.
    #[error("{point}: there is none in this log, which has {has}")]
    NoPoint {
        /// What was asked for.
        point: Until,
        /// What there is.
        has: String,
    },
    /// What it begins behind is not before what it ends behind.
    #[error("{until} is not behind {from} in this log")]
    Order {
        /// Where it begins.
        from: Until,
        /// Where it ends.
        until: Until,
    },
    /// An entry goes beyond the image. Nothing was written.
    #[error("entry {entry}, at byte {at} of the log: it is about bytes {first}..{end}, and the image has {size}")]
    Beyond {
        /// Its number.
        entry: u64,
        /// Where it is in the log, in bytes.
        at: u64,
        /// First byte of the image.
        first: u64,
        /// The byte behind the last.
        end: u64,
        /// Bytes of the image.
        size: u64,
    },
    /// The image cannot be written.
    #[error("entry {entry}: the image cannot be written at byte {at}: {source}")]
    Image {
        /// The entry.
        entry: u64,
        /// Where in the image.
        at: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// Who looks at the points wants no more.
    #[error("{0}")]
    Stopped(String),
}

/// Who looks at an image behind an entry that was replayed to it.
pub type Behind<'a> = &'a mut dyn FnMut(&mut dyn Image, &At, &Points) -> Result<(), ReplayError>;

/// What to replay.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// The image is as it was behind this point; by default as before the first entry.
    pub from: Option<Until>,
    /// The last entry; by default the log's.
    pub until: Option<Until>,
    /// Discards do nothing; by default they leave zeroes.
    pub no_discard: bool,
}

/// What a replay comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries that are passed over.
    pub skip: u64,
    /// Entries that are replayed, behind those.
    pub entries: u64,
    /// Bytes of their data.
    pub bytes: u64,
}

impl Replay {
    /// Reads the entries' numbers, as far as they are wanted, and finds what speaks against a replay to `size` bytes.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub fn plan(&self, log: &Log<'_>, size: u64) -> Result<Plan, ReplayError> {
        let mut plan = Plan::default();
        let mut points = Points::default();
        let mut marks: Vec<String> = Vec::new();
        let (mut begun, mut ended) = (self.from.is_none(), false);
        for entry in log.entries() {
            let entry = entry?;
            points.pass(log, &entry)?;
            if entry.header.flags.has(Flags::MARK) && marks.len() <= MOST_MARKS {
                marks.push(points.mark.clone());
            }
            let is =
                |point: &Option<Until>| point.as_ref().is_some_and(|point| points.is(&entry, log.head.block, point));
            if begun {
                plan.count(&entry, size)?;
            } else {
                plan.skip += 1;
                begun = is(&self.from);
            }
            ended = is(&self.until);
            if ended {
                break;
            }
        }
        let has = || format!("{} entries, {} flushes and {}", points.entries, points.flushes, named(&marks));
        match (&self.from, &self.until) {
            (Some(from), Some(until)) if ended && !begun => {
                Err(ReplayError::Order { from: from.clone(), until: until.clone() })
            }
            (_, Some(point)) if !ended => Err(ReplayError::NoPoint { point: point.clone(), has: has() }),
            (Some(point), _) if !begun => Err(ReplayError::NoPoint { point: point.clone(), has: has() }),
            _ => Ok(plan),
        }
    }

    /// Does what [`Replay::plan`] found possible. `behind` is called behind each entry that was replayed.
    ///
    /// # Errors
    /// See [`ReplayError`]; those of `behind`.
    pub fn run(
        &self,
        log: &Log<'_>,
        plan: &Plan,
        image: &mut dyn Image,
        behind: Behind<'_>,
    ) -> Result<Points, ReplayError> {
        let mut points = Points::default();
        for entry in log.entries() {
            if points.entries >= plan.skip.saturating_add(plan.entries) {
                break;
            }
            let entry = entry?;
            points.pass(log, &entry)?;
            if points.entries > plan.skip {
                // The log may be written to while it is read.
                Plan::default().count(&entry, image.size())?;
                self.apply(log, &entry, image)?;
                behind(image, &entry, &points)?;
            }
        }
        Ok(points)
    }

    fn apply(&self, log: &Log<'_>, entry: &At, image: &mut dyn Image) -> Result<(), ReplayError> {
        let (at, len) = entry.range();
        let failed = |at| move |source| ReplayError::Image { entry: entry.number, at, source };
        if entry.header.flags.has(Flags::DISCARD) {
            return if self.no_discard { Ok(()) } else { image.discard(at, len).map_err(failed(at)) };
        }
        let mut window = vec![0; len.min(WINDOW) as usize];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(WINDOW) as usize;
            let bytes = window.get_mut(..part).unwrap_or_default();
            log.data(entry, done, bytes)?;
            image.write(at + done, bytes).map_err(failed(at + done))?;
            done += part as u64;
        }
        Ok(())
    }
}

impl Plan {
    fn count(&mut self, entry: &At, size: u64) -> Result<(), ReplayError> {
        self.entries += 1;
        let (first, len) = entry.range();
        if len == 0 {
            return Ok(());
        }
        let end = first.saturating_add(len);
        if end > size {
            return Err(ReplayError::Beyond { entry: entry.number, at: entry.at, first, end, size });
        }
        if !entry.header.flags.has(Flags::DISCARD) {
            self.bytes = self.bytes.saturating_add(len);
        }
        Ok(())
    }
}

fn named(marks: &[String]) -> String {
    let more = if marks.len() > MOST_MARKS { ", ..." } else { "" };
    match marks {
        [] => "no mark".into(),
        some => format!("the marks {}{more}", some.iter().take(MOST_MARKS).cloned().collect::<Vec<_>>().join(", ")),
    }
}
