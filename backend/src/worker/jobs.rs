//! What targets do beside requests: each job is a task without a queue.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::devices::{Devices, User};
use super::ops::{Ops, Verdict};
use super::tasks::JOB;
use super::{Core, gone};
use crate::chain::Chain;
use crate::engine::Engine;
use crate::stats::Lane;
use crate::targets::Cx;

/// A job under way. It ends by itself; the error is for whoever waits for it.
pub type Work = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// What a worker needs to do a job.
pub struct Job {
    /// For the log.
    pub name: String,
    /// On whose components.
    pub chain: Arc<Chain>,
    /// Where operations are counted. No other worker may use it.
    pub lane: Arc<Lane>,
    /// What is to be done.
    pub work: Box<dyn FnOnce(Cx) -> Work + Send>,
}

/// A job's part that is not its task.
pub(super) struct Attended {
    name: String,
    chain: Arc<Chain>,
    lane: Arc<Lane>,
    pub devices: Devices,
    over: Sender<Result<(), String>>,
}

impl Attended {
    pub fn user(&self) -> User<'_> {
        User { name: &self.name, chain: &self.chain, lane: &self.lane }
    }

    /// An operation of one of its tasks has ended.
    pub fn operation_ended(&self, verdict: &Verdict, ns: u64) {
        self.user().ended(verdict, ns);
    }

    fn end(self, result: Result<(), String>, ops: &mut Ops, engine: &mut impl Engine) {
        let Attended { chain, lane, devices, over, .. } = self;
        devices.forget(ops, engine);
        // Whoever is told may look whether we have them open.
        drop((chain, lane, devices));
        // Who asked may have gone meanwhile.
        let _ = over.send(result);
    }
}

/// Jobs by their places, which are also those of their tasks.
#[derive(Default)]
pub(super) struct Jobs(Vec<Option<Attended>>);

impl Jobs {
    /// The job that a task's queue number means.
    #[inline]
    pub fn of(&self, queue: u32) -> Option<&Attended> {
        if queue & JOB == 0 {
            return None;
        }
        self.0.get((queue & !JOB) as usize)?.as_ref()
    }

    pub fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }
}

impl<E: Engine> Core<E> {
    /// Begins a job; `over` gets its result.
    pub(crate) fn begin_job(&mut self, job: Job, over: Sender<Result<(), String>>) {
        let devices = match Devices::new(&job.chain, &mut self.ops, &mut self.engine) {
            Ok(devices) => devices,
            Err(error) => {
                let _ = over.send(Err(format!("{}: the ring takes no more files: {error}", job.name)));
                return;
            }
        };
        let place = self.tasks.begin_job(job.work) as usize;
        let Jobs(all) = &mut self.jobs;
        all.resize_with(all.len().max(place + 1), || None);
        all[place] = Some(Attended { name: job.name, chain: job.chain, lane: job.lane, devices, over });
        self.stateful = true;
    }

    /// Ends jobs that are over.
    pub(super) fn end_jobs(&mut self) {
        let mut ended = false;
        while let Some((place, result)) = self.tasks.job_over() {
            if let Some(attended) = self.jobs.0.get_mut(place as usize).and_then(Option::take) {
                attended.end(result, &mut self.ops, &mut self.engine);
                ended = true;
            }
        }
        if ended {
            self.look_for_state();
        }
    }
}

impl super::Worker {
    /// Does a job. The answer comes when it is over.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn job(&self, job: Job) -> std::io::Result<super::Answer<Result<(), String>>> {
        let (over, answer) = std::sync::mpsc::channel();
        self.post(super::Mail::Job(Box::new(job), over)).map_err(|_| gone())?;
        Ok(super::Answer(answer))
    }

    /// Has all tasks look whether they still have to wait.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn wake(&self) -> std::io::Result<()> {
        self.post(super::Mail::Wake)
    }
}
