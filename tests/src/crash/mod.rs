//! Rounds in which the back end is killed under load and started again: nothing that was acknowledged may be lost,
//! and every request ends once.
//!
//! A round has a seed, which chooses the chain, the load, how both sides are set up, and when the back end ends,
//! counted in completed requests. How far the back end has come with the others in that moment is up to the machine, so
//! a seed that fails may have to be run several times before it fails again.

mod check;
mod driver;
mod load;
mod process;
mod round;
mod world;

use std::fmt;

pub use round::{Mode, run};

/// What rounds amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rounds.
    pub rounds: u64,
    /// Of those, the ones with in-flight tracking.
    pub tracked: u64,
    /// Times that the back end was ended by SIGKILL.
    pub kills: u64,
    /// Times that it was ended by SIGTERM.
    pub terms: u64,
    /// Requests that were outstanding at a kill, each counted at every kill that it lived through.
    pub outstanding: u64,
    /// Requests that completed.
    pub completed: u64,
    /// Acknowledged writes, write-zeroes and discards, each looked up in the component files at least once.
    pub acknowledged: u64,
    /// Comparisons of every byte of all component files.
    pub checks: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.rounds += other.rounds;
        self.tracked += other.tracked;
        self.kills += other.kills;
        self.terms += other.terms;
        self.outstanding += other.outstanding;
        self.completed += other.completed;
        self.acknowledged += other.acknowledged;
        self.checks += other.checks;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds ({} with in-flight tracking), {} kills, {} orderly ends; {} requests completed, {} outstanding at a kill; {} acknowledged \
             writes checked, all files compared {} times",
            self.rounds,
            self.tracked,
            self.kills,
            self.terms,
            self.completed,
            self.outstanding,
            self.acknowledged,
            self.checks
        )
    }
}
