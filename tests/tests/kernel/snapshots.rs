//! Snapshots, their origins and merges. The persistent store must be the kernel's byte for byte, but for two things. The
//! exceptions of one request are committed as their copies end, so their order in the store's list is free. And a merge of ours
//! takes an exception back by its second number alone, which is what ends the list, so that a write that stops between the
//! two numbers makes no other one of it; the kernel clears both.

use fastrand::Rng;

use dm_tests::operations::SECTOR;

use crate::duo::{Checked, Duo, Mix};
use crate::sides::{Side, component, sectors};

/// A store with nothing in it: all but its first chunk may be anything, and is noise.
pub fn empty(duo: &mut Duo<'_>, store: &str) {
    duo.place(store, &[0; SECTOR]);
}

/// A snapshot's table; the whole of its origin.
fn table(origin: &str, store: &str, kind: &str, chunk: u64) -> String {
    format!("0 {} snapshot {{{origin}}} {{{store}}} {kind} {chunk}", sectors(origin))
}

fn origin(name: &str) -> String {
    format!("0 {} snapshot-origin {{{name}}}", sectors(name))
}

/// A store with its exceptions in order of its chunks, and without first numbers of those that were taken back.
pub fn in_order(mut bytes: Vec<u8>, chunk: u64) -> Vec<u8> {
    let chunk = chunk as usize * SECTOR;
    if bytes[..4] != *b"SnAp" {
        return bytes;
    }
    let data = |entry: &[u8; 16]| u64::from_le_bytes(entry[8..].try_into().expect("eight bytes"));
    let (mut places, mut exceptions) = (Vec::new(), Vec::new());
    let areas = (chunk..=bytes.len() - chunk).step_by((chunk / 16 + 1) * chunk);
    let mut ended = false;
    for at in areas.flat_map(|area| (area..area + chunk).step_by(16)) {
        let entry: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
        if data(&entry) == 0 {
            ended = true;
            bytes[at..at + 8].fill(0);
        }
        if !ended {
            places.push(at);
            exceptions.push(entry);
        }
    }
    exceptions.sort_unstable_by_key(data);
    for (at, entry) in places.into_iter().zip(exceptions) {
        bytes[at..at + 16].copy_from_slice(&entry);
    }
    bytes
}

/// A snapshot is made while its origin rests: a kernel's origin looks only when it is resumed how small the chunks of its
/// snapshots are, and until then copies no more than the first chunk of a write to more of them. (Ours looks each time.)
pub fn attach(duo: &mut Duo<'_>, name: &str, table: &str) -> Checked {
    duo.must(&["suspend", "origin"])?;
    duo.create(name, table)?;
    duo.must(&["resume", "origin"]).map(drop)
}

pub fn chunk(rng: &mut Rng) -> u64 {
    *rng.choice(&[1, 2, 8, 8, 16, 32]).expect("a chunk")
}

/// Snapshots take no discards, and so neither do their origins.
fn mixes<'a>(devices: &[&'a str], origin: &str) -> Vec<Mix<'a>> {
    devices.iter().map(|device| Mix::new(device, sectors(origin))).collect()
}

/// An origin with one snapshot, then another one of it, which share what is written to it; the first is closed and opened
/// again between.
fn snapshots(duo: &mut Duo<'_>, count: u64, kind: &str) -> Checked {
    empty(duo, "f");
    empty(duo, "c");
    let (first, second) = (chunk(&mut duo.rng), chunk(&mut duo.rng));
    duo.stores = vec![("f".to_owned(), first), ("c".to_owned(), second)];
    // A chunk of one sector has a store of tiny areas, which take long to fill; with large ones many areas are zeroed.
    let first = table("a", "f", kind, first);
    duo.create("origin", &origin("a"))?;
    attach(duo, "snap", &first)?;
    duo.play(count / 3, &mixes(&["origin", "snap", "snap"], "a"))?;
    attach(duo, "other", &table("a", "c", kind, second))?;
    duo.play(count / 3, &mixes(&["origin", "snap", "other"], "a"))?;
    duo.same_texts("snap")?;
    duo.same_texts("other")?;
    duo.remove("snap")?;
    if kind == "N" {
        // What it remembered is gone, and its store as good as new.
        duo.same_components(|_, _| true)?;
    }
    attach(duo, "snap", &first)?;
    duo.play(count / 3, &mixes(&["origin", "snap", "other"], "a"))?;
    for device in ["origin", "snap", "other"] {
        duo.read_all(device, sectors("a"))?;
    }
    duo.finish()
}

pub fn persistent(duo: &mut Duo<'_>, count: u64) -> Checked {
    snapshots(duo, count, "P")
}

pub fn overflowing(duo: &mut Duo<'_>, count: u64) -> Checked {
    snapshots(duo, count, "PO")
}

pub fn transient(duo: &mut Duo<'_>, count: u64) -> Checked {
    snapshots(duo, count, "N")
}

/// A store that is too small.
fn full(duo: &mut Duo<'_>, count: u64, kind: &str) -> Checked {
    empty(duo, "e");
    duo.stores = vec![("e".to_owned(), 8)];
    let table = table("b", "e", kind, 8);
    duo.create("origin", &origin("b"))?;
    attach(duo, "snap", &table)?;
    duo.play(count, &mixes(&["origin", "snap"], "b"))?;
    duo.same_texts("snap")?;
    let invalid = duo.must(&["status", "snap"])?.contains("Invalid");
    duo.remove("snap")?;
    attach(duo, "snap", &table)?;
    duo.play(20, &mixes(&["origin", "snap"], "b"))?;
    for device in ["origin", "snap"] {
        duo.same_texts(device)?;
    }
    duo.remove_all()?;
    // Once a request found no room, its other chunks may have been copied or not: their store is of no use to anybody, but
    // for its first chunk, which says so.
    duo.same_components(|name, sector| name != "e" || !invalid || (kind != "N" && sector < 8))
}

pub fn full_persistent(duo: &mut Duo<'_>, count: u64) -> Checked {
    full(duo, count, "P")
}

pub fn full_overflowing(duo: &mut Duo<'_>, count: u64) -> Checked {
    full(duo, count, "PO")
}

pub fn full_transient(duo: &mut Duo<'_>, count: u64) -> Checked {
    full(duo, count, "N")
}

/// Each side goes on with the store and the origin that the other one wrote.
pub fn exchanged(duo: &mut Duo<'_>, count: u64) -> Checked {
    empty(duo, "f");
    let chunk = chunk(&mut duo.rng);
    duo.stores = vec![("f".to_owned(), chunk)];
    let table = table("a", "f", "P", chunk);
    for _ in 0..3 {
        duo.create("origin", &origin("a"))?;
        attach(duo, "snap", &table)?;
        duo.read_all("snap", sectors("a"))?;
        duo.play(count / 3, &mixes(&["origin", "snap"], "a"))?;
        duo.finish()?;
        for name in ["a", "f"] {
            let (kernel, ours) = (duo.kernel.bytes(component(name)), duo.ours.bytes(component(name)));
            duo.kernel.place(component(name), &ours);
            duo.ours.place(component(name), &kernel);
        }
    }
    Ok(())
}

/// A table in the place of one with the same store has what that one knew, be it written anywhere or not.
pub fn reloaded(duo: &mut Duo<'_>, count: u64) -> Checked {
    empty(duo, "f");
    let (chunk, kind) = (chunk(&mut duo.rng), *duo.rng.choice(&["P", "PO", "N"]).expect("a kind"));
    duo.stores = vec![("f".to_owned(), chunk)];
    let table = table("a", "f", kind, chunk);
    duo.create("origin", &origin("a"))?;
    attach(duo, "snap", &table)?;
    for _ in 0..3 {
        duo.play(count / 3, &mixes(&["origin", "snap"], "a"))?;
        duo.swap("snap", &table)?;
        duo.same_texts("snap")?;
    }
    duo.read_all("snap", sectors("a"))?;
    duo.finish()
}

/// With features a snapshot takes discards. A kernel tells its block layer their granularity in the wrong unit: newer ones fall
/// over it, and others cut discards at chunks of the first one's beginning and not of the store. Only those that begin with a
/// chunk do then what they should.
pub fn discards(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (major, features) =
        (duo.kernel.major(), ["1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"]);
    if major > 6 {
        dm_tests::skip::skip("snapshot-discards", "a kernel from 7 on divides by zero");
        return Ok(());
    }
    empty(duo, "f");
    let chunk = chunk(&mut duo.rng);
    duo.stores = vec![("f".to_owned(), chunk)];
    let feature = *duo.rng.choice(&features).expect("a feature");
    duo.create("origin", &origin("a"))?;
    attach(duo, "snap", &format!("{} {feature}", table("a", "f", "P", chunk)))?;
    let all = sectors("a");
    let snap = Mix { discards: false, borders: (0..=all).step_by(chunk as usize).collect(), ..Mix::new("snap", all) };
    duo.play(count, &[Mix::new("origin", all), snap.clone(), Mix { discards_of: Some(chunk), ..snap }])?;
    duo.read_all("snap", all)?;
    duo.finish()
}

/// Whether a merge is over: nothing is in the store but its description.
pub fn merged(status: &str) -> bool {
    let mut words = status.split_whitespace().skip(3);
    let (used, metadata) = (words.next(), words.next());
    used.and_then(|used| used.split_once('/')).map(|(used, _)| used) == metadata && metadata.is_some()
}

/// Fills a store and merges it, with operations meanwhile if there are to be any.
fn merge(duo: &mut Duo<'_>, count: u64, meanwhile: u64) -> Checked {
    empty(duo, "f");
    let (kind, chunk) = (if duo.rng.bool() { "P" } else { "PO" }, chunk(&mut duo.rng));
    duo.stores = vec![("f".to_owned(), chunk)];
    let snapshot = table("a", "f", kind, chunk);
    duo.create("origin", &origin("a"))?;
    attach(duo, "snap", &snapshot)?;
    duo.play(count - meanwhile, &mixes(&["snap", "origin"], "a"))?;
    duo.same_texts("snap")?;
    duo.remove("snap")?;
    duo.swap("origin", &snapshot.replace(" snapshot ", " snapshot-merge "))?;
    duo.play(meanwhile, &mixes(&["origin"], "a"))?;
    duo.settle("status", "origin", merged)?;
    duo.settle("table", "origin", |_| true)?;
    duo.read_all("origin", sectors("a"))?;
    duo.swap("origin", &origin("a"))?;
    duo.read_all("origin", sectors("a"))?;
    duo.remove_all()?;
    // A chunk is written to its store if that happens before its turn, else to the origin; so what the store's chunks
    // of data hold in the end depends on who was quicker. What describes it does not, nor does the origin.
    let areas = chunk * SECTOR as u64 / 16 + 1;
    let described = |sector: u64| sector < chunk || (sector / chunk - 1).is_multiple_of(areas);
    duo.same_components(|name, sector| name != "f" || meanwhile == 0 || described(sector))
}

pub fn merge_at_rest(duo: &mut Duo<'_>, count: u64) -> Checked {
    merge(duo, count, 0)
}

pub fn merge_in_use(duo: &mut Duo<'_>, count: u64) -> Checked {
    merge(duo, count, count / 2)
}
