//! The output: Markdown, so that it can be taken over as it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::limit::Limit;
use super::rows::{Bar, Row};
use super::stats::Summary;

/// Where and when: one line each.
pub fn machine() -> Vec<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(": "));
        line.map_or("?", |(_, value)| value)
    };
    let virtual_machine = field("flags").split(' ').any(|flag| flag == "hypervisor");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = meminfo.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        format!("date: {}", output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
        format!(
            "machine: {}, {cpus} CPUs{}, {} GiB of memory, Linux {}",
            field("model name"),
            if virtual_machine { " of a virtual machine" } else { "" },
            kibibytes.div_ceil(1 << 20),
            kernel.trim()
        ),
    ]
}

/// What a program calls itself.
pub fn version(program: &Path) -> String {
    output(Command::new(program).arg("--version"))
}

/// First line of what a command prints.
fn output(command: &mut Command) -> String {
    let output = command.output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    output.unwrap_or_default().lines().next().unwrap_or("?").to_owned()
}

/// A warning if the machine has other things to do.
pub fn busy() -> Option<String> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    (load > 0.7).then(|| format!("**The machine is busy (load {load}): expect noise, and look at the spread.**"))
}

/// The head of a Markdown table; numbers stand to the right.
pub fn head(columns: &[&str]) -> String {
    let rules: Vec<&str> = columns.iter().enumerate().map(|(i, _)| if i == 0 { "---" } else { "--:" }).collect();
    format!("| {} |\n| {} |", columns.join(" | "), rules.join(" | "))
}

/// A line of a Markdown table.
pub fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// The head of a table of rows with two sides of these names.
pub fn rows_head(ours: &str, theirs: &str, with_rival: bool) -> String {
    let iops = [format!("{ours}, k/s"), format!("{theirs}, k/s")];
    let cpu = [format!("CPU µs/IO, {ours}"), theirs.to_owned()];
    let mut columns = vec![
        "row", &iops[0], &iops[1], "ratio", "min..max", "bar", &cpu[0], &cpu[1], "ratio", "bar", "p50 µs", "p99 µs",
    ];
    if with_rival {
        columns.extend(["its best setting", "fio's best, k/s"]);
    }
    head(&columns)
}

/// What stands behind the measured columns of a row against qemu-storage-daemon.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Its best setting.
    pub setting: String,
    /// fio's best; None if there is no file, or no fio.
    pub limit: Option<Limit>,
}

/// A row.
pub fn row(row: &Row, summary: &Summary, bar: Bar, beside: Option<&Beside>) -> String {
    let Summary { ours, theirs, ratio, spread: (low, high), cpu_ratio } = *summary;
    let mut cells = vec![
        row.name(),
        kilo(ours.iops),
        kilo(theirs.iops),
        format!("{ratio:.2}"),
        format!("{low:.2}..{high:.2}"),
        at_least(ratio, bar.iops),
        format!("{:.2}", ours.cpu / 1e3),
        format!("{:.2}", theirs.cpu / 1e3),
        format!("{cpu_ratio:.2}"),
        at_most(cpu_ratio, bar.cpu),
        format!("{} / {}", kilo(ours.p50), kilo(theirs.p50)),
        format!("{} / {}", kilo(ours.p99), kilo(theirs.p99)),
    ];
    if let Some(beside) = beside {
        cells.push(beside.setting.clone());
        cells.push(beside.limit.map_or("-".into(), |limit| format!("{} ({})", kilo(limit.iops), limit.engine)));
    }
    line(&cells)
}

/// A cell that says in short that something went wrong; the whole story goes to standard error.
pub fn failure(what: &str, error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    eprintln!("{what}: {text}");
    let first: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
    format!("failed: {}", first.replace('|', "/"))
}

/// Thousands (microseconds, of nanoseconds), with three digits or more.
pub fn kilo(value: f64) -> String {
    match value / 1e3 {
        kilo if kilo < 10.0 => format!("{kilo:.2}"),
        kilo if kilo < 100.0 => format!("{kilo:.1}"),
        kilo => format!("{kilo:.0}"),
    }
}

/// A lower bound and whether it is met; judged as precisely as it is printed.
pub fn at_least(value: f64, bar: Option<f64>) -> String {
    bar.map_or("-".into(), |bar| format!("≥ {bar} {}", verdict(rounded(value) >= bar)))
}

/// An upper bound and whether it is met.
pub fn at_most(value: f64, bar: Option<f64>) -> String {
    bar.map_or("-".into(), |bar| format!("≤ {bar} {}", verdict(rounded(value) <= bar)))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

/// Whether a row reaches its bar; None if it has none.
pub fn reaches(summary: &Summary, bar: Bar) -> Option<bool> {
    let iops = bar.iops.map(|bar| rounded(summary.ratio) >= bar);
    let cpu = bar.cpu.map(|bar| rounded(summary.cpu_ratio) <= bar);
    match (iops, cpu) {
        (None, None) => None,
        _ => Some(iops.unwrap_or(true) && cpu.unwrap_or(true)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Sample;
    use super::super::rows::{Set, select};
    use super::*;

    #[test]
    fn a_row_has_as_many_cells_as_its_head() {
        let of = |iops, cpu| Sample { iops, p50: 1500, p99: 9000, cpu, operations: 1, kicks: 0.0 };
        let summary = Summary::of(&[(of(300_000.0, 100.0), of(100_000.0, 200.0))]);
        let first = select(&[Set::Bars], &[]).expect("rows").rows[0];
        let bar = Bar { iops: Some(4.0), cpu: Some(0.5) };
        let beside = Beside { setting: "null-co".into(), limit: Some(Limit { engine: "psync", iops: 4321.0 }) };
        let text = row(&first, &summary, bar, Some(&beside));
        let cells = |text: &str| text.lines().next().unwrap_or("").matches('|').count();
        assert_eq!(cells(&text), cells(&rows_head("ours", "theirs", true)));
        assert!(text.contains("| 300 | 100 | 3.00 | 3.00..3.00 | ≥ 4 **missed** |"), "{text}");
        assert!(text.contains("| 0.50 | ≤ 0.5 met | 1.50 / 1.50 | 9.00 / 9.00 | null-co | 4.32 (psync) |"), "{text}");
        assert_eq!(cells(&row(&first, &summary, bar, None)), cells(&rows_head("a", "b", false)));
        assert_eq!(reaches(&summary, bar), Some(false));
        assert_eq!(reaches(&summary, Bar { iops: Some(3.0), cpu: None }), Some(true));
        assert_eq!(reaches(&summary, Bar::default()), None);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([kilo(1234.0), kilo(12_345.0), kilo(1_234_567.0)], ["1.23", "12.3", "1235"]);
        assert_eq!(at_least(0.976, Some(0.98)), "≥ 0.98 met");
        assert_eq!(at_most(0.606, Some(0.6)), "≤ 0.6 **missed**");
        assert_eq!(at_most(1.0, None), "-");
    }

    #[test]
    fn the_machine_is_described() {
        let lines = machine();
        assert!(lines[0].starts_with("date: 2"), "{lines:?}");
        assert!(lines[1].contains(", Linux ") && !lines[1].contains(" 0 CPUs"), "{lines:?}");
    }
}
