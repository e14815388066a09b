//! Descriptor chains that no driver should make.

use dm_tests::blk::{OK, UNTOUCHED, feature, header, kind};
use dm_tests::ring::{Desc, F_INDIRECT, F_NEXT, F_WRITE};
use dm_tests::vmm::{Setup, Vmm};

use crate::{PATIENCE, SECTORS, Victim};

const RING: u16 = 128;
const NOWHERE: u64 = 0xdead_0000_0000;

/// Guest addresses that the chains use.
#[derive(Clone, Copy)]
struct At {
    header: u64,
    data: u64,
    status: u64,
    table: u64,
    /// The last byte of the second data region, with nothing behind it.
    edge: u64,
}

/// What has to become of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// Given back, and whoever reads the status finds no success.
    Refused,
    /// Given back with the status of a failure.
    Failed,
    /// Given back: the specification leaves open how.
    Back,
}
use Expect::{Back, Failed, Refused};

struct Case {
    name: &'static str,
    head: [u8; 16],
    direct: Vec<Desc>,
    table: Vec<Desc>,
    expect: Expect,
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// Links descriptors in order; `F_WRITE` where `true`.
fn chain(parts: &[(u64, u32, bool)]) -> Vec<Desc> {
    let last = parts.len() - 1;
    let link = |(i, &(addr, len, write)): (usize, &(u64, u32, bool))| {
        let write = if write { F_WRITE } else { 0 };
        let next = if i < last { F_NEXT } else { 0 };
        desc(addr, len, write | next, i as u16 + 1)
    };
    parts.iter().enumerate().map(link).collect()
}

fn direct(name: &'static str, head: [u8; 16], direct: Vec<Desc>, expect: Expect) -> Case {
    Case { name, head, direct, table: Vec::new(), expect }
}

fn indirect(name: &'static str, one: Desc, table: Vec<Desc>, expect: Expect) -> Case {
    Case { name, head: header(kind::IN, 0), direct: vec![one], table, expect }
}

fn shapes(at: At) -> Vec<Case> {
    let read = header(kind::IN, 0);
    let write = header(kind::OUT, 0);
    let hdr = (at.header, 16, false);
    let data = (at.data, 512, true);
    let status = (at.status, 1, true);
    let good = chain(&[hdr, data, status]);
    let mut to_itself = good.clone();
    to_itself[0].next = 0;
    let mut two = good.clone();
    two[1].next = 0;
    let mut three = good.clone();
    three[2] = desc(at.status, 1, F_WRITE | F_NEXT, 0);
    let mut far = good.clone();
    far[0].next = RING;
    let mut farther = good.clone();
    farther[1].next = u16::MAX;
    let mut all_flags = good.clone();
    all_flags[1].flags = 0xffff;
    let long: Vec<_> = [hdr].into_iter().chain([data; RING as usize - 2]).chain([status]).collect();
    vec![
        direct("loop to itself", read, to_itself, Refused),
        direct("loop of two", read, two, Refused),
        direct("loop of three", read, three, Refused),
        direct("next at the end of the table", read, far, Refused),
        direct("next far past the table", read, farther, Refused),
        direct("every flag", read, all_flags, Refused),
        direct("one empty descriptor", read, vec![desc(0, 0, 0, 0)], Refused),
        direct("one empty writable descriptor", read, vec![desc(at.data, 0, F_WRITE, 0)], Refused),
        direct("three empty descriptors", read, chain(&[(0, 0, false), (0, 0, true), (0, 0, true)]), Refused),
        direct("empty descriptor in the data", read, chain(&[hdr, (at.data, 0, true), data, status]), Back),
        direct("write-only", read, chain(&[data, status]), Refused),
        direct("write-only header", read, chain(&[(at.header, 16, true), data, status]), Refused),
        direct("read-only, in", read, chain(&[hdr]), Refused),
        direct("read-only, out", write, chain(&[hdr, (at.data, 512, false)]), Refused),
        direct("header of 15 bytes", read, chain(&[(at.header, 15, false), status]), Refused),
        direct("header of 15 bytes and data", read, chain(&[(at.header, 15, false), data, status]), Refused),
        direct("header of no bytes", read, chain(&[(at.header, 0, false), data, status]), Refused),
        direct("readable behind writable", read, chain(&[hdr, data, (at.data, 512, false), status]), Refused),
        direct("header last", read, chain(&[data, status, hdr]), Refused),
        direct("as long as the ring", read, chain(&long), Back),
        direct("in without data", read, chain(&[hdr, status]), Back),
        direct("out without data", write, chain(&[hdr, status]), Back),
        direct("data the wrong way, in", read, chain(&[hdr, (at.data, 512, false), status]), Back),
        direct("data the wrong way, out", write, chain(&[hdr, data, status]), Back),
    ]
}

fn addresses(at: At) -> Vec<Case> {
    let read = header(kind::IN, 0);
    let write = header(kind::OUT, 0);
    let hdr = (at.header, 16, false);
    let status = (at.status, 1, true);
    let bad = [
        ("data nowhere", NOWHERE, 512),
        ("data at the end of the address space", u64::MAX - 511, 512),
        ("data that wraps", u64::MAX - 10, 512),
        ("data over the edge of a region", at.edge - 255, 512),
        ("data of 4 GiB", at.data, !511),
    ];
    let mut cases = Vec::new();
    for (name, addr, len) in bad {
        cases.push(direct(name, read, chain(&[hdr, (addr, len, true), status]), Failed));
        cases.push(direct(name, write, chain(&[hdr, (addr, len, false), status]), Failed));
    }
    for (name, len) in [("511 bytes", 511), ("513 bytes", 513), ("1 byte", 1)] {
        cases.push(direct(name, read, chain(&[hdr, (at.data, len, true), status]), Failed));
        cases.push(direct(name, write, chain(&[hdr, (at.data, len, false), status]), Failed));
    }
    for sector in [SECTORS, u64::MAX, u64::MAX / 512, 1 << 55] {
        let past = chain(&[hdr, (at.data, 512, true), status]);
        cases.push(direct("past the end", header(kind::IN, sector), past, Failed));
        let past = chain(&[hdr, (at.data, 512, false), status]);
        cases.push(direct("past the end", header(kind::OUT, sector), past, Failed));
    }
    let across = chain(&[hdr, (at.data, 1024, false), status]);
    cases.push(direct("across the end", header(kind::OUT, SECTORS - 1), across, Failed));
    cases.push(direct("header nowhere", read, chain(&[(NOWHERE, 16, false), (at.data, 512, true), status]), Failed));
    let unseen = chain(&[hdr, (at.data, 512, true), (NOWHERE, 1, true)]);
    cases.push(direct("status nowhere", read, unseen, Refused));
    let over_itself = chain(&[hdr, (at.header, 512, true), status]);
    cases.push(direct("data over the header", read, over_itself, Back));
    cases
}

fn tables(at: At) -> Vec<Case> {
    let good = chain(&[(at.header, 16, false), (at.data, 512, true), (at.status, 1, true)]);
    let whole = desc(at.table, 48, F_INDIRECT, 0);
    let with = |change: &dyn Fn(&mut Vec<Desc>)| {
        let mut table = good.clone();
        change(&mut table);
        table
    };
    let sized = |len| desc(at.table, len, F_INDIRECT, 0);
    vec![
        indirect("good table, for comparison", whole, good.clone(), Back),
        indirect("nested", whole, with(&|t| t[1].flags = F_INDIRECT | F_NEXT), Refused),
        indirect("nested in itself", whole, with(&|t| t[0] = desc(at.table, 48, F_INDIRECT, 0)), Refused),
        indirect("loop in the table", whole, with(&|t| t[1].next = 0), Refused),
        indirect("loop of one in the table", whole, with(&|t| t[2] = desc(at.status, 1, F_WRITE | F_NEXT, 2)), Refused),
        indirect("next past the table", whole, with(&|t| t[0].next = 3), Refused),
        indirect("next far past the table", whole, with(&|t| t[0].next = u16::MAX), Refused),
        indirect("table with a next descriptor", desc(at.table, 48, F_INDIRECT | F_NEXT, 1), good.clone(), Back),
        indirect("table of 0 bytes", sized(0), good.clone(), Refused),
        indirect("table of 8 bytes", sized(8), good.clone(), Refused),
        indirect("table of 47 bytes", sized(47), good.clone(), Refused),
        indirect("table of 49 bytes", sized(49), good.clone(), Back),
        indirect("table of 1 MiB", sized(1 << 20), good.clone(), Back),
        indirect("table of 4 GiB", sized(!15), good.clone(), Back),
        indirect("table nowhere", desc(NOWHERE, 48, F_INDIRECT, 0), good.clone(), Refused),
        indirect("table over the edge of a region", desc(at.edge - 15, 48, F_INDIRECT, 0), good.clone(), Refused),
        indirect("table that wraps", desc(u64::MAX - 15, 48, F_INDIRECT, 0), good.clone(), Refused),
        indirect("misaligned table", desc(at.table + 1, 48, F_INDIRECT, 0), good.clone(), Refused),
        indirect("table marked writable", desc(at.table, 48, F_INDIRECT | F_WRITE, 0), good.clone(), Back),
        indirect("table of zeros", whole, vec![Desc::default(); 3], Refused),
        indirect("table of a thousand buffers", sized(1002 * 16), thousand(at), Back),
        indirect("table of a thousand links to the next", sized(1000 * 16), endless(at), Refused),
    ]
}

/// Header, a thousand sectors, status: more than the ring has descriptors.
fn thousand(at: At) -> Vec<Desc> {
    let mut parts = vec![(at.header, 16, false)];
    parts.extend((0..1000).map(|_| (at.data, 512, true)));
    parts.push((at.status, 1, true));
    chain(&parts)
}

fn endless(at: At) -> Vec<Desc> {
    (0..1000).map(|i| desc(at.data, 512, F_NEXT | F_WRITE, (i + 1) % 1000)).collect()
}

/// Submits one case on ring 0 and judges what becomes of it: the status, or what is wrong with it.
fn attack(vmm: &mut Vmm, at: At, case: &Case) -> Result<u8, String> {
    let name = case.name;
    vmm.memory.write(at.header, &case.head);
    vmm.memory.write(at.status, &[UNTOUCHED]);
    for (i, one) in case.table.iter().enumerate() {
        vmm.memory.write(at.table + 16 * i as u64, &one.bytes());
    }
    let ring = &mut vmm.queues[0].ring;
    for (i, one) in case.direct.iter().enumerate() {
        ring.write_desc(i as u16, *one);
    }
    ring.push_head(0);
    ring.publish_and_kick();
    assert!(ring.wait_used(PATIENCE), "{name}: never came back");
    let used = ring.pop_fixed().expect("a used entry");
    assert_eq!(used.head, 0, "{name}: another head came back");
    let status = vmm.memory.read_vec(at.status, 1)[0];
    match case.expect {
        Refused if status == OK => Err(format!("{name}: success")),
        Failed if status == OK || status == UNTOUCHED => Err(format!("{name}: status {status:#x}")),
        Back | Refused | Failed => Ok(status),
    }
}

fn places(vmm: &Vmm) -> At {
    let arena = vmm.queues[0].arenas[1].gpa;
    let second = vmm.memory.regions()[2].clone();
    At {
        header: arena,
        data: arena + 4096,
        status: arena + 64,
        table: arena + 16384,
        edge: second.gpa + second.size - 1,
    }
}

fn attack_all(cases: fn(At) -> Vec<Case>, features: u64) {
    let mut victim = Victim::new(&[]);
    let setup = Setup { queue_size: RING, slots: 4, slot_bytes: 2 << 20, ..Setup::default() };
    let mut vmm = victim.vmm(&setup.clone().without(!features));
    let at = places(&vmm);
    let mut wrong = Vec::new();
    for case in cases(at) {
        wrong.extend(attack(&mut vmm, at, &case).err());
        victim.served.daemon.assert_running();
        // The ring goes on: the next good chain is served on it.
        let good = direct(
            "a good chain",
            header(kind::IN, 0),
            chain(&[(at.header, 16, false), (at.data, 512, true), (at.status, 1, true)]),
            Back,
        );
        let status = attack(&mut vmm, at, &good);
        assert_eq!(status, Ok(OK), "a good chain after {}", case.name);
    }
    drop(vmm);
    victim.assert_well("bad chains");
    let disk = std::fs::read(&victim.component).expect("read");
    assert!(disk[..512].iter().all(|&b| b == 0x11), "a refused write wrote");
    assert!(wrong.is_empty(), "{wrong:#?}");
    victim.stop();
}

#[test]
fn chains_of_wrong_shape_cost_the_guest_its_request() {
    attack_all(shapes, !0);
    attack_all(shapes, !feature::EVENT_IDX);
}

#[test]
fn chains_that_lead_out_of_memory_or_disk_fail() {
    attack_all(addresses, !0);
}

#[test]
fn wrong_indirect_tables_cost_the_guest_its_request() {
    attack_all(tables, !0);
}

#[test]
fn a_hundred_thousand_bad_requests_leave_a_short_log() {
    let mut victim = Victim::new(&[]);
    let setup = Setup { queue_size: RING, slots: 4, slot_bytes: 2 << 20, ..Setup::default() };
    let mut vmm = victim.vmm(&setup);
    let at = places(&vmm);
    vmm.memory.write(at.header, &header(kind::IN, u64::MAX));
    let ring = &mut vmm.queues[0].ring;
    ring.write_desc(0, desc(0, 0, 0, 0));
    ring.write_desc(1, desc(at.header, 16, F_NEXT, 1));
    ring.write_desc(2, desc(NOWHERE, 512, F_NEXT | F_WRITE, 3));
    ring.write_desc(3, desc(at.status, 1, F_WRITE, 0));
    let past = chain(&[(at.header, 16, false), (at.data, 512, true), (at.status, 1, true)]);
    for (i, mut one) in past.into_iter().enumerate() {
        one.next += 4;
        ring.write_desc(4 + i as u16, one);
    }
    ring.write_desc(7, desc(at.table, 17, F_INDIRECT, 0));
    let mut back = 0u32;
    let mut sent = 0u32;
    while back < 100_000 {
        while sent - back < 100 && sent < 100_000 {
            ring.push_head([0, 1, 2, 4, 7][sent as usize % 5]);
            sent += 1;
        }
        ring.publish_and_kick();
        assert!(ring.wait_used(PATIENCE), "{back} of {sent} came back");
        while ring.pop_fixed().is_some() {
            back += 1;
        }
    }
    let lines = victim.log_lines();
    assert!(lines < 200, "{lines} lines of log");
    drop(vmm);
    victim.assert_well("100,000 bad requests");
    victim.stop();
}
