//! What comes to the log, in which order and where; without devices.

use super::*;

fn state(sectors: u64, most: usize) -> State {
    let writer = Writer { headers: Buffer::new(4096).unwrap(), zeroes: Buffer::new(4096).unwrap(), begun: false };
    State::new(writer, 512, sectors, most)
}

fn write(sector: u64, nr_sectors: u64, flags: Flags) -> Entry {
    Entry::new(Header { sector, nr_sectors, flags, data_len: 0 }, Data::Zeroes, None)
}

fn flush() -> Option<Entry> {
    Some(Entry::new(Header { flags: Flags::FLUSH, ..Header::default() }, Data::None, None))
}

/// First sector and flags of what is on its way to the log.
fn queued(state: &State) -> Vec<(u64, u64)> {
    let all = state.batch(u64::MAX).unwrap_or_default();
    all.iter().map(|entry| (entry.header.sector, entry.header.flags.0)).collect()
}

#[test]
fn a_flush_covers_what_had_ended_before_it_was_asked_for() {
    let state = state(1000, 1 << 20);
    let plain = |sector| vec![write(sector, 1, Flags::default())];
    // The kernel's own example: c, a, b, flush, fuad, <other writes>, <next flush>.
    assert!(state.ended(plain(3)).is_none());
    state.ended(plain(1));
    let before = state.before();
    state.ended(plain(2));
    state.flushed(before, flush());
    assert_eq!(state.ended(vec![write(4, 1, Flags::FUA)]), Some(4));
    assert_eq!(queued(&state), [(3, 0), (1, 0), (0, 1), (4, 2)]);
    // One that ends before another that was asked for earlier.
    let (early, late) = (state.before(), {
        state.ended(plain(5));
        state.before()
    });
    state.flushed(late, flush());
    state.flushed(early, flush());
    assert_eq!(queued(&state)[4..], [(2, 0), (5, 0), (0, 1), (0, 1)]);
    assert_eq!(state.status(), "8 13");
}

#[test]
fn a_durable_write_comes_behind_what_it_was_written_over() {
    let state = state(1000, 1 << 20);
    for sector in [0, 10, 20, 12] {
        state.ended(vec![write(sector, 4, Flags::default())]);
    }
    state.ended(vec![write(13, 8, Flags::FUA)]);
    assert_eq!(queued(&state), [(10, 0), (20, 0), (12, 0), (13, 2)]);
    state.flushed(state.before(), flush());
    assert_eq!(queued(&state)[4..], [(0, 0), (0, 1)]);
}

#[test]
fn what_comes_before_a_durable_write_has_before_it_what_it_was_written_over_itself() {
    let state = state(1000, 1 << 20);
    for (sector, len) in [(12, 8), (40, 1), (10, 4), (8, 1), (11, 1)] {
        state.ended(vec![write(sector, len, Flags::default())]);
    }
    // Of 10 to 13 the later one is the newest, at 12 and 13 over the first one: a replay must not turn them round.
    state.ended(vec![write(10, 1, Flags::FUA)]);
    assert_eq!(queued(&state), [(12, 0), (10, 0), (10, 2)]);
    state.flushed(state.before(), None);
    assert_eq!(queued(&state)[3..], [(40, 0), (8, 0), (11, 0)]);
}

#[test]
fn a_log_that_ended_holds_nothing_back() {
    let held = |state: &State, sectors| {
        let header = Header { sector: 0, nr_sectors: sectors, ..Header::default() };
        vec![Entry::new(header, Data::Zeroes, state.take(1 << 19))]
    };
    // Full, or failed.
    for full in [true, false] {
        let state = state(8, 1 << 20);
        let durable = if full { 40 } else { 1 };
        state.ended(held(&state, 1));
        state.ended(held(&state, 1));
        assert!(state.take(1).is_none());
        state.ended(vec![write(100, durable, Flags::FUA)]);
        if let Some(batch) = state.batch(u64::MAX) {
            state.written(&batch, Err(5));
        }
        assert!(!state.enabled());
        assert!(state.take(1 << 20).is_some(), "full: {full}");
        assert!(state.begin_spill().is_none());
    }
}

#[test]
fn room_is_given_back_and_waited_for() {
    let state = state(1000, 1 << 20);
    let held: Vec<Held> = (0..16).map(|_| state.take(1 << 16).unwrap()).collect();
    assert!(state.take(512).is_none());
    // Nothing has ended, so nothing can be made durable.
    assert!(state.begin_spill().is_none());
    state.ended(vec![write(0, 1, Flags::default())]);
    let spilling = state.begin_spill().expect("now there is");
    assert!(state.begin_spill().is_none(), "one at a time");
    drop(spilling);
    assert!(state.begin_spill().is_some());
    drop(held);
    let large = state.take(2 << 20).expect("what is larger than all gets all");
    assert!(state.take(1).is_none());
    drop(large);
    let mut held = state.take(8192).unwrap();
    assert_eq!(held.fill().unwrap().len(), 8192);
}

#[test]
fn what_has_no_place_ends_the_log() {
    let state = state(20, 1 << 20);
    state.ended(vec![write(0, 8, Flags::FUA), write(0, 8, Flags::FUA), write(0, 8, Flags::FUA)]);
    assert_eq!(state.status(), "2 27 logging_disabled");
    // What has its place still comes there.
    let batch = state.batch(u64::MAX).unwrap();
    assert_eq!(batch.iter().map(|entry| entry.at()).collect::<Vec<_>>(), [1, 10]);
    state.written(&batch, Ok(()));
    assert!(state.batch(u64::MAX).is_none());
    assert!(state.ended(vec![write(0, 1, Flags::FUA)]).is_none());
    assert!(!state.enabled());
}

#[test]
fn marks_are_not_hoarded() {
    let state = state(100_000, 1 << 20);
    let mark = || Entry::new(Header { flags: Flags::MARK, ..Header::default() }, Data::None, None);
    for _ in 0..10 {
        assert!(state.mark(mark(), 10).is_some());
    }
    assert!(state.mark(mark(), 10).is_none());
    let batch = state.batch(u64::MAX).unwrap();
    state.written(&batch, Ok(()));
    assert!(state.mark(mark(), 10).is_some());
    state.written(&state.batch(u64::MAX).unwrap(), Err(5));
    assert_eq!(state.status(), "11 11 logging_disabled");
}
