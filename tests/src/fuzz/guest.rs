//! Guest memory as a hostile driver may lay it out, made of any bytes, and a model of what is in it.
//!
//! An input is a header of [`HEADER`] bytes and records of [`RECORD`] bytes, each of which puts something into memory: a
//! descriptor, an entry of the available ring, a request header, a discard range. Addresses are drawn towards memory and
//! its borders, so that a fuzzer does not spend its time on finding memory at all; wild ones remain possible.
//!
//! The model reads by guest address through vm-memory, byte by byte, and follows virtio 1.2, 2.7 and 5.2.6.

use std::sync::Arc;

use vhost_user_dm::guest::{Guest, SplitRing};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const HEADER: usize = 12;
const RECORD: usize = 10;
/// Sets of memory regions: guest address and length in bytes.
const LAYOUTS: [&[(u64, usize)]; 3] = [
    &[(0, 0x3000)],
    &[(0, 0x3000), (0x3000, 0x1000), (0x10000, 0x800)],
    &[
        (0x1000, 0x3000),
        (0x4000, 0x100),
        (0x4100, 0x10),
        (0x4110, 0x6f0),
        (0x8000, 0x1000),
        (0xffff_ffff_ffff_f000, 0xfff),
    ],
];
/// Where the parts of the ring and a place for data are in the first region, unless the input says otherwise.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x1800;
const DATA: u64 = 0x2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A range of bytes: guest address and length. Never empty.
pub(super) type Bytes64 = (u64, u64);

/// Where a ring is said to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingAt {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// A guest that is up to no good.
pub(super) struct Hostile {
    pub memory: Arc<GuestMemoryMmap<()>>,
    /// Guest address, length and host address of each region, ascending.
    pub regions: Vec<(u64, u64, u64)>,
    pub at: RingAt,
    /// Available index to start at.
    pub base: u16,
    pub event_idx: bool,
    /// Bits for whoever runs the input.
    pub bits: u8,
    /// A number for whoever runs the input.
    pub seed: u64,
}

/// What a chain is by the specification.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// No end, no table, or no memory where a table should be.
    NoChain,
    /// A chain with a wrong descriptor; where its status byte is, if it has one.
    Wrong(Option<u64>),
    NoStatus,
    /// Where the status byte is.
    NoHeader(u64),
    Request(Asked),
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub kind: u32,
    pub sector: u64,
    /// Readable bytes behind the header.
    pub readable: Vec<Bytes64>,
    /// Writable bytes in front of the status.
    pub writable: Vec<Bytes64>,
    pub status: u64,
}

#[derive(Clone, Copy, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Where the next records go.
struct Cursor {
    slot: u16,
    chain: u16,
    offered: u16,
    in_table: [u16; 4],
}

impl Hostile {
    /// Lays memory out as `data` says; `None` for an input without a header.
    pub fn new(data: &[u8]) -> Option<Hostile> {
        let (header, records) = data.split_first_chunk::<HEADER>()?;
        let layout = LAYOUTS[usize::from(header[0]) % LAYOUTS.len()];
        let ranges: Vec<_> = layout.iter().map(|&(gpa, len)| (GuestAddress(gpa), len)).collect();
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("valid ranges"));
        let regions = memory.iter().map(|r| (r.start_addr().0, r.len(), r.as_ptr() as u64)).collect();
        let start = layout[0].0;
        let last = u16::from_le_bytes([header[10], header[11]]);
        let mut guest = Hostile {
            memory,
            regions,
            at: RingAt { size: 1 << (header[1] % 8), desc: start, avail: start + AVAIL, used: start + USED },
            base: u16::from_le_bytes([header[2], header[3]]),
            event_idx: header[4] & 1 != 0,
            bits: header[4],
            seed: u64::from(last),
        };
        let elsewhere = guest.address(u32::from_le_bytes([header[6], header[7], header[8], header[9]]));
        match header[5] {
            0xf0..=0xf3 => guest.at.desc = elsewhere,
            0xf4..=0xf7 => guest.at.avail = elsewhere,
            0xf8..=0xfb => guest.at.used = elsewhere,
            0xfc..=0xff => guest.at.size = last,
            _ => {}
        }
        guest.put(guest.at.used.wrapping_add(2), &guest.base.to_le_bytes());
        let mut cursor = Cursor { slot: 0, chain: 0, offered: 0, in_table: [0; 4] };
        for record in records.as_chunks::<RECORD>().0 {
            guest.record(record, &mut cursor);
        }
        let idx = if header[4] & 4 != 0 { last } else { guest.base.wrapping_add(cursor.offered) };
        guest.put(guest.at.avail.wrapping_add(2), &idx.to_le_bytes());
        if header[4] & 8 != 0 {
            guest.put(guest.at.avail, &1u16.to_le_bytes());
        }
        let event = guest.base.wrapping_add(last);
        guest.put(guest.at.avail.wrapping_add(4 + 2 * u64::from(guest.at.size)), &event.to_le_bytes());
        Some(guest)
    }

    /// The ring, if it is one. Whether it is must be what the specification says.
    pub fn ring(&self) -> Option<(Arc<Guest>, SplitRing)> {
        let RingAt { size, desc, avail, used } = self.at;
        let guest = Arc::new(Guest::new(Arc::clone(&self.memory)).expect("regions without files"));
        let n = u64::from(size);
        let good = |gpa: u64, len: u64, align: u64| {
            let inside = self.host(gpa).filter(|_| self.within_one(gpa, len));
            inside.is_some_and(|host| gpa.is_multiple_of(align) && host.is_multiple_of(align))
        };
        let right =
            size.is_power_of_two() && good(desc, 16 * n, 16) && good(avail, 6 + 2 * n, 2) && good(used, 6 + 8 * n, 4);
        let ring = SplitRing::new(&guest, size, desc, avail, used);
        assert_eq!(ring.is_ok(), right, "{:?} {:?}", self.at, ring.err());
        Some((guest, ring.ok()?))
    }

    /// An address that is likely to be in memory, or at its border.
    fn address(&self, raw: u32) -> u64 {
        let low = u64::from(raw & 0x0fff_ffff);
        match raw >> 28 {
            region @ 0..=11 => {
                let (gpa, len, _) = self.regions[region as usize % self.regions.len()];
                // From 16 bytes before the region to 16 bytes behind it.
                gpa.wrapping_add(low % (len + 32)).wrapping_sub(16)
            }
            12 => self.table((low & 3) as usize).wrapping_add(16 * (low >> 2 & 0xff)),
            13 => self.regions[0].0 + DATA + (low & 0x7ff),
            _ => i64::from(raw as i32) as u64,
        }
    }

    /// Where an indirect table is; one of them runs over a border of regions, one is not aligned.
    fn table(&self, n: usize) -> u64 {
        let first = self.regions[0].0;
        match n {
            0 => first + DATA + 0x800,
            1 => self.regions[self.regions.len() - 1].0 + 0x100,
            2 => self.regions.get(1).map_or(first + DATA + 0x400, |second| second.0 - 24),
            _ => first + DATA + 0xc08,
        }
    }

    fn record(&self, record: &[u8; RECORD], cursor: &mut Cursor) {
        let [op, index, flags, next, len0, len1, a0, a1, a2, a3] = *record;
        let len = u16::from_le_bytes([len0, len1]);
        let address = self.address(u32::from_le_bytes([a0, a1, a2, a3]));
        let absolute = op & 0x80 != 0;
        match op & 7 {
            0..=3 => {
                let slot = if absolute { u16::from(index) } else { cursor.slot };
                cursor.slot = slot.wrapping_add(1);
                let at = self.at.desc.wrapping_add(16 * u64::from(slot % self.at.size.max(1)));
                self.descriptor(at, slot, flags, next, len, address);
            }
            4 => {
                let table = usize::from(op >> 4 & 3);
                let slot = if absolute { u16::from(index) } else { cursor.in_table[table] };
                cursor.in_table[table] = slot.wrapping_add(1);
                let at = self.table(table).wrapping_add(16 * u64::from(slot));
                self.descriptor(at, slot, flags, next, len, address);
            }
            5 => {
                let mut header = [0; 16];
                header[0] = index;
                header[8..10].copy_from_slice(&len.to_le_bytes());
                self.put(address, &header);
            }
            6 => {
                let mut range = [0; 16];
                (range[0], range[12]) = (index, flags);
                range[8..10].copy_from_slice(&len.to_le_bytes());
                self.put(address, &range);
            }
            _ => {
                let head = if absolute { len } else { cursor.chain };
                let slot = u64::from(self.base.wrapping_add(cursor.offered) % self.at.size.max(1));
                self.put(self.at.avail.wrapping_add(4 + 2 * slot), &head.to_le_bytes());
                cursor.offered = cursor.offered.wrapping_add(1);
                cursor.chain = cursor.slot;
            }
        }
    }

    fn descriptor(&self, at: u64, slot: u16, flags: u8, next: u8, len: u16, addr: u64) {
        let flags = if flags == 0xff { 0xffff } else { u16::from(flags & 7) };
        let len = match len {
            0xff00.. => 0xffff_0000 | u32::from(len),
            // The length of a table counts its descriptors.
            _ if flags & INDIRECT != 0 && flags & WRITE == 0 => 16 * u32::from(len),
            _ => u32::from(len),
        };
        let next = u16::from(next).checked_sub(1).unwrap_or(slot.wrapping_add(1));
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&addr.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(at, &raw);
    }

    /// Writes what fits into memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    /// `N` bytes of memory, if they are.
    pub fn get<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).ok().map(|()| bytes)
    }

    /// A 16-bit number of memory.
    pub fn half(&self, at: u64) -> u16 {
        self.get(at).map_or(0, u16::from_le_bytes)
    }

    fn within_one(&self, gpa: u64, len: u64) -> bool {
        self.regions.iter().any(|&(start, size, _)| {
            gpa >= start && u128::from(gpa) + u128::from(len) <= u128::from(start) + u128::from(size)
        })
    }

    /// The host's address of a guest address.
    pub fn host(&self, gpa: u64) -> Option<u64> {
        let region =
            self.regions.iter().find(|&&(start, size, _)| gpa.checked_sub(start).is_some_and(|off| off < size));
        region.map(|&(start, _, host)| host + (gpa - start))
    }

    /// A range of guest memory as ranges of the host's; `None` where a byte of it is not memory.
    pub fn on_host(&self, (mut gpa, mut len): Bytes64) -> Option<Vec<Bytes64>> {
        let mut found = Vec::new();
        while len > 0 {
            let host = self.host(gpa)?;
            let &(start, size, _) = self.regions.iter().rfind(|region| region.0 <= gpa)?;
            let n = len.min(size - (gpa - start));
            found.push((host, n));
            (gpa, len) = (gpa.wrapping_add(n), len - n);
        }
        Some(found)
    }

    fn desc(&self, at: u64) -> Option<Desc> {
        let raw = self.get::<16>(at)?;
        let (addr, rest) = raw.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (flags, next) = rest.split_first_chunk()?;
        Some(Desc {
            addr: u64::from_le_bytes(*addr),
            len: u32::from_le_bytes(*len),
            flags: u16::from_le_bytes(*flags),
            next: u16::from_le_bytes(next.try_into().ok()?),
        })
    }

    /// The descriptors of a chain, if it has an end.
    fn descriptors(&self, head: u16) -> Option<Vec<Desc>> {
        let (mut table, mut entries, mut most) = (self.at.desc, u64::from(self.at.size), usize::from(self.at.size));
        let (mut index, mut found, mut inner) = (head, Vec::new(), false);
        while found.len() < most {
            if u64::from(index) >= entries {
                return None;
            }
            let desc = self.desc(table.wrapping_add(16 * u64::from(index)))?;
            if desc.flags & INDIRECT != 0 {
                // 2.7.5.3.1
                if inner || desc.flags & NEXT != 0 || desc.len == 0 || !desc.len.is_multiple_of(16) {
                    return None;
                }
                (table, entries, index, inner) = (desc.addr, u64::from(desc.len / 16), 0, true);
                most = found.len() + vhost_user_dm::request::MAX_CHAIN;
                continue;
            }
            found.push(desc);
            if desc.flags & NEXT == 0 {
                return Some(found);
            }
            index = desc.next;
        }
        None
    }

    /// What the chain that begins at `head` is.
    pub fn expect(&self, head: u16) -> Expected {
        let Some(descs) = self.descriptors(head) else { return Expected::NoChain };
        let (mut readable, mut writable, mut wrong) = (Vec::new(), Vec::new(), false);
        for desc in &descs {
            let bytes = (desc.addr, u64::from(desc.len));
            wrong |= self.on_host(bytes).is_none();
            let to = if desc.flags & WRITE != 0 { &mut writable } else { &mut readable };
            if desc.len > 0 {
                to.push(bytes);
            }
            wrong |= desc.flags & WRITE == 0 && !writable.is_empty();
        }
        if wrong {
            let last = descs.last().filter(|desc| desc.flags & WRITE != 0 && desc.len > 0);
            let status = last.map(|desc| desc.addr.wrapping_add(u64::from(desc.len) - 1));
            return Expected::Wrong(status.filter(|&at| self.host(at).is_some()));
        }
        let Some((gpa, len)) = writable.pop() else { return Expected::NoStatus };
        let status = gpa + (len - 1);
        writable.extend((len > 1).then_some((gpa, len - 1)));
        let mut header = Vec::new();
        let mut rest = Vec::new();
        for (gpa, len) in readable {
            let head = len.min(16 - header.len() as u64);
            header.extend((0..head).filter_map(|i| self.get::<1>(gpa + i)).flatten());
            rest.extend((len > head).then_some((gpa + head, len - head)));
        }
        let Some(header) = header.first_chunk::<16>() else { return Expected::NoHeader(status) };
        let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *header;
        let [.., s0, s1, s2, s3, s4, s5, s6, s7] = *header;
        Expected::Request(Asked {
            kind: u32::from_le_bytes(kind),
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            readable: rest,
            writable,
            status,
        })
    }

    /// All of memory, region by region.
    pub fn snapshot(&self) -> Vec<Vec<u8>> {
        let region = |&(gpa, len, _): &(u64, u64, u64)| {
            let mut bytes = vec![0; len as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(gpa)).expect("a whole region");
            bytes
        };
        self.regions.iter().map(region).collect()
    }

    /// Panics if memory differs from `before` anywhere but in the used ring and where `allowed` says.
    pub fn assert_untouched(&self, before: &[Vec<u8>], allowed: &Marks) {
        let used = self.used_ring();
        for (region, (now, then)) in self.snapshot().iter().zip(before).enumerate() {
            if now == then {
                continue;
            }
            for (i, _) in now.iter().zip(then).enumerate().filter(|(_, (now, then))| now != then) {
                let gpa = self.regions[region].0 + i as u64;
                let may = allowed.0[region][i] || gpa.wrapping_sub(used.0) < used.1;
                assert!(may, "guest memory at {gpa:#x} was written");
            }
        }
    }

    /// Where the used ring is.
    pub fn used_ring(&self) -> Bytes64 {
        (self.at.used, 6 + 8 * u64::from(self.at.size))
    }

    /// Marks for every byte of memory, none set.
    pub fn marks(&self) -> Marks {
        Marks(self.regions.iter().map(|&(_, len, _)| vec![false; len as usize]).collect())
    }

    /// Region and offset of a host address, if it is guest memory.
    pub fn region_of(&self, host: u64) -> Option<(usize, usize)> {
        let inside = |&(_, len, start): &(u64, u64, u64)| host.checked_sub(start).is_some_and(|off| off < len);
        let index = self.regions.iter().position(inside)?;
        Some((index, (host - self.regions[index].2) as usize))
    }
}

/// A mark for every byte of guest memory, region by region.
pub(super) struct Marks(Vec<Vec<bool>>);

impl Marks {
    /// Marks a range of guest memory.
    pub fn set(&mut self, hostile: &Hostile, bytes: Bytes64) {
        for (host, len) in hostile.on_host(bytes).into_iter().flatten() {
            let (region, at) = hostile.region_of(host).expect("guest memory");
            self.0[region][at..at + len as usize].fill(true);
        }
    }

    /// Whether a byte at a guest address is marked.
    pub fn has(&self, hostile: &Hostile, gpa: u64) -> bool {
        let place = hostile.host(gpa).and_then(|host| hostile.region_of(host));
        place.is_some_and(|(region, at)| self.0[region][at])
    }

    /// Whether all bytes from an offset of a region on are marked.
    pub fn all(&self, (region, at): (usize, usize), len: usize) -> bool {
        self.0[region].get(at..at + len).is_some_and(|marks| marks.iter().all(|&mark| mark))
    }
}
