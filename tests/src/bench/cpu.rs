//! What a process has taken: CPU time with all its threads (the kernel's io_uring workers among them), memory.

use std::collections::HashMap;
use std::fs;

/// What each thread had taken at one moment.
#[derive(Debug)]
pub struct Reading {
    pid: u32,
    threads: HashMap<u32, Used>,
    ticks: u64,
}

/// CPU use of a thread, or of all threads of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Time on a CPU, nanoseconds.
    pub nanos: u64,
    /// Times it was put on a CPU.
    pub slices: u64,
}

/// Length of a clock tick in /proc/PID/stat (USER_HZ is 100 on Linux), nanoseconds.
const TICK_NANOS: u64 = 10_000_000;

impl Reading {
    /// Reads the CPU time of a process now. All zero when there is none.
    pub fn take(pid: u32) -> Self {
        let mut threads = HashMap::new();
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let name = task.file_name();
            let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let schedstat = fs::read_to_string(task.path().join("schedstat"));
            if let Some(used) = schedstat.ok().as_deref().and_then(parse_schedstat) {
                threads.insert(tid, used);
            }
        }
        Reading { pid, threads, ticks: stat_ticks(pid).unwrap_or(0) }
    }

    /// Threads there were.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// What was used from this reading until now.
    pub fn used_until_now(&self) -> Used {
        let now = Self::take(self.pid);
        let mut used = Used::default();
        for (tid, new) in &now.threads {
            let old = self.threads.get(tid).copied().unwrap_or_default();
            used.nanos += new.nanos.saturating_sub(old.nanos);
            used.slices += new.slices.saturating_sub(old.slices);
        }
        // A thread that ended took its time out of schedstat with it; the process's own count, coarse as
        // it is, still has it.
        if self.threads.keys().any(|tid| !now.threads.contains_key(tid)) {
            used.nanos = (now.ticks - self.ticks.min(now.ticks)) * TICK_NANOS;
        }
        used
    }

    /// Nanoseconds of CPU time from this reading until now.
    pub fn until_now(&self) -> u64 {
        self.used_until_now().nanos
    }
}

/// The three fields of schedstat: nanoseconds on a CPU, nanoseconds of waiting for one, time slices.
fn parse_schedstat(text: &str) -> Option<Used> {
    let mut fields = text.split_ascii_whitespace();
    let nanos = fields.next()?.parse().ok()?;
    let slices = fields.nth(1)?.parse().ok()?;
    Some(Used { nanos, slices })
}

/// utime + stime of /proc/PID/stat, which count threads that ended too.
fn stat_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident: its own, its program's pages, and shared memory it has touched.
    pub resident: u64,
    /// What is its own alone.
    pub anonymous: u64,
}

impl Memory {
    /// Reads the memory of a process now. All zero when there is none.
    pub fn of(pid: u32) -> Self {
        parse_status(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
    }
}

fn parse_status(text: &str) -> Memory {
    let kibibytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse().ok()).unwrap_or(0u64)
    };
    Memory { resident: kibibytes("VmRSS") << 10, anonymous: kibibytes("RssAnon") << 10 }
}

/// File descriptors that a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Pins the calling thread, and what it starts from now on, to one CPU.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted() {
        let before = Reading::take(std::process::id());
        assert!(before.threads() > 0);
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 50 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(before.until_now() > 5_000_000, "{} ns", before.until_now());
    }

    #[test]
    fn the_kernels_tables_are_understood() {
        assert_eq!(parse_schedstat("12345 678 9\n"), Some(Used { nanos: 12345, slices: 9 }));
        assert_eq!(parse_schedstat("12345\n"), None);
        let status = "Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    8512 kB\nRssAnon:\t    1024 kB\n";
        assert_eq!(parse_status(status), Memory { resident: 8512 << 10, anonymous: 1 << 20 });
        assert_eq!(parse_status(""), Memory::default());
        assert!(Memory::of(std::process::id()).resident > 0);
        assert!(descriptors(std::process::id()) > 2);
    }
}
