//! `snapshot`: a device as it was, with what is written kept in a store on another one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::copy::{self, OnTop, Places};
use super::exceptions::Run;
use super::life::Known;
use super::live::{self, Live, Part, Seen};
use super::store::Wanted;
use crate::event::Events;
use crate::guest::HostSlice;
use crate::map::Leg;
use crate::targets::cx::Parts;
use crate::targets::{Cx, Io, shared};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;
use dm_table::SECTOR_SIZE;

/// Places that one operation is in at a time, at most.
pub(super) const MOST_PARTS: usize = 64;

/// What a table says of a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Sectors of the line, from this one on: devices are used from the same sectors on.
    pub start: u64,
    /// Sectors of the line.
    pub len: u64,
    /// Sectors of the origin.
    pub origin_size: u64,
    /// A full store fails what needs more room, and is still valid.
    pub overflows: bool,
    /// A discard of a whole chunk zeroes it in the store.
    pub discard_zeroes_cow: bool,
    /// A discard goes to the origin, too.
    pub discard_passdown_origin: bool,
}

/// See the module's text.
pub struct Snapshot {
    pub(super) origin: Leg,
    pub(super) cow: Leg,
    pub(super) wanted: Wanted,
    pub(super) features: Features,
    // Its devices are open for reading alone.
    pub(super) read_only: bool,
    pub(super) state: Arc<State>,
}

/// What outlives an exchange of the devices below.
pub(super) struct State {
    pub(super) id: u64,
    live: RwLock<Option<Arc<Live>>>,
    // Another target has what this one had.
    pub(super) lost: AtomicBool,
    // Copies are begun no longer.
    pub(super) stopped: AtomicBool,
    // Sectors of a chunk as the store has it; 0 when that is not known.
    pub(super) chunk: AtomicU64,
    pub(super) known: Mutex<Known>,
    pub(super) events: Mutex<Option<Arc<Events>>>,
}

impl Default for State {
    fn default() -> State {
        State {
            id: shared::number(),
            live: RwLock::default(),
            lost: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            chunk: AtomicU64::new(0),
            known: Mutex::default(),
            events: Mutex::default(),
        }
    }
}

impl State {
    /// What it has, or had.
    pub(super) fn live(&self) -> Option<Arc<Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Snapshot {
    /// Of `legs`, which are all of the origin and all of the store's device.
    pub fn new([origin, cow]: [Leg; 2], wanted: Wanted, features: Features) -> Snapshot {
        Snapshot { origin, cow, wanted, features, read_only: false, state: Arc::default() }
    }

    /// Its devices are open for reading alone: a store is taken as it is.
    #[must_use]
    pub fn read_only(self, read_only: bool) -> Snapshot {
        Snapshot { read_only, ..self }
    }

    /// Sectors of a chunk as its store has them, once that was looked at.
    pub fn chunk(&self) -> Option<u64> {
        Some(self.state.chunk.load(Ordering::Relaxed)).filter(|chunk| *chunk > 0)
    }

    /// What it has, unless it was taken from it.
    pub(super) fn live(&self) -> Option<Arc<Live>> {
        if self.state.lost.load(Ordering::Acquire) {
            return None;
        }
        self.state.live()
    }

    pub(super) fn places(&self) -> Places<'_> {
        Places { origin: &self.origin, origin_size: self.features.origin_size, cow: &self.cow }
    }

    /// It has that from now on.
    pub(super) fn has(&self, live: Arc<Live>) {
        self.state.chunk.store(live.layout().chunk(), Ordering::Relaxed);
        *self.state.live.write().unwrap_or_else(PoisonError::into_inner) = Some(live);
        self.state.lost.store(false, Ordering::Release);
    }

    /// Reads `len` sectors from `at` on, both of the devices.
    pub(super) async fn read(&self, cx: &Cx, live: &Live, io: Io) -> Result<(), i32> {
        let (at, end) = (self.features.start + io.at, self.features.start + io.at + io.len);
        let _inside = live.readers.enter();
        let first = self.seen(live, at, end)?;
        if first.2 == io.len {
            return cx.io(first.0, Action::Read, first.1, io.len, io.data).await;
        }
        let (mut from, mut parts) = (at, vec![first]);
        loop {
            let upto = parts.iter().fold(from, |at, part| at + part.2);
            if upto == end || parts.len() == MOST_PARTS {
                let data = part_of(&io.data, from - at, upto - from);
                cx.parts(Action::Read, data, |cut| parts.iter().for_each(|(leg, at, len)| cut.add(leg, *at, *len)))
                    .await?;
                if upto == end {
                    return Ok(());
                }
                parts.clear();
                from = upto;
            }
            parts.push(self.seen(live, upto, end)?);
        }
    }

    /// Where sector `at` is, and how many follow it there before `end`.
    #[inline]
    fn seen(&self, live: &Live, at: u64, end: u64) -> Result<(&Leg, u64, u64), i32> {
        let chunk = live.layout().chunk();
        let (first, within) = (at / chunk, at % chunk);
        let (seen, chunks) = live.look(first, end.div_ceil(chunk) - first)?;
        let len = (chunks * chunk - within).min(end - at);
        match seen {
            Seen::Store(new) => Ok((&self.cow, new * chunk + within, len)),
            Seen::Origin if at + len <= self.features.origin_size => Ok((&self.origin, at, len)),
            Seen::Origin => Err(libc::EIO),
        }
    }

    async fn write(&self, cx: &Cx, live: &Live, io: Io, durable: bool) -> Result<(), i32> {
        let (at, end) = (self.features.start + io.at, self.features.start + io.at + io.len);
        if end > self.features.origin_size {
            return Err(libc::EIO);
        }
        // What is in the store already is written in one go; from `from` on, as far as it was looked up.
        let (mut there, mut from, mut upto, mut result) = (Vec::new(), at, at, Ok(()));
        let action = Action::Write { durable };
        loop {
            let next = (upto < end && there.len() < MOST_PARTS).then(|| self.plan(live, upto, end));
            if let Some((Part::There { new, .. }, len)) = next {
                let chunk = live.layout().chunk();
                there.push((new * chunk + upto % chunk, len));
                upto += len;
                continue;
            }
            if let ([(sector, len)], true) = (there.as_slice(), upto - from == io.len) {
                return cx.io(&self.cow, action, *sector, *len, io.data).await;
            }
            if !there.is_empty() {
                let data = part_of(&io.data, from - at, upto - from);
                let cut = |cut: &mut Parts<'_>| there.iter().for_each(|(at, len)| cut.add(&self.cow, *at, *len));
                // What follows is done whatever becomes of this, as it would be in pieces of their own.
                result = result.and(cx.parts(action, data, cut).await);
                there.clear();
            }
            from = upto;
            let Some((part, len)) = next else {
                if upto == end {
                    return result;
                }
                continue;
            };
            let on_top = OnTop { at: upto, len, data: &part_of(&io.data, upto - at, len) };
            match self.write_new(cx, live, part, on_top, durable).await {
                Ok(false) => continue,
                Ok(true) => {}
                Err(errno) => result = Err(errno),
            }
            upto += len;
            from = upto;
        }
    }

    /// What a write from sector `at` to `end` does with the first of them, and how many those are.
    fn plan(&self, live: &Live, at: u64, end: u64) -> (Part, u64) {
        let chunk = live.layout().chunk();
        let (first, within) = (at / chunk, at % chunk);
        let whole = within == 0 && end - at >= chunk;
        let chunks = if whole { (end - at) / chunk } else { end.div_ceil(chunk) - first };
        let part = live.write(first, chunks, whole);
        let len = match part {
            Part::There { len, .. } | Part::Fresh(Run { len, .. }) => len,
            Part::Busy | Part::Full | Part::Dead => 1,
        };
        (part, (len * chunk - within).min(end - at))
    }

    /// Writes what was not in the store. False when somebody else was about to: it is to be looked at again.
    async fn write_new(&self, cx: &Cx, live: &Live, part: Part, on_top: OnTop<'_>, durable: bool) -> Result<bool, i32> {
        let chunk = live.layout().chunk();
        match part {
            Part::Fresh(run) => {
                // The commit flushes what it is for; where there is none, nobody does.
                let durable = durable && !live.is_persistent();
                let (to, len) = (run.new * chunk, run.len * chunk);
                let written = match on_top.covers(run.old * chunk, len) {
                    true => cx.io(&self.cow, Action::Write { durable }, to, len, on_top.data.to_vec()).await,
                    false => copy::copy(cx, &self.places(), (run.old * chunk, to, len), Some(on_top), durable).await,
                };
                live.complete(cx, &self.cow, run, written).await.map(|()| true)
            }
            Part::Busy | Part::There { .. } => {
                live.settled(on_top.at / chunk).await;
                Ok(false)
            }
            Part::Full => {
                live.no_room(cx, &self.cow, self.features.overflows).await;
                Err(libc::EIO)
            }
            Part::Dead => Err(libc::EIO),
        }
    }

    async fn discard(&self, cx: &Cx, live: &Live, io: &Io) -> Result<(), i32> {
        if !self.features.discard_zeroes_cow {
            return Err(libc::EOPNOTSUPP);
        }
        if live.state() == live::State::Overflow {
            return Err(libc::EIO);
        }
        let (at, end) = (self.features.start + io.at, self.features.start + io.at + io.len);
        let (mut done, chunk, mut result) = (at, live.layout().chunk(), Ok(()));
        while done < end {
            let (first, within) = (done / chunk, done % chunk);
            let whole = within == 0 && end - done >= chunk;
            let most = if whole { (end - done) / chunk } else { 1 };
            let (seen, chunks) = live.look(first, most)?;
            let len = (chunks * chunk - within).min(end - done);
            let ended = match seen {
                Seen::Store(new) if whole => copy::zero(cx, &self.cow, new * chunk, len).await,
                // The kernel has it go to the store's device, where it frees what it can.
                Seen::Store(new) => match cx.io(&self.cow, io.action, new * chunk + within, len, Vec::new()).await {
                    Err(libc::EOPNOTSUPP) => Ok(()),
                    ended => ended,
                },
                // It would have to be copied first, for nothing.
                Seen::Origin => Ok(()),
            };
            result = result.and(ended);
            done += len;
        }
        if self.features.discard_passdown_origin && end <= self.features.origin_size {
            let _inside = live.readers.enter();
            result = result.and(cx.io(&self.origin, io.action, at, io.len, Vec::new()).await);
        }
        result
    }

    /// As the kernel's block layer does where a device cannot (`blkdev_issue_zeroout`): writes zeroes.
    async fn zero(&self, cx: &Cx, live: &Live, io: &Io, durable: bool) -> Result<(), i32> {
        let (mut done, mut result) = (0, Ok(()));
        while done < io.len {
            let now = (io.len - done).min(copy::MOST_ZEROES);
            let data = copy::zeroes(now)?;
            let part = Io { action: Action::Write { durable }, at: io.at + done, len: now, data };
            result = result.and(self.write(cx, live, part, durable).await);
            done += now;
        }
        result
    }

    /// What a request of a live snapshot does.
    pub(super) async fn request(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let live = self.live().ok_or(libc::EIO)?;
        match io.action {
            Action::Flush => cx.io(&self.cow, Action::Flush, 0, 0, io.data).await,
            Action::Read => self.read(cx, &live, io).await,
            Action::Write { durable } => self.write(cx, &live, io, durable).await,
            Action::Discard => self.discard(cx, &live, &io).await,
            Action::Zero { durable, .. } => self.zero(cx, &live, &io, durable).await,
        }
    }

    /// What a status line says.
    pub(super) fn told(&self) -> String {
        self.live().map_or_else(|| "Invalid".into(), |live| live.status())
    }
}

/// Sectors `[skip, skip + len)` of a request's data.
pub(super) fn part_of(data: &[HostSlice], skip: u64, len: u64) -> Vec<HostSlice> {
    let mut cursor = Cursor::new(data);
    let mut part = Vec::new();
    cursor.skip(skip * SECTOR_SIZE);
    cursor.take(len * SECTOR_SIZE, |slice| part.push(slice));
    part
}
