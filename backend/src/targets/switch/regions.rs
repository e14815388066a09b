//! On which path each region lies: as few bits for each as the number of paths needs, in memory that is taken when a
//! message first changes something there.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dm_table::{RegionMapping, RegionMappings};

use super::said;
use crate::targets::Refused;

/// Bytes that the tables of all switches of the process may come to: regions may be as many as sectors, and a process may
/// have many switches. It is room for 2^29 regions on two paths.
const MOST: usize = 64 << 20;
/// Words of a page of the table.
const PAGE: u64 = 512;
/// Regions that one message may set, or as many as there are: by repeating, a message of a few words can be work for days.
const MOST_CHANGES: u64 = 1 << 24;

/// Room for tables, and how many bytes of it are taken.
pub(super) struct Room(AtomicUsize);

/// The process'.
pub(super) static ROOM: Room = Room(AtomicUsize::new(0));

impl Room {
    fn take(&'static self, bytes: usize) -> Option<Share> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= MOST);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Share(self, bytes))
    }
}

/// A part of it, until it is dropped.
struct Share(&'static Room, usize);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

type Page = Box<[AtomicU64]>;

/// See the module's text.
pub(super) struct Regions {
    len: u64,
    paths: u64,
    // Of a region, and regions of a word.
    bits: u32,
    per_word: u64,
    pages: Box<[OnceLock<Page>]>,
    // Held by who changes them. Who reads does not wait: a word is whole at any time.
    changed: Mutex<()>,
    _share: Share,
}

impl Regions {
    /// The first region on the first path, and so on in turn. `None` where there is no room.
    pub fn new(room: &'static Room, len: u64, paths: u64) -> Option<Regions> {
        let bits = (64 - paths.saturating_sub(1).leading_zeros()).max(1);
        let per_word = u64::from(64 / bits);
        let words = len.div_ceil(per_word);
        let pages = usize::try_from(words.div_ceil(PAGE)).ok()?;
        let bytes = usize::try_from(words).ok()?.checked_mul(8)?;
        let share = room.take(bytes.checked_add(pages.checked_mul(size_of::<OnceLock<Page>>())?)?)?;
        let mut table = Vec::new();
        table.try_reserve_exact(pages).ok()?;
        table.resize_with(pages, OnceLock::new);
        let pages = table.into_boxed_slice();
        Some(Regions { len, paths: paths.max(1), bits, per_word, pages, changed: Mutex::new(()), _share: share })
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Page, word of the page and bit of a region.
    fn place(&self, region: u64) -> (usize, usize, u32) {
        let word = region / self.per_word;
        let bit = (region % self.per_word) as u32 * self.bits;
        ((word / PAGE) as usize, (word % PAGE) as usize, bit)
    }

    /// The path of a region.
    pub fn get(&self, region: u64) -> u64 {
        let (page, word, bit) = self.place(region);
        let Some(page) = self.pages.get(page).and_then(OnceLock::get) else { return region % self.paths };
        page.get(word).map_or(0, |word| word.load(Ordering::Relaxed) >> bit & self.mask())
    }

    /// Does what a message says, up to the first mistake.
    ///
    /// # Errors
    /// The mistake; or that it is more work than one message may be.
    pub fn change(&self, mappings: RegionMappings<'_>) -> Result<(), Refused> {
        let most = MOST_CHANGES.max(self.len);
        let (mut left, mut writer) = (most, self.writer());
        for mapping in mappings {
            let mapping = mapping.map_err(said)?;
            let count = if let RegionMapping::Repeat { count, .. } = mapping { count } else { 1 };
            left = left.checked_sub(count).ok_or_else(|| {
                format!(
                    "switch: set_region_mappings sets more than {most} regions: send what follows in another message"
                )
            })?;
            match mapping {
                RegionMapping::Set { region, path } => writer.set(region, path),
                RegionMapping::Repeat { first, count, cycle } => writer.repeat(first, count, cycle),
            }
        }
        Ok(())
    }

    /// Whoever changes them, one at a time.
    fn writer(&self) -> Writer<'_> {
        Writer { regions: self, _guard: self.changed.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// A page on which nothing has been changed.
    fn untouched(&self, page: usize) -> Page {
        let first = page as u64 * PAGE;
        // No more than what there is room taken for.
        let end = (first + PAGE).min(self.len.div_ceil(self.per_word));
        let word = |word: u64| {
            let regions = (0..self.per_word).map(|n| (word * self.per_word + n, n as u32 * self.bits));
            AtomicU64::new(regions.fold(0, |sum, (region, bit)| sum | (region % self.paths) << bit))
        };
        (first..end).map(word).collect()
    }
}

/// See [`Regions::writer`].
struct Writer<'r> {
    regions: &'r Regions,
    _guard: MutexGuard<'r, ()>,
}

impl Writer<'_> {
    /// Has `region`, one of those there are, lie on `path`, one of those too.
    pub fn set(&mut self, region: u64, path: u64) {
        let regions = self.regions;
        let (page, word, bit) = regions.place(region);
        let Some(slot) = regions.pages.get(page) else { return };
        let Some(word) = slot.get_or_init(|| regions.untouched(page)).get(word) else { return };
        let others = word.load(Ordering::Relaxed) & !(regions.mask() << bit);
        word.store(others | path << bit, Ordering::Relaxed);
    }

    /// Has `count` regions from `first` on lie where the one `cycle` before each does.
    pub fn repeat(&mut self, first: u64, count: u64, cycle: u64) {
        for region in first..first + count {
            self.set(region, self.regions.get(region - cycle));
        }
    }
}

#[cfg(test)]
mod tests {
    use dm_table::SwitchMessage;

    use super::*;

    #[test]
    fn regions_go_round_the_paths_until_they_are_told_otherwise() {
        for paths in [1, 2, 3, 4, 5, 17, 300, 262_141] {
            let regions = Regions::new(&ROOM, 100_000, paths).expect("room");
            let mut model: Vec<u64> = (0..100_000).map(|region| region % paths).collect();
            let mut rng = fastrand::Rng::with_seed(paths);
            let mut writer = regions.writer();
            for _ in 0..200 {
                let region = rng.u64(..100_000);
                if rng.bool() {
                    let path = rng.u64(..paths);
                    writer.set(region, path);
                    model[region as usize] = path;
                } else {
                    let cycle = rng.u64(1..=region.max(1)).min(region);
                    let count = rng.u64(..=(100_000 - region).min(3000));
                    if cycle > 0 {
                        writer.repeat(region, count, cycle);
                        (region..region + count)
                            .for_each(|region| model[region as usize] = model[(region - cycle) as usize]);
                    }
                }
            }
            drop(writer);
            let differs = (0..100_000).find(|region| regions.get(*region) != model[*region as usize]);
            assert_eq!(differs, None, "{paths} paths");
        }
    }

    fn told(regions: &Regions, words: &[&str]) -> Result<(), String> {
        let SwitchMessage::SetRegionMappings(mappings) = SwitchMessage::parse(words, regions.len(), 2).unwrap();
        regions.change(mappings)
    }

    #[test]
    fn a_message_is_work_for_a_moment() {
        let regions = Regions::new(&ROOM, 1 << 20, 2).expect("room");
        // All regions again and again: a line of JSON has room for hundreds of thousands of that.
        let words: Vec<&str> = ["set_region_mappings"].into_iter().chain(["0:1", "R1,fffff"].repeat(1000)).collect();
        let why = told(&regions, &words).expect_err("too much");
        assert!(why.starts_with("switch: set_region_mappings sets more than 16777216 regions"), "{why}");
        // Of a mistake the kernel keeps what is before it; so here.
        assert_eq!(regions.get(0xfffff), 1);
        assert_eq!(told(&regions, &words[..17]), Ok(()));
        // All of a larger one in one message is not too much.
        let regions = Regions::new(&ROOM, 20 << 20, 2).expect("room");
        assert_eq!(told(&regions, &["set_region_mappings", "0:1", "R1,13fffff"]), Ok(()));
        assert_eq!(regions.get((20 << 20) - 1), 1);
        assert!(told(&regions, &["set_region_mappings", "0:1", "R1,13fffff", "0:1", "R1,13fffff"]).is_err());
    }

    #[test]
    fn a_small_table_takes_little_memory() {
        let regions = Regions::new(&ROOM, 100, 2).expect("room");
        assert_eq!(told(&regions, &["set_region_mappings", "63:1"]), Ok(()));
        let words: usize = regions.pages.iter().filter_map(OnceLock::get).map(|page| page.len()).sum();
        assert_eq!((words, regions.get(99), regions.get(98)), (2, 1, 0));
    }

    #[test]
    fn what_all_tables_may_have_is_bounded_and_given_back() {
        assert!(Regions::new(&ROOM, 1 << 54, 2).is_none());
        assert!(Regions::new(&ROOM, u64::MAX, 262_141).is_none());
        // More than a quarter, and less than half of it: not five times, but over and over.
        let room: &'static Room = Box::leak(Box::new(Room(AtomicUsize::new(0))));
        let quarter = || Regions::new(room, 160 << 20, 2);
        let held: Vec<_> = std::iter::from_fn(quarter).take(5).collect();
        assert!((1..5).contains(&held.len()), "{}", held.len());
        drop(held);
        for _ in 0..10 {
            assert!(quarter().is_some());
        }
    }
}
