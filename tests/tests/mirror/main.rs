//! Mirrors of a running process, as a guest and an operator meet them: what they print, what a leg that fails does, and what a
//! kill leaves.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dm_tests::blk::{Data, OK, Request, Shape, kind};
use dm_tests::control::{Controlled, wait_until};
use dm_tests::files;
use dm_tests::vmm::{Setup, Vmm};
use fastrand::Rng;
use rustix::process::Signal;
use tempfile::TempDir;

const SECTOR: usize = 512;
const SECTORS: u64 = 4096;

/// Files for legs and a log, in a directory.
struct Ground {
    dir: TempDir,
}

impl Ground {
    /// Legs of unlike content, and a log of zeros.
    fn new(legs: u8) -> Ground {
        let ground = Ground { dir: files::disk_dir() };
        for leg in 0..legs {
            files::component(&ground.leg(leg), &vec![0x10 + leg; SECTORS as usize * SECTOR]);
        }
        files::component(&ground.log(), &[0; 16 * SECTOR]);
        ground
    }

    fn leg(&self, leg: u8) -> PathBuf {
        self.dir.path().join(format!("leg{leg}"))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// The status line behind the type.
fn status(served: &Controlled, device: &str) -> String {
    let line = served.must(&["status", device]);
    line.trim_end().splitn(4, ' ').nth(3).unwrap_or_default().to_owned()
}

fn synced(served: &Controlled, device: &str) {
    wait_until("the mirror is synchronized", || {
        let status = status(served, device);
        let progress = status.split(' ').find(|word| word.contains('/') && !word.starts_with('/')).unwrap_or_default();
        progress.split_once('/').is_some_and(|(done, all)| done == all)
    });
}

/// Random writes with a model of what they make.
struct Load {
    rng: Rng,
    model: Vec<u8>,
}

impl Load {
    fn new(seed: u64, model: Vec<u8>) -> Load {
        Load { rng: Rng::with_seed(seed), model }
    }

    /// Writes, reads and flushes, all of which must succeed.
    fn run(&mut self, vmm: &mut Vmm, count: u32) {
        for _ in 0..count {
            let len = self.rng.u64(1..=64);
            let at = self.rng.u64(0..=SECTORS - len);
            let range = at as usize * SECTOR..(at + len) as usize * SECTOR;
            match self.rng.u8(..8) {
                0 => vmm.flush(0).unwrap(),
                1..4 => assert!(vmm.read(0, at, range.len()).unwrap() == self.model[range], "sectors {at}, {len}"),
                _ => {
                    let data: Vec<u8> = std::iter::repeat_with(|| self.rng.u8(..)).take(range.len()).collect();
                    vmm.write(0, at, &data).unwrap();
                    self.model[range].copy_from_slice(&data);
                }
            }
        }
    }

    /// Kills the process while writes are under way, starts it again, and takes over what those made: a part of them.
    ///
    /// A `leg` loses all of them that were not acknowledged, as one does that the crash came too early for.
    fn kill(&mut self, served: &mut Controlled, mut vmm: Vmm, leg: &Path) -> Vmm {
        let slots = vmm.setup.slots;
        let stripe = SECTORS / slots as u64;
        // None where another is: an order among them is not promised.
        let mut writes = Vec::new();
        for slot in 0..slots {
            let at = slot as u64 * stripe + self.rng.u64(0..=stripe - 64);
            let data: Vec<u8> = std::iter::repeat_with(|| self.rng.u8(..)).take(64 * SECTOR).collect();
            let request = Request { kind: kind::OUT, sector: at, data: Data::ToDevice(&data) };
            vmm.submit(0, slot, &request, &Shape::PLAIN, &mut self.rng);
            writes.push(Some((at, data)));
        }
        vmm.kick(0);
        let some = self.rng.usize(0..slots);
        let mut ended: Vec<_> = (0..some).map(|_| vmm.wait(0)).collect();
        served.daemon.signal(Signal::KILL);
        assert!(served.daemon.wait(Duration::from_secs(60)).is_some());
        ended.extend(std::iter::from_fn(|| vmm.complete(0)));
        for done in ended {
            assert_eq!(done.status, OK);
            let (at, data) = writes[done.slot].take().unwrap();
            self.model[at as usize * SECTOR..][..data.len()].copy_from_slice(&data);
        }
        drop(vmm);
        let file = std::fs::OpenOptions::new().write(true).open(leg).unwrap();
        for (at, new) in writes.iter().flatten() {
            let range = *at as usize * SECTOR..*at as usize * SECTOR + new.len();
            file.write_all_at(&self.model[range.clone()], range.start as u64).unwrap();
        }
        served.start_again();
        let mut vmm = served.vmm("x", &Setup::default());
        for (at, new) in writes.into_iter().flatten() {
            let now = vmm.read(0, at, new.len()).unwrap();
            let old = &mut self.model[at as usize * SECTOR..][..new.len()];
            for ((now, new), old) in now.chunks(SECTOR).zip(new.chunks(SECTOR)).zip(old.chunks_mut(SECTOR)) {
                assert!(now == new || now == old, "neither the old nor the new data of a sector at {at}");
                // Whichever it is, it is so from now on.
                old.copy_from_slice(now);
            }
        }
        vmm
    }
}

#[test]
fn lines_are_the_kernels() {
    // Transcript 2, with files for devices.
    let ground = Ground::new(2);
    let [a, b] = [ground.leg(0), ground.leg(1)].map(|leg| leg.display().to_string());
    let log = ground.log().display().to_string();
    let cases = [
        (format!("core 1 16 2 {a} 0 {b} 0"), format!("2 {a} {b} 8/8 1 AA 1 core")),
        (format!("core 2 16 nosync 2 {a} 0 {b} 0 1 handle_errors"), format!("2 {a} {b} 8/8 1 AA 1 core")),
        (
            format!("disk 3 {log} 16 nosync 2 {a} 0 {b} 0 2 handle_errors keep_log"),
            format!("2 {a} {b} 8/8 1 AA 3 disk {log} A"),
        ),
    ];
    for (table, expected) in cases {
        let served = Controlled::start(&format!("x,,,,0 128 mirror {table}"), &[]);
        synced(&served, "x");
        assert_eq!(served.must(&["table", "x"]), format!("0 128 mirror {table}\n"));
        assert_eq!(status(&served, "x"), expected);
        served.stop();
    }
    let served = Controlled::start("x,,,,0 8 zero", &[]);
    let refusals = [
        (format!("core 1 16 2 {a} 0 {b} 0 1 keep_log"), "keep_log feature requires the handle_errors feature"),
        (format!("core 1 16 1 {a} 0"), "Invalid number of mirrors"),
        (format!("core 1 16 2 {a} 0"), "Too few mirror arguments"),
        (format!("nolog 1 16 2 {a} 0 {b} 0"), "Error creating mirror dirty log"),
        (format!("core 1 3 2 {a} 0 {b} 0"), "Error creating mirror dirty log"),
        (format!("core 1 16 2 {a} 0 {b} 0 0 junk"), "Too many mirror arguments"),
        ("".to_owned(), "Insufficient mirror log arguments"),
    ];
    for (table, reason) in refusals {
        let said = served.must_not(&["load", "x", "--table", format!("0 128 mirror {table}").trim_end()]);
        assert!(said.contains(&format!("mirror: {reason} (-EINVAL)")), "{table}: {said}");
    }
    // 16 KiB of bits have no room in 8 KiB.
    let said = served.must_not(&["load", "x", "--table", &format!("0 4096 mirror core 1 2 2 {a} 0 {log} 0")]);
    assert!(said.contains("too small for target"), "{said}");
    files::truncate(&ground.log(), 1024);
    let said = served.must_not(&["load", "x", "--table", &format!("0 128 mirror disk 2 {log} 16 2 {a} 0 {b} 0")]);
    assert!(said.contains("too small: need 1536 bytes"), "{said}");
    served.stop();
}

#[test]
fn a_resync_goes_on_beside_a_guest_and_makes_all_legs_the_same() {
    let ground = Ground::new(3);
    let [a, b, c] = [0, 1, 2].map(|leg| ground.leg(leg).display().to_string());
    let table = format!("x,,,,0 {SECTORS} mirror disk 2 {} 8 3 {a} 0 {b} 0 {c} 0", ground.log().display());
    let mut served = Controlled::start(&table, &[]);
    let mut vmm = served.vmm("x", &Setup::default());
    let mut load = Load::new(1, bytes(&ground.leg(0)));
    load.run(&mut vmm, 300);
    // It stops with a suspend, and goes on.
    served.must(&["suspend", "x"]);
    let before = status(&served, "x");
    assert_eq!(status(&served, "x"), before);
    served.must(&["resume", "x"]);
    load.run(&mut vmm, 100);
    synced(&served, "x");
    load.run(&mut vmm, 100);
    vmm.flush(0).unwrap();
    // A new table with the same log knows that all is in sync.
    let line = table.split(",,,,").nth(1).unwrap();
    served.must(&["load", "x", "--table", line]);
    served.must(&["resume", "x"]);
    assert!(status(&served, "x").contains(" 512/512 1 AAA 3 disk "), "{}", status(&served, "x"));
    load.run(&mut vmm, 100);
    drop(vmm);
    served.stop();
    for leg in 0..3 {
        assert!(bytes(&ground.leg(leg)) == load.model, "leg {leg}");
    }
    // What the kernel reads: all regions are clean.
    let log = bytes(&ground.log());
    assert_eq!(log[..16], [b'r', b'R', b'i', b'M', 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    assert!(log[512..1024].iter().all(|byte| *byte == 0) && log[1024..1088].iter().all(|byte| *byte == 0xff));
}

#[test]
fn what_was_acknowledged_is_on_all_legs_after_a_kill() {
    for seed in 0..3 {
        let ground = Ground::new(2);
        let [a, b] = [0, 1].map(|leg| ground.leg(leg).display().to_string());
        let table = format!("x,,,,0 {SECTORS} mirror disk 2 {} 64 2 {a} 0 {b} 0", ground.log().display());
        let mut served = Controlled::start(&table, &[]);
        let mut load = Load::new(seed, bytes(&ground.leg(0)));
        let mut vmm = served.vmm("x", &Setup::default());
        for _ in 0..4 {
            let count = load.rng.u32(1..120);
            load.run(&mut vmm, count);
            // Some kills meet the resync of the one before, others find all legs the same.
            if load.rng.bool() {
                synced(&served, "x");
            }
            let leg = ground.leg(load.rng.u8(..2));
            vmm = load.kill(&mut served, vmm, &leg);
        }
        synced(&served, "x");
        assert!(vmm.read_all(0).unwrap() == load.model, "seed {seed}");
        drop(vmm);
        served.stop();
        for leg in 0..2 {
            assert!(bytes(&ground.leg(leg)) == load.model, "seed {seed}, leg {leg}");
        }
    }
}

#[test]
fn the_guest_does_not_notice_a_leg_that_fails() {
    for failing in 0..2u8 {
        let ground = Ground::new(2);
        let up = |leg: u8| format!("0 {SECTORS} linear {} 0", ground.leg(leg).display());
        let bad = format!("0 1024 error,1024 3072 linear {} 1024", ground.leg(failing).display());
        let mirror = format!(
            "0 {SECTORS} mirror disk 2 {} 64 2 /dev/mapper/a 0 /dev/mapper/b 0 1 handle_errors",
            ground.log().display()
        );
        let tables = format!("a,,,,{};b,,,,{};x,,,,{mirror}", up(0), up(1));
        let mut served = Controlled::start(&tables, &[]);
        synced(&served, "x");
        let mut vmm = served.vmm("x", &Setup::default());
        let mut load = Load::new(u64::from(failing), bytes(&ground.leg(0)));
        load.run(&mut vmm, 100);
        let name = ["a", "b"][usize::from(failing)];
        let two_lines = bad.replace(',', "\n");
        served.must(&["load", name, "--table", &two_lines]);
        served.must(&["resume", name]);
        load.run(&mut vmm, 300);
        let now = status(&served, "x");
        let letters = if failing == 0 { "DA" } else { "AD" };
        assert!(now.contains(&format!(" 1 {letters} 3 disk ")), "{now}");
        // The process is killed and comes back: the leg that works again is made like the other, whichever is the first.
        served.daemon.signal(Signal::KILL);
        assert!(served.daemon.wait(Duration::from_secs(60)).is_some());
        drop(vmm);
        served.start_again();
        synced(&served, "x");
        wait_until("the legs are as good as each other", || status(&served, "x").contains(" 64/64 1 AA "));
        let mut vmm = served.vmm("x", &Setup::default());
        load.run(&mut vmm, 100);
        drop(vmm);
        served.stop();
        for leg in 0..2 {
            assert!(bytes(&ground.leg(leg)) == load.model, "failing {failing}, leg {leg}");
        }
        assert!(bytes(&ground.log())[512..1024].iter().all(|byte| *byte == 0), "the first leg is the source again");
    }
}

#[test]
fn a_leg_lacks_the_regions_that_it_could_not_write_and_no_others() {
    let ground = Ground::new(2);
    let leg = ground.leg(1).display().to_string();
    files::component(&ground.leg(1), &bytes(&ground.leg(0)));
    let tables = format!(
        "b,,,,0 96 linear {leg} 0,96 8 error,104 3992 linear {leg} 104;\
         x,,,,0 {SECTORS} mirror core 2 8 nosync 2 {} 0 /dev/mapper/b 0",
        ground.leg(0).display()
    );
    let mut served = Controlled::start(&tables, &[]);
    let mut vmm = served.vmm("x", &Setup::default());
    let data = vec![7; 110 * SECTOR];
    // The second write meets a region that is out of sync already.
    for at in [3, 50] {
        vmm.write(0, at, &data).unwrap();
        assert!(status(&served, "x").contains(" 511/512 1 AD 1 core"), "{}", status(&served, "x"));
    }
    // A leg that was never in sync there has not failed to write, which is never asked of it.
    let table =
        format!("0 {SECTORS} mirror core 2 8 sync 2 {} 0 /dev/mapper/b 0 1 handle_errors", ground.leg(0).display());
    served.must(&["load", "x", "--table", &table]);
    served.must(&["resume", "x"]);
    wait_until("all but one region is copied", || status(&served, "x").contains(" 511/512 1 AS 1 core"));
    vmm.write(0, 70, &data).unwrap();
    assert!(status(&served, "x").contains(" 511/512 1 AS 1 core"), "{}", status(&served, "x"));
    drop(vmm);
    served.stop();
    let (first, second) = (bytes(&ground.leg(0)), bytes(&ground.leg(1)));
    // Sectors 96 to 104 are the region that the second leg has given up.
    assert!(first[..96 * SECTOR] == second[..96 * SECTOR]);
    assert!(first[104 * SECTOR..] == second[104 * SECTOR..]);
}

#[test]
fn without_a_log_to_tell_of_it_a_write_that_the_first_leg_lacks_fails() {
    let ground = Ground::new(2);
    let tables = format!(
        "a,,,,0 {SECTORS} linear {} 0;x,,,,0 {SECTORS} mirror core 2 64 nosync 2 /dev/mapper/a 0 {} 0",
        ground.leg(0).display(),
        ground.leg(1).display()
    );
    files::component(&ground.leg(1), &bytes(&ground.leg(0)));
    let mut served = Controlled::start(&tables, &[]);
    let mut vmm = served.vmm("x", &Setup::default());
    let mut load = Load::new(3, bytes(&ground.leg(0)));
    load.run(&mut vmm, 50);
    served.must(&["load", "a", "--table", &format!("0 {SECTORS} error")]);
    served.must(&["resume", "a"]);
    assert!(vmm.write(0, 0, &[1; SECTOR]).is_err());
    // Elsewhere the other leg is as good.
    let range = 1024 * SECTOR..1088 * SECTOR;
    assert!(vmm.read(0, 1024, 64 * SECTOR).unwrap() == load.model[range]);
    assert!(status(&served, "x").contains(" 63/64 1 DA 1 core"), "{}", status(&served, "x"));
    drop(vmm);
    served.stop();
}
