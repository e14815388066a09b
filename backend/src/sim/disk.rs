//! A device in memory: what reads find, what a crash would leave, and the contents in between.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::{Kind, Nature, Running};

/// Bytes that a crash keeps or loses together.
pub const SECTOR: usize = dm_table::SECTOR_SIZE as usize;

/// What every byte of a sector may become when a block device discards it, if it does not become 0 or stay.
pub const DISCARDED: u8 = 0xd5;

/// A content of a sector that is not known to be durable.
struct Version {
    // The command that wrote it, by its number.
    writer: u64,
    // Which report said that the command was done.
    reported: Option<u64>,
    bytes: [u8; SECTOR],
}

pub(super) struct Disk {
    pub(super) nature: Nature,
    bytes: Vec<u8>,
    durable: Vec<u8>,
    // Oldest first; the last is what `bytes` holds.
    pending: BTreeMap<usize, Vec<Version>>,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>, nature: Nature) -> Disk {
        Disk { nature, durable: bytes.clone(), bytes, pending: BTreeMap::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn truncate(&mut self, len: u64) {
        let sectors = len as usize / SECTOR;
        self.bytes.truncate(sectors * SECTOR);
        self.durable.truncate(sectors * SECTOR);
        self.pending.split_off(&sectors);
    }

    /// Does the first `len` bytes of a command, which lie inside the device if it is a transfer.
    pub(super) fn perform(&mut self, command: &Running, len: u64, rng: &mut Rng) {
        let from = (command.at as usize).min(self.bytes.len());
        let to = ((command.at + len) as usize).min(self.bytes.len());
        match command.kind {
            Kind::Read => self.read(command, from, to, rng),
            Kind::Write { durable } => {
                let mut at = from;
                for slice in &command.data {
                    at += slice.read(&mut self.bytes[at..to]);
                }
                self.written(from, to, command.number);
                if durable {
                    self.settle(from, to);
                }
            }
            Kind::Sync => self.sync(command.reports),
            Kind::PunchHole | Kind::ZeroRange => {
                self.bytes[from..to].fill(0);
                self.written(from, to, command.number);
            }
            Kind::BlockDiscard => {
                for sector in self.bytes[from..to].chunks_mut(SECTOR) {
                    match rng.u8(0..3) {
                        0 => sector.fill(0),
                        1 => sector.fill(DISCARDED),
                        _ => {}
                    }
                }
                self.written(from, to, command.number);
            }
        }
    }

    /// A device may use the rest of the buffer of a short read as it likes.
    fn read(&self, command: &Running, from: usize, to: usize, rng: &mut Rng) {
        let mut left = &self.bytes[from..to];
        let scribble = rng.bool();
        for slice in &command.data {
            let n = slice.write(left);
            left = &left[n..];
            if scribble {
                let rest = slice.part(n, usize::MAX);
                rest.write(&vec![!DISCARDED; rest.len()]);
            }
        }
    }

    fn written(&mut self, from: usize, to: usize, writer: u64) {
        for sector in sectors(from, to) {
            let mut bytes = [0; SECTOR];
            bytes.copy_from_slice(&self.bytes[sector * SECTOR..][..SECTOR]);
            self.pending.entry(sector).or_default().push(Version { writer, reported: None, bytes });
        }
    }

    /// A command was reported as done.
    pub(super) fn reported(&mut self, at: u64, len: u64, writer: u64, report: u64) {
        for sector in sectors(at as usize, (at + len) as usize) {
            let Some(versions) = self.pending.get_mut(&sector) else { continue };
            for version in versions.iter_mut().filter(|v| v.writer == writer) {
                version.reported = Some(report);
            }
        }
    }

    /// Makes durable what had been reported by report number `reports`, and nothing else.
    fn sync(&mut self, reports: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|sector, versions| {
            let known = |v: &Version| v.reported.is_some_and(|r| r <= reports);
            if let Some(last) = versions.iter().rposition(known) {
                durable[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[last].bytes);
                versions.drain(..=last);
            }
            !versions.is_empty()
        });
    }

    /// A sync has failed, and that was the only word of it: what some sectors hold will not become durable by any sync to
    /// come, though it can be read as if nothing had happened.
    pub(super) fn drop_unsynced(&mut self, rng: &mut Rng) {
        let share = [0, 50, 100][rng.usize(..3)];
        self.pending.retain(|_, _| rng.u8(..100) >= share);
    }

    /// Makes durable what the sectors hold now.
    fn settle(&mut self, from: usize, to: usize) {
        for sector in sectors(from, to) {
            let bytes = sector * SECTOR..(sector + 1) * SECTOR;
            self.durable[bytes.clone()].copy_from_slice(&self.bytes[bytes]);
            self.pending.remove(&sector);
        }
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        for (sector, versions) in std::mem::take(&mut self.pending) {
            // The durable content is one of the choices.
            let choice = rng.usize(0..=versions.len());
            if let Some(version) = versions.get(choice) {
                self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&version.bytes);
            }
        }
        self.bytes.clone_from(&self.durable);
    }
}

fn sectors(from: usize, to: usize) -> std::ops::Range<usize> {
    from / SECTOR..to.div_ceil(SECTOR)
}
