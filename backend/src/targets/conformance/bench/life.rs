//! The life of a case's disk: its targets are probed, activated, suspended, exchanged and retired, and the power goes.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::{Background, Bench, PATIENCE};
use crate::stats::Lane;
use crate::targets::conformance::Case;
use crate::targets::{Cx, Stateful};
use crate::worker::hand::Hand;
use crate::worker::jobs::{Job, Work};

impl Bench {
    fn job(&mut self, layer: usize, work: impl FnOnce(Cx) -> Work + Send + 'static) -> Receiver<Result<(), String>> {
        let chain = self.layers[layer].chain.clone();
        let lane = Lane::detached(&chain);
        self.hands[0].job(Job { name: chain.name.clone(), chain, lane, work: Box::new(work) })
    }

    /// Waits for an answer.
    fn answer<T>(&mut self, otherwise: &str, from: &Receiver<T>) -> T {
        let mut answer = None;
        self.until(otherwise, |_| {
            answer = answer.take().or_else(|| from.try_recv().ok());
            answer.is_some()
        });
        answer.expect("the answer")
    }

    fn over(&mut self, job: &Receiver<Result<(), String>>) -> Result<(), String> {
        self.answer("a job does not end", job)
    }

    pub fn probe(&mut self) -> Result<(), String> {
        for layer in 0..self.layers.len() {
            for target in self.targets(layer) {
                let job = self.job(layer, |cx| Box::pin(async move { target.probe(&cx).await }));
                self.over(&job)?;
            }
        }
        Ok(())
    }

    pub fn activate(&mut self) -> Result<(), String> {
        for layer in 0..self.layers.len() {
            for target in self.targets(layer) {
                let shared = self.shared.clone();
                let job = self.job(layer, |cx| Box::pin(async move { target.activate(&cx, &shared).await }));
                self.over(&job)?;
            }
        }
        Ok(())
    }

    pub fn background(&mut self) {
        for layer in 0..self.layers.len() {
            for target in self.targets(layer) {
                let work = |cx: Cx| -> Work {
                    Box::pin(async move {
                        target.background(&cx).await;
                        Ok(())
                    })
                };
                let over = self.job(layer, work);
                self.backgrounds.push(Background { layer, over });
            }
        }
    }

    /// Backgrounds of layers from `lowest` on end. Their targets have been told.
    fn rest(&mut self, lowest: usize) {
        self.hands[0].wake();
        for Background { layer, over } in std::mem::take(&mut self.backgrounds) {
            if layer < lowest {
                self.backgrounds.push(Background { layer, over });
            } else {
                self.over(&over).expect("a background has no error");
            }
        }
    }

    pub fn retire(&mut self) {
        for layer in (0..self.layers.len()).rev() {
            for target in self.targets(layer) {
                self.retire_one(layer, target);
            }
        }
    }

    fn retire_one(&mut self, layer: usize, target: Arc<Stateful>) {
        let work = |cx: Cx| -> Work {
            Box::pin(async move {
                target.retire(&cx).await;
                Ok(())
            })
        };
        let job = self.job(layer, work);
        self.over(&job).expect("no error");
    }

    /// The targets become live, as in a process that starts.
    pub(super) fn live(&mut self) {
        self.probe().unwrap_or_else(|why| panic!("probe: {why}"));
        self.activate().unwrap_or_else(|why| panic!("activation: {why}"));
        let messages = self.case.messages;
        for (message, target) in messages.iter().flat_map(|m| self.all_targets().into_iter().map(move |t| (m, t))) {
            let _ = target.message(message);
        }
        self.background();
    }

    /// Suspends all layers, from the top down, with requests under way. What comes after waits in its ring.
    pub fn suspend(&mut self) {
        for layer in (0..self.layers.len()).rev() {
            self.targets(layer).iter().for_each(|target| target.presuspend());
            self.hands[0].wake();
            if layer + 1 == self.layers.len() {
                self.drain();
            }
            self.targets(layer).iter().for_each(|target| target.postsuspend());
            self.rest(layer);
        }
    }

    /// The same as when the lowest device is suspended, and those above it with it.
    pub fn suspend_at_once(&mut self) {
        self.all_targets().iter().for_each(|target| target.presuspend());
        self.hands[0].wake();
        self.drain();
        self.all_targets().iter().for_each(|target| target.postsuspend());
        self.rest(0);
    }

    fn drain(&mut self) {
        let held: Vec<Receiver<()>> =
            self.hands[1..].iter_mut().zip(&self.queues).map(|(hand, queue)| hand.hold(*queue)).collect();
        for held in held {
            self.answer("a queue does not drain", &held);
        }
    }

    /// Begins to suspend, and takes that back before anything has come to rest.
    pub fn suspend_and_take_back(&mut self, turns: u32) {
        self.all_targets().iter().for_each(|target| target.presuspend());
        self.hands[0].wake();
        self.turns(turns);
        self.all_targets().iter().for_each(|target| target.resume());
    }

    /// Goes on. With `again` over tables that were built anew.
    pub fn resume(&mut self, again: bool) {
        if again {
            let stopped: Vec<Receiver<u16>> =
                self.hands[1..].iter_mut().zip(self.queues.drain(..)).map(|(hand, queue)| hand.stop(queue)).collect();
            for stopped in stopped {
                self.answer("a queue does not stop", &stopped);
            }
            self.tables();
        }
        self.all_targets().iter().for_each(|target| target.resume());
        self.background();
        match again {
            true => self.start(),
            false => self.hands[1..].iter_mut().zip(&self.queues).for_each(|(hand, queue)| hand.go(*queue)),
        }
        self.drivers.iter().for_each(|driver| driver.kick(&self.sim));
    }

    /// Another case's table takes the place of this one's, as when it is loaded.
    pub fn reload(&mut self, case: &'static Case) {
        self.suspend();
        for (hand, queue) in self.hands[1..].iter_mut().zip(self.queues.drain(..)) {
            let _ = hand.stop(queue);
        }
        self.turns(PATIENCE);
        let old = self.all_targets();
        self.case = case;
        self.layers.clear();
        self.tables();
        self.fence();
        self.activate().unwrap_or_else(|why| panic!("activation: {why}"));
        old.into_iter().for_each(|target| self.retire_one(0, target));
        self.all_targets().iter().for_each(|target| target.resume());
        self.background();
        self.start();
        self.drivers.iter().for_each(|driver| driver.kick(&self.sim));
    }

    /// The same, but the one that is there goes on after so many turns of that. Whether the other has come to be live.
    pub fn reload_too_late(&mut self, case: &'static Case, turns: u32) -> Result<(), String> {
        self.suspend();
        for (hand, queue) in self.hands[1..].iter_mut().zip(self.queues.drain(..)) {
            let _ = hand.stop(queue);
        }
        self.turns(PATIENCE);
        let old = self.all_targets();
        self.case = case;
        self.layers.clear();
        self.tables();
        self.fence();
        let (target, shared) = (self.all_targets().remove(0), self.shared.clone());
        let job = self.job(0, |cx| Box::pin(async move { target.activate(&cx, &shared).await }));
        self.turns(turns);
        old.iter().for_each(|target| target.resume());
        self.over(&job)
    }

    /// The same table again, which would be live but for another of its lines.
    pub fn reload_in_vain(&mut self) {
        self.suspend();
        let layers = std::mem::take(&mut self.layers);
        self.tables();
        self.activate().unwrap_or_else(|why| panic!("activation: {why}"));
        self.retire();
        self.layers = layers;
        self.resume(false);
    }

    /// The power goes, and comes back: whatever was under way has gone.
    pub fn crash(&mut self) {
        self.sim.crash();
        self.backgrounds.clear();
        self.layers.clear();
        self.shared = Arc::default();
        self.tables();
        // The case may be another one that has the same components.
        self.fence();
        self.workers();
        self.live();
    }

    /// The disk is served no longer, in good order: everything is back in its place.
    pub fn end(&mut self) {
        let stopped: Vec<Receiver<u16>> =
            self.hands[1..].iter_mut().zip(self.queues.drain(..)).map(|(hand, queue)| hand.stop(queue)).collect();
        for stopped in stopped {
            self.answer("a queue does not stop", &stopped);
        }
        for target in self.all_targets() {
            target.presuspend();
            target.postsuspend();
        }
        self.rest(0);
        self.retire();
        self.turns(PATIENCE);
        assert!(!self.turn(), "nothing is under way, and a worker does not sleep");
        assert_eq!(self.sim.in_flight(), 0);
        self.hands.iter().for_each(Hand::check_idle);
    }
}
