//! A chain of all targets. No two of its segments share a sector, and around each lie sectors that are nobody's.

use std::path::Path;

use fastrand::Rng;

use crate::files;
use crate::model::{Component, Device, Line, Lower, SECTOR, Target, World};
use crate::rng;

/// Sectors of the components: one on a disk, two legs of stripe sets, one in memory.
const SECTORS: [u64; 4] = [6144, 3072, 3072, 4096];

/// What is left of a component.
struct Room {
    component: usize,
    next: u64,
}

impl Room {
    fn take(&mut self, rng: &mut Rng, len: u64) -> u64 {
        let start = self.next + rng.u64(1..=24);
        self.next = start + len;
        assert!(self.next < SECTORS[self.component], "test bug: component {} is too small", self.component);
        start
    }

    fn linear(&mut self, rng: &mut Rng, len: u64) -> Line {
        let start = self.take(rng, len);
        Line { len, target: Target::Linear(Lower::Component(self.component), start) }
    }
}

fn striped(rng: &mut Rng, legs: &mut [Room], most: u64) -> Line {
    let chunk = *rng.choice(&[1, 3, 8, 16, 64]).unwrap_or(&8);
    let rows = rng.u64(1..=(most / chunk).max(1));
    let at = |room: &mut Room| (Lower::Component(room.component), room.take(rng, rows * chunk));
    let on: Vec<_> = legs.iter_mut().map(at).collect();
    Line { len: rows * chunk * on.len() as u64, target: Target::Striped(chunk, on) }
}

/// Makes the component files in `disk` and `memory`. The last device is the one to serve; with two it lies on the first.
pub fn make(rng: &mut Rng, disk: &Path, memory: &Path) -> World {
    let mut components = Vec::new();
    let leg = if rng.bool() { disk } else { memory };
    for (number, dir) in [disk, disk, leg, memory].into_iter().enumerate() {
        let path = dir.join(format!("component-{number}"));
        let bytes = rng::bytes(rng, SECTORS[number] as usize * SECTOR);
        files::component(&path, &bytes);
        components.push(Component::new(path.to_str().expect("a path of ASCII").to_owned(), bytes));
    }
    let mut rooms = [0, 1, 2, 3].map(|component| Room { component, next: 0 });
    let mut low = vec![rooms[0].linear(rng, 1000), striped(rng, &mut rooms[1..3], 1200), rooms[3].linear(rng, 600)];
    low.push(Line { len: rng.u64(1..=64), target: Target::Zero });
    let mut top = vec![
        rooms[0].linear(rng, 2500),
        rooms[3].linear(rng, 1500),
        striped(rng, &mut rooms[1..3], 800),
        Line { len: rng.u64(1..=200), target: Target::Zero },
        Line { len: rng.u64(1..=16), target: Target::Error },
    ];
    rng.shuffle(&mut low);
    let mut devices = Vec::new();
    if rng.u8(..4) == 0 {
        top.append(&mut low);
    } else {
        let whole: u64 = low.iter().map(|line| line.len).sum();
        let cut = rng.u64(1..whole);
        devices.push(Device { name: "low".into(), lines: low });
        top.push(Line { len: cut, target: Target::Linear(Lower::Device(0), 0) });
        top.push(Line { len: whole - cut, target: Target::Linear(Lower::Device(0), cut) });
    }
    rng.shuffle(&mut top);
    devices.push(Device { name: "top".into(), lines: top });
    World { components, devices }
}
