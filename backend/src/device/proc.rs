//! Mounts and swap as `/proc` shows them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount of this process's mount namespace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor` of the file system; not a device's for file systems over several devices.
    pub dev: String,
    /// Where it is mounted.
    pub at: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// The device as mount(8) was told.
    pub source: PathBuf,
    /// Whether the file system itself is read-only (a read-only bind mount of a writable one is not).
    pub read_only: bool,
}

/// The mounts that this process can see; none where `/proc` is missing.
pub(super) fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// Devices and files in use as swap.
pub(super) fn swaps() -> Vec<PathBuf> {
    parse_swaps(&fs::read("/proc/swaps").unwrap_or_default())
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw,errors=continue`.
fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let dev = fields.nth(2)?;
    let at = fields.nth(1)?;
    // Any number of optional fields ends with a single hyphen.
    fields.by_ref().skip(1).find(|field| *field == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount {
        dev: String::from_utf8_lossy(dev).into_owned(),
        at: unescape(at),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
        read_only,
    })
}

/// `/proc/swaps`: a heading, then a name, its type and numbers.
fn parse_swaps(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(|byte| matches!(byte, b' ' | b'\t')).next());
    names.filter(|name| !name.is_empty()).map(unescape).collect()
}

/// The kernel writes blanks, newlines and backslashes of names as `\ooo`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let byte = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = &tail[if byte.is_some() { 3 } else { 0 }..];
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_optional_fields_and_escapes() {
        let text = b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            22 1 0:21 / /proc rw - proc proc rw\n\
            40 1 7:1 / /srv ro - ext4 /dev/loop1 ro\n\
            junk\n";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(
            mounts[0],
            Mount {
                dev: "98:0".into(),
                at: "/mnt two".into(),
                fs_type: "ext3".into(),
                source: "/dev/root".into(),
                read_only: false,
            }
        );
        assert_eq!((mounts[2].dev.as_str(), mounts[2].read_only), ("7:1", true));
    }

    #[test]
    fn swaps_are_read_without_the_heading() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda3    partition\t1000\t0\t-2\n/swap\\040file file\t8\t0\t-3\n";
        assert_eq!(parse_swaps(text), [PathBuf::from("/dev/sda3"), PathBuf::from("/swap file")]);
        assert_eq!(parse_swaps(b""), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_escape_that_is_none_stays_as_it_is() {
        assert_eq!(unescape(b"a\\9b\\13"), PathBuf::from("a\\9b\\13"));
        assert_eq!(unescape(b"\\134"), PathBuf::from("\\"));
    }
}
