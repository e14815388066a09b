//! Which component sectors requests in flight use, so that no two of them race: what a model can foretell.

use crate::model::{Component, World};

/// Readers and writers of each sector.
#[derive(Clone, Debug)]
pub struct Locks {
    readers: Vec<Vec<u16>>,
    written: Vec<Vec<bool>>,
}

impl Locks {
    /// Nothing is in use.
    pub fn new(world: &World) -> Self {
        let sectors = |c: &Component| c.unsure.len();
        let sizes: Vec<usize> = world.components.iter().map(sectors).collect();
        Locks {
            readers: sizes.iter().map(|&n| vec![0; n]).collect(),
            written: sizes.iter().map(|&n| vec![false; n]).collect(),
        }
    }

    /// Takes the sectors for reading or writing; false if another request has one of them.
    pub fn take(&mut self, touched: &[(usize, u64)], write: bool) -> bool {
        let free = touched.iter().all(|&(c, s)| {
            let s = s as usize;
            !self.written[c][s] && (!write || self.readers[c][s] == 0)
        });
        for &(c, s) in touched.iter().filter(|_| free) {
            if write {
                self.written[c][s as usize] = true;
            } else {
                self.readers[c][s as usize] += 1;
            }
        }
        free
    }

    /// Gives back what [`take`](Self::take) took.
    pub fn release(&mut self, touched: &[(usize, u64)], write: bool) {
        for &(c, s) in touched {
            if write {
                self.written[c][s as usize] = false;
            } else {
                self.readers[c][s as usize] -= 1;
            }
        }
    }
}
