//! The lives of stateful targets beside requests: they are probed when a table is loaded, activated before it is live, have a
//! background while it is, and are retired when it no longer is.
//!
//! All of that runs on a worker of its own, which is there from the first stateful target on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dm_table::Sectors;

use crate::chain::Chain;
use crate::disk::Disk;
use crate::stats::Lane;
use crate::targets::{Cx, Shared, Stateful};
use crate::worker::jobs::{Job, Work};
use crate::worker::pool::WorkerSettings;
use crate::worker::{Answer, Worker};

use super::table::Table;
use super::{DmError, MAJOR, Mapper, Verb};

/// See the module's text.
#[derive(Default)]
pub(super) struct Lives {
    worker: Mutex<Option<Arc<Worker>>>,
    shared: Arc<Shared>,
    // Backgrounds that run, by minor numbers.
    running: Mutex<HashMap<u32, Running>>,
}

struct Running {
    chain: Arc<Chain>,
    answers: Vec<Answer<Result<(), String>>>,
}

impl Drop for Lives {
    fn drop(&mut self) {
        let running = std::mem::take(&mut *self.running());
        for Running { chain, .. } in running.values() {
            calm(chain);
        }
        // The worker ends when they have.
        self.hurry();
    }
}

/// Targets begin nothing more by themselves.
fn calm(chain: &Chain) {
    chain.map.own_targets().for_each(|target| target.presuspend());
    chain.map.own_targets().for_each(|target| target.postsuspend());
}

/// A target that does not want to be: the first sector of its line, and what the kernel's log would say.
pub(super) struct Unwilling {
    pub start: Sectors,
    pub why: String,
}

impl Unwilling {
    pub fn error(self, minor: u32) -> DmError {
        DmError::new(libc::EINVAL).kernel(format!("table: {MAJOR}:{minor}: {}", self.why))
    }
}

/// What a target is asked to do.
#[derive(Clone, Copy)]
enum Deed {
    Probe,
    Activate,
    Retire,
}

impl Lives {
    fn worker(&self) -> std::io::Result<Arc<Worker>> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        match &*worker {
            Some(worker) => Ok(worker.clone()),
            None => {
                let new = Worker::spawn("targets", &WorkerSettings::default(), 0)?;
                Ok(worker.insert(Arc::new(new)).clone())
            }
        }
    }

    fn begin(
        &self,
        chain: &Arc<Chain>,
        lane: Arc<Lane>,
        work: impl FnOnce(Cx) -> Work + Send + 'static,
    ) -> std::io::Result<Answer<Result<(), String>>> {
        self.worker()?.job(Job { name: chain.name.clone(), chain: chain.clone(), lane, work: Box::new(work) })
    }

    /// Each target of the chain's own lines before `end` in turn, up to the first that is unwilling.
    fn each(&self, chain: &Arc<Chain>, end: Sectors, deed: Deed) -> Result<(), Unwilling> {
        for (start, target) in chain.map.own_lines().take_while(|(start, _)| *start < end) {
            let (target, shared) = (target.clone(), self.shared.clone());
            let work = move |cx: Cx| -> Work {
                Box::pin(async move {
                    match deed {
                        Deed::Probe => target.probe(&cx).await,
                        Deed::Activate => target.activate(&cx, &shared).await,
                        Deed::Retire => {
                            target.retire(&cx).await;
                            Ok(())
                        }
                    }
                })
            };
            let ended = self.begin(chain, Arc::new(Lane::apart(chain)), work).and_then(Answer::wait);
            ended.unwrap_or_else(|error| Err(format!("no worker: {error}"))).map_err(|why| Unwilling { start, why })?;
        }
        Ok(())
    }

    /// Whether the targets of a table that is to be find what they need. Nothing is changed.
    pub fn probe(&self, chain: &Arc<Chain>) -> Result<(), Unwilling> {
        self.each(chain, chain.len(), Deed::Probe)
    }

    /// The targets of a chain that is to be live take up what is on their devices; or none does.
    pub fn activate(&self, chain: &Arc<Chain>) -> Result<(), Unwilling> {
        self.each(chain, chain.len(), Deed::Activate).inspect_err(|unwilling| {
            // Those before it give back what they took up.
            let _ = self.each(chain, unwilling.start, Deed::Retire);
        })
    }

    /// A chain is live no longer, and none of its requests is under way.
    pub fn retire(&self, chain: &Arc<Chain>) {
        // It cannot be unwilling, and a worker that is gone has nothing to say.
        let _ = self.each(chain, chain.len(), Deed::Retire);
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u32, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what targets do beside requests, unless they do already.
    pub fn go_on(&self, minor: u32, disk: &Disk) {
        let chain = disk.chain();
        let mut running = self.running();
        if running.contains_key(&minor) || chain.map.own_targets().next().is_none() {
            return;
        }
        let mut answers = Vec::new();
        for target in chain.map.own_targets() {
            let target: Arc<Stateful> = target.clone();
            let work = |cx: Cx| -> Work {
                Box::pin(async move {
                    target.background(&cx).await;
                    Ok(())
                })
            };
            // Behind those of its queues.
            let lane = disk.stats.lane(usize::from(disk.offer.num_queues), &chain);
            match self.begin(&chain, lane, work) {
                Ok(answer) => answers.push(answer),
                Err(error) => log::error!("{}: no worker for its targets: {error}", chain.name),
            }
        }
        running.insert(minor, Running { chain, answers });
    }

    /// Targets have been told something that is to be heeded at once: requests may wait for what they do beside requests, and
    /// that for no other reason than time.
    pub fn hurry(&self) {
        if let Ok(Some(worker)) = self.worker.lock().as_deref() {
            let _ = worker.wake();
        }
    }

    /// Waits until targets do nothing beside requests. They must have been told to (`presuspend`, `postsuspend`).
    pub fn rest(&self, minor: u32) {
        let Some(Running { answers, .. }) = self.running().remove(&minor) else { return };
        self.hurry();
        for answer in answers {
            let _ = answer.wait();
        }
    }
}

impl Mapper {
    /// Whether a table's targets find what they need.
    pub(super) fn probe(&self, minor: u32, table: &Arc<Table>) -> Result<(), Unwilling> {
        let tables = super::device::Tables::from([(minor, table.clone())]);
        let chain = self.devices().chain(minor, &tables);
        chain.map_or(Ok(()), |chain| self.lives.probe(&Arc::new(chain)))
    }

    /// The devices of a table file become live: their components are ours.
    ///
    /// # Errors
    /// A target that does not want to be.
    pub fn activate_all(&self) -> Verb<()> {
        let disks: Vec<(u32, Arc<Disk>)> =
            self.devices().all.iter().map(|(minor, device)| (*minor, device.disk.clone())).collect();
        for (minor, disk) in &disks {
            let chain = disk.chain();
            if let Some(kept) = chain.map.own_targets().find(|target| target.is_kept())
                && self.settings.components.incoming
            {
                return Err(DmError::new(libc::EOPNOTSUPP).detail(format!(
                    "{}: {kept:?} keeps what it remembers on its components, which the source of a migration has until the \
                     guest arrives, and does not read it anew then: serve it without --incoming when the source has ended",
                    chain.name
                )));
            }
            let unwilling = |unwilling: Unwilling| {
                let error = unwilling.error(*minor);
                error.detail(format!("{}: it cannot be served", disk.name()))
            };
            // Whoever has them was refused when they were opened: this counts the disk as one of their users.
            disk.hold.begin(&chain).map_err(|error| DmError::new(libc::EBUSY).detail(error.to_string()))?;
            self.lives.activate(&chain).map_err(unwilling)?;
        }
        disks.iter().for_each(|(minor, disk)| self.lives.go_on(*minor, disk));
        Ok(())
    }

    /// Nothing is served any more: targets end what they do, and say their last words.
    pub fn retire_all(&self) {
        let disks: Vec<(u32, Arc<Disk>)> =
            self.devices().all.iter().map(|(minor, device)| (*minor, device.disk.clone())).collect();
        // Those that were made last lie on the others.
        disks.iter().rev().for_each(|(minor, disk)| self.end_life(*minor, disk));
    }

    /// A device's table is live no longer.
    pub(super) fn end_life(&self, minor: u32, disk: &Disk) {
        let chain = disk.chain();
        calm(&chain);
        self.lives.rest(minor);
        self.lives.retire(&chain);
    }
}
