//! The lanes of a mapped device, added up.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::histogram::Sum;
use super::lane::{self, Lane, Pieces, Requests, shift};
use super::{Component, Counters, Device, KINDS, Regions, Segment, Snapshot, now};
use crate::chain::Chain;
use crate::device::Access;
use crate::map::{DevIx, Place};
use crate::mapper::DmError;

/// A queue, and what it has last served, if anything.
type Queue = (Arc<Requests>, Option<Arc<Lane>>);

/// One for each mapped device, for as long as there is the device: what its guest has asked for outlasts queues, front ends
/// and tables.
#[derive(Debug, Default)]
pub struct Disk {
    // By index.
    queues: Mutex<Vec<Queue>>,
    regions: Arc<Regions>,
}

impl Disk {
    /// Nothing counted yet.
    pub fn new() -> Disk {
        Disk::default()
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the queue with this index counts while it serves `chain`. No other worker may use the lane of the queue that
    /// this gave before.
    pub fn lane(&self, queue: usize, chain: &Chain) -> Arc<Lane> {
        let mut queues = self.queues();
        let places = queues.len().max(queue + 1);
        queues.resize_with(places, Default::default);
        let (requests, lane) = &mut queues[queue];
        match lane {
            Some(lane) if lane.is_of(chain) => lane.clone(),
            _ => lane.insert(Arc::new(Lane::new(requests.clone(), self.regions.clone(), chain))).clone(),
        }
    }

    /// Does what a message `@stats_...` says; `None` if it is none that there is. `len`: the length of the device in sectors.
    ///
    /// # Errors
    /// As the kernel's: EINVAL, ENOENT, ENOMEM.
    pub fn message(&self, words: &[String], len: u64) -> Option<Result<Option<String>, DmError>> {
        self.regions.message(words, len)
    }

    /// What the device has done. `chain` is its live table, whose segments and components are told of.
    pub fn snapshot(&self, name: &str, minor: u32, chain: &Chain, with_segments: bool) -> Snapshot {
        let (requests, lanes): (Vec<_>, Vec<_>) = self.queues().iter().cloned().unzip();
        let lanes: Vec<_> = lanes.into_iter().flatten().filter(|lane| lane.is_of(chain)).collect();
        let at_ns = now();
        let mut workers = Vec::new();
        for requests in &requests {
            let worker = requests.worker.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(worker) = worker
                && !workers.iter().any(|known| Arc::ptr_eq(known, &worker))
            {
                workers.push(worker);
            }
        }
        Snapshot {
            name: name.to_owned(),
            minor,
            at_ns,
            device: device(chain, &requests),
            segments: if with_segments { segments(chain, &lanes) } else { Vec::new() },
            components: components(chain, &lanes),
            workers: workers.iter().map(|worker| worker.read(at_ns)).collect(),
        }
    }
}

fn kinds<'a>(all: impl Iterator<Item = &'a [lane::Counters]> + Clone) -> BTreeMap<String, Counters> {
    let one = |(place, name): (usize, &&str)| {
        let mut sum = Counters::default();
        let mut times: Option<Sum> = None;
        for counters in all.clone().filter_map(|kinds| kinds.get(place)) {
            sum.ops += counters.ops.load(Ordering::Relaxed);
            sum.sectors += counters.sectors.load(Ordering::Relaxed);
            sum.errors += counters.errors.load(Ordering::Relaxed);
            if let Some(histogram) = counters.histogram() {
                times.get_or_insert_default().take(histogram);
            }
        }
        sum.latency = times.map(|times| times.latency()).unwrap_or_default();
        ((*name).to_owned(), sum)
    };
    KINDS.iter().enumerate().map(one).collect()
}

fn device(chain: &Chain, requests: &[Arc<Requests>]) -> Device {
    let served = requests.iter().filter(|queue| queue.served.load(Ordering::Relaxed));
    let refused = |queue: &Arc<Requests>| queue.kinds[lane::Kind::Refused as usize].ops.load(Ordering::Relaxed);
    Device {
        sectors: chain.len().get(),
        queues: served.count() as u32,
        in_flight: requests.iter().map(|queue| queue.in_flight.load(Ordering::Relaxed)).sum(),
        kinds: kinds(requests.iter().map(|queue| &queue.kinds[..])),
        refused: requests.iter().map(refused).sum(),
    }
}

fn components(chain: &Chain, lanes: &[Arc<Lane>]) -> Vec<Component> {
    let told = |(ix, component): (DevIx, &Arc<crate::device::Component>)| {
        let counted = lanes.iter().filter_map(|lane| lane.components.get(usize::from(ix.0))?.as_deref());
        Component {
            name: component.name.clone(),
            path: component.path.display().to_string(),
            access: match component.access {
                Access::Direct { .. } => "direct",
                Access::Buffered => "buffered",
                Access::Mapped => "mapped",
            }
            .to_owned(),
            in_flight: counted.clone().map(|counted| counted.in_flight.load(Ordering::Relaxed)).sum(),
            kinds: kinds(counted.map(|counted| &counted.kinds[..])),
        }
    };
    chain.components.iter().map(told).collect()
}

fn segments(chain: &Chain, lanes: &[Arc<Lane>]) -> Vec<Segment> {
    let together = 1 << shift(chain.map.segments());
    let places: Vec<Place<'_>> = chain.map.places().collect();
    let group = |(record, group): (usize, &[Place<'_>])| {
        let mut pieces = Pieces::default();
        lanes.iter().for_each(|lane| lane.segments.read(record, &mut pieces));
        let (target, to) = match group {
            [one] => (one.target.to_owned(), one.to()),
            several => ("several".to_owned(), format!("{} segments", several.len())),
        };
        Segment {
            start: group.first().map_or(0, |first| first.start),
            len: group.iter().map(|place| place.len).sum(),
            target,
            to,
            reads: pieces.reads,
            read_sectors: pieces.read_sectors,
            writes: pieces.writes,
            written_sectors: pieces.written_sectors,
            errors: pieces.errors,
        }
    };
    places.chunks(together).enumerate().map(group).collect()
}

#[cfg(test)]
mod tests;
