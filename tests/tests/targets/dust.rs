//! `dust` under random requests and messages, against a model of its blocks: a bad one fails reads, and as many writes as it
//! was added with, before one repairs it; what lies in other blocks of the same request is done.

use std::collections::BTreeMap;

use dm_tests::blk::{IOERR, Segment, kind};
use dm_tests::control::Controlled;
use dm_tests::files;
use dm_tests::rng;
use dm_tests::vmm::{Failed, Setup, Vmm};
use fastrand::Rng;

const SECTOR: usize = 512;
/// Sectors of the component.
const SECTORS: u64 = 600;

struct Model {
    bytes: Vec<u8>,
    start: u64,
    len: u64,
    // Sectors of a block; blocks are counted from the beginning of the component.
    block: u64,
    bad: BTreeMap<u64, u8>,
    enabled: bool,
}

impl Model {
    fn range(&self, at: u64, len: u64) -> std::ops::Range<usize> {
        let at = (self.start + at) as usize * SECTOR;
        at..at + len as usize * SECTOR
    }

    /// Whether block `block` fails an operation.
    fn fails(&mut self, block: u64, write: bool) -> bool {
        if !self.enabled {
            return false;
        }
        match self.bad.get_mut(&block) {
            None => false,
            Some(_) if !write => true,
            Some(0) => {
                self.bad.remove(&block);
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// Does what can be done of a write; whether all could.
    fn write(&mut self, at: u64, payload: &[u8]) -> bool {
        let mut all = true;
        let sectors: Vec<u64> = (at..at + (payload.len() / SECTOR) as u64).collect();
        let (start, size) = (self.start, self.block);
        for run in sectors.chunk_by(|a, b| (start + a) / size == (start + b) / size) {
            if self.fails((start + run[0]) / size, true) {
                all = false;
                continue;
            }
            let from = (run[0] - at) as usize * SECTOR;
            let to = self.range(run[0], run.len() as u64);
            let len = to.len();
            self.bytes[to].copy_from_slice(&payload[from..from + len]);
        }
        all
    }

    fn read(&mut self, at: u64, len: u64) -> Option<Vec<u8>> {
        let blocks = (self.start + at) / self.block..=(self.start + at + len - 1) / self.block;
        let fails = blocks.into_iter().any(|block| self.fails(block, false));
        (!fails).then(|| self.bytes[self.range(at, len)].to_vec())
    }
}

/// A message, and what it must answer.
fn message(rng: &mut Rng, served: &Controlled, model: &mut Model, what: &str) {
    let send = |words: &[&str]| served.must(&[&["message", "disk", "0"], words].concat());
    let refused = |words: &[&str]| served.must_not(&[&["message", "disk", "0"], words].concat());
    let block = rng.u64(..SECTORS / model.block);
    let number = block.to_string();
    match rng.u8(..20) {
        0..=8 if model.bad.contains_key(&block) => {
            let said = refused(&["addbadblock", &number]);
            assert!(said.contains(&format!("block {block} already in badblocklist")), "{what}: {said}");
        }
        0..=8 => {
            let fails = rng.u8(..4);
            match (fails, rng.bool()) {
                (0, true) => send(&["addbadblock", &number]),
                _ => send(&["addbadblock", &number, &fails.to_string()]),
            };
            model.bad.insert(block, fails);
        }
        9 | 10 => match model.bad.remove(&block) {
            Some(_) => assert_eq!(send(&["removebadblock", &number]), "", "{what}"),
            None => {
                let said = refused(&["removebadblock", &number]);
                assert!(said.contains(&format!("block {block} not found in badblocklist")), "{what}: {said}");
            }
        },
        11 | 12 => {
            let not = if model.bad.contains_key(&block) { "" } else { "not " };
            let expected = format!("dust_query_block: block {block} {not}found in badblocklist\n");
            assert_eq!(send(&["queryblock", &number]), expected, "{what}");
        }
        13 => {
            let expected = format!("countbadblocks: {} badblock(s) found\n", model.bad.len());
            assert_eq!(send(&["countbadblocks"]), expected, "{what}");
        }
        14 => {
            let list: String = model.bad.keys().map(|block| format!("{block}\n")).collect();
            let expected = if list.is_empty() { "No blocks in badblocklist\n".to_owned() } else { list };
            assert_eq!(send(&["listbadblocks"]), expected, "{what}");
        }
        15 => {
            let said = if model.bad.is_empty() { "no badblocks found" } else { "badblocks cleared" };
            assert_eq!(send(&["clearbadblocks"]), format!("dust_clear_badblocks: {said}\n"), "{what}");
            model.bad.clear();
        }
        16 => {
            let said = refused(&["addbadblock", &(SECTORS / model.block + 1).to_string()]);
            assert!(said.contains("selected block value out of range"), "{what}: {said}");
        }
        17 => drop(send(&["quiet"])),
        18 => {
            model.enabled = false;
            send(&["disable"]);
        }
        _ => {
            model.enabled = true;
            send(&["enable"]);
        }
    }
}

fn request(rng: &mut Rng, vmm: &mut Vmm, model: &mut Model, what: &str) {
    let queue = rng.usize(..2);
    let at = rng.u64(..model.len);
    let len = rng.u64(1..=40).min(model.len - at);
    let outcome = |all: bool| if all { Ok(()) } else { Err(Failed(IOERR)) };
    let what = format!("{what}: [{at}, +{len}), bad {:?}", model.bad);
    match rng.u8(..10) {
        0 => vmm.flush(queue).unwrap(),
        1 => {
            let expected = outcome(model.write(at, &vec![0; len as usize * SECTOR]));
            let range = Segment { sector: at, sectors: len as u32, flags: 0 };
            assert_eq!(vmm.ranges(queue, kind::WRITE_ZEROES, &[range]), expected, "{what}");
        }
        2..=5 => {
            let payload = rng::bytes(rng, len as usize * SECTOR);
            let expected = outcome(model.write(at, &payload));
            assert_eq!(vmm.write(queue, at, &payload), expected, "{what}");
        }
        _ => match model.read(at, len) {
            Some(bytes) => assert_eq!(vmm.read(queue, at, bytes.len()).unwrap(), bytes, "{what}"),
            None => assert_eq!(vmm.read(queue, at, len as usize * SECTOR), Err(Failed(IOERR)), "{what}"),
        },
    }
}

#[test]
fn dust_fails_and_repairs_blocks_as_it_was_told() {
    for seed in rng::seeds(0x0000_d057, 4) {
        let mut rng = Rng::with_seed(seed);
        let dir = files::disk_dir();
        let path = dir.path().join("component");
        let bytes = rng::bytes(&mut rng, SECTORS as usize * SECTOR);
        files::component(&path, &bytes);
        let start = rng.u64(..50);
        let (len, block) = (rng.u64(100..=SECTORS - start), 1 << rng.u32(..=3));
        let table = format!("0 {len} dust {} {start} {}", path.display(), block * SECTOR as u64);
        let what = format!("seed {seed}, {table}");
        let mut served = Controlled::start(&format!("disk,,,,{table}"), &[]);
        let mut vmm = served.vmm("disk", &Setup { queues: 2, ..Setup::default() });
        let mut model = Model { bytes, start, len, block, bad: BTreeMap::new(), enabled: false };
        for _ in 0..rng::operations(300) {
            if rng.u8(..3) == 0 {
                message(&mut rng, &served, &mut model, &what);
            }
            request(&mut rng, &mut vmm, &mut model, &what);
        }
        vmm.flush(0).unwrap();
        drop(vmm);
        served.stop();
        assert!(std::fs::read(&path).unwrap() == model.bytes, "{what}: the component's bytes");
    }
}
