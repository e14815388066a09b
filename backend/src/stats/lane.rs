//! What one queue counts: written by the worker that serves it, read by whoever wants to know.
//!
//! Each counter has one writer, so adding to it is a load and a store. Totals of the device live as long as the device;
//! segments and components are those of one table, and are counted from the moment it is served.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytemuck::allocation::zeroed_slice_box;

use super::histogram::{Histogram, add};
use super::{Meter, Regions};
use crate::chain::Chain;
use crate::map::{DevIx, Map};

/// Records that nothing is counted in, before and after those of segments: so much memory that the stores of two workers
/// do not meet in a cache line.
const MARGIN: usize = 4;

/// Most records of segments that a queue keeps, 32 bytes each. In longer tables several segments have one record.
pub(super) const MOST_RECORDS: usize = 1 << 16;

/// Kinds of request, by their places in [`super::KINDS`], and two that have none there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Device to guest.
    Read,
    /// Guest to device.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Free ranges.
    Discard,
    /// Zero ranges.
    WriteZeroes,
    /// Nothing of the disk's data is asked for (GET_ID).
    Other,
    /// No valid request.
    Refused,
}

/// A power of two, so that masking a kind costs less than a check of bounds.
const KINDS: usize = 8;

/// Counters of one kind of operation.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub ops: AtomicU64,
    pub sectors: AtomicU64,
    pub errors: AtomicU64,
    // Two KiB that most kinds never need.
    histogram: OnceLock<Box<Histogram>>,
}

impl Counters {
    #[inline]
    fn count(&self, sectors: u64, failed: bool) {
        add(&self.ops, 1);
        add(&self.sectors, sectors);
        if failed {
            add(&self.errors, 1);
        }
    }

    #[inline]
    fn time(&self, ns: u64, weight: u64) {
        self.histogram.get_or_init(Box::default).add(ns, weight);
    }

    pub fn histogram(&self) -> Option<&Histogram> {
        self.histogram.get().map(|histogram| &**histogram)
    }
}

/// Counters of the device that a queue belongs to.
#[derive(Debug, Default)]
// The worker's stores and another worker's must not meet in a cache line, nor in the one fetched along with it.
#[repr(align(128))]
pub(super) struct Requests {
    pub kinds: [Counters; KINDS],
    pub in_flight: AtomicU32,
    pub served: AtomicBool,
    pub worker: Mutex<Option<Arc<Meter>>>,
}

/// Counters of a component device.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Component {
    pub kinds: [Counters; KINDS],
    pub in_flight: AtomicU32,
}

/// Counters of a record of segments: reads, their sectors, writes, their sectors.
const RECORD: usize = 4;

/// Counters of segments, several to a record in long tables. Pages that nothing was counted in take no memory.
#[derive(Debug)]
pub(super) struct Segments {
    counters: Box<[AtomicU64]>,
    /// Where the first record begins: so that each lies in one cache line. (Memory allocated with that alignment would be
    /// zeroed, and so taken, at once.)
    first: usize,
    shift: u32,
    errors: OnceLock<Box<[AtomicU64]>>,
}

/// log2 of the segments to a record.
pub(super) fn shift(segments: usize) -> u32 {
    segments.div_ceil(MOST_RECORDS).next_power_of_two().trailing_zeros()
}

/// What is counted of a segment, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    pub reads: u64,
    pub read_sectors: u64,
    pub writes: u64,
    pub written_sectors: u64,
    pub errors: u64,
}

impl Segments {
    fn new(segments: usize) -> Segments {
        let shift = shift(segments);
        let counters: Box<[AtomicU64]> = zeroed_slice_box((segments.div_ceil(1 << shift) + 2 * MARGIN + 1) * RECORD);
        let first = MARGIN * RECORD + counters.as_ptr().align_offset(RECORD * size_of::<AtomicU64>()).min(RECORD);
        Segments { counters, first, shift, errors: OnceLock::new() }
    }

    /// The place of a segment's record among the counters.
    #[inline]
    fn at(&self, segment: u32) -> usize {
        (segment >> self.shift) as usize * RECORD + self.first
    }

    #[inline]
    fn count(&self, segment: u32, write: bool, sectors: u64) {
        // What lies beyond the map has no segment.
        let at = self.at(segment) + usize::from(write) * 2;
        let Some([ops, all]) = self.counters.get(at..at + 2) else { return };
        add(ops, 1);
        add(all, sectors);
    }

    #[cold]
    fn failed(&self, segment: u32) {
        let errors = self.errors.get_or_init(|| zeroed_slice_box(self.counters.len() / RECORD));
        if let Some(counter) = errors.get((segment >> self.shift) as usize) {
            add(counter, 1);
        }
    }

    pub fn read(&self, record: usize, to: &mut Pieces) {
        let from = self.counters.get(self.first + record * RECORD..).and_then(|from| from.first_chunk::<RECORD>());
        let Some([reads, read_sectors, writes, written_sectors]) = from else { return };
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        to.reads += of(reads);
        to.read_sectors += of(read_sectors);
        to.writes += of(writes);
        to.written_sectors += of(written_sectors);
        to.errors += self.errors.get().and_then(|errors| errors.get(record)).map_or(0, of);
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Lane {
    pub(super) requests: Arc<Requests>,
    pub(crate) regions: Arc<Regions>,
    pub(super) segments: Segments,
    // By index; of those that the map leads to.
    pub(super) components: Box<[Option<Box<Component>>]>,
    // What the two are of, kept only to be told from others.
    map: Weak<Map>,
}

impl Lane {
    /// For what belongs to no queue, and is shown nowhere.
    pub fn apart(chain: &Chain) -> Lane {
        Lane::new(Arc::default(), Arc::default(), chain)
    }

    pub(super) fn new(requests: Arc<Requests>, regions: Arc<Regions>, chain: &Chain) -> Lane {
        let mut components = Vec::new();
        for (ix, _) in chain.components.iter() {
            let at = usize::from(ix.0);
            components.resize_with(components.len().max(at + 1), || None);
            components[at] = Some(Box::default());
        }
        Lane {
            requests,
            regions,
            segments: Segments::new(chain.map.segments()),
            components: components.into(),
            map: Arc::downgrade(&chain.map),
        }
    }

    /// One that no device reads.
    pub fn detached(chain: &Chain) -> Arc<Lane> {
        Arc::new(Lane::new(Arc::default(), Arc::default(), chain))
    }

    /// Whether segments and components are those of a chain.
    pub(super) fn is_of(&self, chain: &Chain) -> bool {
        self.map.as_ptr() == Arc::as_ptr(&chain.map)
    }

    /// A worker serves the queue.
    pub(crate) fn begin(&self, worker: &Arc<Meter>) {
        *self.requests.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker.clone());
        self.requests.served.store(true, Ordering::Relaxed);
    }

    /// The queue has drained and is no longer served.
    pub(crate) fn end(&self) {
        *self.requests.worker.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.requests.served.store(false, Ordering::Relaxed);
        self.requests.in_flight.store(0, Ordering::Relaxed);
    }

    /// So many requests are under way.
    #[inline]
    pub(crate) fn set_in_flight(&self, requests: u32) {
        self.requests.in_flight.store(requests, Ordering::Relaxed);
    }

    /// A request has ended.
    #[inline]
    pub(crate) fn ended(&self, kind: Kind, sectors: u32, failed: bool) {
        self.requests.kinds[kind as usize % KINDS].count(u64::from(sectors), failed);
    }

    /// So long after it was taken.
    // Not inline: see `now`.
    #[inline(never)]
    pub(crate) fn took(&self, kind: Kind, ns: u64, weight: u64) {
        self.requests.kinds[kind as usize % KINDS].time(ns, weight);
    }

    /// A piece of a request concerns a segment.
    #[inline]
    pub(crate) fn piece(&self, segment: u32, write: bool, sectors: u64) {
        self.segments.count(segment, write, sectors);
    }

    /// And has failed.
    pub(crate) fn piece_failed(&self, segment: u32) {
        self.segments.failed(segment);
    }

    #[inline]
    fn component(&self, dev: DevIx) -> Option<&Component> {
        self.components.get(usize::from(dev.0))?.as_deref()
    }

    /// A component that is mapped has been copied from or to.
    #[inline]
    pub(crate) fn copied(&self, dev: DevIx, kind: Kind, sectors: u64) {
        if let Some(component) = self.component(dev) {
            component.kinds[kind as usize % KINDS].count(sectors, false);
        }
    }

    /// A component has got an operation to do.
    #[inline]
    pub(crate) fn started(&self, dev: DevIx) {
        if let Some(component) = self.component(dev) {
            let in_flight = component.in_flight.load(Ordering::Relaxed);
            component.in_flight.store(in_flight.wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// And has ended it, `ns` later.
    #[inline]
    pub(crate) fn device_ended(&self, dev: DevIx, kind: Kind, sectors: u64, failed: bool, ns: u64) {
        let Some(component) = self.component(dev) else { return };
        let in_flight = component.in_flight.load(Ordering::Relaxed);
        component.in_flight.store(in_flight.wrapping_sub(1), Ordering::Relaxed);
        let counters = &component.kinds[kind as usize % KINDS];
        counters.count(sectors, failed);
        counters.time(ns, 1);
    }
}
