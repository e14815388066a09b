//! A worker without a thread, for tests: it has a turn when the test gives it one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::jobs::Job;
use super::ops::Ops;
use super::poll::Poll;
use super::queue::Setup;
use super::{Core, Mail};
use crate::sim::Sim;

/// See the module's text.
pub(crate) struct Hand {
    core: Core<Sim>,
    sim: Sim,
    // What other workers wake it by.
    ring: Arc<EventFd>,
    // A message has come: it has a turn even if its devices leave it asleep.
    rung: bool,
}

impl Hand {
    /// A worker over an engine of its own.
    pub fn new(sim: Sim) -> Hand {
        let ring = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let ops = Ops::new().expect("bounce buffers");
        let core = Core::new(sim.clone(), ops, Poll::fixed(0), Some(ring.clone()));
        Hand { core, sim, ring, rung: false }
    }

    /// Its engine; what was under way has gone.
    pub fn engine(self) -> Sim {
        self.sim
    }

    fn post<T>(&mut self, mail: impl FnOnce(Sender<T>) -> Mail) -> Receiver<T> {
        let (sender, answer) = channel();
        self.core.read(mail(sender));
        self.rung = true;
        answer
    }

    /// Serves a queue; its number.
    pub fn start(&mut self, setup: Setup) -> u32 {
        self.rung = true;
        self.core.start(setup).expect("a queue")
    }

    /// See `Worker::stop`.
    pub fn stop(&mut self, queue: u32) -> Receiver<u16> {
        self.post(|answer| Mail::Stop(queue, answer))
    }

    /// See `Worker::hold`.
    pub fn hold(&mut self, queue: u32) -> Receiver<()> {
        self.post(|answer| Mail::Hold(queue, answer))
    }

    /// See `Worker::go`.
    pub fn go(&mut self, queue: u32) {
        self.post(|_: Sender<()>| Mail::Go(queue));
    }

    /// See `Worker::wake`.
    pub fn wake(&mut self) {
        self.post(|_: Sender<()>| Mail::Wake);
    }

    /// See `Worker::job`.
    pub fn job(&mut self, job: Job) -> Receiver<Result<(), String>> {
        self.post(|answer| Mail::Job(Box::new(job), answer))
    }

    /// Its loop, once; `false` when it sleeps and nothing wakes it.
    pub fn turn(&mut self) -> bool {
        let called = self.ring.read().is_ok();
        if self.sim.asleep() && !called && !std::mem::take(&mut self.rung) {
            return false;
        }
        self.core.turn().expect("the simulated engine never fails");
        self.core.finish_stops();
        true
    }

    /// Fails unless everything is back in its place: slots of operations, of tasks and of what tasks wait for, and buffers.
    /// Nothing may be under way.
    pub fn check_idle(&self) {
        self.core.ops.check_idle();
        self.core.tasks.check_idle();
        self.core.local.0.borrow().check_idle();
    }
}
