//! Overlays as an operator and a guest meet them: real processes, real files.

mod check;
mod commit;
mod host;
mod own;
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};

use dm_tests::daemon::{self, Daemon, flag};
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::{files, rng};
use tempfile::TempDir;

const SECTOR: usize = 512;

/// A base, the socket, the overlay, and what the guest should see.
struct Ground {
    dir: TempDir,
    base: Vec<u8>,
    /// What the guest sees.
    model: Vec<u8>,
    random: fastrand::Rng,
}

impl Ground {
    fn new(seed: u64, bytes: usize) -> Ground {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = files::disk_dir();
        let base = rng::bytes(&mut random, bytes);
        files::component(&dir.path().join("base.img"), &base);
        Ground { dir, model: base.clone(), base, random }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base_now(&self) -> Vec<u8> {
        fs::read(self.path("base.img")).expect("read the base")
    }

    /// Serves the base with further arguments; a front end that is connected.
    fn serve(&self, args: &[String]) -> (Daemon, Vmm) {
        let socket = self.path("disk.sock");
        let mut all = vec![flag("--socket-path", &socket)];
        all.extend(args.iter().cloned());
        let mut daemon = Daemon::start(all);
        let vmm = daemon.vmm(&socket, &Setup { queues: 2, ..Setup::default() });
        (daemon, vmm)
    }

    fn blk_file(&self) -> String {
        flag("--blk-file", &self.path("base.img"))
    }

    fn cow(&self) -> String {
        flag("--overlay", &self.path("cow"))
    }

    /// Writes here and there; the guest sees it from now on.
    fn scribble(&mut self, vmm: &mut Vmm, writes: usize) {
        let sectors = self.model.len() / SECTOR;
        for number in 0..writes {
            let len = self.random.usize(1..=40).min(sectors);
            let at = self.random.usize(..=sectors - len);
            let bytes = rng::bytes(&mut self.random, len * SECTOR);
            vmm.write(number % 2, at as u64, &bytes).expect("write");
            self.model[at * SECTOR..][..bytes.len()].copy_from_slice(&bytes);
        }
        vmm.flush(0).expect("flush");
    }

    fn sees(&self, vmm: &mut Vmm) {
        assert!(vmm.read_all(0).expect("read") == self.model, "the guest sees something else than it wrote");
    }
}

/// Runs a command that must do it; what it logged.
fn must(args: &[String]) -> String {
    let (code, _, err) = daemon::run(args).expect("run");
    assert_eq!(code, 0, "{args:?}: {err}");
    err
}

/// Runs a command that must refuse; why.
fn must_not(args: &[String]) -> String {
    let mut process = Daemon::start(args);
    let status = process.wait(std::time::Duration::from_secs(60));
    let status = status.unwrap_or_else(|| panic!("{args:?}: it is not refused, but served"));
    let said = process.log();
    assert_eq!(status.code(), Some(1), "{args:?}: {said}");
    said
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&word| word.to_owned()).collect()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_throw_away_overlay_leaves_the_base_as_it_is() {
    let mut ground = Ground::new(1, 3 << 20);
    let args = [ground.blk_file(), "--overlay=tmp".to_owned()];
    let (daemon, mut vmm) = ground.serve(&args);
    ground.sees(&mut vmm);
    ground.scribble(&mut vmm, 200);
    ground.sees(&mut vmm);
    assert!(ground.base_now() == ground.base, "the base has changed");
    drop(vmm);
    daemon.stop();
    // The next one knows nothing of it.
    let (daemon, mut vmm) = ground.serve(&args);
    assert!(vmm.read_all(0).expect("read") == ground.base);
    drop(vmm);
    daemon.stop();
    assert!(ground.base_now() == ground.base, "the base has changed");
}

#[test]
fn a_kept_overlay_is_there_again_and_is_sparse() {
    let mut ground = Ground::new(2, 3 << 20);
    let args = [ground.blk_file(), ground.cow()];
    for _ in 0..3 {
        let (daemon, mut vmm) = ground.serve(&args);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 20);
        ground.sees(&mut vmm);
        drop(vmm);
        daemon.stop();
    }
    assert!(ground.base_now() == ground.base, "the base has changed");
    let cow = ground.path("cow");
    assert!(fs::metadata(&cow).expect("the overlay").len() > 3 << 20);
    // 60 writes of at most 20 KiB at any place are at most 6 chunks each.
    assert!(files::allocated(&cow) <= 60 * 6 * 4096 + (1 << 18), "{} bytes", files::allocated(&cow));
    must(&words(&["discard", &shown(&cow)]));
    assert!(!cow.exists());
    let (daemon, mut vmm) = ground.serve(&args);
    assert!(vmm.read_all(0).expect("read") == ground.base, "the new overlay is not empty");
    drop(vmm);
    daemon.stop();
}

#[test]
fn what_was_flushed_outlives_a_kill() {
    let mut ground = Ground::new(3, 2 << 20);
    let args = [ground.blk_file(), ground.cow()];
    for _ in 0..4 {
        let (mut daemon, mut vmm) = ground.serve(&args);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 30);
        daemon.signal(rustix::process::Signal::KILL);
        daemon.wait(std::time::Duration::from_secs(30)).expect("it was killed");
        drop(vmm);
    }
    let (daemon, mut vmm) = ground.serve(&args);
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
    assert!(ground.base_now() == ground.base, "the base has changed");
}

#[test]
fn an_overlay_lies_over_any_table_and_the_device_keeps_its_name() {
    let mut ground = Ground::new(4, 2 << 20);
    let base = shown(&ground.path("base.img"));
    // 4096 sectors of the base, in another order, then 100 of nothing.
    let table = format!(
        "top,UUID-7,,rw,0 3000 linear /dev/mapper/low 1000,3000 1000 linear /dev/mapper/low 0,4000 100 zero;\
         low,,,rw,0 4096 striped 2 8 {base} 0 {base} 2048;\
         other,,,rw,0 8 zero"
    );
    let file = ground.path("disk.table");
    fs::write(&file, table).expect("write the table");
    let low = |sector: usize| {
        let (chunk, into) = (sector / 8, sector % 8);
        (chunk % 2) * 2048 + chunk / 2 * 8 + into
    };
    let place = |sector: usize| if sector < 3000 { low(sector + 1000) } else { low(sector - 3000) };
    let sector = |at: usize| ground.base[at * SECTOR..][..SECTOR].to_vec();
    ground.model = (0..4000).flat_map(|n| sector(place(n))).chain(vec![0; 100 * SECTOR]).collect();
    let args =
        [flag("--table", &file), ground.cow(), "--device=top".to_owned(), flag("--control-path", &ground.path("ctl"))];
    let (daemon, mut vmm) = ground.serve(&args);
    ground.sees(&mut vmm);
    assert!(vmm.get_id(0).expect("the serial number").starts_with(b"UUID-7"));
    ground.scribble(&mut vmm, 60);
    let ctl = flag("--control-path", &ground.path("ctl"));
    let (_, out, err) = daemon::run(["dmsetup".to_owned(), ctl, "table".to_owned()]).expect("run");
    assert!(
        out.contains("top: 0 4100 snapshot ") && out.contains("top-base: ") && !out.contains("other"),
        "{out}{err}"
    );
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
    assert!(ground.base_now() == ground.base, "the base has changed");
    let (daemon, mut vmm) = ground.serve(&args);
    ground.sees(&mut vmm);
    drop(vmm);
    daemon.stop();
}
