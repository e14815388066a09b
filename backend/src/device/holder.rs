//! Who has a component open. The kernel tells it neither with a lock nor with a claim, so it is looked for among the
//! processes, and with it whether that process lives.
//!
//! What a killed process leaves, as seen with a write that hangs in a frozen ext4 (Linux 6.18, `tests/tests/medium/fence.rs`):
//!
//! * A write that an io_uring worker thread (`iou-wrk-*`) has begun hangs in that thread, state D, with SIGKILL in its
//!   `SigPnd`. The thread that owns the ring is in `do_exit` (state D, PF_EXITING in its flags) and waits for its worker;
//!   threads without a part in it are gone. The first thread is a zombie: `/proc/PID/fd` is empty, and the descriptors
//!   are to be seen in `/proc/PID/task/TID/fd` of the others only, with their locks in `fdinfo` beside them.
//! * A write that is with the device already keeps no thread: the process goes, its parent may reap it, and the last
//!   reference to the open file description is the kernel's own. Then no process has it.
//!
//! In both cases the write may still reach the medium, and in both the locks and the claim of the description last
//! until it has.

use std::fmt;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, makedev};

/// A process, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Process {
    id: u32,
    command: String,
}

/// Who has a component open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// It will go on using it.
    Live(Process),
    /// It was killed, or exits, and some of its I/O is left.
    Dying(Process),
    /// None that this user may look into: the kernel itself, for a process that is gone; or another user's.
    Unseen,
}

impl Holder {
    /// Whether it can be expected to end by itself.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Holder::Live(_))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Live(Process { id, command }) => write!(f, "process {id} ({command})"),
            Holder::Dying(Process { id, command }) => {
                write!(f, "process {id} ({command}), which is ending but has I/O in the kernel,")
            }
            Holder::Unseen => f.write_str("another process"),
        }
    }
}

/// The process that has a lock over the byte of an inode. `except` is a descriptor of ours that does not count.
pub(crate) fn of_lock(inode: (u64, u64), byte: i64, except: RawFd) -> Holder {
    let own = std::process::id();
    find(|process, descriptor| {
        let ours = process == own && descriptor.number == except;
        !ours
            && descriptor.info().lines().any(|line| covers(line, byte))
            && descriptor.stat().is_some_and(|stat| stat.inode() == inode)
    })
}

/// The process that has one of these block devices open for writing.
pub(super) fn of_devices(numbers: &[u64]) -> Holder {
    find(|_, descriptor| {
        let one = |stat: Stat| stat.block_device().is_some_and(|number| numbers.contains(&number));
        descriptor.info().lines().any(is_writable) && descriptor.stat().is_some_and(one)
    })
}

/// What a descriptor leads to.
struct Stat(Statx);

impl Stat {
    /// Device and inode.
    fn inode(&self) -> (u64, u64) {
        (makedev(self.0.stx_dev_major, self.0.stx_dev_minor), self.0.stx_ino)
    }

    /// The number of a block device.
    fn block_device(&self) -> Option<u64> {
        let is_one = FileType::from_raw_mode(self.0.stx_mode.into()) == FileType::BlockDevice;
        is_one.then(|| makedev(self.0.stx_rdev_major, self.0.stx_rdev_minor))
    }
}

/// An open descriptor of a thread.
struct Descriptor<'a> {
    thread: &'a Path,
    number: RawFd,
}

impl Descriptor<'_> {
    fn stat(&self) -> Option<Stat> {
        // Another process's file may lie on a server that is gone. What is asked for here never changes, so the kernel need
        // not ask the server.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let path = self.thread.join(format!("fd/{}", self.number));
        rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE | StatxFlags::INO).ok().map(Stat)
    }

    fn info(&self) -> String {
        fs::read_to_string(self.thread.join(format!("fdinfo/{}", self.number))).unwrap_or_default()
    }
}

/// A process with such a descriptor; one that lives before one that does not.
fn find(matches: impl Fn(u32, &Descriptor<'_>) -> bool) -> Holder {
    let mut found = Holder::Unseen;
    for (id, process) in numbered(Path::new("/proc")) {
        let has = |thread: &Path| {
            let descriptors = numbered(&thread.join("fd"));
            descriptors.iter().any(|(number, _)| matches(id, &Descriptor { thread, number: *number as RawFd }))
        };
        // Threads share their descriptors, but a first thread that has ended shows none.
        let tasks = || numbered(&process.join("task"));
        let ended = numbered(&process.join("fd")).is_empty();
        if !(has(&process) || ended && tasks().iter().any(|(_, thread)| has(thread))) {
            continue;
        }
        let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let holder = Process { id, command: command.trim_end().to_owned() };
        if tasks().iter().all(|(_, thread)| is_ending(thread)) {
            found = Holder::Dying(holder);
        } else {
            return Holder::Live(holder);
        }
    }
    found
}

/// The entries of a directory whose names are numbers, in their order; none when it cannot be read.
fn numbered(directory: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut numbered: Vec<_> =
        entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect();
    numbered.sort_unstable();
    numbered
}

/// Whether a thread will not run its program again. One that has gone meanwhile will not.
fn is_ending(thread: &Path) -> bool {
    let read = |name| fs::read_to_string(thread.join(name)).unwrap_or_default();
    let stat = read("stat");
    stat.is_empty() || exits(&stat) || read("status").lines().any(kill_pending)
}

/// Whether the state of proc_pid_stat(5) is that of a thread that exits: zombie, dead, or with flags that say so.
fn exits(stat: &str) -> bool {
    // PF_EXITING, PF_DUMPCORE, PF_SIGNALED
    const EXITING: u64 = 0x4 | 0x200 | 0x400;
    // The command before it may hold blanks and parentheses.
    let Some((_, after)) = stat.rsplit_once(')') else { return false };
    let mut fields = after.split_ascii_whitespace();
    let state = fields.next();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    matches!(state, Some("Z" | "X" | "x")) || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Whether a line of proc_pid_status(5) says that SIGKILL is pending.
fn kill_pending(line: &str) -> bool {
    let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> (libc::SIGKILL - 1) & 1 == 1)
}

/// Whether an fdinfo line is that of the flags (octal), and they allow writing.
fn is_writable(line: &str) -> bool {
    let flags = line.strip_prefix("flags:").and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Whether an fdinfo line (`lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1042 100 101`) is a lock over the byte.
fn covers(line: &str, byte: i64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut fields = lock.split_ascii_whitespace().rev();
    let (end, start) = (fields.next(), fields.next());
    let Some(start) = start.and_then(|start| start.parse::<i64>().ok()) else { return false };
    let end = end.and_then(|end| if end == "EOF" { Some(i64::MAX) } else { end.parse().ok() });
    end.is_some_and(|end| (start..=end).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_line_of_fdinfo_is_read() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10010671 100 101";
        assert!(covers(line, 100) && covers(line, 101));
        assert!(!covers(line, 99) && !covers(line, 102));
        assert!(covers("lock:\t1: POSIX  ADVISORY  WRITE 7 fe:00:1 0 EOF", 201));
        assert!(!covers("pos:\t101", 101));
        assert!(!covers("lock:", 0));
    }

    #[test]
    fn the_flags_of_fdinfo_are_read() {
        assert!(is_writable("flags:\t02100002") && is_writable("flags:\t0100001"));
        assert!(!is_writable("flags:\t02100000") && !is_writable("flags:") && !is_writable("pos:\t2"));
    }

    /// Lines of the killed process of `tests/tests/medium/fence.rs`.
    #[test]
    fn a_process_that_was_killed_is_told_from_one_that_lives() {
        assert!(exits("9402 (vhost-user-dm) Z 9060 8177 25888 0 -1 4228364 236 0 0 0 0 0"));
        assert!(exits("9405 (queue-0) D 9060 8177 25888 0 -1 4195656 10 0 0 0 0 0 0 0 20 0"));
        assert!(!exits("9406 (iou-wrk-9405) D 9060 8177 25888 0 -1 4210768 0 0 0 0 0"));
        assert!(kill_pending("SigPnd:\t0000000000000100") && kill_pending("ShdPnd:\t0000000000000100"));
        assert!(!kill_pending("SigPnd:\t0000000000000080") && !kill_pending("SigBlk:\t0000000000000100"));
        assert!(!exits("9402 (a (Z) b) S 1 1 1 0 -1 4194560 236 0 0") && !exits("9402 (x) S") && !exits(""));
    }

    #[test]
    fn this_process_lives() {
        assert!(!is_ending(Path::new("/proc/self")));
        assert!(is_ending(Path::new("/proc/no-such-process")));
    }
}
