//! A kill after each store, one after the other: what a successor makes of what it finds.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::guest::{Guest, Inflight, SplitRing};
use crate::sim::pause::OtherSide;
use crate::vring::Vring;

const SIZE: u16 = 8;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const PART: usize = 192;

struct Place {
    memory: Arc<GuestMemoryMmap<()>>,
    guest: Arc<Guest>,
    file: File,
    region: Arc<Inflight>,
}

/// What another process finds.
#[derive(Clone, PartialEq, Eq)]
struct Left {
    ring: Vec<u8>,
    record: Vec<u8>,
}

impl Place {
    fn new(index: u16) -> Place {
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap());
        memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
        memory.write_obj(index, GuestAddress(USED + 2)).unwrap();
        let guest = Arc::new(Guest::new(memory.clone()).unwrap());
        let offer = Inflight::create(1, SIZE).unwrap();
        let file = offer.file.try_clone().unwrap();
        let region = Arc::new(Inflight::map(offer.file, offer.size, 0, 1, SIZE).unwrap());
        Place { memory, guest, file, region }
    }

    fn ring(&self) -> SplitRing {
        SplitRing::new(&self.guest, SIZE, 0, AVAIL, USED).unwrap()
    }

    fn record(&self) -> Record {
        Record::new(&self.region, 0, SIZE).unwrap()
    }

    fn recover(&self) -> Result<(Tracker, Recovered), RecoveryError> {
        let ring = self.ring();
        Tracker::recover(self.record(), ring.avail_idx(), ring.used_idx())
    }

    fn left(memory: &GuestMemoryMmap<()>, file: &File) -> Left {
        let (mut ring, mut record) = (vec![0; 0x2000], vec![0; PART]);
        memory.read_slice(&mut ring, GuestAddress(AVAIL)).unwrap();
        file.read_exact_at(&mut record, 0).unwrap();
        Left { ring, record }
    }

    fn put(&self, left: &Left) {
        self.memory.write_slice(&left.ring, GuestAddress(AVAIL)).unwrap();
        self.file.write_all_at(&left.record, 0).unwrap();
    }

    fn offer(&self, at: u16, head: u16) {
        self.memory.write_obj(head, GuestAddress(AVAIL + 4 + 2 * u64::from(at % SIZE))).unwrap();
        self.memory.write_obj(at.wrapping_add(1), GuestAddress(AVAIL + 2)).unwrap();
    }
}

/// A life of the ring.
struct Life {
    place: Place,
    start: u16,
    // What a kill would leave, at each moment.
    moments: Vec<Left>,
    // Heads in the order in which they were made available, and in the order in which they were given back.
    offered: Vec<u16>,
    back: Vec<u16>,
}

impl Life {
    fn new(seed: u64) -> Life {
        let mut rng = Rng::with_seed(seed);
        let start = 65_520 + rng.u16(..16);
        let place = Place::new(start);
        let moments = Rc::new(RefCell::new(Vec::new()));
        let (seen, memory, file) = (moments.clone(), place.memory.clone(), place.file.try_clone().unwrap());
        let (mut tracker, first) = place.recover().unwrap();
        assert_eq!(first, Recovered { next_avail: None, replay: Vec::new() });
        let mut vring = Vring::new(place.ring(), start, rng.bool());
        let other = OtherSide::new(move || seen.borrow_mut().push(Place::left(&memory, &file)));
        let (mut offered, mut back): (Vec<u16>, Vec<u16>) = (Vec::new(), Vec::new());
        let mut free: Vec<u16> = (0..SIZE).collect();
        let mut under_way: Vec<u16> = Vec::new();
        for _ in 0..40 {
            for _ in 0..rng.usize(..=free.len()) {
                let head = free.swap_remove(rng.usize(..free.len()));
                place.offer(start.wrapping_add(offered.len() as u16), head);
                offered.push(head);
            }
            for _ in 0..rng.u8(..6) {
                let Ok(Some(head)) = vring.pop() else { break };
                tracker.taken(head);
                under_way.push(head);
            }
            for _ in 0..rng.usize(..=under_way.len()) {
                let head = under_way.swap_remove(rng.usize(..under_way.len()));
                vring.push_used(head, 0);
                tracker.given_back(head);
                back.push(head);
            }
            if vring.unpublished() {
                tracker.seal();
                vring.publish();
                tracker.clear(vring.next_used());
                free = (0..SIZE).filter(|head| !outstanding(&offered, &back).contains(head)).collect();
            }
        }
        drop(other);
        let moments = moments.take();
        Life { place, start, moments, offered, back }
    }
}

/// Heads that are still with the device, oldest first.
fn outstanding(offered: &[u16], back: &[u16]) -> Vec<u16> {
    let mut left = offered.to_vec();
    for head in back {
        let at = left.iter().position(|h| h == head).unwrap();
        left.remove(at);
    }
    left
}

#[test]
fn a_kill_after_any_store_leaves_each_request_to_be_done_exactly_once() {
    for seed in 0..40 {
        let life = Life::new(seed);
        assert!(life.moments.len() > 100 && life.back.len() > 15);
        for (n, left) in life.moments.iter().enumerate() {
            life.place.put(left);
            let (_, found) = life.place.recover().unwrap_or_else(|error| panic!("seed {seed}, moment {n}: {error}"));
            let ring = life.place.ring();
            let visible = |index: u16| usize::from(index.wrapping_sub(life.start));
            let offered = &life.offered[..visible(ring.avail_idx())];
            let waiting = outstanding(offered, &life.back[..visible(ring.used_idx())]);
            let mut done = found.replay.clone();
            let mut at = found.next_avail.unwrap();
            while at != ring.avail_idx() {
                done.push(ring.avail_entry(at));
                at = at.wrapping_add(1);
            }
            assert_eq!(done, waiting, "seed {seed}, moment {n}: of which again {:?}", found.replay);
            // A successor that is killed at once leaves the same.
            assert_eq!(life.place.recover().unwrap().1, found, "seed {seed}, moment {n}");
        }
    }
}

#[test]
fn what_is_under_way_is_done_again_in_the_order_in_which_it_came() {
    let place = Place::new(100);
    let (mut tracker, _) = place.recover().unwrap();
    for (at, head) in [(100, 5), (101, 2), (102, 7), (103, 0)] {
        place.offer(at, head);
        tracker.taken(head);
    }
    assert_eq!(place.recover().unwrap().1, Recovered { next_avail: Some(104), replay: vec![5, 2, 7, 0] });
}

#[test]
fn a_record_that_cannot_be_is_refused_and_nothing_is_followed_out_of_it() {
    // Marks `heads` on a ring where `offered` entries are available, after a last batch of `batch` from `last`.
    let refused = |version: bool, heads: &[u16], offered: u16, batch: u16, last: u16| {
        let place = Place::new(0);
        let record = place.record();
        if version {
            record.set_version();
        }
        heads.iter().for_each(|head| record.set_inflight(*head, true));
        (0..SIZE).for_each(|head| record.set_next(head, 60_000));
        record.set_last_batch_head(last);
        record.set_used_idx(0u16.wrapping_sub(batch));
        place.memory.write_obj(offered, GuestAddress(AVAIL + 2)).unwrap();
        place.recover().err()
    };
    assert!(matches!(refused(true, &[1, 2], 1, 0, 0), Some(RecoveryError::Marked { marked: 2, offered: 1, .. })));
    assert!(matches!(refused(true, &[1], 9, 0, 0), Some(RecoveryError::Marked { offered: 9, .. })));
    assert_eq!(refused(true, &[1], 1, 2, 0), Some(RecoveryError::Batch { batch: 2, size: SIZE }));
    assert_eq!(refused(true, &[1], 1, 1, 8), Some(RecoveryError::Batch { batch: 1, size: SIZE }));
    assert_eq!(refused(true, &[1], 1, 9, 0), Some(RecoveryError::Batch { batch: 9, size: SIZE }));
    assert_eq!(refused(true, &[1], 1, 40_000, 0), Some(RecoveryError::Batch { batch: 40_000, size: SIZE }));
    // Nothing is under way: whatever the rest says, it is of a ring that was set up anew.
    assert_eq!(refused(true, &[], 3, 40_000, 9), None);
    // No one has used it yet.
    assert_eq!(refused(false, &[1, 2, 3], 1, 7, 0), None);
    let place = Place::new(0);
    place.file.write_all_at(&[2, 0], 8).unwrap();
    assert_eq!(place.recover().err(), Some(RecoveryError::Version(2)));
}

#[test]
fn random_bytes_are_harmless() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..20_000 {
        let place = Place::new(rng.u16(..));
        let mut bytes = vec![0; PART];
        rng.fill(&mut bytes);
        bytes[8..10].copy_from_slice(&1u16.to_le_bytes());
        for entry in bytes[16..144].chunks_mut(16) {
            entry[0] &= 1;
            entry[7] = 0;
            entry[6] &= 15;
        }
        place.file.write_all_at(&bytes, 0).unwrap();
        let offered = rng.u16(..12);
        let ring = place.ring();
        place.memory.write_obj(ring.used_idx().wrapping_add(offered), GuestAddress(AVAIL + 2)).unwrap();
        if let Ok((_, found)) = place.recover() {
            assert!(found.replay.iter().all(|head| *head < SIZE) && found.replay.len() <= usize::from(SIZE));
        }
    }
}

#[test]
fn heads_that_are_no_index_of_the_ring_leave_no_trace() {
    let place = Place::new(0);
    let (mut tracker, _) = place.recover().unwrap();
    let before = Place::left(&place.memory, &place.file);
    for head in [SIZE, 60_000, u16::MAX] {
        tracker.taken(head);
        tracker.given_back(head);
    }
    assert!(before == Place::left(&place.memory, &place.file));
}
