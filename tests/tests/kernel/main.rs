//! The kernel's device-mapper and this one, side by side: the same tables on the same components, the same operations in
//! the same order, and what came of each, what `dmsetup` says and what the components then hold must be equal.
//!
//! The kernel is that of the boot tests' guest. Its targets are asked for by `dmsetup targets`, and a case whose target is
//! not there is left out with a word: Debian's cloud kernel is built without dust and ebs. Operations run one at a time;
//! in which order a kernel ends those that run together is nobody's promise.
//!
//! It compares no speed. An emulated processor (TCG, where no /dev/kvm is) makes the kernel's side many times slower than
//! any kernel is, and its disk is QEMU's, so that even with KVM the ways to the component would differ and not the targets.
//!
//! `DM_KERNEL_SEEDS=20` is the long form and `DM_KERNEL_SEEDS=1000..1020` one with other seeds; `DM_KERNEL_CASE=NAME,NAME`
//! runs these cases, `DM_TEST_SEED` one seed.
#![allow(dead_code, reason = "other tests use more of what they share with this one")]

mod duo;
mod faults;
mod guest;
#[path = "../../boot/host.rs"]
mod host;
mod logs;
mod mirrors;
mod plain;
mod sides;
mod snapshots;
#[path = "../../boot/vm.rs"]
mod vm;

use dm_tests::{rng, skip};
use fastrand::Rng;

use duo::{Checked, Duo};
use guest::Kernel;

/// Operations of each case and seed.
const OPERATIONS: u64 = 300;

/// Something to compare, and the targets that it is about.
struct Case {
    name: &'static str,
    targets: &'static [&'static str],
    run: fn(&mut Duo<'_>, u64) -> Checked,
}

const SNAPSHOTS: &[&str] = &["snapshot", "snapshot-origin"];
const MERGE: &[&str] = &["snapshot", "snapshot-origin", "snapshot-merge"];

const CASES: [Case; 32] = [
    Case { name: "linear", targets: &["linear"], run: plain::linear },
    Case { name: "striped", targets: &["striped"], run: plain::striped },
    Case { name: "zero", targets: &["zero"], run: plain::zero },
    Case { name: "error", targets: &["error"], run: plain::error },
    Case { name: "delay", targets: &["delay"], run: plain::delay },
    Case { name: "flakey", targets: &["flakey"], run: plain::flakey },
    Case { name: "flakey-down", targets: &["flakey"], run: plain::flakey_down },
    Case { name: "unstriped", targets: &["unstriped"], run: plain::unstriped },
    Case { name: "switch", targets: &["switch"], run: plain::switch },
    Case { name: "stack", targets: &["linear", "striped", "delay"], run: plain::stack },
    Case { name: "snapshot-P", targets: SNAPSHOTS, run: snapshots::persistent },
    Case { name: "snapshot-PO", targets: SNAPSHOTS, run: snapshots::overflowing },
    Case { name: "snapshot-N", targets: SNAPSHOTS, run: snapshots::transient },
    Case { name: "snapshot-P-full", targets: SNAPSHOTS, run: snapshots::full_persistent },
    Case { name: "snapshot-PO-full", targets: SNAPSHOTS, run: snapshots::full_overflowing },
    Case { name: "snapshot-N-full", targets: SNAPSHOTS, run: snapshots::full_transient },
    Case { name: "snapshot-exchanged", targets: SNAPSHOTS, run: snapshots::exchanged },
    Case { name: "snapshot-reloaded", targets: SNAPSHOTS, run: snapshots::reloaded },
    Case { name: "snapshot-discards", targets: SNAPSHOTS, run: snapshots::discards },
    Case { name: "snapshot-bad-store", targets: SNAPSHOTS, run: faults::store },
    Case { name: "snapshot-bad-origin", targets: SNAPSHOTS, run: faults::origin },
    Case { name: "merge", targets: MERGE, run: snapshots::merge_at_rest },
    Case { name: "merge-in-use", targets: MERGE, run: snapshots::merge_in_use },
    Case { name: "merge-bad-origin", targets: MERGE, run: faults::merge },
    Case { name: "log-writes", targets: &["log-writes"], run: logs::log_writes },
    Case { name: "log-writes-full", targets: &["log-writes"], run: logs::full },
    Case { name: "mirror", targets: &["mirror"], run: mirrors::core },
    Case { name: "mirror-nosync", targets: &["mirror"], run: mirrors::nosync },
    Case { name: "mirror-disk", targets: &["mirror"], run: mirrors::disk },
    Case { name: "mirror-bad-leg", targets: &["mirror"], run: faults::leg },
    Case { name: "mirror-bad-new-leg", targets: &["mirror"], run: faults::new_leg },
    Case { name: "mirror-bad-source", targets: &["mirror"], run: faults::source },
];

/// Runs a case with one seed. The error has all that is needed to do it again.
fn run(kernel: &mut Kernel, case: &Case, seed: u64) -> Checked {
    let mut duo = Duo::new(kernel, Rng::with_seed(seed));
    match (case.run)(&mut duo, rng::operations(OPERATIONS)) {
        Ok(()) => duo.ours.stop(),
        Err(why) => {
            let (name, done) = (case.name, duo.history.join("\n  "));
            return Err(format!("DM_KERNEL_CASE={name} DM_TEST_SEED={seed}: {why}\nafter\n  {done}"));
        }
    }
    Ok(())
}

/// The first of the seeds to run, and how many.
fn seeds_asked_for() -> (u64, u64) {
    let Ok(text) = std::env::var("DM_KERNEL_SEEDS") else { return (1, 3) };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("DM_KERNEL_SEEDS: COUNT or FROM..TO, not {text}"));
    match text.split_once("..") {
        Some((from, to)) => (number(from), number(to).saturating_sub(number(from))),
        None => (1, number(&text)),
    }
}

#[test]
fn both_do_the_same() {
    let only = std::env::var("DM_KERNEL_CASE").ok();
    let asked_for = |case: &&Case| only.as_deref().is_none_or(|only| only.split(',').any(|name| name == case.name));
    let (first, count) = seeds_asked_for();
    let mut kernel = Kernel::boot();
    let served = sides::Ours::start();
    let known = served.targets();
    served.stop();
    let (mut failures, mut runs) = (Vec::new(), 0);
    for case in CASES.iter().filter(asked_for) {
        let lacks = |there: &dyn Fn(&str) -> bool| case.targets.iter().find(|&&target| !there(target)).copied();
        if let Some(target) = lacks(&|target| kernel.version(target).is_some()) {
            skip::skip(case.name, &format!("this kernel has no {target}"));
            continue;
        }
        let unserved = lacks(&|target| known.iter().any(|known| known == target));
        assert_eq!(unserved, None, "{}: not served", case.name);
        let begun = std::time::Instant::now();
        for seed in rng::seeds(first, count) {
            runs += 1;
            failures.extend(run(&mut kernel, case, seed).err());
        }
        eprintln!("{}: {:?}", case.name, begun.elapsed());
    }
    kernel.power_off();
    assert!(failures.is_empty(), "{} of {runs} differ:\n{}", failures.len(), failures.join("\n\n"));
    assert!(runs > 0, "no case of that name");
}
