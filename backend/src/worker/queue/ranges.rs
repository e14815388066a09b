//! Discard and write-zeroes: requests of ranges.

use std::sync::atomic::Ordering;

use dm_table::Sectors;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use super::{IOERR, MAX_RANGE_SECTORS, Queue, UNSUPP};
use crate::engine::Engine;
use crate::map::Step;
use crate::request::{self, Kind};
use crate::targets::Io;
use crate::worker::ops::{Action, Ops, Owner};
use crate::worker::tasks::{Parent, Tasks};

impl Queue {
    pub(super) fn ranges(&mut self, kind: Kind, slot: u32, ops: &mut Ops, tasks: &mut Tasks, engine: &mut impl Engine) {
        if let Some(status) = self.judge_ranges(kind) {
            self.slots[slot as usize].status = status;
            return;
        }
        if self.watches {
            self.slots[slot as usize].watched = true;
            let ranges = self.request.ranges.iter().map(|range| (range.at, u64::from(range.len)));
            self.watch.begin(slot, true, ranges);
        }
        let durable = self.write_through.load(Ordering::Relaxed);
        let (queue, number) = (self.index, slot);
        let Queue { slots, devices, request, chain, lane, .. } = self;
        let slot = &mut slots[slot as usize];
        slot.sectors = request.ranges.iter().map(|range| range.len).sum();
        for range in &request.ranges {
            let action = match kind {
                Kind::Discard => Action::Discard,
                _ => Action::Zero { unmap: range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0, durable },
            };
            let (at, len) = (Sectors::new(range.at), Sectors::new(u64::from(range.len)));
            chain.map.ranges(at, len, &mut |step: Step, len: Sectors, segment: u32| {
                lane.piece(segment, true, len.get());
                let (dev, at) = match step {
                    Step::Device { dev, at } => (dev, at),
                    Step::Zero => return,
                    Step::Target { target, at } => {
                        let Some(target) = chain.map.target(target) else {
                            slot.status = IOERR;
                            return lane.piece_failed(segment);
                        };
                        slot.pending += 1;
                        let io = Io { action, at: at.get(), len: len.get(), data: Vec::new() };
                        let owner = Owner { queue, slot: number, segment };
                        return tasks.spawn(queue, Parent::Request(owner), target.clone(), io);
                    }
                    Step::Error => {
                        slot.status = IOERR;
                        return lane.piece_failed(segment);
                    }
                };
                let Some(device) = devices.get(dev) else {
                    slot.status = IOERR;
                    return lane.piece_failed(segment);
                };
                if let Some(mapping) = chain.mapping(dev) {
                    mapping.forget(at.bytes(), len.bytes());
                }
                let owner = Owner { queue, slot: number, segment };
                let token = ops.draft(owner, action, dev.0, *device, at.bytes(), len.bytes()).token();
                slot.pending += 1;
                lane.started(dev);
                ops.start(engine, token);
            });
        }
    }

    /// The status of a discard or write-zeroes request that is wrong as a whole (virtio 1.2, 5.2.6.2): nothing of it is done.
    fn judge_ranges(&self, kind: Kind) -> Option<u8> {
        let known = match kind {
            // "the unmap flag MUST be set to zero for discard commands"
            Kind::Discard => 0,
            _ => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        };
        if self.request.malformed || self.chain.read_only {
            return Some(IOERR);
        }
        if self.request.ranges.iter().any(|r| r.flags & !known != 0) {
            return Some(UNSUPP);
        }
        if kind == Kind::Discard && self.chain.map.limits().discard.is_none() {
            return Some(UNSUPP);
        }
        let right = |r: &request::Range| r.len <= MAX_RANGE_SECTORS && self.in_range(r.at, u64::from(r.len));
        (!self.request.ranges.iter().all(right)).then_some(IOERR)
    }
}
