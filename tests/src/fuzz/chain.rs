//! Any guest memory as a ring and its chains.

use vhost_user_dm::guest::HostSlice;
use vhost_user_dm::request::{Chain, ChainError, Kind, MAX_RANGES, Range};
use vhost_user_dm::vring::Vring;

use super::guest::{Asked, Bytes64, Expected, Hostile};

/// Heads that are taken of one input: a broken available index offers up to 65535.
const HEADS: usize = 24;

/// Takes every head of the ring that `data` makes, and holds what the chains are taken for against a model.
///
/// # Panics
/// Where they differ, or memory is written that is not the device's to write.
pub fn chain(data: &[u8]) {
    let Some(hostile) = Hostile::new(data) else { return };
    let Some((guest, ring)) = hostile.ring() else { return };
    let mut vring = Vring::new(ring, hostile.base, hostile.event_idx);
    let mut parsed = Chain::default();
    let before = hostile.snapshot();
    let (quiet, touch) = (hostile.bits & 0x10 != 0, hostile.bits & 2 != 0);
    let mut used = hostile.half(hostile.at.used.wrapping_add(2));
    for taken in 0..HEADS {
        let Some(head) = pop(&hostile, &mut vring, hostile.base.wrapping_add(taken as u16)) else { break };
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
        vring.push_used(head, parsed.data_len as u32);
        let position = u64::from(used % hostile.at.size);
        let entry = hostile.get::<8>(hostile.at.used + 4 + 8 * position).expect("within the ring");
        assert_eq!(entry, (u64::from(head) | (parsed.data_len & 0xffff_ffff) << 32).to_le_bytes());
        if hostile.seed >> (taken % 16) & 1 == 0 {
            used = publish(&hostile, &mut vring, used, taken as u16 + 1);
        }
    }
    vring.fall_asleep();
    if !touch {
        hostile.assert_untouched(&before, &[]);
    }
}

/// Takes a head, if the driver's index offers one.
fn pop(hostile: &Hostile, vring: &mut Vring, next: u16) -> Option<u16> {
    assert_eq!(vring.next_avail(), next);
    let avail = hostile.at.avail;
    let entry = hostile.half(avail + 4 + 2 * u64::from(next % hostile.at.size));
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
            assert!(hostile.half(avail + 2).wrapping_sub(next) > hostile.at.size, "{broken}");
            None
        }
    }
}
