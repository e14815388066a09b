//! Listening sockets: made with care for what stands at the path already, or inherited.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A socket that we made and remove when it goes.
#[derive(Debug)]
pub struct OwnedPath {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode and the time it was made, where the file system tells: an inode number is soon used again.
type Identity = (u64, u64, Option<std::time::SystemTime>);

impl OwnedPath {
    /// Gives the socket another path; who is connected stays so. Nothing that stands there is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn move_to(&mut self, path: &Path) -> Result<(), SocketError> {
        let failed = |source: io::Error| SocketError::Io { doing: "move the socket to", path: path.to_owned(), source };
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(rustix::fs::CWD, &self.path, rustix::fs::CWD, path, flags)
            .map_err(|errno| failed(errno.into()))?;
        self.path = path.to_owned();
        self.identity = identity(path).map_err(failed)?;
        Ok(())
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        // Someone may have put another socket there meanwhile; that one is theirs.
        if identity(&self.path).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino(), m.created().ok()))
}

/// Why a socket cannot be served on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "cannot listen on {path}: a live process listens there; stop it, or choose another path",
        path = .0.display()
    )]
    Taken(PathBuf),
    /// A file that is not a socket.
    #[error("cannot listen on {path}: there is a file that is no socket; it is left alone", path = .0.display())]
    NotASocket(PathBuf),
    /// The system's refusal.
    #[error("cannot {doing} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// `--fd`, or socket activation.
    #[error("descriptor {0} (--fd, or LISTEN_FDS): {1}; pass a listening or connected Unix stream socket")]
    Inherited(RawFd, io::Error),
}

/// Listens on `path`, without waiting in `accept`. A socket that no process listens on any more is replaced.
///
/// # Errors
/// See [`SocketError`].
pub fn listen(path: &Path) -> Result<(UnixListener, OwnedPath), SocketError> {
    listen_by(path, |path| UnixListener::bind(path))
}

/// As [`listen`], on a socket of mode 0600: at no moment can another user connect, whatever the umask.
///
/// # Errors
/// See [`SocketError`].
pub fn listen_private(path: &Path) -> Result<(UnixListener, OwnedPath), SocketError> {
    listen_by(path, bind_private)
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Linux gives the file the mode that the socket has when it is bound; the umask is for the whole process, so that a change
    // of it would be seen by other threads.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before `listen`.
    let mode = std::fs::symlink_metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let _ = std::fs::remove_file(path);
        return Err(io::Error::other(format!("the file system gave it mode {mode:o} instead of 600")));
    }
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from(socket))
}

fn listen_by(
    path: &Path,
    bind: impl FnOnce(&Path) -> io::Result<UnixListener>,
) -> Result<(UnixListener, OwnedPath), SocketError> {
    let failed = |doing| move |source| SocketError::Io { doing, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if is_served(path).map_err(failed("ask whether a process listens on"))? => {
            return Err(SocketError::Taken(path.to_owned()));
        }
        Ok(_) => {
            log::info!("{}: replacing a socket that no process listens on", path.display());
            std::fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    let listener = bind(path).map_err(failed("listen on"))?;
    listener.set_nonblocking(true).map_err(failed("use"))?;
    let identity = identity(path).map_err(failed("look at"))?;
    Ok((listener, OwnedPath { path: path.to_owned(), identity }))
}

fn is_served(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    // Not blocking: a process that is busy with one front end lets others wait.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        // A socket of another type listens there, or one that we may not connect to: not ours to remove.
        Err(rustix::io::Errno::PROTOTYPE) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// A socket that was passed by `--fd` or socket activation.
#[derive(Debug)]
pub enum Inherited {
    /// Front ends will connect. `accept` does not wait.
    Listening(UnixListener),
    /// The front end has connected.
    Connected(UnixStream),
}

/// Takes over descriptor `fd` of this process.
///
/// # Errors
/// It is no Unix stream socket, or not open.
pub fn inherit(fd: RawFd) -> Result<Inherited, SocketError> {
    adopt(fd).map_err(|error| SocketError::Inherited(fd, error))
}

fn adopt(fd: RawFd) -> io::Result<Inherited> {
    // pidfd_getfd on ourselves gives an owned duplicate of a descriptor of which only the number is known.
    let pid = rustix::process::getpid();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let socket: OwnedFd = rustix::process::pidfd_getfd(process, fd as _, rustix::process::PidfdGetfdFlags::empty())?;
    if rustix::net::sockopt::socket_domain(&socket)? != AddressFamily::UNIX
        || rustix::net::sockopt::socket_type(&socket)? != SocketType::STREAM
    {
        return Err(io::Error::other("it is not a Unix stream socket"));
    }
    let listening = rustix::net::sockopt::socket_acceptconn(&socket)?;
    // With the original open, the other end would never see us hang up.
    nix::unistd::close(fd)?;
    // As a server wants it, whatever the one who passes it does with it: see `Server::accept`.
    rustix::io::ioctl_fionbio(&socket, listening)?;
    Ok(match listening {
        true => Inherited::Listening(socket.into()),
        false => Inherited::Connected(socket.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, owned) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Taken(_))));
        drop(listener);
        let (_listener, replaced) = listen(&path).unwrap();
        drop(owned);
        assert!(path.exists(), "a socket that replaced ours is not ours to remove");
        drop(replaced);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_whose_mode_was_changed_is_still_ours() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, owned) = listen(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        drop(owned);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_socket_is_for_its_owner_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, _owned) = listen_private(&path).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(UnixStream::connect(&path).unwrap());
        assert!(matches!(listen_private(&path), Err(SocketError::Taken(_))));
    }

    #[test]
    fn a_full_backlog_is_a_live_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Taken(_))));
    }

    #[test]
    fn other_files_are_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(listen(file.path()), Err(SocketError::NotASocket(_))));
        assert!(file.path().exists());
    }

    #[test]
    fn inherited_sockets_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(inherit(listener.into_raw_fd()), Ok(Inherited::Listening(_))));
        let (one, mut other) = UnixStream::pair().unwrap();
        let inherited = inherit(one.into_raw_fd()).unwrap();
        assert!(matches!(inherited, Inherited::Connected(_)));
        drop(inherited);
        assert_eq!(io::Read::read(&mut other, &mut [0]).unwrap(), 0, "the other end must see the hang-up");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(inherit(file.into_raw_fd()).is_err());
        assert!(inherit(9999).is_err());
    }
}
