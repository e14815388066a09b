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
        let durable = self.write_through.load(Ordering::Relaxed);
        let owner = Owner { queue: self.index, slot };
        let Queue { slots, devices, request, chain, .. } = self;
        let slot = &mut slots[slot as usize];
        for range in &request.ranges {
            let action = match kind {
                Kind::Discard => Action::Discard,
                _ => Action::Zero { unmap: range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0, durable },
            };
            let (at, len) = (Sectors::new(range.at), Sectors::new(u64::from(range.len)));
            chain.map.ranges(at, len, &mut |step: Step, len: Sectors| match step {
                Step::Device { dev, at } => {
                    let Some(Some(device)) = devices.get(usize::from(dev.0)) else {
                        slot.status = IOERR;
                        return;
                    };
                    if let Some(mapping) = chain.mapping(dev) {
                        mapping.forget(at.bytes(), len.bytes());
                    }
                    let token = ops.draft(owner, action, dev.0, *device, at.bytes(), len.bytes()).token();
                    slot.pending += 1;
                    ops.start(engine, token);
                }
                Step::Target { target, at } => {
                    let Some(target) = chain.map.target(target) else {
                        slot.status = IOERR;
                        return;
                    };
                    slot.pending += 1;
                    let io = Io { action, at: at.get(), len: len.get(), data: Vec::new() };
                    tasks.spawn(owner.queue, Parent::Request(owner), target.clone(), io);
                }
                Step::Zero => {}
                Step::Error => slot.status = IOERR,
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
