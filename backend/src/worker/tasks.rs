//! The executor of a worker: requests to stateful targets, each a task.
//!
//! All tasks are of one type, the future of [`Stateful::run`], so they are kept in place and used over and over: the executor
//! allocates nothing for a request once as many have been under way at a time. A target may.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

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

/// See the module's text.
pub struct Tasks {
    local: Local,
    run: Box<dyn Run>,
}

impl Default for Tasks {
    fn default() -> Tasks {
        Tasks::new(Local::default())
    }
}

impl Tasks {
    pub(crate) fn new(local: Local) -> Tasks {
        let future = |cx: Cx, target: Arc<Stateful>, io: Io| async move { target.run(&cx, io).await };
        Tasks { local, run: Box::new(Slots { future, places: Vec::new(), free: Vec::new() }) }
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

    /// Runs those that have something to do, until all wait. The ends of requests go to `ended`, with their errno.
    pub(crate) fn run(&mut self, ended: &mut Vec<(Owner, i32)>) {
        loop {
            let Some(task) = self.local.0.borrow_mut().ready.pop() else { return };
            match self.run.poll(task) {
                Some((Parent::Request(owner), errno)) => ended.push((owner, errno)),
                Some((Parent::Join(join), errno)) => self.local.0.borrow_mut().done(join, errno),
                None => {}
            }
        }
    }

    /// Which queue a task works for.
    pub(crate) fn queue(&self, task: u32) -> Option<u32> {
        self.run.queue(task)
    }

    /// Has all of them look whether they still have to wait.
    pub(crate) fn wake_all(&mut self) {
        let all = self.run.all();
        self.local.0.borrow_mut().ready.extend(all);
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
    future: Pin<Box<Option<F>>>,
}

struct Slots<M, F> {
    future: M,
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
        let future = (self.future)(Cx { local: local.clone(), task, queue }, target, io);
        match self.places.get_mut(task as usize) {
            Some(place) => {
                (place.queue, place.parent) = (queue, parent);
                place.future.as_mut().set(Some(future));
            }
            None => self.places.push(Place { queue, parent, future: Box::pin(Some(future)) }),
        }
        task
    }

    fn poll(&mut self, task: u32) -> Option<(Parent, i32)> {
        let place = self.places.get_mut(task as usize)?;
        // Its slot may have been left, and used again, since it was to be woken.
        let future = place.future.as_mut().as_pin_mut()?;
        match future.poll(&mut Context::from_waker(Waker::noop())) {
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
