//! Overlays on their way back into their bases.

use std::fs;
use std::time::Duration;

use dm_tests::daemon::{Daemon, flag};
use dm_tests::files;
use rustix::process::Signal;

use super::{Ground, must, must_not, shown, words};

#[test]
fn a_commit_brings_the_base_to_what_the_guest_saw() {
    let mut ground = Ground::new(101, 3 << 20);
    let args = [ground.blk_file(), ground.cow()];
    let cow = ground.path("cow");
    for _ in 0..2 {
        let (daemon, mut vmm) = ground.serve(&args);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 60);
        drop(vmm);
        daemon.stop();
        let said = must(&words(&["commit", &shown(&cow), &ground.blk_file()]));
        assert!(said.contains("are merged into the base; the overlay is empty"), "{said}");
        assert!(ground.base_now() == ground.model, "the base is not what the guest saw");
        assert!(files::allocated(&cow) < 1 << 17, "{} bytes", files::allocated(&cow));
        let said = must(&words(&["commit", &shown(&cow), &ground.blk_file()]));
        assert!(said.contains("nothing to merge"), "{said}");
    }
}

#[test]
fn a_commit_goes_through_the_table_s_targets() {
    let mut ground = Ground::new(102, 2 << 20);
    let base = shown(&ground.path("base.img"));
    let table = ground.path("disk.table");
    // The halves of the base exchanged, and a length that is no multiple of a chunk.
    fs::write(&table, format!("0 2048 linear {base} 2048\n2048 1999 linear {base} 0\n")).expect("write the table");
    let (first, second) = ground.base.split_at(1 << 20);
    ground.model = [second, &first[..1999 * 512]].concat();
    let (daemon, mut vmm) = ground.serve(&[flag("--table", &table), ground.cow()]);
    ground.sees(&mut vmm);
    ground.scribble(&mut vmm, 100);
    // The last sector, too, alone in its chunk.
    vmm.write(0, 4046, &[7; 512]).expect("write");
    ground.model[4046 * 512..].fill(7);
    drop(vmm);
    daemon.stop();
    must(&words(&["commit", &shown(&ground.path("cow")), &flag("--table", &table)]));
    let now = ground.base_now();
    assert!(now[1 << 20..] == ground.model[..1 << 20] && now[..1999 * 512] == ground.model[1 << 20..]);
    assert!(now[1999 * 512..1 << 20] == ground.base[1999 * 512..1 << 20], "sectors that no line reaches have changed");
}

/// Killed at any moment the disk is whole with its overlay, and the next commit goes on.
#[test]
fn a_commit_that_is_killed_goes_on() {
    let mut ground = Ground::new(103, 4 << 20);
    let cow = ground.path("cow");
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    // Scattered, so that there is much to do.
    for number in 0..400_u64 {
        let at = (number * 2654435761 % 1024) * 8;
        vmm.write(0, at, &[number as u8; 512]).expect("write");
        ground.model[at as usize * 512..][..512].fill(number as u8);
    }
    vmm.flush(0).expect("flush");
    drop(vmm);
    daemon.stop();
    // Every write of the base takes its time.
    let slow = ground.path("slow.table");
    let base = shown(&ground.path("base.img"));
    fs::write(&slow, format!("0 8192 delay {base} 0 0 {base} 0 20\n")).expect("write the table");
    let commit = words(&["commit", &shown(&cow), &flag("--table", &slow), "--force=other-base", "-v"]);
    let (mut killed, mut partly) = (0, 0);
    for round in 0..40 {
        let before = ground.base_now();
        let mut process = Daemon::start(&commit);
        // Some come to write, however long it takes them to start.
        let begun = || round % 2 == 0 || ground.base_now() != before;
        if process.wait(Duration::from_millis(20 + 10 * round)).is_some() || !runs_until(&mut process, begun) {
            break;
        }
        process.signal(Signal::KILL);
        process.wait(Duration::from_secs(30)).expect("it was killed");
        killed += 1;
        let now = ground.base_now();
        partly += u32::from(now != ground.base && now != ground.model);
        // The guest sees what it wrote, whatever is where.
        let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
        ground.sees(&mut vmm);
        drop(vmm);
        daemon.stop();
    }
    assert!(killed > 0 && partly > 0, "no commit was killed in its midst: {killed} kills");
    if partly > 0 && cow_is_half(&ground) {
        let said = must_not(&words(&["discard", &shown(&cow)]));
        assert!(said.contains("half old and half new"), "{said}");
    }
    must(&words(&["commit", &shown(&cow), &ground.blk_file()]));
    assert!(ground.base_now() == ground.model, "the base is not what the guest saw");
    // It belongs to what the base is now.
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
}

/// Whether a process still runs when something is so.
fn runs_until(process: &mut Daemon, is: impl Fn() -> bool) -> bool {
    let started = std::time::Instant::now();
    while !is() {
        if !process.is_running() {
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "the commit hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    process.is_running()
}

fn cow_is_half(ground: &Ground) -> bool {
    ground.base_now() != ground.model
}

/// A guest may go on with a disk that is partly merged, and the rest is merged later.
#[test]
fn a_guest_writes_between_two_halves_of_a_commit() {
    let mut ground = Ground::new(104, 4 << 20);
    let slow = ground.path("slow.table");
    let base = shown(&ground.path("base.img"));
    fs::write(&slow, format!("0 8192 delay {base} 0 0 {base} 0 30\n")).expect("write the table");
    let cow = shown(&ground.path("cow"));
    let commit = words(&["commit", &cow, &flag("--table", &slow), "--force=other-base"]);
    for round in 0..4 {
        let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 120);
        drop(vmm);
        daemon.stop();
        let mut process = Daemon::start(&commit);
        if process.wait(Duration::from_millis(60 + 60 * round)).is_none() {
            process.signal(Signal::KILL);
            process.wait(Duration::from_secs(30)).expect("it was killed");
        }
    }
    must(&words(&["commit", &cow, &ground.blk_file()]));
    assert!(ground.base_now() == ground.model, "the base is not what the guest saw");
}

#[test]
fn a_base_that_fails_stops_the_merge_and_says_so() {
    let mut ground = Ground::new(105, 1 << 20);
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    ground.scribble(&mut vmm, 40);
    drop(vmm);
    daemon.stop();
    let broken = ground.path("broken.table");
    let base = shown(&ground.path("base.img"));
    fs::write(&broken, format!("0 1024 linear {base} 0\n1024 1024 error {base} 1024\n")).expect("write the table");
    let cow = shown(&ground.path("cow"));
    let said = must_not(&words(&["commit", &cow, &flag("--table", &broken), "--force=other-base"]));
    assert!(said.contains("the merge has stopped") && said.contains("the same command goes on"), "{said}");
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
    must(&words(&["commit", &cow, &ground.blk_file()]));
    assert!(ground.base_now() == ground.model, "the base is not what the guest saw");
}
