//! The seam between a worker and the devices: commands go in, completions come out, and nothing else is known of it.
//!
//! There are two engines: [`crate::uring::Uring`] does the work, [`crate::sim::Sim`] plays a device by a seed, for tests.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use crate::guest::{Guest, HostSlice};

/// A file that the engine has been told of by [`Engine::add_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIx(pub u32);

/// What a component device is asked to do. Offsets and lengths are in bytes of the component.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// Fill the slices from the device.
    Read {
        /// Where the bytes go; at least one, at most [`MAX_SLICES`].
        data: &'a [HostSlice],
        /// Offset on the device.
        at: u64,
    },
    /// Write the slices to the device.
    Write {
        /// Where the bytes come from; at least one, at most [`MAX_SLICES`].
        data: &'a [HostSlice],
        /// Offset on the device.
        at: u64,
        /// Complete only when the data is on stable storage.
        durable: bool,
    },
    /// Make all completed writes durable.
    Sync,
    /// Free the range; it reads as zeroes afterwards.
    PunchHole {
        /// Offset on the device.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Make the range read as zeroes, with its space kept.
    ZeroRange {
        /// Offset on the device.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Tell a block device that the range's content is not needed.
    BlockDiscard {
        /// Offset on the device.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Most slices of one command: IOV_MAX of Linux.
pub const MAX_SLICES: usize = 1024;

/// What a turn of the engine found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command has ended: bytes transferred, or an errno as a negative number.
    Done {
        /// As given to [`Engine::start`].
        token: u32,
        /// Result as a system call gives it to libc's caller in the kernel: `-errno` or a count.
        result: i32,
    },
    /// A watched descriptor became readable.
    Ready {
        /// As given to [`Engine::watch`].
        watch: u32,
    },
    /// A watch has been taken back; no [`Event::Ready`] of it comes after this.
    Unwatched {
        /// As given to [`Engine::watch`].
        watch: u32,
    },
}

/// How long a turn may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Return at once.
    No,
    /// Return at once, with what has happened already; what was started may go down later with more.
    Gather,
    /// Sleep until there is an event.
    Event,
    /// The same, but no longer than to this time of the engine's clock.
    Until(u64),
}

/// Runs commands against component devices. Every started command ends in exactly one [`Event::Done`]; a command never
/// fails otherwise.
pub trait Engine {
    /// Nanoseconds of a clock that never goes back.
    fn now(&self) -> u64;

    /// Makes a file known. It stays open until [`Engine::remove_file`].
    ///
    /// # Errors
    /// The system's, for example too many files.
    fn add_file(&mut self, file: BorrowedFd<'_>) -> std::io::Result<FileIx>;

    /// Forgets a file. No command on it may be under way.
    fn remove_file(&mut self, file: FileIx);

    /// One more queue has commands on data in the guest's memory, which an engine may prepare for that.
    fn add_memory(&mut self, _guest: &Arc<Guest>) {}

    /// A queue that was told of by [`Engine::add_memory`] has ended. No command of it may be under way.
    fn remove_memory(&mut self, _guest: &Arc<Guest>) {}

    /// Whether turns are to follow, if only to undo what was done for [`Engine::add_memory`]: who drops the engine earlier
    /// leaves that to the system, which takes its time.
    fn is_giving_back(&self) -> bool {
        false
    }

    /// Starts a command; it may reach the device as late as the next [`Engine::turn`]. The memory behind `data` must stay
    /// valid until the command's [`Event::Done`] (the list of slices itself need not).
    fn start(&mut self, file: FileIx, command: Command<'_>, token: u32);

    /// Reports a descriptor each time it becomes readable, until [`Engine::unwatch`]. The descriptor is not read from.
    fn watch(&mut self, fd: RawFd, watch: u32);

    /// Takes a watch back; [`Event::Unwatched`] follows.
    fn unwatch(&mut self, watch: u32);

    /// Whether there are, or soon will be, completions that no turn has seen.
    fn has_unseen(&mut self) -> bool;

    /// Submits what was started and appends what has happened to `events`.
    ///
    /// # Errors
    /// Only such as make the engine useless.
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> std::io::Result<()>;
}
