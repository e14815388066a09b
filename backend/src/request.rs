//! From a descriptor chain to a block request (virtio 1.2, 5.2.6), the only place that knows either.
//!
//! Descriptor layout is free (2.7.4.1: "the device MUST NOT make assumptions about the particular arrangement"): the header
//! is the first 16 readable bytes, the status the last writable byte, wherever the borders between descriptors lie.
//! Descriptors are read once, into memory of our own, and judged there.

use virtio_bindings::bindings::virtio_blk as blk;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::guest::{Desc, Guest, HostSlice, SplitRing};

/// Length of the request header, in bytes.
const HEADER: usize = 16;
/// Most descriptors in one chain, an indirect table's included. More than any driver sends (the ring's size bounds a
/// direct chain, and seg_max an honest one), few enough to bound the work a guest can ask for with one head.
pub const MAX_CHAIN: usize = 1024 + 2;
/// Length of the answer to GET_ID, in bytes (5.2.6).
pub const ID_LEN: usize = 20;
/// Ranges accepted in one discard or write-zeroes request.
pub const MAX_RANGES: usize = 64;

/// A range of a discard or write-zeroes request, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub at: u64,
    /// Number of sectors.
    pub len: u32,
    /// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, or an unknown bit.
    pub flags: u32,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read `data` from sector `at`.
    Read,
    /// Write `data` to sector `at`.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Write the device's identity to `data`.
    GetId,
    /// Discard [`Chain::ranges`].
    Discard,
    /// Zero [`Chain::ranges`].
    WriteZeroes,
    /// Anything else: VIRTIO_BLK_S_UNSUPP.
    Unknown,
}

/// Why a chain is not a request. Where it has a status byte the guest still gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The head, or a link, is not an index of the table.
    #[error("descriptor index {0} is outside its table")]
    Index(u16),
    /// A loop, or more than [`MAX_CHAIN`].
    #[error("the chain has more than {MAX_CHAIN} descriptors, or loops")]
    TooLong,
    /// The address range is not guest memory.
    #[error("descriptor address {addr:#x} with length {len} is not guest memory")]
    Address {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// 2.7.5.3.1: length and flags of an indirect descriptor.
    #[error("an indirect descriptor is malformed (length {len}, flags {flags:#x})")]
    Indirect {
        /// Length in bytes.
        len: u32,
        /// Its flags.
        flags: u16,
    },
    /// 2.7.4.2: writable descriptors come last.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// No complete header.
    #[error("the request header is cut short ({0} readable bytes)")]
    Header(u64),
    /// No writable byte.
    #[error("there is no byte for the status")]
    NoStatus,
}

/// A parsed chain. One lives in each queue and is used over and over.
#[derive(Default)]
pub struct Chain {
    slices: Vec<HostSlice>,
    // slices[..readable] are device-readable, the rest device-writable.
    readable: usize,
    // What is wrong with a descriptor of a chain that is whole otherwise, and the last descriptor.
    wrong: Option<ChainError>,
    last: Desc,
    readable_bytes: u64,
    writable_bytes: u64,
    /// First sector of a read or write.
    pub at: u64,
    /// Data of a read, write or GET_ID.
    pub data: Vec<HostSlice>,
    /// Length of `data` in bytes.
    pub data_len: u64,
    /// Ranges of a discard or write-zeroes request.
    pub ranges: Vec<Range>,
    /// Where the status byte goes.
    pub status: Option<HostSlice>,
    /// Where the guest misdescribed a request that is otherwise a chain: VIRTIO_BLK_S_IOERR.
    pub malformed: bool,
}

impl Chain {
    /// Reads the chain that starts at `head`: what is asked for, and where the status byte goes.
    ///
    /// # Errors
    /// Why it is not a request; `status` is set where a status byte was found all the same.
    pub fn parse(&mut self, ring: &SplitRing, guest: &Guest, head: u16) -> Result<(Kind, HostSlice), ChainError> {
        self.slices.clear();
        self.data.clear();
        self.ranges.clear();
        self.readable = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.wrong = None;
        self.data_len = 0;
        self.status = None;
        self.malformed = false;
        self.walk(ring, guest, head)?;
        if let Some(wrong) = self.wrong {
            self.find_status_of_wrong(guest);
            return Err(wrong);
        }
        self.find_status();
        let status = self.status.ok_or(ChainError::NoStatus)?;
        Ok((self.judge()?, status))
    }

    /// Where the chain that was parsed last begins.
    #[inline]
    pub fn beginning(&self) -> Option<HostSlice> {
        self.slices.first().copied()
    }

    fn walk(&mut self, ring: &SplitRing, guest: &Guest, head: u16) -> Result<(), ChainError> {
        let mut index = head;
        for _ in 0..ring.size() {
            let desc = ring.desc(index).ok_or(ChainError::Index(index))?;
            if u32::from(desc.flags) & VRING_DESC_F_INDIRECT != 0 {
                return self.walk_table(guest, &desc);
            }
            self.add(guest, &desc);
            if u32::from(desc.flags) & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong)
    }

    fn walk_table(&mut self, guest: &Guest, outer: &Desc) -> Result<(), ChainError> {
        let bad = ChainError::Indirect { len: outer.len, flags: outer.flags };
        // 2.7.5.3.1: NEXT and INDIRECT exclude each other; the table is a whole number of descriptors.
        if u32::from(outer.flags) & VRING_DESC_F_NEXT != 0 || outer.len == 0 || !outer.len.is_multiple_of(16) {
            return Err(bad);
        }
        let outside = ChainError::Address { addr: outer.addr, len: outer.len };
        let table = guest.contiguous(outer.addr, u64::from(outer.len));
        let mut index = 0;
        for _ in 0..MAX_CHAIN {
            let desc = match &table {
                Some(table) => Desc::in_table(table, index).ok_or(ChainError::Index(index))?,
                None if u32::from(index) >= outer.len / 16 => return Err(ChainError::Index(index)),
                None => Desc::in_pieces(guest, outer.addr.wrapping_add(16 * u64::from(index))).ok_or(outside)?,
            };
            if u32::from(desc.flags) & VRING_DESC_F_INDIRECT != 0 {
                return Err(ChainError::Indirect { len: desc.len, flags: desc.flags });
            }
            self.add(guest, &desc);
            if u32::from(desc.flags) & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
        Err(ChainError::TooLong)
    }

    #[inline]
    fn add(&mut self, guest: &Guest, desc: &Desc) {
        self.last = *desc;
        let writable = u32::from(desc.flags) & VRING_DESC_F_WRITE != 0;
        if !writable && self.slices.len() > self.readable {
            self.wrong.get_or_insert(ChainError::Order);
        }
        if desc.len == 0 {
            return;
        }
        if !guest.translate(desc.addr, u64::from(desc.len), &mut self.slices) {
            self.wrong.get_or_insert(ChainError::Address { addr: desc.addr, len: desc.len });
        }
        if writable {
            self.writable_bytes += u64::from(desc.len);
        } else {
            self.readable = self.slices.len();
            self.readable_bytes += u64::from(desc.len);
        }
    }

    /// A chain with a wrong descriptor still has its status byte where a driver looks for it: at the very end.
    #[cold]
    fn find_status_of_wrong(&mut self, guest: &Guest) {
        if u32::from(self.last.flags) & VRING_DESC_F_WRITE != 0 && self.last.len > 0 {
            let at = self.last.addr.wrapping_add(u64::from(self.last.len) - 1);
            self.status = guest.contiguous(at, 1);
        }
    }

    fn find_status(&mut self) {
        if self.writable_bytes == 0 {
            return;
        }
        if let Some(last) = self.slices.last_mut() {
            self.status = Some(last.part(last.len() - 1, 1));
            *last = last.part(0, last.len() - 1);
        }
    }

    #[inline]
    fn judge(&mut self) -> Result<Kind, ChainError> {
        let readable = &self.slices[..self.readable];
        let header = match readable.first().and_then(HostSlice::first::<HEADER>) {
            Some(header) => header,
            None => {
                let mut header = [0u8; HEADER];
                if gather(readable, &mut header) < HEADER {
                    return Err(ChainError::Header(self.readable_bytes));
                }
                header
            }
        };
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        self.at = u64::from(word(8)) | (u64::from(word(12)) << 32);
        Ok(match word(0) {
            blk::VIRTIO_BLK_T_IN => {
                self.take_writable();
                Kind::Read
            }
            blk::VIRTIO_BLK_T_OUT => {
                self.take_readable();
                Kind::Write
            }
            blk::VIRTIO_BLK_T_FLUSH => Kind::Flush,
            blk::VIRTIO_BLK_T_GET_ID => {
                self.take_writable();
                Kind::GetId
            }
            blk::VIRTIO_BLK_T_DISCARD => self.take_ranges(Kind::Discard),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => self.take_ranges(Kind::WriteZeroes),
            _ => Kind::Unknown,
        })
    }

    #[inline]
    fn take_writable(&mut self) {
        self.data.extend(self.slices[self.readable..].iter().filter(|s| !s.is_empty()));
        self.data_len = self.writable_bytes - 1;
    }

    #[inline]
    fn take_readable(&mut self) {
        let mut skip = HEADER;
        for slice in &self.slices[..self.readable] {
            let rest = slice.part(skip, slice.len());
            skip -= skip.min(slice.len());
            if !rest.is_empty() {
                self.data.push(rest);
            }
        }
        self.data_len = self.readable_bytes - HEADER as u64;
    }

    fn take_ranges(&mut self, kind: Kind) -> Kind {
        const RANGE: usize = 16;
        self.take_readable();
        let len = self.data_len;
        if len == 0 || !len.is_multiple_of(RANGE as u64) || len > (RANGE * MAX_RANGES) as u64 {
            self.malformed = true;
            return kind;
        }
        let mut bytes = [0u8; RANGE * MAX_RANGES];
        let bytes = &mut bytes[..len as usize];
        gather(&self.data, bytes);
        self.ranges.extend(bytes.chunks_exact(RANGE).map(|r| {
            let word = |at: usize| u32::from_le_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]]);
            Range { at: u64::from(word(0)) | (u64::from(word(4)) << 32), len: word(8), flags: word(12) }
        }));
        self.data.clear();
        kind
    }
}

/// Copies the first bytes of a list of slices out; returns how many there were.
fn gather(slices: &[HostSlice], to: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        if done == to.len() {
            break;
        }
        done += slice.read(&mut to[done..]);
    }
    done
}
