//! Two back ends in turn on the same file, round after round, and what became of the ratio.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::{Job, Mode, Pattern, Sample, run};
use super::cpu::pin;
use super::ground::{Ground, Server, connect};
use super::limit::{self, Limit};
use super::process;
use super::report::{self, Beside};
use super::restart;
use super::rival::Setting;
use super::rows::{Backing, Bar, Rival, Row, Selection, Shape};
use super::save::{Saved, Writer};
use super::stats::{Round, Summary};
use crate::daemon::Daemon;

/// The second side.
#[derive(Clone, Debug)]
pub enum Other {
    /// What each row names: qemu-storage-daemon, or ours otherwise set up.
    OfRow,
    /// Another build of ours, set up as the first.
    Build(PathBuf),
    /// What ours did in an earlier run.
    Saved(Saved),
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our binary.
    pub ours: PathBuf,
    /// What to compare it with.
    pub other: Other,
    /// Directory on a disk, for the O_DIRECT rows.
    pub disk: PathBuf,
    /// Directory in memory.
    pub memory: PathBuf,
    /// Bytes of each file.
    pub file_bytes: u64,
    /// Rounds, each with both sides; more for rows in event mode.
    pub rounds: usize,
    /// Time that each side of a round counts.
    pub time: Duration,
    /// Time that idle disks are watched.
    pub idle: Duration,
    /// CPU of the back end and of the client.
    pub cpus: (usize, usize),
    /// Restarts of each kind.
    pub restarts: usize,
    /// First seed.
    pub seed: u64,
    /// Further arguments for our binary.
    pub ours_args: Vec<String>,
    /// Where to write our own side.
    pub save: Option<PathBuf>,
    /// Lines for the heading.
    pub notes: Vec<String>,
}

/// A side of a round starts, warms up for this share of the time that counts, and ends.
const WARM_UP: u32 = 10;
/// Attempts of each setting of qemu-storage-daemon, of which the best counts.
const ATTEMPTS: u64 = 2;
/// A trial takes this share of the time of a round.
const TRIAL: u32 = 4;
/// No sweep takes that long.
const SWEEP: Duration = Duration::from_secs(60);
/// Guess of what it takes to start and end both sides, for the announced duration.
const AROUND: Duration = Duration::from_millis(250);
/// And of how fast a sweep is.
const SWEEP_BYTES_PER_SECOND: f64 = 2e9;

/// How one side is run.
#[derive(Clone, Copy)]
struct Run {
    event_idx: bool,
    inflight: bool,
    seed: u64,
    time: Duration,
    sweep: bool,
}

struct Bench<'a> {
    options: &'a Options,
    ground: Ground,
    fio: bool,
    /// Found already, by rows that are the same for the rival or for fio.
    settings: Vec<(Row, Setting)>,
    limits: Vec<(Row, Option<Limit>)>,
}

impl Bench<'_> {
    /// Starts one side, measures it, ends it.
    fn side(&self, row: &Row, server: Server<'_>, run_as: Run) -> io::Result<Sample> {
        let Run { event_idx, inflight, seed, time, sweep } = run_as;
        let ours = matches!(server, Server::Ours { .. });
        let socket = self.ground.scratch(if ours { "ours.sock" } else { "theirs.sock" });
        let (mut daemon, mut stream) = self.ground.serve(server, row.backing, &socket)?;
        let job = Job {
            pattern: row.pattern,
            block: row.block,
            depth: row.depth,
            mode: row.mode,
            warm_up: time / WARM_UP,
            time,
            operations: 0,
            seed,
            pid: Some(daemon.pid()),
            event_idx,
            inflight,
        };
        let failed = |daemon: &Daemon, e| io::Error::other(format!("{e}\n{}", daemon.log()));
        if sweep && row.backing == Backing::Tmpfs {
            self.sweep(stream, &job).map_err(|e| failed(&daemon, e))?;
            stream = connect(&mut daemon, &socket)?;
        }
        let sample = run(stream, &job).map_err(|e| failed(&daemon, e))?;
        self.ground.end(daemon, &socket);
        Ok(sample)
    }

    /// Reads the whole disk once, since a file that is mapped is slower where it was never touched.
    fn sweep(&self, stream: UnixStream, job: &Job) -> io::Result<()> {
        let block = 128 << 10;
        let operations = self.options.file_bytes / block as u64;
        let all = Job { pattern: Pattern::Seqread, block, depth: 8, mode: Mode::Poll, operations, ..*job };
        run(stream, &Job { warm_up: Duration::ZERO, time: SWEEP, ..all }).map(drop)
    }

    fn ours(&self, shape: Shape) -> Server<'_> {
        Server::Ours { binary: &self.options.ours, shape, registered: false }
    }

    /// qemu-storage-daemon's best setting for a row, by short trials in turn.
    fn setting(&mut self, row: &Row) -> io::Result<Setting> {
        // It serves one plain file whatever the shape of our disk.
        let key = Row { shape: Shape::Lines(1), ..*row };
        if let Some((_, known)) = self.settings.iter().find(|(row, _)| *row == key) {
            return Ok(*known);
        }
        let mut tried: Vec<(Setting, f64)> = Vec::new();
        let mut last_error = io::Error::other("no setting was tried");
        let mut try_all = |tried: &mut Vec<(Setting, f64)>, settings: &[Setting]| {
            for attempt in 0..ATTEMPTS {
                for &setting in settings {
                    let seed = self.options.seed ^ (1 << 60) ^ attempt;
                    let time = self.options.time / TRIAL;
                    let run_as = Run { event_idx: true, inflight: true, seed, time, sweep: false };
                    match self.side(row, Server::Theirs(setting), run_as) {
                        Err(error) => last_error = error,
                        Ok(sample) => match tried.iter_mut().find(|(tried, _)| *tried == setting) {
                            Some((_, best)) => *best = best.max(sample.iops),
                            None => tried.push((setting, sample.iops)),
                        },
                    }
                }
            }
        };
        try_all(&mut tried, &Setting::candidates(row.backing));
        if let Some(best) = Setting::best(&tried) {
            try_all(&mut tried, &[best.with_long_poll()]);
        }
        let best = Setting::best(&tried).ok_or(last_error)?;
        self.settings.push((key, best));
        Ok(best)
    }

    /// fio's best on the file of a row.
    fn limit(&mut self, row: &Row) -> io::Result<Option<Limit>> {
        if !self.fio || row.backing == Backing::Zero {
            return Ok(None);
        }
        let key = Row { shape: Shape::Lines(1), mode: Mode::Poll, ..*row };
        if let Some((_, known)) = self.limits.iter().find(|(row, _)| *row == key) {
            return Ok(*known);
        }
        pin(self.options.cpus.0)?;
        let found = limit::best(row, &self.ground.file(row.backing), self.options.time / 2);
        pin(self.options.cpus.1)?;
        let found = found?;
        self.limits.push((key, found));
        Ok(found)
    }

    /// All rounds of a row; and, against qemu-storage-daemon, what it was measured with.
    fn row(&mut self, row: &Row) -> io::Result<(Vec<Round>, Option<Beside>)> {
        let mut beside = None;
        let mut setting = None;
        if let (Other::OfRow, Rival::QemuStorageDaemon) = (&self.options.other, row.rival) {
            let best = self.setting(row)?;
            setting = Some(best);
            beside = Some(Beside { setting: best.to_string(), limit: self.limit(row)? });
        }
        let (theirs, event_idx, inflight) = match (&self.options.other, row.rival, setting) {
            (Other::OfRow, Rival::Ours { shape, event_idx, inflight, registered }, _) => {
                let server = Server::Ours { binary: &self.options.ours, shape, registered };
                (Some(server), event_idx, inflight)
            }
            (Other::OfRow, _, setting) => (setting.map(Server::Theirs), true, true),
            (Other::Build(binary), ..) => {
                (Some(Server::Ours { binary, shape: row.shape, registered: false }), true, true)
            }
            (Other::Saved(_), ..) => (None, true, true),
        };
        let mut pairs = Vec::new();
        for round in 0..row.rounds(self.options.rounds) {
            // Both sides of a round read the same places; no two rounds do.
            let seed = self.options.seed + round as u64;
            let run_as = Run { event_idx: true, inflight: true, seed, time: self.options.time, sweep: true };
            let ours = self.side(row, self.ours(row.shape), run_as)?;
            let theirs = match (theirs, &self.options.other) {
                (Some(server), _) => self.side(row, server, Run { event_idx, inflight, ..run_as })?,
                (None, Other::Saved(saved)) => saved_round(saved, row, round)?,
                (None, _) => return Err(io::Error::other("there is no second side")),
            };
            pairs.push((ours, theirs));
        }
        Ok((pairs, beside))
    }
}

/// A round of a saved run; begins again where that had fewer rounds.
fn saved_round(saved: &Saved, row: &Row, round: usize) -> io::Result<Sample> {
    let rounds = saved.rows.get(&row.name()).filter(|rounds| !rounds.is_empty());
    let rounds = rounds.ok_or_else(|| io::Error::other("not in the saved run"))?;
    Ok(rounds[round % rounds.len()])
}

/// Measures what was selected and prints each row as soon as it is done.
pub fn compare(options: &Options, selection: &Selection, out: &mut dyn Write) -> io::Result<()> {
    let heading = heading(options, selection);
    for line in &heading {
        writeln!(out, "- {line}")?;
    }
    if let Some(warning) = report::busy() {
        writeln!(out, "\n{warning}")?;
    }
    let fio = limit::have_fio();
    if !fio && matches!(options.other, Other::OfRow) {
        writeln!(out, "\nfio is missing (ci/setup.sh installs it): no physical limits are shown.")?;
    }
    let mut saved = options.save.as_deref().map(|path| Writer::create(path, &heading)).transpose()?;
    let directories = (options.memory.as_path(), options.disk.as_path());
    let ground = Ground::make(directories, options.file_bytes, options.cpus, &options.ours_args, &selection.rows)?;
    let mut bench = Bench { options, ground, fio, settings: Vec::new(), limits: Vec::new() };
    let mut tally = Tally::default();
    let (plain, costs): (Vec<Row>, Vec<Row>) =
        selection.rows.iter().partition(|row| row.rival == Rival::QemuStorageDaemon);
    match &options.other {
        Other::OfRow => {
            let head = report::rows_head("ours", "q-s-d", true);
            table(&mut bench, &plain, "Against qemu-storage-daemon", &head, &mut saved, &mut tally, out)?;
            let head = report::rows_head("with", "without", false);
            table(&mut bench, &costs, "What features cost", &head, &mut saved, &mut tally, out)?;
        }
        Other::Build(_) | Other::Saved(_) => {
            let head = report::rows_head("this", "other", false);
            table(&mut bench, &selection.rows, "Against another build", &head, &mut saved, &mut tally, out)?;
        }
    }
    tally.print(out)?;
    if selection.process {
        let time = (options.time, options.idle);
        process::report(&bench.ground, &options.ours, time, out)?;
        if let Other::Build(binary) = &options.other {
            writeln!(out, "\nThe same for {}:", binary.display())?;
            process::report(&bench.ground, binary, time, out)?;
        }
    }
    if selection.restart {
        restart::report(&bench.ground, &options.ours, options.restarts, out)?;
    }
    tally.result()
}

/// How the rows fared.
#[derive(Default)]
struct Tally {
    reached: usize,
    missed: Vec<String>,
    failed: Vec<String>,
}

impl Tally {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.reached + self.missed.len() > 0 {
            writeln!(out, "\n{} rows reach their bar, {} do not.", self.reached, self.missed.len())?;
        }
        self.missed.iter().try_for_each(|name| writeln!(out, "- missed: {name}"))
    }

    fn result(self) -> io::Result<()> {
        match self.failed.len() {
            0 => Ok(()),
            n => Err(io::Error::other(format!("{n} rows failed: {}", self.failed.join("; ")))),
        }
    }
}

fn table(
    bench: &mut Bench<'_>,
    rows: &[Row],
    title: &str,
    head: &str,
    saved: &mut Option<Writer>,
    tally: &mut Tally,
    out: &mut dyn Write,
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n### {title}\n\n{head}")?;
    for row in rows {
        let name = row.name();
        // One bad row must not cost the hour of the others.
        match bench.row(row) {
            Err(error) => {
                let failure = report::failure(&name, &error);
                writeln!(out, "{}", report::line(&[name.clone(), failure]))?;
                tally.failed.push(name);
            }
            Ok((pairs, beside)) => {
                let summary = Summary::of(&pairs);
                let bar = if matches!(bench.options.other, Other::OfRow) { row.bar() } else { Bar::default() };
                match report::reaches(&summary, bar) {
                    Some(true) => tally.reached += 1,
                    Some(false) => tally.missed.push(name.clone()),
                    None => {}
                }
                writeln!(out, "{}", report::row(row, &summary, bar, beside.as_ref()))?;
                if let Some(writer) = saved {
                    writer.row(&name, pairs.iter().map(|(ours, _)| *ours))?;
                }
            }
        }
        out.flush()?;
    }
    Ok(())
}

fn heading(options: &Options, selection: &Selection) -> Vec<String> {
    let mut lines = report::machine();
    lines.push(format!("ours: {}, {}", report::version(&options.ours), options.ours.display()));
    match &options.other {
        Other::OfRow => lines.push(format!(
            "q-s-d: {}; one queue, one iothread, for each row its best of several settings by short trials; \
             zero: null-co with read-zeroes; it has no striping, so beside striped disks it serves one plain file",
            report::version(Path::new("qemu-storage-daemon"))
        )),
        Other::Build(binary) => {
            lines.push(format!("other: {}, {}", report::version(binary), binary.display()));
        }
        Other::Saved(saved) => {
            lines.push(format!("other: a saved run, not interleaved ({})", saved.heading.join("; ")));
        }
    }
    lines.push(format!(
        "back end on CPU {}, client on CPU {} (io_uring's kernel workers choose their own)",
        options.cpus.0, options.cpus.1
    ));
    lines.push(format!(
        "rounds of both sides in turn: {}, {} where the client waits for interrupts; {:?} each after a {WARM_UP}th of \
         that to warm up (tmpfs: before it one read of the whole disk); files of {} MiB; medians; ratios are \
         ours/theirs of a round; one queue; fio on the back \
         end's CPU",
        options.rounds,
        2 * options.rounds + 1,
        options.time,
        options.file_bytes >> 20
    ));
    lines.extend(options.notes.iter().cloned());
    let minutes = estimate(options, selection).as_secs_f64() / 60.0;
    lines.push(format!("{} rows, about {:.0} minutes", selection.rows.len(), minutes.ceil()));
    lines
}

/// How long it will take.
fn estimate(options: &Options, selection: &Selection) -> Duration {
    let time = options.time;
    let round = 2 * (time + time / WARM_UP) + AROUND;
    let sweep = Duration::from_secs_f64(options.file_bytes as f64 / SWEEP_BYTES_PER_SECOND);
    let mut total = Duration::from_secs(5);
    for row in &selection.rows {
        total += round * row.rounds(options.rounds) as u32;
        if row.backing == Backing::Tmpfs {
            total += 2 * sweep * row.rounds(options.rounds) as u32;
        }
        if row.rival == Rival::QemuStorageDaemon && matches!(options.other, Other::OfRow) {
            let settings = Setting::candidates(row.backing).len() as u32 + 1;
            // Once for all shapes, and fio once for both modes.
            if row.shape == Shape::Lines(1) {
                total += (time / TRIAL + AROUND / 2) * settings * ATTEMPTS as u32 + 2 * time;
            }
        }
    }
    if selection.restart {
        // Two signals, two sockets, two depths; a tenth of a second for each restart is a guess.
        total += Duration::from_millis(100) * 8 * options.restarts as u32;
    }
    if selection.process {
        total += options.idle + options.idle / 3 + Duration::from_secs(10);
    }
    total
}
