//! Random tables of the four targets over random components.

use std::path::Path;

use dm_tests::files;
use dm_tests::model::{Component, Device, Line, Lower, SECTOR, Target, World};
use dm_tests::rng;
use fastrand::Rng;

/// Longest line, sectors.
const LONGEST: u64 = 3000;

/// Components as files in the given directories, and `devices` devices over them; each later device may use
/// the earlier ones.
pub fn world(rng: &mut Rng, dirs: &[&Path], devices: usize) -> World {
    let mut world = World::default();
    for number in 0..rng.usize(1..=4) {
        let dir = dirs[number % dirs.len()];
        let path = dir.join(format!("component-{number}"));
        let bytes = rng::bytes(rng, rng_sectors(rng) * SECTOR);
        files::component(&path, &bytes);
        let path = path.to_str().expect("a path of ASCII").to_owned();
        world.components.push(Component::new(path, bytes));
    }
    for number in 0..devices {
        let lines = (0..rng.usize(1..=8)).map(|_| line(rng, &world)).collect();
        world.devices.push(Device { name: format!("disk{number}"), lines });
    }
    world
}

fn rng_sectors(rng: &Rng) -> usize {
    // An own generator, so that the borrow of the caller's stays free for the bytes.
    rng.clone().usize(300..6000)
}

/// Something to lie on: a component, or a device made before.
fn lower(rng: &mut Rng, world: &World) -> Lower {
    if !world.devices.is_empty() && rng.bool() {
        Lower::Device(rng.usize(..world.devices.len()))
    } else {
        Lower::Component(rng.usize(..world.components.len()))
    }
}

/// Sectors at either end of a lower device that this line stays away from, so that some bytes of every
/// component are never anybody's.
fn margin(rng: &mut Rng, len: u64) -> u64 {
    rng.u64(0..=(len / 8).min(20))
}

fn line(rng: &mut Rng, world: &World) -> Line {
    match rng.u8(..20) {
        0..=8 => linear(rng, world),
        9..=14 => striped(rng, world),
        15..=17 => Line { len: rng.u64(1..=400), target: Target::Zero },
        _ => Line { len: rng.u64(1..=100), target: Target::Error },
    }
}

fn linear(rng: &mut Rng, world: &World) -> Line {
    let on = lower(rng, world);
    let room = world.lower_len(on);
    let margin = margin(rng, room);
    let len = rng.u64(1..=(room - 2 * margin).min(LONGEST));
    Line { len, target: Target::Linear(on, rng.u64(margin..=room - margin - len)) }
}

fn striped(rng: &mut Rng, world: &World) -> Line {
    let chunk = *rng.choice(&[1, 2, 3, 5, 8, 8, 16, 24, 64, 128, 129]).unwrap_or(&8);
    let on: Vec<Lower> = (0..rng.usize(1..=4)).map(|_| lower(rng, world)).collect();
    let smallest = on.iter().map(|&l| world.lower_len(l)).min().unwrap_or(0);
    let most = (smallest / chunk).min(LONGEST / chunk / on.len() as u64);
    if most == 0 {
        return linear(rng, world);
    }
    let rows = rng.u64(1..=most);
    let legs: Vec<(Lower, u64)> = on.into_iter().map(|l| (l, rng.u64(0..=world.lower_len(l) - rows * chunk))).collect();
    Line { len: rows * chunk * legs.len() as u64, target: Target::Striped(chunk, legs) }
}
