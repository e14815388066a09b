//! Random tables, random requests, one naive model: what the guest sees and what lies in the components
//! must both be what the model says.
#![allow(missing_docs)]

mod driver;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use dm_tests::daemon::{Daemon, Served, flag};
use dm_tests::model::World;
use dm_tests::rng::{self, Repeat};
use dm_tests::vmm::Setup;
use dm_tests::{blk, files, skip};
use driver::Driver;
use fastrand::Rng;

/// Operations for each seed.
const OPERATIONS: u64 = 450;

/// One device in a plain file, or all devices in a concise one in any order.
fn serve(world: &World, rng: &mut Rng) -> (Daemon, Vec<PathBuf>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let table = dir.path().join("table");
    // Without O_DIRECT, and without the shortcut for files in memory, the same requests go another way.
    let cache = if rng.bool() { "--cache=auto" } else { "--cache=buffered" }.to_owned();
    // The same bytes, by other operations.
    let registered = (rng.bool() && skip::can_pin_memory()).then(|| "--register-memory".to_owned());
    if let [_] = world.devices.as_slice() {
        fs::write(&table, world.table(0).join("\n") + "\n").expect("write the table");
        let socket = dir.path().join("socket");
        let args = [flag("--socket-path", &socket), flag("--table", &table), cache];
        return (Daemon::start(args.into_iter().chain(registered)), vec![socket], dir);
    }
    let mut order: Vec<usize> = (0..world.devices.len()).collect();
    rng.shuffle(&mut order);
    fs::write(&table, world.concise(&order)).expect("write the table");
    let args = [flag("--socket-dir", dir.path()), flag("--table", &table), cache];
    let socket = |d: &dm_tests::model::Device| dir.path().join(format!("{}.sock", d.name));
    let sockets = world.devices.iter().map(socket).collect();
    (Daemon::start(args.into_iter().chain(registered)), sockets, dir)
}

fn differ(seeds: Vec<u64>, devices: std::ops::RangeInclusive<usize>) {
    let memory = files::memory_dir();
    let disk = files::disk_dir();
    let dirs: Vec<_> = memory.iter().chain([&disk]).map(|d| d.path()).collect();
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let devices = rng.usize(devices.clone());
        let first = rng.usize(..dirs.len());
        let mut order = dirs.clone();
        order.rotate_left(first);
        let world = tables::world(&mut rng, &order, devices);
        let context = world.concise(&(0..devices).collect::<Vec<_>>());
        let _repeat = Repeat { seed, context };
        let (mut daemon, sockets, _dir) = serve(&world, &mut rng);
        let mut driver = Driver::new(&mut daemon, &sockets, world, rng);
        driver.run(rng::operations(OPERATIONS));
        daemon.assert_running();
        drop(driver);
        daemon.stop();
    }
}

#[test]
fn one_table_agrees_with_the_model() {
    if files::memory_dir().is_none() {
        skip::skip("one_table_agrees_with_the_model", "no tmpfs at /dev/shm; disk only");
    }
    differ(rng::seeds(1000, 12), 1..=1);
}

#[test]
fn stacked_tables_agree_with_the_model() {
    differ(rng::seeds(2000, 12), 2..=4);
}

#[test]
fn a_write_over_an_error_writes_the_rest() {
    let dir = files::disk_dir();
    let path = dir.path().join("component");
    files::component(&path, &vec![7; 64 * 512]);
    let name = path.display();
    let table = format!("0 16 linear {name} 8\n16 8 error\n24 8 linear {name} 40\n");
    let mut served = Served::table(&table, &[]);
    let mut vmm = served.vmm(&Setup::default());
    assert_eq!(vmm.write(0, 10, &[9; 20 * 512]), Err(dm_tests::vmm::Failed(blk::IOERR)));
    assert_eq!(vmm.read(0, 0, 32 * 512), Err(dm_tests::vmm::Failed(blk::IOERR)));
    assert_eq!(vmm.read(0, 12, 4 * 512), Ok(vec![9; 4 * 512]));
    vmm.flush(0).expect("flush");
    let mut expect = vec![7; 64 * 512];
    expect[18 * 512..24 * 512].fill(9);
    expect[40 * 512..46 * 512].fill(9);
    assert!(fs::read(&path).expect("read") == expect);
    served.daemon.stop();
}

/// More pieces than any submission queue has entries, and many of them lie in two buffers.
#[test]
fn requests_of_thousands_of_pieces_reach_every_byte() {
    for dir in files::memory_dir().into_iter().chain([files::disk_dir()]) {
        for cache in ["auto", "buffered"] {
            thousands_of_pieces(&dir.path().join("component"), cache);
        }
    }
}

fn thousands_of_pieces(path: &Path, cache: &str) {
    let mut rng = Rng::with_seed(1);
    let mut legs = [rng::bytes(&mut rng, 1024 * 512), rng::bytes(&mut rng, 1024 * 512)];
    files::component(path, &legs.concat());
    let name = path.display();
    let table = format!("0 2048 striped 2 1 {name} 0 {name} 1024\n");
    let mut served = Served::table(&table, &[&format!("--cache={cache}")]);
    let setup = Setup { queue_size: 256, slots: 4, slot_bytes: 2 << 20, ..Setup::default() };
    let mut vmm = served.vmm(&setup);
    for round in 0..12 {
        let shape =
            blk::Shape { pieces: 100, odd_cuts: true, align: 1, skew: round, indirect: true, ..blk::Shape::PLAIN };
        let bytes = rng::bytes(&mut rng, 2048 * 512);
        let write = blk::Request { kind: blk::kind::OUT, sector: 0, data: blk::Data::ToDevice(&bytes) };
        vmm.submit(0, 0, &write, &shape, &mut rng);
        vmm.kick(0);
        assert_eq!(vmm.wait(0).status, blk::OK);
        for (number, sector) in bytes.chunks(512).enumerate() {
            legs[number % 2][number / 2 * 512..][..512].copy_from_slice(sector);
        }
        assert!(fs::read(path).expect("read") == legs.concat(), "round {round}: the file is wrong");
        let read = blk::Request { kind: blk::kind::IN, sector: 0, data: blk::Data::FromDevice(bytes.len()) };
        for slot in 0..4 {
            vmm.submit(0, slot, &read, &shape, &mut rng);
        }
        vmm.kick(0);
        for _ in 0..4 {
            let done = vmm.wait(0);
            assert_eq!(done.status, blk::OK);
            assert!(done.data == bytes, "round {round}: a read is wrong");
        }
    }
    drop(vmm);
    served.daemon.stop();
}
