//! What tasks of a queue do on component devices, and how they end.

use super::{IOERR, OK, Queue, UNSUPP};
use crate::engine::Engine;
use crate::guest::HostSlice;
use crate::map::DevIx;
use crate::stats::Clock;
use crate::worker::ops::{Action, NO_SEGMENT, Ops, Owner, Verdict};

impl Queue {
    /// Starts an operation of one of its tasks on a component device. The errno where it has ended already.
    pub(in crate::worker) fn start_for_task(
        &mut self,
        (join, action): (u32, Action),
        on: (DevIx, u64, u64),
        data: &[HostSlice],
        ops: &mut Ops,
        engine: &mut impl Engine,
    ) -> Option<i32> {
        let owner = Owner::task(self.index, join);
        self.devices.start(&self.user(), (owner, action), on, data, (ops, engine))
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
        self.user().ended(verdict, ns);
    }
}
