//! Devices and their sockets: where each is served, and how it goes.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::control::schema::{Remove, Removed, Resume, Which};
use crate::daemon::terminate;
use crate::device::Patience;
use crate::disk::Disk;
use crate::frontend::Session;
use crate::place::Place;
use crate::server::Server;
use crate::socket::{self, Inherited, OwnedPath, SocketError};

use super::state::Committed;
use super::{Caller, DmError, Mapper, Verb, system};

/// A socket that nobody is served on yet: who connects waits.
pub(super) struct Socket {
    inherited: Inherited,
    owned: Option<OwnedPath>,
    pub shown: String,
}

/// A device being served.
pub(super) struct Serving {
    pub server: Arc<Server>,
    owned: Option<OwnedPath>,
    /// Where, for people.
    pub shown: String,
}

impl Socket {
    pub fn at(path: PathBuf) -> Result<Socket, SocketError> {
        let (listener, owned) = socket::listen(&path)?;
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(Socket { inherited: Inherited::Listening(listener), owned: Some(owned), shown: path.display().to_string() })
    }

    pub fn passed(fd: i32) -> Result<Socket, SocketError> {
        Ok(Socket { inherited: socket::inherit(fd)?, owned: None, shown: format!("descriptor {fd}") })
    }
}

impl Serving {
    /// The socket goes to another path. Who is connected stays so.
    pub fn move_to(&mut self, path: &Path) -> Result<(), SocketError> {
        if let Some(owned) = &mut self.owned {
            owned.move_to(path)?;
            self.shown = path.display().to_string();
        }
        Ok(())
    }
}

/// Name of the socket of a device among others. The device's name is fit for a file's.
pub(super) fn socket_name(name: &str) -> String {
    format!("{name}.sock")
}

pub(super) fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(socket_name(name))
}

pub(super) fn unservable(error: &SocketError) -> DmError {
    let errno = match error {
        SocketError::Taken(_) => libc::EADDRINUSE,
        SocketError::NotASocket(_) => libc::EEXIST,
        // Of the standard library: the path does not fit a socket's address.
        SocketError::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => libc::ENAMETOOLONG,
        SocketError::Io { source, .. } | SocketError::Inherited(_, source) => {
            source.raw_os_error().unwrap_or(libc::EIO)
        }
    };
    DmError::new(errno).detail(error.to_string())
}

impl Mapper {
    /// Serves devices where they belong. All sockets come first: a process that cannot serve one of its disks serves none.
    ///
    /// # Errors
    /// A socket that cannot be served on.
    pub fn serve_all(&self, places: Vec<(u32, Place)>) -> Result<(), SocketError> {
        // Who loads a table later is told at once, and can try again; the process's own signals are awaited elsewhere now.
        self.components.lock().unwrap_or_else(PoisonError::into_inner).0.wait(Patience::NONE);
        // Those that were passed before any is made, which might get the number of one that should have been passed.
        let (passed, made): (Vec<_>, Vec<_>) = places.into_iter().partition(|(_, place)| matches!(place, Place::Fd(_)));
        let mut sockets = Vec::new();
        for (minor, place) in passed.into_iter().chain(made) {
            let socket = match place {
                Place::Fd(fd) => Socket::passed(fd)?,
                Place::Path(path) => Socket::at(path)?,
            };
            sockets.push((minor, socket));
        }
        for (minor, socket) in sockets {
            let Ok(disk) = self.devices().get(minor).map(|device| device.disk.clone()) else { continue };
            crate::daemon::log_start(&disk, &socket.shown);
            let serving = self.serve(minor, &disk, socket).map_err(|error| SocketError::Io {
                doing: "serve on",
                path: PathBuf::from("its socket"),
                source: std::io::Error::other(error.to_string()),
            })?;
            if let Ok(device) = self.devices().get_mut(minor) {
                device.serving = Some(serving);
            }
        }
        Ok(())
    }

    /// A thread that takes front ends. It ends with the server.
    pub(super) fn serve(&self, minor: u32, disk: &Arc<Disk>, socket: Socket) -> Verb<Serving> {
        let mapper = self.myself.clone();
        let left = move || {
            if let Some(mapper) = mapper.upgrade() {
                mapper.left(minor);
            }
        };
        let server =
            Server::new(disk.clone(), self.pool.clone(), Box::new(left)).map_err(|error| unservable(&error))?;
        let server = Arc::new(server);
        let its = server.clone();
        let name: String = format!("front-{}", disk.name()).chars().take(15).collect();
        std::thread::Builder::new()
            .name(name)
            .spawn(move || match socket.inherited {
                Inherited::Listening(listener) => its.accept(&listener),
                Inherited::Connected(stream) => connected(&its, stream),
            })
            .map_err(|error| system(&error))?;
        Ok(Serving { server, owned: socket.owned, shown: socket.shown })
    }

    /// A front end has left a device.
    pub(super) fn left(&self, minor: u32) {
        let mut devices = self.devices();
        let goes = devices.all.get(&minor).is_some_and(|device| device.deferred_remove && !device.busy);
        // Those that lie on each other go one after the other.
        let idle = |devices: &super::device::Devices| {
            let serving = devices.all.get(&minor).and_then(|device| device.serving.as_ref());
            serving.is_none_or(|serving| serving.server.close_if_idle())
        };
        if goes && devices.open_count(minor) == 0 && idle(&devices) {
            // No verb has it, nor its number, before its targets have said their last words.
            let disk = devices.all.get_mut(&minor).map(|device| {
                device.busy = true;
                device.disk.clone()
            });
            drop(devices);
            disk.iter().for_each(|disk| self.end_life(minor, disk));
            self.unserve(minor);
            let mut devices = self.devices();
            let gone = devices.all.remove(&minor);
            let lowers: Vec<u32> = gone.iter().flat_map(|d| d.active.iter().flat_map(|table| table.lowers())).collect();
            drop(devices);
            if let Err(error) = self.keep() {
                log::error!("{error}");
            }
            self.free.notify_all();
            if let Some(device) = gone {
                log::info!("{}: removed, as its last user has left", device.disk.name());
                device.events.end();
            }
            lowers.into_iter().for_each(|lower| self.left(lower));
        }
    }

    /// Takes a device's socket away while its name is not free: who makes another of that name would find it.
    fn unserve(&self, minor: u32) {
        let serving = self.devices().all.get_mut(&minor).and_then(|device| device.serving.take());
        if let Some(serving) = serving {
            serving.server.close();
        }
    }

    /// DM_DEV_REMOVE.
    ///
    /// # Errors
    /// No such device (ENXIO), in use (EBUSY).
    pub fn remove(&self, remove: &Remove, caller: &dyn Caller) -> Verb<Removed> {
        let (minor, mut claim) = self.claim_one(&remove.which, caller)?;
        let in_use = |mapper: &Mapper| mapper.devices().open_count(minor) > 0;
        if in_use(self) && remove.force {
            drop(claim);
            self.wipe(minor, caller)?;
            let mut devices = self.devices();
            if devices.open_count(minor) > 0 {
                devices.get_mut(minor)?.deferred_remove = true;
                return Ok(Removed { deferred: true });
            }
            drop(devices);
            return self.remove(&Remove { force: false, ..remove.clone() }, caller);
        }
        let busy = |mapper: &Mapper| {
            if !remove.deferred {
                return Err(DmError::new(libc::EBUSY));
            }
            mapper.devices().get_mut(minor)?.deferred_remove = true;
            Ok(Removed { deferred: true })
        };
        if in_use(self) {
            return busy(self);
        }
        let kept = self.keep_without(minor)?;
        let devices = self.devices();
        // A front end that connects at this moment is refused, or makes the device be in use.
        // So does a table that was loaded over it.
        let is_open = devices.open_count(minor) > 0;
        if is_open || devices.get(minor)?.serving.as_ref().is_some_and(|serving| !serving.server.close_if_idle()) {
            drop(devices);
            drop(kept);
            self.keep_changed()?;
            return busy(self);
        }
        let disk = devices.get(minor)?.disk.clone();
        drop(devices);
        // No verb has it, nor its number, before its targets have said their last words.
        self.end_life(minor, &disk);
        self.unserve(minor);
        let mut devices = self.devices();
        let gone = devices.all.remove(&minor);
        // Another may have the number soon.
        claim.minors.clear();
        let lowers: Vec<u32> =
            gone.iter().flat_map(|device| device.active.iter().flat_map(|table| table.lowers())).collect();
        drop(devices);
        if let Some(Err(error)) = kept.map(Committed::settle) {
            log::error!("the device is removed, but a loss of power may bring it back: {error}");
        }
        drop(claim);
        gone.into_iter().for_each(|device| device.events.end());
        lowers.into_iter().for_each(|lower| self.left(lower));
        Ok(Removed { deferred: false })
    }

    /// Replaces a device's table by one that fails whatever touches it.
    fn wipe(&self, minor: u32, caller: &dyn Caller) -> Verb<()> {
        let (len, name) = {
            let devices = self.devices();
            let device = devices.get(minor)?;
            (device.active.as_ref().map_or(0, |table| table.len().get()), device.name.clone())
        };
        if len == 0 {
            return Ok(());
        }
        let which = Which { minor: Some(minor), ..Which::default() };
        let table = format!("0 {len} error");
        let source = Some(format!("table to wipe {name}"));
        self.load(&crate::control::schema::Load { which: which.clone(), table, source, ..Default::default() }, caller)?;
        self.resume(&Resume { which, noflush: true, force: true }, caller).map(drop)
    }

    /// No front end is taken any more; the sessions that are left are for whoever ends them.
    pub fn close(&self) -> Vec<Arc<Session>> {
        let mut devices = self.devices();
        devices.closed = true;
        devices.all.values().filter_map(|device| device.serving.as_ref()?.server.close()).collect()
    }

    /// The sockets that were made are removed.
    pub fn remove_sockets(&self) {
        self.devices().all.values_mut().for_each(|device| device.serving = None);
    }
}

/// Serves the front end that is connected already; the process ends with it.
fn connected(server: &Server, front: UnixStream) {
    if server.connected(front) {
        terminate();
    }
}
