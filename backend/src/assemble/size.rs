//! Sizes on the command line, in sectors of 512 bytes or with a unit.

use dm_table::{SECTOR_SIZE, Sectors};

/// Units and their sizes in bytes.
const UNITS: [(&str, u64); 5] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("PiB", 1 << 50)];

/// What sizes look like, for people.
pub const EXPECTED: &str = "a number of sectors of 512 bytes, or one with KiB, MiB, GiB or TiB behind it";

/// Sectors.
///
/// # Errors
/// What would be right, or what is meant.
pub fn sectors(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if digits == 0 {
        return Err(EXPECTED.to_owned());
    }
    let too_large = || format!("at most {} sectors (2^63 bytes)", Sectors::MAX_DEVICE);
    let number: u64 = number.parse().map_err(|_| too_large())?;
    let sectors = match UNITS.iter().find(|(name, _)| *name == unit) {
        _ if unit.is_empty() => Some(number),
        Some((_, bytes)) => number.checked_mul(bytes / SECTOR_SIZE),
        None => return Err(guess(number, unit)),
    };
    sectors.filter(|sectors| *sectors <= Sectors::MAX_DEVICE.get()).ok_or_else(too_large)
}

/// Others write units in other ways, and not all mean the same by them.
fn guess(number: u64, unit: &str) -> String {
    let first = unit.chars().next().map(|c| c.to_ascii_uppercase());
    match UNITS.iter().find(|(name, _)| name.chars().next() == first) {
        Some((name, _)) if unit.len() <= 3 => {
            format!("{EXPECTED}; {unit} may be powers of 1000 or of 1024: {number}{name} is clear")
        }
        _ => EXPECTED.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_sectors_or_have_a_clear_unit() {
        for (text, want) in
            [("0", 0), ("2048", 2048), ("1KiB", 2), ("1MiB", 2048), ("3GiB", 3 << 21), ("1TiB", 1 << 31)]
        {
            assert_eq!(sectors(text), Ok(want), "{text}");
        }
        for text in ["", "MiB", "-1", "1M", "1mb", "1.5GiB", "0x10", "99999999999999999999", "9000PiB", "1 MiB", "१"]
        {
            assert!(sectors(text).is_err(), "{text}");
        }
        assert!(sectors("5G").is_err_and(|why| why.contains("5GiB is clear")));
    }
}
