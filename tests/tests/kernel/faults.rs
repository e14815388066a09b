//! Components of which a part fails. What a target then does is compared, and what it makes of the component once it is well.
//!
//! Not compared: a mirror without `keep_log` whose first leg fails. The kernel acknowledges writes that its next start loses,
//! or holds them back until a daemon decides; ours does neither (`backend/src/targets/mirror/mod.rs`).

use crate::duo::{Checked, Duo, Mix};
use crate::mirrors::{self, LEN, in_sync};
use crate::sides::sectors;
use crate::snapshots::{attach, empty, merged};

/// A device over a component, of which some sectors fail.
fn bad(component: &str, (at, len): (u64, u64)) -> String {
    let (end, all) = (at + len, sectors(component));
    format!("0 {at} linear {{{component}}} 0\n{at} {len} error\n{end} {} linear {{{component}}} {end}", all - end)
}

fn well(component: &str) -> String {
    format!("0 {} linear {{{component}}} 0", sectors(component))
}

/// Where an operation meets it often. A kernel's `error` takes no discards before version 1.6, and then nothing does that has
/// it below.
fn mix(device: &str, sectors: u64, (at, len): (u64, u64)) -> Mix<'_> {
    Mix { borders: vec![0, at, at + len, sectors], discards: false, ..Mix::new(device, sectors) }
}

/// Sectors of the first `most` that fail.
fn fault(duo: &mut Duo<'_>, least: u64, most: u64) -> (u64, u64) {
    (duo.rng.u64(least..most - 20), duo.rng.u64(1..20))
}

fn snapshot(origin: &str, store: &str, kind: &str, chunk: u64) -> String {
    format!("0 {} snapshot {origin} {store} {kind} {chunk}", sectors("a"))
}

fn kind(duo: &mut Duo<'_>) -> &'static str {
    duo.rng.choice(["P", "PO", "N"]).expect("a kind")
}

/// A store that fails takes its snapshot with it, but never the origin.
pub fn store(duo: &mut Duo<'_>, count: u64) -> Checked {
    empty(duo, "f");
    let (kind, all) = (kind(duo), sectors("a"));
    duo.stores = vec![("f".to_owned(), 8)];
    // A persistent one has its header and its first numbers before.
    let fails = fault(duo, 16, 900);
    duo.create("low", &bad("f", fails))?;
    duo.create("origin", &format!("0 {all} snapshot-origin {{a}}"))?;
    attach(duo, "snap", &snapshot("{a}", "/dev/mapper/low", kind, 8))?;
    duo.play(count, &[Mix::new("origin", all), Mix::new("snap", all)])?;
    duo.same_texts("snap")?;
    let invalid = duo.must(&["status", "snap"])?.contains("Invalid");
    duo.remove_all()?;
    duo.same_components(|name, sector| name != "f" || !invalid || (kind != "N" && sector < 8))
}

/// What cannot be read cannot be copied.
pub fn origin(duo: &mut Duo<'_>, count: u64) -> Checked {
    empty(duo, "f");
    let (kind, all, fails) = (kind(duo), sectors("a"), fault(duo, 0, sectors("a")));
    duo.stores = vec![("f".to_owned(), 8)];
    duo.create("low", &bad("a", fails))?;
    duo.create("origin", &format!("0 {all} snapshot-origin /dev/mapper/low"))?;
    attach(duo, "snap", &snapshot("/dev/mapper/low", "{f}", kind, 8))?;
    duo.play(count, &[mix("origin", all, fails), mix("snap", all, fails), Mix::new("snap", all)])?;
    duo.same_texts("snap")?;
    let invalid = duo.must(&["status", "snap"])?.contains("Invalid");
    duo.remove_all()?;
    duo.same_components(|name, sector| name != "f" || !invalid || (kind != "N" && sector < 8))
}

/// A merge that cannot write stops, reads on, and goes on when somebody loads it again.
pub fn merge(duo: &mut Duo<'_>, count: u64) -> Checked {
    empty(duo, "f");
    let (all, fails) = (sectors("a"), fault(duo, 0, sectors("a")));
    duo.stores = vec![("f".to_owned(), 8)];
    let table = snapshot("/dev/mapper/low", "{f}", "P", 8);
    duo.create("low", &well("a"))?;
    duo.create("origin", &format!("0 {all} snapshot-origin /dev/mapper/low"))?;
    attach(duo, "snap", &table)?;
    duo.play(count / 2, &[mix("origin", all, fails), mix("snap", all, fails)])?;
    duo.remove("snap")?;
    duo.swap("low", &bad("a", fails))?;
    let merge = table.replace(" snapshot ", " snapshot-merge ");
    duo.swap("origin", &merge)?;
    let status = duo.settle("status", "origin", |status| merged(status) || status.contains("failed"))?;
    duo.history.push(status);
    duo.play(count / 2, &[Mix { writes: false, ..mix("origin", all, fails) }])?;
    duo.same_texts("origin")?;
    duo.swap("low", &well("a"))?;
    duo.read_all("origin", all)?;
    duo.remove("origin")?;
    duo.create("origin", &merge)?;
    duo.settle("status", "origin", merged)?;
    duo.finish()
}

/// Operations on a mirror with a leg that fails. What it lacks there is not read from elsewhere.
fn degraded(duo: &mut Duo<'_>, count: u64, fails: (u64, u64)) -> Checked {
    duo.play(count / 2, &[mix("disk", LEN, fails)])?;
    duo.same_texts("disk")?;
    duo.read_all("disk", LEN)
}

/// Once no leg fails any more, the next resume makes them alike.
fn mended(duo: &mut Duo<'_>, count: u64, component: &str, fails: (u64, u64)) -> Checked {
    duo.swap("low", &well(component))?;
    duo.suspend_and_resume("disk")?;
    duo.settle("status", "disk", in_sync)?;
    duo.play(count / 2, &[mix("disk", LEN, fails)])?;
    duo.settle("status", "disk", in_sync)?;
    duo.settle("table", "disk", |_| true)?;
    duo.remove_all()?;
    duo.same_components(|name, _| name != "d")
}

/// Another leg than the first fails.
pub fn leg(duo: &mut Duo<'_>, count: u64) -> Checked {
    mirrors::same_legs(duo);
    let (region, fails) = (mirrors::region(duo), fault(duo, 0, LEN));
    duo.create("low", &bad("b", fails))?;
    duo.create("disk", &format!("0 {LEN} mirror core 2 {region} nosync 2 {{a}} 5 /dev/mapper/low 0"))?;
    // A resume tries a resync, of which a kernel without `handle_errors` ignores that it fails: it then says that all is well.
    duo.rests = false;
    degraded(duo, count, fails)?;
    duo.rests = true;
    mended(duo, count, "b", fails)
}

/// It does so from the beginning: it can never be made like the first. Without `handle_errors` a kernel says that it was.
pub fn new_leg(duo: &mut Duo<'_>, count: u64) -> Checked {
    let (region, fails) = (mirrors::region(duo), fault(duo, 0, LEN));
    duo.create("low", &bad("b", fails))?;
    let legs = "2 {a} 5 /dev/mapper/low 0 2 handle_errors keep_log";
    duo.create("disk", &format!("0 {LEN} mirror core 1 {region} {legs}"))?;
    degraded(duo, count, fails)?;
    mended(duo, count, "b", fails)
}

/// The first leg fails, and there is a log that remembers it. Not a log of `nosync`: at each resume a kernel takes that word
/// for true anew, and forgets what failed.
pub fn source(duo: &mut Duo<'_>, count: u64) -> Checked {
    mirrors::same_legs(duo);
    duo.place("d", &[0; 4096]);
    let (region, fails) = (mirrors::region(duo), fault(duo, 0, LEN));
    duo.create("low", &well("b"))?;
    let log = format!("disk 2 {{d}} {region}");
    duo.create("disk", &format!("0 {LEN} mirror {log} 2 /dev/mapper/low 0 {{a}} 5 2 handle_errors keep_log"))?;
    duo.settle("status", "disk", in_sync)?;
    duo.swap("low", &bad("b", fails))?;
    degraded(duo, count, fails)?;
    mended(duo, count, "b", fails)
}
