//! What the process itself takes: CPU time when its disks are idle, time to start, memory, and many disks.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::client::{Idle, Job, Mode, Pattern, run, run_and_stay};
use super::cpu::{Memory, Reading, Used, descriptors};
use super::ground::{Ground, Server, connect};
use super::report::{at_most, failure, head, line};
use super::rows::{Backing, Shape};
use super::stats::median;
use crate::daemon::{Daemon, flag};
use crate::vmm::{Setup, Vmm};

/// Time for the worker to give up looking for work.
const SETTLE: Duration = Duration::from_millis(100);
const STARTS: usize = 15;
/// Bounds for start-up: milliseconds to a listening socket, MiB of memory beside the table.
const START_BAR: f64 = 20.0;
const MEMORY_BAR: f64 = 12.0;
const DISKS: u64 = 64;
const QUEUES: u16 = 4;

/// Measures and prints all of it. `time` is that of a load, and that of watching idle disks.
pub fn report(ground: &Ground, binary: &Path, time: (Duration, Duration), out: &mut dyn Write) -> io::Result<()> {
    let (load, idle) = time;
    writeln!(out, "\n### The process")?;
    idle_disks(ground, binary, load, idle, out)?;
    start_up(ground, binary, out)?;
    many_disks(ground, binary, idle / 6, out)
}

/// A back end whose load is over.
struct Rested {
    backing: Backing,
    daemon: Daemon,
    socket: PathBuf,
    _front_end: Idle,
    settling: Used,
    since: Reading,
}

fn idle_disks(ground: &Ground, binary: &Path, load: Duration, idle: Duration, out: &mut dyn Write) -> io::Result<()> {
    let mut rested = Vec::new();
    for backing in [Backing::Zero, Backing::Tmpfs, Backing::Direct] {
        ground.need_file(backing)?;
        rested.push(load_and_rest(ground, binary, backing, load)?);
    }
    sleep(idle);
    writeln!(
        out,
        "\nIdle disk with its front end connected, after reads of 4 KiB ({load:?} at depth 32 polled, then {load:?} at \
         depth 1 with interrupts):\n\n{}",
        head(&[
            "disk",
            &format!("CPU ns in the first {SETTLE:?}"),
            &format!("CPU ns in the next {idle:?}"),
            "times run",
            "bar"
        ])
    )?;
    for Rested { backing, daemon, socket, settling, since, .. } in rested {
        let used = since.used_until_now();
        let cells = [
            backing.name().to_owned(),
            settling.nanos.to_string(),
            used.nanos.to_string(),
            used.slices.to_string(),
            at_most(used.nanos as f64, Some(0.0)),
        ];
        writeln!(out, "{}", line(&cells))?;
        ground.end(daemon, &socket);
    }
    out.flush()
}

fn load_and_rest(ground: &Ground, binary: &Path, backing: Backing, load: Duration) -> io::Result<Rested> {
    let socket = ground.scratch(&format!("{}.sock", backing.name()));
    let server = Server::Ours { binary, shape: Shape::Lines(1), registered: false };
    let (mut daemon, stream) = ground.serve(server, backing, &socket)?;
    let job = Job {
        pattern: Pattern::Randread,
        block: 4096,
        depth: 32,
        mode: Mode::Poll,
        warm_up: Duration::ZERO,
        time: load,
        operations: 0,
        seed: 1,
        pid: None,
        event_idx: true,
        inflight: true,
    };
    run(stream, &job)?;
    let stream = connect(&mut daemon, &socket)?;
    let (_, front_end) = run_and_stay(stream, &Job { depth: 1, mode: Mode::Event, ..job })?;
    let end = Reading::take(daemon.pid());
    sleep(SETTLE);
    let settling = end.used_until_now();
    let since = Reading::take(daemon.pid());
    Ok(Rested { backing, daemon, socket, _front_end: front_end, settling, since })
}

fn start_up(ground: &Ground, binary: &Path, out: &mut dyn Write) -> io::Result<()> {
    ground.need_file(Backing::Tmpfs)?;
    writeln!(
        out,
        "\nFrom exec to a listening socket ({STARTS} starts; the table's file is in the page cache), and memory then:\n\n{}",
        head(&[
            "linear lines",
            "table, KiB",
            "ms, median",
            "min..max",
            "bar",
            "resident, MiB",
            "own (RssAnon), MiB",
            "resident without the table, MiB",
            "bar"
        ])
    )?;
    for lines in [1, 10_000] {
        let text = ground.table(Backing::Tmpfs, Shape::Lines(lines));
        let table = ground.scratch("start.table");
        fs::write(&table, &text)?;
        let mut times = Vec::with_capacity(STARTS);
        let mut memory = Memory::default();
        for _ in 0..STARTS {
            let (time, then) = start_once(ground, binary, &table)?;
            times.push(time.as_secs_f64() * 1e3);
            memory = then;
        }
        let took = median(times.iter().copied());
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        let rest = mebibytes(memory.resident.saturating_sub(text.len() as u64));
        let cells = [
            lines.to_string(),
            (text.len() >> 10).to_string(),
            format!("{took:.1}"),
            format!("{least:.1}..{most:.1}"),
            at_most(took, Some(START_BAR)),
            format!("{:.1}", mebibytes(memory.resident)),
            format!("{:.1}", mebibytes(memory.anonymous)),
            format!("{rest:.1}"),
            at_most(rest, Some(MEMORY_BAR)),
        ];
        writeln!(out, "{}", line(&cells))?;
    }
    out.flush()
}

fn start_once(ground: &Ground, binary: &Path, table: &Path) -> io::Result<(Duration, Memory)> {
    let socket = ground.scratch("start.sock");
    let mut command = ground.ours(binary);
    command.args([flag("--socket-path", &socket), flag("--table", table)]);
    let begin = Instant::now();
    let mut daemon = ground.spawn(command)?;
    let stream = connect(&mut daemon, &socket)?;
    let time = begin.elapsed();
    let memory = Memory::of(daemon.pid());
    drop(stream);
    ground.end(daemon, &socket);
    Ok((time, memory))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn many_disks(ground: &Ground, binary: &Path, watch: Duration, out: &mut dyn Write) -> io::Result<()> {
    // All the front ends are in this process: eleven descriptors each and more.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    writeln!(
        out,
        "\n{DISKS} disks of {QUEUES} queues, each with its front end connected and each queue used once, then idle:\n\n{}",
        head(&[
            "workers",
            "threads",
            "resident, MiB",
            "own (RssAnon), MiB",
            "descriptors",
            &format!("CPU ns in {watch:?}"),
            "times run",
        ])
    )?;
    for workers in [None, Some(2)] {
        let cells = watch_many(ground, binary, workers, watch);
        let cells = cells.unwrap_or_else(|error| vec![failure("many disks", &error)]);
        let name = workers.map_or("one for each queue".to_owned(), |n| format!("--workers {n}"));
        writeln!(out, "{}", line(&[vec![name], cells].concat()))?;
        out.flush()?;
    }
    let _ = setrlimit(Resource::Nofile, limit);
    Ok(())
}

/// A table file of many devices, each a part of its own of one file.
fn table_of_devices(sectors: u64, file: &Path) -> String {
    let each = sectors / DISKS / 8 * 8;
    let device = |i: u64| format!("disk{i},,,rw,0 {each} linear {} {}", file.display(), i * each);
    let devices: Vec<String> = (0..DISKS).map(device).collect();
    devices.join(";") + "\n"
}

fn watch_many(ground: &Ground, binary: &Path, workers: Option<u16>, watch: Duration) -> io::Result<Vec<String>> {
    ground.need_file(Backing::Tmpfs)?;
    let table = ground.scratch("many.table");
    fs::write(&table, table_of_devices(ground.sectors(), &ground.file(Backing::Tmpfs)))?;
    let dir = ground.scratch("many");
    let mut command = ground.ours(binary);
    command.args([flag("--socket-dir", &dir), flag("--table", &table)]).args(workers.map(|n| format!("--workers={n}")));
    let mut daemon = ground.spawn(command)?;
    let setup = Setup { queues: QUEUES, slots: 1, slot_bytes: 32 << 10, ..Setup::default() };
    let mut front_ends = Vec::new();
    for number in 0..DISKS {
        let stream = connect(&mut daemon, &dir.join(format!("disk{number}.sock")))?;
        let vmm = Vmm::over(stream, &setup);
        let mut vmm = vmm.map_err(|e| io::Error::new(e.kind(), format!("disk {number}: {e}: {}", daemon.log())))?;
        for queue in 0..usize::from(QUEUES) {
            let read = vmm.read(queue, 0, 4096);
            read.map_err(|e| io::Error::other(format!("disk {number}, queue {queue}: status {:#x}", e.0)))?;
        }
        front_ends.push(vmm);
    }
    sleep(SETTLE);
    let pid = daemon.pid();
    let since = Reading::take(pid);
    let memory = Memory::of(pid);
    let open = descriptors(pid);
    sleep(watch);
    let used = since.used_until_now();
    drop(front_ends);
    ground.end(daemon, &table);
    Ok(vec![
        since.threads().to_string(),
        format!("{:.1}", mebibytes(memory.resident)),
        format!("{:.1}", mebibytes(memory.anonymous)),
        open.to_string(),
        used.nanos.to_string(),
        used.slices.to_string(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_devices_share_no_sector() {
        let table = table_of_devices(64 * 16 + 5, Path::new("/f"));
        assert_eq!(table.matches(';').count(), 63);
        assert!(table.starts_with("disk0,,,rw,0 16 linear /f 0;disk1,,,rw,0 16 linear /f 16;"), "{table}");
        assert!(table.ends_with(";disk63,,,rw,0 16 linear /f 1008\n"), "{table}");
    }
}
