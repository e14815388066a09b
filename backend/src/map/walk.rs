//! Cutting a request into pieces: the hot path.

use dm_table::Sectors;

use super::stripe::{Leg, Striped};
use super::{Map, Piece, Segment, Step};

impl Map {
    /// Cuts the data request of `len` sectors at `at` where it crosses the end of a segment or a chunk border
    /// of a striped one, and gives the pieces to `f`: in order, none empty, together exactly the request.
    ///
    /// The caller has checked that the request lies within [`Map::len`]. What lies beyond becomes a
    /// [`Step::Error`] piece rather than a wrong sector; so does what may not be written, if `write`.
    #[inline]
    pub fn cut(&self, at: Sectors, len: Sectors, write: bool, f: &mut impl FnMut(Piece)) {
        self.debug_check(at, len);
        self.walk((at.get(), len.get(), write), 0, None, f);
    }

    /// Cuts a request to read, as [`Map::cut`].
    #[inline]
    pub fn pieces(&self, at: Sectors, len: Sectors, f: &mut impl FnMut(Piece)) {
        self.cut(at, len, false, f);
    }

    /// Cuts a discard or write-zeroes of `len` sectors at `at` into ranges and gives them to `f`: one range per
    /// segment, and for a striped segment one per stripe it touches, because what a long request touches on a
    /// stripe is contiguous there. Together they are exactly the sectors of the request, in no particular order.
    ///
    /// The last argument of `f` is [`Piece::segment`]. The same rule as for [`Map::pieces`] holds for what lies beyond the end.
    #[inline]
    pub fn ranges(&self, at: Sectors, len: Sectors, f: &mut impl FnMut(Step, Sectors, u32)) {
        self.debug_check(at, len);
        self.walk_ranges(at.get(), len.get(), None, f);
    }

    fn debug_check(&self, at: Sectors, len: Sectors) {
        debug_assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len()),
            "request {at}+{len} beyond the map's {} sectors",
            self.len()
        );
    }

    /// The segment that holds sector `at`, which must be below the end.
    #[inline]
    pub(super) fn find(&self, at: u64) -> usize {
        self.index.find(&self.entries, at)
    }

    /// The parts of the segments that `len` sectors at `at` cover: segment, sectors into it, length. What lies
    /// beyond the end comes last, as an error segment.
    #[inline]
    pub(super) fn covered(&self, at: u64, len: u64) -> Covered<'_> {
        let next = if at < self.end { self.find(at) } else { self.entries.len() };
        Covered { map: self, next, at, left: len }
    }

    /// `above`: the segment of the upper map that a lower one is walked for.
    pub(super) fn walk<F: FnMut(Piece) + ?Sized>(
        &self,
        (at, len, write): (u64, u64, bool),
        mut skip: u64,
        above: Option<u32>,
        f: &mut F,
    ) {
        let mut covered = self.covered(at, len);
        while let Some((segment, into, take)) = covered.next() {
            let number = above.unwrap_or_else(|| covered.number());
            match segment.step(into) {
                // The only place where `f` is called as it is: it is large, and stands in the caller's loop.
                Some(step) => f(Piece { step, skip: Sectors::new(skip), len: Sectors::new(take), segment: number }),
                None => walk_several(segment, (into, take, write), skip, number, &mut |piece| f(piece)),
            }
            skip += take;
        }
    }

    pub(super) fn walk_ranges<F: FnMut(Step, Sectors, u32)>(&self, at: u64, len: u64, above: Option<u32>, f: &mut F) {
        let mut covered = self.covered(at, len);
        while let Some((segment, into, take)) = covered.next() {
            let number = above.unwrap_or_else(|| covered.number());
            match segment {
                Segment::Unstriped(unstriped) => {
                    let (target, at) = (unstriped.target, Sectors::new(unstriped.skip + into));
                    f(Step::Target { target, at }, Sectors::new(take), number);
                }
                Segment::Striped(striped) => {
                    walk_striped_ranges(striped, striped.skip + into, take, number, f);
                }
                // One that may only be read has no step.
                other => f(other.step(into).unwrap_or(Step::Error), Sectors::new(take), number),
            }
        }
    }
}

impl Segment {
    /// Where sector `into` of the segment goes, and all behind it, if that is one place whatever is asked for.
    #[inline]
    fn step(&self, into: u64) -> Option<Step> {
        match self {
            Segment::Linear { dev, start } => Some(Step::Device { dev: *dev, at: Sectors::new(start + into) }),
            Segment::Zero => Some(Step::Zero),
            Segment::Error => Some(Step::Error),
            Segment::Target { target, skip } => Some(Step::Target { target: *target, at: Sectors::new(skip + into) }),
            Segment::Striped(_) | Segment::Unstriped(_) | Segment::ReadOnly(_) => None,
        }
    }
}

/// A segment whose sectors go to several places, or not everywhere.
#[inline(never)]
fn walk_several(
    segment: &Segment,
    (into, len, write): (u64, u64, bool),
    skip: u64,
    number: u32,
    f: &mut dyn FnMut(Piece),
) {
    let step = match segment {
        Segment::Striped(striped) => {
            return walk_striped(striped, (striped.skip + into, len, write), skip, number, f);
        }
        Segment::Unstriped(unstriped) => return unstriped.walk((into, len, write), skip, number, f),
        Segment::ReadOnly(inner) if !write => return walk_several(inner, (into, len, write), skip, number, f),
        Segment::ReadOnly(_) => Step::Error,
        plain => plain.step(into).unwrap_or(Step::Error),
    };
    f(Piece { step, skip: Sectors::new(skip), len: Sectors::new(len), segment: number });
}

/// Chunk after chunk: one division finds the first, the others follow by counting.
fn walk_striped(
    striped: &Striped,
    (off, len, write): (u64, u64, bool),
    mut skip: u64,
    segment: u32,
    f: &mut dyn FnMut(Piece),
) {
    let mut place = striped.place(off);
    let mut left = len;
    while left > 0 {
        let take = left.min(striped.chunk - place.within);
        let into = place.row * striped.chunk + place.within;
        match &striped.legs[place.leg] {
            Leg::Device { dev, start } => f(Piece {
                step: Step::Device { dev: *dev, at: Sectors::new(start + into) },
                skip: Sectors::new(skip),
                len: Sectors::new(take),
                segment,
            }),
            Leg::Map { map, start } => map.walk((start + into, take, write), skip, Some(segment), f),
        }
        skip += take;
        left -= take;
        place.within = 0;
        place.leg += 1;
        if place.leg == striped.legs.len() {
            place.leg = 0;
            place.row += 1;
        }
    }
}

fn walk_striped_ranges<F: FnMut(Step, Sectors, u32)>(striped: &Striped, off: u64, len: u64, segment: u32, f: &mut F) {
    let from = striped.place(off);
    let to = striped.place(off + len);
    // A short request touches few of many stripes: go round from the first one touched, and stop when all
    // sectors are given out.
    let mut left = len;
    let mut leg = from.leg;
    for _ in 0..striped.legs.len() {
        let (into, take) = striped.leg_range(leg, from, to);
        if take > 0 {
            match &striped.legs[leg] {
                Leg::Device { dev, start } => {
                    let at = Sectors::new(start + into);
                    f(Step::Device { dev: *dev, at }, Sectors::new(take), segment);
                }
                Leg::Map { map, start } => map.walk_ranges(start + into, take, Some(segment), f),
            }
        }
        left -= take;
        if left == 0 {
            break;
        }
        leg += 1;
        if leg == striped.legs.len() {
            leg = 0;
        }
    }
}

/// Iterator of [`Map::covered`].
pub(super) struct Covered<'m> {
    map: &'m Map,
    next: usize,
    at: u64,
    left: u64,
}

impl Covered<'_> {
    /// Of the segment that came last.
    #[inline]
    fn number(&self) -> u32 {
        (self.next - 1) as u32
    }
}

impl<'m> Iterator for Covered<'m> {
    type Item = (&'m Segment, u64, u64);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let i = self.next;
        let Some(entry) = self.map.entries.get(i) else {
            self.next = i + 1;
            return Some((&Segment::Error, 0, std::mem::take(&mut self.left)));
        };
        let into = self.at - entry.start;
        let take = self.left.min(entry.end - self.at);
        self.next += 1;
        self.at += take;
        self.left -= take;
        Some((&entry.segment, into, take))
    }
}
