//! What tasks of a queue do on component devices, and how they end.

use dm_table::Sectors;

use super::{IOERR, OK, Queue, UNSUPP};
use crate::engine::Engine;
use crate::guest::HostSlice;
use crate::map::DevIx;
use crate::stats::Clock;
use crate::worker::cursor::{Cursor, copied};
use crate::worker::ops::{Action, NO_SEGMENT, Ops, Owner, Verdict};

impl Queue {
    /// Starts an operation of one of its tasks on a component device. The errno where it has ended already.
    pub(in crate::worker) fn start_for_task(
        &mut self,
        (join, action): (u32, Action),
        (dev, at, len): (DevIx, u64, u64),
        data: &[HostSlice],
        ops: &mut Ops,
        engine: &mut impl Engine,
    ) -> Option<i32> {
        let Some(Some(device)) = self.devices.get(usize::from(dev.0)) else { return Some(libc::EIO) };
        if let Some(mapping) = self.chain.mapping(dev) {
            let sector = Sectors::new(at / dm_table::SECTOR_SIZE);
            match action {
                Action::Read | Action::Write { .. } => {
                    if copied(mapping, action != Action::Read, sector, &mut Cursor::new(data), len) {
                        return Some(0);
                    }
                }
                Action::Flush => return Some(0),
                Action::Discard | Action::Zero { .. } => mapping.forget(at, len),
            }
        }
        let draft = ops.draft(Owner::task(self.index, join), action, dev.0, *device, at, len);
        self.lane.started(dev);
        draft.data.extend_from_slice(data);
        let token = draft.token();
        ops.start(engine, token);
        None
    }

    /// A request's task has ended.
    pub(in crate::worker) fn task_ended(&mut self, owner: Owner, errno: i32, clock: &mut Clock) {
        let status = match errno {
            0 => OK,
            libc::EOPNOTSUPP => UNSUPP,
            _ => IOERR,
        };
        if status != OK && owner.segment != NO_SEGMENT {
            self.lane.piece_failed(owner.segment);
        }
        let slot = &self.slots[owner.slot as usize];
        let (kind, ns) = (slot.kind, clock.now().saturating_sub(slot.began));
        if self.settle(owner.slot, status) {
            self.lane.took(kind, ns, 1);
        }
    }

    /// An operation of one of its tasks has ended.
    pub(in crate::worker) fn task_operation_ended(&mut self, verdict: &Verdict, ns: u64) {
        let failed = verdict.errno != 0;
        if failed {
            self.failed(verdict);
        }
        let (sectors, dev) = (verdict.len / dm_table::SECTOR_SIZE, DevIx(verdict.device));
        self.lane.device_ended(dev, verdict.action.kind(), sectors, failed, ns);
    }
}
