//! `vhost-user-dm check`: what would be served, said in advance.

use std::fmt::Write as _;

use crate::frontend::config::{self, Offer};
use crate::mapper::Started;

/// A report for people.
pub fn report(started: &[Started], warnings: &[String]) -> String {
    let mut text = String::new();
    for device in started {
        describe(&mut text, device);
    }
    for warning in warnings {
        // Writing to a String cannot fail.
        let prefix = if warning.starts_with("warning") { "" } else { "warning: " };
        let _ = writeln!(text, "{prefix}{}", warning.trim_end());
    }
    text
}

fn describe(text: &mut String, device: &Started) {
    let disk = &device.disk;
    let chain = disk.chain();
    let limits = chain.map.limits();
    let space = config::space(&chain, Offer::default(), true);
    let bytes = chain.len().bytes();
    let _ = writeln!(
        text,
        "{}: {} sectors ({}), {}-byte blocks",
        device.name,
        chain.len(),
        human(bytes),
        limits.logical_block
    );
    for line in device.table().lines() {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(
        text,
        "  access: {}; discard: {}; serial: {}",
        if chain.read_only { "read-only" } else { "read-write" },
        match limits.discard {
            Some(_) if chain.read_only => "no".to_owned(),
            Some(d) => format!("up to {} sectors in {}-byte units", config::discard_sectors(&space), d.granularity),
            None => "no".to_owned(),
        },
        String::from_utf8_lossy(&disk.serial).trim_end_matches('\0'),
    );
    let segments = count(chain.map.segments(), "segment");
    let _ = writeln!(text, "  {segments} on {}", count(chain.map.devices().len(), "component"));
    for (_, component) in chain.reached() {
        let _ = writeln!(text, "    {}", component.describe());
    }
}

/// A number of things: `1 segment`, `2 segments`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Bytes for people, in binary units.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (63 - bytes.max(1).leading_zeros() as usize) / 10;
    match unit {
        0 => format!("{bytes} bytes"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [(0, "0 bytes"), (512, "512 bytes"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")] {
            assert_eq!(super::human(bytes), text);
        }
        assert_eq!(super::human(u64::MAX), "16.0 EiB");
    }
}
