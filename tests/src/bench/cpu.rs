//! CPU time of a process with all its threads, the kernel's io_uring workers among them.

use std::collections::HashMap;
use std::fs;

/// CPU time of each thread at one moment.
#[derive(Debug)]
pub struct Reading {
    pid: u32,
    threads: HashMap<u32, u64>,
    ticks: u64,
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
            if let Some(nanos) = on_cpu(&task.path().join("schedstat")) {
                threads.insert(tid, nanos);
            }
        }
        Reading { pid, threads, ticks: stat_ticks(pid).unwrap_or(0) }
    }

    /// Nanoseconds of CPU time from this reading until now.
    pub fn until_now(&self) -> u64 {
        let now = Self::take(self.pid);
        // A thread that ended took its time out of schedstat with it; the process's own count, coarse as
        // it is, still has it.
        if self.threads.keys().any(|tid| !now.threads.contains_key(tid)) {
            return (now.ticks - self.ticks.min(now.ticks)) * TICK_NANOS;
        }
        let before = |tid| self.threads.get(tid).copied().unwrap_or(0);
        now.threads.iter().map(|(tid, nanos)| nanos.saturating_sub(before(tid))).sum()
    }
}

/// First field of schedstat: nanoseconds on a CPU.
fn on_cpu(path: &std::path::Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
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
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 50 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(before.until_now() > 5_000_000, "{} ns", before.until_now());
    }
}
