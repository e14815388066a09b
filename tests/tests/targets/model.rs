//! Small targets under random requests, several at a time, against a model of bytes: one sector after the other, with
//! nothing of the back end in it.

use dm_tests::blk::{Data, IOERR, Request, Segment, Shape, UNSUPP, kind, segments};
use dm_tests::control::Controlled;
use dm_tests::files;
use dm_tests::loops::{self, Loop};
use dm_tests::rng;
use dm_tests::skip;
use dm_tests::vmm::{Failed, Setup, Vmm};
use fastrand::Rng;
use tempfile::TempDir;

const SECTOR: usize = 512;
/// Sectors of a component.
const SECTORS: usize = 600;

/// Component files, and what should be in them.
struct Disks {
    bytes: Vec<Vec<u8>>,
    // Discarded since they were written: they hold what they held, or zeros.
    unsure: Vec<Vec<bool>>,
    dir: TempDir,
}

impl Disks {
    fn new(rng: &mut Rng, count: usize) -> Disks {
        let dir = files::disk_dir();
        let bytes: Vec<Vec<u8>> = (0..count).map(|_| rng::bytes(rng, SECTORS * SECTOR)).collect();
        let disks = Disks { unsure: vec![vec![false; SECTORS]; count], bytes, dir };
        disks.bytes.iter().enumerate().for_each(|(disk, bytes)| files::component(&disks.path(disk), bytes));
        disks
    }

    fn path(&self, disk: usize) -> std::path::PathBuf {
        self.dir.path().join(disk.to_string())
    }

    fn sector(&mut self, (disk, at): (usize, u64)) -> &mut [u8] {
        let at = at as usize * SECTOR;
        &mut self.bytes[disk][at..at + SECTOR]
    }

    fn set(&mut self, place: (usize, u64), bytes: &[u8]) {
        self.unsure[place.0][place.1 as usize] = false;
        self.sector(place).copy_from_slice(bytes);
    }

    fn matches(&mut self, place: (usize, u64), seen: &[u8]) -> bool {
        let unsure = std::mem::take(&mut self.unsure[place.0][place.1 as usize]);
        if unsure && seen.iter().all(|byte| *byte == 0) {
            self.sector(place).fill(0);
        }
        self.sector(place) == seen
    }

    /// Compares every sector of every file, also those that no table reaches.
    fn check(&mut self, what: &str) {
        for disk in 0..self.bytes.len() {
            let seen = std::fs::read(self.path(disk)).unwrap();
            assert_eq!(seen.len(), SECTORS * SECTOR);
            for (at, seen) in (0..).zip(seen.chunks(SECTOR)) {
                assert!(self.matches((disk, at), seen), "{what}: sector {at} of component {disk}");
            }
        }
    }
}

/// What a guest asks for.
#[derive(Clone, Debug)]
struct Asked {
    kind: u32,
    at: u64,
    len: u64,
    payload: Vec<u8>,
}

/// Where sectors are, and of a discard's sectors those that may be freed.
struct Model<'m> {
    len: u64,
    place: &'m dyn Fn(u64) -> (usize, u64),
    frees: Option<&'m dyn Fn(u64, u64) -> (u64, u64)>,
}

/// Requests beside one another, of which no two touch the same sector.
fn batch(rng: &mut Rng, len: u64, discards: bool) -> Vec<Asked> {
    let mut at = rng.u64(..len);
    let mut asked = Vec::new();
    let longest = if rng.u8(..4) == 0 { 100 } else { 6 };
    while asked.len() < 8 && at < len {
        let take = rng.u64(1..=longest).min(len - at);
        let kind = match rng.u8(..10) {
            0..=2 => kind::IN,
            3..=7 => kind::OUT,
            8 if discards => kind::DISCARD,
            _ => kind::WRITE_ZEROES,
        };
        let range = Segment { sector: at, sectors: take as u32, flags: 0 };
        let payload = match kind {
            kind::IN => Vec::new(),
            kind::OUT => rng::bytes(rng, take as usize * SECTOR),
            _ => segments(&[range]),
        };
        asked.push(Asked { kind, at, len: take, payload });
        at += take + if rng.bool() { 0 } else { rng.u64(..10) };
    }
    rng.shuffle(&mut asked);
    asked
}

/// Has a guest do a batch on two queues at a time, and the model with it.
fn run(vmm: &mut Vmm, rng: &mut Rng, disks: &mut Disks, model: &Model<'_>, what: &str) {
    let batch = batch(rng, model.len, model.frees.is_some());
    for (number, asked) in batch.iter().enumerate() {
        let data = match asked.kind {
            kind::IN => Data::FromDevice(asked.len as usize * SECTOR),
            _ => Data::ToDevice(&asked.payload),
        };
        let sector = if matches!(asked.kind, kind::IN | kind::OUT) { asked.at } else { 0 };
        vmm.submit(number % 2, number / 2, &Request { kind: asked.kind, sector, data }, &Shape::PLAIN, rng);
    }
    vmm.kick(0);
    vmm.kick(1);
    let mut read = vec![Vec::new(); batch.len()];
    for _ in 0..batch.len() {
        let (queue, done) = vmm.wait_any();
        let number = done.slot * 2 + queue;
        assert_eq!(done.status, 0, "{what}: {:?}", batch[number]);
        read[number] = done.data;
    }
    for (asked, read) in batch.iter().zip(read) {
        let (first, last) = match (asked.kind, model.frees) {
            (kind::DISCARD, Some(frees)) => frees(asked.at, asked.at + asked.len),
            _ => (asked.at, asked.at + asked.len),
        };
        for sector in first..last {
            let place = (model.place)(sector);
            let part = (sector - asked.at) as usize * SECTOR..(sector - asked.at + 1) as usize * SECTOR;
            match asked.kind {
                kind::IN => assert!(disks.matches(place, &read[part]), "{what}: sector {sector} of {asked:?}"),
                kind::OUT => disks.set(place, &asked.payload[part]),
                kind::WRITE_ZEROES => disks.set(place, &[0; SECTOR]),
                _ => disks.unsure[place.0][place.1 as usize] = true,
            }
        }
    }
}

fn serve(table: &str) -> (Controlled, Vmm) {
    let mut served = Controlled::start(&format!("disk,,,,{table}"), &[]);
    let vmm = served.vmm("disk", &Setup { queues: 2, ..Setup::default() });
    (served, vmm)
}

fn whole(at: u64, end: u64) -> (u64, u64) {
    (at, end)
}

#[test]
fn unstriped_gives_a_stripe() {
    for seed in rng::seeds(0x0575_7219, 4) {
        let mut rng = Rng::with_seed(seed);
        let mut disks = Disks::new(&mut rng, 1);
        let (stripes, chunk) = (rng.u64(1..=4), rng.u64(1..=20));
        let rows = rng.u64(1..=(SECTORS as u64 - 20) / (stripes * chunk));
        let (stripe, start) = (rng.u64(..stripes), rng.u64(..20));
        let len = rows * chunk;
        let table = format!("0 {len} unstriped {stripes} {chunk} {stripe} {} {start}", disks.path(0).display());
        let what = format!("seed {seed}, {table}");
        let (served, mut vmm) = serve(&table);
        let place = |at: u64| (0, start + (at / chunk * stripes + stripe) * chunk + at % chunk);
        let model = Model { len, place: &place, frees: None };
        for _ in 0..rng::operations(60) {
            run(&mut vmm, &mut rng, &mut disks, &model, &what);
        }
        // The only stripe is a linear line.
        let discarded = vmm.ranges(0, kind::DISCARD, &[Segment { sector: 0, sectors: 1, flags: 0 }]);
        assert_eq!(discarded, if stripes == 1 { discarded } else { Err(Failed(UNSUPP)) }, "{what}");
        assert_eq!(served.must_not(&["message", "disk", "0", "hello"]).lines().count(), 3);
        assert_eq!(served.must(&["status", "disk"]), format!("0 {len} unstriped \n"));
        vmm.flush(0).unwrap();
        drop(vmm);
        served.stop();
        if stripes > 1 {
            disks.check(&what);
        }
    }
}

#[test]
fn switch_has_regions_where_messages_put_them() {
    for seed in rng::seeds(0x0057_1c44, 4) {
        let mut rng = Rng::with_seed(seed);
        let paths = rng.usize(1..=4);
        let mut disks = Disks::new(&mut rng, paths);
        let (region, len) = (rng.u64(1..=30), rng.u64(1..=500));
        let starts: Vec<u64> = (0..paths).map(|_| rng.u64(..100)).collect();
        let legs = starts.iter().enumerate().map(|(disk, start)| format!(" {} {start}", disks.path(disk).display()));
        let table = format!("0 {len} switch {paths} {region} 0{}", legs.collect::<String>());
        let what = format!("seed {seed}, {table}");
        let (served, mut vmm) = serve(&table);
        let regions = len.div_ceil(region) as usize;
        let mut on: Vec<usize> = (0..regions).map(|region| region % paths).collect();
        for turn in 0..rng::operations(60) {
            if turn % 4 == 3 {
                let (at, path) = (rng.usize(..regions), rng.usize(..paths));
                let again = rng.usize(..regions - at);
                let mappings = format!("{at:x}:{path:x} R1,{again:x}");
                served.must(&["message", "disk", "0", &format!("set_region_mappings {mappings}")]);
                on[at..=at + again].fill(path);
            }
            let place = |at: u64| {
                let path = on[(at / region) as usize];
                (path, starts[path] + at)
            };
            run(&mut vmm, &mut rng, &mut disks, &Model { len, place: &place, frees: Some(&whole) }, &what);
        }
        vmm.flush(0).unwrap();
        drop(vmm);
        served.stop();
        disks.check(&what);
    }
}

/// A disk of small blocks over one of large ones; the line may end inside of one.
fn ebs(disks: &mut Disks, rng: &mut Rng, device: &str, (start, len): (u64, u64), given: &str, block: u64) {
    let table = format!("0 {len} ebs {device} {start} 1{given}");
    let (served, mut vmm) = serve(&table);
    let place = |at: u64| (0, start + at);
    let frees = |at: u64, end: u64| (at.next_multiple_of(block), (end / block * block).max(at.next_multiple_of(block)));
    let model = Model { len, place: &place, frees: Some(&frees) };
    for _ in 0..rng::operations(150) {
        run(&mut vmm, rng, disks, &model, &table);
    }
    vmm.flush(1).unwrap();
    // Each sector of a few blocks in a request of its own, all at a time: none loses what another has written.
    for base in (0..len.saturating_sub(16)).step_by(37) {
        let sectors = rng::bytes(rng, 16 * SECTOR);
        for (number, bytes) in sectors.chunks(SECTOR).enumerate() {
            let request = Request { kind: kind::OUT, sector: base + number as u64, data: Data::ToDevice(bytes) };
            vmm.submit(number % 2, number / 2, &request, &Shape::PLAIN, rng);
            disks.set((0, start + base + number as u64), bytes);
        }
        vmm.kick(0);
        vmm.kick(1);
        for _ in 0..16 {
            assert_eq!(vmm.wait_any().1.status, 0);
        }
        assert_eq!(vmm.read(0, base, 16 * SECTOR).unwrap(), sectors, "{table}");
    }
    drop(vmm);
    served.stop();
}

#[test]
fn ebs_changes_parts_of_blocks_and_nothing_else() {
    for seed in rng::seeds(0x0eb5_0eb5, 3) {
        let mut rng = Rng::with_seed(seed);
        let mut disks = Disks::new(&mut rng, 1);
        let block = 1 << rng.u32(1..=7);
        let start = rng.u64(..=100 / block) * block;
        let len = rng.u64(start + 1..=SECTORS as u64 - start);
        let device = disks.path(0).display().to_string();
        ebs(&mut disks, &mut rng, &device, (start, len), &format!(" {block}"), block);
        disks.check(&format!("seed {seed}"));
    }
}

#[test]
fn ebs_shows_a_disk_of_large_blocks_as_one_of_sectors() {
    if let Some(why) = loops::missing() {
        return skip::skip("ebs_shows_a_disk_of_large_blocks_as_one_of_sectors", why);
    }
    let mut rng = Rng::with_seed(4096);
    let mut disks = Disks::new(&mut rng, 1);
    let device = Loop::with_blocks(&disks.path(0), 4096).unwrap();
    let node = device.node.to_str().unwrap().to_owned();
    ebs(&mut disks, &mut rng, &node, (16, 520), "", 8);
    // Smaller underlying blocks than the device's own cannot be.
    ebs(&mut disks, &mut rng, &node, (16, 520), " 2", 8);
    drop(device);
    disks.check("a loop device");
}

#[test]
fn ebs_tells_the_guest_of_both_sizes() {
    let mut disks = Disks::new(&mut Rng::with_seed(1), 1);
    let (served, vmm) = serve(&format!("0 64 ebs {} 16 2 16", disks.path(0).display()));
    let config = vmm.config;
    assert_eq!((config.blk_size, config.physical_block_exp), (1024, 3));
    drop(vmm);
    served.stop();
    disks.check("nothing was written");
}

#[test]
fn what_a_path_cannot_do_the_guest_hears_of() {
    let mut disks = Disks::new(&mut Rng::with_seed(2), 1);
    let at = disks.path(0).display().to_string();
    let concise = format!(
        "bad,,,,0 64 linear {at} 0,64 8 error,72 56 linear {at} 72;\
         s,,,,0 128 switch 2 8 0 {at} 0 /dev/mapper/bad 0;u,,,,0 64 unstriped 2 8 0 /dev/mapper/bad 0;\
         disk,,,,0 128 linear /dev/mapper/s 0,128 64 linear /dev/mapper/u 0,192 128 ebs /dev/mapper/bad 0 1 16"
    );
    let mut served = Controlled::start(&concise, &[]);
    let mut vmm = served.vmm("disk", &Setup::default());
    // Region 8 is on the first path until a message says otherwise.
    vmm.read(0, 64, 8 * SECTOR).unwrap();
    served.must(&["message", "s", "0", "set_region_mappings 8:1"]);
    assert_eq!(vmm.read(0, 60, 8 * SECTOR), Err(Failed(IOERR)));
    vmm.read(0, 56, 8 * SECTOR).unwrap();
    // Chunk 4 of the stripe is at sector 64 of the device.
    assert_eq!(vmm.read(0, 128 + 32, SECTOR), Err(Failed(IOERR)));
    vmm.read(0, 128 + 24, 8 * SECTOR).unwrap();
    // A block that cannot be read as a whole cannot be changed in part.
    assert_eq!(vmm.write(0, 192 + 74, &[1; SECTOR]), Err(Failed(IOERR)));
    drop(vmm);
    served.stop();
    disks.check("what failed has changed nothing");
}
