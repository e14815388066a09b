//! Names of devices.

use crate::{Sectors, Span};

/// A device as the table names it: a path, `MAJOR:MINOR`, or `/dev/mapper/NAME` for another device of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevRef {
    /// The text as the user wrote it.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A device and the first sector of it that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The device.
    pub dev: DevRef,
    /// The first sector on the device.
    pub start: Sectors,
    /// Where the start sector stands in the text.
    pub start_span: Span,
}

impl DevRef {
    /// Major and minor number where the text is exactly `%u:%u` in decimal.
    ///
    /// The ranges are not checked: the kernel refuses a major over 4095 or a minor over 1048575 with
    /// EOVERFLOW. What passes 2^64 − 1 becomes 2^64 − 1, so that it is refused too.
    pub fn major_minor(&self) -> Option<(u64, u64)> {
        let (major, minor) = self.text.split_once(':')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        Some((number(major)?, number(minor)?))
    }

    /// NAME where the text is `/dev/mapper/NAME`. It is in the form that the kernel has: characters other
    /// than `0-9A-Za-z#+-.:=@_` stand as `\xNN`.
    pub fn mapper_name(&self) -> Option<&str> {
        let name = self.text.strip_prefix("/dev/mapper/")?;
        let plain = !name.is_empty() && !name.contains('/') && !matches!(name, "." | ".." | "control");
        plain.then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dev(text: &str) -> DevRef {
        DevRef { text: text.to_owned(), span: Span::default() }
    }

    #[test]
    fn only_two_plain_numbers_are_major_and_minor() {
        for (text, want) in [
            ("254:0", Some((254, 0))),
            ("008:016", Some((8, 16))),
            ("5000:0", Some((5000, 0))),
            ("99999999999999999999:0", Some((u64::MAX, 0))),
            ("+254:0", None),
            ("254:", None),
            (":0", None),
            ("254:0x", None),
            ("fe:0", None),
            ("1:2:3", None),
            ("/dev/vda", None),
        ] {
            assert_eq!(dev(text).major_minor(), want, "{text}");
        }
    }

    #[test]
    fn mapper_names_are_one_path_component() {
        assert_eq!(dev("/dev/mapper/root").mapper_name(), Some("root"));
        assert_eq!(dev("/dev/mapper/").mapper_name(), None);
        assert_eq!(dev("/dev/mapper/../vda").mapper_name(), None);
        assert_eq!(dev("/dev/mapper/..").mapper_name(), None);
        assert_eq!(dev("/dev/mapper/control").mapper_name(), None);
        assert_eq!(dev("mapper/root").mapper_name(), None);
    }
}
