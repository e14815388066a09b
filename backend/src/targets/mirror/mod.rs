//! `mirror`: the same data on several legs (dm-raid1.c, dm-region-hash.c, dm-log.c).
//!
//! A write goes to all legs from one copy of the guest's data, and is acknowledged when the *source* has it, the leg that the
//! others would be made like after a crash; those that failed are made like it by a resync. Before a write begins, the log
//! has it durably that the legs may differ there. Reads go to the leg with the fewest under way, and to another if one fails.
//!
//! **Errors.** The kernel leaves what to do about a leg that fails to a daemon (dmeventd), for which `handle_errors` holds writes
//! back; without it, writes are acknowledged that are lost when the first leg comes back and is copied over the others.
//! Nothing is held back here, and nothing that was acknowledged is lost, with `handle_errors` or without:
//!
//! * A leg other than the source fails: the region is out of sync, and the write succeeds.
//! * The source fails, and the log is on a device: the log remembers another leg as the source (`log::Record`), and the write
//!   succeeds. A kernel that is given such a log knows nothing of that; status tells when the letters are not all A.
//! * The source fails, and the log is in memory (`core`): the write fails, because the next start would copy the first leg over
//!   the one that has it.
//! * The log fails: a write to a region that it does not say dirty yet fails; `keep_log` is the rule.
//!
//! `handle_errors` raises events for the first error of each kind of a leg, as in the kernel. A resync is tried again when the
//! device is resumed; when it has come to its end the letters of the status line are all A again, and an event tells of it.

mod log;
mod log_device;
mod regions;
mod resync;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use event_listener::Event;

use super::{Cx, Io, LONGEST, Lease, Refused, Shared, Target};
use crate::event::Events;
use crate::guest::HostSlice;
use crate::map::{DevIx, Leg};
use crate::worker::cursor::Cursor;
use crate::worker::ops::Action;

pub use log::{Begin, MOST_REGIONS, len as log_len};
use log::{Image, Record};
pub use regions::Geometry;
use regions::{Failure, Legs, Regions, Ticket};

/// Regions that one discard marks at a time.
const MOST_AT_ONCE: u64 = 4096;
/// Regions that a leg may fail to write one after the other, before it is taken to lack the rest of a write, too.
const MOST_IN_A_ROW: usize = 4;

/// What a mirror is made of, besides its legs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Regions and legs.
    pub geometry: Geometry,
    /// What is in sync at first.
    pub begin: Begin,
    /// The legs as the table has them, with their first sectors.
    pub legs: Vec<(String, u64)>,
    /// The log's device as the table has it, and its logical block in bytes. A log in memory has none.
    pub log: Option<(String, u32)>,
    /// Whether errors of legs raise events.
    pub handle_errors: bool,
    /// Nothing is written: not the log either.
    pub read_only: bool,
}

/// See the module's text.
pub struct Mirror {
    legs: Vec<Leg>,
    log: Option<Leg>,
    state: Arc<State>,
}

struct State {
    setup: Setup,
    regions: Mutex<Regions>,
    // Something has happened that a write, or the background, may wait for.
    changed: Event,
    // The background waits for nothing but that.
    sleeps: AtomicBool,
    // Held by who writes the log, or judges an error of a leg.
    log: async_lock::Mutex<()>,
    // The letter of the log.
    log_letter: Mutex<char>,
    events: Mutex<Option<Arc<Events>>>,
    requests: AtomicU64,
    // Requests end, or have ended.
    suspending: AtomicBool,
    suspended: AtomicBool,
}

impl State {
    fn regions(&self) -> MutexGuard<'_, Regions> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self) {
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            events.raise();
        }
    }

    fn change(&self) {
        self.changed.notify(usize::MAX);
    }

    fn is_suspending(&self) -> bool {
        self.suspending.load(Ordering::Acquire)
    }

    /// A leg has failed.
    fn fail(&self, leg: usize, failure: Failure, errno: i32) {
        if !self.regions().fail(leg, failure) {
            return;
        }
        let name = self.setup.legs.get(leg).map_or("?", |(name, _)| name);
        let error = std::io::Error::from_raw_os_error(errno);
        ::log::warn!("mirror: leg {} ({name}): {failure:?} error, and perhaps others like it: {error}", leg + 1);
        if self.setup.handle_errors {
            self.raise();
        }
    }

    fn log_failed(&self, letter: char, errno: i32) -> i32 {
        let mut now = self.log_letter.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == 'A' {
            let name = self.setup.log.as_ref().map_or("?", |(name, _)| name);
            let error = std::io::Error::from_raw_os_error(errno);
            ::log::warn!("mirror: {name}: cannot write the log, so writes to clean regions fail: {error}");
            *now = letter;
            drop(now);
            self.raise();
        } else if letter == 'F' {
            *now = letter;
        }
        libc::EIO
    }

    fn record(&self, source: usize) -> Option<Record> {
        let names = log::names(self.setup.legs.iter().map(|(name, start)| (name.as_str(), *start)));
        (source > 0).then_some(Record { source: source as u8, legs: self.setup.legs.len() as u8, names })
    }
}

/// How an operation went on several legs.
struct Outcome {
    done: Legs,
    failed: Legs,
    errno: i32,
}

impl Mirror {
    /// Over `legs`, which begin with the log's where it is on a device.
    pub fn new(setup: Setup, legs: Vec<Leg>) -> Mirror {
        let image = setup.log.as_ref().map(|(_, block)| Image::new(setup.geometry.count(), *block));
        let state = State {
            regions: Mutex::new(Regions::new(setup.geometry, image)),
            changed: Event::new(),
            sleeps: AtomicBool::new(false),
            log: async_lock::Mutex::new(()),
            log_letter: Mutex::new('A'),
            events: Mutex::default(),
            requests: AtomicU64::new(0),
            suspending: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            setup,
        };
        Mirror::over(Arc::new(state), legs)
    }

    fn over(state: Arc<State>, mut legs: Vec<Leg>) -> Mirror {
        let log = (state.setup.log.is_some() && !legs.is_empty()).then(|| legs.remove(0));
        Mirror { legs, log, state }
    }

    fn regions(&self) -> MutexGuard<'_, Regions> {
        self.state.regions()
    }

    /// One operation on several legs at the same time. All have ended in the end.
    async fn each(&self, cx: &Cx, legs: Legs, action: Action, range: &Range<u64>, data: &[HostSlice]) -> Outcome {
        type Part<'a> = Pin<Box<dyn Future<Output = Result<(), i32>> + 'a>>;
        let (at, len) = (range.start, range.end - range.start);
        let asked = legs.iter().filter_map(|place| Some((place, self.legs.get(place)?)));
        let mut parts: Vec<(usize, Option<Part<'_>>)> = asked
            .map(|(place, leg)| (place, Some(Box::pin(cx.io(leg, action, at, len, data.to_vec())) as _)))
            .collect();
        let mut outcome = Outcome { done: Legs::default(), failed: Legs::default(), errno: libc::EIO };
        poll_fn(|context| {
            for (place, part) in &mut parts {
                let Some(running) = part else { continue };
                let Poll::Ready(result) = running.as_mut().poll(context) else { continue };
                *part = None;
                match result {
                    Ok(()) => outcome.done = outcome.done.with(*place),
                    Err(errno) => {
                        outcome.failed = outcome.failed.with(*place);
                        outcome.errno = errno;
                    }
                }
            }
            if parts.iter().any(|(_, part)| part.is_some()) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        outcome
    }

    async fn read(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let range = io.at..io.at + io.len;
        let (mut tried, mut ended) = (Legs::default(), Err(libc::EIO));
        loop {
            let Some(place) = self.regions().read(&range, tried) else { return ended };
            tried = tried.with(place);
            ended = match self.legs.get(place) {
                Some(leg) => cx.io(leg, Action::Read, io.at, io.len, io.data.clone()).await,
                None => Err(libc::EIO),
            };
            self.regions().was_read(place);
            match ended {
                Ok(()) => return Ok(()),
                Err(errno) => self.state.fail(place, Failure::Read, errno),
            }
        }
    }

    async fn write(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let most = match io.action {
            Action::Write { .. } => LONGEST as u64 / dm_table::SECTOR_SIZE,
            _ => self.state.setup.geometry.region.saturating_mul(MOST_AT_ONCE),
        };
        let mut cursor = Cursor::new(&io.data);
        let (mut at, end) = (io.at, io.at + io.len);
        while at < end {
            let range = at..at.saturating_add(most).min(end);
            let mut data = Vec::new();
            cursor.take((range.end - at) * dm_table::SECTOR_SIZE, |slice| data.push(slice));
            at = range.end;
            let ticket = self.ticket(&range).await;
            if self.state.sleeps.swap(false, Ordering::AcqRel) {
                self.state.change();
            }
            let ended = self.write_to(cx, io.action, &range, &ticket, data).await;
            if self.regions().written(&ticket) {
                self.state.change();
            }
            ended?;
        }
        Ok(())
    }

    /// Waits until no resync is at work there.
    async fn ticket(&self, range: &Range<u64>) -> Ticket {
        loop {
            if let Some(ticket) = self.regions().write(range.clone()) {
                return ticket;
            }
            let changed = self.state.changed.listen();
            if let Some(ticket) = self.regions().write(range.clone()) {
                return ticket;
            }
            changed.await;
        }
    }

    async fn write_to(
        &self,
        cx: &Cx,
        action: Action,
        range: &Range<u64>,
        ticket: &Ticket,
        data: Vec<HostSlice>,
    ) -> Result<(), i32> {
        self.store(cx, ticket.mark).await?;
        let lease = match action {
            Action::Write { .. } => Some(cx.buffer(data.iter().map(HostSlice::len).sum()).await?),
            _ => None,
        };
        let mut copied = 0;
        for (lease, slice) in lease.iter().flat_map(|lease| data.iter().map(move |slice| (lease, slice))) {
            copied += lease.slice().part(copied, slice.len()).copy_from(slice);
        }
        let data = |part: &Range<u64>| {
            let bytes = |sectors: u64| (sectors * dm_table::SECTOR_SIZE) as usize;
            let place =
                |lease: &Lease| lease.slice().part(bytes(part.start - range.start), bytes(part.end - part.start));
            Vec::from_iter(lease.as_ref().map(place))
        };
        let outcome = self.each(cx, ticket.legs, action, range, &data(range)).await;
        if outcome.failed.is_empty() {
            return Ok(());
        }
        if action == Action::Discard {
            // Not the leg's fault: not every device can, or all of it.
            if !outcome.done.is_empty() {
                let _held = self.state.log.lock().await;
                self.regions().differs(range);
            }
            return Err(outcome.errno);
        }
        let failures = match self.state.setup.geometry.parts(range).nth(1) {
            None => vec![(range.clone(), outcome)],
            Some(_) => self.by_parts(cx, action, range, &outcome, &data).await,
        };
        // It goes back before the log may need one.
        drop(lease);
        let mut ended = Ok(());
        for (part, outcome) in failures {
            ended = ended.and(self.settle(cx, Some(&part), outcome, Failure::Write).await);
        }
        ended
    }

    /// Some legs could not write several regions. One that cannot write one sector of them has the other regions, and must not
    /// be taken for one that lacks them: what they could not write of each.
    async fn by_parts(
        &self,
        cx: &Cx,
        action: Action,
        range: &Range<u64>,
        whole: &Outcome,
        data: &impl Fn(&Range<u64>) -> Vec<HostSlice>,
    ) -> Vec<(Range<u64>, Outcome)> {
        let parts = || self.state.setup.geometry.parts(range);
        // What a region that it lacks anyway has failed with is no error: it would not be asked for that one.
        let asked = parts().fold(whole.failed, |asked, part| asked.and(self.regions().wanted(&part)));
        asked.iter().for_each(|leg| self.state.fail(leg, Failure::Write, whole.errno));
        let (mut failures, mut in_a_row) = (Vec::new(), vec![0; self.legs.len()]);
        for part in parts() {
            let wanted = whole.failed.and(self.regions().wanted(&part));
            // Each may take as long as a device has for an answer.
            let is_hopeless = |leg: &usize| in_a_row.get(*leg).is_some_and(|n| *n >= MOST_IN_A_ROW);
            let hopeless = wanted.iter().filter(is_hopeless).fold(Legs::default(), Legs::with);
            let again = self.each(cx, wanted.without(hopeless), action, &part, &data(&part)).await;
            for (leg, failed) in in_a_row.iter_mut().enumerate() {
                *failed = if again.done.has(leg) { 0 } else { *failed + usize::from(again.failed.has(leg)) };
            }
            let (done, failed) = (whole.done.or(again.done), again.failed.or(hopeless));
            if !failed.is_empty() {
                let errno = if again.failed.is_empty() { whole.errno } else { again.errno };
                failures.push((part, Outcome { done, failed, errno }));
            }
        }
        failures
    }

    /// Flushes all legs; whether all of them did it.
    async fn flush(&self, cx: &Cx) -> Result<bool, i32> {
        let number = self.regions().flush();
        let all = Legs::all(self.legs.len());
        let outcome = self.each(cx, all, Action::Flush, &(0..0), &[]).await;
        if outcome.failed.is_empty() {
            self.regions().flushed(number);
            return Ok(true);
        }
        self.settle(cx, None, outcome, Failure::Flush).await.map(|()| false)
    }

    /// Some legs have failed: whether those that have not are enough, now and after a crash.
    async fn settle(
        &self,
        cx: &Cx,
        written: Option<&Range<u64>>,
        outcome: Outcome,
        failure: Failure,
    ) -> Result<(), i32> {
        let Outcome { done, failed, errno } = outcome;
        failed.iter().for_each(|leg| self.state.fail(leg, failure, errno));
        let _held = self.state.log.lock().await;
        let heir = {
            let mut regions = self.regions();
            match written {
                Some(range) => regions.differs(range),
                None => regions.unflushed(),
            }
            let heir = regions.heir(done).ok_or(errno)?;
            if heir == regions.source() {
                regions.settle(heir, failed);
                return Ok(());
            }
            if let Some(image) = &mut regions.image {
                image.set_record(self.state.record(heir));
            }
            // The record must be durable, whatever regions the log says dirty.
            regions.rewrite_record();
            heir
        };
        let stored = self.store_held(cx).await;
        let mut regions = self.regions();
        match stored {
            Ok(()) => regions.settle(heir, failed),
            Err(_) => {
                // It is not known what the device has.
                let source = regions.source();
                if let Some(image) = &mut regions.image {
                    image.set_record(self.state.record(source));
                }
                regions.rewrite();
            }
        }
        stored
    }
}

impl Target for Mirror {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        self.state.requests.fetch_add(1, Ordering::Relaxed);
        match io.action {
            Action::Read => self.read(cx, io).await,
            Action::Flush => self.flush(cx).await.map(|_| ()),
            _ => self.write(cx, io).await,
        }
    }

    fn status(&self, name: &dyn Fn(&str) -> String) -> String {
        let legs: String = self.state.setup.legs.iter().map(|(dev, _)| name(dev) + " ").collect();
        let log = match &self.state.setup.log {
            None => "1 core".to_owned(),
            Some((dev, _)) => {
                let letter = *self.state.log_letter.lock().unwrap_or_else(PoisonError::into_inner);
                format!("3 disk {} {letter}", name(dev))
            }
        };
        let regions = self.regions();
        let (in_sync, count) = (regions.in_sync(), regions.geometry.count());
        format!("{} {legs}{in_sync}/{count} 1 {} {log}", self.legs.len(), regions.letters())
    }

    async fn probe(&self, cx: &Cx) -> Result<(), Refused> {
        let Setup { log: Some((_, block)), begin: Begin::Logged, .. } = &self.state.setup else { return Ok(()) };
        let image = self.load(cx, *block, usize::MAX).await?;
        log::check(image.bytes(0)).map_err(|error| format!("mirror: {error}"))
    }

    async fn activate(&self, cx: &Cx, _: &Arc<Shared>) -> Result<(), Refused> {
        let Setup { log, begin, read_only, .. } = &self.state.setup;
        let image = match log {
            Some((_, block)) => Some(self.load(cx, *block, usize::MAX).await?),
            None => None,
        };
        let record = image.as_ref().and_then(Image::record).filter(|_| *begin == Begin::Logged);
        {
            let mut regions = self.regions();
            regions.begin(image, *begin).map_err(|error| format!("mirror: {error}"))?;
            if regions.is_synced() {
                // All are as good as the first.
                regions.image.iter_mut().for_each(|image| image.set_record(None));
            } else {
                let source = self.source(record)?;
                regions.begin_from(source);
            }
        }
        *self.state.log_letter.lock().unwrap_or_else(PoisonError::into_inner) = 'A';
        self.state.suspending.store(false, Ordering::Release);
        self.state.suspended.store(false, Ordering::Release);
        if *read_only {
            return Ok(());
        }
        let _held = self.state.log.lock().await;
        let stored = self.store_held(cx).await;
        stored.map_err(|_| "mirror: Failed to write header on dirty region log device".to_owned())
    }

    async fn background(&self, cx: &Cx) {
        if !self.state.setup.read_only {
            resync::run(self, cx).await;
        }
    }

    fn presuspend(&self) {
        self.state.suspending.store(true, Ordering::Release);
        self.state.change();
    }

    fn postsuspend(&self) {
        self.state.suspended.store(true, Ordering::Release);
        self.state.change();
    }

    fn resume(&self) {
        self.state.suspending.store(false, Ordering::Release);
        self.state.suspended.store(false, Ordering::Release);
        let mut regions = self.regions();
        regions.recover_all();
        // A table that was not to be may have written the same log meanwhile.
        regions.rewrite();
        drop(regions);
        self.state.change();
    }

    fn events(&self, events: &Arc<Events>) {
        *self.state.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.clone());
    }

    fn again(&self, mut legs: Vec<Leg>) -> Mirror {
        if legs.len() < self.legs.len() + usize::from(self.log.is_some()) {
            legs = self.log.iter().chain(&self.legs).cloned().collect();
        }
        Mirror::over(self.state.clone(), legs)
    }

    fn devices(&self) -> Vec<DevIx> {
        self.log.iter().chain(&self.legs).flat_map(|leg| leg.devices().to_vec()).collect()
    }
}
