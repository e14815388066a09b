//! Reads and writes, cut into pieces; flushes; and the disk's identity.

use std::sync::atomic::Ordering;

use dm_table::Sectors;

use super::{IOERR, MAX_TRANSFER, Queue};
use crate::engine::Engine;
use crate::map::{Piece, Step};
use crate::request::{ID_LEN, Kind};
use crate::targets::Io;
use crate::worker::cursor::{Cursor, copied};
use crate::worker::ops::{Action, NO_SEGMENT, Ops, Owner};
use crate::worker::tasks::{Parent, Tasks};

impl Queue {
    #[inline]
    pub(super) fn transfer(
        &mut self,
        kind: Kind,
        slot: u32,
        ops: &mut Ops,
        tasks: &mut Tasks,
        engine: &mut impl Engine,
    ) {
        let write = kind == Kind::Write;
        let (at, bytes) = (self.request.at, self.request.data_len);
        let sectors = bytes / dm_table::SECTOR_SIZE;
        if !bytes.is_multiple_of(dm_table::SECTOR_SIZE)
            || !self.in_range(at, sectors)
            || (write && self.chain.read_only)
            || bytes > MAX_TRANSFER
        {
            self.slots[slot as usize].status = IOERR;
            return;
        }
        self.slots[slot as usize].sectors = sectors as u32;
        if self.watches {
            self.slots[slot as usize].watched = true;
            self.watch.begin(slot, write, std::iter::once((at, sectors)));
        }
        if !write {
            self.slots[slot as usize].written = bytes as u32;
        }
        let action = match write {
            true => Action::Write { durable: self.write_through.load(Ordering::Relaxed) },
            false => Action::Read,
        };
        let (queue, number) = (self.index, slot);
        let Queue { slots, devices, request, chain, lane, .. } = self;
        let slot = &mut slots[slot as usize];
        let mut cursor = Cursor::new(&request.data);
        chain.map.cut(Sectors::new(at), Sectors::new(sectors), write, &mut |piece: Piece| {
            let len = piece.len.bytes();
            lane.piece(piece.segment, write, piece.len.get());
            match piece.step {
                Step::Device { dev, at } => {
                    let Some(device) = devices.get(dev) else {
                        slot.status = IOERR;
                        lane.piece_failed(piece.segment);
                        return cursor.skip(len);
                    };
                    if let Some(mapping) = chain.mapping(dev)
                        && copied(mapping, write, at, &mut cursor, len)
                    {
                        return lane.copied(dev, slot.kind, piece.len.get());
                    }
                    let owner = Owner { queue, slot: number, segment: piece.segment };
                    let draft = ops.draft(owner, action, dev.0, *device, at.bytes(), len);
                    cursor.take(len, |slice| draft.data.push(slice));
                    let token = draft.token();
                    slot.pending += 1;
                    lane.started(dev);
                    ops.start(engine, token);
                }
                Step::Target { target, at } => {
                    let Some(target) = chain.map.target(target) else {
                        slot.status = IOERR;
                        lane.piece_failed(piece.segment);
                        return cursor.skip(len);
                    };
                    let mut data = tasks.slices();
                    cursor.take(len, |slice| data.push(slice));
                    slot.pending += 1;
                    let owner = Owner { queue, slot: number, segment: piece.segment };
                    let io = Io { action, at: at.get(), len: piece.len.get(), data };
                    tasks.spawn(queue, Parent::Request(owner), target.clone(), io);
                }
                Step::Zero if write => cursor.skip(len),
                Step::Zero => cursor.take(len, |slice| slice.fill_zero()),
                Step::Error => {
                    slot.status = IOERR;
                    lane.piece_failed(piece.segment);
                    cursor.skip(len);
                }
            }
        });
    }

    pub(super) fn flush(&mut self, slot: u32, ops: &mut Ops, tasks: &mut Tasks, engine: &mut impl Engine) {
        if self.chain.read_only {
            return;
        }
        let owner = Owner { queue: self.index, slot, segment: NO_SEGMENT };
        for target in self.chain.map.targets() {
            self.slots[slot as usize].pending += 1;
            let io = Io { action: Action::Flush, at: 0, len: 0, data: Vec::new() };
            tasks.spawn(owner.queue, Parent::Request(owner), target.clone(), io);
        }
        for ix in self.chain.map.flush_set() {
            let Some(device) = self.devices.get(*ix) else { continue };
            if self.chain.mapping(*ix).is_some() {
                // Memory is all the storage there is: fsync(2) does nothing on these file systems.
                continue;
            }
            let token = ops.draft(owner, Action::Flush, ix.0, *device, 0, 0).token();
            self.slots[slot as usize].pending += 1;
            self.lane.started(*ix);
            ops.start(engine, token);
        }
    }

    /// virtio 1.2, 5.2.6: the identity is a 20-byte string, not terminated when it fills them.
    pub(super) fn get_id(&mut self, slot: u32) {
        if self.request.data_len < ID_LEN as u64 {
            self.slots[slot as usize].status = IOERR;
            return;
        }
        let mut done = 0;
        for slice in &self.request.data {
            done += slice.write(&self.serial[done..]);
        }
        self.slots[slot as usize].written = ID_LEN as u32;
    }
}
