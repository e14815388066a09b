//! Names and uuids: what people write, and what the kernel's interface (and ours) has.

use super::options::Options;
use super::report::Value;

/// Longest name, in bytes of its mangled form.
const NAME_LEN: usize = 127;
/// Longest uuid.
const UUID_LEN: usize = 128;

/// libdm's modes of writing what may not stand in a device's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mangling {
    /// As it is.
    None,
    /// What may not stand there becomes `\xNN`, unless it has been done already.
    Auto,
    /// What may not stand there becomes `\xNN`, a backslash too.
    Hex,
}

impl Mangling {
    /// By `--manglename`, else by the environment.
    pub fn from(options: &Options, variable: Option<&str>) -> Result<Mangling, String> {
        let known = |text: &str| match text.to_ascii_lowercase().as_str() {
            "none" => Some(Mangling::None),
            "auto" => Some(Mangling::Auto),
            "hex" => Some(Mangling::Hex),
            _ => None,
        };
        match options.value("manglename") {
            Some(text) => known(text).ok_or_else(|| "Unknown name mangling mode.".to_owned()),
            // libdm passes over what it does not know here.
            None => Ok(variable.and_then(known).unwrap_or(Mangling::Auto)),
        }
    }

    /// A name as it is shown.
    pub fn show(self, name: &str) -> String {
        match self {
            Mangling::None => name.to_owned(),
            Mangling::Auto | Mangling::Hex => dm_table::unmangle(name),
        }
    }

    /// A name as it goes to the process; what libdm says otherwise.
    pub fn name(self, name: &str) -> Result<String, String> {
        if name.contains('/') {
            return Err(format!("Name \"{name}\" invalid. It contains \"/\"."));
        }
        if name.len() > NAME_LEN {
            return Err(format!("Name \"{name}\" too long."));
        }
        self.mangle(name, "name", "name", NAME_LEN)
    }

    /// A uuid as it goes to the process.
    pub fn uuid(self, uuid: &str) -> Result<String, String> {
        self.mangle(uuid, "UUID", "uuid", UUID_LEN)
    }

    fn mangle(self, text: &str, what: &str, device: &str, longest: usize) -> Result<String, String> {
        let failed = |why: String| format!("{why}\nFailed to mangle device {device} \"{text}\".");
        let mangled = match self {
            Mangling::None => text.to_owned(),
            Mangling::Hex => hex(text),
            Mangling::Auto if text.contains("\\x5cx") => {
                let seems = format!("The {what} \"{text}\" seems to be mangled more than once.");
                return Err(failed(format!("{seems} Manual intervention required to rename the device.")));
            }
            Mangling::Auto => dm_table::mangle(text).ok_or_else(|| {
                let mixed = "contains mixed mangled and unmangled characters or it's already mangled improperly.";
                failed(format!("The {what} \"{text}\" {mixed}"))
            })?,
        };
        if mangled.len() > longest {
            return Err(failed(format!("Mangled form of the {what} too long for \"{text}\".")));
        }
        Ok(mangled)
    }
}

fn hex(text: &str) -> String {
    let byte = |byte: u8| match byte {
        _ if byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte) => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    text.bytes().map(byte).collect()
}

/// A name of LVM's, in its parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub subsystem: String,
    pub vg: String,
    pub lv: String,
    pub layer: String,
}

impl Split {
    /// LVM joins its names with `-`, and doubles what there is of it in each.
    pub fn new(name: &str, subsystem: &str) -> Split {
        let mut split = Split { subsystem: subsystem.to_owned(), ..Split::default() };
        if subsystem != "LVM" {
            return split;
        }
        let mut chars = name.chars().peekable();
        for part in [&mut split.vg, &mut split.lv, &mut split.layer] {
            while let Some(c) = chars.next() {
                if c == '-' && chars.next_if_eq(&'-').is_none() {
                    break;
                }
                part.push(c);
            }
        }
        split
    }

    /// A field of [`super::fields::SPLIT`].
    pub fn value(&self, id: &str) -> Value {
        Value::text(match id {
            "subsystem" => &self.subsystem,
            "vg_name" => &self.vg,
            "lv_name" => &self.lv,
            _ => &self.layer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_mangling() {
        assert_eq!(Mangling::Auto.name("sp ace").unwrap(), r"sp\x20ace");
        assert_eq!(Mangling::Auto.name(r"sp\x20ace").unwrap(), r"sp\x20ace");
        assert_eq!(Mangling::Hex.name(r"sp\x20ace").unwrap(), r"sp\x5cx20ace");
        assert_eq!(Mangling::None.name("sp ace").unwrap(), "sp ace");
        assert_eq!(Mangling::Auto.show(r"sp\x20ace"), "sp ace");
        assert_eq!(Mangling::None.show(r"sp\x20ace"), r"sp\x20ace");
    }

    /// Transcript 4.
    #[test]
    fn what_is_no_name_is_refused_in_libdms_words() {
        assert_eq!(Mangling::Auto.name("a/b").unwrap_err(), "Name \"a/b\" invalid. It contains \"/\".");
        let name = "n".repeat(128);
        assert!(Mangling::Auto.name(&name[..127]).is_ok());
        assert_eq!(Mangling::Auto.name(&name).unwrap_err(), format!("Name \"{name}\" too long."));
        let uuid = "u".repeat(129);
        assert!(Mangling::Auto.uuid(&uuid[..128]).is_ok());
        let words =
            format!("Mangled form of the UUID too long for \"{uuid}\".\nFailed to mangle device uuid \"{uuid}\".");
        assert_eq!(Mangling::Auto.uuid(&uuid).unwrap_err(), words);
        assert!(Mangling::Auto.name(r"a b\x20c").unwrap_err().contains("mixed mangled and unmangled"));
    }

    /// Taken from dmsetup 1.02.185.
    #[test]
    fn names_are_split_as_lvm_joins_them() {
        let split = |name, vg: &str, lv: &str, layer: &str| {
            let expected = Split { subsystem: "LVM".into(), vg: vg.into(), lv: lv.into(), layer: layer.into() };
            assert_eq!(Split::new(name, "LVM"), expected);
        };
        split("vg-lv--x-real", "vg", "lv-x", "real");
        split("vg--a-lv--x-real-b", "vg-a", "lv-x", "real");
        split("vg-lv-a-b", "vg", "lv", "a");
        split("vg", "vg", "", "");
        assert_eq!(Split::new("vg-lv", "LVMx"), Split { subsystem: "LVMx".into(), ..Split::default() });
    }
}
