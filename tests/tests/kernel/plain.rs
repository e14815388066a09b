//! Targets that keep nothing on their components but the guest's bytes.

use fastrand::Rng;

use crate::duo::{Checked, Duo, Mix};
use crate::sides::sectors;

/// Ranges of components, none of which anybody else has: with two ways to one sector, one write could fight itself.
struct Room {
    free: Vec<(&'static str, u64)>,
}

impl Room {
    fn new() -> Room {
        Room { free: ["a", "b", "c", "d"].map(|name| (name, 0)).to_vec() }
    }

    /// A range of so many sectors or, at a component's end, fewer, in multiples of `unit`.
    fn take(&mut self, rng: &mut Rng, most: u64, unit: u64) -> (&'static str, u64, u64) {
        loop {
            let (name, free) = rng.choice(&mut self.free).expect("four components");
            let start = *free + rng.u64(..9);
            let left = sectors(name).saturating_sub(start);
            let len = most.min(left) / unit * unit;
            if len > 0 {
                *free = start + len;
                return (name, start, len);
            }
        }
    }

    /// As [`take`](Self::take), all of the length.
    fn exactly(&mut self, rng: &mut Rng, len: u64) -> (&'static str, u64) {
        let (name, start, _) = self.take(rng, len, len);
        (name, start)
    }
}

/// A table as it grows.
#[derive(Default)]
struct Lines {
    text: Vec<String>,
    borders: Vec<u64>,
    end: u64,
}

impl Lines {
    fn add(&mut self, len: u64, params: &str) {
        self.text.push(format!("{} {len} {params}", self.end));
        self.borders.push(self.end);
        self.end += len;
    }

    fn linear(&mut self, rng: &mut Rng, room: &mut Room) {
        let most = rng.u64(1..500);
        let (name, start, len) = room.take(rng, most, 1);
        self.add(len, &format!("linear {{{name}}} {start}"));
    }

    fn mix<'a>(&self, device: &'a str) -> Mix<'a> {
        let borders = self.borders.iter().copied().chain([self.end]).collect();
        Mix { borders, ..Mix::new(device, self.end) }
    }

    fn table(&self) -> String {
        self.text.join("\n")
    }
}

/// Creates it, runs the operations, compares.
fn one_device(duo: &mut Duo<'_>, count: u64, lines: &Lines, change: impl Fn(&mut Mix<'_>)) -> Checked {
    duo.create("disk", &lines.table())?;
    let mut mix = lines.mix("disk");
    change(&mut mix);
    duo.play(count, &[mix])?;
    duo.finish()
}

pub fn linear(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (mut lines, mut room) = (Lines::default(), Room::new());
    for _ in 0..duo.rng.u8(1..7) {
        lines.linear(&mut duo.rng, &mut room);
    }
    one_device(duo, count, &lines, |_| ())
}

/// A line of stripes in free ranges.
fn stripes(rng: &mut Rng, room: &mut Room) -> (u64, String) {
    let chunk = *rng.choice(&[1, 2, 3, 8, 8, 16, 24, 64]).expect("a chunk");
    let (legs, rows) = (rng.u64(2..=4), rng.u64(1..=400 / chunk));
    let text: String = (0..legs)
        .map(|_| {
            let (name, start) = room.exactly(rng, rows * chunk);
            format!(" {{{name}}} {start}")
        })
        .collect();
    (legs * rows * chunk, format!("striped {legs} {chunk}{text}"))
}

pub fn striped(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (mut lines, mut room) = (Lines::default(), Room::new());
    lines.linear(&mut duo.rng, &mut room);
    for _ in 0..duo.rng.u8(1..3) {
        let (len, params) = stripes(&mut duo.rng, &mut room);
        lines.add(len, &params);
    }
    one_device(duo, count, &lines, |_| ())
}

/// Since when these targets take discards; an older kernel has then none for the whole device, we do.
const DISCARDS_SINCE: [(&str, [u32; 3]); 2] = [("zero", [1, 2, 0]), ("error", [1, 6, 0])];

fn among_linear(duo: &mut Duo<'_>, count: u64, target: &str) -> Checked {
    let (mut lines, mut room) = (Lines::default(), Room::new());
    for _ in 0..3 {
        lines.linear(&mut duo.rng, &mut room);
        lines.add(duo.rng.u64(1..60), target);
    }
    lines.linear(&mut duo.rng, &mut room);
    let since = DISCARDS_SINCE.iter().find(|(name, _)| *name == target).map(|(_, version)| *version);
    let discards = duo.kernel.version(target) >= since;
    one_device(duo, count, &lines, |mix| mix.discards = discards)
}

pub fn zero(duo: &mut Duo<'_>, count: u64) -> Checked {
    among_linear(duo, count, "zero")
}

pub fn error(duo: &mut Duo<'_>, count: u64) -> Checked {
    among_linear(duo, count, "error")
}

pub fn delay(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (mut lines, mut room) = (Lines::default(), Room::new());
    lines.linear(&mut duo.rng, &mut room);
    // A range for each class of operations: what is read is then not what was written.
    for classes in 1..=3 {
        let len = duo.rng.u64(1..300);
        let text: String = (0..classes)
            .map(|_| {
                let (name, start) = room.exactly(&mut duo.rng, len);
                let milliseconds = duo.rng.choice([0, 0, 1, 3]).expect("a delay");
                format!(" {{{name}}} {start} {milliseconds}")
            })
            .collect();
        lines.add(len, &format!("delay{text}"));
    }
    one_device(duo, count, &lines, |_| ())
}

pub fn flakey(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (mut lines, mut room) = (Lines::default(), Room::new());
    let byte = duo.rng.u32(1..1500);
    // States that do not change in an hour: what is up when a clock of seconds says so would be anybody's guess.
    let states = [
        "3600 0".to_owned(),
        "3600 1 1 drop_writes".to_owned(),
        "0 3600 1 drop_writes".to_owned(),
        "0 3600 1 error_writes".to_owned(),
        format!("0 3600 5 corrupt_bio_byte {byte} w {} 0", duo.rng.u8(..)),
    ];
    for state in &states {
        lines.linear(&mut duo.rng, &mut room);
        let most = duo.rng.u64(1..300);
        let (name, start, len) = room.take(&mut duo.rng, most, 1);
        lines.add(len, &format!("flakey {{{name}}} {start} {state}"));
    }
    duo.create("disk", &lines.table())?;
    // Zeroes: the kernel writes its page of zeros where a device cannot write zeroes by itself, and older ones do not
    // corrupt that one.
    duo.play(count, &[Mix { zeroes: false, ..lines.mix("disk") }])?;
    finish_flakey(duo)
}

/// With nothing said a flakey that is down fails all.
pub fn flakey_down(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (first, second) = (duo.rng.u64(1..1000), duo.rng.u64(1..600));
    let end = first + second + 300;
    let table = format!(
        "0 {first} linear {{a}} 0\n{first} {second} flakey {{b}} 7 0 3600\n{} 300 linear {{c}} 3",
        first + second
    );
    duo.create("disk", &table)?;
    duo.play(count, &[Mix { borders: vec![first, first + second], ..Mix::new("disk", end) }])?;
    finish_flakey(duo)
}

/// Before kernels had `error_reads` and corrupted what is read (we do: `tests/tests/targets`), their tables did not show
/// what happens by default, and ended in a blank.
fn finish_flakey(duo: &mut Duo<'_>) -> Checked {
    let newer = |text: &str| {
        let lines = text.lines().map(|line| {
            let flakey = line.split(' ').nth(2) == Some("flakey");
            match line.strip_suffix(' ').filter(|_| flakey) {
                Some(old) => old.strip_suffix(" 0").map_or(old.to_owned(), |old| match old.split(' ').count() {
                    7 => format!("{old} 2 error_reads error_writes"),
                    _ => format!("{old} 0"),
                }),
                None => line.to_owned(),
            }
        });
        lines.map(|line| line + "\n").collect()
    };
    duo.settle_as("table", "disk", newer, |_| true)?;
    duo.same_status("disk")?;
    duo.remove_all()?;
    duo.same_components(|_, _| true)
}

pub fn unstriped(duo: &mut Duo<'_>, count: u64) -> Checked {
    let mut lines = Lines::default();
    for name in ["a", "b", "c"] {
        let (stripes, chunk) = (duo.rng.u64(1..=4), *duo.rng.choice(&[1, 3, 8, 16, 50]).expect("a chunk"));
        let (number, start) = (duo.rng.u64(..stripes), duo.rng.u64(..50));
        let rows = duo.rng.u64(1..=(sectors(name) - start) / (stripes * chunk));
        lines.add(rows * chunk, &format!("unstriped {stripes} {chunk} {number} {{{name}}} {start}"));
    }
    one_device(duo, count, &lines, |_| ())
}

pub fn switch(duo: &mut Duo<'_>, count: u64) -> Checked {
    let len = duo.rng.u64(500..1400);
    let region = *duo.rng.choice(&[1, 8, 10, 64, 100]).expect("a region");
    let regions = len.div_ceil(region);
    duo.create("disk", &format!("0 {len} switch 3 {region} 0 {{a}} 7 {{b}} 0 {{c}} 100"))?;
    // The kernel cuts no discards at regions: all of it goes to the path of its first sector. That is harmless where all
    // paths lead to one disk, and elsewhere loses data; we cut.
    let borders = (0..=regions).map(|n| (n * region).min(len)).collect();
    let mix = Mix { borders, discard_within: region, ..Mix::new("disk", len) };
    for _ in 0..5 {
        duo.play(count / 5, std::slice::from_ref(&mix))?;
        let mut words = vec!["message".to_owned(), "disk".to_owned(), "0".to_owned(), "set_region_mappings".to_owned()];
        for _ in 0..duo.rng.u8(1..6) {
            let at = duo.rng.u64(..regions);
            words.push(format!("{at:x}:{:x}", duo.rng.u8(..3)));
            // The next region, and then both again as often as there is room.
            if at + 1 < regions {
                words.push(format!(":{:x}", duo.rng.u8(..3)));
                words.push(format!("R2,{:x}", duo.rng.u64(..=(regions - at - 2).min(20))));
            }
        }
        duo.must(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    for wrong in ["0:3", "ffff:0", "x", "0:", "R"] {
        duo.must_not(&["message", "disk", "0", "set_region_mappings", wrong])?;
    }
    duo.read_all("disk", len)?;
    duo.finish()
}

/// Devices on devices, with a table exchanged below.
pub fn stack(duo: &mut Duo<'_>, count: u64) -> Checked {
    let mut room = Room::new();
    let (len, params) = stripes(&mut duo.rng, &mut room);
    duo.create("low", &format!("0 {len} {params}"))?;
    let skip = duo.rng.u64(..len.min(20));
    let (name, start) = room.exactly(&mut duo.rng, 100);
    let rest = len - skip;
    duo.create("middle", &format!("0 100 linear {{{name}}} {start}\n100 {rest} linear /dev/mapper/low {skip}"))?;
    let all = 100 + rest;
    duo.create("top", &format!("0 {all} delay /dev/mapper/middle 0 0"))?;
    let mixes = [Mix::new("low", len), Mix::new("middle", all), Mix::new("top", all)];
    duo.play(count / 2, &mixes)?;
    let (name, start) = room.exactly(&mut duo.rng, len);
    duo.swap("low", &format!("0 {len} linear {{{name}}} {start}"))?;
    duo.play(count - count / 2, &mixes)?;
    duo.finish()
}
