//! Memory for what targets keep for a while: data that is copied, metadata.

use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::rc::Rc;
use std::task::Poll;

use super::cx::{Cx, Local};
use crate::guest::Buffer;

/// Longest buffer, in bytes.
pub const LONGEST: usize = 1 << 20;
/// Bytes that the targets of a worker may have at a time.
const MOST: usize = if cfg!(test) { 2 << 20 } else { 64 << 20 };
/// Shortest buffer that is made, in bytes; the others are powers of two.
const SHORTEST: usize = 4096;

/// A worker's buffers.
#[derive(Default)]
pub(super) struct Pool {
    // By the logarithm of their length.
    spare: Vec<Vec<Rc<Buffer>>>,
    // Bytes in leases, and in spare buffers.
    leased: usize,
    kept: usize,
    // Bytes in leases by the depth of the tasks that have them.
    depths: Vec<usize>,
    // Tasks that wait for one.
    waiting: Vec<u32>,
}

impl Pool {
    /// A task may hold one while it waits for a target below, whose task asks for one in turn. So those of each depth have
    /// one at least, however much those above have.
    fn take(&mut self, len: usize, depth: usize) -> Option<io::Result<Rc<Buffer>>> {
        self.depths.resize(self.depths.len().max(depth + 1), 0);
        if self.leased + len > MOST && self.depths[depth] > 0 {
            return None;
        }
        let class = len.trailing_zeros() as usize;
        let spare = self.spare.get_mut(class).and_then(Vec::pop);
        let buffer = match spare {
            Some(buffer) => {
                self.kept -= len;
                Ok(buffer)
            }
            None => Buffer::new(len).map(Rc::new),
        };
        if buffer.is_ok() {
            self.leased += len;
            self.depths[depth] += len;
        }
        Some(buffer)
    }

    /// The tasks that it may be given to come to `ready`.
    fn give(&mut self, buffer: Rc<Buffer>, depth: usize, ready: &mut Vec<u32>) {
        let len = buffer.slice().len();
        let class = len.trailing_zeros() as usize;
        self.leased -= len;
        self.depths[depth] -= len;
        if self.kept + len <= MOST / 4 {
            self.kept += len;
            self.spare.resize_with(self.spare.len().max(class + 1), Vec::new);
            self.spare[class].push(buffer);
        }
        ready.append(&mut self.waiting);
    }
}

#[cfg(test)]
impl Pool {
    /// Fails unless all have been given back.
    pub fn check_idle(&self) {
        assert_eq!(self.leased, 0, "bytes in buffers that were not given back");
    }
}

/// A buffer of the worker's pool; dropped, it goes back.
pub struct Lease {
    // Shared only for the moment in which it goes back.
    buffer: Rc<Buffer>,
    depth: usize,
    local: Local,
}

impl Deref for Lease {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        &self.buffer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.local.0.borrow_mut();
        let inner = &mut *inner;
        inner.pool.give(self.buffer.clone(), self.depth, &mut inner.ready);
    }
}

impl Cx {
    /// A buffer of at least `len` bytes, at most [`LONGEST`], that begins on a page. What is in it is left from its last use.
    /// Waits while the targets of this worker have as much as they may: a task that holds one while it asks for another
    /// might wait for itself.
    ///
    /// # Errors
    /// ENOMEM; EINVAL for one that is too long.
    pub async fn buffer(&self, len: usize) -> Result<Lease, i32> {
        if len > LONGEST {
            return Err(libc::EINVAL);
        }
        let len = len.max(SHORTEST).next_power_of_two();
        let depth = self.depth as usize;
        let buffer = poll_fn(|_| {
            let mut inner = self.local.0.borrow_mut();
            match inner.pool.take(len, depth) {
                Some(buffer) => Poll::Ready(buffer),
                None => {
                    inner.pool.waiting.push(self.task);
                    Poll::Pending
                }
            }
        });
        let buffer = buffer.await.map_err(|error| error.raw_os_error().unwrap_or(libc::ENOMEM))?;
        Ok(Lease { buffer, depth, local: self.local.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_below_others_get_a_buffer_however_much_those_above_have() {
        let mut pool = Pool::default();
        let all = |pool: &mut Pool, depth| -> Vec<Rc<Buffer>> {
            std::iter::from_fn(|| pool.take(LONGEST / 2, depth)).map(|buffer| buffer.expect("memory")).collect()
        };
        let above = all(&mut pool, 0);
        assert_eq!(above.len() * LONGEST / 2, MOST);
        let below = all(&mut pool, 1);
        assert_eq!((below.len(), all(&mut pool, 2).len()), (1, 1), "each level has one, and no more");
        let mut ready = Vec::new();
        pool.waiting.push(7);
        pool.give(below[0].clone(), 1, &mut ready);
        assert_eq!((ready, all(&mut pool, 0).len(), all(&mut pool, 1).len()), (vec![7], 0, 1));
    }
}
