//! Mirrors with both kinds of log.

use dm_tests::operations::SECTOR;

use crate::duo::{Checked, Duo, Mix};
use crate::sides::{Side, component};

pub const LEN: u64 = 1400;

/// All regions are the same on all legs.
pub fn in_sync(status: &str) -> bool {
    status.split_whitespace().filter_map(|word| word.split_once('/')).any(|(have, all)| have == all)
}

fn session(duo: &mut Duo<'_>, count: u64, log: &str) -> Checked {
    let three = duo.rng.bool();
    let legs = if three { "3 {a} 5 {b} 0 {c} 77" } else { "2 {a} 5 {b} 0" };
    duo.create("disk", &format!("0 {LEN} mirror {log} {legs}"))?;
    duo.play(count / 2, &[Mix::new("disk", LEN)])?;
    duo.settle("status", "disk", in_sync)?;
    duo.play(count - count / 2, &[Mix::new("disk", LEN)])?;
    duo.read_all("disk", LEN)?;
    duo.settle("table", "disk", |_| true)?;
    duo.settle("status", "disk", in_sync)?;
    duo.remove_all()
}

pub fn region(duo: &mut Duo<'_>) -> u64 {
    *duo.rng.choice(&[8, 16, 64, 256]).expect("a region")
}

pub fn core(duo: &mut Duo<'_>, count: u64) -> Checked {
    let region = region(duo);
    session(duo, count, &format!("core 1 {region}"))?;
    duo.same_components(|_, _| true)
}

/// Makes the legs alike before there is a mirror.
pub fn same_legs(duo: &mut Duo<'_>) {
    let leg = duo.kernel.bytes(component("a"))[5 * SECTOR..][..LEN as usize * SECTOR].to_vec();
    duo.place("b", &leg);
    let shifted = [vec![0; 77 * SECTOR], leg].concat();
    duo.place("c", &shifted);
}

/// A log that says itself that all is well, of legs on which it is.
pub fn nosync(duo: &mut Duo<'_>, count: u64) -> Checked {
    same_legs(duo);
    let region = region(duo);
    session(duo, count, &format!("core 2 {region} nosync"))?;
    duo.same_components(|_, _| true)
}

/// With a log on a component, which the other side then reads.
pub fn disk(duo: &mut Duo<'_>, count: u64) -> Checked {
    duo.place("d", &[0; 8 * SECTOR]);
    let log = format!("disk 2 {{d}} {}", region(duo));
    session(duo, count / 2, &log)?;
    duo.same_components(|name, _| name != "d")?;
    let (kernel, ours) = (duo.kernel.bytes(component("d")), duo.ours.bytes(component("d")));
    if kernel[..16] != ours[..16] {
        return Err(format!("logs begin with {:02x?} and {:02x?}", &kernel[..16], &ours[..16]));
    }
    duo.kernel.place(component("d"), &ours);
    duo.ours.place(component("d"), &kernel);
    session(duo, count / 2, &log)?;
    duo.same_components(|_, _| true)
}
