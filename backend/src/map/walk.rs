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
        self.index.find(&self.starts, at)
    }

    /// Where segment `i` ends.
    #[inline]
    pub(super) fn segment_end(&self, i: usize) -> u64 {
        self.starts.get(i + 1).copied().unwrap_or(self.end)
    }

    /// The parts of the segments that `len` sectors at `at` cover: segment, sectors into it, length. What lies
    /// beyond the end comes last, as an error segment.
    #[inline]
    pub(super) fn covered(&self, at: u64, len: u64) -> Covered<'_> {
        let next = if at < self.end { self.find(at) } else { self.segments.len() };
        Covered { map: self, next, at, left: len }
    }

    /// `above`: the segment of the upper map that a lower one is walked for.
    pub(super) fn walk<F: FnMut(Piece)>(
        &self,
        (at, len, write): (u64, u64, bool),
        mut skip: u64,
        above: Option<u32>,
        f: &mut F,
    ) {
        let mut covered = self.covered(at, len);
        while let Some((segment, into, take)) = covered.next() {
            let number = above.unwrap_or_else(|| covered.number());
            let step = match segment {
                Segment::Linear { dev, start } => Step::Device { dev: *dev, at: Sectors::new(start + into) },
                Segment::Zero => Step::Zero,
                Segment::Error => Step::Error,
                Segment::Target { target, skip } => Step::Target { target: *target, at: Sectors::new(skip + into) },
                Segment::ReadOnly(_) if write => Step::Error,
                Segment::ReadOnly(inner) => {
                    walk_inner(inner, (into, take), skip, number, f);
                    skip += take;
                    continue;
                }
                Segment::Striped(striped) => {
                    walk_striped(striped, (striped.skip + into, take, write), skip, number, f);
                    skip += take;
                    continue;
                }
                Segment::Unstriped(unstriped) => {
                    unstriped.walk((into, take, write), skip, number, f);
                    skip += take;
                    continue;
                }
            };
            f(Piece { step, skip: Sectors::new(skip), len: Sectors::new(take), segment: number });
            skip += take;
        }
    }

    pub(super) fn walk_ranges<F: FnMut(Step, Sectors, u32)>(&self, at: u64, len: u64, above: Option<u32>, f: &mut F) {
        let mut covered = self.covered(at, len);
        while let Some((segment, into, take)) = covered.next() {
            let number = above.unwrap_or_else(|| covered.number());
            match segment {
                Segment::Linear { dev, start } => {
                    let at = Sectors::new(start + into);
                    f(Step::Device { dev: *dev, at }, Sectors::new(take), number);
                }
                Segment::Zero => f(Step::Zero, Sectors::new(take), number),
                Segment::Error | Segment::ReadOnly(_) => f(Step::Error, Sectors::new(take), number),
                Segment::Target { target, skip } => {
                    f(Step::Target { target: *target, at: Sectors::new(skip + into) }, Sectors::new(take), number);
                }
                Segment::Unstriped(unstriped) => {
                    let (target, at) = (unstriped.target, Sectors::new(unstriped.skip + into));
                    f(Step::Target { target, at }, Sectors::new(take), number);
                }
                Segment::Striped(striped) => {
                    walk_striped_ranges(striped, striped.skip + into, take, number, f);
                }
            }
        }
    }
}

/// Reads of a segment that may not be written.
fn walk_inner<F: FnMut(Piece)>(segment: &Segment, (into, len): (u64, u64), skip: u64, number: u32, f: &mut F) {
    let step = match segment {
        Segment::Striped(striped) => {
            return walk_striped(striped, (striped.skip + into, len, false), skip, number, f);
        }
        Segment::Unstriped(unstriped) => return unstriped.walk((into, len, false), skip, number, f),
        Segment::Linear { dev, start } => Step::Device { dev: *dev, at: Sectors::new(start + into) },
        Segment::Target { target, skip } => Step::Target { target: *target, at: Sectors::new(skip + into) },
        Segment::Zero => Step::Zero,
        Segment::Error | Segment::ReadOnly(_) => Step::Error,
    };
    f(Piece { step, skip: Sectors::new(skip), len: Sectors::new(len), segment: number });
}

/// Chunk after chunk: one division finds the first, the others follow by counting.
fn walk_striped<F: FnMut(Piece)>(
    striped: &Striped,
    (off, len, write): (u64, u64, bool),
    mut skip: u64,
    segment: u32,
    f: &mut F,
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
        let Some(segment) = self.map.segments.get(i) else {
            self.next = i + 1;
            return Some((&Segment::Error, 0, std::mem::take(&mut self.left)));
        };
        let into = self.at - self.map.starts[i];
        let take = self.left.min(self.map.segment_end(i) - self.at);
        self.next += 1;
        self.at += take;
        self.left -= take;
        Some((segment, into, take))
    }
}
