//! A disk read as its guest would read it, without a guest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use dm_table::{SECTOR_SIZE, Sectors};

use super::Bytes;
use crate::chain::Chain;
use crate::device::Component;
use crate::map::{DevIx, Step};

/// What a chain leads to, by way of open files of its own: buffered, for reading, without locks.
pub struct Assembled {
    chain: Arc<Chain>,
    files: BTreeMap<DevIx, (PathBuf, File)>,
}

impl Assembled {
    /// # Errors
    /// A component that is open already cannot be opened for reading.
    pub fn new(chain: Arc<Chain>) -> io::Result<Assembled> {
        let files = chain.components.iter().map(|(ix, component)| {
            let file = reopen(component).map_err(|error| said(&component.path, "cannot be read", &error))?;
            Ok((ix, (component.path.clone(), file)))
        });
        let files = files.collect::<io::Result<_>>()?;
        Ok(Assembled { chain, files })
    }

    /// What is read.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.chain.len().bytes()
    }

    /// The file behind an index.
    pub fn file(&self, dev: DevIx) -> io::Result<&File> {
        self.files.get(&dev).map(|(_, file)| file).ok_or_else(|| io::Error::other("a component is not open"))
    }

    /// Fills `buf` from a component.
    ///
    /// # Errors
    /// The system's, with the component's path.
    pub fn read_component(&self, dev: DevIx, at: Sectors, buf: &mut [u8]) -> io::Result<()> {
        let (path, file) = self.files.get(&dev).ok_or_else(|| io::Error::other("a component is not open"))?;
        let read = file.read_exact_at(buf, at.bytes());
        read.map_err(|error| {
            said(path, &format!("cannot read {} sectors at {at}", buf.len() as u64 / SECTOR_SIZE), &error)
        })
    }

    fn read_sectors(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = Sectors::new(buf.len() as u64 / SECTOR_SIZE);
        let mut result = Ok(());
        self.chain.map.pieces(Sectors::new(at), len, &mut |piece| {
            let (from, len) = (piece.skip.bytes() as usize, piece.len.bytes() as usize);
            let Some(part) = buf.get_mut(from..from + len).filter(|_| result.is_ok()) else { return };
            match piece.step {
                Step::Zero => part.fill(0),
                Step::Device { dev, at } => result = self.read_component(dev, at, part),
                // What such a target makes of its device shows only where it is served.
                Step::Target { .. } => result = Err(io::Error::other("a stateful target lies there")),
                Step::Error => {
                    let first = at + piece.skip.get();
                    let why = format!("sectors {first}..{} are an error segment", first + piece.len.get());
                    result = Err(io::Error::other(why));
                }
            }
        });
        result
    }
}

impl Bytes for Assembled {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| *end <= self.size());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let first = at / SECTOR_SIZE;
        let mut sectors = vec![0; ((end.div_ceil(SECTOR_SIZE) - first) * SECTOR_SIZE) as usize];
        self.read_sectors(first, &mut sectors)?;
        let into = (at - first * SECTOR_SIZE) as usize;
        if let Some(part) = sectors.get(into..into + buf.len()) {
            buf.copy_from_slice(part);
        }
        Ok(())
    }
}

/// Another open file of the same thing, through the page cache; where there is no /proc, by its path.
fn reopen(component: &Component) -> io::Result<File> {
    let open = component.file();
    File::open(format!("/proc/self/fd/{}", open.as_raw_fd())).or_else(|_| File::open(&component.path))
}

fn said(path: &std::path::Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {what}: {error}", path.display()))
}
