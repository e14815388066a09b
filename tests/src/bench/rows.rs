//! What is measured, against what, and how good it has to be.

use super::client::{Mode, Pattern};

/// What lies under the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// Nothing: the zero target, or QEMU's null-co.
    Zero,
    /// A file in memory, filled.
    Tmpfs,
    /// A file on a disk, filled, opened with O_DIRECT.
    Direct,
}

impl Backing {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Backing::Zero => "zero",
            Backing::Tmpfs => "tmpfs",
            Backing::Direct => "direct",
        }
    }
}

/// How our table puts the disk together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// So many lines of one length. One line is the whole file as it is.
    Lines(u64),
    /// Striped over two files.
    Striped,
    /// One device on another, so many times.
    Stacked(u64),
    /// A delay of nothing.
    Delay,
    /// A flakey device that is up.
    Flakey,
    /// A persistent snapshot that nothing was written to.
    Untouched,
    /// One whose chunks, of 4 KiB, are all copied, in another order.
    Copied,
}

impl Shape {
    fn name(self) -> String {
        match self {
            Shape::Lines(1) => String::new(),
            Shape::Lines(n) => format!(" {n} lines"),
            Shape::Striped => " striped".into(),
            Shape::Stacked(n) => format!(" stacked {n} deep"),
            Shape::Delay => " delay 0".into(),
            Shape::Flakey => " flakey up".into(),
            Shape::Untouched => " snapshot, untouched".into(),
            Shape::Copied => " snapshot, all copied".into(),
        }
    }
}

/// The other side of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// qemu-storage-daemon on one file of the same kind and size.
    QemuStorageDaemon,
    /// Our own back end with another table, or without a feature: what that costs.
    Ours {
        /// Its table.
        shape: Shape,
        /// Whether its client takes EVENT_IDX.
        event_idx: bool,
        /// Whether its client has it track requests in flight; if not, it completes them in order.
        inflight: bool,
        /// Whether it registers the client's memory.
        registered: bool,
    },
}

/// Bounds for the ratio ours/theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bar {
    /// Least ratio of requests a second.
    pub iops: Option<f64>,
    /// Greatest ratio of CPU time for each request.
    pub cpu: Option<f64>,
}

/// One line of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// What lies under the disk.
    pub backing: Backing,
    /// How our table puts it together.
    pub shape: Shape,
    /// What is asked for.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block: usize,
    /// Requests in flight.
    pub depth: usize,
    /// How the client waits.
    pub mode: Mode,
    /// Against whom.
    pub rival: Rival,
}

/// The row that others are variations of.
const BASE: Row = Row {
    backing: Backing::Zero,
    shape: Shape::Lines(1),
    pattern: Pattern::Randread,
    block: 4096,
    depth: 32,
    mode: Mode::Poll,
    rival: Rival::QemuStorageDaemon,
};
const LARGE: usize = 128 << 10;

impl Row {
    /// Name for the table, for choosing, and for saved runs.
    pub fn name(&self) -> String {
        let mode = match self.mode {
            Mode::Poll => "poll",
            Mode::Event => "event",
        };
        let against = match self.rival {
            Rival::QemuStorageDaemon => String::new(),
            Rival::Ours { event_idx: false, .. } => " / without EVENT_IDX".into(),
            Rival::Ours { inflight: false, .. } => " / in order, without tracking".into(),
            Rival::Ours { registered: true, .. } => " / with registered memory".into(),
            Rival::Ours { .. } => " / 1 line".into(),
        };
        format!(
            "{}{} {} {}k qd{} {mode}{against}",
            self.backing.name(),
            self.shape.name(),
            self.pattern.name(),
            self.block >> 10,
            self.depth,
        )
    }

    /// Rounds, when rows with a polling client take `rounds`: interrupts make more noise.
    pub fn rounds(&self, rounds: usize) -> usize {
        match self.mode {
            Mode::Poll => rounds,
            Mode::Event => 2 * rounds + 1,
        }
    }

    /// What the row has to reach.
    pub fn bar(&self) -> Bar {
        let bar = |iops, cpu: f64| Bar { iops: Some(iops), cpu: (cpu > 0.0).then_some(cpu) };
        match (self.rival, self.shape) {
            (Rival::Ours { event_idx: false, .. }, _) => bar(0.98, 0.0),
            (Rival::Ours { inflight: false, .. }, _) => bar(0.95, 0.0),
            // What the other side gains is no cost of ours.
            (Rival::Ours { registered: true, .. }, _) => Bar::default(),
            (Rival::Ours { .. }, Shape::Stacked(_)) => bar(0.98, 0.0),
            (Rival::Ours { .. }, Shape::Delay | Shape::Flakey) => bar(0.9, 0.0),
            (Rival::Ours { .. }, Shape::Untouched | Shape::Copied) => bar(0.8, 0.0),
            (Rival::Ours { .. }, _) => bar(0.97, 0.0),
            (Rival::QemuStorageDaemon, Shape::Lines(1)) => self.bar_of_plain_disk(bar),
            (Rival::QemuStorageDaemon, _) => Bar::default(),
        }
    }

    fn bar_of_plain_disk(&self, bar: impl Fn(f64, f64) -> Bar) -> Bar {
        use Backing::{Direct, Tmpfs, Zero};
        let file = self.backing != Zero;
        match (self.pattern, self.depth, self.mode) {
            (Pattern::Seqread, ..) if file => bar(1.0, 0.9),
            (Pattern::Seqread | Pattern::Seqwrite, ..) => Bar::default(),
            (pattern, 32, Mode::Poll) => match (self.backing, pattern.writes()) {
                (Zero, false) => bar(1.7, 0.6),
                (Zero, true) => bar(2.5, 0.4),
                (Tmpfs, false) => bar(3.0, 0.35),
                (Tmpfs, true) => bar(4.0, 0.35),
                (Direct, _) => bar(0.98, 0.6),
            },
            (_, 1, Mode::Poll) => match self.backing {
                Zero => bar(4.0, 0.0),
                Tmpfs => bar(6.0, 0.0),
                Direct => bar(1.4, 0.0),
            },
            (_, 1, Mode::Event) => match self.backing {
                Zero => bar(2.5, 1.0),
                Tmpfs => bar(3.0, 1.0),
                Direct => bar(1.4, 1.0),
            },
            _ => Bar::default(),
        }
    }
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// The rows that have to reach a bar, and the process's own figures
    Bars,
    /// Every disk, pattern, depth and way to wait
    Matrix,
    /// What EVENT_IDX, in-flight tracking, long tables and stacked devices cost, and what registered memory saves
    Costs,
    /// What targets cost that delay, fail or remember
    Targets,
    /// The process's own figures: CPU time when idle, start-up, memory, many disks
    Process,
    /// How long the guest waits while the back end is replaced
    Restart,
    /// All of these
    All,
}

impl Set {
    fn rows(self) -> Vec<Row> {
        match self {
            Set::Bars => bars(),
            Set::Matrix => matrix(),
            Set::Costs => costs(),
            Set::Targets => targets(),
            Set::Process | Set::Restart => Vec::new(),
            Set::All => [matrix(), costs(), targets()].concat(),
        }
    }

    fn has_restart(self) -> bool {
        matches!(self, Set::Restart | Set::All)
    }

    fn has_process(self) -> bool {
        matches!(self, Set::Bars | Set::Process | Set::All)
    }
}

/// The rows of the bars; where a bar is for reads and writes, the reads only at depth 1.
fn bars() -> Vec<Row> {
    let backings = [Backing::Zero, Backing::Tmpfs, Backing::Direct];
    let mut rows = Vec::new();
    for backing in backings {
        for pattern in [Pattern::Randread, Pattern::Randwrite] {
            rows.push(Row { backing, pattern, ..BASE });
        }
        rows.push(Row { backing, depth: 1, ..BASE });
    }
    for backing in backings {
        rows.push(Row { backing, depth: 1, mode: Mode::Event, ..BASE });
    }
    for backing in [Backing::Tmpfs, Backing::Direct] {
        for depth in [1, 32] {
            rows.push(Row { backing, depth, pattern: Pattern::Seqread, block: LARGE, ..BASE });
        }
    }
    rows
}

fn matrix() -> Vec<Row> {
    let disks = [
        (Backing::Zero, Shape::Lines(1)),
        (Backing::Tmpfs, Shape::Lines(1)),
        (Backing::Direct, Shape::Lines(1)),
        (Backing::Tmpfs, Shape::Striped),
        (Backing::Direct, Shape::Striped),
        (Backing::Tmpfs, Shape::Lines(1000)),
    ];
    let patterns = [
        (Pattern::Randread, BASE.block),
        (Pattern::Randwrite, BASE.block),
        (Pattern::Seqread, LARGE),
        (Pattern::Seqwrite, LARGE),
    ];
    let mut rows = Vec::new();
    for (backing, shape) in disks {
        for (pattern, block) in patterns {
            for mode in [Mode::Poll, Mode::Event] {
                for depth in [1, 32, 128] {
                    rows.push(Row { backing, shape, pattern, block, depth, mode, ..BASE });
                }
            }
        }
    }
    rows
}

fn costs() -> Vec<Row> {
    let ours =
        |event_idx, inflight, registered| Rival::Ours { shape: Shape::Lines(1), event_idx, inflight, registered };
    let one_line = ours(true, true, false);
    let without = ours(false, true, false);
    let in_order = ours(true, false, false);
    let registered = ours(true, true, true);
    let mut rows = vec![
        Row { rival: without, ..BASE },
        Row { rival: without, depth: 1, ..BASE },
        Row { rival: without, mode: Mode::Event, ..BASE },
    ];
    for backing in [Backing::Zero, Backing::Tmpfs, Backing::Direct] {
        for depth in [32, 1] {
            rows.push(Row { backing, depth, rival: in_order, ..BASE });
        }
    }
    rows.push(Row { backing: Backing::Direct, pattern: Pattern::Randwrite, rival: in_order, ..BASE });
    for (pattern, block) in [(Pattern::Randread, BASE.block), (Pattern::Seqread, LARGE), (Pattern::Seqwrite, LARGE)] {
        for depth in [1, 32] {
            rows.push(Row { backing: Backing::Direct, pattern, block, depth, rival: registered, ..BASE });
        }
    }
    for backing in [Backing::Zero, Backing::Tmpfs] {
        for shape in [Shape::Lines(100), Shape::Lines(10_000), Shape::Stacked(10)] {
            rows.push(Row { backing, shape, rival: one_line, ..BASE });
        }
    }
    rows
}

fn targets() -> Vec<Row> {
    let rival = Rival::Ours { shape: Shape::Lines(1), event_idx: true, inflight: true, registered: false };
    let mut rows = Vec::new();
    for shape in [Shape::Delay, Shape::Flakey, Shape::Untouched, Shape::Copied] {
        for backing in [Backing::Tmpfs, Backing::Direct] {
            rows.push(Row { backing, shape, rival, ..BASE });
            if shape != Shape::Untouched {
                rows.push(Row { backing, shape, rival, pattern: Pattern::Randwrite, ..BASE });
            }
        }
    }
    rows
}

/// What one run does.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The rows in the order in which they are measured.
    pub rows: Vec<Row>,
    /// Whether the process's own figures follow.
    pub process: bool,
    /// Whether restarts follow.
    pub restart: bool,
}

/// The rows of these sets, each once, whose name has one of `parts` in it. No set means the bars; or, if there are
/// parts, every row there is.
pub fn select(sets: &[Set], parts: &[String]) -> Result<Selection, String> {
    let by_default = if parts.is_empty() { [Set::Bars].as_slice() } else { &[Set::Matrix, Set::Costs, Set::Targets] };
    let sets = if sets.is_empty() { by_default } else { sets };
    let mut rows: Vec<Row> = Vec::new();
    for row in sets.iter().flat_map(|set| set.rows()) {
        let wanted = parts.is_empty() || parts.iter().any(|part| row.name().contains(part.as_str()));
        if wanted && !rows.contains(&row) {
            rows.push(row);
        }
    }
    let process = sets.iter().any(|set| set.has_process()) && (parts.is_empty() || sets.contains(&Set::Process));
    let restart = sets.iter().any(|set| set.has_restart()) && (parts.is_empty() || sets.contains(&Set::Restart));
    if rows.is_empty() && !process && !restart {
        let names: Vec<String> = sets.iter().flat_map(|set| set.rows()).map(|row| row.name()).collect();
        return Err(format!("no row has {} in its name; there are\n{}", parts.join(" or "), names.join("\n")));
    }
    Ok(Selection { rows, process, restart })
}

impl Selection {
    /// Keeps the rows whose names are known elsewhere; the number of those left out.
    pub fn keep(&mut self, known: impl Fn(&str) -> bool) -> usize {
        let before = self.rows.len();
        self.rows.retain(|row| known(&row.name()));
        before - self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn names(sets: &[Set], parts: &[&str]) -> Vec<String> {
        let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
        select(sets, &parts).expect("rows").rows.iter().map(Row::name).collect()
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let all = names(&[Set::All], &[]);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert_eq!(names(&[Set::Matrix], &[]).len(), 6 * 4 * 3 * 2);
    }

    #[test]
    fn the_default_is_every_row_with_a_bar() {
        let chosen = select(&[], &[]).expect("rows");
        assert!(chosen.process);
        assert!(chosen.rows.iter().all(|row| row.bar().iops.is_some()), "{:?}", chosen.rows);
        let matrix: HashSet<String> = names(&[Set::Matrix], &[]).into_iter().collect();
        assert!(chosen.rows.iter().all(|row| matrix.contains(&row.name())), "the matrix has the bars too");
    }

    #[test]
    fn parts_choose_among_all_rows_once() {
        assert_eq!(names(&[], &["zero randread 4k qd32 poll"]).len(), 3, "the row, it without EVENT_IDX, in order");
        assert_eq!(names(&[Set::Bars, Set::All], &["zero randread 4k qd1 event"]), ["zero randread 4k qd1 event"]);
        assert!(!select(&[], &["striped".into()]).expect("rows").process);
        assert!(select(&[Set::Process], &["striped".into()]).expect("the process alone").rows.is_empty());
        let error = select(&[Set::Bars], &["floppy".into()]).expect_err("no such row");
        assert!(error.contains("floppy") && error.contains("\ntmpfs randwrite 4k qd32 poll\n"), "{error}");
    }

    #[test]
    fn rows_that_are_unknown_elsewhere_are_left_out() {
        let mut chosen = select(&[Set::Bars], &[]).expect("rows");
        let all = chosen.rows.len();
        let left_out = chosen.keep(|name| name.starts_with("zero"));
        assert!(left_out > 0 && chosen.rows.len() + left_out == all);
        assert!(chosen.rows.iter().all(|row| row.backing == Backing::Zero));
    }

    #[test]
    fn bars_are_those_of_the_row() {
        let at = |name: &str| {
            let rows = select(&[Set::All], &[name.to_owned()]).expect("rows").rows;
            rows.into_iter().find(|row| row.name() == name).expect("that row").bar()
        };
        assert_eq!(at("tmpfs randwrite 4k qd32 poll"), Bar { iops: Some(4.0), cpu: Some(0.35) });
        assert_eq!(at("direct randread 4k qd1 event"), Bar { iops: Some(1.4), cpu: Some(1.0) });
        assert_eq!(at("zero randread 4k qd1 poll"), Bar { iops: Some(4.0), cpu: None });
        assert_eq!(at("direct read 128k qd128 event"), Bar { iops: Some(1.0), cpu: Some(0.9) });
        assert_eq!(at("zero 10000 lines randread 4k qd32 poll / 1 line"), Bar { iops: Some(0.97), cpu: None });
        assert_eq!(at("tmpfs striped randread 4k qd32 poll"), Bar::default());
    }

    #[test]
    fn interrupts_get_more_rounds() {
        assert_eq!(BASE.rounds(7), 7);
        assert_eq!(Row { mode: Mode::Event, ..BASE }.rounds(7), 15);
    }
}
