//! qemu-storage-daemon, and which of its settings is its best for a row.

use std::fmt;
use std::path::Path;
use std::process::Command;

use super::rows::Backing;

/// How it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `aio=` and `cache.direct=`; None for null-co, which has neither.
    file: Option<(&'static str, bool)>,
    /// The iothread's `poll-max-ns`; None for its default (32,768).
    poll_max_ns: Option<u64>,
}

/// Longer than any latency here, so that an iothread that can poll at all never sleeps under load.
const LONG_POLL_NANOS: u64 = 1_000_000;

/// A setting that is not the default has to be better by this factor, lest noise choose it.
const WORTH: f64 = 1.03;

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            Some((aio, direct)) => write!(f, "aio={aio} direct={}", if direct { "on" } else { "off" })?,
            None => write!(f, "null-co")?,
        }
        match self.poll_max_ns {
            Some(nanos) => write!(f, " poll-max-ns={nanos}"),
            None => Ok(()),
        }
    }
}

impl Setting {
    /// Those to try first. Since Linux 6.6 files in tmpfs take O_DIRECT, and aio=native, which needs it, then serves
    /// them without its worker threads.
    pub fn candidates(backing: Backing) -> Vec<Setting> {
        let file = |aio, direct| Setting { file: Some((aio, direct)), poll_max_ns: None };
        match backing {
            Backing::Zero => vec![Setting { file: None, poll_max_ns: None }],
            Backing::Tmpfs => {
                vec![file("io_uring", false), file("threads", false), file("native", true), file("io_uring", true)]
            }
            Backing::Direct => vec![file("io_uring", true), file("native", true), file("threads", true)],
        }
    }

    /// The same with an iothread that polls for long.
    pub fn with_long_poll(self) -> Setting {
        Setting { poll_max_ns: Some(LONG_POLL_NANOS), ..self }
    }

    /// The best of what was tried, in requests a second. The first is the default and stays unless another is
    /// clearly better. None if nothing was tried.
    pub fn best(tried: &[(Setting, f64)]) -> Option<Setting> {
        let (default, its) = *tried.first()?;
        let best = tried.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(if best.1 > its * WORTH { best.0 } else { default })
    }

    /// The command that serves `file` (for null-co: a disk of `bytes` bytes) on `socket`.
    pub fn command(self, file: &Path, bytes: u64, socket: &Path) -> Command {
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev");
        match self.file {
            Some((aio, direct)) => command
                .arg(format!(
                    "driver=file,node-name=file,filename={},aio={aio},cache.direct={}",
                    file.display(),
                    if direct { "on" } else { "off" }
                ))
                .args(["--blockdev", "driver=raw,node-name=disk,file=file"]),
            None => command.arg(format!("driver=null-co,node-name=disk,size={bytes},read-zeroes=on")),
        };
        let poll = self.poll_max_ns.map(|nanos| format!(",poll-max-ns={nanos}")).unwrap_or_default();
        command.args(["--object", &format!("iothread,id=io0{poll}"), "--export"]).arg(format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=disk,writable=on,iothread=io0,num-queues=1",
            socket.display()
        ));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_stays_unless_another_is_clearly_better() {
        let [default, threads, native, _] = Setting::candidates(Backing::Tmpfs)[..] else {
            panic!("four settings");
        };
        assert_eq!(Setting::best(&[]), None);
        assert_eq!(Setting::best(&[(default, 100.0), (threads, 102.0)]), Some(default));
        assert_eq!(Setting::best(&[(default, 100.0), (threads, 104.0), (native, 110.0)]), Some(native));
    }

    #[test]
    fn settings_say_what_they_are() {
        let [_, _, native, _] = Setting::candidates(Backing::Tmpfs)[..] else {
            panic!("four settings");
        };
        assert_eq!(native.with_long_poll().to_string(), "aio=native direct=on poll-max-ns=1000000");
        let command = format!("{:?}", native.with_long_poll().command(Path::new("/f"), 0, Path::new("/s")));
        assert!(command.contains("filename=/f,aio=native,cache.direct=on"), "{command}");
        assert!(command.contains("id=io0,poll-max-ns=1000000"), "{command}");
    }
}
