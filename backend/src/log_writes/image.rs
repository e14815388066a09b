//! What a log is replayed to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

/// Bytes of zeroes that are written at a time.
const ZEROES: usize = 1 << 20;

/// A disk's bytes.
pub trait Image {
    /// How many there are.
    fn size(&self) -> u64;

    /// Writes some of them, all inside.
    ///
    /// # Errors
    /// The system's.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes some of them zeroes, all inside: what a discard leaves on what can give space back.
    ///
    /// # Errors
    /// The system's.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()>;

    /// All that was written is where another process reads it.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;
}

impl Image for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        inside(self, at, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        inside(self, at, len)?.fill(0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn inside(all: &mut [u8], at: u64, len: u64) -> io::Result<&mut [u8]> {
    let place = |n: u64| usize::try_from(n).ok();
    let part = place(at).zip(place(len)).and_then(|(at, len)| all.get_mut(at..)?.get_mut(..len));
    part.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// An open file or block device, of so many bytes.
pub(super) struct Opened<'a> {
    pub file: &'a File,
    pub size: u64,
}

impl Image for Opened<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// A hole in a file; a block device zeroes the range by the same call, with a discard where that zeroes.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if rustix::fs::fallocate(self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0; ZEROES.min(usize::try_from(len).unwrap_or(ZEROES))];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(zeroes.len() as u64);
            self.file.write_all_at(zeroes.get(..part as usize).unwrap_or_default(), at + done)?;
            done += part;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
