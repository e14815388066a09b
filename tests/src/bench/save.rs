//! A run of our own on paper, to be compared with later: a line of tab-separated fields for each round, lines that
//! begin with `#` for people.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::client::Sample;

/// First line of every saved run; the number changes with the fields.
const MAGIC: &str = "# vhost-user-dm benchmark, format 1";
const FIELDS: &str = "# row\tround\tIOPS\tp50 ns\tp99 ns\tCPU ns per request\trequests\tkicks per request";

/// A file that a run is written to as it goes on, so that one that is cut short leaves what it had.
#[derive(Debug)]
pub struct Writer(File);

impl Writer {
    /// Begins the file; `heading` says what was measured where.
    pub fn create(path: &Path, heading: &[String]) -> io::Result<Self> {
        let mut file = File::create(path)?;
        writeln!(file, "{MAGIC}")?;
        for line in heading {
            writeln!(file, "# {line}")?;
        }
        writeln!(file, "{FIELDS}")?;
        Ok(Writer(file))
    }

    /// Adds a row.
    pub fn row(&mut self, name: &str, samples: impl IntoIterator<Item = Sample>) -> io::Result<()> {
        for (round, sample) in samples.into_iter().enumerate() {
            self.0.write_all(line(name, round, &sample).as_bytes())?;
        }
        Ok(())
    }
}

fn line(name: &str, round: usize, sample: &Sample) -> String {
    let Sample { iops, p50, p99, cpu, operations, kicks } = sample;
    format!("{name}\t{round}\t{iops}\t{p50}\t{p99}\t{cpu}\t{operations}\t{kicks}\n")
}

/// A run that was saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// What it says of itself.
    pub heading: Vec<String>,
    /// Rounds of each row.
    pub rows: HashMap<String, Vec<Sample>>,
}

impl Saved {
    /// Whether a file that begins with these bytes is a saved run (else it is a program, say).
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(b"# vhost-user-dm benchmark")
    }

    /// Reads what [`Writer`] wrote. The error says the line and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        match lines.next() {
            Some(MAGIC) => {}
            Some(other) => return Err(format!("line 1: found {other:?}, expected {MAGIC:?}: save it anew")),
            None => return Err("the file is empty".into()),
        }
        let mut saved = Saved::default();
        for (number, line) in lines.enumerate() {
            if let Some(said) = line.strip_prefix("# ") {
                if line != FIELDS {
                    saved.heading.push(said.to_owned());
                }
            } else if !line.is_empty() {
                let (name, sample) = sample(line).map_err(|why| format!("line {}: {why}", number + 2))?;
                saved.rows.entry(name.to_owned()).or_default().push(sample);
            }
        }
        Ok(saved)
    }
}

fn sample(line: &str) -> Result<(&str, Sample), String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, _round, iops, p50, p99, cpu, operations, kicks] = fields[..] else {
        return Err(format!("found {} fields, expected 8", fields.len()));
    };
    let real = |text: &str| text.parse::<f64>().map_err(|e| format!("{text:?}: {e}"));
    let whole = |text: &str| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let sample = Sample {
        iops: real(iops)?,
        p50: whole(p50)?,
        p99: whole(p99)?,
        cpu: real(cpu)?,
        operations: whole(operations)?,
        kicks: real(kicks)?,
    };
    Ok((name, sample))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Sample =
        Sample { iops: 12345.678, p50: 4000, p99: 90_000, cpu: 81.25, operations: 54_321, kicks: 0.001 };

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("saved");
        let mut writer = Writer::create(&path, &["a machine".into()]).expect("create");
        let other = Sample { iops: 1.0, ..SAMPLE };
        writer.row("tmpfs randread 4k qd32 poll", [SAMPLE, other]).expect("write");
        writer.row("zero read", [other]).expect("write");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(Saved::is_one(text.as_bytes()) && !Saved::is_one(b"\x7fELF"));
        let saved = Saved::parse(&text).expect("parse");
        assert_eq!(saved.heading, ["a machine"]);
        assert_eq!(saved.rows["tmpfs randread 4k qd32 poll"], [SAMPLE, other]);
        assert_eq!(saved.rows["zero read"], [other]);
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_line() {
        let with = |line: &str| Saved::parse(&format!("{MAGIC}\n# said\n{line}\n")).expect_err("damaged");
        assert_eq!(with("a\t0\t1"), "line 3: found 3 fields, expected 8");
        let error = with("a\t0\tmany\t1\t1\t1\t1\t1");
        assert!(error.starts_with("line 3: \"many\": "), "{error}");
        assert!(Saved::parse("").is_err());
        let error = Saved::parse("# vhost-user-dm benchmark, format 2\n").expect_err("another format");
        assert!(error.contains("format 2") && error.contains("format 1"), "{error}");
    }
}
