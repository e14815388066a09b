//! What is compared with what.

use super::client::{Mode, Pattern};

/// What lies under the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file in memory, filled.
    Tmpfs,
    /// A file on a disk, filled, opened with O_DIRECT.
    Direct,
    /// Nothing: the zero target, or QEMU's null-co.
    Zero,
}

impl Backing {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Backing::Tmpfs => "tmpfs",
            Backing::Direct => "direct",
            Backing::Zero => "zero",
        }
    }
}

/// The other side of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// qemu-storage-daemon on the same file.
    QemuStorageDaemon,
    /// Our own back end with a table of one line, while the first side has one of a thousand.
    OneLine,
}

/// One line of the result.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What lies under the disk.
    pub backing: Backing,
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

impl Row {
    /// Name for the table and for choosing.
    pub fn name(&self) -> String {
        let mode = match self.mode {
            Mode::Poll => "poll",
            Mode::Event => "event",
        };
        let lines = match self.rival {
            Rival::QemuStorageDaemon => "",
            Rival::OneLine => " 1000-lines/1-line",
        };
        format!("{} {} {}k qd{} {mode}{lines}", self.backing.name(), self.pattern.name(), self.block >> 10, self.depth,)
    }
}

/// All rows, in the order in which they are printed.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    let base = Row {
        backing: Backing::Tmpfs,
        pattern: Pattern::Randread,
        block: 4096,
        depth: 32,
        mode: Mode::Poll,
        rival: Rival::QemuStorageDaemon,
    };
    for backing in [Backing::Tmpfs, Backing::Direct, Backing::Zero] {
        for pattern in [Pattern::Randread, Pattern::Randwrite] {
            for depth in [1, 32] {
                rows.push(Row { backing, pattern, depth, ..base });
            }
        }
    }
    for backing in [Backing::Tmpfs, Backing::Direct] {
        rows.push(Row { backing, depth: 128, ..base });
        rows.push(Row { backing, pattern: Pattern::Seqread, block: 128 << 10, depth: 8, ..base });
    }
    for backing in [Backing::Tmpfs, Backing::Direct, Backing::Zero] {
        rows.push(Row { backing, depth: 1, mode: Mode::Event, ..base });
    }
    for (backing, pattern) in
        [(Backing::Tmpfs, Pattern::Randread), (Backing::Tmpfs, Pattern::Randwrite), (Backing::Zero, Pattern::Randread)]
    {
        rows.push(Row { backing, pattern, rival: Rival::OneLine, ..base });
    }
    rows
}
