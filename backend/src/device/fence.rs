//! No write of a dead predecessor may come after one of ours.
//!
//! A process that is killed leaves requests behind that the kernel has begun and nobody can call back. Its successor
//! replays them, the guest goes on and overwrites the same sectors, and then the old write arrives. What keeps it from
//! that is on the open file description that those requests go through: the image locks ([`super::locks`]) and the
//! exclusive claim of a block device. Both last until the kernel drops the last reference to the description, which is
//! when the last request has ended. So who finds a component taken by nobody who lives waits until it is free: not for a
//! process to end, but for its last write. What such a holder looks like is told in [`super::holder`].

use std::sync::Arc;
use std::time::Duration;

use super::component::{Component, Options};
use super::error::OpenError;
use super::lookup::Located;
use super::open;
use super::pair::{Beside, Pair};

/// First and longest time between two attempts. Most killed processes are gone within milliseconds; one that waits for
/// a disk needs no quick look.
const NAPS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

/// How long a process may wait, for all its components together, for what dead processes have left in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    most: Duration,
    pause: fn(Duration),
}

impl Patience {
    /// Linux gives a disk 30 seconds for a command (SCSI, ATA and NVMe alike) and then aborts it; a request that is to
    /// end will have ended soon after that.
    pub const COMMAND: Duration = Duration::from_secs(40);

    /// At most `most`, in steps that `pause` sleeps. It need not return if the process is to end.
    pub fn new(most: Duration, pause: fn(Duration)) -> Patience {
        Patience { most, pause }
    }

    /// None: what is taken is refused at once.
    pub const NONE: Patience = Patience { most: Duration::ZERO, pause: |_| {} };

    /// Tries something again and again while what it fails with passes.
    pub(crate) fn retry<T, E>(
        &self,
        mut attempt: impl FnMut() -> Result<T, E>,
        passes: impl Fn(&E) -> bool,
    ) -> Result<T, E> {
        let (mut waited, mut nap) = (Duration::ZERO, NAPS.0);
        loop {
            match attempt() {
                Err(error) if passes(&error) && waited < self.most => {
                    nap = nap.min(self.most - waited);
                    (self.pause)(nap);
                    waited += nap;
                    nap = (2 * nap).min(NAPS.1);
                }
                ended => return ended,
            }
        }
    }
}

/// The waiting of a process for its components.
#[derive(Debug)]
pub(super) struct Fence {
    patience: Patience,
    waited: Duration,
}

impl Default for Fence {
    fn default() -> Fence {
        Fence::new(Patience::NONE)
    }
}

impl Fence {
    pub fn new(patience: Patience) -> Fence {
        Fence { patience, waited: Duration::ZERO }
    }

    /// Opens what was found, when what dead processes do with it has ended.
    pub fn open(
        &mut self,
        located: &Located,
        opts: &Options,
        pair: (&Beside, &Arc<Pair>),
    ) -> Result<Component, OpenError> {
        let before = self.waited;
        let mut nap = NAPS.0;
        loop {
            let waited = self.waited - before;
            match open::open(located, opts, pair) {
                Err(error) if error.is_passing() && self.waited < self.patience.most => {
                    if waited.is_zero() {
                        self.tell(&error);
                    }
                    nap = nap.min(self.patience.most - self.waited);
                    (self.patience.pause)(nap);
                    self.waited += nap;
                    nap = (2 * nap).min(NAPS.1);
                }
                Err(error) if error.is_passing() && !self.patience.most.is_zero() => {
                    return Err(OpenError::StillTaken { source: Box::new(error), waited: self.waited });
                }
                opened => {
                    if !waited.is_zero() && opened.is_ok() {
                        let path = located.path.display();
                        log::info!("{path}: free after {:.1} seconds; going on", waited.as_secs_f32());
                    }
                    return opened;
                }
            }
        }
    }

    fn tell(&self, error: &OpenError) {
        let left = (self.patience.most - self.waited).as_secs_f32().ceil();
        log::warn!("{error}; waiting up to {left} seconds until the kernel lets go of it, as no write may come late");
    }
}
