//! A component that goes from one process to another while a guest migrates between them.
//!
//! Both processes have it open all the time, so that neither can fail over that half-way; what says whose it is are the
//! image locks and, on a block device, the kernel's exclusive claim. The source gives both up when its guest has stopped
//! and nothing of it is under way; the destination takes both before its guest starts. At no time do two have them, and
//! who has not got them must not write.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::component::{Access, Kind};
use super::error::OpenError;
use super::holder;
use super::locks::{self, Refusal, Use};
use super::opening::{Opening, State};
use super::pair::Beside;

/// What [`super::Component`] says of them.
impl Opening {
    pub fn take(&self) -> Result<bool, OpenError> {
        self.pair.after_our_own(|| {
            self.pair.taken(self, |state, beside| {
                let file = match self.kind {
                    Kind::Block { .. } if !self.read_only => Arc::new(self.reopen(&state.file, true)?),
                    _ => state.file.clone(),
                };
                self.lock(&file, beside)?;
                (state.file, state.owned) = (file, true);
                Ok(())
            })
        })
    }

    pub fn leave(&self) {
        let mut state = self.state();
        state.users = state.users.saturating_sub(1);
    }

    pub fn sync(&self) -> io::Result<()> {
        let Some(unflushed) = &self.unflushed else { return Ok(()) };
        let flush = unflushed.begin();
        let ended = self.file().sync_data();
        let believed = unflushed.end(flush, ended.is_ok());
        ended?;
        if believed && !flush.began().lost() {
            return Ok(());
        }
        Err(self.lost())
    }

    fn lost(&self) -> io::Error {
        io::Error::other(format!("{}: a flush has failed, and what it lost is not written again", self.name))
    }

    pub fn settle(&self) -> io::Result<()> {
        if self.unflushed.as_ref().is_some_and(|unflushed| unflushed.stamp().lost()) {
            return Err(self.lost());
        }
        match self.access {
            Access::Buffered => self.sync(),
            _ => Ok(()),
        }
    }

    pub fn give_up(&self) -> bool {
        self.pair.given_up(self, true)
    }

    pub fn put_back(&self) {
        self.pair.given_up(self, false);
    }

    /// Gives up locks and claim; says why if it cannot, and they are kept.
    pub(super) fn release(&self, state: &mut State) {
        if matches!(self.kind, Kind::Block { .. }) && !self.read_only {
            match self.reopen(&state.file, false) {
                Ok(file) => state.file = Arc::new(file),
                Err(error) => return log::error!("the claim on {error}; it is kept"),
            }
        } else if let Err(error) = locks::release(&state.file) {
            // Some may be gone. A reader of this process that excludes writers again is no reason not to have them.
            let _ = locks::announce(&state.file, self.usage());
            return log::error!("{}: the image locks cannot be given up ({error}); they are kept", self.path.display());
        }
        state.owned = false;
    }

    fn usage(&self) -> Use {
        if self.read_only { Use::Read } else { Use::Write }
    }

    fn lock(&self, file: &File, beside: &Beside) -> Result<(), OpenError> {
        let mode = if self.read_only { "read-only" } else { "writable" };
        match beside.acquire(file, self.usage()) {
            Ok(()) => Ok(()),
            Err(Refusal::Held { why, passing, .. }) => {
                // What was taken before the refusal must not keep the other one out.
                beside.give_back(file);
                Err(OpenError::Locked { path: self.path.clone(), mode, why, readable: false, passing })
            }
            Err(Refusal::Unsupported(error)) => {
                log::warn!(
                    "{}: its file system has no locks ({error}); another process that writes it goes unnoticed",
                    self.path.display()
                );
                Ok(())
            }
        }
    }

    /// The same device by another open file description, with its flags.
    fn reopen(&self, file: &File, exclusive: bool) -> Result<File, OpenError> {
        let io_error =
            |source: io::Error| OpenError::Io { path: self.path.clone(), doing: "cannot be opened again", source };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | if exclusive { OFlags::EXCL } else { OFlags::empty() };
        let same = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let again = match rustix::fs::open(&same, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::BUSY) => {
                let number = rustix::fs::fstat(file).map_err(|errno| io_error(errno.into()))?.st_rdev;
                return Err(OpenError::Claimed {
                    path: self.path.clone(),
                    reasons: vec!["the kernel has it claimed for another exclusive user".into()],
                    help: "end that use first".into(),
                    passing: holder::of_devices(&[number]).is_passing(),
                });
            }
            Err(errno) => return Err(io_error(errno.into())),
        };
        let direct = rustix::fs::fcntl_getfl(file).map_err(|errno| io_error(errno.into()))?;
        rustix::fs::fcntl_setfl(&again, direct).map_err(|errno| io_error(errno.into()))?;
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use dm_table::Sectors;

    use super::*;
    use crate::device::{Cache, Component, Limits, Options, Registry, Unflushed};

    fn write(component: &Component, bytes: std::ops::Range<u64>) {
        let unflushed: &Arc<Unflushed> = component.unflushed.as_ref().unwrap();
        unflushed.written(bytes, unflushed.stamp());
    }

    #[test]
    fn a_sync_is_not_believed_while_something_is_lost() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let options = Options { cache: Cache::Buffered, ..Options::default() };
        let component = Registry::new().open(file.path().to_str().unwrap(), None, &options).unwrap();
        write(&component, 0..4096);
        component.sync().unwrap();
        // A guest's flush that fails now may have lost nothing that was synced before.
        let unflushed = component.unflushed.clone().unwrap();
        unflushed.end(unflushed.begin(), false);
        component.sync().unwrap();
        write(&component, 0..4096);
        unflushed.end(unflushed.begin(), false);
        let error = component.sync().unwrap_err().to_string();
        assert!(error.contains("a flush has failed, and what it lost is not written again"), "{error}");
        assert!(component.settle().is_err());
        write(&component, 0..4096);
        component.sync().unwrap();
        component.settle().unwrap();
    }

    #[test]
    fn a_sync_that_fails_is_remembered() {
        // Not even this kernel syncs it.
        let null = File::open("/dev/null").unwrap();
        let component = Component::simulated(null, 0, Sectors::new(64), Limits::plain(), Access::Buffered);
        write(&component, 512..1024);
        assert_eq!(component.sync().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(component.unflushed.as_ref().unwrap().stamp().lost());
        write(&component, 0..4096);
        component.settle().unwrap_err();
        assert!(component.unflushed.as_ref().unwrap().stamp().lost(), "as much by what hands a component over");
    }
}
