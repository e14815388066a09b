//! What there is to tell of each segment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::stripe::Leg;
use super::{DevIx, Entry, Map, Segment};

/// Stripes of a segment that are named; of more, the number.
const NAMED: usize = 4;

/// A segment of a [`Map`].
#[derive(Clone, Copy, Debug)]
pub struct Place<'m> {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// Type of its target.
    pub target: &'static str,
    /// Whether it is of a read-only device below the disk.
    pub read_only: bool,
    segment: &'m Segment,
    names: &'m BTreeMap<DevIx, Arc<str>>,
}

impl Place<'_> {
    /// Where it leads, for people: device and first sector there, for each stripe.
    pub fn to(&self) -> String {
        let name = |dev: &DevIx| self.names.get(dev).map_or("?", |name| &**name);
        match self.segment.inner() {
            Segment::Linear { dev, start } => format!("{} {start}", name(dev)),
            Segment::Striped(striped) => {
                let mut text = format!("{} stripes of {} sectors", striped.legs.len(), striped.chunk);
                for leg in striped.legs.iter().take(NAMED) {
                    let _ = match leg {
                        Leg::Device { dev, start } => write!(text, ", {} {start}", name(dev)),
                        Leg::Map { start, .. } => write!(text, ", a device of this process {start}"),
                    };
                }
                if striped.legs.len() > NAMED {
                    text.push_str(", ...");
                }
                text
            }
            Segment::Unstriped(unstriped) => {
                let (chunk, row) = (unstriped.chunk, unstriped.row);
                let from = match &unstriped.leg {
                    Leg::Device { dev, start } => format!("{} {start}", name(dev)),
                    Leg::Map { start, .. } => format!("a device of this process {start}"),
                };
                format!("{chunk} of every {row} sectors, {from}")
            }
            Segment::Zero | Segment::Error | Segment::Target { .. } | Segment::ReadOnly(_) => String::new(),
        }
    }
}

impl Map {
    /// The segments in order; [`super::Piece::segment`] is a place in this list.
    pub fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.entries.iter().map(|Entry { start, end, segment }| Place {
            start: *start,
            len: end - start,
            read_only: matches!(segment, Segment::ReadOnly(_)),
            target: match segment.inner() {
                Segment::Linear { .. } => "linear",
                Segment::Striped(_) => "striped",
                Segment::Unstriped(_) => "unstriped",
                Segment::Zero => "zero",
                Segment::Error => "error",
                Segment::Target { .. } | Segment::ReadOnly(_) => "stateful",
            },
            segment,
            names: &self.names,
        })
    }
}
