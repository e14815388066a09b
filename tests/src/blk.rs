//! virtio-blk as a driver sees it (virtio 1.2, section 5.2): configuration space, requests, and the many
//! ways in which a request may lie in memory.

use fastrand::Rng;

use crate::memory::GuestMemory;
use crate::ring::Buf;

/// Bytes of a sector, whatever the block size.
pub const SECTOR: u64 = 512;

/// Feature bits.
#[allow(missing_docs)]
pub mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Request types.
#[allow(missing_docs)]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const GET_LIFETIME: u32 = 10;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    pub const SECURE_ERASE: u32 = 14;
}

/// Status: done.
pub const OK: u8 = 0;
/// Status: failed.
pub const IOERR: u8 = 1;
/// Status: no such request here.
pub const UNSUPP: u8 = 2;
/// What the tests put into the status byte before they submit; no device writes it.
pub const UNTOUCHED: u8 = 0xee;
/// What the tests put around and into buffers before they submit.
pub const POISON: u8 = 0xa5;

/// The configuration space, decoded.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    pub size_max: u32,
    pub seg_max: u32,
    pub blk_size: u32,
    pub physical_block_exp: u8,
    pub alignment_offset: u8,
    pub min_io_size: u16,
    pub opt_io_size: u32,
    pub writeback: u8,
    pub num_queues: u16,
    pub max_discard_sectors: u32,
    pub max_discard_seg: u32,
    pub discard_sector_alignment: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_write_zeroes_seg: u32,
    pub write_zeroes_may_unmap: u8,
}

impl Config {
    /// Bytes of the configuration space up to and with the write-zeroes limits.
    pub const BYTES: usize = 60;
    /// Offset of `writeback`, the only field a driver may write.
    pub const WRITEBACK_AT: u32 = 32;

    /// Decodes; fields beyond the end of `bytes` are zero.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut space = [0; 64];
        let have = bytes.len().min(space.len());
        space[..have].copy_from_slice(&bytes[..have]);
        let u16_at = |at: usize| u16::from_le_bytes([space[at], space[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        Config {
            capacity: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            size_max: u32_at(8),
            seg_max: u32_at(12),
            blk_size: u32_at(20),
            physical_block_exp: space[24],
            alignment_offset: space[25],
            min_io_size: u16_at(26),
            opt_io_size: u32_at(28),
            writeback: space[32],
            num_queues: u16_at(34),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: space[56],
        }
    }
}

/// The 16 bytes that every request begins with.
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&kind.to_le_bytes());
    out[8..].copy_from_slice(&sector.to_le_bytes());
    out
}

/// One segment of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First sector.
    pub sector: u64,
    /// Sectors.
    pub sectors: u32,
    /// Bit 0: unmap.
    pub flags: u32,
}

/// The payload of a discard or write-zeroes request.
pub fn segments(segments: &[Segment]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 * segments.len());
    for segment in segments {
        out.extend(segment.sector.to_le_bytes());
        out.extend(segment.sectors.to_le_bytes());
        out.extend(segment.flags.to_le_bytes());
    }
    out
}

/// What travels between header and status.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Nothing.
    None,
    /// Bytes for the device.
    ToDevice(&'a [u8]),
    /// Room for this many bytes from the device.
    FromDevice(usize),
}

/// A request before it is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// One of [`kind`].
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Payload.
    pub data: Data<'a>,
}

/// How a request is cut into descriptors. All of it is free by VIRTIO_F_VERSION_1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Descriptors that the header is cut into, 1 to 16.
    pub header_parts: usize,
    /// The last part of the header and the first data share a descriptor (data to the device only).
    pub merge_header: bool,
    /// The status byte is the last byte of the last data descriptor (data from the device only).
    pub merge_status: bool,
    /// Descriptors that the data is cut into.
    pub pieces: usize,
    /// Cuts at any byte; else at multiples of 512 bytes.
    pub odd_cuts: bool,
    /// Alignment of each piece in memory, bytes.
    pub align: u64,
    /// Bytes beyond that alignment.
    pub skew: u64,
    /// In an indirect table.
    pub indirect: bool,
}

impl Shape {
    /// Three descriptors, page-aligned data: what every driver does.
    pub const PLAIN: Shape = Shape {
        header_parts: 1,
        merge_header: false,
        merge_status: false,
        pieces: 1,
        odd_cuts: false,
        align: 4096,
        skew: 0,
        indirect: false,
    };

    /// Any shape of at most `max_pieces` data descriptors.
    pub fn random(rng: &mut Rng, max_pieces: usize, indirect: bool) -> Self {
        let odd = rng.u8(..4) == 0;
        Shape {
            header_parts: if rng.u8(..4) == 0 { rng.usize(1..=16) } else { 1 },
            merge_header: rng.u8(..4) == 0,
            merge_status: rng.u8(..4) == 0,
            pieces: if rng.bool() { 1 } else { rng.usize(1..=max_pieces) },
            odd_cuts: odd && rng.bool(),
            align: if odd { 1 } else { *rng.choice(&[512, 4096]).unwrap_or(&512) },
            skew: if odd { rng.u64(0..64) } else { 0 },
            indirect,
        }
    }
}

/// A piece of guest memory for one request at a time.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Room at the start of an arena for an indirect table.
const TABLE_BYTES: u64 = 8192;
/// Untouchable bytes on either side of what a request uses.
const MARGIN: u64 = 64;

/// A request laid out in guest memory.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The chain.
    pub bufs: Vec<Buf>,
    /// Where the indirect table goes, if there is to be one.
    pub table: Option<u64>,
    /// Data buffers in order: guest address and bytes.
    pub data: Vec<(u64, usize)>,
    /// Guest address of the status byte.
    pub status: u64,
    from: u64,
    image: Vec<u8>,
}

impl Prepared {
    /// Lays `request` out in `arena`, which has to have room for it.
    pub fn new(memory: &GuestMemory, arena: Arena, request: &Request<'_>, shape: &Shape, rng: &mut Rng) -> Self {
        let from = arena.gpa + TABLE_BYTES;
        let mut layout = Layout {
            at: from + MARGIN,
            shape: *shape,
            out: Prepared {
                bufs: Vec::with_capacity(shape.pieces + 3),
                table: shape.indirect.then_some(arena.gpa),
                data: Vec::with_capacity(shape.pieces),
                status: 0,
                from,
                image: Vec::new(),
            },
        };
        layout.header(matches!(request.data, Data::ToDevice(_)));
        match request.data {
            Data::None => {}
            Data::ToDevice(bytes) => layout.data(bytes.len(), false, rng),
            Data::FromDevice(len) => layout.data(len, true, rng),
        }
        layout.status(matches!(request.data, Data::FromDevice(_)));
        let end = layout.at + MARGIN;
        assert!(end <= arena.gpa + arena.len, "test bug: arena too small");
        let mut prepared = layout.out;
        prepared.image = vec![POISON; usize::try_from(end - from).expect("64-bit machine")];
        prepared.compose(request);
        memory.write(from, &prepared.image);
        prepared
    }

    fn compose(&mut self, request: &Request<'_>) {
        let mut stream = header(request.kind, request.sector).to_vec();
        if let Data::ToDevice(bytes) = request.data {
            stream.extend_from_slice(bytes);
        }
        let mut stream = stream.as_slice();
        for buf in self.bufs.iter().filter(|buf| !buf.device_writes) {
            let (now, later) = stream.split_at(buf.len as usize);
            let at = (buf.gpa - self.from) as usize;
            self.image[at..at + now.len()].copy_from_slice(now);
            stream = later;
        }
        let status = (self.status - self.from) as usize;
        self.image[status] = UNTOUCHED;
    }

    /// The status byte as it is now.
    pub fn status(&self, memory: &GuestMemory) -> u8 {
        let mut byte = [0];
        memory.read(self.status, &mut byte);
        byte[0]
    }

    /// The bytes of the data buffers as they are now.
    pub fn read_data(&self, memory: &GuestMemory) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.iter().map(|(_, len)| len).sum());
        for (gpa, len) in &self.data {
            let old = out.len();
            out.resize(old + len, 0);
            memory.read(*gpa, &mut out[old..]);
        }
        out
    }

    /// Bytes that the device may write.
    pub fn writable(&self) -> u64 {
        let writable = self.bufs.iter().filter(|buf| buf.device_writes);
        writable.map(|buf| u64::from(buf.len)).sum()
    }

    /// Guest address of the first byte around the request that changed though the device may not write it.
    pub fn trespass(&self, memory: &GuestMemory) -> Option<u64> {
        let mut now = memory.read_vec(self.from, self.image.len());
        for buf in self.bufs.iter().filter(|buf| buf.device_writes) {
            let at = (buf.gpa - self.from) as usize;
            let range = at..at + buf.len as usize;
            now[range.clone()].copy_from_slice(&self.image[range]);
        }
        let differs = |(now, then): (&u8, &u8)| now != then;
        if now == self.image {
            return None;
        }
        let at = now.iter().zip(&self.image).position(differs)?;
        Some(self.from + at as u64)
    }
}

struct Layout {
    at: u64,
    shape: Shape,
    out: Prepared,
}

impl Layout {
    fn push(&mut self, len: u64, device_writes: bool) {
        self.out.bufs.push(Buf {
            gpa: self.at,
            len: u32::try_from(len).expect("test bug: huge buffer"),
            device_writes,
        });
        self.at += len;
    }

    fn header(&mut self, mergeable: bool) {
        let parts = self.shape.header_parts.clamp(1, 16) as u64;
        for _ in 1..parts {
            self.push(1, false);
            self.at += 3;
        }
        if mergeable && self.shape.merge_header {
            // The data continues right behind, so the data has to be aligned, not the header.
            self.align();
            self.at += self.shape.align - 16 % self.shape.align;
        }
        self.push(16 - (parts - 1), false);
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(self.shape.align) + self.shape.skew;
    }

    fn data(&mut self, len: usize, device_writes: bool, rng: &mut Rng) {
        let unit = if self.shape.odd_cuts { 1 } else { SECTOR as usize };
        let mut left = len;
        for piece in (0..self.shape.pieces).rev() {
            if left == 0 && len != 0 {
                break;
            }
            let units = left / unit;
            let now = if piece == 0 || units <= 1 {
                left
            } else {
                rng.usize(1..=units.div_ceil(piece + 1) * 2).min(units) * unit
            };
            let first = self.out.data.is_empty();
            if first && !device_writes && self.shape.merge_header {
                let header = self.out.bufs.last_mut().expect("the header was laid out");
                header.len += now as u32;
            } else {
                self.at += MARGIN;
                self.align();
                self.push(now as u64, device_writes);
                self.at -= now as u64;
            }
            self.out.data.push((self.at, now));
            self.at += now as u64;
            left -= now;
        }
    }

    fn status(&mut self, mergeable: bool) {
        let last = self.out.bufs.last_mut().expect("the header was laid out");
        if mergeable && self.shape.merge_status && last.device_writes {
            last.len += 1;
            self.out.status = self.at;
            self.at += 1;
        } else {
            self.at += MARGIN;
            self.out.status = self.at;
            self.push(1, true);
        }
    }
}
