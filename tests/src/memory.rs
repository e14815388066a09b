//! Guest memory made of several regions, as a front end shares it with the back end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use crate::mapping::Mapping;

/// Page size that regions are rounded to, bytes.
pub const PAGE: u64 = 4096;

/// Where a region lies in the guest and how large it is, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address.
    pub gpa: u64,
    /// Length; a multiple of the page size.
    pub size: u64,
}

/// One shared region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
    /// The address the front end says the region has in its own process. Made up, and different from both
    /// the guest address and the real mapping, so that a back end that mixes them up cannot get by.
    pub user_addr: u64,
    /// Where the region begins in its file, bytes.
    pub mmap_offset: u64,
    file: Arc<OwnedFd>,
    map: Arc<Mapping>,
}

impl Region {
    /// The file behind the region.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn end(&self) -> u64 {
        self.gpa + self.size
    }
}

/// A memfd of `size` bytes.
pub fn memfd(size: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, size)?;
    Ok(fd)
}

/// A piece of one region, for repeated access without a lookup.
#[derive(Clone, Debug)]
pub struct Window {
    map: Arc<Mapping>,
    base: usize,
}

impl Window {
    /// Copies bytes out, from `offset` bytes into the window.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.map.read(self.base + offset, out);
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.map.write(self.base + offset, data);
    }

    /// Reads a ring index with acquire order.
    pub fn load_u16(&self, offset: usize) -> u16 {
        self.map.load_u16(self.base + offset)
    }

    /// Publishes a ring index with release order.
    pub fn store_u16(&self, offset: usize, value: u16) {
        self.map.store_u16(self.base + offset, value);
    }

    /// Reads a u64, relaxed.
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.map.load_u64(self.base + offset)
    }

    /// Writes a u64, relaxed.
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.map.store_u64(self.base + offset, value);
    }
}

/// All regions of a guest.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
    made: u64,
    sparse: bool,
}

impl GuestMemory {
    /// Makes the regions, each in a memfd of its own; `sparse`: with pages that come when they are touched.
    pub fn new(specs: &[RegionSpec], sparse: bool) -> io::Result<Self> {
        let mut memory = GuestMemory { sparse, ..GuestMemory::default() };
        for spec in specs {
            memory.add(*spec)?;
        }
        Ok(memory)
    }

    /// Makes one more region; returns it for the message that tells the back end.
    pub fn add(&mut self, spec: RegionSpec) -> io::Result<Region> {
        // Every second region starts inside its file, as QEMU's memory above 4 GiB does.
        let mmap_offset = if self.made % 2 == 1 { 16 * PAGE } else { 0 };
        let file = memfd(mmap_offset + spec.size)?;
        if !self.sparse {
            fallocate(&file, FallocateFlags::empty(), 0, mmap_offset + spec.size)?;
        }
        let map = Mapping::new(file.as_fd(), mmap_offset, to_usize(spec.size))?;
        let region = Region {
            gpa: spec.gpa,
            size: spec.size,
            user_addr: 0x5500_0000_0000 + self.made * 0x10_0000_0000 + (spec.gpa & 0xffff_ffff),
            mmap_offset,
            file: Arc::new(file),
            map: Arc::new(map),
        };
        self.made += 1;
        self.regions.push(region.clone());
        Ok(region)
    }

    /// Forgets the region at `gpa` and returns it. Our own mapping stays while the result lives.
    pub fn remove(&mut self, gpa: u64) -> Region {
        let found = self.regions.iter().position(|r| r.gpa == gpa);
        self.regions.remove(found.expect("test bug: no region there"))
    }

    /// The regions in the order they were made.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn region(&self, gpa: u64) -> &Region {
        self.regions
            .iter()
            .find(|r| (r.gpa..r.end()).contains(&gpa))
            .unwrap_or_else(|| panic!("test bug: no guest memory at {gpa:#x}"))
    }

    /// The front end's address of a guest address: what SET_VRING_ADDR takes.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        let region = self.region(gpa);
        region.user_addr + (gpa - region.gpa)
    }

    /// A window that begins at `gpa` and ends with its region.
    pub fn window(&self, gpa: u64) -> Window {
        let region = self.region(gpa);
        Window { map: region.map.clone(), base: to_usize(gpa - region.gpa) }
    }

    fn each_part(&self, gpa: u64, len: usize, mut f: impl FnMut(&Mapping, usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let here = gpa + done as u64;
            let region = self.region(here);
            let part = (len - done).min(to_usize(region.end() - here));
            f(&region.map, to_usize(here - region.gpa), done, part);
            done += part;
        }
    }

    /// Copies bytes out; the range may cross from one region into the next.
    pub fn read(&self, gpa: u64, out: &mut [u8]) {
        self.each_part(gpa, out.len(), |map, at, done, part| {
            map.read(at, &mut out[done..done + part]);
        });
    }

    /// Copies `len` bytes out into a new vector.
    pub fn read_vec(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes);
        bytes
    }

    /// Copies bytes in; the range may cross from one region into the next.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.each_part(gpa, data.len(), |map, at, done, part| {
            map.write(at, &data[done..done + part]);
        });
    }

    /// Sets bytes to one value.
    pub fn fill(&self, gpa: u64, len: usize, value: u8) {
        self.each_part(gpa, len, |map, at, _, part| map.fill(at, part, value));
    }

    /// Every byte of every region, for comparing the guest's memory before and after.
    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        self.regions
            .iter()
            .map(|region| {
                let mut bytes = vec![0; to_usize(region.size)];
                region.map.read(0, &mut bytes);
                bytes
            })
            .collect()
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a 64-bit machine")
}
