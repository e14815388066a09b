//! A driver that breaks the rules of its ring, against what it can make a worker keep.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fastrand::Rng;
use vm_memory::{Bytes as _, GuestAddress};

use super::traffic::SERIAL;
use super::world::World;
use super::{Core, Ground, Ops, Poll, Setup};
use crate::guest::SplitRing;
use crate::sim::{Sim, Temper};
use crate::stats::Lane;

const SIZE: u16 = 8;
const AVAIL: u64 = 0x800;
const USED: u64 = 0x1000;
const REQUESTS: u64 = 0x2_0000;

#[test]
fn a_driver_that_repeats_heads_behind_a_slow_request_has_to_wait() {
    let ground = Ground::new();
    let put = |at: u64, bytes: &[u8]| ground.memory.write_slice(bytes, GuestAddress(at)).expect("guest memory");
    let describe = |index: u64, addr: u64, len: u32, flags: u16| {
        let (len, flags, next) = (len.to_le_bytes(), flags.to_le_bytes(), (index as u16 + 1).to_le_bytes());
        put(16 * index, &[&addr.to_le_bytes()[..], &len, &flags, &next].concat());
    };
    // Head 0 flushes and takes long, head 2 asks for the serial number and is done at once.
    for (head, code) in [(0, 4u32), (2, 8)] {
        let at = REQUESTS + 0x100 * head;
        put(at, &[&code.to_le_bytes()[..], &[0; 12]].concat());
        describe(head, at, 16, 1);
        describe(head + 1, at + 16, if head == 0 { 1 } else { 21 }, 2);
    }
    let (sim, chain) = (0..100)
        .find_map(|seed| {
            let sim = Sim::new(seed, Temper { latency: Duration::from_secs(1000), ..Temper::default() });
            let (world, chain) = World::new(&mut Rng::with_seed(seed), &ground.pool, &sim);
            (!world.read_only && !world.flush_set.is_empty()).then_some((sim, chain))
        })
        .expect("a world with a device");
    let null = ground.null.try_clone().expect("a descriptor");
    let setup = Setup {
        name: "disk".into(),
        lane: Lane::detached(&chain),
        chain: Arc::new(chain),
        serial: SERIAL,
        guest: ground.guest.clone(),
        ring: SplitRing::new(&ground.guest, SIZE, 0, AVAIL, USED).expect("a ring"),
        base: 0,
        record: None,
        event_idx: false,
        kick: null,
        call: None,
        err: None,
        write_through: Arc::new(AtomicBool::new(false)),
    };
    let mut core = Core::new(sim, Ops::new().expect("bounce buffers"), Poll::fixed(2), None);
    core.start(setup).expect("a queue");
    let mut index = 0u16;
    for round in 0..1000u16 {
        for slot in 0..SIZE {
            let head = if round == 0 && slot == 0 { 0u16 } else { 2 };
            put(AVAIL + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        }
        // As far as the device may be made to go in one look, again and again, whatever has come back.
        let taken = core.queues[0].as_ref().expect("the queue").queue.next_avail();
        index = if taken == index { index.wrapping_add(SIZE) } else { index };
        put(AVAIL + 2, &index.to_le_bytes());
        core.turn().expect("a turn");
        let kept = core.queues[0].as_ref().expect("the queue").queue.held_back();
        assert!(kept <= usize::from(SIZE), "{kept} requests wait in a ring of {SIZE}");
    }
}
