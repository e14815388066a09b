//! Workloads whose every flush point is looked at.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use dm_tests::blk::{Data, OK, Request, Segment, Shape, kind};
use dm_tests::rng;
use dm_tests::vmm::Vmm;
use fastrand::Rng;
use rustix::process::Signal;

use crate::ground::{Ground, SECTOR};

const SECTORS: u64 = 256;

/// What is known of the disk at a flush: for each sector what it may be.
type Known = Vec<Vec<[u8; SECTOR]>>;

/// A guest that knows what was acknowledged.
struct Guest {
    vmm: Vmm,
    rng: Rng,
    bytes: Vec<[u8; SECTOR]>,
    flushes: Vec<Known>,
}

impl Guest {
    fn new(vmm: Vmm, before: &[u8], seed: u64) -> Guest {
        let bytes = before.chunks(SECTOR).map(|sector| sector.try_into().unwrap()).collect();
        Guest { vmm, rng: Rng::with_seed(seed), bytes, flushes: Vec::new() }
    }

    /// Some writes at the same time on both queues, a flush among them or behind them.
    fn round(&mut self) {
        let mut taken = HashSet::new();
        let count = self.rng.usize(1..8);
        let flush_at = self.rng.usize(0..count * 2);
        let mut under_way: Vec<(usize, usize, u64, Vec<u8>)> = Vec::new();
        let mut may_be: Known = Vec::new();
        let mut flushing = None;
        for n in 0..count {
            let (at, len) = (self.rng.u64(0..SECTORS - 8), self.rng.u64(1..=8));
            if (at..at + len).any(|sector| !taken.insert(sector)) {
                continue;
            }
            let (queue, slot) = (n % 2, 1 + n / 2);
            if n == flush_at {
                may_be = self.known(&under_way);
                self.submit(queue, 0, kind::FLUSH, 0, &[]);
                flushing = Some(queue);
            }
            let data = match self.rng.u8(0..6) {
                0 => {
                    let range = [Segment { sector: at, sectors: len as u32, flags: 0 }];
                    let zeroing = if self.rng.bool() { kind::DISCARD } else { kind::WRITE_ZEROES };
                    self.submit(queue, slot, zeroing, 0, &dm_tests::blk::segments(&range));
                    vec![0; len as usize * SECTOR]
                }
                _ => {
                    let data = rng::bytes(&mut self.rng, len as usize * SECTOR);
                    self.submit(queue, slot, kind::OUT, at, &data);
                    data
                }
            };
            if flushing.is_some() {
                // It may have passed the flush.
                add(&mut may_be, at, &data);
            }
            under_way.push((queue, slot, at, data));
        }
        let left = under_way.len() + usize::from(flushing.is_some());
        for _ in 0..left {
            let (queue, done) = self.vmm.wait_any();
            assert_eq!(done.status, OK, "slot {} of queue {queue}", done.slot);
        }
        for (_, _, at, data) in &under_way {
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                self.bytes[*at as usize + n] = sector.try_into().unwrap();
            }
        }
        if flushing.is_some() {
            self.flushes.push(may_be);
        } else if self.rng.bool() {
            self.flush();
        }
    }

    /// One with nothing beside it.
    fn flush(&mut self) {
        self.vmm.flush(0).unwrap();
        let known = self.known(&[]);
        self.flushes.push(known);
    }

    fn known(&self, under_way: &[(usize, usize, u64, Vec<u8>)]) -> Known {
        let mut known: Known = self.bytes.iter().map(|sector| vec![*sector]).collect();
        for (_, _, at, data) in under_way {
            add(&mut known, *at, data);
        }
        known
    }

    fn submit(&mut self, queue: usize, slot: usize, kind: u32, sector: u64, bytes: &[u8]) {
        let data = if bytes.is_empty() { Data::None } else { Data::ToDevice(bytes) };
        let mut rng = self.rng.fork();
        self.vmm.submit(queue, slot, &Request { kind, sector, data }, &Shape::PLAIN, &mut rng);
        self.vmm.kick(queue);
    }
}

fn add(known: &mut Known, at: u64, data: &[u8]) {
    for (n, sector) in data.chunks(SECTOR).enumerate() {
        known[at as usize + n].push(sector.try_into().unwrap());
    }
}

fn check(seen: &[u8], known: &Known, what: &str) {
    for (sector, (seen, known)) in seen.chunks(SECTOR).zip(known).enumerate() {
        assert!(
            known.iter().any(|bytes| bytes == seen),
            "{what}: sector {sector} is none of {} it may be",
            known.len()
        );
    }
}

/// Brings an image from flush to flush, and looks at each.
fn check_flushes(ground: &Ground, flushes: &[Known], seed: u64) {
    let to = ground.fresh();
    for (n, known) in flushes.iter().enumerate() {
        let until = format!("--until=flush:{}", n + 1);
        let from = format!("--from=flush:{n}");
        let mut args = vec!["--to", &to, &until];
        args.extend((n > 0).then_some(from.as_str()));
        let (code, _, err) = ground.replay(&args);
        assert_eq!(code, 0, "DM_TEST_SEED={seed} {args:?}: {err}");
        check(&fs::read(&to).unwrap(), known, &format!("DM_TEST_SEED={seed}, flush {}", n + 1));
    }
}

#[test]
fn at_every_flush_the_log_is_what_was_acknowledged() {
    for seed in rng::seeds(1, 3) {
        let ground = Ground::new(SECTORS, 1 << 16);
        let (served, vmm) = ground.serve();
        let mut guest = Guest::new(vmm, &ground.disk(), seed);
        for _ in 0..rng::operations(60) {
            guest.round();
        }
        drop(guest.vmm);
        served.stop();
        assert!(guest.flushes.len() > 10, "{} flushes", guest.flushes.len());
        check_flushes(&ground, &guest.flushes, seed);
        assert_eq!(ground.replayed(&[]), guest.bytes.concat(), "DM_TEST_SEED={seed}: the end");
        assert_eq!(ground.disk(), guest.bytes.concat());
    }
}

#[test]
fn a_killed_process_leaves_what_it_acknowledged() {
    for seed in rng::seeds(11, 3) {
        let ground = Ground::new(SECTORS, 1 << 16);
        let (mut served, vmm) = ground.serve();
        let mut guest = Guest::new(vmm, &ground.disk(), seed);
        for _ in 0..rng::operations(40) {
            guest.round();
        }
        guest.flush();
        // What comes now is acknowledged, and in no flush; some of it is under way when the process dies.
        guest.vmm.write(0, 0, &[0xee; SECTOR]).unwrap();
        for slot in 1..8 {
            guest.submit(1, slot, kind::OUT, slot as u64 * 8, &[0xdd; 4 * SECTOR]);
        }
        served.daemon.signal(Signal::KILL);
        served.daemon.wait(std::time::Duration::from_secs(30)).expect("it ends");
        check_flushes(&ground, &guest.flushes, seed);
        let last = guest.flushes.last().expect("a flush");
        check(&ground.replayed(&[]), last, &format!("DM_TEST_SEED={seed}: the end"));
        let (_, out, _) = ground.replay(&[]);
        assert!(!out.contains("dm-log-writes-end"), "{out}");
        // The one that follows begins anew; the old log is there until its first entry is.
        drop(guest.vmm);
        served.start_again();
        assert_eq!(ground.replay(&[]).1, out);
        let mut vmm = served.vmm("disk", &dm_tests::vmm::Setup::default());
        vmm.write(0, 1, &[1; SECTOR]).unwrap();
        vmm.flush(0).unwrap();
        assert!(ground.replay(&[]).1.contains("entries=2\n1 flushes\n"));
        drop(vmm);
        served.stop();
    }
}

/// Runs a program of e2fsprogs, as a shell does.
fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("a shell");
    let all = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command}: {all}");
    all
}

/// A disk with ext4, and as many states of it as flushes; each is one that e2fsck finds nothing wrong with.
fn file_system(dir: &Path) -> Vec<Vec<u8>> {
    let image = dir.join("shadow.img").display().to_string();
    shell(&format!("truncate -s 4M {image} && mke2fs -q -F -t ext4 -b 1024 {image}"));
    let mut states = vec![fs::read(&image).unwrap()];
    let data = dir.join("data").display().to_string();
    for n in 0..5u8 {
        fs::write(&data, vec![b'a' + n; 20_000 + 3000 * usize::from(n)]).unwrap();
        let removed = n.checked_sub(2).map(|old| format!("rm /d{old}/f\n")).unwrap_or_default();
        let script = format!("mkdir /d{n}\nwrite {data} /d{n}/f\n{removed}");
        fs::write(dir.join("script"), script).unwrap();
        shell(&format!("debugfs -w -f {} {image} && e2fsck -fn {image}", dir.join("script").display()));
        states.push(fs::read(&image).unwrap());
    }
    states
}

/// Writes what is different between one state and the next, in no order, and flushes.
fn bring(vmm: &mut Vmm, rng: &mut Rng, from: &[u8], to: &[u8]) {
    let blocks = from.chunks(1024).zip(to.chunks(1024)).enumerate();
    let mut changed: Vec<(usize, &[u8])> = blocks.filter(|(_, (a, b))| a != b).map(|(n, (_, b))| (n, b)).collect();
    rng.shuffle(&mut changed);
    for (n, (block, bytes)) in changed.into_iter().enumerate() {
        vmm.write(n % 2, block as u64 * 2, bytes).unwrap();
    }
    vmm.flush(0).unwrap();
}

/// The log without one of its writes to the disk's block of 1 KiB, the last but `skip`.
fn without_a_write(log: &[u8], block: u64, skip: usize) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    let mut entries = Vec::new();
    let mut at = SECTOR;
    for _ in 0..number(16) {
        let data = if number(at + 16) & 4 != 0 { 0 } else { number(at + 8) as usize };
        let end = at + (1 + data) * SECTOR;
        entries.push((number(at), number(at + 8), at..end));
        at = end;
    }
    let hits = entries.iter().rev().filter(|(sector, len, _)| *len > 0 && *sector == block * 2);
    let (_, _, gone) = hits.skip(skip).map(|entry| (entry.0, entry.1, entry.2.clone())).next().expect("such a write");
    let mut shorter = [&log[..gone.start], &log[gone.end..]].concat();
    shorter[16..24].copy_from_slice(&(number(16) - 1).to_le_bytes());
    shorter
}

#[test]
fn a_file_system_is_checked_at_every_flush() {
    let dir = tempfile::tempdir().unwrap();
    let states = file_system(dir.path());
    let ground = Ground::over(states[0].clone(), 1 << 14);
    let (served, mut vmm) = ground.serve();
    let mut rng = Rng::with_seed(5);
    for pair in states.windows(2) {
        bring(&mut vmm, &mut rng, &pair[0], &pair[1]);
    }
    drop(vmm);
    served.stop();
    let check = |args: &[&str]| {
        let to = ground.fresh();
        let all: Vec<&str> =
            ["--to", &to, "--each-flush", "e2fsck -fn \"$IMAGE\""].into_iter().chain(args.iter().copied()).collect();
        ground.replay(&all)
    };
    let (code, out, err) = check(&[]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(out.matches("4096 blocks").count() + out.matches("/4096 blocks").count(), 10, "five checks: {out}");
    // The order within a flush was another than a file system's: between them it need not be one.
    let shadow = dir.path().join("shadow.img");
    let dumped = shell(&format!("dumpe2fs {} 2>&1", shadow.display()));
    let (_, after) = dumped.split_once("Block bitmap at ").expect("a block bitmap");
    let bitmap: u64 = after.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    let whole = ground.log_bytes();
    for (skip, flush) in [(0, 5), (2, 3)] {
        ground.write_log(&without_a_write(&whole, bitmap, skip));
        let (code, out, err) = check(&[]);
        assert!(code == 1 && err.contains(&format!("(flush {flush}, ")), "{out}{err}");
        assert!(err.contains("exit status: 4"), "{err}");
    }
}
