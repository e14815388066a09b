//! The executor of a worker: requests to stateful targets, each a task.
//!
//! All tasks are of one type, the future of [`Stateful::run`], so they are kept in place and used over and over: the executor
//! allocates nothing for a request once as many have been under way at a time. A target may.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::bell::Bell;
use super::jobs::Work;
use super::ops::Owner;
use crate::guest::HostSlice;
use crate::targets::cx::{Cx, Local};
use crate::targets::{Io, Stateful};

/// Whom a task's end concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// A request.
    Request(Owner),
    /// An operation of another task.
    Join(u32),
}

/// In the number of a task, or of the queue it works for: it is a job's.
pub(super) const JOB: u32 = 1 << 31;

/// How often those that were woken are run before the worker looks at its devices again.
const ROUNDS: u32 = 64;

/// See the module's text.
pub struct Tasks {
    local: Local,
    bell: Arc<Bell>,
    run: Box<dyn Run>,
    // Those that are being run; empty in between.
    batch: Vec<u32>,
    jobs: Vec<Option<(Work, Waker)>>,
    // Places of jobs, and how they ended.
    over: Vec<(u32, Result<(), String>)>,
}

impl Tasks {
    pub(crate) fn new(local: Local, bell: Arc<Bell>) -> Tasks {
        let future = |cx: Cx, target: Arc<Stateful>, io: Io| async move {
            #[cfg(test)]
            super::mischief::before(&cx).await;
            target.run(&cx, io).await
        };
        let run = Box::new(Slots { future, bell: bell.clone(), places: Vec::new(), free: Vec::new() });
        Tasks { local, bell, run, batch: Vec::new(), jobs: Vec::new(), over: Vec::new() }
    }

    /// Those of no worker, for who drives a queue by itself.
    pub fn detached() -> Tasks {
        Tasks::new(Local::default(), Bell::new(None))
    }

    /// A task without a queue; returns its place among the jobs.
    pub(super) fn begin_job(&mut self, work: Box<dyn FnOnce(Cx) -> Work + Send>) -> u32 {
        let free = self.jobs.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        }) as u32;
        let task = place | JOB;
        let work = work(Cx { local: self.local.clone(), task, queue: task, depth: 0 });
        self.jobs[place as usize] = Some((work, self.bell.waker(task)));
        self.local.0.borrow_mut().ready.push(task);
        place
    }

    /// A job that has ended.
    pub(super) fn job_over(&mut self) -> Option<(u32, Result<(), String>)> {
        self.over.pop()
    }

    fn poll_job(&mut self, task: u32) {
        let place = task & !JOB;
        let Some(slot) = self.jobs.get_mut(place as usize) else { return };
        let Some((work, waker)) = slot else { return };
        if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(waker)) {
            *slot = None;
            self.over.push((place, result));
        }
    }

    /// A list of slices, empty.
    pub(crate) fn slices(&mut self) -> Vec<HostSlice> {
        self.local.0.borrow_mut().slices()
    }

    /// A task for a queue's request, or for another task.
    pub(crate) fn spawn(&mut self, queue: u32, parent: Parent, target: Arc<Stateful>, io: Io) {
        let task = self.run.spawn(&self.local, queue, parent, target, io);
        self.local.0.borrow_mut().ready.push(task);
    }

    /// Runs those that have something to do, in the order in which they were woken, until all wait; or for a while, as they
    /// can go on waking each other while they wait for what only the worker's next turn brings. The ends of requests go to
    /// `ended`, with their errno.
    pub(crate) fn run(&mut self, ended: &mut Vec<(Owner, i32)>) {
        let mut batch = std::mem::take(&mut self.batch);
        for _ in 0..ROUNDS {
            {
                let mut local = self.local.0.borrow_mut();
                self.bell.take(&mut local.ready);
                std::mem::swap(&mut batch, &mut local.ready);
            }
            if batch.is_empty() {
                break;
            }
            batch.drain(..).for_each(|task| self.poll(task, ended));
        }
        self.batch = batch;
    }

    fn poll(&mut self, task: u32, ended: &mut Vec<(Owner, i32)>) {
        if task & JOB != 0 {
            return self.poll_job(task);
        }
        match self.run.poll(task) {
            Some((Parent::Request(owner), errno)) => ended.push((owner, errno)),
            Some((Parent::Join(join), errno)) => self.local.0.borrow_mut().done(join, errno),
            None => {}
        }
    }

    /// Whether there are some that have something to do.
    pub(crate) fn any_ready(&self) -> bool {
        self.bell.any() || !self.local.0.borrow().ready.is_empty()
    }

    /// Which queue a task works for.
    pub(crate) fn queue(&self, task: u32) -> Option<u32> {
        if task & JOB != 0 { Some(task) } else { self.run.queue(task) }
    }

    /// Has all of them look whether they still have to wait.
    pub(crate) fn wake_all(&mut self) {
        let all = self.run.all();
        let mut local = self.local.0.borrow_mut();
        local.ready.extend(all);
        let jobs = (0..).zip(&self.jobs).filter(|(_, job)| job.is_some());
        local.ready.extend(jobs.map(|(place, _): (u32, _)| place | JOB));
    }
}

/// The slots, whatever the type of their future.
trait Run {
    fn spawn(&mut self, local: &Local, queue: u32, parent: Parent, target: Arc<Stateful>, io: Io) -> u32;
    fn poll(&mut self, task: u32) -> Option<(Parent, i32)>;
    fn queue(&self, task: u32) -> Option<u32>;
    fn all(&self) -> Vec<u32>;
}

struct Place<F> {
    queue: u32,
    parent: Parent,
    // See `Cx`.
    depth: u32,
    waker: Waker,
    future: Pin<Box<Option<F>>>,
}

struct Slots<M, F> {
    future: M,
    bell: Arc<Bell>,
    places: Vec<Place<F>>,
    free: Vec<u32>,
}

impl<M, F> Run for Slots<M, F>
where
    M: Fn(Cx, Arc<Stateful>, Io) -> F,
    F: Future<Output = Result<(), i32>>,
{
    fn spawn(&mut self, local: &Local, queue: u32, parent: Parent, target: Arc<Stateful>, io: Io) -> u32 {
        let task = self.free.pop().unwrap_or(self.places.len() as u32);
        let depth = match parent {
            Parent::Request(_) => 0,
            Parent::Join(join) => {
                let above = local.0.borrow().task_of(join);
                1 + above.and_then(|task| self.places.get(task as usize)).map_or(0, |place| place.depth)
            }
        };
        let future = (self.future)(Cx { local: local.clone(), task, queue, depth }, target, io);
        match self.places.get_mut(task as usize) {
            Some(place) => {
                (place.queue, place.parent, place.depth) = (queue, parent, depth);
                place.future.as_mut().set(Some(future));
            }
            None => {
                let waker = self.bell.waker(task);
                self.places.push(Place { queue, parent, depth, waker, future: Box::pin(Some(future)) });
            }
        }
        task
    }

    fn poll(&mut self, task: u32) -> Option<(Parent, i32)> {
        let place = self.places.get_mut(task as usize)?;
        // Its slot may have been left, and used again, since it was to be woken.
        let future = place.future.as_mut().as_pin_mut()?;
        match future.poll(&mut Context::from_waker(&place.waker)) {
            Poll::Pending => None,
            Poll::Ready(result) => {
                place.future.as_mut().set(None);
                self.free.push(task);
                Some((place.parent, result.err().unwrap_or(0)))
            }
        }
    }

    fn queue(&self, task: u32) -> Option<u32> {
        self.places.get(task as usize).map(|place| place.queue)
    }

    fn all(&self) -> Vec<u32> {
        (0..).zip(&self.places).filter(|(_, place)| place.future.is_some()).map(|(task, _)| task).collect()
    }
}

#[cfg(test)]
impl Tasks {
    /// Fails unless all have ended.
    pub(super) fn check_idle(&self) {
        assert!(self.run.all().is_empty(), "tasks {:?} have not ended", self.run.all());
        assert!(self.jobs.iter().all(Option::is_none) && self.over.is_empty(), "jobs have not ended");
    }
}
