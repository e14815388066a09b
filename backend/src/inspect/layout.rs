//! A disk segment by segment, with what each contains.

use dm_table::{Sectors, Table};
use serde::Serialize;

use super::findings::{Inside, MOST_LOOKS};
use super::{Assembled, Contents, Kind, Partition, Piece, Window, look};
use crate::chain::Chain;
use crate::map::Step;

/// A segment of a disk.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub len: u64,
    /// Type of its target.
    pub target: String,
    /// Where it leads.
    pub to: String,
    /// What begins there; nothing where that cannot be read, or where the segment goes on with the one before.
    pub contents: Option<Contents>,
    /// The partition of the disk that begins there: its number, and its name in a GPT.
    pub partition: Option<String>,
    /// It goes on where the segment before ends.
    pub continues: bool,
    /// Whether it cannot be written although the disk can.
    pub read_only: bool,
}

/// See the module's text.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layout {
    /// Sectors of the disk.
    pub sectors: u64,
    /// What the disk itself is: its partition table, as a rule.
    pub disk: Option<Contents>,
    /// Its segments.
    pub parts: Vec<Part>,
}

impl Layout {
    /// By reading the disk.
    pub fn of(disk: &Assembled) -> Layout {
        Layout::through(disk.chain(), disk)
    }

    /// By reading a disk that lies over another one, whose segments they are.
    pub fn through(below: &Chain, disk: &Assembled) -> Layout {
        let map = &below.map;
        let own = look(disk, disk.size()).ok();
        let mut parts = Vec::new();
        let mut before = None;
        for place in map.places() {
            let mut lies = None;
            map.pieces(Sectors::new(place.start), Sectors::new(1), &mut |piece| lies = Some(piece.step));
            let is_linear = place.target == "linear";
            let at = match lies {
                Some(Step::Device { dev, at }) if is_linear => Some((dev, at.get())),
                _ => None,
            };
            let continues = at.is_some() && at == before;
            before = at.map(|(dev, at)| (dev, at + place.len));
            let len = place.len.saturating_mul(512);
            let window = Window { bytes: disk, start: place.start.saturating_mul(512), len };
            let is_device = is_linear || place.target == "striped";
            let seen = is_device && !continues && parts.len() < MOST_LOOKS;
            parts.push(Part {
                start: place.start,
                len: place.len,
                target: place.target.to_owned(),
                to: place.to(),
                contents: seen.then(|| look(&window, len).ok()).flatten(),
                partition: own.as_ref().and_then(|own| named(own, place.start)),
                continues,
                read_only: place.read_only,
            });
        }
        Layout { sectors: disk.chain().len().get(), disk: own, parts }
    }

    /// Without reading anything: by the table alone.
    pub fn unread(table: &Table) -> Layout {
        let part = |line: &dm_table::Line| {
            let text = Table { lines: vec![line.clone()] }.to_string();
            let mut words = text.splitn(4, ' ').skip(2);
            Part {
                start: line.start.get(),
                len: line.len.get(),
                target: words.next().unwrap_or_default().to_owned(),
                to: words.next().unwrap_or_default().trim().to_owned(),
                contents: None,
                partition: None,
                continues: false,
                read_only: false,
            }
        };
        Layout { sectors: table.len().get(), disk: None, parts: table.lines.iter().map(part).collect() }
    }

    /// Its parts as pieces, for what their contents say against them.
    pub fn pieces(&self, name: &str, write: bool) -> Vec<Piece> {
        let rooms = self.rooms();
        let known = self.parts.iter().zip(rooms);
        known
            .filter_map(|(part, room)| {
                let contents = part.contents.clone()?;
                let end = part.start + part.len;
                let to = part.to.split(',').next().unwrap_or_default();
                Some(Piece {
                    name: format!("{name}, sectors {}..{end} ({to})", part.start),
                    start: 0,
                    len: part.len,
                    at: part.start,
                    write: write && !part.read_only,
                    room: Some(room),
                    inside: Inside::Known(contents),
                    ..Piece::default()
                })
            })
            .collect()
    }

    /// For each part the sectors that belong together from its beginning on: up to the end of the partition that begins there,
    /// and to where something else begins or where nothing can be kept.
    fn rooms(&self) -> Vec<u64> {
        // From the end: what goes on belongs to all parts before it up to one that does not.
        let mut rooms = Vec::with_capacity(self.parts.len());
        let mut behind = 0;
        for part in self.parts.iter().rev() {
            let run = part.len + behind;
            behind = if part.goes_on() { run } else { 0 };
            let partitions = self.disk.iter().flat_map(|disk| &disk.partitions);
            let own = partitions.filter(|partition| partition.start == part.start && !is_extended(partition));
            rooms.push(own.map(|partition| partition.len).min().map_or(run, |len| run.min(len)));
        }
        rooms.reverse();
        rooms
    }
}

impl Part {
    /// Whether it may belong to what begins before it.
    fn goes_on(&self) -> bool {
        let begins = self.contents.as_ref().is_some_and(|its| !matches!(its.kind, Kind::Unknown | Kind::Blank));
        matches!(self.target.as_str(), "linear" | "striped") && !begins && self.partition.is_none()
    }
}

fn is_extended(partition: &Partition) -> bool {
    matches!(partition.kind.as_str(), "05" | "0f" | "85")
}

/// The partition that begins at a sector: `1 "EFI"`.
fn named(disk: &Contents, start: u64) -> Option<String> {
    let partition = disk.partitions.iter().find(|partition| partition.start == start && !is_extended(partition))?;
    let name = partition.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
    Some(format!("{}{name}", partition.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the rule says it, part by part.
    fn room(layout: &Layout, index: usize) -> u64 {
        let first = &layout.parts[index];
        let rest = layout.parts[index + 1..].iter().take_while(|part| part.goes_on());
        let run = first.len + rest.map(|part| part.len).sum::<u64>();
        let partitions = layout.disk.iter().flat_map(|disk| &disk.partitions);
        let own = partitions.filter(|partition| partition.start == first.start && !is_extended(partition));
        own.map(|partition| partition.len).min().map_or(run, |len| run.min(len))
    }

    #[test]
    fn rooms_are_what_each_part_finds_for_itself() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut shortened, mut longer) = (0, 0);
        for parts in 0..200 {
            let mut layout = Layout::default();
            let mut disk = Contents::of(Kind::Mbr);
            for _ in 0..parts {
                let (start, len) = (layout.sectors, rng.u64(1..100));
                let kind = [Kind::Unknown, Kind::Blank, Kind::Ext4][rng.usize(..3)];
                let partition = Partition {
                    number: 1,
                    start,
                    len: rng.u64(1..200),
                    kind: ["83", "05"][rng.usize(..2)].into(),
                    ..Partition::default()
                };
                let named = rng.u8(..8) == 0;
                layout.parts.push(Part {
                    start,
                    len,
                    target: ["linear", "linear", "linear", "striped", "error"][rng.usize(..5)].into(),
                    to: String::new(),
                    contents: rng.bool().then(|| Contents::of(kind)),
                    partition: (named && !is_extended(&partition)).then(|| "1".into()),
                    continues: false,
                    read_only: false,
                });
                disk.partitions.extend(named.then_some(partition));
                layout.sectors += len;
            }
            layout.disk = rng.bool().then_some(disk);
            let naive: Vec<u64> = (0..parts).map(|index| room(&layout, index)).collect();
            assert_eq!(layout.rooms(), naive, "{layout:?}");
            shortened += naive.iter().zip(&layout.parts).filter(|(room, part)| **room < part.len).count();
            longer += naive.iter().zip(&layout.parts).filter(|(room, part)| **room > part.len).count();
        }
        assert!(shortened > 50 && longer > 1000, "{shortened} {longer}");
    }
}
