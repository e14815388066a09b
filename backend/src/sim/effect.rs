//! What a command does to its device, and what becomes of it there.

use super::{Failure, Kind, Of, Running, SECTOR, State};

impl State {
    pub(super) fn take_effect(&mut self, of: Of) {
        let Some(mut command) = self.running.remove(&of) else { return };
        command.result = Some(match self.refusal(&command) {
            Some(errno) => -errno,
            None => match self.failure(&command) {
                Some(errno) => {
                    command.forgets = command.kind == Kind::Sync;
                    -errno
                }
                None => self.perform(&command, command.len),
            },
        });
        self.running.insert(of, command);
    }

    /// What the device will not do, or not now.
    fn refusal(&mut self, command: &Running) -> Option<i32> {
        let nature = self.disks[command.disk].nature;
        let aligned = |n: u64, to: u32| n.is_multiple_of(u64::from(to));
        let unit = nature.unit;
        if !aligned(command.at, unit)
            || !aligned(command.len, unit)
            || command
                .data
                .iter()
                .any(|s| !aligned(s.addr() as u64, nature.mem_align) || !aligned(s.len() as u64, unit))
        {
            return Some(libc::EINVAL);
        }
        let refused = match command.kind {
            Kind::PunchHole => nature.no_punch,
            Kind::ZeroRange => nature.no_zero,
            Kind::BlockDiscard => nature.no_discard,
            Kind::Read | Kind::Write { .. } | Kind::Sync => None,
        };
        if refused.is_some() {
            return refused;
        }
        let again = self.rng.u8(0..100) < self.temper.again;
        again.then(|| if self.rng.bool() { libc::EAGAIN } else { libc::EINTR })
    }

    /// A failure by order or by chance. A transfer that fails may have moved any part of its data.
    fn failure(&mut self, command: &Running) -> Option<i32> {
        let Running { disk, kind, at, len, number, .. } = *command;
        let hit = self.faults.iter().find(|f| {
            let touched = kind == Kind::Sync || (at < f.bytes.end && f.bytes.start < at + len);
            f.disk == disk && (f.applies)(kind) && touched
        });
        let (errno, clean) = match hit {
            Some(fault) => (fault.errno, fault.bytes.start.saturating_sub(at)),
            None if self.fail_number == Some(number) || self.rng.u16(0..1000) < self.temper.fail => (libc::EIO, 0),
            None => return None,
        };
        let transfer = matches!(kind, Kind::Read | Kind::Write { .. });
        let unit = if transfer { self.disks[disk].nature.unit.into() } else { SECTOR as u64 };
        if transfer && clean >= unit && self.rng.bool() {
            // Short, up to where the fault is: what goes on there will fail.
            return None;
        }
        self.failures.push(Failure { disk, kind, at, len });
        let before_fault = if clean > 0 { clean } else { len };
        if kind != Kind::Sync && before_fault >= unit && self.rng.bool() {
            let part = self.rng.u64(1..=before_fault / unit) * unit;
            self.perform(command, part);
        }
        Some(errno)
    }

    /// Does at most `most` bytes of a command, and may stop earlier if it is a transfer; returns its result.
    fn perform(&mut self, command: &Running, most: u64) -> i32 {
        let State { disks, rng, temper, faults, .. } = self;
        let disk = &mut disks[command.disk];
        let mut len = command.len.min(most);
        if matches!(command.kind, Kind::Read | Kind::Write { .. }) {
            let unit = u64::from(disk.nature.unit);
            len = len.min(disk.len().saturating_sub(command.at));
            if rng.u8(0..100) < temper.short && len > unit {
                // Both ends are worth more than their share.
                len = match rng.u8(0..4) {
                    0 => unit,
                    1 => len - unit,
                    _ => rng.u64(1..=len / unit) * unit,
                };
            }
            for fault in faults.iter().filter(|f| f.disk == command.disk && (f.applies)(command.kind)) {
                if (command.at..command.at + len).contains(&fault.bytes.start) {
                    len = (fault.bytes.start - command.at) / unit * unit;
                }
            }
            if len == 0 && matches!(command.kind, Kind::Write { .. }) {
                return -libc::ENOSPC;
            }
        }
        disk.perform(command, len, rng);
        match command.kind {
            Kind::Read | Kind::Write { .. } => len as i32,
            _ => 0,
        }
    }
}
