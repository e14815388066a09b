use dm_table::{Format, Source, parse};

use super::*;
use crate::map::{LookupError, Map};
use crate::stats::{Kind, Meter};

fn chain(table: &str) -> Chain {
    let file = parse(Arc::new(Source::new("t", table)), Format::Plain).unwrap();
    let mut none = |_: &dm_table::DevRef| Err(LookupError { errno: "ENOENT", why: "none".into(), help: None });
    let (map, _) = Map::build(&file.source, &file.devices[0].table, false, &mut none).unwrap();
    Chain {
        name: "d".into(),
        map: Arc::new(map),
        components: Default::default(),
        read_only: false,
        limiters: Arc::default(),
        events: Arc::default(),
    }
}

#[test]
fn a_device_remembers_what_a_table_does_not() {
    let (disk, old, new) = (Disk::new(), chain("0 8 zero\n8 8 error"), chain("0 4 zero\n4 4 error"));
    let worker = Arc::new(Meter::of_thread());
    for queue in [0, 2] {
        let lane = disk.lane(queue, &old);
        lane.begin(&worker);
        lane.piece(1, true, 3);
        lane.piece_failed(1);
        lane.ended(Kind::Write, 3, true);
        lane.took(Kind::Write, 1000, 5);
        lane.set_in_flight(2);
    }
    let before = disk.snapshot("d", 7, &old, true);
    assert_eq!((before.name.as_str(), before.minor, before.device.sectors), ("d", 7, 16));
    assert_eq!((before.device.queues, before.device.in_flight, before.workers.len()), (2, 4, 1));
    let write = &before.device.kinds["write"];
    assert_eq!((write.ops, write.sectors, write.errors, write.latency.count), (2, 6, 2, 10));
    let of = |segment: &Segment| (segment.start, segment.len, segment.writes, segment.written_sectors, segment.errors);
    assert_eq!(before.segments.iter().map(of).collect::<Vec<_>>(), [(0, 8, 0, 0, 0), (8, 8, 2, 6, 2)]);
    assert_eq!(before.segments[1].target, "error");
    assert!(disk.snapshot("d", 7, &old, false).segments.is_empty());

    // Queue 0 is stopped and started again, queue 2 has gone over to the next table.
    disk.lane(0, &old).end();
    disk.lane(0, &old.renamed("e".into())).begin(&worker);
    assert_eq!(disk.snapshot("d", 7, &old, true).segments, before.segments);
    disk.lane(2, &old).end();
    disk.lane(2, &new).begin(&worker);
    let after = disk.snapshot("d", 7, &new, true);
    assert_eq!(after.device.kinds, before.device.kinds);
    assert_eq!((after.device.sectors, after.device.in_flight), (8, 0));
    assert_eq!(after.segments.iter().map(of).collect::<Vec<_>>(), [(0, 4, 0, 0, 0), (4, 4, 0, 0, 0)]);
    assert_eq!(disk.snapshot("d", 7, &old, true).segments[1].writes, 1, "of queue 0 alone");
}

#[test]
fn segments_of_a_long_table_are_counted_together() {
    use std::fmt::Write as _;
    let count = 2 * lane::MOST_RECORDS as u64 + 5;
    let table = (0..count).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "{n} 1 zero");
        text
    });
    let (disk, chain) = (Disk::new(), chain(&table));
    let lane = disk.lane(0, &chain);
    for segment in [0, 3, 4, count as u32 - 1] {
        lane.piece(segment, false, 1);
    }
    lane.piece_failed(3);
    let segments = disk.snapshot("d", 0, &chain, true).segments;
    assert_eq!(segments.len() as u64, count.div_ceil(4));
    assert_eq!((segments[0].reads, segments[0].errors, segments[0].len), (2, 1, 4));
    assert_eq!((segments[0].target.as_str(), segments[0].to.as_str()), ("several", "4 segments"));
    assert_eq!((segments[1].reads, segments[1].start), (1, 4));
    let last = segments.last().unwrap();
    assert_eq!((last.start, last.len, last.reads), (count - 1, 1, 1));
    assert_eq!(last.target, "zero");
}
