//! One queue kept at a constant depth, by polling or by interrupts. The loop allocates nothing and takes
//! one look at the clock for each batch, since the client shares the machine with what it measures.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::cpu::Reading;
use super::histogram::Histogram;
use crate::blk::{self, UNTOUCHED, kind};
use crate::memory::Window;
use crate::ring::{Desc, F_NEXT, F_WRITE, Ring};
use crate::vmm::{Setup, Vmm};

/// What is asked for, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Pattern {
    Randread,
    Randwrite,
    Seqread,
    Seqwrite,
}

impl Pattern {
    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Pattern::Randwrite | Pattern::Seqwrite)
    }

    fn random(self) -> bool {
        matches!(self, Pattern::Randread | Pattern::Randwrite)
    }

    /// The name that fio gives it.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Randread => "randread",
            Pattern::Randwrite => "randwrite",
            Pattern::Seqread => "read",
            Pattern::Seqwrite => "write",
        }
    }
}

/// How the client learns of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mode {
    /// Watches the used ring without pause.
    Poll,
    /// Sleeps until the call eventfd is signalled, as a guest does.
    Event,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What to do.
    pub pattern: Pattern,
    /// Bytes of each request, a multiple of 512.
    pub block: usize,
    /// Requests in flight.
    pub depth: usize,
    /// How to wait.
    pub mode: Mode,
    /// Runs this long before anything counts.
    pub warm_up: Duration,
    /// Counts for this long.
    pub time: Duration,
    /// Ends earlier, after so many requests; 0 for no such end.
    pub operations: u64,
    /// Seed of the offsets.
    pub seed: u64,
    /// Process whose CPU time is read.
    pub pid: Option<u32>,
    /// EVENT_IDX, if offered.
    pub event_idx: bool,
    /// In-flight tracking, if offered, as QEMU and cloud-hypervisor ask for it.
    pub inflight: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Requests a second.
    pub iops: f64,
    /// Median latency, nanoseconds.
    pub p50: u64,
    /// 99th percentile of latency, nanoseconds.
    pub p99: u64,
    /// CPU time of the back end for each request, nanoseconds.
    pub cpu: f64,
    /// Requests counted.
    pub operations: u64,
    /// Kicks for each request.
    pub kicks: f64,
}

/// Descriptors of a request: header, data, status.
const CHAIN: usize = 3;
/// How long a client in event mode waits before it calls the request lost.
const PATIENCE: Duration = Duration::from_secs(60);

struct Slot {
    meta: Window,
    started: Instant,
}

struct Client {
    ring: Ring,
    slots: Vec<Slot>,
    rng: Rng,
    pattern: Pattern,
    sectors: u64,
    blocks: u64,
    next: u64,
    histogram: Histogram,
}

/// A front end that has nothing in flight any more and stays connected, its ring running, until dropped.
#[derive(Debug)]
pub struct Idle {
    _vmm: Vmm,
    _ring: Ring,
}

/// Runs one job over a connected socket, and hangs up.
pub fn run(stream: UnixStream, job: &Job) -> io::Result<Sample> {
    run_and_stay(stream, job).map(|(sample, _)| sample)
}

/// Runs one job over a connected socket, and stays connected.
pub fn run_and_stay(stream: UnixStream, job: &Job) -> io::Result<(Sample, Idle)> {
    let queue_size = (CHAIN * job.depth).next_power_of_two().clamp(128, 1024);
    let setup = Setup {
        queue_size: queue_size as u16,
        slots: job.depth,
        slot_bytes: (job.block as u64 + 8192).next_multiple_of(4096),
        inflight: job.inflight,
        ..Setup::default()
    };
    let setup = if job.event_idx { setup } else { setup.without(blk::feature::EVENT_IDX) };
    let mut vmm = Vmm::handshake(stream, &setup)?;
    let sectors = (job.block / 512) as u64;
    let blocks = vmm.config.capacity / sectors;
    if blocks == 0 || job.depth == 0 || CHAIN * job.depth > queue_size {
        return Err(io::Error::other("block size or depth does not fit the disk or the ring"));
    }
    vmm.start()?;
    vmm.sync()?;
    let queue = vmm.queues.remove(0);
    let mut client = Client {
        ring: queue.ring,
        slots: Vec::with_capacity(job.depth),
        rng: Rng::with_seed(job.seed),
        pattern: job.pattern,
        sectors,
        blocks,
        next: 0,
        histogram: Histogram::default(),
    };
    client.ring.want_interrupts(job.mode == Mode::Event);
    for (number, arena) in queue.arenas.iter().enumerate() {
        client.lay_out(&vmm, number, arena.gpa, job.block);
    }
    let sample = client.measure(job)?;
    Ok((sample, Idle { _vmm: vmm, _ring: client.ring }))
}

impl Client {
    /// Writes the descriptors of one slot once and for all.
    fn lay_out(&mut self, vmm: &Vmm, number: usize, meta: u64, block: usize) {
        let kind = if self.pattern.writes() { kind::OUT } else { kind::IN };
        vmm.memory.write(meta, &blk::header(kind, 0));
        let mut noise = vec![0; block];
        self.rng.fill(&mut noise);
        vmm.memory.write(meta + 4096, &noise);
        let first = (CHAIN * number) as u16;
        let data_flags = if self.pattern.writes() { 0 } else { F_WRITE };
        let chain = [(meta, 16, F_NEXT), (meta + 4096, block as u32, F_NEXT | data_flags), (meta + 32, 1, F_WRITE)];
        for (i, (addr, len, flags)) in chain.into_iter().enumerate() {
            let index = first + i as u16;
            self.ring.write_desc(index, Desc { addr, len, flags, next: index + 1 });
        }
        self.slots.push(Slot { meta: vmm.memory.window(meta), started: Instant::now() });
    }

    #[inline]
    fn push(&mut self, number: usize, now: Instant) {
        let block = if self.pattern.random() {
            self.rng.u64(..self.blocks)
        } else {
            self.next = if self.next == self.blocks { 0 } else { self.next };
            self.next += 1;
            self.next - 1
        };
        let slot = &mut self.slots[number];
        slot.meta.store_u64(8, block * self.sectors);
        slot.meta.store_u64(32, u64::from(UNTOUCHED));
        slot.started = now;
        self.ring.push_head((CHAIN * number) as u16);
    }

    /// Takes what came back and, unless it is to be the last, sends as many again. Returns how many came.
    #[inline]
    fn turn(&mut self, now: Instant, again: bool) -> io::Result<u64> {
        let mut came = 0;
        while let Some(used) = self.ring.pop_fixed() {
            let number = usize::from(used.head) / CHAIN;
            let slot = self.slots.get(number).ok_or_else(|| io::Error::other("a wrong head came back"))?;
            let status = slot.meta.load_u64(32) as u8;
            if status != blk::OK {
                return Err(io::Error::other(format!("a request failed with status {status:#x}")));
            }
            self.histogram.record((now - slot.started).as_nanos() as u64);
            came += 1;
            if again {
                self.push(number, now);
            }
        }
        if came > 0 && again {
            self.ring.publish_and_kick();
        }
        Ok(came)
    }

    fn wait(&self, mode: Mode) -> io::Result<()> {
        match mode {
            Mode::Event if !self.ring.wait_used(PATIENCE) => {
                Err(io::Error::other("a request did not come back within 10 seconds"))
            }
            Mode::Event => Ok(()),
            Mode::Poll => {
                let mut spins = 0u64;
                while !self.ring.has_used() {
                    std::hint::spin_loop();
                    spins += 1;
                    if spins == 1 << 32 {
                        return Err(io::Error::other("a request did not come back"));
                    }
                }
                Ok(())
            }
        }
    }

    fn measure(&mut self, job: &Job) -> io::Result<Sample> {
        let begin = Instant::now();
        for number in 0..job.depth {
            self.push(number, begin);
        }
        self.ring.publish_and_kick();
        let warm = begin + job.warm_up;
        let mut now = begin;
        while now < warm {
            self.wait(job.mode)?;
            now = Instant::now();
            self.turn(now, true)?;
        }
        self.histogram.clear();
        let cpu = job.pid.map(Reading::take);
        let kicks = self.ring.kicks;
        let start = Instant::now();
        let end = start + job.time;
        let mut done = 0;
        while now < end && (job.operations == 0 || done < job.operations) {
            self.wait(job.mode)?;
            now = Instant::now();
            done += self.turn(now, true)?;
        }
        let cpu = cpu.map_or(0, |reading| reading.until_now());
        let kicks = self.ring.kicks - kicks;
        let elapsed = now - start;
        let (p50, p99) = (self.histogram.quantile(0.5), self.histogram.quantile(0.99));
        while self.ring.in_flight() > 0 {
            self.wait(job.mode)?;
            self.turn(Instant::now(), false)?;
        }
        Ok(Sample {
            iops: done as f64 / elapsed.as_secs_f64(),
            p50,
            p99,
            cpu: cpu as f64 / done.max(1) as f64,
            operations: done,
            kicks: kicks as f64 / done.max(1) as f64,
        })
    }
}
