//! What the statistics say, held against what the drivers saw: every request of the process that lives now is counted
//! once, whatever was stopped, started and done again for a predecessor.

use crate::stats::{KINDS, Snapshot};
use crate::worker::simulation::traffic::{OK, Request, What};

use super::Rig;

/// Requests that came back from the process that lives now.
#[derive(Default)]
pub(super) struct Tally {
    /// By kind: operations, sectors, errors.
    kinds: [(u64, u64, u64); KINDS.len()],
    refused: u64,
    /// Reads and writes of sectors of the disk: first sector, number.
    ranges: [Vec<(u64, u64)>; 2],
    /// By kind, the component of each sector that was to be touched.
    touched: [Vec<usize>; KINDS.len()],
}

impl Tally {
    pub fn came_back(&mut self, request: &Request, status: u8) {
        let kind = match request.what {
            What::Read => 0,
            What::Write => 1,
            What::Flush => 2,
            What::Discard => 3,
            What::Zeroes => 4,
            What::GetId => return,
            What::Unknown | What::NoStatus | What::NoHeader => {
                self.refused += 1;
                return;
            }
        };
        let (ops, sectors, errors) = &mut self.kinds[kind];
        *ops += 1;
        *sectors += request.ranges.iter().map(|(_, len)| len).sum::<u64>();
        *errors += u64::from(status != OK);
        self.ranges[usize::from(kind > 0)].extend(&request.ranges);
        self.touched[kind].extend(request.touched.iter().map(|touch| touch.part));
    }

    /// Sectors of reads, or writes, that lie in a segment.
    fn in_segment(&self, write: bool, start: u64, len: u64) -> u64 {
        let overlap = |(at, n): &(u64, u64)| (at + n).min(start + len).saturating_sub(start.max(*at));
        self.ranges[usize::from(write)].iter().map(overlap).sum()
    }
}

impl Rig {
    /// When all requests have come back and the queues have stopped.
    pub(super) fn check_counts(&self) {
        let side = self.side.borrow();
        let tally = &side.tally;
        let Snapshot { device, segments, components, workers, .. } = self.stats.snapshot("disk", 0, &self.chain, true);
        for (kind, right) in KINDS.iter().zip(tally.kinds) {
            let counted = &device.kinds[*kind];
            let is = (counted.ops, counted.sectors, counted.errors);
            assert_eq!(is, right, "{kind}: operations, sectors, errors; after {} kills", self.killed);
        }
        assert_eq!((device.refused, device.in_flight, device.queues), (tally.refused, 0, 0));
        assert!(workers.is_empty());
        let mut next = 0;
        for segment in &segments {
            assert_eq!(segment.start, next);
            next += segment.len;
            let right = [false, true].map(|write| tally.in_segment(write, segment.start, segment.len));
            assert_eq!([segment.read_sectors, segment.written_sectors], right, "{segment:?}");
        }
        assert_eq!(next, self.chain.len().get());
        for ((ix, _), component) in self.chain.components.iter().zip(&components) {
            assert_eq!(component.in_flight, 0);
            for (kind, touched) in KINDS.iter().zip(&tally.touched) {
                let right = touched.iter().filter(|part| **part == usize::from(ix.0)).count() as u64;
                assert_eq!(component.kinds[*kind].sectors, right, "{kind} on {}", component.name);
            }
        }
    }
}
