//! Registered memory, with the kernel and without.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::super::Uring;
use super::super::testing::{guest, registering};
use super::*;
use crate::engine::{Engine, Event, Wait};

fn settle(ring: &mut Uring) {
    while ring.memory.as_ref().unwrap().due().is_some() {
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
    }
}

fn run(ring: &mut Uring, file: crate::engine::FileIx, command: Command<'_>) -> i32 {
    ring.start(file, command, 1);
    let mut events = Vec::new();
    while events.is_empty() {
        ring.turn(Wait::Event, &mut events).unwrap();
    }
    match events[..] {
        [Event::Done { token: 1, result }] => result,
        _ => panic!("{events:?}"),
    }
}

fn number(ring: &Uring, data: &[HostSlice]) -> Option<u16> {
    ring.memory.as_ref().unwrap().number(&Command::Read { data, at: 0 })
}

#[test]
fn bytes_are_the_same_with_and_without_it() {
    let guest = guest(4 * PIECE, 4 * PIECE);
    let at = |gpa, len| guest.contiguous(gpa, len).unwrap();
    let high = 1u64 << 32;
    let lists: &[(&[HostSlice], bool)] = &[
        (&[at(0, 4096)], true),
        (&[at(high + 512, 9000)], true),
        (&[at(0, 512), at(8192, 100), at(5000, 412)], true),
        // Over the border between two pieces, and in two regions.
        (&[at(PIECE as u64 - 512, 1024)], false),
        (&[at(0, 512), at(high, 512)], false),
    ];
    let file = tempfile::tempfile().unwrap();
    let Some(mut ring) = registering("bytes_are_the_same_with_and_without_it") else { return };
    let ix = ring.add_file(file.as_fd()).unwrap();
    for registered in [false, true, false] {
        if registered {
            ring.add_memory(&guest);
            settle(&mut ring);
        }
        for (round, (data, expected)) in (1u8..).zip(lists) {
            let lists = ring.memory.as_ref().unwrap().lists;
            assert_eq!(number(&ring, data).is_some(), registered && *expected && (lists || data.len() == 1));
            let len: usize = data.iter().map(HostSlice::len).sum();
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8 ^ round).collect();
            file.write_all_at(&bytes, 4096).unwrap();
            assert_eq!(run(&mut ring, ix, Command::Read { data, at: 4096 }), len as i32);
            assert_eq!(run(&mut ring, ix, Command::Write { data, at: 1 << 20, durable: true }), len as i32);
            let mut back = vec![0; len];
            file.read_exact_at(&mut back, 1 << 20).unwrap();
            assert_eq!(back, bytes);
            let mut from = 0;
            for slice in *data {
                let mut there = vec![0; slice.len()];
                slice.read(&mut there);
                assert_eq!(there, bytes[from..from + slice.len()]);
                from += slice.len();
            }
        }
        if registered {
            ring.remove_memory(&guest);
            settle(&mut ring);
        }
    }
    assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
}

#[test]
fn kernels_that_misplace_data_are_known() {
    for bad in ["6.12.0", "6.12.35-1-lts", "6.13.7", "6.14.0-29-generic", "6.15.4", "6.15-rc1", "6.12.0+deb13"] {
        assert!(misplaces(bad), "{bad}");
    }
    for good in
        ["6.12.36", "6.12.48+deb13-amd64", "6.15.5", "6.16.0-rc1", "6.18.44-fc", "6.1.0-13", "5.15.0", "7.0.1", ""]
    {
        assert!(!misplaces(good), "{good}");
    }
}

#[test]
fn it_is_registered_as_long_as_a_queue_is_in_it() {
    let Some(mut ring) = registering("it_is_registered_as_long_as_a_queue_is_in_it") else { return };
    let (one, other) = (guest(1 << 20, 1 << 20), guest(1 << 20, 1 << 20));
    for known in [&one, &other, &one] {
        ring.add_memory(known);
    }
    let slices = [one.contiguous(0, 512).unwrap(), other.contiguous(0, 512).unwrap()];
    settle(&mut ring);
    let registered = |ring: &Uring| slices.map(|slice| number(ring, &[slice]).is_some());
    assert_eq!(registered(&ring), [true, true]);
    ring.remove_memory(&one);
    assert_eq!(registered(&ring), [true, true]);
    ring.remove_memory(&one);
    assert_eq!(registered(&ring), [false, true]);
    // What has not been begun is not begun any more.
    ring.remove_memory(&other);
    ring.add_memory(&one);
    ring.remove_memory(&one);
    settle(&mut ring);
    assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (1, 1));
    assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
}

#[test]
fn memory_that_is_not_there_is_not_made_to_be() {
    let Some(mut ring) = registering("memory_that_is_not_there_is_not_made_to_be") else { return };
    let guest = guest(4 << 20, 2 << 20);
    assert_eq!(guest.missing(), Some((4 << 20, 2 << 20)));
    ring.add_memory(&guest);
    settle(&mut ring);
    assert_eq!(number(&ring, &[guest.contiguous(0, 512).unwrap()]), None);
    assert_eq!(guest.missing(), Some((4 << 20, 2 << 20)));
    ring.remove_memory(&guest);
    assert_eq!(Arc::strong_count(&guest), 1);
}

#[test]
fn memory_that_cannot_be_pinned_is_used_by_address() {
    // A file system of a disk.
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    let map = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), 1 << 20).unwrap();
    let region = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
    let guest = Arc::new(Guest::new(Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())).unwrap());
    let Some(mut ring) = registering("memory_that_cannot_be_pinned_is_used_by_address") else { return };
    ring.add_memory(&guest);
    settle(&mut ring);
    let slice = guest.contiguous(0, 512).unwrap();
    let ix = ring.add_file(file.as_fd()).unwrap();
    assert_eq!(run(&mut ring, ix, Command::Read { data: &[slice], at: 0 }), 512);
    ring.remove_memory(&guest);
    settle(&mut ring);
    assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
}

#[test]
fn no_piece_is_released_before_what_names_it_is_submitted() {
    let guest = guest(1 << 20, 1 << 20);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let Some(mut ring) = registering("no_piece_is_released_before_what_names_it_is_submitted") else { return };
    let ix = ring.add_file(file.as_fd()).unwrap();
    ring.add_memory(&guest);
    settle(&mut ring);
    // One that is refused has the kernel leave the others for the next call.
    ring.push(&opcode::Nop::new().build().user_data(7));
    let data = guest.contiguous(0, 4096).unwrap();
    assert!(number(&ring, &[data]).is_some());
    ring.start(ix, Command::Read { data: &[data], at: 0 }, 8);
    // As where a later piece cannot be pinned.
    ring.memory.as_mut().unwrap().forget(&guest);
    let mut events = Vec::new();
    while events.len() < 2 {
        ring.turn(Wait::Event, &mut events).unwrap();
    }
    assert_eq!(events, [Event::Done { token: 7, result: -libc::EACCES }, Event::Done { token: 8, result: 4096 }]);
    settle(&mut ring);
    assert_eq!(ring.memory.as_ref().unwrap().free.len(), usize::from(PIECES));
}

/// Has it try again and again, on a kernel that locks so many pieces, until there is nothing to do before `until`.
fn drive(memory: &mut Memory, locked: &mut usize, most: usize, now: &mut u64, until: u64) -> usize {
    let mut steps = 0;
    while let Some(due) = memory.due().filter(|due| *due <= until) {
        *now = due.max(*now);
        memory.step(*now, |_, piece| match piece {
            Some(_) if *locked == most => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            Some(_) => {
                *locked += 1;
                Ok(())
            }
            None => {
                *locked -= 1;
                Ok(())
            }
        });
        steps += 1;
    }
    steps
}

fn registered(memory: &Memory) -> usize {
    memory.regions.iter().flat_map(|region| &region.numbers).filter(|number| **number != NONE).count()
}

#[test]
fn what_finds_no_room_is_tried_again_for_some_time() {
    let guest = guest(4 * PIECE, 4 * PIECE);
    let (mut memory, mut locked, mut now) = (Memory::empty(true), 0, 1);
    memory.add(&guest);
    // Two that fit, one that does not, and again twice.
    assert_eq!(drive(&mut memory, &mut locked, 2, &mut now, 1 + 2 * PAUSE), 5);
    assert_eq!((registered(&memory), memory.due()), (2, Some(1 + 3 * PAUSE)));
    // Somebody else's is counted no more.
    assert_eq!(drive(&mut memory, &mut locked, 3, &mut now, 1 + 3 * PAUSE), 2);
    assert_eq!((registered(&memory), memory.due()), (3, Some(1 + 4 * PAUSE)));
    // Each has that time, and then all are done without.
    assert_eq!(drive(&mut memory, &mut locked, 3, &mut now, u64::MAX), TRIES as usize + 3);
    assert_eq!((registered(&memory), locked, memory.due(), now), (0, 0, None, 1 + (3 + u64::from(TRIES)) * PAUSE));
    assert_eq!(memory.free.len(), usize::from(PIECES));
    memory.remove(&guest);
    assert_eq!(Arc::strong_count(&guest), 1);
}

#[test]
fn what_finds_no_number_is_registered_when_one_is_free() {
    let pieces = usize::from(PIECES);
    let (large, small) = (guest((pieces + 4) * PIECE, (pieces + 4) * PIECE), guest(2 * PIECE, 2 * PIECE));
    let (mut memory, mut locked, mut now) = (Memory::empty(true), 0, 1);
    memory.add(&small);
    memory.add(&large);
    // It does not go on trying.
    assert_eq!(drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX), pieces);
    assert_eq!((registered(&memory), memory.todo.len(), memory.due()), (pieces, 6, None));
    memory.remove(&small);
    assert_eq!(drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX), 2 + 2);
    assert_eq!((registered(&memory), memory.todo.len(), memory.due()), (pieces, 4, None));
    memory.remove(&large);
    drive(&mut memory, &mut locked, usize::MAX, &mut now, u64::MAX);
    assert_eq!((locked, memory.todo.len(), memory.free.len()), (0, 0, pieces));
    assert_eq!((Arc::strong_count(&large), Arc::strong_count(&small)), (1, 1));
}
