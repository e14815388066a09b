//! A socket between the interposer and the protocol's daemon, which takes no socket pair: it accepts or connects itself.
//!
//! It listens on a name that is gone from the file system before anybody is served, so nothing is left however this
//! process ends later; what one that was killed in this very moment has left, the next one removes. What is kept is the
//! file itself, by which this process connects (`/proc/self/fd`). Other processes of the same user could reach it there
//! too; they are told from our own by the process id that the kernel attests.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::socket::SocketError;

/// See the module's text.
#[derive(Debug)]
pub struct Private {
    listener: UnixListener,
    file: OwnedFd,
}

impl Private {
    /// Made at the start, so that a directory for temporary files in which nothing can be made shows then.
    ///
    /// # Errors
    /// No place for a socket.
    pub fn new() -> Result<Private, SocketError> {
        Private::new_in(&std::env::temp_dir())
    }

    fn new_in(base: &Path) -> Result<Private, SocketError> {
        remove_stale(base);
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { doing, path, source }
        };
        let dir = PrivateDir::new(base)
            .map_err(failed("make a directory for a private socket (TMPDIR may name another place) in", base))?;
        let path = dir.0.join("s");
        let listener = UnixListener::bind(&path).map_err(failed("make the private socket", &path))?;
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed("open the private socket", &path)(error.into()))?;
        listener.set_nonblocking(true).map_err(failed("use the private socket", &path))?;
        drop(dir);
        let private = Private { listener, file };
        // A process without /proc, for instance, would notice only when a front end comes.
        private.connect(|at| UnixStream::connect(at)).map_err(failed("connect to the private socket", &path))?;
        Ok(private)
    }

    /// Has `connect` connect to the path that it is given; what it returns, and the other end. One at a time.
    ///
    /// # Errors
    /// Those of `connect`; no descriptor.
    pub fn connect<T>(&self, connect: impl FnOnce(&str) -> io::Result<T>) -> io::Result<(T, UnixStream)> {
        // What an attempt that failed half-way has left would be taken for the other end of this one.
        while self.accept()?.is_some() {}
        let made = connect(&format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        while let Some(other) = self.accept()? {
            let peer = rustix::net::sockopt::socket_peercred(&other)?;
            if peer.pid == rustix::process::getpid() {
                return Ok((made, other));
            }
        }
        Err(io::Error::other("the connection did not arrive"))
    }

    fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the names of the directories begin with, in which the socket is for a moment.
const NAME: &str = "vhost-user-dm.";
/// Age at which such a directory is nobody's.
const STALE: Duration = Duration::from_secs(60);

/// Removes what processes have left that were killed while they made their socket. Whatever is not just like that stays.
fn remove_stale(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME)) {
        let path = entry.path();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::open(&path, flags, Mode::empty()) else { continue };
        let Ok(metadata) = std::fs::File::from(dir).metadata() else { continue };
        let ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o777 == 0o700;
        let stale = metadata.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE));
        // Nobody else can have put anything into it.
        if ours && stale {
            drop(PrivateDir(path));
        }
    }
}

struct PrivateDir(PathBuf);

impl PrivateDir {
    /// A directory that nobody else can look into.
    fn new(base: &Path) -> io::Result<PrivateDir> {
        for n in 0..1000 {
            let path = base.join(format!("{NAME}{}.{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(PrivateDir(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no free name"))
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.join("s"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn both_ends_are_ours_and_no_name_is_left() {
        let base = tempfile::tempdir().unwrap();
        let private = Private::new_in(base.path()).unwrap();
        assert!(std::fs::read_dir(base.path()).unwrap().next().is_none());
        for _ in 0..300 {
            let (mut a, mut b) = private.connect(|at| UnixStream::connect(at)).unwrap();
            a.write_all(b"x").unwrap();
            b.write_all(b"y").unwrap();
            let mut got = [0; 2];
            b.read_exact(&mut got[..1]).unwrap();
            a.read_exact(&mut got[1..]).unwrap();
            assert_eq!(&got, b"xy");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32, old: bool, file: Option<&str>| {
            let path = base.path().join(name);
            std::fs::DirBuilder::new().mode(mode).create(&path).unwrap();
            if let Some(file) = file {
                UnixListener::bind(path.join(file)).unwrap();
            }
            if old {
                let long_ago = std::time::SystemTime::now() - 2 * STALE;
                std::fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
            }
        };
        make("vhost-user-dm.1.0", 0o700, true, Some("s"));
        make("vhost-user-dm.2.0", 0o700, true, None);
        make("vhost-user-dm.3.0", 0o700, false, Some("s"));
        make("vhost-user-dm.4.0", 0o700, true, Some("other"));
        make("vhost-user-dm.5.0", 0o755, true, Some("s"));
        make("other.6.0", 0o700, true, Some("s"));
        std::os::unix::fs::symlink("other.6.0", base.path().join("vhost-user-dm.7.0")).unwrap();
        Private::new_in(base.path()).unwrap();
        let names = std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        let stay = ["other.6.0", "vhost-user-dm.3.0", "vhost-user-dm.4.0", "vhost-user-dm.5.0", "vhost-user-dm.7.0"];
        assert_eq!(left, stay);
        assert!(base.path().join("other.6.0/s").exists());
    }

    #[test]
    fn an_attempt_that_failed_half_way_is_not_taken_for_the_next() {
        let private = Private::new().unwrap();
        let half_way = |at: &str| UnixStream::connect(at).and_then(|_| Err::<(), _>(io::Error::other("no thread")));
        private.connect(half_way).unwrap_err();
        let (mut a, mut b) = private.connect(|at| UnixStream::connect(at)).unwrap();
        a.write_all(b"x").unwrap();
        let mut got = [0];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
    }
}
