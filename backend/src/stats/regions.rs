//! The regions of a device, and the messages that make and read them: `@stats_create`, `@stats_delete`, `@stats_clear`,
//! `@stats_list`, `@stats_print`, `@stats_print_clear`, `@stats_set_aux`.
//!
//! Without regions a worker looks at one number in a turn; with some it reads the clock twice for each request.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::now;
use super::region::{Region, Wanted};
use crate::mapper::DmError;

/// Most regions of a device.
const MOST_REGIONS: usize = 256;
/// Most memory for the counters of a device's regions, in bytes. The kernel takes up to a quarter of the machine's.
const MOST_BYTES: u128 = 8 << 20;
/// Longest name of a program, and longest auxiliary data, in bytes.
const MOST_WORD: usize = 1024;

type List = Arc<[Arc<Region>]>;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Regions {
    // Raised with each change of the list.
    generation: AtomicU64,
    list: Mutex<List>,
}

fn invalid(why: impl Into<String>) -> DmError {
    DmError::new(libc::EINVAL).detail(why)
}

fn number<T: FromStr>(word: &str, what: &str) -> Result<T, DmError> {
    // As the kernel reads it: FromStr would take a sign.
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { word.parse().ok() } else { None };
    number.ok_or_else(|| invalid(format!("{what} is a decimal number, not `{word}`")))
}

impl Regions {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another list in the place of the one there is.
    fn change(&self, list: &mut List, regions: Vec<Arc<Region>>) {
        *list = regions.into();
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Does what a message says; `None` if it is none of these. `len` is the length of the device in sectors.
    ///
    /// # Errors
    /// As the kernel's: EINVAL, ENOENT where there is no such region, ENOMEM where there would be too many.
    pub fn message(&self, words: &[String], len: u64) -> Option<Result<Option<String>, DmError>> {
        let (verb, words) = words.split_first()?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = match verb.to_ascii_lowercase().as_str() {
            "@stats_create" => self.create(&words, len).map(Some),
            "@stats_delete" => self.delete(&words),
            "@stats_clear" => self.one(&words, 1..=1).map(|region| {
                region.clear(now());
                None
            }),
            "@stats_list" => self.print_list(&words).map(Some),
            "@stats_print" => self.print(&words, false).map(Some),
            "@stats_print_clear" => self.print(&words, true).map(Some),
            "@stats_set_aux" => self.set_aux(&words),
            _ => return None,
        };
        Some(done.map_err(|error| match error.errno {
            libc::EINVAL => error.kernel(format!("stats: Invalid parameters for message {verb}")),
            _ => error,
        }))
    }

    fn create(&self, words: &[&str], len: u64) -> Result<String, DmError> {
        let wanted = wanted(words, len)?;
        let mut list = self.list();
        let held: u128 = list.iter().map(|region| region.bytes()).sum();
        let full = |what: String| DmError::new(libc::ENOMEM).detail(what);
        if held + wanted.bytes() > MOST_BYTES {
            return Err(full(format!(
                "{} areas take {} KiB, and the regions of a device {} KiB at most, of which {} are taken; use larger areas",
                wanted.areas(),
                wanted.bytes() >> 10,
                MOST_BYTES >> 10,
                held >> 10
            )));
        }
        if list.len() >= MOST_REGIONS {
            return Err(full(format!("a device has {MOST_REGIONS} regions at most; delete some")));
        }
        // The list is in the order of the numbers, so the first that is out of place leaves one free.
        let at = (0..).zip(list.iter()).position(|(id, region)| region.id != id).unwrap_or(list.len());
        let region = Arc::new(Region::new(at as u32, wanted, now()));
        let mut regions = list.to_vec();
        regions.insert(at, region);
        self.change(&mut list, regions);
        Ok(at.to_string())
    }

    fn delete(&self, words: &[&str]) -> Result<Option<String>, DmError> {
        let region = self.one(words, 1..=1)?;
        let mut list = self.list();
        let rest = list.iter().filter(|other| !Arc::ptr_eq(other, &region)).cloned().collect();
        self.change(&mut list, rest);
        Ok(None)
    }

    /// The region that the first word names, of so many.
    fn one(&self, words: &[&str], counts: std::ops::RangeInclusive<usize>) -> Result<Arc<Region>, DmError> {
        if !counts.contains(&words.len()) {
            return Err(invalid(format!("{} words after the message's name are not what it takes", words.len())));
        }
        let id: u32 = number(words[0], "a region")?;
        let list = self.list();
        let found = list.iter().find(|region| region.id == id).cloned();
        found.ok_or_else(|| {
            DmError::new(libc::ENOENT).detail(format!("there is no region {id}; @stats_list tells which are"))
        })
    }

    fn print_list(&self, words: &[&str]) -> Result<String, DmError> {
        let program = match words {
            [] => None,
            [program] => Some(*program),
            _ => return Err(invalid("@stats_list takes a program's name at most")),
        };
        let mut text = String::new();
        for region in self.list().iter().filter(|region| program.is_none_or(|name| region.program() == name)) {
            region.list(&mut text);
        }
        Ok(text)
    }

    fn print(&self, words: &[&str], clear: bool) -> Result<String, DmError> {
        let region = self.one(words, 1..=3)?;
        let lines = match words {
            [_] => 0..usize::MAX,
            [_, first, count] => {
                let first: usize = number(first, "the first line")?;
                first..first.saturating_add(number(count, "the number of lines")?)
            }
            _ => return Err(invalid("a first line needs a number of lines after it")),
        };
        let mut text = String::new();
        region.print(lines, clear, now(), &mut text);
        Ok(text)
    }

    fn set_aux(&self, words: &[&str]) -> Result<Option<String>, DmError> {
        let region = self.one(words, 2..=2)?;
        region.set_aux(word(words[1])?);
        Ok(None)
    }
}

/// A word that is given back in lists of one line each.
fn word(text: &str) -> Result<&str, DmError> {
    match text {
        long if long.len() > MOST_WORD => Err(invalid(format!("a word of {} bytes; at most {MOST_WORD}", long.len()))),
        line if line.bytes().any(|byte| byte.is_ascii_control()) => Err(invalid("a control character in a word")),
        text => Ok(text),
    }
}

fn wanted(words: &[&str], device: u64) -> Result<Wanted, DmError> {
    let [range, step, rest @ ..] = words else {
        return Err(invalid("a region is made by a range (`-` or START+LENGTH) and a step (SECTORS or /AREAS)"));
    };
    let (start, len) = match (*range, range.split_once('+')) {
        ("-", _) => (0, device.max(1)),
        (_, Some((start, len))) => (number(start, "the start of a range")?, number(len, "the length of a range")?),
        _ => return Err(invalid(format!("a range is `-` or START+LENGTH, not `{range}`"))),
    };
    if len == 0 || u64::checked_add(start, len).is_none() {
        return Err(invalid(format!("there are no sectors {range}")));
    }
    let step = match step.strip_prefix('/') {
        Some(areas) => match number::<u64>(areas, "the number of areas")? {
            0 => return Err(invalid("a range cannot be divided into 0 areas")),
            areas => len.div_ceil(areas),
        },
        None => number(step, "the step")?,
    };
    if step == 0 {
        return Err(invalid("an area has one sector at least"));
    }
    let (options, rest) = match rest {
        [count, rest @ ..] if count.bytes().all(|byte| byte.is_ascii_digit()) => {
            let count: usize = number(count, "the number of options")?;
            if count > rest.len() {
                return Err(invalid(format!("{count} options are announced, and {} words follow", rest.len())));
            }
            rest.split_at(count)
        }
        rest => ([].as_slice(), rest),
    };
    let (program, aux) = match rest {
        [] => ("-", "-"),
        [program] => (*program, "-"),
        [program, aux] => (*program, *aux),
        _ => return Err(invalid("after the options come a program's name and auxiliary data, each one word")),
    };
    let mut wanted = Wanted {
        start,
        len,
        step,
        precise: false,
        bounds: Vec::new(),
        program: word(program)?.to_owned(),
        aux: word(aux)?.to_owned(),
    };
    for option in options {
        match option.strip_prefix("histogram:") {
            Some(list) if wanted.bounds.is_empty() => wanted.bounds = bounds(list)?,
            None if *option == "precise_timestamps" => wanted.precise = true,
            _ => return Err(invalid(format!("no option `{option}`; there are precise_timestamps and histogram:..."))),
        }
    }
    Ok(wanted)
}

fn bounds(list: &str) -> Result<Vec<u64>, DmError> {
    let bounds = list.split(',').map(|bound| number(bound, "a bound of the histogram"));
    let bounds = bounds.collect::<Result<Vec<u64>, DmError>>()?;
    if bounds[0] == 0 || !bounds.is_sorted_by(|a, b| a < b) {
        return Err(invalid("bounds of a histogram ascend from above 0"));
    }
    Ok(bounds)
}

/// A queue's view of the regions, and its requests in them.
#[derive(Default)]
pub(crate) struct Watch {
    generation: u64,
    list: List,
    // By slot.
    under_way: Vec<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    // The regions that there were when it began.
    regions: List,
    write: bool,
    began: u64,
    ranges: Vec<(u64, u64)>,
}

impl Watch {
    /// Looks whether regions have come or gone; returns whether there are any.
    #[inline]
    pub fn look(&mut self, regions: &Regions) -> bool {
        if regions.generation.load(Ordering::Relaxed) != self.generation {
            self.renew(regions);
        }
        !self.list.is_empty()
    }

    #[cold]
    fn renew(&mut self, regions: &Regions) {
        let list = regions.list();
        self.generation = regions.generation.load(Ordering::Acquire);
        self.list = list.clone();
    }

    /// A request begins on ranges of sectors.
    #[cold]
    pub fn begin(&mut self, slot: u32, write: bool, ranges: impl Iterator<Item = (u64, u64)>) {
        let slot = slot as usize;
        self.under_way.resize_with(self.under_way.len().max(slot + 1), UnderWay::default);
        let began = now();
        let request = &mut self.under_way[slot];
        (request.write, request.began) = (write, began);
        request.regions = self.list.clone();
        request.ranges.clear();
        request.ranges.extend(ranges);
        for (at, len) in &request.ranges {
            request.regions.iter().for_each(|region| region.begin(write, *at, *len, began));
        }
    }

    /// It ends. One that has not begun here is not known.
    #[cold]
    pub fn end(&mut self, slot: u32) {
        let Some(request) = self.under_way.get_mut(slot as usize) else { return };
        let now = now();
        let ns = now.saturating_sub(request.began);
        for region in std::mem::take(&mut request.regions).iter() {
            request.ranges.iter().for_each(|(at, len)| region.end(request.write, *at, *len, now, ns));
        }
    }
}

#[cfg(test)]
mod tests;
