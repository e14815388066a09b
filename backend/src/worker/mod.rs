//! Worker threads: each owns an engine, and the queues that were given to it from start to drain.
//!
//! The control side talks to a worker by messages and waits for its answers; on the path of a request nothing is shared.

pub(crate) mod bell;
pub(crate) mod cursor;
pub mod devices;
mod dirty;
mod gather;
#[cfg(test)]
pub(crate) mod hand;
pub mod jobs;
#[cfg(test)]
pub(crate) mod mischief;
pub mod ops;
pub mod poll;
pub mod pool;
pub mod queue;
pub mod returns;
#[cfg(test)]
mod simulation;
pub mod tasks;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::engine::{Engine, Event, Wait};
use crate::stats::{self, Clock, Meter};
use bell::Bell;
use gather::Gather;
use jobs::{Job, Jobs};
use ops::{Ops, Owner, UnderWay};
use poll::{Lookers, Pace, Poll};
use pool::WorkerSettings;
use queue::{Queue, Setup};
use tasks::{Parent, Tasks};

use crate::targets::cx::{Local, Start, What};

/// Watch number of the worker's own mailbox; the others are indices of queues plus one.
const MAILBOX: u32 = 0;

enum Mail {
    Start(Box<Setup>, Sender<io::Result<u32>>),
    Stop(u32, Sender<u16>),
    SetCall(u32, Option<File>, Sender<()>),
    Hold(u32, Sender<()>),
    Go(u32),
    UnderWay(u32, Sender<Vec<UnderWay>>),
    Job(Box<Job>, Sender<Result<(), String>>),
    Wake,
    Exit,
}

/// A running worker thread; dropped, it ends. Its queues must have been stopped.
#[derive(Debug)]
pub struct Worker {
    mailbox: Sender<Mail>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread with a ring of its own, on the CPU that is worker `number`'s.
    ///
    /// # Errors
    /// No thread, no io_uring, no memory.
    pub fn spawn(name: &str, settings: &WorkerSettings, number: usize) -> io::Result<Worker> {
        let settings = settings.clone();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (mailbox, mail) = channel();
        let (ready, started) = channel();
        let its_bell = bell.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The ring takes commands from the thread that made it only.
            let ring = || pool::ring(settings.register_memory);
            let made = settings.cpus.place(number).and_then(|()| Ok((ring()?, Ops::new()?)));
            match made {
                Ok((engine, ops)) => {
                    let ring = Some(its_bell.clone());
                    let mut core = Core::new(engine, ops, Poll::new(settings.poll, Lookers::of_process()), ring);
                    core.engine.watch(its_bell.as_raw_fd(), MAILBOX);
                    // The spawning thread waits for this; if it is gone there is no one to serve.
                    if ready.send(Ok(())).is_ok() {
                        core.run(&mail, &its_bell);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv().map_err(|_| gone())??;
        Ok(Worker { mailbox, bell, thread: Some(thread) })
    }

    fn post(&self, mail: Mail) -> io::Result<()> {
        self.mailbox.send(mail).map_err(|_| gone())?;
        self.bell.write(1)
    }

    /// Has the thread end, which the end of this handle waits for.
    pub fn leave(&self) {
        let _ = self.post(Mail::Exit);
    }

    /// Serves a queue. The answer is its number for the other calls; or the engine's error, when the queue's files cannot be
    /// made known to it.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn start(&self, setup: Setup) -> io::Result<Answer<io::Result<u32>>> {
        let (answer, started) = channel();
        self.post(Mail::Start(Box::new(setup), answer))?;
        Ok(Answer(started))
    }

    /// Stops a queue. The answer comes when it has drained, and nothing of it touches guest memory or a component any more:
    /// the available index at which it stopped.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn stop(&self, queue: u32) -> io::Result<Answer<u16>> {
        let (answer, stopped) = channel();
        self.post(Mail::Stop(queue, answer))?;
        Ok(Answer(stopped))
    }

    /// Has a queue take no more requests. The receiver gets something, or loses its sender, when all that were under way have
    /// ended; [`Worker::go`] takes it back at any time.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn hold(&self, queue: u32) -> io::Result<Receiver<()>> {
        let (answer, held) = channel();
        self.post(Mail::Hold(queue, answer))?;
        Ok(held)
    }

    /// Has a queue take requests again.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn go(&self, queue: u32) -> io::Result<()> {
        self.post(Mail::Go(queue))
    }

    /// Operations of a queue that component devices have not ended, in no order.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn under_way(&self, queue: u32) -> io::Result<Vec<UnderWay>> {
        let (answer, told) = channel();
        self.post(Mail::UnderWay(queue, answer))?;
        told.recv().map_err(|_| gone())
    }

    /// Notifies by another descriptor from now on.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn set_call(&self, queue: u32, call: Option<File>) -> io::Result<()> {
        let (answer, done) = channel();
        self.post(Mail::SetCall(queue, call, answer))?;
        done.recv().map_err(|_| gone())
    }
}

/// What a worker will answer.
#[derive(Debug)]
pub struct Answer<T>(Receiver<T>);

impl<T> Answer<T> {
    /// Waits for it.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn wait(self) -> io::Result<T> {
        self.0.recv().map_err(|_| gone())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.leave();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the worker thread is gone")
}

struct Place {
    queue: Queue,
    // Set while the queue drains: who waits for it.
    stop: Option<Sender<u16>>,
    // Set while the queue takes no requests until further notice, and its last ones have not ended: who waits for them.
    hold: Option<Sender<()>>,
    // Whether the kick descriptor is still with the engine.
    watched: bool,
}

/// The worker's own side, over any engine.
pub(crate) struct Core<E> {
    pub(crate) engine: E,
    ops: Ops,
    tasks: Tasks,
    jobs: Jobs,
    local: Local,
    ended: Vec<(Owner, i32)>,
    starts: Vec<Start>,
    queues: Vec<Option<Place>>,
    // Some queue's chain has stateful targets, or there is a job: only then is there anything to be done for tasks.
    stateful: bool,
    events: Vec<Event>,
    poll: Poll,
    gather: Gather,
    // What the worker waited for in the sleep before this turn, and how long.
    woken: Option<(Pace, Duration)>,
    rung: bool,
    // It is to end when its jobs have, and the memory of guests is given back.
    ending: bool,
    clock: Clock,
    meter: Arc<Meter>,
}

impl<E: Engine> Core<E> {
    /// `ring` ends a sleep when it becomes readable.
    pub(crate) fn new(engine: E, ops: Ops, poll: Poll, ring: Option<Arc<EventFd>>) -> Core<E> {
        let (clock, meter) = (Clock::default(), Arc::new(Meter::of_thread()));
        let local = Local::default();
        let tasks = Tasks::new(local.clone(), Bell::new(ring));
        Core {
            engine,
            ops,
            tasks,
            jobs: Jobs::default(),
            local,
            ended: Vec::new(),
            starts: Vec::new(),
            queues: Vec::new(),
            stateful: false,
            events: Vec::new(),
            poll,
            gather: Gather::default(),
            woken: None,
            rung: false,
            ending: false,
            clock,
            meter,
        }
    }

    fn run(&mut self, mail: &Receiver<Mail>, bell: &EventFd) {
        loop {
            if let Err(error) = self.turn() {
                // Nothing of this ring can be completed any more: the guest is better off with a new process.
                log::error!("io_uring fails: {error}; stopping");
                std::process::exit(1);
            }
            if std::mem::take(&mut self.rung) {
                let _ = bell.read();
                while let Ok(mail) = mail.try_recv() {
                    self.read(mail);
                }
            }
            if self.is_over() {
                return;
            }
            self.finish_stops();
        }
    }

    /// Whether the thread is to end, and nothing keeps it.
    #[inline]
    fn is_over(&self) -> bool {
        // Locked memory counts against the next worker's as long as the system takes to close this one's ring.
        self.ending && !self.jobs.any() && !self.engine.is_giving_back()
    }

    /// One turn: new requests in, one system call or a few, completions out. Where there is nothing to do it looks again
    /// for a while, or sleeps.
    #[inline]
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        let mut taken = 0;
        self.clock.begin();
        let stateful = self.stateful;
        if stateful {
            self.local.0.borrow_mut().fire(self.engine.now());
        }
        for place in self.queues.iter_mut().flatten() {
            taken += place.queue.take(&mut self.ops, &mut self.tasks, &mut self.engine, &mut self.clock);
            // What needed no device is done already.
            place.queue.publish();
        }
        if stateful {
            self.drive();
            // What a task has ended without a device.
            self.queues.iter_mut().flatten().for_each(|place| place.queue.publish());
        }
        let busy = taken > 0;
        if let Some((pace, time)) = self.woken.take()
            && busy
        {
            self.poll.slept(pace, time);
        }
        let pace = Pace::of(self.ops.under_way());
        let wait = self.how_to_wait(pace, taken);
        let sleep = matches!(wait, Wait::Event | Wait::Until(_));

        let mut events = std::mem::take(&mut self.events);
        self.clock.pass();
        let result = self.engine.turn(wait, &mut events);
        let slept = sleep.then(|| self.wake());
        // A kick for a request that was taken before the sleep says nothing: only what brought work counts.
        self.woken = slept.filter(|_| self.poll.adapts(pace)).map(|time| (pace, time));
        if self.woken.is_some()
            && events.iter().any(|event| matches!(event, Event::Done { .. }))
            && let Some((pace, time)) = self.woken.take()
        {
            self.poll.slept(pace, time);
        }
        if sleep && !events.is_empty() && self.poll.pays(Pace::Idle) {
            // Before completions are published: whoever answers them at once is looked for.
            self.queues.iter_mut().flatten().for_each(|place| place.queue.stay_awake());
        }
        if busy || !events.is_empty() {
            self.worked();
        }
        let mut ended = 0;
        for event in events.drain(..) {
            ended += usize::from(self.handle(event));
        }
        self.events = events;
        self.gather.ended(ended, self.ops.under_way());
        if stateful {
            // The turn may have slept.
            self.local.0.borrow_mut().fire(self.engine.now());
            self.drive();
        }
        for place in self.queues.iter_mut().flatten() {
            place.queue.publish();
        }
        result
    }

    /// What the engine is to do where so many requests have been taken.
    #[inline]
    fn how_to_wait(&mut self, pace: Pace, taken: usize) -> Wait {
        let look = if taken > 0 { self.poll.pays(pace) } else { self.poll.again(pace) };
        if self.gather.waits(taken, self.engine.has_unseen()) && self.poll.pays(Pace::Deep) {
            return Wait::Gather;
        }
        let look = look || (self.stateful && self.tasks.any_ready()) || self.is_over();
        if look || !self.queues.iter_mut().flatten().all(|place| place.queue.fall_asleep()) {
            return Wait::No;
        }
        self.gather.forget();
        self.meter.looked(self.poll.vain());
        self.meter.sleeps(stats::now());
        match self.next_timer() {
            None => Wait::Event,
            Some(due) => Wait::Until(due),
        }
    }

    /// When a task is to be woken, where no other reason to turn comes earlier.
    #[inline]
    fn next_timer(&self) -> Option<u64> {
        if self.stateful { self.local.0.borrow().next_timer() } else { None }
    }

    /// Runs tasks, and does what they begin, until all of them wait, or have been run for a while.
    fn drive(&mut self) {
        loop {
            self.tasks.run(&mut self.ended);
            for (owner, errno) in self.ended.drain(..) {
                if let Some(Some(place)) = self.queues.get_mut(owner.queue as usize) {
                    place.queue.task_ended(owner, errno, &mut self.clock);
                }
            }
            let mut starts = std::mem::take(&mut self.starts);
            std::mem::swap(&mut starts, &mut self.local.0.borrow_mut().starts);
            let begun = !starts.is_empty();
            for start in starts.drain(..) {
                self.begin(start);
            }
            self.starts = starts;
            if !begun {
                self.end_jobs();
                return;
            }
        }
    }

    fn begin(&mut self, Start { join, task, what }: Start) {
        let queue = self.tasks.queue(task).unwrap_or(u32::MAX);
        match what {
            What::Target { target, io } => self.tasks.spawn(queue, Parent::Join(join), target, io),
            What::Device { dev, action, at, len, data } => {
                let ended = match self.queues.get_mut(queue as usize) {
                    Some(Some(place)) => {
                        let (ops, engine) = (&mut self.ops, &mut self.engine);
                        place.queue.start_for_task((join, action), (dev, at, len), &data, ops, engine)
                    }
                    _ => match self.jobs.of(queue) {
                        Some(job) => job.devices.start(
                            &job.user(),
                            (Owner::task(queue, join), action),
                            (dev, at, len),
                            &data,
                            (&mut self.ops, &mut self.engine),
                        ),
                        None => Some(libc::EIO),
                    },
                };
                let mut local = self.local.0.borrow_mut();
                local.begin(join, self.clock.now());
                local.spare(data);
                if let Some(errno) = ended {
                    local.done(join, errno);
                }
            }
        }
    }

    /// After a sleep; returns how long it was.
    fn wake(&mut self) -> Duration {
        let now = stats::now();
        self.clock.woke(now);
        Duration::from_nanos(self.meter.woke(now))
    }

    /// There was something to do.
    #[inline]
    fn worked(&mut self) {
        let weight = self.clock.weight();
        if weight > 0 {
            self.meter.looked(weight * self.poll.looking());
        }
        self.poll.found();
        self.meter.turned();
        self.clock.worked();
    }

    /// Whether a request has ended, so that its driver may have the next one ready.
    #[inline]
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Done { token, result } => {
                let Some(verdict) = self.ops.complete(&mut self.engine, token, result) else { return false };
                let Some(join) = verdict.owner.join() else {
                    return match self.queues.get_mut(verdict.owner.queue as usize) {
                        Some(Some(place)) => place.queue.complete(&verdict, &mut self.clock),
                        _ => false,
                    };
                };
                let mut local = self.local.0.borrow_mut();
                let ns = self.clock.now().saturating_sub(local.began(join));
                match self.queues.get_mut(verdict.owner.queue as usize) {
                    Some(Some(place)) => place.queue.task_operation_ended(&verdict, ns),
                    _ => {
                        self.jobs.of(verdict.owner.queue).into_iter().for_each(|job| job.operation_ended(&verdict, ns))
                    }
                }
                local.done(join, verdict.errno);
            }
            Event::Ready { watch: MAILBOX } => self.rung = true,
            // The queues are looked at on every turn; a kick only has to wake the worker.
            Event::Ready { .. } => {}
            Event::Unwatched { watch } => {
                if let Some(Some(place)) = watch.checked_sub(1).and_then(|q| self.queues.get_mut(q as usize)) {
                    place.watched = false;
                }
            }
        }
        false
    }

    /// Does what a message says.
    fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Start(setup, answer) => drop(answer.send(self.start(*setup))),
            Mail::Stop(index, answer) => self.stop(index, answer),
            Mail::SetCall(index, call, answer) => {
                if let Some(Some(place)) = self.queues.get_mut(index as usize) {
                    place.queue.set_call(call);
                }
                let _ = answer.send(());
            }
            Mail::Hold(index, answer) => {
                if let Some(Some(place)) = self.queues.get_mut(index as usize) {
                    place.queue.hold();
                    place.hold = Some(answer);
                    // Some hold requests back for no other reason than time, and have been told not to.
                    self.tasks.wake_all();
                }
            }
            Mail::Go(index) => {
                if let Some(Some(place)) = self.queues.get_mut(index as usize) {
                    place.queue.go();
                    place.hold = None;
                }
            }
            Mail::UnderWay(index, answer) => drop(answer.send(self.ops.list(index))),
            Mail::Job(job, over) => self.begin_job(*job, over),
            Mail::Wake => self.tasks.wake_all(),
            Mail::Exit => self.ending = true,
        }
    }

    pub(crate) fn start(&mut self, setup: Setup) -> io::Result<u32> {
        let index = match self.queues.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.queues.push(None);
                self.queues.len() - 1
            }
        };
        let kick = setup.kick.as_raw_fd();
        let lane = setup.lane.clone();
        let mut queue = Queue::new(index as u32, setup, &mut self.ops, &mut self.engine)?;
        lane.begin(&self.meter);
        // Used entries that a predecessor has published may never have been told of.
        queue.notify();
        self.engine.watch(kick, index as u32 + 1);
        self.stateful |= queue.is_stateful();
        self.queues[index] = Some(Place { queue, stop: None, hold: None, watched: true });
        Ok(index as u32)
    }

    pub(crate) fn stop(&mut self, index: u32, answer: Sender<u16>) {
        if let Some(Some(place)) = self.queues.get_mut(index as usize) {
            place.queue.stop();
            place.stop = Some(answer);
            if self.stateful {
                self.local.0.borrow_mut().hurried.push(index);
                self.tasks.wake_all();
            }
            self.engine.unwatch(index + 1);
        }
    }

    /// Ends the queues that were stopped and have drained, and answers who waits.
    fn finish_stops(&mut self) {
        let mut ended = false;
        for (queue_index, slot) in (0..).zip(&mut self.queues) {
            let Some(place) = slot else { continue };
            if let Some(answer) = place.hold.take_if(|_| place.queue.drained()) {
                // Published before, so that the guest need not wait for what comes next.
                let _ = answer.send(());
            }
            let Place { queue, stop: Some(_), watched: false, .. } = place else { continue };
            if !queue.drained() {
                continue;
            }
            if let Some(Place { queue, stop: Some(answer), .. }) = slot.take() {
                let next = queue.next_avail();
                queue.end(&mut self.ops, &mut self.engine);
                ended = true;
                self.local.0.borrow_mut().hurried.retain(|hurried| *hurried != queue_index);
                // Who asked may have gone meanwhile; the queue has ended all the same.
                let _ = answer.send(next);
            }
        }
        if ended {
            self.look_for_state();
        }
    }

    fn look_for_state(&mut self) {
        self.stateful = self.jobs.any() || self.queues.iter().flatten().any(|place| place.queue.is_stateful());
    }
}
