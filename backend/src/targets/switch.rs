//! `switch`: regions of which each lies on one of several devices (dm-switch.c).
//!
//! Two things are not as in the kernel, whose paths all lead to one storage. A discard goes region by region to where the
//! data is; the kernel's goes as a whole to the path of its first sector. And a flush reaches all paths; the kernel's
//! reaches none.

mod regions;

use std::collections::BTreeSet;
use std::sync::Arc;

use dm_table::{MessageError, SwitchMessage};

use super::{Cx, Io, Refused, Target};
use crate::map::{DevIx, Leg};
use crate::worker::ops::Action;
use regions::Regions;

/// Parts of a discard or write-zeroes that are under way at a time.
const AT_A_TIME: usize = 64;

/// Regions that are looked at for one part: a range may be over millions of small ones.
const REGIONS_AT_A_TIME: u64 = 4096;

/// See the module's text.
pub struct Switch {
    legs: Vec<Leg>,
    // Legs of which each is on a device that those before it are not on.
    distinct: Vec<usize>,
    // Sectors of a region, and regions of the line.
    region: u64,
    regions: Arc<Regions>,
}

impl Switch {
    /// A line of so many `regions` of `region` sectors each, at least 1, over at least one leg.
    ///
    /// # Errors
    /// No memory for the table of regions, or more than all of them may have.
    pub fn new(legs: Vec<Leg>, region: u64, regions: u64) -> Result<Switch, Refused> {
        let regions = Regions::new(&regions::ROOM, regions, legs.len() as u64);
        let regions = Arc::new(regions.ok_or(dm_table::Switch::NO_REGION_TABLE)?);
        Ok(Switch { distinct: distinct(&legs), legs, region, regions })
    }

    /// How many sectors from `at` on, at most `most`, are on one path, and the path.
    fn on_one_path(&self, at: u64, most: u64) -> (usize, u64) {
        let path = self.regions.get(at / self.region);
        let mut len = (self.region - at % self.region).min(most);
        let most = most.min(self.region.saturating_mul(REGIONS_AT_A_TIME));
        while len < most && self.regions.get((at + len) / self.region) == path {
            len += self.region.min(most - len);
        }
        (path as usize, len)
    }
}

/// What the kernel's log says of a message.
fn said(error: MessageError) -> Refused {
    error.kernel().map_or_else(|| error.to_string(), str::to_owned)
}

/// A device that is named twice is to be flushed once.
fn distinct(legs: &[Leg]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let new = |leg: &Leg| leg.key().is_none_or(|key| seen.insert(key));
    let new = legs.iter().map(new).collect::<Vec<_>>();
    new.iter().enumerate().filter(|(_, new)| **new).map(|(leg, _)| leg).collect()
}

impl Target for Switch {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let Io { action, at, len, data } = io;
        let most = match action {
            Action::Flush => {
                return cx
                    .parts(action, data, |parts| {
                        self.distinct.iter().for_each(|leg| parts.add(&self.legs[*leg], 0, 0));
                    })
                    .await;
            }
            // As many as there is data for.
            Action::Read | Action::Write { .. } => usize::MAX,
            Action::Discard | Action::Zero { .. } => AT_A_TIME,
        };
        let (mut next, end, mut data, mut result) = (at, at + len, Some(data), Ok(()));
        while next < end {
            let ended = cx.parts(action, data.take().unwrap_or_default(), |parts| {
                for _ in 0..most {
                    if next == end {
                        break;
                    }
                    let (path, len) = self.on_one_path(next, end - next);
                    // Every path has the whole line.
                    parts.add(&self.legs[path], next, len);
                    next += len;
                }
            });
            result = result.and(ended.await);
        }
        result
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        String::new()
    }

    fn message(&self, args: &[&str]) -> Result<Option<String>, Refused> {
        let SwitchMessage::SetRegionMappings(mappings) =
            SwitchMessage::parse(args, self.regions.len(), self.legs.len() as u64).map_err(said)?;
        self.regions.change(mappings)?;
        Ok(None)
    }

    fn again(&self, legs: Vec<Leg>) -> Switch {
        let legs = if legs.len() == self.legs.len() { legs } else { self.legs.clone() };
        Switch { distinct: distinct(&legs), legs, region: self.region, regions: self.regions.clone() }
    }

    fn devices(&self) -> Vec<DevIx> {
        let devices: BTreeSet<DevIx> =
            self.distinct.iter().flat_map(|leg| self.legs[*leg].devices()).copied().collect();
        devices.into_iter().collect()
    }
}
