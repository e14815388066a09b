//! Snapshots and their origins: what the kernel's transcript shows, the kernel's store, and a naive model.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use dm_tests::blk::IOERR;
use dm_tests::control::{Controlled, wait_until, which};
use dm_tests::files;
use dm_tests::vmm::{Failed, Setup, Vmm};
use fastrand::Rng;
use serde_json::json;
use tempfile::TempDir;

use super::{Component, SECTOR, SECTORS, fresh, serve};

/// Where writes go.
struct Cow {
    path: PathBuf,
    _dir: TempDir,
}

impl Cow {
    fn new(sectors: u64) -> Cow {
        let dir = files::disk_dir();
        let path = dir.path().join("cow");
        files::sparse(&path, sectors * SECTOR as u64);
        Cow { path, _dir: dir }
    }

    fn of(bytes: &[u8], sectors: u64) -> Cow {
        let cow = Cow::new(sectors);
        cow.put(0, bytes);
        cow
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        std::fs::File::open(&self.path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn at(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}

/// With room for long requests.
fn setup(queues: u16) -> Setup {
    Setup { queues, slots: 2, slot_bytes: 512 << 10, ..Setup::default() }
}

fn header(valid: u32, version: u32, chunk: u32) -> Vec<u8> {
    [0x7041_6e53, valid, version, chunk].iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
}

fn entries(list: &[(u64, u64)]) -> Vec<u8> {
    list.iter().flat_map(|(old, new)| [old.to_le_bytes(), new.to_le_bytes()].concat()).collect()
}

fn status(served: &Controlled, device: &str) -> String {
    served.must(&["status", device]).trim_end().to_owned()
}

/// Transcript 5, "SNAP N".
#[test]
fn in_memory_it_is_as_in_the_transcript() {
    let (origin, cow) = (Component::new(), Cow::new(131_072));
    let table = format!("0 128 snapshot {} {} N 8", origin.at(), cow.at());
    let (served, mut vmm) = serve(&table);
    assert_eq!(served.must(&["table", "disk"]), format!("{table}\n"));
    assert_eq!(status(&served, "disk"), "0 128 snapshot 0/131072 0");
    vmm.write(0, 3, &[0x99; SECTOR]).unwrap();
    let expected = [fresh(0), fresh(1), fresh(2), vec![0x99; SECTOR], fresh(4), fresh(5), fresh(6), fresh(7)].concat();
    assert_eq!(vmm.read(1, 0, 8 * SECTOR).unwrap(), expected);
    vmm.flush(0).unwrap();
    assert_eq!(status(&served, "disk"), "0 128 snapshot 8/131072 0");
    vmm.write(0, 16, &[0; 8 * SECTOR]).unwrap();
    assert_eq!(status(&served, "disk"), "0 128 snapshot 16/131072 0");
    assert_eq!(vmm.read(0, 16, 8 * SECTOR).unwrap(), [0; 8 * SECTOR]);
    assert_eq!((origin.sector(3), origin.sector(16)), (fresh(3), fresh(16)));
    // What it knows goes to another table over the same store, and ends with that.
    served.must(&["load", "disk", "--table", &table]);
    served.must(&["resume", "disk"]);
    assert_eq!(status(&served, "disk"), "0 128 snapshot 16/131072 0");
    assert_eq!(vmm.read(1, 0, 8 * SECTOR).unwrap(), expected);
    drop(vmm);
    served.stop();
    let (served, mut vmm) = serve(&table);
    assert_eq!(vmm.read(0, 3, SECTOR).unwrap(), fresh(3));
    drop(vmm);
    served.stop();
}

/// Transcript 5, "SNAP P": the same writes give the same status lines and the same bytes of metadata.
#[test]
fn kept_it_has_the_bytes_of_the_transcript() {
    let (origin, cow) = (Component::new(), Cow::new(131_072));
    let table = |chunk: u32| format!("0 128 snapshot {} {} P {chunk}", origin.at(), cow.at());
    let (served, mut vmm) = serve(&table(8));
    assert_eq!(status(&served, "disk"), "0 128 snapshot 16/131072 16");
    vmm.write(0, 3, &[0x99; SECTOR]).unwrap();
    vmm.write(0, 24, &[0x77; 8 * SECTOR]).unwrap();
    vmm.write(0, 40, &[0x55; 16 * SECTOR]).unwrap();
    assert_eq!(status(&served, "disk"), "0 128 snapshot 48/131072 16");
    drop(vmm);
    served.stop();
    let mut head = header(1, 1, 8);
    head.resize(8 * SECTOR, 0);
    assert_eq!(cow.bytes(0, 8 * SECTOR), head);
    let mut area = entries(&[(0, 2), (3, 3), (5, 4), (6, 5)]);
    area.resize(8 * SECTOR, 0);
    assert_eq!(cow.bytes(8 * SECTOR as u64, 8 * SECTOR), area);
    // "snapP-reopen": the chunk size of the store wins.
    let (served, mut vmm) = serve(&table(64));
    assert_eq!(served.must(&["table", "disk"]), format!("{}\n", table(8)));
    assert_eq!(status(&served, "disk"), "0 128 snapshot 48/131072 16");
    let expected = [fresh(0), fresh(1), fresh(2), vec![0x99; SECTOR]].concat();
    assert_eq!(vmm.read(0, 0, 4 * SECTOR).unwrap(), expected);
    assert_eq!(vmm.read(0, 24, 8 * SECTOR).unwrap(), [0x77; 8 * SECTOR]);
    assert_eq!(vmm.read(0, 40, 16 * SECTOR).unwrap(), [0x55; 16 * SECTOR]);
    assert_eq!(vmm.read(0, 56, SECTOR).unwrap(), fresh(56));
    drop(vmm);
    served.stop();
}

#[test]
fn a_store_with_anything_in_it_is_read_or_refused() {
    let origin = Component::new();
    let served = Controlled::empty();
    let try_out = |cow: &Cow| {
        let table = format!("0 1024 snapshot {} {} P 8", origin.at(), cow.at());
        let created = served.dmsetup(&["create", "disk", "--table", &table]);
        let told = (created.code == 0).then(|| status(&served, "disk"));
        if created.code == 0 {
            served.must(&["remove", "disk"]);
        }
        told.ok_or(created.stderr)
    };
    let store = |list: &[(u64, u64)]| {
        let cow = Cow::of(&header(1, 1, 8), 4096);
        cow.put(8 * SECTOR as u64, &entries(list));
        cow
    };
    assert_eq!(try_out(&store(&[(4, 3), (5, 4), (1, 2)])).unwrap(), "0 1024 snapshot 40/4096 16");
    // A chunk that the origin does not have is of no use, and does no harm.
    assert_eq!(try_out(&store(&[(1 << 40, 3)])).unwrap(), "0 1024 snapshot 32/4096 16");
    assert_eq!(try_out(&Cow::of(&header(0, 1, 8), 4096)).unwrap(), "0 1024 snapshot Invalid");
    let refused = [
        Cow::of(b"SnAP and more of that", 4096),
        Cow::of(&header(1, 2, 8), 4096),
        Cow::of(&header(1, 1, 0), 4096),
        Cow::of(&header(1, 1, 12), 4096),
        Cow::of(&header(1, 1, u32::MAX), 4096),
        Cow::of(&header(1, 1, 1 << 31), 4096),
        store(&[(1, 1)]),
        store(&[(1, 258)]),
        store(&[(1, 512)]),
        store(&[(1, u64::MAX)]),
        store(&[(1, 2), (1, 3)]),
        store(&[(1, 2), (7, 2)]),
        store(&[(u64::MAX, 2)]),
    ];
    for (number, cow) in refused.iter().enumerate() {
        let before = cow.bytes(0, 4096 * SECTOR);
        let why = try_out(cow).expect_err("it is used");
        assert!(why.contains("snapshot: Failed to read snapshot metadata"), "{number}: {why}");
        assert!(cow.bytes(0, 4096 * SECTOR) == before, "{number}: a store that is refused is written");
        served.dmsetup(&["remove", "disk"]);
    }
    served.stop();
}

#[test]
fn a_full_store_invalidates_or_overflows() {
    // The header, an area, and three chunks; with N five.
    for (kind, room) in [("P", 3), ("PO", 3), ("N", 5)] {
        let (origin, cow) = (Component::new(), Cow::new(5 * 8));
        let table = format!("0 1024 snapshot {} {} {kind} 8", origin.at(), cow.at());
        let (served, mut vmm) = serve(&table);
        for chunk in 0..room {
            vmm.write(0, chunk * 8, &[7; SECTOR]).unwrap();
        }
        let before = status(&served, "disk");
        assert_eq!(vmm.write(0, 1000, &[8; SECTOR]), Err(Failed(IOERR)), "{kind}: {before}");
        match kind {
            "PO" => {
                assert_eq!(status(&served, "disk"), "0 1024 snapshot Overflow");
                assert_eq!(vmm.read(0, 0, SECTOR).unwrap(), [7; SECTOR]);
                assert_eq!(vmm.read(0, 1000, SECTOR).unwrap(), fresh(1000));
                // dm-snap.c fails all writes then, also where there is room.
                assert_eq!(vmm.write(0, 0, &[8; SECTOR]), Err(Failed(IOERR)));
                assert_eq!(cow.bytes(0, 16), header(1, 1, 8));
            }
            _ => {
                assert_eq!(status(&served, "disk"), "0 1024 snapshot Invalid");
                assert_eq!(vmm.read(0, 0, SECTOR), Err(Failed(IOERR)));
                assert_eq!(vmm.write(0, 0, &[8; SECTOR]), Err(Failed(IOERR)));
                if kind == "P" {
                    assert_eq!(cow.bytes(0, 16), header(0, 1, 8));
                }
            }
        }
        drop(vmm);
        served.stop();
        if kind == "PO" {
            let (served, vmm) = serve(&table);
            assert_eq!(status(&served, "disk"), "0 1024 snapshot 40/40 16");
            drop(vmm);
            served.stop();
        }
    }
}

#[test]
fn a_store_is_used_once_and_handed_over_when_its_user_is_suspended() {
    let (origin, cow) = (Component::new(), Cow::new(4096));
    let table = format!("0 1024 snapshot {} {} P 8", origin.at(), cow.at());
    let (served, mut vmm) = serve(&table);
    vmm.write(0, 9, &[1; SECTOR]).unwrap();
    let refused = served.must_not(&["create", "other", "--table", &table]);
    assert!(refused.contains("Unable to perform snapshot handover until source is suspended."), "{refused}");
    assert_eq!(vmm.read(0, 9, SECTOR).unwrap(), [1; SECTOR]);
    served.dmsetup(&["remove", "other"]);
    served.must(&["suspend", "disk"]);
    served.must(&["create", "other", "--table", &table]);
    served.must(&["resume", "disk"]);
    // The first has it no longer, and must not write into what is another's.
    assert_eq!(status(&served, "disk"), "0 1024 snapshot Invalid");
    assert_eq!(vmm.read(0, 9, SECTOR), Err(Failed(IOERR)));
    assert_eq!(status(&served, "other"), "0 1024 snapshot 24/4096 16");
    served.must(&["remove", "other"]);
    served.must(&["load", "disk", "--table", &table]);
    served.must(&["resume", "disk"]);
    assert_eq!(vmm.read(0, 9, SECTOR).unwrap(), [1; SECTOR]);
    let same = format!("0 1024 snapshot {0} {0} N 8", origin.at());
    let refused = served.must_not(&["load", "disk", "--table", &same]);
    assert!(refused.contains("snapshot: COW device cannot be the same as origin device"), "{refused}");
    drop(vmm);
    served.stop();
}

/// What a disk shows, as a list of sectors.
type Model = Vec<Vec<u8>>;

fn check(vmm: &mut Vmm, model: &Model, at: usize, len: usize, what: &str) {
    let seen = vmm.read(0, at as u64, len * SECTOR).unwrap();
    assert!(seen == model[at..at + len].concat(), "{what}: sectors {at}+{len}");
}

#[test]
fn snapshots_and_their_origin_are_what_a_model_says() {
    for seed in 0..3 {
        let mut rng = Rng::with_seed(seed);
        let base = Component::new();
        let cows = [Cow::new(8192), Cow::new(8192), Cow::new(4096)];
        let snapshot =
            |n: usize, kind: &str, len: u64| format!("0 {len} snapshot {} {} {kind}", base.at(), cows[n].at());
        let tables = [snapshot(0, "P 8", 1024), snapshot(1, "N 32", 900), snapshot(2, "PO 2", 1024)];
        let concise = format!(
            "s0,,,,{};s1,,,,{};s2,,,,{};origin,,,,0 1024 snapshot-origin {}",
            tables[0],
            tables[1],
            tables[2],
            base.at()
        );
        let mut served = Controlled::start(&concise, &[]);
        let names = ["s0", "s1", "s2", "origin"];
        let mut vmms: Vec<Vmm> = names.iter().map(|name| served.vmm(name, &setup(1))).collect();
        let first: Model = (0..1024).map(fresh).collect();
        let mut models = [first.clone(), first[..900].to_vec(), first.clone(), first];
        for step in 0..400 {
            let disk = rng.usize(..4);
            let at = rng.usize(..models[disk].len());
            let most = if rng.u8(..4) == 0 { 200 } else { 20 };
            let len = rng.usize(1..=most).min(models[disk].len() - at);
            let what = format!("seed {seed}, step {step}, {}", names[disk]);
            match rng.u8(..10) {
                0..=4 => {
                    let data: Vec<u8> = (0..len).flat_map(|_| vec![rng.u8(..); SECTOR]).collect();
                    vmms[disk].write(0, at as u64, &data).unwrap();
                    for (sector, data) in models[disk][at..].iter_mut().zip(data.chunks(SECTOR)) {
                        *sector = data.to_vec();
                    }
                }
                5 => vmms[disk].flush(0).unwrap(),
                // The table is loaded anew, over what it has.
                6 if disk < 3 => {
                    served.must(&["load", names[disk], "--table", &tables[disk]]);
                    served.must(&["resume", names[disk]]);
                }
                _ => check(&mut vmms[disk], &models[disk], at, len, &what),
            }
        }
        for (disk, model) in models.iter().enumerate() {
            for at in (0..model.len()).step_by(100) {
                check(&mut vmms[disk], model, at, 100.min(model.len() - at), &format!("seed {seed}, {}", names[disk]));
            }
        }
        let info = served.must(&["status", "origin"]);
        assert_eq!(info, "0 1024 snapshot-origin \n");
        drop(vmms);
        // What is kept is there the next time, though the origin has been written.
        served.stop();
        let (served, mut vmm) = serve(&tables[0]);
        for at in (0..1024).step_by(64) {
            check(&mut vmm, &models[0], at, 64, "kept");
        }
        drop(vmm);
        served.stop();
    }
}

/// Begins to wait for an event of a device; what ends the wait gives what the device is then.
fn event(served: &Controlled, device: &str) -> impl FnOnce() -> u64 + use<> {
    let mut client = served.client();
    let number = client.info(device)["event_nr"].as_u64().expect("a number");
    let id = client.begin("wait", &json!({"which": which(device), "event_nr": number})).expect("send");
    move || client.end(id).expect("an answer").expect("an event")["event_nr"].as_u64().expect("a number") - number
}

#[test]
fn who_waits_is_woken_when_a_snapshot_is_invalid_and_not_when_it_overflows() {
    for (kind, told) in [("P", "Invalid"), ("N", "Invalid"), ("PO", "Overflow")] {
        let (origin, cow) = (Component::new(), Cow::new(5 * 8));
        let (served, mut vmm) = serve(&format!("0 1024 snapshot {} {} {kind} 8", origin.at(), cow.at()));
        let woken = event(&served, "disk");
        let before = served.client().info("disk")["event_nr"].clone();
        let full = (0..6).map(|chunk| vmm.write(0, chunk * 8, &[7; SECTOR])).find(Result::is_err);
        assert_eq!(full, Some(Err(Failed(IOERR))));
        assert_eq!(status(&served, "disk"), format!("0 1024 snapshot {told}"));
        match kind {
            // As in the kernel, which leaves it to dmeventd to look.
            "PO" => assert_eq!(served.client().info("disk")["event_nr"], before),
            _ => assert_eq!(woken(), 1, "{kind}"),
        }
        drop(vmm);
        served.stop();
    }
}

#[test]
fn who_waits_is_woken_when_writers_of_the_origin_fill_a_store() {
    let (base, cow) = (Component::new(), Cow::new(5 * 8));
    let concise =
        format!("snap,,,,0 1024 snapshot {0} {1} P 8;origin,,,,0 2048 snapshot-origin {0}", base.at(), cow.at());
    let mut served = Controlled::start(&concise, &[]);
    let woken = event(&served, "snap");
    let mut origin = served.vmm("origin", &setup(1));
    origin.write(0, 0, &[9; 64 * SECTOR]).unwrap();
    assert_eq!(woken(), 1);
    assert_eq!(status(&served, "snap"), "0 1024 snapshot Invalid");
    drop(origin);
    served.stop();
}

#[test]
fn who_waits_is_woken_when_a_merge_has_ended() {
    let (origin, cow) = (Component::new(), Cow::new(4096));
    let line = |target: &str| format!("0 1024 {target} {} {} P 8", origin.at(), cow.at());
    let (served, mut vmm) = serve(&line("snapshot"));
    vmm.write(0, 9, &[1; 100 * SECTOR]).unwrap();
    served.must(&["load", "disk", "--table", &line("snapshot-merge")]);
    let woken = event(&served, "disk");
    served.must(&["resume", "disk"]);
    // The exchange of tables is the first.
    assert!(woken() >= 1);
    served.must(&["wait", "disk", "1"]);
    assert_eq!(status(&served, "disk"), "0 1024 snapshot-merge 16/4096 16");
    assert_eq!(origin.sector(108), vec![1; SECTOR]);
    drop(vmm);
    served.stop();
}

/// The second line of the new table cannot have its store: the first gives back what it took over, and the origin's writers,
/// who waited for the snapshot all the time, have not gone on meanwhile.
#[test]
fn a_merge_that_does_not_come_to_life_lets_nobody_write_the_origin() {
    let base = Component::new();
    let cows = [Cow::new(4096), Cow::new(4096)];
    let line = |at: u64, target: &str, n: usize| format!("{at} 512 {target} {} {} P 8", base.at(), cows[n].at());
    let concise = format!(
        "snap,,,,{};other,,,,{};origin,,,,0 2048 snapshot-origin {}",
        line(0, "snapshot", 0),
        line(0, "snapshot", 1),
        base.at()
    );
    let mut served = Controlled::start(&concise, &[]);
    let (mut snap, mut origin) = (served.vmm("snap", &setup(1)), served.vmm("origin", &setup(1)));
    for round in 0..10 {
        let at = round * 8;
        served.must(&["suspend", "snap"]);
        std::thread::scope(|scope| {
            scope.spawn(|| origin.write(0, at, &[9; 8 * SECTOR]).unwrap());
            let table = format!("{}\n{}", line(0, "snapshot-merge", 0), line(512, "snapshot", 1));
            // It is warned of, as both lines have the same origin.
            assert_eq!(served.dmsetup(&["load", "snap", "--table", &table]).code, 0);
            let refused = served.must_not(&["resume", "snap"]);
            assert!(refused.contains("Unable to perform snapshot handover"), "{refused}");
            served.must(&["resume", "snap"]);
        });
        assert_eq!(snap.read(0, at, SECTOR).unwrap(), fresh(at), "it was written over before it was copied");
        assert_eq!(base.sector(at), vec![9; SECTOR]);
    }
    drop((snap, origin));
    served.stop();
}

#[test]
fn what_a_snapshot_shows_stays_while_its_origin_is_written() {
    let base = Component::new();
    let cow = Cow::new(16_384);
    let concise =
        format!("snap,,,,0 2048 snapshot {0} {1} P 4;origin,,,,0 2048 snapshot-origin {0}", base.at(), cow.at());
    let mut served = Controlled::start(&concise, &[]);
    let mut snap = served.vmm("snap", &setup(2));
    let mut origin = served.vmm("origin", &setup(2));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut rng = Rng::with_seed(1);
            for round in 0..600u32 {
                let at = rng.u64(..SECTORS as u64 - 16);
                let data = vec![round as u8 | 1; rng.usize(1..=16) * SECTOR];
                origin.write(rng.usize(..2), at, &data).unwrap();
            }
        });
        let mut rng = Rng::with_seed(2);
        for _ in 0..600 {
            let at = rng.u64(..SECTORS as u64 - 40);
            let seen = snap.read(rng.usize(..2), at, 40 * SECTOR).unwrap();
            assert!(seen == (at..at + 40).flat_map(fresh).collect::<Vec<_>>(), "sectors {at}+40 have changed");
        }
    });
    // A suspended snapshot keeps the origin's writers; one that is removed does not.
    drop(snap);
    served.must(&["suspend", "snap"]);
    wait_until("it stays in use", || served.dmsetup(&["remove", "snap"]).code == 0);
    let mut origin = served.vmm("origin", &setup(1));
    origin.write(0, 0, &vec![9; 256 * SECTOR]).unwrap();
    drop(origin);
    served.stop();
}
