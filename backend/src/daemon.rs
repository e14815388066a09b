//! Signals and the life of the process: the main thread waits for the signal to end.

use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::check;
use crate::disk::Disk;
use crate::mapper::Mapper;

/// Signals that end the process. Blocked from the start, so that every thread inherits that and `wait` takes them.
pub struct Signals(SigSet);

impl Signals {
    /// To be called before any thread is started.
    ///
    /// # Errors
    /// The system's.
    pub fn block() -> nix::Result<Signals> {
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        set.thread_block()?;
        Ok(Signals(set))
    }

    /// Sleeps. One of the signals ends the process: as long as it serves nothing, there is nothing to drain.
    pub fn pause(duration: Duration) {
        let Ok(timeout) = Timespec::try_from(duration) else { return };
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        let Ok(signals) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
            return std::thread::sleep(duration);
        };
        let _ = rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], Some(&timeout));
        if let Ok(Some(_)) = signals.read_signal() {
            log::info!("asked to end before anything was served");
            std::process::exit(0);
        }
    }

    pub(crate) fn wait(&self) -> nix::Result<Signal> {
        self.0.wait()
    }
}

/// Waits for a signal that ends the process, and drains. `before` ends whatever else changes the devices.
pub fn run(mapper: &Mapper, signals: &Signals, before: impl FnOnce()) {
    match signals.wait() {
        Ok(signal) => log::info!("{signal}: draining"),
        Err(error) => log::error!("cannot wait for signals: {error}; stopping"),
    }
    // A component that never answers must not keep the process: a second signal ends it without the drain.
    let impatient = signals.0;
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Ok(signal) = impatient.wait() {
            log::error!("{signal} again: ending with requests under way");
            std::process::exit(1);
        }
    });
    // No verb may begin, or go on, that would miss sessions which are being ended.
    before();
    // Nobody is taken any more while others drain.
    for session in mapper.close() {
        session.end();
    }
    mapper.retire_all();
    mapper.remove_sockets();
    log::info!("stopped");
}

/// Says what is served from now on.
pub(crate) fn log_start(disk: &Disk, place: &str) {
    let chain = disk.chain();
    log::info!(
        "{}: serving {} sectors of {} bytes each ({}-byte blocks{}), {} on {}, up to {} of {} entries, on {place}",
        chain.name,
        chain.len(),
        dm_table::SECTOR_SIZE,
        chain.map.limits().logical_block,
        if chain.read_only { ", read-only" } else { "" },
        check::count(chain.map.segments(), "segment"),
        check::count(chain.map.devices().len(), "component"),
        check::count(usize::from(disk.offer.num_queues), "queue"),
        disk.offer.queue_size,
    );
}

/// Ends the process the way a signal does.
pub(crate) fn terminate() {
    if let Err(error) = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGTERM) {
        log::error!("cannot signal ourselves: {error}");
        std::process::exit(1);
    }
}
