//! What the kernel's io_uring can do, and what of that a ring is allowed.

use std::sync::OnceLock;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue};

// io_uring_register(2) operations that stay allowed when the ring is running.
const REGISTER_FILES_UPDATE: u8 = 6;
const REGISTER_BUFFERS_UPDATE: u8 = 16;

const OPCODES: &[(u8, &str)] = &[
    (opcode::Read::CODE, "read"),
    (opcode::Readv::CODE, "readv"),
    (opcode::Write::CODE, "write"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::UringCmd16::CODE, "uring_cmd"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::AsyncCancel::CODE, "cancel"),
    (opcode::ReadFixed::CODE, "read_fixed"),
    (opcode::WriteFixed::CODE, "write_fixed"),
    (opcode::ReadvFixed::CODE, "readv_fixed"),
    (opcode::WritevFixed::CODE, "writev_fixed"),
];

const FIXED_LISTS: [u8; 2] = [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE];
/// Those that we can do without.
const OPTIONAL: [u8; 3] = [opcode::UringCmd16::CODE, FIXED_LISTS[0], FIXED_LISTS[1]];

/// What this kernel's io_uring offers beyond what we cannot do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// `BLOCK_URING_CMD_DISCARD` can be asked for (the device may still refuse it); Linux 5.19.
    pub uring_cmd: bool,
    /// Lists of slices of registered memory are taken; Linux 6.15.
    pub lists: bool,
}

/// Asks the kernel whether its io_uring can serve a disk.
///
/// # Errors
/// Says what is missing and what to do about it.
pub fn probe() -> Result<Support, String> {
    let help = "vhost-user-dm needs io_uring of Linux 5.15 or later: check `sysctl kernel.io_uring_disabled` \
                and the seccomp profile of a container";
    let ring = IoUring::new(4).map_err(|e| format!("cannot set up an io_uring: {e}; {help}"))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| format!("cannot probe io_uring: {e}; {help}"))?;
    for (code, name) in OPCODES {
        if !OPTIONAL.contains(code) && !probe.is_supported(*code) {
            return Err(format!("this kernel's io_uring has no {name} operation; {help}"));
        }
    }
    let known = |code: &u8| probe.is_supported(*code);
    Ok(Support { uring_cmd: known(&opcode::UringCmd16::CODE), lists: FIXED_LISTS.iter().all(known) })
}

/// What was found when the kernel could first be asked. Where that fails (no descriptors, no memory), a ring is made without
/// what not every kernel has, and the next one asks again.
pub(super) fn support() -> Support {
    static SUPPORT: OnceLock<Support> = OnceLock::new();
    remembered(&SUPPORT, probe)
}

fn remembered(found: &OnceLock<Support>, ask: impl FnOnce() -> Result<Support, String>) -> Support {
    match found.get() {
        Some(support) => *support,
        None => ask().map(|support| *found.get_or_init(|| support)).unwrap_or_default(),
    }
}

impl Support {
    /// All that a running ring takes.
    pub(super) fn allowed(self) -> Vec<Restriction> {
        // The kernel refuses a restriction to an operation that it does not know; to ask for one then fails, which is right.
        let known = |code: &u8| match *code {
            opcode::UringCmd16::CODE => self.uring_cmd,
            code => self.lists || !FIXED_LISTS.contains(&code),
        };
        let codes = OPCODES.iter().map(|(code, _)| code).filter(|code| known(code));
        let mut allowed: Vec<Restriction> = codes.map(|code| Restriction::sqe_op(*code)).collect();
        allowed.push(Restriction::sqe_flags_allowed(squeue::Flags::FIXED_FILE.bits()));
        allowed.push(Restriction::register_op(REGISTER_FILES_UPDATE));
        allowed.push(Restriction::register_op(REGISTER_BUFFERS_UPDATE));
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_served() {
        probe().unwrap();
    }

    #[test]
    fn a_kernel_that_could_not_be_asked_is_asked_again() {
        let (found, all) = (OnceLock::new(), Support { uring_cmd: true, lists: true });
        let failed = || Err("no descriptors".to_owned());
        assert_eq!(remembered(&found, failed), Support::default());
        assert_eq!(remembered(&found, || Ok(all)), all);
        assert_eq!(remembered(&found, failed), all);
    }
}
