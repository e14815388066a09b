//! A target's whole world: operations on what it lies on, and time.
//!
//! One `Local` belongs to a worker; nothing in it is shared between threads. A task that waits is not asked again until
//! what it waits for has come, or the worker has a reason to ask all of them (a suspend).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::buffers::Pool;
use super::{Io, Stateful};
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg, Piece, Step};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;
use dm_table::Sectors;

/// What a task has begun and the worker has yet to do.
pub(crate) struct Start {
    /// Number of the operation that it is part of.
    pub join: u32,
    /// The task that it is for.
    pub task: u32,
    /// What it is.
    pub what: What,
}

/// See [`Start`].
pub(crate) enum What {
    /// On a component device, in bytes.
    Device { dev: DevIx, action: Action, at: u64, len: u64, data: Vec<HostSlice> },
    /// On another target, which is one of the same map's.
    Target { target: Arc<Stateful>, io: Io },
}

/// An operation of a task that is in several parts under way.
#[derive(Clone, Copy, Default)]
struct Join {
    task: u32,
    left: u32,
    errno: i32,
    // When its last part was given to a device, on the clock of the statistics.
    began: u64,
}

/// When a task is to be woken, and a number, as it may wait twice for the same time.
type Timer = (u64, u64);

/// What the tasks of a worker share.
#[derive(Default)]
pub(crate) struct Inner {
    joins: Vec<Join>,
    free: Vec<u32>,
    pub starts: Vec<Start>,
    /// Tasks that have something to do.
    pub ready: Vec<u32>,
    timers: BTreeMap<Timer, u32>,
    timers_begun: u64,
    /// Nanoseconds of the engine's clock.
    pub now: u64,
    /// Queues that are being stopped.
    pub hurried: Vec<u32>,
    spare: Vec<Vec<HostSlice>>,
    pub(super) pool: Pool,
}

/// See the module's text.
#[derive(Clone, Default)]
pub(crate) struct Local(pub Rc<RefCell<Inner>>);

impl Inner {
    /// A part of an operation has ended.
    pub fn done(&mut self, join: u32, errno: i32) {
        let Some(one) = self.joins.get_mut(join as usize) else { return };
        if one.errno == 0 {
            one.errno = errno;
        }
        one.left -= 1;
        if one.left == 0 {
            self.ready.push(one.task);
        }
    }

    /// A part of an operation has been given to a device.
    pub fn begin(&mut self, join: u32, now: u64) {
        if let Some(one) = self.joins.get_mut(join as usize) {
            one.began = now;
        }
    }

    /// When that was.
    pub fn began(&self, join: u32) -> u64 {
        self.joins.get(join as usize).map_or(0, |one| one.began)
    }

    /// The task that an operation is one of.
    pub fn task_of(&self, join: u32) -> Option<u32> {
        self.joins.get(join as usize).map(|one| one.task)
    }

    /// When the next task is to be woken.
    pub fn next_timer(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Wakes those whose time has come.
    pub fn fire(&mut self, now: u64) {
        self.now = now;
        while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= now) {
            self.ready.push(first.remove());
        }
    }

    /// A list of slices, empty.
    pub fn slices(&mut self) -> Vec<HostSlice> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes one back.
    pub fn spare(&mut self, mut slices: Vec<HostSlice>) {
        if slices.capacity() > 0 && self.spare.len() < 1024 {
            slices.clear();
            self.spare.push(slices);
        }
    }
}

#[cfg(test)]
impl Inner {
    /// Fails unless all operations and buffers have been given back.
    pub fn check_idle(&self) {
        assert!(self.starts.is_empty(), "operations that were never begun");
        assert_eq!(self.free.len(), self.joins.len(), "operations of tasks that were never waited for to their end");
        assert!(self.timers.is_empty(), "timers that nobody waits for");
        self.pool.check_idle();
    }
}

/// A task's hand on its world.
pub struct Cx {
    pub(crate) local: Local,
    pub(crate) task: u32,
    pub(crate) queue: u32,
    /// Tasks above it that wait for it.
    pub(crate) depth: u32,
}

impl Cx {
    /// Nanoseconds of a clock that never goes back.
    pub fn now(&self) -> u64 {
        self.local.0.borrow().now
    }

    /// Whether somebody waits for the queue to end: what is held back for no other reason than time is to go on.
    pub fn is_hurried(&self) -> bool {
        self.local.0.borrow().hurried.contains(&self.queue)
    }

    /// Comes back at `due` on that clock, or earlier when there may be another reason to look.
    pub async fn nap(&self, due: u64) {
        Nap { cx: self, due, timer: None }.await;
    }

    /// Does an operation of `len` sectors at sector `at` of what a target lies on, with data where there is some. Ends when
    /// all of it has; the first error counts.
    pub async fn io(&self, leg: &Leg, action: Action, at: u64, len: u64, data: Vec<HostSlice>) -> Result<(), i32> {
        self.parts(action, data, |parts| parts.add(leg, at, len)).await
    }

    /// The same of an operation that is in several places: `cut` adds them, in the order of the data. They are under way at
    /// the same time, so there should not be too many.
    pub async fn parts(
        &self,
        action: Action,
        data: Vec<HostSlice>,
        cut: impl FnOnce(&mut Parts<'_>),
    ) -> Result<(), i32> {
        let join = {
            let mut inner = self.local.0.borrow_mut();
            let join = inner.free.pop().unwrap_or(inner.joins.len() as u32);
            if join as usize == inner.joins.len() {
                inner.joins.push(Join::default());
            }
            // One for the cutting itself.
            inner.joins[join as usize] = Join { task: self.task, left: 1, errno: 0, began: 0 };
            let part = Part { inner: &mut inner, join, task: self.task, action };
            cut(&mut Parts { part, cursor: Cursor::new(&data) });
            inner.spare(data);
            let one = &mut inner.joins[join as usize];
            one.left -= 1;
            join
        };
        let errno = Joined { cx: self, join }.await;
        if errno == 0 { Ok(()) } else { Err(errno) }
    }
}

/// Parts of a discard or write-zeroes that are under way at a time.
const AT_A_TIME: usize = 64;

impl Cx {
    /// The same of an operation that is anything but a flush, and in any number of places: `next` adds the one that begins at a
    /// sector of the target, of so many sectors at most, and says how many it has. Those of a transfer are under way at the same
    /// time, being no more than there is data for; a range may be in millions of places.
    pub async fn in_places(
        &self,
        Io { action, at, len, data }: Io,
        mut next: impl FnMut(&mut Parts<'_>, u64, u64) -> u64,
    ) -> Result<(), i32> {
        let most = match action {
            Action::Discard | Action::Zero { .. } => AT_A_TIME,
            Action::Read | Action::Write { .. } | Action::Flush => usize::MAX,
        };
        let (mut at, end, mut data, mut result) = (at, at + len, Some(data), Ok(()));
        while at < end {
            let ended = self.parts(action, data.take().unwrap_or_default(), |parts| {
                for _ in 0..most {
                    if at == end {
                        break;
                    }
                    at += next(parts, at, end - at);
                }
            });
            result = result.and(ended.await);
        }
        result
    }
}

/// What [`Cx::parts`] is given the places of an operation by.
pub struct Parts<'a> {
    part: Part<'a>,
    cursor: Cursor<'a>,
}

impl Parts<'_> {
    /// The next `len` sectors of the operation are at sector `at` of `leg`. Of a flush, the whole leg.
    pub fn add(&mut self, leg: &Leg, at: u64, len: u64) {
        match self.part.action {
            Action::Flush => self.part.flush(leg),
            Action::Read | Action::Write { .. } => self.part.transfer(leg, at, len, &mut self.cursor),
            Action::Discard | Action::Zero { .. } => {
                let part = &mut self.part;
                leg.ranges(Sectors::new(at), Sectors::new(len), &mut |step, len, _| part.range(leg, step, len));
            }
        }
    }
}

/// The parts of an operation as they are cut.
struct Part<'a> {
    inner: &'a mut Inner,
    join: u32,
    task: u32,
    action: Action,
}

impl Part<'_> {
    fn start(&mut self, what: What) {
        self.inner.joins[self.join as usize].left += 1;
        self.inner.starts.push(Start { join: self.join, task: self.task, what });
    }

    fn device(&mut self, dev: DevIx, at: u64, len: u64, data: Vec<HostSlice>) {
        let action = self.action;
        self.start(What::Device { dev, action, at, len, data });
    }

    fn fail(&mut self) {
        self.inner.joins[self.join as usize].errno = libc::EIO;
    }

    fn transfer(&mut self, leg: &Leg, at: u64, len: u64, cursor: &mut Cursor<'_>) {
        let write = self.action != Action::Read;
        leg.cut(Sectors::new(at), Sectors::new(len), write, &mut |piece: Piece| {
            let bytes = piece.len.bytes();
            match piece.step {
                Step::Device { dev, at } => {
                    let mut slices = self.inner.slices();
                    cursor.take(bytes, |slice| slices.push(slice));
                    self.device(dev, at.bytes(), bytes, slices);
                }
                Step::Target { target, at } => {
                    let mut slices = self.inner.slices();
                    cursor.take(bytes, |slice| slices.push(slice));
                    let io = Io { action: self.action, at: at.get(), len: piece.len.get(), data: slices };
                    self.target(leg, target, io);
                }
                Step::Zero if self.action == Action::Read => cursor.take(bytes, |slice| slice.fill_zero()),
                Step::Zero => cursor.skip(bytes),
                Step::Error => {
                    self.fail();
                    cursor.skip(bytes);
                }
            }
        });
    }

    fn target(&mut self, leg: &Leg, number: u32, io: Io) {
        match leg.targets().get(number as usize) {
            Some(target) => self.start(What::Target { target: target.clone(), io }),
            None => self.fail(),
        }
    }

    fn flush(&mut self, leg: &Leg) {
        for dev in leg.flush_set() {
            self.device(*dev, 0, 0, Vec::new());
        }
        for number in 0..leg.targets().len() as u32 {
            self.target(leg, number, Io { action: Action::Flush, at: 0, len: 0, data: Vec::new() });
        }
    }

    fn range(&mut self, leg: &Leg, step: Step, len: Sectors) {
        match step {
            Step::Device { dev, at } => self.device(dev, at.bytes(), len.bytes(), Vec::new()),
            Step::Target { target, at } => {
                let io = Io { action: self.action, at: at.get(), len: len.get(), data: Vec::new() };
                self.target(leg, target, io);
            }
            Step::Error => self.fail(),
            Step::Zero => {}
        }
    }
}

struct Joined<'a> {
    cx: &'a Cx,
    join: u32,
}

impl Future for Joined<'_> {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<i32> {
        let mut inner = self.cx.local.0.borrow_mut();
        let one = inner.joins[self.join as usize];
        if one.left > 0 {
            return Poll::Pending;
        }
        inner.free.push(self.join);
        Poll::Ready(one.errno)
    }
}

struct Nap<'a> {
    cx: &'a Cx,
    due: u64,
    // Once it has begun.
    timer: Option<Timer>,
}

impl Future for Nap<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_some() {
            return Poll::Ready(());
        }
        let mut inner = self.cx.local.0.borrow_mut();
        let timer = (self.due, inner.timers_begun);
        inner.timers_begun += 1;
        inner.timers.insert(timer, self.cx.task);
        drop(inner);
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Nap<'_> {
    fn drop(&mut self) {
        // What was to be waited for may have come hours before its time.
        if let (Some(timer), Ok(mut inner)) = (self.timer, self.cx.local.0.try_borrow_mut()) {
            inner.timers.remove(&timer);
        }
    }
}
