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
    // Tasks that wait for one.
    waiting: Vec<u32>,
}

impl Pool {
    fn take(&mut self, len: usize) -> Option<io::Result<Rc<Buffer>>> {
        if self.leased + len > MOST {
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
        }
        Some(buffer)
    }

    /// The tasks that it may be given to come to `ready`.
    fn give(&mut self, buffer: Rc<Buffer>, ready: &mut Vec<u32>) {
        let len = buffer.slice().len();
        let class = len.trailing_zeros() as usize;
        self.leased -= len;
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
        inner.pool.give(self.buffer.clone(), &mut inner.ready);
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
        let buffer = poll_fn(|_| {
            let mut inner = self.local.0.borrow_mut();
            match inner.pool.take(len) {
                Some(buffer) => Poll::Ready(buffer),
                None => {
                    inner.pool.waiting.push(self.task);
                    Poll::Pending
                }
            }
        });
        let buffer = buffer.await.map_err(|error| error.raw_os_error().unwrap_or(libc::ENOMEM))?;
        Ok(Lease { buffer, local: self.local.clone() })
    }
}
