//! A running guest whose disk's table changes: it grows, breaks and is mended, and moves from file to file.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dm_tests::control::{Client, dmsetup};
use dm_tests::daemon::{Daemon, flag};
use dm_tests::rng::{Repeat, seeds};
use fastrand::Rng;
use rustix::process::Signal;

use super::host::{Piece, SECTOR, Scratch, assemble, disk_sha256, run, serve, sha256, table};
use super::vm::Setup;

/// A served disk, and the socket by which it is changed.
struct Changing {
    daemon: Daemon,
    control: PathBuf,
    name: String,
}

impl Changing {
    fn serve(scratch: &Scratch, pieces: &[Piece]) -> Changing {
        let control = scratch.socket("control");
        let mut daemon = serve(scratch, pieces, &["--serial=boot-test", &flag("--control-path", &control)]);
        daemon.wait_listening(&control);
        let list = Client::connect(&control).expect("connect").must("list", serde_json::json!({}));
        let name = list[0]["name"].as_str().expect("a name").to_owned();
        Changing { daemon, control, name }
    }

    /// `dmsetup VERB NAME ARGS`.
    fn dmsetup(&self, verb: &str, args: &[&str]) {
        let output = dmsetup(&self.control, [verb, &self.name].iter().chain(args));
        // There may be warnings, of places where writes are slow.
        assert!(output.code == 0, "{verb} {args:?}: {output:?}");
    }

    /// `dmsetup load`, and `dmsetup resume`.
    fn swap(&self, pieces: &[Piece]) {
        self.dmsetup("load", &["--table", &table(pieces, "\n")]);
        self.dmsetup("resume", &[]);
    }

    fn stop(self) {
        self.daemon.stop();
    }
}

#[test]
fn a_guests_disk_grows_and_its_file_system_with_it() {
    let scratch = Scratch::new();
    let mut pieces = vec![Piece::Linear(40001, scratch.noise("a", 50000), 0)];
    let changing = Changing::serve(&scratch, &pieces);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("resize");
    assert_eq!(vm.wait_for("before"), (40001 * SECTOR).to_string());
    // By what is left of its own file, and by another one.
    pieces = vec![Piece::Linear(50000, scratch.path("a"), 0), Piece::Linear(50000, scratch.noise("b", 50000), 0)];
    changing.swap(&pieces);
    assert_eq!(vm.wait_for("after"), (100_000 * SECTOR).to_string());
    let sum = vm.wait_for("sha256");
    vm.finish();
    changing.stop();
    let image = scratch.path("assembled.img");
    assemble(&pieces, &image);
    assert_eq!(sha256(&image), sum);
    run(std::process::Command::new("e2fsck").arg("-fn").arg(&image));
}

#[test]
fn a_range_of_a_guests_disk_breaks_and_is_mended() {
    const MIB: u64 = 2048;
    let scratch = Scratch::new();
    let whole = [Piece::Linear(4 * MIB, scratch.noise("a", 4 * MIB), 0)];
    let before = disk_sha256(&scratch, &whole);
    let changing = Changing::serve(&scratch, &whole);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("broken");
    let sum = vm.wait_for("sum");
    let path = scratch.path("a");
    changing.swap(&[Piece::Linear(MIB, path.clone(), 0), Piece::Error(MIB), Piece::Linear(2 * MIB, path, 2 * MIB)]);
    assert_eq!(vm.wait_for("broken"), "Input/output error");
    assert_eq!(vm.wait_for("write"), "Input/output error");
    vm.wait_for("mend");
    changing.swap(&whole);
    assert_eq!(vm.wait_for("mended"), sum);
    vm.finish();
    changing.stop();
    assert_eq!(disk_sha256(&scratch, &whole), before);
}

/// Each swap takes a piece of the disk to another file, and leaves garbage where it was.
#[test]
fn a_guests_disk_moves_from_file_to_file_under_it() {
    const SWAPS: u32 = 20;
    const PIECES: usize = 8;
    const PIECE: u64 = 6144;
    for seed in seeds(7100, 1) {
        let _repeat = Repeat { seed, context: String::new() };
        let mut rng = Rng::with_seed(seed);
        let scratch = Scratch::new();
        let piece = |n: usize| Piece::Linear(PIECE, scratch.noise(&format!("piece{n}"), PIECE), 0);
        let mut pieces: Vec<Piece> = (0..PIECES).map(piece).collect();
        let mut changing = Changing::serve(&scratch, &pieces);
        let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test_with_fio("swaps");
        vm.wait_for("busy");
        for swap in 0..SWAPS {
            changing.daemon.assert_running();
            if rng.bool() {
                // An emulated guest is slow. Let its requests gather, so that the swap finds some of them under way.
                changing.daemon.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(rng.u64(5..40)));
                changing.daemon.signal(Signal::CONT);
            }
            let moved = rng.usize(..PIECES);
            let (new, lead) = (scratch.path(&format!("moved{swap}")), rng.u64(..100));
            changing.dmsetup("suspend", &[]);
            let Piece::Linear(_, old, from) = &pieces[moved] else { panic!("test bug") };
            let bytes = fs::read(old).expect("read a component");
            let mut all = vec![0; (lead * SECTOR) as usize];
            all.extend_from_slice(&bytes[(from * SECTOR) as usize..]);
            fs::write(&new, all).expect("write a component");
            fs::write(old, vec![0xdb; bytes.len()]).expect("write garbage");
            let garbage = old.clone();
            pieces[moved] = Piece::Linear(PIECE, new, lead);
            changing.swap(&pieces);
            assert!(fs::read(&garbage).expect("read").iter().all(|byte| *byte == 0xdb), "a write to the old place");
            fs::remove_file(&garbage).expect("remove a component");
            let _ = vm.listen("pass", Duration::from_millis(rng.u64(..600)));
        }
        pieces.push(Piece::Zero(8));
        changing.swap(&pieces);
        let sum = vm.wait_for("sha256");
        vm.finish();
        changing.stop();
        assert_eq!(disk_sha256(&scratch, &pieces), sum, "the components' bytes, with DM_TEST_SEED={seed}");
        println!("seed {seed}: {SWAPS} swaps; the guest found nothing wrong");
    }
}
