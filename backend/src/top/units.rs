//! Numbers in few characters.

/// A rate or a count in decimal units, at most five characters: `0`, `0.25`, `12.3`, `999`, `1.23k`, `45.6M`.
pub(super) fn short(value: f64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = if value.is_finite() { value.max(0.0) } else { 0.0 };
    let mut unit = 0;
    // What would be rounded up to 1000 is said in the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", digits(value, unit == 0), UNITS[unit])
}

/// Three digits. A whole number has no fraction where nothing says that it was rounded (`whole`).
fn digits(value: f64, whole: bool) -> String {
    match value {
        v if whole && v.fract() == 0.0 => format!("{v:.0}"),
        v if v < 0.005 => "0".into(),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Megabytes (10^6) a second, at most six characters.
pub(super) fn megabytes(bytes: f64) -> String {
    let value = if bytes.is_finite() { (bytes / 1e6).max(0.0) } else { 0.0 };
    if value >= 99_999.5 { short(value) } else { digits(value, true) }
}

/// A time, at most six characters: `850ns`, `12.3µs`, `1.23ms`, `45.6s`, `120s`.
pub(super) fn time(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..999_500 => format!("{}µs", digits(value / 1e3, false)),
        999_500..999_500_000 => format!("{}ms", digits(value / 1e6, false)),
        _ if value < 99_999.5e9 => format!("{}s", digits(value / 1e9, false)),
        _ => format!("{}s", short(value / 1e9)),
    }
}

/// A share in percent, at most four characters.
pub(super) fn percent(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    match share * 100.0 {
        p if p > 0.0 && p < 0.5 => "<1%".into(),
        p => format!("{p:.0}%"),
    }
}

/// Bytes of so many sectors, for people, in binary units.
pub(super) fn size(sectors: u64) -> String {
    crate::check::human(sectors.saturating_mul(dm_table::SECTOR_SIZE))
}

/// Text of others without what could move a terminal's cursor.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.25, "0.25"),
            (12.34, "12.3"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (45_600_000.0, "45.6M"),
            (f64::NAN, "0"),
            (-1.0, "0"),
        ] {
            assert_eq!(short(value), text);
        }
        for (bytes, text) in [(0.0, "0"), (250_000.0, "0.25"), (1e9, "1000"), (12.34e6, "12.3"), (1e12, "1.00M")] {
            assert_eq!(megabytes(bytes), text);
        }
        for (ns, text) in [
            (0, "0ns"),
            (850, "850ns"),
            (12_300, "12.3µs"),
            (999_499, "999µs"),
            (999_500, "1.00ms"),
            (1_230_000, "1.23ms"),
            (45_600_000_000, "45.6s"),
            (u64::MAX, "18.4Gs"),
        ] {
            assert_eq!(time(ns), text);
        }
        for (share, text) in [(0.0, "0%"), (0.001, "<1%"), (0.456, "46%"), (7.0, "100%"), (f64::NAN, "0%")] {
            assert_eq!(percent(share), text);
        }
        assert_eq!(clean("a\x1b[2Jb\n"), "a?[2Jb?");
    }

    proptest! {
        #[test]
        fn numbers_fit_their_columns(value: f64, ns: u64) {
            prop_assert!(short(value.abs().min(1e20)).chars().count() <= 5);
            prop_assert!(megabytes(value.abs().min(1e20)).chars().count() <= 6);
            prop_assert!(time(ns).chars().count() <= 6);
            prop_assert!(percent(value).chars().count() <= 4);
        }
    }
}
