//! `snapshot-origin`: a device of which there are snapshots. What is written over goes to them first.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::map::{DevIx, Leg};
use crate::targets::shared::Origin as Known;
use crate::targets::{Cx, Io, Refused, Shared, Target};
use crate::worker::ops::Action;

/// See the module's text.
pub struct SnapshotOrigin {
    leg: Leg,
    // First sector of its line: the device is used from there on.
    start: u64,
    // Sectors of the device.
    size: u64,
    known: Arc<Mutex<Option<Arc<Known>>>>,
}

impl SnapshotOrigin {
    /// On `leg`, which is all of a device of `size` sectors; its line begins at sector `start`.
    pub fn new(leg: Leg, start: u64, size: u64) -> SnapshotOrigin {
        SnapshotOrigin { leg, start, size, known: Arc::default() }
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget(&self) {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).take() {
            known.unwatch();
        }
    }
}

/// Does `write` to `sectors` of an origin, once its snapshots have what is there.
///
/// # Errors
/// That of the write; EIO when a suspended snapshot is waited for and the queue is to end.
pub async fn write_to<F>(cx: &Cx, known: &Known, sectors: Range<u64>, write: impl FnOnce() -> F) -> Result<(), i32>
where
    F: Future<Output = Result<(), i32>>,
{
    loop {
        let writing = known.writing.enter();
        let snapshots = known.snapshots();
        // All of them begin before one is waited for.
        let needed: Vec<_> = snapshots.iter().filter(|live| live.protect(&sectors)).collect();
        if needed.is_empty() {
            let written = write().await;
            drop(writing);
            return written;
        }
        // A snapshot that is about to be live waits for writers, not for whom they wait for.
        drop(writing);
        for live in needed {
            live.protected(cx, &sectors).await?;
        }
    }
}

impl Target for SnapshotOrigin {
    async fn run(&self, cx: &Cx, io: Io) -> Result<(), i32> {
        let at = self.start + io.at;
        let sectors = at..at.saturating_add(io.len);
        match io.action {
            Action::Flush => cx.io(&self.leg, io.action, 0, 0, io.data).await,
            // It has none (`num_discard_bios` of origin_ctr).
            Action::Discard => Err(libc::EOPNOTSUPP),
            _ if sectors.end > self.size => Err(libc::EIO),
            Action::Read => cx.io(&self.leg, io.action, at, io.len, io.data).await,
            Action::Write { .. } | Action::Zero { .. } => match self.known() {
                Some(known) => {
                    let write = || cx.io(&self.leg, io.action, at, io.len, io.data);
                    write_to(cx, &known, sectors, write).await
                }
                // Its device is no one's that could have snapshots.
                None => cx.io(&self.leg, io.action, at, io.len, io.data).await,
            },
        }
    }

    fn status(&self, _: &dyn Fn(&str) -> String) -> String {
        String::new()
    }

    async fn activate(&self, _: &Cx, shared: &Arc<Shared>) -> Result<(), Refused> {
        let Some(key) = self.leg.key() else { return Ok(()) };
        let known = shared.origin(key);
        known.watch().await;
        let before = self.known.lock().unwrap_or_else(PoisonError::into_inner).replace(known);
        before.into_iter().for_each(|before| before.unwatch());
        Ok(())
    }

    async fn retire(&self, _: &Cx) {
        self.forget();
    }

    fn again(&self, legs: Vec<Leg>) -> SnapshotOrigin {
        let leg = legs.into_iter().next().unwrap_or_else(|| self.leg.clone());
        SnapshotOrigin { leg, known: self.known.clone(), ..*self }
    }

    fn devices(&self) -> Vec<DevIx> {
        self.leg.devices().to_vec()
    }
}
