//! Opening a component that has been found: claims, locks, facts.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::claims::{self, Claim};
use super::component::{Component, Kind, Options};
use super::error::OpenError;
use super::holder::{self, Holder};
use super::locks::{Refusal, Use};
use super::lookup::{self, Located};
use super::opening::Opening;
use super::pair::{Beside, Pair};
use super::sysfs::Disk;

/// Opens what was found, or says why it must not be served in the way that `opts` asks for.
pub(super) fn open(
    located: &Located,
    opts: &Options,
    (beside, pair): (&Beside, &Arc<Pair>),
) -> Result<Component, OpenError> {
    let disk = match located.kind {
        Kind::Block { major, minor } => Disk::numbered(major, minor),
        Kind::File => None,
    };
    let mut warnings = Vec::new();
    check_claims(located, disk.as_ref(), opts.read_only, &mut warnings)?;
    let file = Arc::new(open_file(located, opts)?);
    let locked = !opts.incoming;
    let taken = match locked {
        true => take_locks(&file, located, (opts.read_only, beside), &mut warnings),
        false => Ok(()),
    };
    let how = (opts.read_only, opts.cache);
    let opened = taken.and_then(|()| Opening::first((file.clone(), locked), located, how, (warnings, pair)));
    if opened.is_err() && locked {
        beside.give_back(&file);
    }
    opened
}

/// Refuses writable serving of what this machine uses or has write-protected. Reading such a device harms
/// nobody, but a guest may see it change under its feet.
fn check_claims(
    located: &Located,
    disk: Option<&Disk>,
    read_only: bool,
    warnings: &mut Vec<String>,
) -> Result<(), OpenError> {
    let claims = match (located.kind, disk) {
        (Kind::File, _) => claims::of_file(located.identity),
        (Kind::Block { .. }, Some(disk)) => claims::of_block(disk, located.identity),
        (Kind::Block { .. }, None) => Vec::new(),
    };
    if read_only {
        let changing = claims.iter().filter(|claim| claim.writes);
        warnings.extend(changing.map(|claim| format!("{}, so it may change while it is served", claim.what)));
        return Ok(());
    }
    if !claims.is_empty() {
        return Err(claimed(located, &claims));
    }
    if disk.is_some_and(Disk::is_read_only) {
        return Err(OpenError::ReadOnly { path: located.path.clone(), why: "the device is write-protected".into() });
    }
    Ok(())
}

fn claimed(located: &Located, claims: &[Claim]) -> OpenError {
    let mut releases: Vec<String> = claims.iter().map(|claim| format!("`{}`", claim.release)).collect();
    releases.dedup();
    OpenError::Claimed {
        path: located.path.clone(),
        reasons: claims.iter().map(|claim| claim.what.clone()).collect(),
        help: match claims.iter().any(|claim| claim.writes) {
            true => format!(
                "{} first, or use --read-only; where this machine does not write it either (mounted read-only), \
                 --overlay=tmp or --overlay=COWFILE keeps what the guest writes elsewhere",
                releases.join(" and ")
            ),
            false => format!(
                "{} first, or use --read-only, or --overlay=tmp or --overlay=COWFILE, which keeps what the guest writes \
                 elsewhere",
                releases.join(" and ")
            ),
        },
        passing: false,
    }
}

/// Opens exactly the object that was found, and checks that it is.
fn open_file(located: &Located, opts: &Options) -> Result<File, OpenError> {
    let read_only = opts.read_only;
    let mut flags = OFlags::CLOEXEC | if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    flags |= match located.kind {
        // The claim that mounts, md, dm and swap make too: each excludes all others, and while we have it the
        // machine can neither mount the device nor put anything on it.
        Kind::Block { .. } if !read_only && !opts.incoming => OFlags::EXCL,
        Kind::Block { .. } => OFlags::empty(),
        // Another process's lease must not make us wait.
        Kind::File => OFlags::NONBLOCK,
    };
    let file = reopen(located, flags).map_err(|errno| refused(located, read_only, errno))?;
    let io_error =
        |errno: Errno| OpenError::Io { path: located.path.clone(), doing: "cannot be opened", source: errno.into() };
    let stat = rustix::fs::fstat(&file).map_err(io_error)?;
    if !lookup::classify(&stat).is_ok_and(|(_, identity)| identity == located.identity) {
        return Err(io_error(Errno::STALE));
    }
    // An asynchronous engine may take O_NONBLOCK as a wish to get EAGAIN instead of an answer.
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(io_error)?;
    Ok(file)
}

fn reopen(located: &Located, flags: OFlags) -> rustix::io::Result<File> {
    let exact = PathBuf::from(format!("/proc/self/fd/{}", located.handle.as_raw_fd()));
    let opened = match rustix::fs::open(&exact, flags, Mode::empty()) {
        // No /proc here: by the path, whose end is compared afterwards.
        Err(Errno::NOENT | Errno::NOTDIR) => rustix::fs::open(&located.path, flags | OFlags::NONBLOCK, Mode::empty()),
        opened => opened,
    };
    opened.map(File::from)
}

/// What an errno of the opening means for the user.
fn refused(located: &Located, read_only: bool, errno: Errno) -> OpenError {
    let path = located.path.clone();
    let readable = || !read_only && reopen(located, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK).is_ok();
    match errno {
        Errno::ROFS => OpenError::ReadOnly {
            path,
            why: match located.kind {
                Kind::File => "its file system is mounted read-only".into(),
                Kind::Block { .. } => "the device is write-protected".into(),
            },
        },
        Errno::ACCESS | Errno::PERM => OpenError::Denied {
            path,
            mode: if read_only { "reading" } else { "reading and writing" },
            source: errno.into(),
            readable: readable(),
        },
        Errno::BUSY => busy(located),
        Errno::TXTBSY => OpenError::Claimed {
            path,
            reasons: vec!["it is a program that is running, or active swap".into()],
            help:
                "end that use first, or use --read-only, or --overlay=tmp, which keeps what the guest writes elsewhere"
                    .into(),
            passing: false,
        },
        Errno::WOULDBLOCK => OpenError::Claimed {
            path,
            reasons: vec!["another process has a lease on it (a file server, often)".into()],
            help: "try again, or end that use".into(),
            passing: false,
        },
        _ => OpenError::Io { path, doing: "cannot be opened", source: errno.into() },
    }
}

/// The refusal of an exclusive open that nothing on this machine explains. The claim is on the whole disk and on each
/// partition of it.
fn busy(located: &Located) -> OpenError {
    let disk = match located.kind {
        Kind::Block { major, minor } => Disk::numbered(major, minor),
        Kind::File => None,
    };
    let mut related: Vec<Disk> = disk.iter().flat_map(Disk::partitions).collect();
    related.extend(disk.as_ref().and_then(Disk::whole));
    let mut numbers: Vec<u64> = related.iter().filter_map(Disk::rdev).collect();
    numbers.push(located.stat.st_rdev);
    let holder = holder::of_devices(&numbers);
    let who = match &holder {
        Holder::Dying(_) => format!(": {holder} has it open for writing"),
        Holder::Live(_) | Holder::Unseen => {
            " (a mount in another mount namespace, or a process that serves it too)".to_owned()
        }
    };
    OpenError::Claimed {
        path: located.path.clone(),
        reasons: vec![format!("the kernel has it claimed for another exclusive user{who}")],
        help: "end that use first, or use --read-only, or --overlay=tmp, which keeps what the guest writes elsewhere"
            .into(),
        passing: holder.is_passing(),
    }
}

fn take_locks(
    file: &File,
    located: &Located,
    (read_only, beside): (bool, &Beside),
    warnings: &mut Vec<String>,
) -> Result<(), OpenError> {
    let (usage, mode) = if read_only { (Use::Read, "read-only") } else { (Use::Write, "writable") };
    match beside.acquire(file, usage) {
        Ok(()) => Ok(()),
        Err(Refusal::Held { why, readable, passing }) => {
            let readable = readable && !read_only;
            Err(OpenError::Locked { path: located.path.clone(), mode, why, readable, passing })
        }
        Err(Refusal::Unsupported(error)) => {
            warnings.push(format!("it cannot be locked against other processes ({error})"));
            Ok(())
        }
    }
}
