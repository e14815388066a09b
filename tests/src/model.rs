//! A naive model of tables over component bytes: one sector at a time, by recursion, with nothing of the
//! back end's map in it.

use std::fmt::Write as _;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What a target reads from and writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lower {
    /// A component, by its number.
    Component(usize),
    /// Another device of the same file, by its number.
    Device(usize),
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One range of a lower device, from this sector.
    Linear(Lower, u64),
    /// Chunks of so many sectors in turn over the legs, each from its sector.
    Striped(u64, Vec<(Lower, u64)>),
    /// Reads zeros, forgets writes.
    Zero,
    /// Fails.
    Error,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Sectors.
    pub len: u64,
    /// What serves them.
    pub target: Target,
}

/// Where a sector of a device ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Component number and sector.
    Component(usize, u64),
    /// Nowhere: reads zeros.
    Zero,
    /// Nowhere: fails.
    Error,
}

/// One device of a table file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Its table.
    pub lines: Vec<Line>,
}

impl Device {
    /// Sectors.
    pub fn len(&self) -> u64 {
        self.lines.iter().map(|line| line.len).sum()
    }

    /// Whether it has no sectors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A component as the model believes it to be.
#[derive(Clone, Debug)]
pub struct Component {
    /// Path, as the table names it.
    pub path: String,
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Sectors that were discarded since they were last written: they hold what they held or zeros, and
    /// nobody knows which before they are read.
    pub unsure: Vec<bool>,
}

impl Component {
    /// A component with these bytes.
    pub fn new(path: String, bytes: Vec<u8>) -> Self {
        let unsure = vec![false; bytes.len() / SECTOR];
        Component { path, bytes, unsure }
    }

    fn sector(&mut self, at: u64) -> &mut [u8] {
        let at = at as usize * SECTOR;
        &mut self.bytes[at..at + SECTOR]
    }

    /// Compares a sector with what was seen of it, and settles what was unsure.
    pub fn matches(&mut self, at: u64, seen: &[u8]) -> bool {
        if std::mem::take(&mut self.unsure[at as usize]) && seen.iter().all(|&byte| byte == 0) {
            self.sector(at).fill(0);
        }
        self.sector(at) == seen
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it worked.
    Done,
    /// Some sector failed; the others were done all the same.
    Failed,
}

/// Everything a daemon serves, as it should be.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Components.
    pub components: Vec<Component>,
    /// Devices, each on a socket of its own.
    pub devices: Vec<Device>,
}

impl World {
    /// Where a sector of a device ends up, by walking the tables.
    pub fn place(&self, device: usize, sector: u64) -> Place {
        let mut start = 0;
        for line in &self.devices[device].lines {
            if sector < start + line.len {
                let inside = sector - start;
                return match &line.target {
                    Target::Zero => Place::Zero,
                    Target::Error => Place::Error,
                    Target::Linear(lower, from) => self.below(*lower, from + inside),
                    Target::Striped(chunk, legs) => {
                        let number = inside / chunk;
                        let (lower, from) = legs[(number % legs.len() as u64) as usize];
                        let row = number / legs.len() as u64;
                        self.below(lower, from + row * chunk + inside % chunk)
                    }
                };
            }
            start += line.len;
        }
        panic!("test bug: sector {sector} past the end of device {device}");
    }

    fn below(&self, lower: Lower, sector: u64) -> Place {
        match lower {
            Lower::Component(number) => Place::Component(number, sector),
            Lower::Device(number) => self.place(number, sector),
        }
    }

    /// Sectors of a lower device.
    pub fn lower_len(&self, lower: Lower) -> u64 {
        match lower {
            Lower::Component(number) => (self.components[number].bytes.len() / SECTOR) as u64,
            Lower::Device(number) => self.devices[number].len(),
        }
    }

    /// Component sectors that a request touches, sorted.
    pub fn footprint(&self, device: usize, sector: u64, sectors: u64) -> Vec<(usize, u64)> {
        let mut touched: Vec<(usize, u64)> = (sector..sector + sectors)
            .filter_map(|s| match self.place(device, s) {
                Place::Component(number, at) => Some((number, at)),
                Place::Zero | Place::Error => None,
            })
            .collect();
        touched.sort_unstable();
        touched
    }

    fn each(
        &mut self,
        device: usize,
        sector: u64,
        sectors: u64,
        mut f: impl FnMut(&mut Component, u64, usize),
    ) -> Outcome {
        let mut outcome = Outcome::Done;
        for i in 0..sectors {
            match self.place(device, sector + i) {
                Place::Component(number, at) => f(&mut self.components[number], at, i as usize),
                Place::Zero => {}
                Place::Error => outcome = Outcome::Failed,
            }
        }
        outcome
    }

    /// A write.
    pub fn write(&mut self, device: usize, sector: u64, data: &[u8]) -> Outcome {
        let sectors = (data.len() / SECTOR) as u64;
        self.each(device, sector, sectors, |component, at, i| {
            component.sector(at).copy_from_slice(&data[i * SECTOR..(i + 1) * SECTOR]);
            component.unsure[at as usize] = false;
        })
    }

    /// Write-zeroes.
    pub fn write_zeroes(&mut self, device: usize, sector: u64, sectors: u64) -> Outcome {
        self.each(device, sector, sectors, |component, at, _| {
            component.sector(at).fill(0);
            component.unsure[at as usize] = false;
        })
    }

    /// A discard.
    pub fn discard(&mut self, device: usize, sector: u64, sectors: u64) -> Outcome {
        self.each(device, sector, sectors, |component, at, _| {
            component.unsure[at as usize] = true;
        })
    }

    /// What a read of so many sectors becomes.
    pub fn read_outcome(&self, device: usize, sector: u64, sectors: u64) -> Outcome {
        let fails = |s| self.place(device, s) == Place::Error;
        if (sector..sector + sectors).any(fails) { Outcome::Failed } else { Outcome::Done }
    }

    /// The first sector in which what a read returned is wrong.
    pub fn check_read(&mut self, device: usize, sector: u64, seen: &[u8]) -> Option<u64> {
        for (i, bytes) in seen.chunks(SECTOR).enumerate() {
            let at = sector + i as u64;
            let right = match self.place(device, at) {
                Place::Component(number, at) => self.components[number].matches(at, bytes),
                Place::Zero => bytes.iter().all(|&byte| byte == 0),
                Place::Error => true,
            };
            if !right {
                return Some(at);
            }
        }
        None
    }

    /// Component number and sector where the files differ from the model. Every sector of every file is
    /// compared, also those that no table reaches.
    pub fn check_components(&mut self) -> Option<(usize, u64)> {
        for (number, component) in self.components.iter_mut().enumerate() {
            let seen = std::fs::read(&component.path).expect("read a component");
            assert_eq!(seen.len(), component.bytes.len(), "{} changed its size", component.path);
            for at in 0..component.unsure.len() {
                let bytes = &seen[at * SECTOR..(at + 1) * SECTOR];
                if !component.matches(at as u64, bytes) {
                    return Some((number, at as u64));
                }
            }
        }
        None
    }

    fn lower_text(&self, lower: Lower) -> String {
        match lower {
            Lower::Component(number) => self.components[number].path.clone(),
            Lower::Device(number) => format!("/dev/mapper/{}", self.devices[number].name),
        }
    }

    /// The table lines of a device as dmsetup takes them.
    pub fn table(&self, device: usize) -> Vec<String> {
        let mut start = 0;
        let mut lines = Vec::new();
        for line in &self.devices[device].lines {
            let mut text = format!("{start} {} ", line.len);
            match &line.target {
                Target::Zero => text.push_str("zero"),
                Target::Error => text.push_str("error"),
                Target::Linear(lower, from) => {
                    let _ = write!(text, "linear {} {from}", self.lower_text(*lower));
                }
                Target::Striped(chunk, legs) => {
                    let _ = write!(text, "striped {} {chunk}", legs.len());
                    for (lower, from) in legs {
                        let _ = write!(text, " {} {from}", self.lower_text(*lower));
                    }
                }
            }
            lines.push(text);
            start += line.len;
        }
        lines
    }

    /// All devices as one concise file, in the given order.
    pub fn concise(&self, order: &[usize]) -> String {
        let devices: Vec<String> =
            order.iter().map(|&d| format!("{},,,rw,{}", self.devices[d].name, self.table(d).join(","))).collect();
        devices.join(";\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        let component = |n: u8| Component::new(format!("c{n}"), vec![n; 64 * SECTOR]);
        World {
            components: vec![component(1), component(2)],
            devices: vec![
                Device {
                    name: "low".into(),
                    lines: vec![
                        Line { len: 8, target: Target::Linear(Lower::Component(0), 4) },
                        Line {
                            len: 12,
                            target: Target::Striped(3, vec![(Lower::Component(0), 20), (Lower::Component(1), 1)]),
                        },
                        Line { len: 2, target: Target::Error },
                    ],
                },
                Device {
                    name: "top".into(),
                    lines: vec![
                        Line { len: 5, target: Target::Zero },
                        Line { len: 10, target: Target::Linear(Lower::Device(0), 6) },
                    ],
                },
            ],
        }
    }

    #[test]
    fn sectors_go_where_the_manual_says() {
        let world = world();
        let expect = [
            (0, Place::Component(0, 4)),
            (7, Place::Component(0, 11)),
            (8, Place::Component(0, 20)),
            (11, Place::Component(1, 1)),
            (13, Place::Component(1, 3)),
            (14, Place::Component(0, 23)),
            (19, Place::Component(1, 6)),
            (20, Place::Error),
        ];
        for (sector, place) in expect {
            assert_eq!(world.place(0, sector), place, "sector {sector}");
        }
        assert_eq!(world.place(1, 4), Place::Zero);
        assert_eq!(world.place(1, 5), Place::Component(0, 10));
        assert_eq!(world.place(1, 10), Place::Component(1, 1));
    }

    #[test]
    fn a_write_over_an_error_does_the_rest() {
        let mut world = world();
        assert_eq!(world.write(0, 19, &[9; 2 * SECTOR]), Outcome::Failed);
        assert_eq!(world.components[1].bytes[6 * SECTOR], 9);
    }

    #[test]
    fn tables_print_as_dmsetup_takes_them() {
        let world = world();
        assert_eq!(
            world.table(0),
            ["0 8 linear c0 4", "8 12 striped 2 3 c0 20 c1 1", "20 2 error"]
                .map(|line| line.replace("c1", "c2").replace("c0", "c1"))
        );
        assert_eq!(world.concise(&[1]), "top,,,rw,0 5 zero,5 10 linear /dev/mapper/low 6");
    }
}
