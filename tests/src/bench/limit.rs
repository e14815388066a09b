//! The physical limit: what fio reaches on the same file from the same CPU at the same depth, without any ring,
//! guest memory or second process.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::rows::{Backing, Row};

/// fio's best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// `ioengine=`.
    pub engine: &'static str,
    /// Requests a second.
    pub iops: f64,
}

/// Whether fio can be started.
pub fn have_fio() -> bool {
    let fio = Command::new("fio").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    fio.is_ok_and(|status| status.success())
}

fn engines(backing: Backing) -> &'static [&'static str] {
    match backing {
        Backing::Zero => &[],
        Backing::Tmpfs => &["psync", "io_uring", "mmap"],
        Backing::Direct => &["psync", "io_uring"],
    }
}

/// Asks fio's engines in turn; None where there is no file to ask for. fio runs where the caller is pinned.
pub fn best(row: &Row, file: &Path, time: Duration) -> io::Result<Option<Limit>> {
    let mut best: Option<Limit> = None;
    for &engine in engines(row.backing) {
        let iops = run(engine, row, file, time)?;
        if best.is_none_or(|limit| iops > limit.iops) {
            best = Some(Limit { engine, iops });
        }
    }
    Ok(best)
}

fn run(engine: &str, row: &Row, file: &Path, time: Duration) -> io::Result<f64> {
    let direct = u8::from(row.backing == Backing::Direct);
    let output = Command::new("fio")
        .args(["--name=limit", "--thread", "--time_based", "--norandommap", "--randrepeat=0", "--gtod_reduce=1"])
        .args(["--allow_file_create=0", "--output-format=terse", "--terse-version=3", "--ramp_time=100ms"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--runtime={}ms", time.as_millis().max(100)))
        .arg(format!("--rw={}", row.pattern.name()))
        .args([format!("--bs={}", row.block), format!("--iodepth={}", row.depth)])
        .args([format!("--ioengine={engine}"), format!("--direct={direct}")])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    terse_iops(&text, row.pattern.writes()).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!("fio --ioengine={engine} on {}: {}\n{text}\n{said}", file.display(), output.status))
    })
}

/// Requests a second from fio's terse output, version 3; None if it has none, or an error.
fn terse_iops(text: &str, writes: bool) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("3;fio-"))?;
    let fields: Vec<&str> = line.split(';').collect();
    let error = *fields.get(4)?;
    let iops: f64 = fields.get(if writes { 48 } else { 7 })?.parse().ok()?;
    (error == "0" && iops > 0.0).then_some(iops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_terse_output_is_understood() {
        let mut fields = vec!["0"; 130];
        fields[..8].copy_from_slice(&["3", "fio-3.33", "limit", "0", "0", "282488", "935390", "233847"]);
        fields[48] = "4711";
        let note = "note: both iodepth >= 1 and synchronous I/O engine are selected\n";
        let text = format!("{note}{}\n", fields.join(";"));
        assert_eq!(terse_iops(&text, false), Some(233_847.0));
        assert_eq!(terse_iops(&text, true), Some(4711.0));
        fields[4] = "22";
        assert_eq!(terse_iops(&fields.join(";"), false), None, "an error");
        assert_eq!(terse_iops("fio: engine io_uring not loadable\n", false), None);
    }
}
