//! Which worker serves a queue, and on which CPU it runs.

use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Worker;
use crate::device::Patience;
use crate::uring::Uring;

/// CPUs that workers are placed on, in this order; from the command line (`0,2,4-7`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Cpus, String> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| match text.parse::<usize>() {
                Ok(n) if n < CpuSet::count() => Ok(n),
                _ => Err(format!("\"{part}\" is no CPU or range of CPUs; write for example 0,2,4-7")),
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {part} runs backwards"));
            }
            cpus.extend(first..=last);
        }
        Ok(Cpus(cpus))
    }
}

impl Cpus {
    /// Puts the calling thread on the CPU of worker `number`.
    ///
    /// # Errors
    /// The CPU is not there, or not allowed.
    pub fn place(&self, number: usize) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let cpu = self.0[number % self.0.len()];
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)
            .map_err(|error| io::Error::other(format!("cannot run a worker on CPU {cpu}: {error}")))
    }

    /// Whether every CPU of the list can be used.
    ///
    /// # Errors
    /// Names the first that cannot.
    pub fn check(&self) -> io::Result<()> {
        let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
        match self.0.iter().find(|cpu| !allowed.is_set(**cpu).unwrap_or(false)) {
            Some(cpu) => Err(io::Error::other(format!("--cpu-affinity: this process may not use CPU {cpu}"))),
            None => Ok(()),
        }
    }
}

/// How workers work.
#[derive(Clone, Debug, Default)]
pub struct WorkerSettings {
    /// Longest time that one looks for work before it sleeps.
    pub poll: Duration,
    /// Where they run.
    pub cpus: Cpus,
    /// Whether they register the memory of their guests with the kernel, which pins it.
    pub register_memory: bool,
}

/// How long a ring may wait for room among what may be locked.
const FOR_ROOM: Duration = Duration::from_secs(1);

/// Sets up the calling thread's ring, as a worker needs it; `registers`: see [`WorkerSettings::register_memory`].
///
/// # Errors
/// As [`Uring::new`]. Where memory is registered, the kernel may refuse a ring for what one that was closed had locked, which
/// it counts for some time yet: then it is tried again for a second.
pub fn ring(registers: bool) -> io::Result<Uring> {
    static ROOM: Room = Room { pause: std::thread::sleep, in_vain: Mutex::new(None) };
    ROOM.wait(registers, || Uring::new(registers))
}

/// So long nobody waits who comes after one that waited in vain: a front end has many queues, and waits for each.
const FOR_ALL: Duration = Duration::from_secs(10);

/// The waiting of a process for room.
struct Room {
    pause: fn(Duration),
    in_vain: Mutex<Option<Instant>>,
}

impl Room {
    fn wait<T>(&self, registers: bool, make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let lacks = |error: &io::Error| error.kind() == io::ErrorKind::OutOfMemory;
        let in_vain = || self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = registers && in_vain().is_none_or(|since| since.elapsed() >= FOR_ALL);
        let made = Patience::new(FOR_ROOM, self.pause).retry(make, |error| waits && lacks(error));
        if waits {
            *in_vain() = made.as_ref().is_err_and(lacks).then(Instant::now);
        }
        made
    }
}

/// The workers of a process.
#[derive(Debug)]
pub struct Pool {
    settings: WorkerSettings,
    // Shared workers, started when a queue first needs them; none: every queue has its own.
    shared: Box<[Mutex<Option<Arc<Worker>>>]>,
    next: AtomicUsize,
}

impl Pool {
    /// A pool of `workers` shared workers, or with 0 of one for each queue.
    pub fn new(workers: usize, settings: WorkerSettings) -> Pool {
        Pool { settings, shared: (0..workers).map(|_| Mutex::default()).collect(), next: AtomicUsize::new(0) }
    }

    /// The worker for another queue; queues are dealt out in turn.
    ///
    /// # Errors
    /// No thread, no io_uring, no such CPU.
    pub fn worker(&self, name: &str) -> io::Result<Arc<Worker>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.shared.is_empty() {
            return Worker::spawn(name, &self.settings, number).map(Arc::new);
        }
        let number = number % self.shared.len();
        let mut place = self.shared[number].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = &*place {
            return Ok(worker.clone());
        }
        let worker = Worker::spawn(&format!("worker-{number}"), &self.settings, number)?;
        Ok(place.insert(Arc::new(worker)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!("0,2,4-6".parse(), Ok(Cpus(vec![0, 2, 4, 5, 6])));
        for wrong in ["", "a", "1-", "-1", "3-1", "1,,2", "99999"] {
            assert!(wrong.parse::<Cpus>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn shared_workers_are_dealt_out_and_own_ones_are_not() {
        let pool = Pool::new(2, WorkerSettings::default());
        let workers: Vec<_> = (0..4).map(|_| pool.worker("queue").unwrap()).collect();
        assert!(Arc::ptr_eq(&workers[0], &workers[2]) && Arc::ptr_eq(&workers[1], &workers[3]));
        assert!(!Arc::ptr_eq(&workers[0], &workers[1]));
        let pool = Pool::new(0, WorkerSettings::default());
        assert!(!Arc::ptr_eq(&pool.worker("a").unwrap(), &pool.worker("b").unwrap()));
    }

    #[test]
    fn a_ring_that_registers_waits_for_room() {
        let room = Room { pause: |_| {}, in_vain: Mutex::new(None) };
        let tries = |registers: bool, failures: usize, errno: i32| {
            let mut tries = 0;
            let made = room.wait(registers, || {
                tries += 1;
                if tries > failures { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
            });
            (made.is_ok(), tries)
        };
        assert_eq!(tries(true, 3, libc::ENOMEM), (true, 4));
        assert_eq!(tries(false, 3, libc::ENOMEM), (false, 1));
        assert_eq!(tries(true, 0, 0), (true, 1));
        assert_eq!(tries(true, 3, libc::EPERM), (false, 1));
        let (made, most) = tries(true, usize::MAX, libc::ENOMEM);
        assert!(!made && (4..100).contains(&most), "{most}");
        // Nobody after it waits, whether or not others find room, for some time.
        assert_eq!(tries(true, 3, libc::ENOMEM), (false, 1));
        assert_eq!(tries(false, 0, 0), (true, 1));
        assert_eq!(tries(true, 3, libc::ENOMEM), (false, 1));
        let long_ago = room.in_vain.lock().unwrap().and_then(|since| since.checked_sub(FOR_ALL));
        assert!(long_ago.is_some());
        *room.in_vain.lock().unwrap() = long_ago;
        assert_eq!(tries(true, 3, libc::ENOMEM), (true, 4));
    }

    #[test]
    fn a_worker_runs_where_it_is_put() {
        let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
        let cpus: Cpus = cpu.to_string().parse().unwrap();
        cpus.check().unwrap();
        let seen = std::thread::spawn(move || {
            cpus.place(7).unwrap();
            nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap()
        });
        let seen = seen.join().unwrap();
        assert!((0..CpuSet::count()).all(|n| seen.is_set(n).unwrap() == (n == cpu)));
    }
}
