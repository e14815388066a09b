//! What a disk may hold: of each sector all contents that the requests so far allow, now and after a crash.

use super::driver::{Op, What};
use crate::sim::{DISCARDED, SECTOR};

pub(super) type Bytes = [u8; SECTOR];

struct Version {
    bytes: Box<Bytes>,
    /// When its request came back, if that said that it is there.
    done: Option<u64>,
    durable: bool,
}

struct Cell {
    // Oldest first; the first is certain and durable.
    versions: Vec<Version>,
    busy: bool,
}

/// See the module's text.
pub(super) struct Model {
    cells: Vec<Cell>,
    clock: u64,
}

/// A request that is under way.
pub(super) struct Ticket {
    pub op: Op,
    began: u64,
}

/// Whether `seen` begins like `new` and goes on like `old`: sectors are not torn by a crash, but by a device that stops.
fn mixed(old: &Bytes, new: &Bytes, seen: &Bytes) -> bool {
    let begin = seen.iter().zip(new).take_while(|(a, b)| a == b).count();
    seen[begin..] == old[begin..]
}

impl Cell {
    /// Whether it may be what one of the versions from `first` on is, or what is left where one stopped being written.
    fn allows(&self, first: usize, seen: &Bytes) -> bool {
        if self.versions.is_empty() {
            return true;
        }
        let versions = &self.versions[first..];
        let pairs =
            versions.iter().enumerate().flat_map(|(n, old)| versions[n + 1..].iter().map(move |new| (old, new)));
        versions.iter().any(|v| *v.bytes == *seen) || { pairs }.any(|(old, new)| mixed(&old.bytes, &new.bytes, seen))
    }

    fn now(&self) -> usize {
        self.versions.iter().rposition(|v| v.done.is_some()).unwrap_or(0)
    }
}

impl Model {
    pub fn new(contents: &[u8]) -> Model {
        let version = |bytes: &[u8]| Version {
            bytes: Box::new(bytes.try_into().expect("a sector")),
            done: Some(0),
            durable: true,
        };
        let cells = contents.chunks(SECTOR).map(|bytes| Cell { versions: vec![version(bytes)], busy: false });
        Model { cells: cells.collect(), clock: 0 }
    }

    /// Of a disk of which nothing is known.
    pub fn anything(len: u64) -> Model {
        let mut model = Model::new(&vec![0; len as usize * SECTOR]);
        model.cells.iter_mut().for_each(|cell| cell.versions.clear());
        model
    }

    pub fn len(&self) -> u64 {
        self.cells.len() as u64
    }

    fn range(&mut self, op: &Op) -> &mut [Cell] {
        &mut self.cells[op.at as usize..(op.at + op.len) as usize]
    }

    /// Whether a request of the driver is at any of these sectors.
    pub fn busy(&mut self, op: &Op) -> bool {
        op.what != What::Flush && self.range(op).iter().any(|cell| cell.busy)
    }

    pub fn begin(&mut self, op: Op) -> Ticket {
        self.clock += 1;
        let began = self.clock;
        if op.what != What::Flush {
            let written = op.data.clone();
            for (n, cell) in self.range(&op).iter_mut().enumerate() {
                cell.busy = true;
                let mut may =
                    |bytes: Bytes| cell.versions.push(Version { bytes: Box::new(bytes), done: None, durable: false });
                match op.what {
                    What::Write => may(written[n * SECTOR..][..SECTOR].try_into().expect("a sector")),
                    What::Zeroes => may([0; SECTOR]),
                    What::Discard => {
                        may([DISCARDED; SECTOR]);
                        may([0; SECTOR]);
                    }
                    What::Read | What::Flush => {}
                }
            }
        }
        Ticket { op, began }
    }

    /// A request has come back. `durable`: it was to be on stable storage by then.
    pub fn end(&mut self, ticket: Ticket, ok: bool, data: &[u8], durable: bool) {
        self.clock += 1;
        let (clock, Ticket { op, began }) = (self.clock, ticket);
        if op.what == What::Flush {
            if ok {
                self.flushed(began);
            }
            return;
        }
        for (n, cell) in self.range(&op).iter_mut().enumerate() {
            cell.busy = false;
            match op.what {
                What::Read if ok => {
                    let seen = data[n * SECTOR..][..SECTOR].try_into().expect("a sector");
                    let right = cell.allows(cell.now(), seen);
                    assert!(
                        right,
                        "a read of sector {} gives {:?}..., right is {:?}",
                        op.at + n as u64,
                        &seen[..8],
                        cell
                    );
                }
                What::Write | What::Zeroes if ok => {
                    let last = cell.versions.last_mut().expect("what was written");
                    (last.done, last.durable) = (Some(clock), durable);
                }
                _ => {}
            }
            if durable && ok {
                cell.prune();
            }
        }
    }

    /// A flush that began at `began` has come back.
    fn flushed(&mut self, began: u64) {
        for cell in &mut self.cells {
            let before = |v: &Version| v.done.is_some_and(|done| done < began);
            if let Some(last) = cell.versions.iter().rposition(before) {
                cell.versions[last].durable = true;
            }
            cell.prune();
        }
    }

    /// What the whole disk holds, when nothing is under way.
    pub fn check_now(&self, seen: &[u8]) {
        for (at, (cell, seen)) in self.cells.iter().zip(seen.chunks(SECTOR)).enumerate() {
            let seen = seen.try_into().expect("a sector");
            assert!(cell.allows(cell.now(), seen), "sector {at} holds {:?}..., right is {cell:?}", &seen[..8]);
        }
    }

    /// What the whole disk holds after a crash; it is what the disk holds from here on.
    pub fn crashed(&mut self, seen: &[u8]) {
        for (at, (cell, seen)) in self.cells.iter().zip(seen.chunks(SECTOR)).enumerate() {
            let seen = seen.try_into().expect("a sector");
            assert!(cell.allows(0, seen), "sector {at} holds {:?}... after a crash, right is {cell:?}", &seen[..8]);
        }
        *self = Model::new(seen);
    }
}

impl Cell {
    fn prune(&mut self) {
        if let Some(last) = self.versions.iter().rposition(|v| v.durable) {
            self.versions.drain(..last);
        }
    }
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = f.debug_list();
        for v in &self.versions {
            let state = match (v.done, v.durable) {
                (_, true) => "durable",
                (Some(_), _) => "written",
                (None, _) => "perhaps",
            };
            list.entry(&format_args!("{:?}... ({state})", &v.bytes[..8]));
        }
        list.finish()
    }
}
