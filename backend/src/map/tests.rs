use std::collections::HashMap;
use std::sync::Arc;

use dm_table::{Diagnostic, Format, Sectors, Source, parse};

use super::stripe::Leg;
use super::*;
use crate::device::{Discard, DiscardMethod, Limits};

const DISCARD: Discard = Discard { granularity: 4096, max_sectors: 1000, method: DiscardMethod::PunchHole };

fn limits(block: u32) -> Limits {
    Limits {
        logical_block: block,
        physical_block: block,
        alignment_offset: 0,
        io_min: block,
        io_opt: 0,
        discard: Some(DISCARD),
        write_zeroes: true,
    }
}

/// What names stand for in a test.
struct World {
    known: HashMap<String, Lower>,
    read_only: bool,
}

type Built = Result<(Map, Vec<Diagnostic>), Diagnostic>;

impl World {
    /// Devices a and b of 1,000,000 sectors with 512-byte blocks, and k with 4096-byte blocks.
    fn new() -> World {
        let mut world = World { known: HashMap::new(), read_only: false };
        world.device("a", 0, limits(512));
        world.device("b", 1, limits(512));
        world.device("k", 2, limits(4096));
        world
    }

    fn device(&mut self, name: &str, ix: u16, limits: Limits) {
        let device = Lower::Device { ix: DevIx(ix), name: name.to_owned(), size: Sectors::new(1_000_000), limits };
        self.known.insert(name.to_owned(), device);
    }

    fn build(&self, text: &str) -> Built {
        let source = Arc::new(Source::new("t", text));
        let file = parse(Arc::clone(&source), Format::Plain).expect("the test's table is right");
        Map::build(&source, &file.devices[0].table, self.read_only, &mut |dev| {
            self.known.get(dev.mapper_name().unwrap_or(&dev.text)).cloned().ok_or_else(|| LookupError {
                errno: "ENOENT",
                why: format!("no {} here", dev.text),
                help: Some("use a or b".to_owned()),
            })
        })
    }

    fn map(&self, text: &str) -> Map {
        match self.build(text) {
            Ok((map, _)) => map,
            Err(error) => panic!("{text:?}: {error}"),
        }
    }

    /// Builds a map that later tables can name.
    fn stack(&mut self, name: &str, text: &str) {
        let map = Arc::new(self.map(text));
        self.known.insert(name.to_owned(), Lower::Map(map));
    }

    fn refusal(&self, text: &str) -> Diagnostic {
        match self.build(text) {
            Ok(_) => panic!("{text:?} was not refused"),
            Err(error) => error,
        }
    }

    fn warnings(&self, text: &str) -> Vec<String> {
        let (_, warnings) = self.build(text).expect("only warned about");
        warnings.iter().map(|w| w.reason().to_owned()).collect()
    }
}

/// Pieces as `(what, sector on it, skip, len)`.
fn pieces(map: &Map, at: u64, len: u64) -> Vec<(&'static str, u64, u64, u64)> {
    let mut pieces = Vec::new();
    map.pieces(Sectors::new(at), Sectors::new(len), &mut |piece| {
        let (what, at) = name(piece.step);
        pieces.push((what, at, piece.skip.get(), piece.len.get()));
    });
    pieces
}

fn ranges(map: &Map, at: u64, len: u64) -> Vec<(&'static str, u64, u64)> {
    let mut ranges = Vec::new();
    map.ranges(Sectors::new(at), Sectors::new(len), &mut |step, len, _| {
        let (what, at) = name(step);
        ranges.push((what, at, len.get()));
    });
    ranges
}

fn name(step: Step) -> (&'static str, u64) {
    match step {
        Step::Device { dev, at } => (["a", "b", "k"][usize::from(dev.0)], at.get()),
        Step::Zero => ("zero", 0),
        Step::Error => ("error", 0),
        Step::Target { .. } => unreachable!("these maps have no stateful targets"),
    }
}

#[test]
fn a_map_can_be_shared_between_workers() {
    fn shared<T: Send + Sync>() {}
    shared::<Map>();
}

#[test]
fn requests_are_cut_where_segments_end() {
    let map = World::new().map("0 10 linear a 100\n10 10 zero\n20 10 error\n30 10 linear b 0");
    assert_eq!(map.len(), Sectors::new(40));
    assert_eq!(pieces(&map, 5, 30), [("a", 105, 0, 5), ("zero", 0, 5, 10), ("error", 0, 15, 10), ("b", 0, 25, 5)]);
    assert_eq!(pieces(&map, 9, 1), [("a", 109, 0, 1)]);
    assert_eq!(pieces(&map, 10, 1), [("zero", 0, 0, 1)]);
    assert_eq!(pieces(&map, 39, 1), [("b", 9, 0, 1)]);
    assert_eq!(pieces(&map, 12, 0), []);
    assert_eq!(ranges(&map, 5, 30), [("a", 105, 5), ("zero", 0, 10), ("error", 0, 10), ("b", 0, 5)]);
    assert_eq!(map.flush_set(), [DevIx(0), DevIx(1)]);
}

#[test]
fn what_lies_beyond_the_end_fails_and_does_not_panic() {
    let map = World::new().map("0 10 linear a 100");
    let walked = |at, len| {
        let mut out = Vec::new();
        map.walk((at, len, false), 0, None, &mut |piece| {
            let (what, at) = name(piece.step);
            out.push((what, at, piece.skip.get(), piece.len.get()));
        });
        let mut sum = 0;
        map.walk_ranges(at, len, None, &mut |_, len, _| sum += len.get());
        assert_eq!(sum, len);
        out
    };
    assert_eq!(walked(8, 5), [("a", 108, 0, 2), ("error", 0, 2, 3)]);
    assert_eq!(walked(10, 1), [("error", 0, 0, 1)]);
    assert_eq!(walked(u64::MAX, u64::MAX), [("error", 0, 0, u64::MAX)]);
}

#[test]
fn an_empty_table_is_an_empty_map() {
    let map = World::new().map("# nothing\n");
    assert!(map.is_empty());
    assert_eq!(map.segments(), 0);
    assert_eq!(map.limits().discard, None);
    assert!(map.flush_set().is_empty());
    let mut steps = Vec::new();
    map.walk((0, 8, false), 0, None, &mut |piece| steps.push(piece.step));
    assert_eq!(steps, [Step::Error]);
}

#[test]
fn chunks_go_round_the_stripes_and_discards_give_one_range_each() {
    let map = World::new().map("0 4 zero\n4 48 striped 3 4 a 100 b 200 a 1000");
    // Chunks of 4 sectors: a b a' a b a' ...
    assert_eq!(pieces(&map, 4 + 6, 12), [("b", 202, 0, 2), ("a", 1000, 2, 4), ("a", 104, 6, 4), ("b", 204, 10, 2)]);
    assert_eq!(ranges(&map, 4 + 6, 12), [("b", 202, 4), ("a", 1000, 4), ("a", 104, 4)]);
    assert_eq!(ranges(&map, 4 + 5, 2), [("b", 201, 2)]);
    assert_eq!(ranges(&map, 4, 48), [("a", 100, 16), ("b", 200, 16), ("a", 1000, 16)]);
}

#[test]
fn a_single_stripe_is_linear() {
    let map = World::new().map("0 64 striped 1 8 a 16");
    assert_eq!(pieces(&map, 4, 40), [("a", 20, 0, 40)]);
    assert_eq!(map.limits().io_opt, 4096);
}

#[test]
fn linear_chains_of_any_depth_are_one_segment() {
    let mut world = World::new();
    world.stack("m", "0 10000 linear a 7");
    for level in 1..5000 {
        let text = format!("0 {} linear /dev/mapper/m 1", 10000 - level);
        world.stack("m", &text);
    }
    let map = world.map("0 2 linear /dev/mapper/m 0");
    assert_eq!((map.segments(), map.depth), (1, 0));
    assert_eq!(pieces(&map, 1, 1), [("a", 7 + 4999 + 1, 0, 1)]);
}

#[test]
fn a_part_of_a_striped_segment_stays_striped() {
    let mut world = World::new();
    world.stack("s", "0 48 striped 2 4 a 0 b 0");
    let map = world.map("0 20 linear /dev/mapper/s 6\n20 6 linear /dev/mapper/s 0");
    assert_eq!((map.segments(), map.depth), (2, 0));
    assert_eq!(pieces(&map, 0, 8), [("b", 2, 0, 2), ("a", 4, 2, 4), ("b", 4, 6, 2)]);
    assert_eq!(ranges(&map, 0, 8), [("b", 2, 4), ("a", 4, 4)]);
    assert_eq!(pieces(&map, 18, 4), [("a", 12, 0, 2), ("a", 0, 2, 2)], "across the two parts");
}

#[test]
fn a_stripe_over_one_linear_piece_is_a_stripe_over_the_device() {
    let mut world = World::new();
    world.stack("l", "0 100 linear a 50\n100 100 linear b 0\n200 100 zero");
    let map = world.map("0 80 striped 2 8 /dev/mapper/l 10 /dev/mapper/l 100");
    assert_eq!(map.depth, 0);
    assert_eq!(pieces(&map, 7, 2), [("a", 67, 0, 1), ("b", 0, 1, 1)]);

    let map = world.map("0 80 striped 2 8 /dev/mapper/l 80 /dev/mapper/l 180");
    assert_eq!(map.depth, 1);
    let Segment::Striped(striped) = &map.entries[0].segment else { panic!("striped expected") };
    assert!(matches!(striped.legs[0], Leg::Map { .. }));
    // The third chunk of each stripe crosses into the lower map's next line.
    assert_eq!(pieces(&map, 32, 16), [("a", 146, 0, 4), ("b", 0, 4, 4), ("b", 96, 8, 4), ("zero", 0, 12, 4)]);
    assert_eq!(map.flush_set(), [DevIx(0), DevIx(1)]);
}

/// The steps of a request to write, and those of a discard.
fn changes(map: &Map, at: u64, len: u64) -> (Vec<Step>, Vec<Step>) {
    let (at, len, mut both) = (Sectors::new(at), Sectors::new(len), (Vec::new(), Vec::new()));
    map.cut(at, len, true, &mut |piece| both.0.push(piece.step));
    map.ranges(at, len, &mut |step, _, _| both.1.push(step));
    both
}

#[test]
fn what_lies_on_a_read_only_device_is_read_and_not_written() {
    let mut world = World::new();
    world.stack("low", "0 8 linear b 100\n8 8 zero\n16 8 error\n24 16 striped 2 4 b 0 b 500\n40 8 delay b 300 0");
    world.known.values_mut().for_each(|lower| {
        if let Lower::Map(map) = lower {
            *lower = Lower::Map(Arc::new(map.for_reading()));
        }
    });
    let low = "/dev/mapper/low";
    let map = world
        .map(&format!("0 8 delay a 0 0\n8 48 linear {low} 0\n56 16 striped 2 4 {low} 4 a 8\n72 8 delay {low} 0 0"));
    let ours = [DevIx(0)];
    assert_eq!((map.written(), map.flush_set()), (&ours[..], &ours[..]));
    assert_eq!(map.devices(), [DevIx(0), DevIx(1)]);
    assert!(map.limits().discard.is_some());
    let read = [pieces(&map, 8, 40), pieces(&map, 56, 16)].concat();
    assert_eq!(&read[..3], [("b", 100, 0, 8), ("zero", 0, 8, 8), ("error", 0, 16, 8)]);
    assert_eq!(&read[3..7], [("b", 0, 24, 4), ("b", 500, 28, 4), ("b", 4, 32, 4), ("b", 504, 36, 4)]);
    assert_eq!(&read[7..], [("b", 104, 0, 4), ("a", 8, 4, 4), ("zero", 0, 8, 4), ("a", 12, 12, 4)]);
    for sector in 8..56 {
        assert_eq!(changes(&map, sector, 1), (vec![Step::Error], vec![Step::Error]), "{sector}");
    }
    let to = |at| Step::Device { dev: DevIx(0), at: Sectors::new(at) };
    assert_eq!(changes(&map, 56, 8), (vec![Step::Error, to(8)], vec![Step::Error, to(8)]));
    // A target over it is asked, and cannot do it either.
    let under = |target: u32| map.target(target).unwrap().devices();
    assert_eq!((under(0), under(2)), (vec![DevIx(0); 3], vec![DevIx(1); 3]));
    let mut steps = Vec::new();
    map.cut(Sectors::new(48), Sectors::new(8), false, &mut |piece| steps.push(piece.step));
    assert_eq!(steps, [Step::Target { target: 1, at: Sectors::ZERO }], "its targets come after ours");
}

#[test]
fn what_a_table_writes_and_what_it_only_names() {
    let world = World::new();
    let map = world.map("0 8 linear a 0\n8 8 error b 0\n16 8 zero\n24 8 flakey a 8 1 1");
    assert_eq!(map.written(), [DevIx(0)]);
    let source =
        Source::new("test", "0 8 linear a 0\n8 8 error b 0\n16 16 striped 2 8 c 0 d 0\n32 8 delay e 0 1 f 0 1");
    let file = dm_table::parse(Arc::new(source), Format::Auto).unwrap();
    let mut written: Vec<&str> = writes(&file.devices[0].table).into_iter().collect();
    written.sort_unstable();
    assert_eq!(written, ["a", "c", "d", "e", "f"]);
}

#[test]
fn striped_levels_are_bounded() {
    let mut world = World::new();
    // Two lines, so that no stripe over it can be flattened.
    world.stack("m", "0 8 linear a 0\n8 8 linear b 0");
    for _ in 0..MAX_STRIPED_DEPTH {
        world.stack("m", "0 16 striped 2 4 /dev/mapper/m 0 /dev/mapper/m 6");
    }
    // The deepest stack allowed works.
    let map = world.map("0 16 linear /dev/mapper/m 0");
    assert_eq!(map.depth, MAX_STRIPED_DEPTH);
    let mut sectors = 0;
    map.pieces(Sectors::ZERO, map.len(), &mut |piece| sectors += piece.len.get());
    assert_eq!(sectors, 16);

    let refusal = world.refusal("0 16 striped 2 4 /dev/mapper/m 0 /dev/mapper/m 6");
    assert_eq!(refusal.reason(), "striped: more than 64 striped targets on top of one another");
    assert_eq!((refusal.line(), refusal.column()), (1, 18));
}

#[test]
fn doubling_tables_do_not_fill_memory() {
    let mut world = World::new();
    world.read_only = true;
    world.stack("m", "0 1 linear a 0");
    let mut len = 1u64;
    for _ in 0..20 {
        world.stack("m", &format!("0 {len} linear /dev/mapper/m 0\n{len} {len} linear /dev/mapper/m 0"));
        len *= 2;
    }
    assert_eq!(world.map(&format!("0 {len} linear /dev/mapper/m 0")).segments(), MAX_SEGMENTS);
    let refusal = world.refusal(&format!("0 {len} linear /dev/mapper/m 0\n{len} 1 zero"));
    assert_eq!(refusal.reason(), "more than 1048576 segments");
    assert_eq!(refusal.line(), 2);
}

#[test]
fn every_one_of_ten_thousand_segments_is_found() {
    let mut text = String::new();
    for i in 0..10_000u64 {
        text += &format!("{} 3 linear {} {}\n", i * 3, ["a", "b"][(i % 2) as usize], i * 7);
    }
    let mut world = World::new();
    world.read_only = true;
    let map = world.map(&text);
    for i in 0..10_000u64 {
        let name = ["a", "b"][(i % 2) as usize];
        assert_eq!(pieces(&map, i * 3 + 1, 2), [(name, i * 7 + 1, 0, 2)]);
    }
}

#[test]
fn look_up_errors_come_line_by_line_and_before_sizes() {
    let world = World::new();
    let refusal = world.refusal("0 9999999 linear a 0\n9999999 8 linear nope 0");
    assert_eq!(refusal.reason(), "linear: Device lookup failed (-ENOENT)");
    assert_eq!((refusal.line(), refusal.column()), (2, 18));
    let refusal = world.refusal("0 16 striped 2 8 a 0 nope 0");
    assert_eq!(refusal.reason(), "striped: Couldn't parse stripe destination (-ENOENT)");
    let refusal = world.refusal("0 16 error nope 0\n16 8 linear gone 0");
    assert_eq!(refusal.reason(), "error: Device lookup failed (-ENOENT)");
}

#[test]
fn sizes_are_checked_against_lower_maps_too() {
    let mut world = World::new();
    world.stack("low", "0 100 zero");
    let refusal = world.refusal("0 8 zero\n8 101 linear /dev/mapper/low 0");
    assert_eq!(refusal.reason(), "low too small for target: start=0, len=101, dev_size=100");
    assert_eq!((refusal.line(), refusal.column()), (2, 3));
    let refusal = world.refusal("0 8 linear a 1000000");
    assert_eq!(refusal.reason(), "a too small for target: start=1000000, len=8, dev_size=1000000");
    assert_eq!(refusal.column(), 14, "the start is what is wrong");
    let refusal = world.refusal("0 8 linear a 18446744073709551615");
    assert!(refusal.reason().starts_with("a too small for target"));
    world.stack("none", "");
    let refusal = world.refusal("0 8 linear /dev/mapper/none 0");
    assert_eq!(refusal.reason(), "none too small for target: start=0, len=8, dev_size=0");
}

#[test]
fn striped_lines_ask_for_whole_rows() {
    let world = World::new();
    let stacked = *world.map("0 128 striped 4 8 a 0 b 0 a 100 b 100").limits();
    assert_eq!((stacked.io_min, stacked.io_opt), (4096, 16384));
    // Rows of 3 and 2 chunks of 4 KiB meet every 6 chunks.
    let two = "0 144 striped 3 8 a 0 b 0 a 200\n144 128 striped 2 8 b 600 a 600";
    assert_eq!(world.map(two).limits().io_opt, 6 * 4096);
}

#[test]
fn the_largest_block_of_all_devices_wins() {
    let world = World::new();
    let stacked = *world.map("0 8 linear a 0\n8 16 linear k 0\n24 8 zero").limits();
    assert_eq!((stacked.logical_block, stacked.physical_block, stacked.io_min), (4096, 4096, 4096));
    assert!(!stacked.misaligned);
    let refusal = world.refusal("0 9 linear a 0\n9 16 linear k 0");
    assert_eq!(refusal.reason(), "table line 1 (start sect 9 len 16) not aligned to h/w logical block size 4096");
    assert_eq!((refusal.line(), refusal.column()), (2, 1));
    let refusal = world.refusal("0 16 linear k 0\n16 9 linear a 0");
    assert_eq!(refusal.reason(), "table line 2 (start sect 16 len 9) not aligned to h/w logical block size 4096");
    assert_eq!((refusal.line(), refusal.column()), (2, 4));
    // Blocks of a lower map count as a device's do.
    let mut world = world;
    world.stack("low", "0 16 linear k 0");
    let refusal = world.refusal("0 4 linear /dev/mapper/low 0");
    assert_eq!(refusal.reason(), "len=4 not aligned to h/w logical block size 4096 of low");
}

#[test]
fn discard_and_write_zeroes_need_every_device() {
    let mut world = World::new();
    let mut none = limits(512);
    none.discard = None;
    none.write_zeroes = false;
    world.device("n", 1, none);
    let stacked = *world.map("0 8 linear a 0\n8 8 zero\n16 8 error").limits();
    assert_eq!(stacked.discard, Some(StackedDiscard { granularity: 4096, max_sectors: 1000 }));
    assert!(stacked.write_zeroes);
    let stacked = *world.map("0 8 linear a 0\n8 8 linear n 0").limits();
    assert_eq!((stacked.discard, stacked.write_zeroes), (None, false));
    // No data of this device is reached.
    let stacked = *world.map("0 8 error n 0").limits();
    assert!(stacked.discard.is_some());
    let stacked = *world.map("0 8 zero").limits();
    assert_eq!(stacked.discard, Some(StackedDiscard { granularity: 512, max_sectors: u64::from(u32::MAX) }));
}

#[test]
fn alignment_offsets_follow_the_start_sector() {
    let mut world = World::new();
    let mut disk = limits(512);
    disk.physical_block = 4096;
    disk.io_min = 4096;
    world.device("e", 0, disk);
    let (map, warnings) = world.build("0 64 linear e 7").expect("a 512e disk may be misaligned");
    assert_eq!(map.limits().alignment_offset, 512);
    assert_eq!(warnings, []);
    let reasons = world.warnings("0 64 linear e 7\n64 64 linear e 100");
    assert_eq!(reasons, ["adding target device (start sect 64 len 64) caused an alignment inconsistency"]);
    let many: String = (0..100).map(|i| format!("{} 64 linear e {}\n", i * 64, 100 + i * 65)).collect();
    let reasons = world.warnings(&many);
    assert_eq!(reasons.len(), 9, "{reasons:?}");
    assert!(reasons[8].ends_with("more alignment inconsistencies in this table"));
}

#[test]
fn limits_without_sense_do_no_harm() {
    let mut world = World::new();
    let nonsense = Limits {
        logical_block: 0,
        physical_block: 3,
        alignment_offset: u32::MAX,
        io_min: 1001,
        io_opt: u32::MAX,
        discard: None,
        write_zeroes: false,
    };
    world.device("x", 0, nonsense);
    let map = world.map("0 128 striped 2 8 x 0 b 0\n128 9 linear x 1000");
    assert_eq!(map.limits().logical_block, 512);
}

#[test]
fn sectors_reachable_in_two_ways_are_warned_about() {
    let mut world = World::new();
    assert_eq!(
        world.warnings("0 100 linear a 0\n# b is between\n100 100 linear b 0\n200 100 linear a 50"),
        ["sectors 50..100 of a are reachable through lines 1 and 4"]
    );
    assert_eq!(
        world.warnings("0 128 striped 2 8 a 0 a 63"),
        ["sectors 63..64 of a are reachable through line 1, columns 19 and 23"]
    );
    assert!(world.warnings("0 128 striped 2 8 a 0 a 64").is_empty());
    assert!(world.warnings("0 100 linear a 0\n100 100 error a 0").is_empty());
    // A long range hides behind shorter ones that start later.
    assert_eq!(
        world.warnings("0 1000 linear a 0\n1000 8 linear a 8\n1008 8 linear a 500"),
        [
            "sectors 8..16 of a are reachable through lines 1 and 2",
            "sectors 500..508 of a are reachable through lines 1 and 3"
        ]
    );
    // Through a lower map that has them once, in many segments.
    world.stack("low", "0 10 linear a 0\n10 10 linear a 10\n20 10 linear b 0");
    assert!(world.warnings("0 30 linear /dev/mapper/low 0").is_empty());
    assert_eq!(
        world.warnings("0 30 linear /dev/mapper/low 0\n30 100 linear a 5"),
        ["sectors 5..20 of a are reachable through lines 1 and 2"]
    );
    world.read_only = true;
    assert!(world.warnings("0 8 linear a 0\n8 8 linear a 0").is_empty());
}

#[test]
fn overlap_warnings_are_few_and_fast() {
    let world = World::new();
    let text: String = (0..20_000).map(|i| format!("{} 8 linear a {}\n", i * 8, i % 100)).collect();
    let reasons = world.warnings(&text);
    assert_eq!(reasons.len(), 9);
    assert!(reasons[8].ends_with("more device ranges are reachable in two ways"), "{}", reasons[8]);
}

#[test]
fn components_that_do_not_line_up_are_known_at_the_top() {
    let mut world = World::new();
    // Chunks of half a block: reported for the line, and kept for whatever is put on top of it.
    world.stack("s", "0 128 striped 2 4 k 0 a 0");
    assert!(world.map("0 64 linear /dev/mapper/s 0").limits().misaligned);
    assert!(!world.map("0 128 striped 2 8 k 0 a 0").limits().misaligned);
}

#[test]
fn refusals_say_where_why_and_what_would_do() {
    let world = World::new();
    let refusal = world.refusal("0 8 zero\n8 2000000 linear a 400000");
    assert_eq!(
        refusal.to_string(),
        "\
error: a too small for target: start=400000, len=2000000, dev_size=1000000
  --> t:2:3
   |
 2 | 8 2000000 linear a 400000
   |   ^^^^^^^ found a line of 2000000 sectors
   = expected: at most 600000 sectors from sector 400000 on
   = help: a has 1000000 sectors (512000000 bytes): make the line shorter or the device larger"
    );
}

#[test]
fn an_unstriped_line_gives_one_stripe_back() {
    let mut world = World::new();
    let map = world.map("0 16 unstriped 3 8 1 a 100");
    // Chunks of 8 sectors begin at 108 and 132.
    assert_eq!(pieces(&map, 0, 16), [("a", 108, 0, 8), ("a", 132, 8, 8)]);
    assert_eq!(pieces(&map, 5, 4), [("a", 113, 0, 3), ("a", 132, 3, 1)]);
    assert!(map.limits().discard.is_none());
    let whole = World::new().map("0 64 unstriped 1 8 7 a 0");
    assert_eq!(pieces(&whole, 0, 64), [("a", 56, 0, 64)]);
    assert!(whole.targets().is_empty(), "the only stripe is linear");
    world.stack("u", "0 16 unstriped 3 8 1 a 100");
    let above = world.map("0 10 linear /dev/mapper/u 4");
    assert_eq!(pieces(&above, 0, 10), [("a", 112, 0, 4), ("a", 132, 4, 6)]);
    // Both stripes in turn are the range again.
    world.stack("v", "0 16 unstriped 2 8 0 b 0");
    world.stack("w", "0 16 unstriped 2 8 1 b 0");
    let again = world.map("0 32 striped 2 8 /dev/mapper/v 0 /dev/mapper/w 0");
    assert_eq!(pieces(&again, 6, 12), [("b", 6, 0, 2), ("b", 8, 2, 8), ("b", 16, 10, 2)]);
}

#[test]
fn an_unstriped_line_ends_where_its_last_chunk_does() {
    let world = World::new();
    assert!(world.build("0 499984 unstriped 2 8 1 a 16").is_ok());
    let refusal = world.refusal("0 500000 unstriped 2 8 1 a 16");
    assert_eq!(refusal.reason(), "a too small for target: start=16, len=1000000, dev_size=1000000");
    let refusal = world.refusal("0 8 unstriped 4294967295 8 1 nope 18446744073709551608");
    assert_eq!(refusal.reason(), "unstriped: Couldn't get striped device (-EINVAL)");
    let refusal = world.refusal("0 16 unstriped 4294967295 8 1 a 18446744073709551600");
    assert!(refusal.reason().starts_with("a too small for target: start=18446744073709551600, len="), "{refusal}");
}

#[test]
fn stripes_of_one_device_lie_beside_each_other() {
    let world = World::new();
    assert!(world.warnings("0 64 unstriped 2 8 0 a 0\n64 64 unstriped 2 8 1 a 0").is_empty());
    assert_eq!(
        world.warnings("0 64 unstriped 2 8 0 a 0\n64 64 unstriped 2 8 1 a 104")[0],
        "sectors 112..120 of a are reachable through lines 1 and 2"
    );
}
