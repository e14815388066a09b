//! Reading at places, and numbers in what was read. Nothing here can be out of bounds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Something that can be read at any place.
pub trait Bytes {
    /// Fills `buf` with what is at byte `at`.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` where there is not so much.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Bytes for File {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }
}

impl Bytes for Vec<u8> {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of something.
pub struct Window<'a> {
    /// The whole.
    pub bytes: &'a dyn Bytes,
    /// First byte of the part.
    pub start: u64,
    /// Length of the part in bytes.
    pub len: u64,
}

impl Bytes for Window<'_> {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let fits = at.checked_add(buf.len() as u64).is_some_and(|end| end <= self.len);
        let start = self.start.checked_add(at).filter(|_| fits).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.bytes.read(start, buf)
    }
}

/// Something whose beginning, where most marks are, has been read at once.
pub(crate) struct Begun<'a> {
    bytes: &'a dyn Bytes,
    begin: Vec<u8>,
}

impl<'a> Begun<'a> {
    /// Reads `len` bytes. Where not all of them can be read, none is kept: a part of them may do.
    pub fn new(bytes: &'a dyn Bytes, len: usize) -> Begun<'a> {
        let mut begin = vec![0; len];
        if bytes.read(0, &mut begin).is_err() {
            begin.clear();
        }
        Begun { bytes, begin }
    }
}

impl Bytes for Begun<'_> {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.begin.get(at..)?.get(..buf.len()));
        match from {
            Some(from) => buf.copy_from_slice(from),
            None => self.bytes.read(at, buf)?,
        }
        Ok(())
    }
}

/// Something of a known size that is being looked at.
#[derive(Clone, Copy)]
pub(crate) struct Medium<'a> {
    pub bytes: &'a dyn Bytes,
    pub size: u64,
}

impl Medium<'_> {
    /// `len` bytes at `at`; none where the medium ends before.
    pub fn get(&self, at: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let mut buf = vec![0; len];
        self.bytes.read(at, &mut buf)?;
        Ok(Some(buf))
    }
}

/// A structure on the medium.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn slice(&self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..)?.get(..len)
    }

    pub fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.slice(at, N)?.try_into().ok()
    }

    /// Whether the structure has these bytes there.
    pub fn has(&self, at: usize, bytes: &[u8]) -> bool {
        self.slice(at, bytes.len()) == Some(bytes)
    }

    pub fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub fn le16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub fn le32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub fn le64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub fn be16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    pub fn be32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    pub fn be64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_be_bytes)
    }

    /// Text that ends at the first NUL, without blanks around it. None where it is empty.
    pub fn text(&self, at: usize, len: usize) -> Option<String> {
        let bytes = self.slice(at, len)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end]);
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The same in UTF-16, little-endian.
    pub fn utf16(&self, at: usize, bytes: usize) -> Option<String> {
        let pairs = self.slice(at, bytes)?.chunks_exact(2);
        let units: Vec<u16> = pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
        let text = String::from_utf16_lossy(&units[..end]);
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// 16 bytes as a UUID, in the order in which they stand. None where all are zero.
    pub fn uuid(&self, at: usize) -> Option<String> {
        let bytes: [u8; 16] = self.array(at)?;
        (bytes != [0; 16]).then(|| hyphenated(&bytes))
    }

    /// 16 bytes as a GUID, whose first three parts are little-endian.
    pub fn guid(&self, at: usize) -> Option<String> {
        let mut bytes: [u8; 16] = self.array(at)?;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        (bytes != [0; 16]).then(|| hyphenated(&bytes))
    }
}

fn hyphenated(bytes: &[u8; 16]) -> String {
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}
