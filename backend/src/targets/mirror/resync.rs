//! What a mirror does beside requests: it makes legs alike that are not, and keeps the log short.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

use event_listener::EventListener;

use super::regions::{Failure, Legs};
use super::{Cx, LONGEST, Mirror};
use crate::worker::ops::Action;

/// How often it is looked which regions have been left alone, in nanoseconds.
const LOOK: u64 = 500_000_000;
/// With a log in memory nobody needs to know that a region is clean; but what is remembered of others has a bound.
const MOST_DIRTY: usize = 4096;
/// While there are requests, it rests this many times as long as it works,
const REST: u64 = 3;
/// at least so long, and at most (nanoseconds).
const REST_LEAST: u64 = 1_000_000;
const REST_MOST: u64 = 100_000_000;

/// Until the device is suspended.
pub(super) async fn run(mirror: &Mirror, cx: &Cx) {
    let mut looked = cx.now();
    let late = {
        let regions = mirror.regions();
        regions.is_synced() && !regions.all_fit()
    };
    if late {
        complete(mirror, cx).await;
    }
    loop {
        let changed = mirror.state.changed.listen();
        if mirror.state.suspended.load(Ordering::Acquire) {
            break;
        }
        tidy(mirror, cx, &mut looked).await;
        let region = if mirror.state.is_suspending() { None } else { mirror.regions().recover() };
        if let Some(region) = region {
            recover(mirror, cx, region, &mut looked).await;
            continue;
        }
        mirror.state.sleeps.store(true, Ordering::Release);
        // Whoever makes one dirty from now on sees that we sleep.
        let due = mirror.regions().dirty().0.then_some(looked + LOOK);
        if due.is_some() {
            mirror.state.sleeps.store(false, Ordering::Release);
        }
        wait(cx, changed, due).await;
        mirror.state.sleeps.store(false, Ordering::Release);
    }
    // Whoever takes the legs next need not copy what is the same.
    if mirror.regions().is_quiet() && mirror.regions().dirty().0 && mirror.flush(cx).await == Ok(true) {
        mirror.regions().clean(false);
    }
    store_clean(mirror, cx).await;
}

async fn wait(cx: &Cx, changed: EventListener, due: Option<u64>) {
    let Some(due) = due else { return changed.await };
    let (mut changed, mut nap) = (pin!(changed), pin!(cx.nap(due)));
    poll_fn(|context| {
        let over = changed.as_mut().poll(context).is_ready() || nap.as_mut().poll(context).is_ready();
        if over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Regions that have been left alone for a while are clean again.
async fn tidy(mirror: &Mirror, cx: &Cx, looked: &mut u64) {
    if cx.now() < *looked + LOOK {
        return;
    }
    *looked = cx.now();
    let (idle, many, on_device) = {
        let mut regions = mirror.regions();
        regions.clean(true);
        let is = (regions.dirty().1, regions.dirty_count() > MOST_DIRTY, regions.image.is_some());
        regions.look();
        is
    };
    if (on_device && idle) || many {
        // An error is dealt with where it was met.
        let _ = mirror.flush(cx).await;
        mirror.regions().clean(!many);
    }
    store_clean(mirror, cx).await;
}

/// Writes what is clean to the log. If that fails, it says more regions dirty than there are.
async fn store_clean(mirror: &Mirror, cx: &Cx) {
    if mirror.regions().image.as_ref().is_some_and(super::Image::is_touched) {
        let _held = mirror.state.log.lock().await;
        let _ = mirror.store_held(cx).await;
    }
}

/// Makes a region the same on all legs.
async fn recover(mirror: &Mirror, cx: &Cx, region: u64, looked: &mut u64) {
    let all = mirror.state.setup.geometry.sectors(region);
    let mut at = all.start;
    while at < all.end && !mirror.state.is_suspending() {
        let (began, requests) = (cx.now(), mirror.state.requests.load(Ordering::Relaxed));
        let window = at..(at + LONGEST as u64 / dm_table::SECTOR_SIZE).min(all.end);
        let end = window.end;
        if !copy(mirror, cx, window).await {
            break;
        }
        at = end;
        tidy(mirror, cx, looked).await;
        if mirror.state.requests.load(Ordering::Relaxed) != requests {
            let rest = ((cx.now() - began) * REST).clamp(REST_LEAST, REST_MOST);
            cx.nap(cx.now() + rest).await;
        }
    }
    let synced = {
        let mut regions = mirror.regions();
        regions.recovered(region, at == all.end) && regions.is_synced()
    };
    if synced {
        complete(mirror, cx).await;
    }
}

/// Copies some sectors from a leg that is right to all others. No write to them is under way meanwhile.
async fn copy(mirror: &Mirror, cx: &Cx, window: Range<u64>) -> bool {
    mirror.regions().open(window.clone());
    loop {
        let changed = mirror.state.changed.listen();
        if mirror.regions().is_open() {
            break;
        }
        changed.await;
    }
    let copied = copy_open(mirror, cx, &window).await;
    mirror.regions().close();
    mirror.state.change();
    copied
}

async fn copy_open(mirror: &Mirror, cx: &Cx, window: &Range<u64>) -> bool {
    let len = window.end - window.start;
    let bytes = (len * dm_table::SECTOR_SIZE) as usize;
    let Ok(lease) = cx.buffer(bytes).await else { return false };
    let data = [lease.slice().part(0, bytes)];
    let sources = mirror.regions().sources();
    for place in sources {
        let Some(leg) = mirror.legs.get(place) else { continue };
        if let Err(errno) = cx.io(leg, Action::Read, window.start, len, data.to_vec()).await {
            mirror.state.fail(place, Failure::Sync, errno);
            continue;
        }
        let others = Legs::all(mirror.legs.len()).without(Legs::one(place));
        let outcome = mirror.each(cx, others, Action::Write { durable: false }, window, &data).await;
        outcome.failed.iter().for_each(|leg| mirror.state.fail(leg, Failure::Sync, outcome.errno));
        return outcome.failed.is_empty();
    }
    false
}

/// All regions are in sync: when that is durable too, any leg is as good as the first.
async fn complete(mirror: &Mirror, cx: &Cx) {
    if mirror.flush(cx).await != Ok(true) {
        return;
    }
    let _held = mirror.state.log.lock().await;
    {
        let mut regions = mirror.regions();
        if !regions.is_synced() {
            return;
        }
        regions.clean(false);
        if regions.source() != 0 {
            regions.image.iter_mut().for_each(|image| image.set_record(None));
            regions.rewrite_record();
        }
    }
    if mirror.store_held(cx).await.is_err() {
        // The source stays as it was; a record that says so does no harm where all are the same.
        let mut regions = mirror.regions();
        let record = mirror.state.record(regions.source());
        regions.image.iter_mut().for_each(|image| image.set_record(record));
        regions.rewrite();
        return;
    }
    {
        let mut regions = mirror.regions();
        // Nobody but the holder of the log's lock makes it otherwise.
        regions.settle(0, Legs::default());
        regions.completed();
    }
    mirror.state.raise();
}
