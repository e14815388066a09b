//! The component devices of a chain as a queue, or a job, does operations on them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use dm_table::Sectors;

use super::cursor::{Cursor, copied};
use super::ops::{Action, Device, Ops, Owner, Verdict};
use crate::chain::Chain;
use crate::device::Access;
use crate::engine::Engine;
use crate::guest::HostSlice;
use crate::limited;
use crate::map::DevIx;
use crate::stats::Lane;

/// See the module's text.
pub struct Devices {
    all: Vec<Option<Device>>,
    // A component may be handed over, and open another file, while a disk that only reads it is served.
    _files: Vec<Arc<File>>,
}

/// Whose operations they are.
pub(super) struct User<'a> {
    /// `disk.queue`, for the log.
    pub name: &'a str,
    pub chain: &'a Chain,
    pub lane: &'a Lane,
}

impl Devices {
    /// Makes the chain's files known to the engine.
    ///
    /// # Errors
    /// The engine's.
    pub fn new(chain: &Chain, ops: &mut Ops, engine: &mut impl Engine) -> io::Result<Devices> {
        let mut devices = Devices { all: Vec::new(), _files: Vec::new() };
        for (ix, component) in chain.reached() {
            let at = usize::from(ix.0);
            let open = component.file();
            let file = match engine.add_file(open.as_fd()) {
                Ok(file) => file,
                Err(error) => {
                    devices.forget(ops, engine);
                    return Err(error);
                }
            };
            devices._files.push(open);
            devices.all.resize(devices.all.len().max(at + 1), None);
            devices.all[at] = Some(Device {
                file,
                mask: match component.access {
                    Access::Direct { mem_align, offset_align } => mem_align.max(offset_align).max(1) as usize - 1,
                    Access::Buffered | Access::Mapped => 0,
                },
                discard: component.limits.discard.map(|d| d.method),
                unflushed: component.unflushed.as_ref().map(|unflushed| ops.remember(unflushed)),
            });
        }
        Ok(devices)
    }

    /// One of them.
    #[inline]
    pub fn get(&self, dev: DevIx) -> Option<&Device> {
        self.all.get(usize::from(dev.0))?.as_ref()
    }

    /// Forgets the files. Nothing may be under way on them.
    pub fn forget(&self, ops: &mut Ops, engine: &mut impl Engine) {
        for device in self.all.iter().flatten() {
            engine.remove_file(device.file);
            if let Some(index) = device.unflushed {
                ops.forget(index);
            }
        }
    }

    /// Starts an operation of a task. The errno where it has ended already.
    pub(super) fn start(
        &self,
        user: &User<'_>,
        (owner, action): (Owner, Action),
        (dev, at, len): (DevIx, u64, u64),
        data: &[HostSlice],
        (ops, engine): (&mut Ops, &mut impl Engine),
    ) -> Option<i32> {
        let Some(device) = self.get(dev) else { return Some(libc::EIO) };
        if let Some(mapping) = user.chain.mapping(dev) {
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
        let draft = ops.draft(owner, action, dev.0, *device, at, len);
        user.lane.started(dev);
        draft.data.extend_from_slice(data);
        let token = draft.token();
        ops.start(engine, token);
        None
    }
}

impl User<'_> {
    /// An operation of a task has ended.
    pub fn ended(&self, verdict: &Verdict, ns: u64) {
        let failed = verdict.errno != 0;
        if failed {
            self.failed(verdict);
        }
        let (sectors, dev) = (verdict.len / dm_table::SECTOR_SIZE, DevIx(verdict.device));
        self.lane.device_ended(dev, verdict.action.kind(), sectors, failed, ns);
    }

    #[cold]
    pub fn failed(&self, verdict: &Verdict) {
        let dev = DevIx(verdict.device);
        self.chain.failed(dev);
        self.lane.piece_failed(verdict.owner.segment);
        let device = self.chain.components.get(dev).map_or("?", |c| c.name.as_str());
        let error = io::Error::from_raw_os_error(verdict.errno);
        let sector = verdict.at / dm_table::SECTOR_SIZE;
        limited!(
            self.chain.limiters.requests,
            error,
            "{}: {} at sector {sector} of {device} failed: {error}",
            self.name,
            verdict.action
        );
    }
}
