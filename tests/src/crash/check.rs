//! The component files against the model, also while requests are outstanding.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;

use rustix::fs::{Advice, fadvise};

use super::load::{Op, describe};
use crate::blk::kind;
use crate::model::{Component, SECTOR, World};

/// What sectors may hold that outstanding requests write, beside what they held: bytes, or zeroes.
type Pending<'a> = HashMap<(usize, u64), Option<&'a [u8]>>;

fn pending<'a>(world: &World, device: usize, outstanding: impl Iterator<Item = &'a Op>) -> Pending<'a> {
    let mut pending = Pending::new();
    for op in outstanding.filter(|op| op.writes()) {
        if op.kind != kind::OUT {
            pending.extend(op.touched.iter().map(|&at| (at, None)));
            continue;
        }
        for (i, bytes) in op.data.chunks(SECTOR).enumerate() {
            let sector = op.ranges[0].sector + i as u64;
            pending.extend(world.footprint(device, sector, 1).into_iter().map(|at| (at, Some(bytes))));
        }
    }
    pending
}

/// Compares every sector of every component, those that no segment covers too. What was acknowledged has to be there;
/// each byte that an outstanding request writes may be old or new.
///
/// # Panics
///
/// At the first sector that is wrong.
pub fn components<'a>(
    world: &mut World,
    device: usize,
    seed: u64,
    when: &str,
    outstanding: impl Iterator<Item = &'a Op>,
) {
    let pending = pending(world, device, outstanding);
    for (number, component) in world.components.iter_mut().enumerate() {
        let seen = read(&component.path);
        assert_eq!(seen.len(), component.bytes.len(), "{when}: {} changed its size", component.path);
        for (at, seen) in (0u64..).zip(seen.chunks(SECTOR)) {
            let right = match pending.get(&(number, at)) {
                None => component.matches(at, seen),
                Some(new) => either(component, at, *new, seen),
            };
            if !right {
                let bytes = &component.bytes[at as usize * SECTOR..][..SECTOR];
                panic!(
                    "{when}: sector {at} of {} holds {}, expected {}{}",
                    component.path,
                    describe(seed, seen),
                    describe(seed, bytes),
                    if pending.contains_key(&(number, at)) { ", or what an outstanding request writes" } else { "" }
                );
            }
        }
    }
}

fn either(component: &Component, at: u64, new: Option<&[u8]>, seen: &[u8]) -> bool {
    let old = &component.bytes[at as usize * SECTOR..][..SECTOR];
    let zero = new.is_none() || component.unsure[at as usize];
    let new = new.unwrap_or(old);
    seen.iter().enumerate().all(|(i, &byte)| byte == old[i] || byte == new[i] || (zero && byte == 0))
}

/// What the file holds, by its disk and not by pages that were cached before direct writes.
fn read(path: &str) -> Vec<u8> {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    fadvise(&file, 0, None, Advice::DontNeed).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("{path}: {e}"));
    bytes
}
