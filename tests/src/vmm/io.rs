//! Requests through a [`Vmm`].

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::Vmm;
use crate::blk::{Data, OK, Prepared, Request, SECTOR, Segment, Shape, kind, segments};

/// A request that takes longer hangs: disks of this kind answer in milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The slot it was submitted in.
    pub slot: usize,
    /// Status byte.
    pub status: u8,
    /// What the data buffers hold, for requests that read.
    pub data: Vec<u8>,
    /// Bytes written, as the used ring says.
    pub written: u32,
}

/// Status of a request that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed(pub u8);

impl Vmm {
    /// Lays a request out in a free slot and makes it available, unpublished.
    pub fn submit(&mut self, queue: usize, slot: usize, request: &Request<'_>, shape: &Shape, rng: &mut Rng) {
        let q = &mut self.queues[queue];
        assert!(q.requests[slot].is_none(), "test bug: slot {slot} is busy");
        let prepared = Prepared::new(&self.memory, q.arenas[slot], request, shape, rng);
        let head = q.ring.add(&self.memory, &prepared.bufs, prepared.table);
        let head = head.expect("test bug: more descriptors than the ring has");
        q.slot_of_head[usize::from(head)] = Some(slot);
        q.requests[slot] = Some(prepared);
    }

    /// Publishes what was submitted, with a notification if the device wants one.
    pub fn kick(&mut self, queue: usize) {
        self.queues[queue].ring.publish_and_kick();
    }

    /// Takes one request that came back, checking that the device kept inside the buffers it may write.
    pub fn complete(&mut self, queue: usize) -> Option<Done> {
        let q = &mut self.queues[queue];
        let used = q.ring.pop()?;
        let slot = q.slot_of_head.get_mut(usize::from(used.head)).and_then(Option::take);
        let slot = slot.unwrap_or_else(|| panic!("head {} was not in flight", used.head));
        let request = q.requests[slot].take().expect("busy slots have a request");
        if let Some(gpa) = request.trespass(&self.memory) {
            panic!("the device changed {gpa:#x}, outside of what it may write: {request:x?}");
        }
        let writable = request.writable();
        assert!(u64::from(used.len) <= writable, "used length {} of a chain with {writable} writable bytes", used.len);
        Some(Done {
            slot,
            status: request.status(&self.memory),
            data: if writable > 1 { request.read_data(&self.memory) } else { Vec::new() },
            written: used.len,
        })
    }

    /// Waits for the next request of a queue to come back.
    ///
    /// # Panics
    ///
    /// After a minute: the request is lost.
    pub fn wait(&mut self, queue: usize) -> Done {
        let interrupts = self.setup.interrupts && !self.setup.no_call;
        let ring = &self.queues[queue].ring;
        let arrived = if interrupts { ring.wait_used(PATIENCE) } else { ring.spin_used(PATIENCE) };
        assert!(arrived, "{} requests of queue {queue} did not come back", ring.in_flight());
        self.complete(queue).expect("a completion is there")
    }

    /// Takes whatever completion comes first on any queue.
    pub fn wait_any(&mut self) -> (usize, Done) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for queue in 0..self.queues.len() {
                if let Some(done) = self.complete(queue) {
                    return (queue, done);
                }
            }
            assert!(Instant::now() < deadline, "no request came back");
            std::thread::yield_now();
        }
    }

    /// One request alone on a queue that has nothing in flight.
    pub fn run(&mut self, queue: usize, request: &Request<'_>) -> Done {
        let mut rng = self.rng.fork();
        self.submit(queue, 0, request, &Shape::PLAIN, &mut rng);
        self.kick(queue);
        self.wait(queue)
    }

    fn check(done: Done) -> Result<Vec<u8>, Failed> {
        match done.status {
            OK => Ok(done.data),
            status => Err(Failed(status)),
        }
    }

    /// Reads `len` bytes.
    pub fn read(&mut self, queue: usize, sector: u64, len: usize) -> Result<Vec<u8>, Failed> {
        let data = Data::FromDevice(len);
        let kind = kind::IN;
        Self::check(self.run(queue, &Request { kind, sector, data }))
    }

    /// Writes bytes.
    pub fn write(&mut self, queue: usize, sector: u64, bytes: &[u8]) -> Result<(), Failed> {
        let data = Data::ToDevice(bytes);
        let kind = kind::OUT;
        Self::check(self.run(queue, &Request { kind, sector, data })).map(drop)
    }

    /// Flushes.
    pub fn flush(&mut self, queue: usize) -> Result<(), Failed> {
        let request = Request { kind: kind::FLUSH, sector: 0, data: Data::None };
        Self::check(self.run(queue, &request)).map(drop)
    }

    /// The 20 bytes of the serial number.
    pub fn get_id(&mut self, queue: usize) -> Result<Vec<u8>, Failed> {
        let request = Request { kind: kind::GET_ID, sector: 0, data: Data::FromDevice(20) };
        Self::check(self.run(queue, &request))
    }

    /// Discard or write-zeroes over the given segments.
    pub fn ranges(&mut self, queue: usize, kind: u32, ranges: &[Segment]) -> Result<(), Failed> {
        let payload = segments(ranges);
        let data = Data::ToDevice(&payload);
        let sector = 0;
        Self::check(self.run(queue, &Request { kind, sector, data })).map(drop)
    }

    /// The whole disk, read in pieces of 64 KiB.
    pub fn read_all(&mut self, queue: usize) -> Result<Vec<u8>, Failed> {
        let total = self.config.capacity * SECTOR;
        let mut out = Vec::with_capacity(total as usize);
        while (out.len() as u64) < total {
            let len = (total - out.len() as u64).min(64 << 10) as usize;
            out.extend(self.read(queue, out.len() as u64 / SECTOR, len)?);
        }
        Ok(out)
    }
}
