//! Regions and legs, without any I/O.

use std::ops::Range;

use super::log::{Begin, Image};
use super::regions::{Failure, Geometry, Legs, Regions};

const REGION: u64 = 16;

/// 8 regions, the last of them short, on two legs; the log is on a device, or in memory.
fn regions(begin: Begin, on_device: bool) -> Regions {
    let geometry = Geometry { len: 8 * REGION - 3, region: REGION, legs: 2 };
    let image = || on_device.then(|| Image::new(geometry.count(), 512));
    let mut regions = Regions::new(geometry, image());
    regions.begin(image(), begin).unwrap();
    let mark = regions.mark();
    regions.made_durable(mark);
    regions
}

fn is_clean(regions: &Regions, region: u64) -> bool {
    regions.image.as_ref().unwrap().is_clean(region)
}

/// Copies a region as the background does.
fn copy(regions: &mut Regions, region: u64) -> bool {
    assert_eq!(regions.recover(), Some(region));
    regions.open(regions.geometry.sectors(region));
    assert!(regions.is_open());
    regions.close();
    regions.recovered(region, true)
}

fn flush(regions: &mut Regions) {
    let number = regions.flush();
    regions.flushed(number);
}

fn read_from(regions: &mut Regions, range: Range<u64>, tried: Legs) -> Option<usize> {
    let leg = regions.read(&range, tried);
    leg.into_iter().for_each(|leg| regions.was_read(leg));
    leg
}

#[test]
fn the_last_region_may_be_short() {
    let regions = regions(Begin::Dirty, false);
    assert_eq!(regions.geometry.count(), 8);
    assert_eq!(regions.geometry.sectors(6), 96..112);
    assert_eq!(regions.geometry.sectors(7), 112..125);
}

#[test]
fn a_range_has_parts_of_its_first_and_last_region() {
    let parts = |range| regions(Begin::Clean, false).geometry.parts(&range).collect::<Vec<_>>();
    assert_eq!(parts(3..5), vec![3..5; 1]);
    assert_eq!(parts(15..49), [15..16, 16..32, 32..48, 48..49]);
    assert_eq!(parts(96..125), [96..112, 112..125]);
}

#[test]
fn a_write_waits_for_the_log_to_say_that_its_regions_are_dirty() {
    let mut regions = regions(Begin::Clean, true);
    // The end of region 1 and the beginning of region 2.
    let ticket = regions.write(31..33).unwrap();
    assert!(!regions.is_durable(ticket.mark));
    assert_eq!([0, 1, 2, 3].map(|region| is_clean(&regions, region)), [true, false, false, true]);
    // Another to the same region waits for the same.
    let other = regions.write(20..21).unwrap();
    assert!(!regions.is_durable(other.mark));
    let mark = regions.mark();
    regions.made_durable(mark);
    assert!(regions.is_durable(ticket.mark) && regions.is_durable(other.mark));
    // One that is dirty already waits for nothing.
    let third = regions.write(16..17).unwrap();
    assert!(regions.is_durable(third.mark));
}

#[test]
fn a_region_is_clean_when_a_flush_that_began_after_its_last_write_has_ended() {
    let mut regions = regions(Begin::Clean, true);
    let ticket = regions.write(0..8).unwrap();
    flush(&mut regions);
    regions.clean(false);
    assert!(!is_clean(&regions, 0), "it is being written");
    let early = regions.flush();
    regions.written(&ticket);
    regions.flushed(early);
    regions.clean(false);
    assert!(!is_clean(&regions, 0), "that flush began before the write had ended");
    flush(&mut regions);
    regions.clean(true);
    assert!(!is_clean(&regions, 0), "it was not left alone for long");
    regions.look();
    assert_eq!(regions.dirty(), (true, true));
    regions.clean(true);
    assert!(is_clean(&regions, 0));
    assert_eq!(regions.dirty(), (false, false));
    // Written again, it is to be said dirty again.
    let again = regions.write(0..8).unwrap();
    assert!(!regions.is_durable(again.mark) && !is_clean(&regions, 0));
}

#[test]
fn no_write_is_where_something_is_copied() {
    let mut regions = regions(Begin::Dirty, false);
    assert_eq!(regions.recover(), Some(0));
    let before = regions.write(8..10).unwrap();
    regions.open(0..16);
    assert!(!regions.is_open(), "a write has begun before");
    assert!(regions.write(15..17).is_none());
    assert!(regions.write(16..17).is_some());
    assert!(regions.written(&before), "the copy waits for it");
    assert!(regions.is_open());
    regions.close();
    // To all legs: the copy may have passed by there.
    assert_eq!(regions.write(15..16).unwrap().legs, Legs::all(2));
}

#[test]
fn outside_of_what_is_in_sync_all_goes_to_the_source() {
    let mut regions = regions(Begin::Dirty, true);
    let ticket = regions.write(0..8).unwrap();
    assert_eq!(ticket.legs, Legs::one(0));
    regions.written(&ticket);
    assert_eq!(read_from(&mut regions, 0..8, Legs::default()), Some(0));
    assert_eq!(read_from(&mut regions, 0..8, Legs::one(0)), None, "the other has something else");
    assert!(copy(&mut regions, 0));
    assert_eq!(read_from(&mut regions, 0..8, Legs::one(0)), Some(1));
    assert_eq!(read_from(&mut regions, 8..17, Legs::one(0)), None, "half of it is not in sync");
    assert_eq!(regions.in_sync(), 1);
}

#[test]
fn a_leg_can_do_without_what_is_copied_later() {
    let mut regions = regions(Begin::Dirty, false);
    assert!(copy(&mut regions, 0));
    assert_eq!(regions.recover(), Some(1));
    let [first, all] = [Legs::one(0), Legs::all(2)];
    // In sync; being copied; to be copied; some of both.
    assert_eq!([0..8, 16..24, 32..40, 8..40].map(|range| regions.wanted(&range)), [all, all, first, all]);
    regions.recovered(1, false);
    assert_eq!(regions.wanted(&(16..24)), first);
}

#[test]
fn a_write_that_fails_on_a_leg_spoils_the_copy_of_its_region() {
    let mut regions = regions(Begin::Dirty, true);
    assert_eq!(regions.recover(), Some(0));
    let ticket = regions.write(0..8).unwrap();
    regions.differs(&(0..8));
    regions.written(&ticket);
    assert!(!regions.recovered(0, true));
    assert_eq!(regions.in_sync(), 0);
    for region in 1..8 {
        assert!(copy(&mut regions, region));
    }
    assert_eq!(regions.recover(), None);
    // It is tried again when the device is resumed.
    regions.recover_all();
    assert!(copy(&mut regions, 0));
    assert!(regions.is_synced());
}

#[test]
fn another_leg_is_heir_only_where_a_log_tells_of_it_and_it_has_everything() {
    let one = Legs::one(1);
    let mut in_memory = regions(Begin::Clean, false);
    assert_eq!(in_memory.heir(one), None);
    assert_eq!(in_memory.heir(Legs::all(2)), Some(0));
    in_memory.settle(0, one);
    let mut logged = regions(Begin::Clean, true);
    assert_eq!(logged.heir(one), Some(1));
    logged.settle(1, Legs::one(0));
    assert_eq!((logged.source(), logged.all_fit()), (1, false));
    logged.differs(&(0..8));
    assert_eq!(read_from(&mut logged, 0..8, Legs::default()), Some(1));
    assert_eq!(logged.heir(Legs::one(0)), None, "it lacks what was acknowledged");
    assert_eq!(logged.sources(), [1]);
    logged.completed();
    assert!(logged.all_fit());
    // Before the first resync only the first has everything.
    assert_eq!(regions(Begin::Dirty, true).heir(one), None);
}

#[test]
fn a_flush_that_fails_leaves_nothing_in_sync_that_was_written_since_the_last() {
    let mut regions = regions(Begin::Clean, true);
    for range in [0..8, 40..41] {
        let ticket = regions.write(range).unwrap();
        regions.written(&ticket);
    }
    regions.flush();
    regions.unflushed();
    assert_eq!(regions.in_sync(), 6);
    flush(&mut regions);
    regions.clean(false);
    assert_eq!([0, 1, 2, 3].map(|region| is_clean(&regions, region)), [false, true, false, true]);
}

#[test]
fn the_worst_error_of_a_leg_is_its_letter() {
    let mut regions = regions(Begin::Clean, false);
    assert_eq!(regions.letters(), "AA");
    let errors = [(Failure::Read, "AR"), (Failure::Sync, "AS"), (Failure::Write, "AD"), (Failure::Flush, "AF")];
    for (failure, letters) in errors {
        assert!(regions.fail(1, failure));
        assert!(!regions.fail(1, failure), "told once");
        assert_eq!(regions.letters(), letters);
    }
    assert_eq!(read_from(&mut regions, 0..8, Legs::default()), Some(0));
    regions.completed();
    assert_eq!(regions.letters(), "AA");
}
