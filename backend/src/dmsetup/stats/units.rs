//! Sizes and times with units.

const SECTOR: u64 = 512;

/// Bytes of a unit; capital letters count in thousands.
fn factor(unit: char) -> Option<u64> {
    let power = |base: u64, letter| "bkmgtpe".find(letter).and_then(|power| base.checked_pow(power as u32));
    match unit {
        's' | 'S' => Some(SECTOR),
        unit if unit.is_ascii_uppercase() => power(1000, unit.to_ascii_lowercase()),
        unit => power(1024, unit),
    }
}

/// A size, in sectors if it has no unit; as sectors.
pub(super) fn sectors(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\"");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| wrong())?;
    let mut unit = text[end..].chars();
    let factor = match (unit.next(), unit.next()) {
        (None, _) => SECTOR,
        (Some(unit), None) => factor(unit).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).map(|bytes| bytes / SECTOR).ok_or_else(wrong)
}

/// Ascending times, in nanoseconds if they have no unit.
pub(super) fn bounds(text: &str) -> Result<Vec<u64>, String> {
    let bound = |text: &str| {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..end].parse().ok()?;
        let unit = match &text[end..] {
            "" | "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return None,
        };
        number.checked_mul(unit)
    };
    let bounds: Option<Vec<u64>> = text.split(',').map(bound).collect();
    let bounds = bounds.ok_or_else(|| format!("\"{text}\" is no list of times as 10us,1ms,2s"))?;
    match bounds.is_sorted_by(|one, next| one < next) {
        true => Ok(bounds),
        false => Err(format!("\"{text}\" does not ascend")),
    }
}

/// How sizes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    unit: char,
    suffix: bool,
}

impl Units {
    pub fn parse(text: &str, suffix: bool) -> Option<Units> {
        let mut chars = text.chars();
        let unit = chars
            .next()
            .filter(|&unit| chars.next().is_none() && (matches!(unit, 'h' | 'H') || factor(unit).is_some()));
        unit.map(|unit| Units { unit, suffix })
    }

    /// A size in sectors.
    pub fn show(self, sectors: f64) -> String {
        let bytes = sectors * SECTOR as f64;
        let unit = match self.unit {
            'h' => human(bytes, "bkmgtpe"),
            'H' => human(bytes, "BKMGTPE"),
            unit => unit,
        };
        if bytes == 0.0 && self.suffix {
            return "0".to_owned();
        }
        let number = bytes / factor(unit).unwrap_or(1) as f64;
        let digits = if matches!(unit, 'b' | 'B' | 's' | 'S') { 0 } else { 2 };
        let suffix = if self.suffix { unit.to_string() } else { String::new() };
        format!("{number:.digits$}{suffix}")
    }
}

/// The largest unit of which there is one.
fn human(bytes: f64, units: &str) -> char {
    let fits = |unit: &char| factor(*unit).is_some_and(|factor| bytes >= factor as f64);
    units.chars().rev().find(fits).or(units.chars().next()).unwrap_or('b')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in [("7", 7), ("7s", 7), ("1024b", 2), ("4k", 8), ("1m", 2048), ("512B", 1), ("1K", 1)] {
            assert_eq!(sectors(text), Ok(expected), "{text}");
        }
        for text in ["", "x", "1kk", "1x", "-1", "99999999999999999999", "99999999999999999e"] {
            assert!(sectors(text).is_err(), "{text}");
        }
        let show = |unit: &str, sectors| Units::parse(unit, true).unwrap().show(sectors);
        assert_eq!(show("h", 0.0), "0");
        assert_eq!(show("h", 1.0), "512b");
        assert_eq!(show("h", 2048.0 * 1536.0), "1.50g");
        assert_eq!(show("s", 2048.0), "2048s");
        assert_eq!(show("M", 1_000_000.0 / 512.0), "1.00M");
        assert_eq!(Units::parse("k", false).unwrap().show(3.0), "1.50");
        assert!(Units::parse("x", true).is_none() && Units::parse("", true).is_none());
    }

    #[test]
    fn bounds_ascend() {
        assert_eq!(bounds("500, 10us,2ms,1s").unwrap(), [500, 10_000, 2_000_000, 1_000_000_000]);
        for text in ["", "x", "1,", "2,1", "1,1", "1m", "99999999999999999999s"] {
            assert!(bounds(text).is_err(), "{text}");
        }
    }
}
