//! log-writes: the log must be the kernel's byte for byte. Operations come one at a time, and then so do their entries.

use dm_tests::operations::Operation;

use crate::duo::{Checked, Duo, Mix};
use crate::sides::{Side, component, sectors};

fn session(duo: &mut Duo<'_>, count: u64, log: &str) -> Checked {
    let len = sectors("a");
    duo.create("disk", &format!("0 {len} log-writes {{a}} {{{log}}}"))?;
    duo.same_texts("disk")?;
    for round in 0..4 {
        duo.play(count / 4, &[Mix::new("disk", len)])?;
        duo.must(&["message", "disk", "0", "mark", &format!("round-{round}")])?;
    }
    for wrong in [&["mark"][..], &["mork", "x"], &["mark", "x", "y"]] {
        duo.must_not(&[&["message", "disk", "0"], wrong].concat())?;
    }
    duo.io(&[("disk".into(), Operation::Flush)])?;
    // Both write their logs in the background.
    duo.same_texts("disk")?;
    duo.remove_all()
}

pub fn log_writes(duo: &mut Duo<'_>, count: u64) -> Checked {
    session(duo, count, "f")?;
    duo.same_components(|_, _| true)
}

/// Logging stops at the log's end, and the disk goes on. The kernel then leaves the count of entries in the first sector
/// as the last mark left it, so that a reader misses those that came after; ours counts what is there.
pub fn full(duo: &mut Duo<'_>, count: u64) -> Checked {
    session(duo, count, "d")?;
    duo.same_components(|name, sector| name != "d" || sector > 0)?;
    let entries = |bytes: Vec<u8>| u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    let (kernel, ours) = (entries(duo.kernel.bytes(component("d"))), entries(duo.ours.bytes(component("d"))));
    if ours < kernel {
        return Err(format!("the kernel has {kernel} entries, ours {ours}"));
    }
    Ok(())
}
