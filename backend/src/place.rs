//! Which disk is served where, as the command line says, or who started this process.

use std::path::PathBuf;

use crate::activation::Passed;
use crate::args::Listen;
use crate::mapper::Started;

/// Where a disk is served.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket that is made at this path.
    Path(PathBuf),
    /// A descriptor that was passed to us.
    Fd(i32),
}

/// Why it is not known what to serve where.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Neither flag nor passed socket.
    #[error(
        "one of --socket-path, --socket-dir and --fd is needed, or a socket that is passed by socket activation \
         (LISTEN_FDS)"
    )]
    Nowhere,
    /// `--socket-dir`.
    #[error("cannot make {path}: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An empty table file.
    #[error("the table file has no device")]
    NoDevice,
    /// `--device`.
    #[error("--device={name}: the table file has no such device, but {devices}")]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        devices: String,
    },
    /// One socket, and several disks it could be for.
    #[error(
        "the table file has several devices that no other uses ({devices}): say --device=NAME, or serve all of them \
         with --socket-dir"
    )]
    SeveralDevices {
        /// Those that no other uses.
        devices: String,
    },
    /// A flag that means one disk.
    #[error(
        "{flag} is about one disk, but {sockets} sockets are passed (LISTEN_FDS): leave it out, and have them named after \
         the devices to serve (FileDescriptorName= of a .socket unit)"
    )]
    SeveralSockets {
        /// The flag.
        flag: &'static str,
        /// How many sockets.
        sockets: usize,
    },
    /// A passed socket that is for no disk.
    #[error(
        "the passed socket {fd} is named \"{name}\" (LISTEN_FDNAMES), but the table file has no such device, but {devices}: \
         have it named after one of them (FileDescriptorName= of a .socket unit)"
    )]
    Unmatched {
        /// Its descriptor.
        fd: i32,
        /// Its name.
        name: String,
        /// What there is.
        devices: String,
    },
    /// Two sockets for one disk.
    #[error(
        "the passed sockets {first} and {second} are both named \"{name}\" (LISTEN_FDNAMES): a device has one socket"
    )]
    Twice {
        /// Descriptor of one.
        first: i32,
        /// Descriptor of the other.
        second: i32,
        /// Name of both.
        name: String,
    },
}

/// Gives each device that is to be served its place; the numbers are indices of `started`. `passed` are the sockets of socket
/// activation, where no flag says where.
///
/// # Errors
/// See [`PlaceError`].
pub fn places(
    listen: &Listen,
    passed: &[Passed],
    device: Option<&str>,
    serial: bool,
    started: &[Started],
) -> Result<Vec<(usize, Place)>, PlaceError> {
    if let Some(dir) = &listen.socket_dir {
        std::fs::create_dir_all(dir).map_err(|source| PlaceError::Directory { path: dir.clone(), source })?;
        let path = |(index, started): (usize, &Started)| (index, Place::Path(dir.join(&started.socket)));
        return Ok(started.iter().enumerate().map(path).collect());
    }
    let names: Vec<&str> = started.iter().map(|started| started.name.as_str()).collect();
    let tops: Vec<usize> = (0..started.len()).filter(|index| started[*index].top).collect();
    let offered = Offered { names: &names, tops: &tops };
    let chosen = match (&listen.socket_path, listen.fd) {
        (Some(path), _) => vec![(offered.one(device)?, Place::Path(path.clone()))],
        (None, Some(fd)) => vec![(offered.one(device)?, Place::Fd(fd))],
        (None, None) => offered.activated(passed, device, serial)?,
    };
    for &top in &tops {
        if device.is_none() && chosen.iter().all(|(index, _)| *index != top) {
            log::warn!("{}: no socket is passed for it; it is not served", names[top]);
        }
    }
    Ok(chosen)
}

/// Devices of a table file, and which of them no other lies on.
struct Offered<'a> {
    names: &'a [&'a str],
    tops: &'a [usize],
}

impl Offered<'_> {
    fn list(&self) -> String {
        self.names.join(", ")
    }

    fn named(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|one| *one == name)
    }

    /// The disk for the only socket.
    fn one(&self, device: Option<&str>) -> Result<usize, PlaceError> {
        if let Some(name) = device {
            let missing = || PlaceError::NoSuchDevice { name: name.to_owned(), devices: self.list() };
            return self.named(name).ok_or_else(missing);
        }
        match *self.tops {
            [top] => Ok(top),
            [] => Err(PlaceError::NoDevice),
            _ => {
                let names: Vec<&str> = self.tops.iter().map(|&top| self.names[top]).collect();
                Err(PlaceError::SeveralDevices { devices: names.join(", ") })
            }
        }
    }

    /// The disks for passed sockets: each goes by its name, a single one may also go without.
    fn activated(
        &self,
        passed: &[Passed],
        device: Option<&str>,
        serial: bool,
    ) -> Result<Vec<(usize, Place)>, PlaceError> {
        match passed {
            [] => return Err(PlaceError::Nowhere),
            [only] => {
                let by_name = self.named(&only.name).filter(|_| device.is_none());
                let index = by_name.map_or_else(|| self.one(device), Ok)?;
                return Ok(vec![(index, Place::Fd(only.fd))]);
            }
            _ => {}
        }
        for (flag, given) in [("--device", device.is_some()), ("--serial", serial)] {
            if given {
                return Err(PlaceError::SeveralSockets { flag, sockets: passed.len() });
            }
        }
        let mut chosen: Vec<(usize, Place)> = Vec::new();
        for socket in passed {
            let name = || socket.name.clone();
            let unmatched = || PlaceError::Unmatched { fd: socket.fd, name: name(), devices: self.list() };
            let index = self.named(&socket.name).ok_or_else(unmatched)?;
            if let Some((_, Place::Fd(first))) = chosen.iter().find(|(other, _)| *other == index) {
                return Err(PlaceError::Twice { first: *first, second: socket.fd, name: name() });
            }
            chosen.push((index, Place::Fd(socket.fd)));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: Offered<'_> = Offered { names: &["low", "data", "root"], tops: &[1, 2] };

    fn passed(names: &[&str]) -> Vec<Passed> {
        names.iter().zip(3..).map(|(name, fd)| Passed { fd, name: (*name).to_owned() }).collect()
    }

    #[test]
    fn sockets_go_by_their_names() {
        let chosen = OFFERED.activated(&passed(&["root", "data"]), None, false).unwrap();
        assert_eq!(chosen, [(2, Place::Fd(3)), (1, Place::Fd(4))]);
        assert_eq!(OFFERED.activated(&passed(&["low"]), None, true).unwrap(), [(0, Place::Fd(3))]);
    }

    #[test]
    fn one_socket_needs_no_name() {
        let one = Offered { names: &["low", "disk"], tops: &[1] };
        for name in ["", "disk.socket"] {
            assert_eq!(one.activated(&passed(&[name]), None, true).unwrap(), [(1, Place::Fd(3))]);
        }
        assert_eq!(one.activated(&passed(&["disk"]), Some("low"), false).unwrap(), [(0, Place::Fd(3))]);
        assert!(matches!(OFFERED.activated(&passed(&["x"]), None, false), Err(PlaceError::SeveralDevices { .. })));
    }

    #[test]
    fn sockets_that_do_not_fit_are_refused_with_their_names() {
        let refused =
            |names: &[&str], device, serial| OFFERED.activated(&passed(names), device, serial).unwrap_err().to_string();
        assert!(refused(&[], None, false).contains("LISTEN_FDS"));
        let unmatched = refused(&["root", "unknown"], None, false);
        assert!(
            unmatched.contains("socket 4 is named \"unknown\"") && unmatched.contains("low, data, root"),
            "{unmatched}"
        );
        let twice = refused(&["root", "data", "root"], None, false);
        assert!(twice.contains("sockets 3 and 5 are both named \"root\""), "{twice}");
        assert!(refused(&["root", "data"], Some("root"), false).contains("--device"));
        assert!(refused(&["root", "data"], None, true).contains("--serial"));
        assert!(refused(&["x"], Some("none"), false).contains("--device=none"));
    }
}
