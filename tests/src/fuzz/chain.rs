//! Any guest memory as a ring and its chains.

use vhost_user_dm::guest::HostSlice;
use vhost_user_dm::request::{Chain, ChainError, Kind, MAX_RANGES, Range};
use vhost_user_dm::vring::Vring;

use super::guest::{Asked, Bytes64, Expected, Hostile};

/// Heads that are taken of one input: a broken available index offers up to 65535.
const HEADS: u16 = 24;

/// Takes every head of the ring that `data` makes, and holds what the chains are taken for against a model.
///
/// # Panics
/// Where they differ, or memory is written that is not the device's to write.
pub fn chain(data: &[u8]) {
    let Some(hostile) = Hostile::new(data) else { return };
    let Some((guest, ring)) = hostile.ring() else { return };
    let (used_at, size) = (hostile.at.used, hostile.at.size);
    let first = hostile.half(used_at + 2);
    let mut published = first;
    let mut vring = Vring::new(ring, hostile.base, hostile.event_idx);
    let mut parsed = Chain::default();
    let before = hostile.snapshot();
    let (quiet, touch) = (hostile.bits & 0x10 != 0, hostile.bits & 2 != 0);
    for taken in 0..HEADS {
        let Some(head) = pop(&hostile, &mut vring, hostile.base.wrapping_add(taken)) else { break };
        if quiet {
            vring.stay_awake();
        }
        let expected = hostile.expect(head);
        let result = parsed.parse(vring.ring(), &guest, head);
        agree(&hostile, &parsed, &result, &expected);
        if touch && let Ok((_, status)) = result {
            // What is written may be the ring itself; the next heads are judged by what is there then.
            parsed.data.iter().take(64).for_each(HostSlice::fill_zero);
            status.write(&[0]);
        }
        let (next, written) = (first.wrapping_add(taken), parsed.data_len as u32);
        vring.push_used(head, written);
        let entry = hostile.get::<8>(used_at + 4 + 8 * u64::from(next % size)).expect("within the ring");
        assert_eq!(entry, (u64::from(head) | u64::from(written) << 32).to_le_bytes());
        if hostile.seed >> (taken % 16) & 1 == 0 {
            publish(&hostile, &mut vring, published, next.wrapping_add(1));
            published = next.wrapping_add(1);
        }
    }
    // Nothing changes any more: if there is no work now, there is none.
    let asleep = vring.fall_asleep();
    assert_eq!(asleep, hostile.half(hostile.at.avail + 2) == vring.next_avail());
    if !touch {
        hostile.assert_untouched(&before, &hostile.marks());
    }
}

/// Takes a head, if the driver's index offers one.
fn pop(hostile: &Hostile, vring: &mut Vring, next: u16) -> Option<u16> {
    assert_eq!(vring.next_avail(), next);
    let (avail, size) = (hostile.at.avail, hostile.at.size);
    let entry = hostile.half(avail + 4 + 2 * u64::from(next % size));
    match vring.pop() {
        Ok(Some(head)) => {
            assert_eq!(head, entry);
            Some(head)
        }
        Ok(None) => {
            assert_eq!(hostile.half(avail + 2), next, "an entry is offered");
            None
        }
        Err(broken) => {
            assert!(hostile.half(avail + 2).wrapping_sub(next) > size, "{broken}");
            None
        }
    }
}

/// Makes used entries visible; the driver is told when it asked for one of them (2.7.7.2, 2.7.10).
fn publish(hostile: &Hostile, vring: &mut Vring, old: u16, new: u16) {
    let told = vring.publish();
    assert_eq!(hostile.half(hostile.at.used + 2), new);
    assert!(!vring.unpublished());
    let wanted = if hostile.event_idx {
        let event = hostile.half(hostile.at.avail + 4 + 2 * u64::from(hostile.at.size));
        (0..new.wrapping_sub(old)).any(|n| old.wrapping_add(n) == event)
    } else {
        hostile.half(hostile.at.avail) & 1 == 0
    };
    assert_eq!(told, wanted, "{old}..{new}");
}

/// Whether a chain is taken for what it is.
fn agree(hostile: &Hostile, parsed: &Chain, result: &Result<(Kind, HostSlice), ChainError>, expected: &Expected) {
    let status = parsed.status.as_ref().map(|slice| {
        assert_eq!(slice.len(), 1);
        slice.addr() as u64
    });
    let host = |gpa: u64| hostile.host(gpa);
    match (result, expected) {
        (
            Err(ChainError::Index(_) | ChainError::TooLong | ChainError::Indirect { .. } | ChainError::Address { .. }),
            Expected::NoChain,
        ) => assert_eq!(status, None),
        (Err(ChainError::Order | ChainError::Address { .. }), Expected::Wrong(at)) => {
            assert_eq!(status, at.and_then(host));
        }
        (Err(ChainError::NoStatus), Expected::NoStatus) => assert_eq!(status, None),
        (Err(ChainError::Header(_)), Expected::NoHeader(at)) => assert_eq!(status, host(*at)),
        (Ok((kind, byte)), Expected::Request(asked)) => {
            assert_eq!(byte.addr() as u64, host(asked.status).expect("in memory"));
            assert_eq!(status, host(asked.status));
            same_request(hostile, parsed, *kind, asked);
        }
        _ => panic!("taken for {result:?}, but is {expected:x?}"),
    }
}

fn same_request(hostile: &Hostile, parsed: &Chain, kind: Kind, asked: &Asked) {
    // 5.2.6: the types' numbers.
    let numbered = match asked.kind {
        0 => Kind::Read,
        1 => Kind::Write,
        4 => Kind::Flush,
        8 => Kind::GetId,
        11 => Kind::Discard,
        13 => Kind::WriteZeroes,
        _ => Kind::Unknown,
    };
    assert_eq!(kind, numbered);
    assert_eq!(parsed.at, asked.sector);
    match kind {
        Kind::Read | Kind::GetId => same_data(hostile, parsed, &asked.writable),
        Kind::Write => same_data(hostile, parsed, &asked.readable),
        Kind::Discard | Kind::WriteZeroes => same_ranges(hostile, parsed, &asked.readable),
        Kind::Flush | Kind::Unknown => assert!(parsed.data.is_empty() && parsed.ranges.is_empty()),
    }
}

fn same_data(hostile: &Hostile, parsed: &Chain, bytes: &[Bytes64]) {
    assert_eq!(parsed.data_len, parsed.data.iter().map(|slice| slice.len() as u64).sum::<u64>());
    assert!(parsed.data.iter().all(|slice| !slice.is_empty()));
    let expected = bytes.iter().flat_map(|&range| hostile.on_host(range).expect("in memory"));
    let found = parsed.data.iter().map(|slice| (slice.addr() as u64, slice.len() as u64));
    assert_eq!(joined(found), joined(expected));
}

fn same_ranges(hostile: &Hostile, parsed: &Chain, bytes: &[Bytes64]) {
    let len = bytes.iter().map(|&(_, len)| len).sum::<u64>();
    assert_eq!(parsed.data_len, len);
    let right = len > 0 && len.is_multiple_of(16) && len <= 16 * MAX_RANGES as u64;
    assert_eq!(parsed.malformed, !right);
    if !right {
        assert!(parsed.ranges.is_empty());
        return;
    }
    let content: Vec<u8> =
        bytes.iter().flat_map(|&(gpa, len)| (gpa..gpa + len).filter_map(|at| hostile.get::<1>(at))).flatten().collect();
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let expected = content.as_chunks::<16>().0.iter().map(|raw| Range {
        at: number(&raw[..8]),
        len: number(&raw[8..12]) as u32,
        flags: number(&raw[12..]) as u32,
    });
    assert!(expected.eq(parsed.ranges.iter().copied()), "{:?}", parsed.ranges);
}

/// Ranges with neighbours put together: how bytes are cut into slices is the back end's own business.
fn joined(ranges: impl Iterator<Item = Bytes64>) -> Vec<Bytes64> {
    let mut joined: Vec<Bytes64> = Vec::new();
    for (at, len) in ranges {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == at => last.1 += len,
            _ => joined.push((at, len)),
        }
    }
    joined
}
