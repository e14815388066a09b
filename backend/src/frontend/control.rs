//! One queue as the front end steers it: while it is set up, ready and enabled a worker serves it, else nothing does.
//!
//! Every call that stops a queue returns when the queue has drained.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::chain::Chain;
use crate::device::OpenError;
use crate::disk::Disk;
use crate::guest::{DirtyLog, Guest, Inflight, LogError, Record, RingError, SplitRing};
use crate::limit::Limiter;
use crate::limited;
use crate::map::DevIx;
use crate::worker::ops::UnderWay;
use crate::worker::pool::Pool;
use crate::worker::queue::{Setup, signal_error};
use crate::worker::{Answer, Worker};

/// What all queues of a session share.
pub struct Shared {
    /// What is served.
    pub disk: Arc<Disk>,
    /// The guest's memory as the front end set it last.
    pub guest: Mutex<Option<Arc<Guest>>>,
    /// Where requests under way are recorded, if the front end keeps such a place.
    pub inflight: Mutex<Option<Arc<Inflight>>>,
    /// Where writing to guest memory is to be marked, while the front end asks for it.
    pub log: Mutex<Option<Arc<DirtyLog>>>,
    /// Writes are complete only when they are on stable storage.
    pub write_through: Arc<AtomicBool>,
    /// Where workers come from.
    pub pool: Arc<Pool>,
    /// The process ends: nothing may start any more.
    pub closing: AtomicBool,
}

/// Where a ring is and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Available index to go on at.
    pub base: u16,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// What the front end has set up of a queue, and who serves it.
#[derive(Default)]
pub(super) struct State {
    ready: bool,
    enabled: bool,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    config: Option<RingConfig>,
    worker: Option<Arc<Worker>>,
    // The worker's number of the queue that it serves, and what of.
    running: Option<(u32, Arc<Chain>)>,
    // Where the queue stopped, until it is started again or the front end says where to go on. The protocol's own copy of
    // the index is that of the last SET_VRING_BASE.
    stopped_at: Option<u16>,
    // A size that the front end asked for and the specification does not allow.
    bad_size: Option<u16>,
}

impl State {
    /// Whether a worker should serve the queue.
    fn wanted(&self) -> bool {
        self.ready && self.enabled && self.kick.is_some()
    }
}

/// See the module's text.
pub struct QueueControl {
    index: usize,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

/// A queue that its worker has been asked to hold, and what tells that nothing is under way.
pub(super) type Holding<'a> = (&'a QueueControl, MutexGuard<'a, State>, Receiver<()>);

/// Somebody else steers the queue.
pub(super) struct Busy;

/// A queue that a worker has been asked to serve.
struct Starting {
    answer: Answer<std::io::Result<u32>>,
    chain: Arc<Chain>,
    base: u16,
}

/// A queue that a worker has been asked to stop.
pub(super) struct Stopping {
    answer: std::io::Result<Answer<u16>>,
    chain: Arc<Chain>,
}

/// Queues go on after [`QueueControl::pause`], or may be served now: all of them at a time, as each waits for its worker.
pub(super) fn resume<'a>(queues: impl IntoIterator<Item = &'a QueueControl>) {
    let begin = |queue: &'a QueueControl| {
        let mut state = queue.state();
        let starting = if state.wanted() && state.running.is_none() { queue.begin_start(&mut state) } else { None };
        starting.map(|starting| (queue, state, starting))
    };
    let begun: Vec<_> = queues.into_iter().filter_map(begin).collect();
    for (queue, mut state, starting) in begun {
        queue.end_start(&mut state, starting);
    }
}

/// Why a queue cannot be served.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the front end has set no memory regions")]
    NoMemory,
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{0}; it is tried again when the front end starts the queue again")]
    Taken(#[from] OpenError),
    #[error("cannot start a worker: {0}")]
    Worker(#[from] std::io::Error),
}

impl QueueControl {
    /// A queue that is not set up.
    pub fn new(index: usize, shared: Arc<Shared>) -> QueueControl {
        QueueControl { index, shared, state: Mutex::default() }
    }

    // A panic elsewhere ends the process (panic = "abort"), so a poisoned lock is a lock in a test.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ring has been started or stopped (SET_VRING_KICK, GET_VRING_BASE). When it stops, returns the available index
    /// at which it stopped, if it was being served.
    pub fn set_ready(&self, ready: bool, config: RingConfig) -> Option<u16> {
        let mut state = self.state();
        state.ready = ready;
        self.steer(&mut state, config)
    }

    /// The ring has been enabled or disabled (SET_VRING_ENABLE). As [`QueueControl::set_ready`].
    pub fn set_enabled(&self, enabled: bool, config: RingConfig) -> Option<u16> {
        let mut state = self.state();
        state.enabled = enabled;
        self.steer(&mut state, config)
    }

    /// The size that SET_VRING_NUM asks for, in entries.
    pub fn set_size(&self, size: u16) {
        self.state().bad_size = (!size.is_power_of_two()).then_some(size);
    }

    /// # Errors
    /// The size is not a power of two (virtio 1.2, 2.7).
    pub fn check_size(&self) -> Result<(), virtio_queue::Error> {
        match self.state().bad_size {
            Some(size) => {
                limited!(self.limiter(), error, "{}: {}", self.name(), RingError::Size(size));
                Err(virtio_queue::Error::InvalidSize)
            }
            None => Ok(()),
        }
    }

    /// The front end says at which available index to go on (SET_VRING_BASE).
    pub fn set_base(&self) {
        self.state().stopped_at = None;
    }

    fn steer(&self, state: &mut State, config: RingConfig) -> Option<u16> {
        match (state.wanted(), &state.running) {
            (true, None) => {
                let base = state.stopped_at.unwrap_or(config.base);
                state.config = Some(RingConfig { base, ..config });
                self.start(state);
                None
            }
            (false, Some(_)) => {
                // A guest that stops while its memory is logged goes elsewhere, as far as one can tell.
                let logged = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                self.drain(state, logged)
            }
            (false, None) => state.stopped_at,
            (true, Some(_)) => None,
        }
    }

    /// Another descriptor to be kicked by; a queue that is being served goes on with it.
    pub fn set_kick(&self, kick: Option<File>) {
        let mut state = self.state();
        self.stop(&mut state);
        state.kick = kick;
        if state.wanted() {
            self.start(&mut state);
        }
    }

    /// Another descriptor to notify by.
    pub fn set_call(&self, call: Option<File>) {
        self.never_wait(call.as_ref());
        let mut state = self.state();
        if let (Some(worker), Some((queue, _))) = (&state.worker, &state.running)
            && let Err(error) = worker.set_call(*queue, self.dup(call.as_ref()))
        {
            limited!(self.limiter(), error, "{}: {error}", self.name());
        }
        state.call = call;
    }

    /// Another descriptor to tell by that the ring is broken; a queue that is being served goes on with it.
    pub fn set_err(&self, err: Option<File>) {
        self.never_wait(err.as_ref());
        let mut state = self.state();
        self.stop(&mut state);
        state.err = err;
        if state.wanted() {
            self.start(&mut state);
        }
    }

    /// A worker must never wait for a front end that does not read its notifications.
    fn never_wait(&self, file: Option<&File>) {
        let Some(file) = file else { return };
        let flags = rustix::fs::fcntl_getfl(file).unwrap_or(rustix::fs::OFlags::empty());
        if let Err(error) = rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK) {
            limited!(
                self.limiter(),
                warn,
                "{}: cannot make the notification descriptor non-blocking: {error}",
                self.name()
            );
        }
    }

    /// The ring has moved (SET_VRING_ADDR while it is being served, or should be).
    pub fn relocate(&self, config: RingConfig) {
        let mut state = self.state();
        let Some(old) = state.config else { return };
        if !state.wanted() || (RingConfig { base: old.base, ..config }) == old {
            return;
        }
        self.stop(&mut state);
        let base = state.stopped_at.unwrap_or(old.base);
        state.config = Some(RingConfig { base, ..config });
        self.start(&mut state);
    }

    /// Stops for a while, so that memory or table can be exchanged; [`QueueControl::resume`] goes on.
    pub fn pause(&self) {
        self.stop(&mut self.state());
    }

    /// Goes on after [`QueueControl::pause`].
    pub fn resume(&self) {
        resume([self]);
    }

    /// Has the worker take no more requests. Until the lock is let go nobody else steers the queue; the receiver tells when
    /// nothing is under way. `None` if the queue is not being served.
    ///
    /// # Errors
    /// Its front end steers it at this moment, and perhaps waits for its drain.
    pub(super) fn hold(&self) -> Result<Option<Holding<'_>>, Busy> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Busy),
        };
        let (Some(worker), Some((queue, _))) = (&state.worker, &state.running) else { return Ok(None) };
        let rest = worker.hold(*queue).unwrap_or_else(|_| channel().1);
        Ok(Some((self, state, rest)))
    }

    /// Goes on after [`QueueControl::hold`].
    pub(super) fn go(&self, state: &State) {
        if let (Some(worker), Some((queue, _))) = (&state.worker, &state.running)
            && let Err(error) = worker.go(*queue)
        {
            limited!(self.limiter(), error, "{}: {error}", self.name());
        }
    }

    /// What component devices have not ended, with their names.
    pub(super) fn under_way(&self, state: &State) -> Vec<(String, UnderWay)> {
        let (Some(worker), Some((queue, chain))) = (&state.worker, &state.running) else { return Vec::new() };
        let name = |op: &UnderWay| chain.components.get(DevIx(op.device)).map_or("?", |component| &component.name);
        let list = worker.under_way(*queue).unwrap_or_default();
        list.into_iter().map(|op| (name(&op).to_owned(), op)).collect()
    }

    /// Stops for good: drains. The worker that served it is the caller's to end.
    pub fn end(&self) -> Option<Arc<Worker>> {
        let mut state = self.state();
        self.stop(&mut state);
        std::mem::take(&mut *state).worker
    }

    fn start(&self, state: &mut State) {
        if let Some(starting) = self.begin_start(state) {
            self.end_start(state, starting);
        }
    }

    /// Has a worker serve the queue, if it may; [`QueueControl::end_start`] is to follow.
    fn begin_start(&self, state: &mut State) -> Option<Starting> {
        if self.shared.closing.load(Ordering::Acquire) || self.shared.disk.is_blocked() {
            return None;
        }
        self.try_start(state).unwrap_or_else(|error| {
            self.cannot_start(state, &error);
            None
        })
    }

    fn end_start(&self, state: &mut State, starting: Starting) {
        match starting.answer.wait().and_then(|started| started) {
            Ok(queue) => {
                state.running = Some((queue, starting.chain));
                state.stopped_at = None;
                log::debug!("{}: served from index {}", self.name(), starting.base);
            }
            Err(error) => {
                self.shared.disk.hold.leave(&starting.chain, false);
                self.cannot_start(state, &error.into());
            }
        }
    }

    fn cannot_start(&self, state: &State, error: &StartError) {
        limited!(self.limiter(), error, "{}: the queue cannot be served: {error}", self.name());
        signal_error(state.err.as_ref());
    }

    fn try_start(&self, state: &mut State) -> Result<Option<Starting>, StartError> {
        let (Some(config), Some(kick)) = (state.config, self.dup(state.kick.as_ref())) else { return Ok(None) };
        if let Some(size) = state.bad_size {
            return Err(RingError::Size(size).into());
        }
        let guest = self.shared.guest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let guest = guest.ok_or(StartError::NoMemory)?;
        let mut ring = SplitRing::new(&guest, config.size, config.desc, config.avail, config.used)?;
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(log) = log {
            log.check_covers(&guest)?;
            ring = ring.logged(log, config.used);
        }
        let record = self.record(config.size);
        let base = self.first_index(&ring, config, record.is_some());
        let worker = match &mut state.worker {
            Some(worker) => worker,
            none => none.insert(self.shared.pool.worker(&format!("queue-{}", self.index))?),
        };
        let chain = self.shared.disk.chain();
        let setup = Setup {
            name: self.name(),
            chain: chain.clone(),
            lane: self.shared.disk.stats.lane(self.index, &chain),
            serial: self.shared.disk.serial,
            guest,
            ring,
            base,
            record,
            event_idx: config.event_idx,
            kick,
            call: self.dup(state.call.as_ref()),
            err: self.dup(state.err.as_ref()),
            write_through: self.shared.write_through.clone(),
        };
        let hold = &self.shared.disk.hold;
        hold.enter(&chain, || !self.shared.closing.load(Ordering::Acquire))?;
        match worker.start(setup) {
            Ok(answer) => Ok(Some(Starting { answer, chain, base })),
            Err(error) => {
                hold.leave(&chain, false);
                Err(error.into())
            }
        }
    }

    /// Where requests are recorded, if there is such a place.
    fn record(&self, size: u16) -> Option<Record> {
        let inflight = self.shared.inflight.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record::new(inflight.as_ref()?, self.index, size);
        if record.is_none() {
            limited!(
                self.limiter(),
                warn,
                "{}: the in-flight region has no room for a ring of {size} entries, which is served in order instead",
                self.name()
            );
        }
        record
    }

    /// Where a ring goes on of which no record tells. used.idx does: a back end that serves in order has given back what
    /// stands in front of it, and a base that is ahead would leave requests without an answer (cloud-hypervisor says
    /// avail.idx after a crash). A record that has been used before knows better than either.
    fn first_index(&self, ring: &SplitRing, config: RingConfig, recorded: bool) -> u16 {
        let used = ring.used_idx();
        let unanswered = config.base.wrapping_sub(used);
        if unanswered == 0 || unanswered > config.size {
            return config.base;
        }
        if !recorded {
            limited!(
                self.limiter(),
                info,
                "{}: goes on at used index {used} and not at {}, so that {unanswered} requests get their answer",
                self.name(),
                config.base
            );
        }
        used
    }

    fn stop(&self, state: &mut State) -> Option<u16> {
        self.drain(state, false)
    }

    fn drain(&self, state: &mut State, handed_over: bool) -> Option<u16> {
        let stopping = self.begin_stop(state)?;
        self.end_stop(state, stopping, handed_over)
    }

    /// Has the worker stop; [`QueueControl::end_stop`] is to follow.
    pub(super) fn begin_stop(&self, state: &mut State) -> Option<Stopping> {
        let (queue, chain) = state.running.take()?;
        let answer = state.worker.as_ref()?.stop(queue);
        Some(Stopping { answer, chain })
    }

    pub(super) fn end_stop(&self, state: &mut State, stopping: Stopping, handed_over: bool) -> Option<u16> {
        let next = stopping.answer.and_then(Answer::wait);
        self.shared.disk.hold.leave(&stopping.chain, handed_over);
        match next {
            Ok(next) => {
                if let Some(config) = &mut state.config {
                    config.base = next;
                }
                state.stopped_at = Some(next);
                log::debug!("{}: stopped at index {next}", self.name());
                Some(next)
            }
            Err(error) => {
                limited!(self.limiter(), error, "{}: {error}", self.name());
                None
            }
        }
    }

    /// A descriptor of our own for what the front end passed.
    pub fn dup(&self, file: Option<&File>) -> Option<File> {
        match file?.as_fd().try_clone_to_owned() {
            Ok(fd) => Some(fd.into()),
            Err(error) => {
                limited!(
                    self.limiter(),
                    error,
                    "{}: cannot duplicate a descriptor of the front end: {error}",
                    self.name()
                );
                None
            }
        }
    }

    fn name(&self) -> String {
        format!("{}, queue {}", self.shared.disk.name(), self.index)
    }

    fn limiter(&self) -> &Limiter {
        &self.shared.disk.limiters.control
    }
}
