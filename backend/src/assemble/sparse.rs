//! A disk in memory of which only the written blocks exist, for libraries that want a whole disk.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

const BLOCK: u64 = 4096;

/// The disk.
#[derive(Debug)]
pub struct Sparse {
    blocks: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    at: u64,
}

impl Sparse {
    /// A disk of `len` bytes.
    pub fn new(len: u64) -> Sparse {
        Sparse { blocks: BTreeMap::new(), len, at: 0 }
    }

    /// `len` bytes at `at`; what was never written is zero.
    pub fn range(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let (block, within) = ((at + done as u64) / BLOCK, ((at + done as u64) % BLOCK) as usize);
            let take = (BLOCK as usize - within).min(len - done);
            if let Some(block) = self.blocks.get(&block) {
                bytes[done..done + take].copy_from_slice(&block[within..within + take]);
            }
            done += take;
        }
        bytes
    }

    fn room(&self, wanted: usize) -> usize {
        usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Sparse {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let take = self.room(buf.len());
        buf[..take].copy_from_slice(&self.range(self.at, take));
        self.at += take as u64;
        Ok(take)
    }
}

impl Write for Sparse {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let (block, within) = (self.at / BLOCK, (self.at % BLOCK) as usize);
        let take = self.room(buf.len()).min(BLOCK as usize - within);
        let block = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize].into());
        block[within..within + take].copy_from_slice(&buf[..take]);
        self.at += take as u64;
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_and_the_rest_is_zero() {
        let mut disk = Sparse::new(1 << 40);
        disk.seek(SeekFrom::End(-6000)).unwrap();
        disk.write_all(&[7; 6000]).unwrap();
        assert_eq!(disk.write(&[7]).unwrap(), 0, "the end");
        assert_eq!(disk.range((1 << 40) - 6001, 6001), [vec![0], vec![7; 6000]].concat());
        disk.seek(SeekFrom::Current(-5000)).unwrap();
        let mut read = vec![];
        disk.read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 5000]);
        assert!(disk.seek(SeekFrom::Start(0)).is_ok() && disk.seek(SeekFrom::Current(-1)).is_err());
    }
}
