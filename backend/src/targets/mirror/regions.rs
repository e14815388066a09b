//! What a mirror knows of its regions and legs. Nothing here does I/O or waits.
//!
//! A region is in sync, where all legs have the same data but for what is being written, or it is not. One that is in sync and
//! has been written since the last flush that all legs did is dirty: the log says so before the write begins, and no longer
//! when it has ended and was flushed.
//!
//! **Which leg is right.** A leg is *fit* when it has all that was acknowledged, also in regions that are not in sync; one fit
//! leg is the *source*, the one that the others are made like after a crash. A write is acknowledged when the source has
//! it. The source is the first leg, which is what the kernel takes for granted; with a log on a device it can be another, and
//! the log remembers which (`log::Record`).

use std::collections::BTreeMap;
use std::ops::Range;

use super::log::{Begin, Image, Incompatible};

/// Errors of a leg, by what was being done; the letters of the status line, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A flush: F.
    Flush = 0,
    /// A write: D.
    Write = 1,
    /// Synchronization: S.
    Sync = 2,
    /// A read: R.
    Read = 3,
}

/// A set of legs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Legs(u16);

impl Legs {
    /// The first `n`.
    pub fn all(n: usize) -> Legs {
        Legs((1 << n) - 1)
    }

    /// One.
    pub fn one(leg: usize) -> Legs {
        Legs(1 << leg)
    }

    /// Whether a leg is one of them.
    pub fn has(self, leg: usize) -> bool {
        self.0 & (1 << leg) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in both.
    pub fn and(self, other: Legs) -> Legs {
        Legs(self.0 & other.0)
    }

    /// Those that are in one of them.
    pub fn or(self, other: Legs) -> Legs {
        Legs(self.0 | other.0)
    }

    /// Those that are not in the other.
    pub fn without(self, other: Legs) -> Legs {
        Legs(self.0 & !other.0)
    }

    /// With one more.
    pub fn with(self, leg: usize) -> Legs {
        Legs(self.0 | 1 << leg)
    }

    /// Their places.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..16).filter(move |leg| self.has(*leg))
    }
}

/// A leg.
#[derive(Clone, Copy, Default)]
struct Health {
    // A bit for each failure that it had.
    failures: u8,
    // Reads under way.
    reads: u32,
}

/// A dirty region, or one that is being written.
#[derive(Clone, Copy, Default)]
struct Hot {
    writes: u32,
    // Flushes begun when the last write ended.
    ended: u64,
    // Of the log, which must be durable before a write begins.
    mark: u64,
    // When it was looked at last, it had been left alone since the time before.
    idle: bool,
}

/// A write that may begin.
#[derive(Clone, Debug)]
pub struct Ticket {
    place: usize,
    range: Range<u64>,
    /// Legs to write to.
    pub legs: Legs,
    /// Mark of the log that must be durable first.
    pub mark: u64,
}

/// Which regions, how large.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Sectors of the mirror.
    pub len: u64,
    /// Sectors of a region; a power of two.
    pub region: u64,
    /// Number of legs.
    pub legs: usize,
}

impl Geometry {
    /// Number of regions.
    pub fn count(&self) -> u64 {
        self.len.div_ceil(self.region)
    }

    fn of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.region..range.end.div_ceil(self.region)
    }

    /// What a range has of each of its regions.
    pub fn parts(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let (range, whole) = (range.clone(), *self);
        whole.of(&range).map(move |region| {
            let sectors = whole.sectors(region);
            sectors.start.max(range.start)..sectors.end.min(range.end)
        })
    }

    /// Sectors of a region; the last may be short.
    pub fn sectors(&self, region: u64) -> Range<u64> {
        region * self.region..((region + 1) * self.region).min(self.len)
    }
}

/// See the module's text.
pub struct Regions {
    pub geometry: Geometry,
    /// The log's bytes; none if it is in memory only.
    pub image: Option<Image>,
    sync: Vec<u64>,
    in_sync: u64,
    hot: BTreeMap<u64, Hot>,
    // Writes under way.
    writes: Vec<Option<Range<u64>>>,
    // What is being copied, and of which region. No write to it is under way or begins.
    window: Option<Range<u64>>,
    recovering: Option<u64>,
    spoilt: bool,
    // Regions before it have been tried.
    search: u64,
    health: Vec<Health>,
    fit: Legs,
    source: usize,
    // Flushes begun, and the last of those that all legs did.
    flushes: u64,
    flushed: u64,
    // Of the log: what must be durable, and what is.
    mark: u64,
    durable: u64,
    // What no write may begin without: regions that are no longer in `hot` had it.
    least: u64,
}

impl Regions {
    /// As it is before the log was read: nothing is in sync.
    pub fn new(geometry: Geometry, image: Option<Image>) -> Regions {
        Regions {
            geometry,
            image,
            sync: vec![0; geometry.count().div_ceil(64) as usize],
            in_sync: 0,
            hot: BTreeMap::new(),
            writes: Vec::new(),
            window: None,
            recovering: None,
            spoilt: false,
            search: 0,
            health: vec![Health::default(); geometry.legs],
            fit: Legs::one(0),
            source: 0,
            flushes: 0,
            flushed: 0,
            mark: 0,
            durable: 0,
            least: 0,
        }
    }

    /// Begins with what the log says. All of it is to be written then.
    ///
    /// # Errors
    /// The log is none that this program can deal with.
    pub fn begin(&mut self, image: Option<Image>, begin: Begin) -> Result<(), Incompatible> {
        *self = Regions::new(self.geometry, image);
        if let Some(image) = &mut self.image {
            image.begin(begin)?;
        }
        for region in 0..self.geometry.count() {
            let clean = self.image.as_ref().map_or(begin == Begin::Clean, |image| image.is_clean(region));
            if clean {
                self.sync[(region / 64) as usize] |= 1 << (region % 64);
                self.in_sync += 1;
            }
        }
        if self.is_synced() {
            self.fit = Legs::all(self.geometry.legs);
        }
        self.rewrite();
        Ok(())
    }

    /// Somebody else may have written the log: no write begins before all of it is written anew.
    pub fn rewrite(&mut self) {
        if let Some(image) = &mut self.image {
            image.touch_all();
            self.mark += 1;
            self.least = self.mark;
        }
    }

    /// What the log says besides regions has changed, and is not durable yet.
    pub fn rewrite_record(&mut self) {
        self.mark += 1;
    }

    /// The leg that has what was acknowledged before; the others may lack some of it.
    pub fn begin_from(&mut self, source: usize) {
        (self.source, self.fit) = (source, Legs::one(source));
    }

    fn is_in_sync(&self, region: u64) -> bool {
        self.sync[(region / 64) as usize] & (1 << (region % 64)) != 0
    }

    /// Whether all regions are in sync.
    pub fn is_synced(&self) -> bool {
        self.in_sync == self.geometry.count()
    }

    /// How many are.
    pub fn in_sync(&self) -> u64 {
        self.in_sync
    }

    fn lose(&mut self, region: u64) {
        if self.is_in_sync(region) {
            self.sync[(region / 64) as usize] &= !(1 << (region % 64));
            self.in_sync -= 1;
        }
        if self.recovering == Some(region) {
            self.spoilt = true;
        }
    }

    /// Legs that are to have what is written there. What is not in sync is copied later, so those that are not fit can do without.
    pub fn wanted(&self, range: &Range<u64>) -> Legs {
        let is_wanted = |region| self.is_in_sync(region) || self.recovering == Some(region);
        if self.geometry.of(range).any(is_wanted) { Legs::all(self.geometry.legs) } else { self.fit }
    }

    /// A write (or discard) of these sectors, unless they are being copied.
    pub fn write(&mut self, range: Range<u64>) -> Option<Ticket> {
        if self.window.as_ref().is_some_and(|window| overlap(window, &range)) {
            return None;
        }
        let (legs, mut mark) = (self.wanted(&range), self.least);
        for region in self.geometry.of(&range) {
            let hot = self.hot.entry(region).or_default();
            hot.writes += 1;
            if let Some(image) = &mut self.image
                && image.is_clean(region)
            {
                image.set_clean(region, false);
                self.mark += 1;
                hot.mark = self.mark;
            }
            mark = mark.max(hot.mark);
        }
        let place = self.writes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.writes.push(None);
            self.writes.len() - 1
        });
        self.writes[place] = Some(range.clone());
        Some(Ticket { place, range, legs, mark })
    }

    /// It has ended. Whether somebody may wait for that.
    pub fn written(&mut self, ticket: &Ticket) -> bool {
        self.writes[ticket.place] = None;
        for region in self.geometry.of(&ticket.range) {
            let in_sync = self.is_in_sync(region);
            if let Some(hot) = self.hot.get_mut(&region) {
                hot.writes = hot.writes.saturating_sub(1);
                (hot.ended, hot.idle) = (self.flushes, false);
                if hot.writes == 0 && !in_sync {
                    self.least = self.least.max(hot.mark);
                    self.hot.remove(&region);
                }
            }
        }
        self.window.is_some()
    }

    /// The legs have different data where a write has failed on some.
    pub fn differs(&mut self, range: &Range<u64>) {
        for region in self.geometry.of(range) {
            self.lose(region);
        }
    }

    /// Whether no write is under way.
    pub fn is_quiet(&self) -> bool {
        self.writes.iter().all(Option::is_none)
    }

    /// Notes an error of a leg; whether it is the first of its kind.
    pub fn fail(&mut self, leg: usize, failure: Failure) -> bool {
        let Some(health) = self.health.get_mut(leg) else { return false };
        let first = health.failures & (1 << failure as u8) == 0;
        health.failures |= 1 << failure as u8;
        first
    }

    /// A letter for each leg.
    pub fn letters(&self) -> String {
        let letter = |health: &Health| match health.failures {
            0 => 'A',
            n if n & (1 << Failure::Flush as u8) != 0 => 'F',
            n if n & (1 << Failure::Write as u8) != 0 => 'D',
            n if n & (1 << Failure::Sync as u8) != 0 => 'S',
            n if n & (1 << Failure::Read as u8) != 0 => 'R',
            _ => 'U',
        };
        self.health.iter().map(letter).collect()
    }

    /// The leg that is to be the source when only `done` of those asked did what all should; none if none of them can be.
    pub fn heir(&self, done: Legs) -> Option<usize> {
        if done.has(self.source) {
            return Some(self.source);
        }
        // The kernel does not know another source than the first leg, and a log in memory cannot tell us either.
        self.image.as_ref()?;
        done.and(self.fit).iter().next()
    }

    /// `source` is the source, and `failed` lack something that is acknowledged.
    pub fn settle(&mut self, source: usize, failed: Legs) {
        self.source = source;
        self.fit = self.fit.without(failed);
    }

    /// The leg that the others are made like.
    pub fn source(&self) -> usize {
        self.source
    }

    /// Which leg a read of these sectors goes to; not one of those `tried`. To be followed by [`Regions::was_read`].
    pub fn read(&mut self, range: &Range<u64>, tried: Legs) -> Option<usize> {
        let in_sync = self.geometry.of(range).all(|region| self.is_in_sync(region));
        let legs = if in_sync { Legs::all(self.geometry.legs) } else { self.fit };
        let order = |leg: &usize| {
            let health = &self.health[*leg];
            let other = *leg != self.source;
            // The source alone is asked where they differ, as long as it answers.
            if in_sync { (health.failures != 0, health.reads, other) } else { (other, 0, false) }
        };
        let leg = legs.without(tried).iter().min_by_key(order)?;
        self.health[leg].reads += 1;
        Some(leg)
    }

    /// A read from a leg has ended.
    pub fn was_read(&mut self, leg: usize) {
        if let Some(health) = self.health.get_mut(leg) {
            health.reads = health.reads.saturating_sub(1);
        }
    }

    /// A flush of all legs begins.
    pub fn flush(&mut self) -> u64 {
        self.flushes += 1;
        self.flushes
    }

    /// All legs did it.
    pub fn flushed(&mut self, flush: u64) {
        self.flushed = self.flushed.max(flush);
        if self.image.is_none() {
            self.clean(false);
        }
    }

    /// Some did not: what was written to them since the last may be lost there.
    pub fn unflushed(&mut self) {
        let dirty: Vec<u64> = self.hot.keys().copied().collect();
        dirty.into_iter().for_each(|region| self.lose(region));
        let least = self.hot.values().map(|hot| hot.mark).max().unwrap_or(0);
        self.least = self.least.max(least);
        self.hot.retain(|_, hot| hot.writes > 0);
        self.spoilt |= self.recovering.is_some();
    }

    /// Whether regions are dirty; and whether some have been left alone for long enough that a flush would make them clean.
    pub fn dirty(&self) -> (bool, bool) {
        let idle = |hot: &Hot| hot.writes == 0 && hot.idle;
        (!self.hot.is_empty(), self.hot.values().any(idle))
    }

    /// How many are dirty.
    pub fn dirty_count(&self) -> usize {
        self.hot.len()
    }

    /// Looks which have been left alone since it looked last.
    pub fn look(&mut self) {
        self.hot.values_mut().for_each(|hot| hot.idle = hot.writes == 0);
    }

    /// Regions are clean whose last write was before the last flush; if `idle`, only those that were left alone.
    pub fn clean(&mut self, idle: bool) {
        let (flushed, image, sync) = (self.flushed, &mut self.image, &self.sync);
        self.hot.retain(|region, hot| {
            let stays = hot.writes > 0 || hot.ended >= flushed || (idle && !hot.idle);
            let in_sync = sync[(region / 64) as usize] & (1 << (region % 64)) != 0;
            if !stays
                && in_sync
                && let Some(image) = image
            {
                image.set_clean(*region, true);
            }
            stays
        });
    }

    /// What the log must have on its device, and whether it has.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Whether everything up to a mark is durable.
    pub fn is_durable(&self, mark: u64) -> bool {
        self.image.is_none() || self.durable >= mark
    }

    /// Everything up to a mark is.
    pub fn made_durable(&mut self, mark: u64) {
        self.durable = self.durable.max(mark);
    }

    /// The next region to be copied to the legs that lack it.
    pub fn recover(&mut self) -> Option<u64> {
        let count = self.geometry.count();
        while self.search < count {
            let region = self.search;
            // Most are in sync: 64 at a time.
            if region.is_multiple_of(64) && self.sync[(region / 64) as usize] == u64::MAX {
                self.search += 64;
                continue;
            }
            self.search += 1;
            if !self.is_in_sync(region) {
                (self.recovering, self.spoilt) = (Some(region), false);
                return Some(region);
            }
        }
        None
    }

    /// Looks for regions from the first on again.
    pub fn recover_all(&mut self) {
        self.search = 0;
    }

    /// Keeps writes away from these sectors.
    pub fn open(&mut self, window: Range<u64>) {
        self.window = Some(window);
    }

    /// Whether the writes to them that had begun have ended.
    pub fn is_open(&self) -> bool {
        let Some(window) = &self.window else { return false };
        !self.writes.iter().flatten().any(|write| overlap(window, write))
    }

    /// They have been copied.
    pub fn close(&mut self) {
        self.window = None;
    }

    /// A region has been copied, or has not. Whether it is in sync then.
    pub fn recovered(&mut self, region: u64, copied: bool) -> bool {
        self.recovering = None;
        let good = copied && !self.spoilt;
        if good && !self.is_in_sync(region) {
            self.sync[(region / 64) as usize] |= 1 << (region % 64);
            self.in_sync += 1;
            let hot = self.hot.entry(region).or_default();
            (hot.ended, hot.idle) = (self.flushes, false);
        }
        good
    }

    /// All regions are in sync, and what was copied is durable: all legs are as good as any other.
    pub fn completed(&mut self) {
        self.fit = Legs::all(self.geometry.legs);
        self.health.iter_mut().for_each(|health| health.failures = 0);
    }

    /// Whether all legs have all that was acknowledged.
    pub fn all_fit(&self) -> bool {
        self.fit == Legs::all(self.geometry.legs)
    }

    /// Legs that can be copied from, the best first.
    pub fn sources(&self) -> Vec<usize> {
        let others = self.fit.without(Legs::one(self.source));
        [self.source].into_iter().chain(others.iter()).collect()
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
