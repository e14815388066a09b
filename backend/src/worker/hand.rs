//! A worker without a thread, for tests: it has a turn when the test gives it one.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::jobs::Job;
use super::ops::Ops;
use super::poll::Poll;
use super::queue::Setup;
use super::{Core, Mail};
use crate::sim::Sim;

thread_local! {
    static PRETENDED: Cell<Option<ThreadId>> = const { Cell::new(None) };
}

/// The thread that a worker's turn is on, as far as the worker can tell.
pub(super) fn pretended() -> Option<ThreadId> {
    PRETENDED.get()
}

/// See the module's text.
pub(crate) struct Hand {
    // No other worker has it.
    thread: ThreadId,
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
        let thread = std::thread::spawn(|| std::thread::current().id()).join().expect("a thread's number");
        PRETENDED.set(Some(thread));
        let core = Core::new(sim.clone(), ops, Poll::fixed(0), Some(ring.clone()));
        PRETENDED.set(None);
        Hand { thread, core, sim, ring, rung: false }
    }

    /// Does something on its thread.
    fn on_thread<T>(&mut self, act: impl FnOnce(&mut Core<Sim>) -> T) -> T {
        PRETENDED.set(Some(self.thread));
        let done = act(&mut self.core);
        PRETENDED.set(None);
        done
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
        self.on_thread(|core| core.start(setup)).expect("a queue")
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
        self.on_thread(|core| {
            core.turn().expect("the simulated engine never fails");
            core.finish_stops();
        });
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
