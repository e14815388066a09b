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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::component::{Access, Component, Kind};
use super::error::OpenError;
use super::holder;
use super::locks::{self, Refusal, Use};

/// The open file of a component, and whether it is ours to write.
#[derive(Debug)]
pub(super) struct Held(Mutex<State>);

#[derive(Debug)]
struct State {
    file: Arc<File>,
    // Locks and claim are on `file`'s description.
    owned: bool,
    // Disks of this process that write it.
    users: usize,
}

impl Held {
    pub fn new(file: File, owned: bool) -> Held {
        Held(Mutex::new(State { file: Arc::new(file), owned, users: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// The open file. Image locks and an exclusive claim belong to its open file description, so they last until the
    /// kernel has dropped the last reference to it, including that of a write in flight. It is another one after a
    /// block device has been handed over.
    pub fn file(&self) -> Arc<File> {
        self.held.state().file.clone()
    }

    /// A disk that writes the component starts to be served: locks it, and claims it, unless that was done before. Tells
    /// whether it was not.
    ///
    /// # Errors
    /// Who else has it. It is to be tried again only as long as there is hope.
    pub(crate) fn take(&self) -> Result<bool, OpenError> {
        let mut state = self.held.state();
        let locks = !state.owned && !self.read_only;
        if locks {
            let file = match self.kind {
                Kind::File => state.file.clone(),
                Kind::Block { .. } => Arc::new(self.reopen(&state.file, true)?),
            };
            self.lock(&file)?;
            (state.file, state.owned) = (file, true);
        }
        state.users += 1;
        Ok(locks)
    }

    /// A disk does not write the component any more, because its table has changed. Nothing of it is under way. Locks and
    /// claim stay, for whoever else has the component; they go with the open file.
    pub(crate) fn leave(&self) {
        let mut state = self.held.state();
        state.users = state.users.saturating_sub(1);
    }

    /// Brings to the disk what this process has written to the component: all writes that have ended. Waits for the
    /// device, so it is not for a worker.
    ///
    /// # Errors
    /// What was written is lost, or may be, now or since an earlier flush: as a guest's flush is told.
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

    /// Brings what was written to where another process, perhaps on another machine, will find it, as QEMU does before it
    /// hands an image over.
    ///
    /// # Errors
    /// What was written is lost, or may be: the next owner would not know.
    pub(crate) fn settle(&self) -> io::Result<()> {
        if self.unflushed.as_ref().is_some_and(|unflushed| unflushed.stamp().lost()) {
            return Err(self.lost());
        }
        match self.access {
            Access::Buffered => self.sync(),
            _ => Ok(()),
        }
    }

    /// A disk that writes the component is not served any more, and another process will take it. Nothing of the disk is
    /// under way. Locks and claim go with the last such disk.
    pub(crate) fn give_up(&self) {
        let mut state = self.held.state();
        state.users = state.users.saturating_sub(1);
        if state.users > 0 || !state.owned || self.read_only {
            return;
        }
        if let Kind::Block { .. } = self.kind {
            match self.reopen(&state.file, false) {
                Ok(file) => state.file = Arc::new(file),
                Err(error) => return log::error!("the claim on {}; it is kept", error),
            }
        } else if let Err(error) = locks::release(&state.file) {
            return log::error!("{}: the image locks cannot be given up ({error}); they are kept", self.path.display());
        }
        state.owned = false;
    }

    fn lock(&self, file: &File) -> Result<(), OpenError> {
        match locks::acquire(file, Use::Write) {
            Ok(()) => Ok(()),
            Err(Refusal::Held { why, passing, .. }) => {
                // What was taken before the refusal must not keep the other one out.
                let _ = locks::release(file);
                Err(OpenError::Locked { path: self.path.clone(), mode: "writable", why, readable: false, passing })
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
    use std::sync::Arc;

    use dm_table::Sectors;

    use super::*;
    use crate::device::{Cache, Limits, Options, Registry, Unflushed};

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
        let limits = Limits {
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            io_min: 0,
            io_opt: 0,
            discard: None,
            write_zeroes: false,
        };
        // Not even this kernel syncs it.
        let null = File::open("/dev/null").unwrap();
        let component = Component::simulated(null, 0, Sectors::new(64), limits, Access::Buffered);
        write(&component, 512..1024);
        assert_eq!(component.sync().unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(component.unflushed.as_ref().unwrap().stamp().lost());
        write(&component, 0..4096);
        component.settle().unwrap_err();
        assert!(component.unflushed.as_ref().unwrap().stamp().lost(), "as much by what hands a component over");
    }
}
