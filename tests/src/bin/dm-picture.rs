//! Records what `vhost-user-dm top` and `vhost-user-dm dmsetup status` show of a process under load: `dm-picture FILE`
//! writes FILE.svg and FILE.txt. See ci/picture.sh.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use anstyle_svg::{Term, WIN10_CONSOLE};
use dm_tests::blk::{Data, Request, Shape, kind};
use dm_tests::daemon::{Daemon, binary};
use dm_tests::vmm::{Setup, Vmm};
use fastrand::Rng;

/// A disk of each target, one that is written in order, and one that nobody uses.
const TABLE: &str = "\
disk,,,rw,0 2048 linear head.img 0,2048 262144 linear root.img 0,264192 131072 striped 2 128 left.img 0 right.img 0,\
395264 65536 zero,460800 4096 error,464896 59392 linear root.img 262144;\
scratch,,,rw,0 131072 linear scratch.img 0;\
spare,,,rw,0 2097152 zero
";
/// Component files and their mebibytes.
const FILES: [(&str, u64); 5] =
    [("head.img", 1), ("root.img", 160), ("left.img", 32), ("right.img", 32), ("scratch.img", 64)];
const CONTROL: &str = "control.sock";
const DEPTH: usize = 16;

/// What a guest does: sectors from where to where, of every 100 requests so many, sectors of each, and whether it writes.
type Habit = (u64, u64, u8, usize, bool);
const DISK: [Habit; 6] = [
    (0, 2048, 1, 8, false),
    (2048, 90_000, 55, 8, false),
    (90_000, 264_192, 10, 8, false),
    (264_192, 395_264, 25, 64, true),
    (395_264, 524_288, 4, 8, false),
    (395_264, 460_800, 5, 8, true),
];
const SCRATCH: [Habit; 1] = [(0, 131_072, 100, 128, true)];

fn main() -> ExitCode {
    let Some(target) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("dm-picture: give the file, without its ending; see ci/picture.sh");
        return ExitCode::FAILURE;
    };
    match record(&target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dm-picture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn record(target: &Path) -> io::Result<()> {
    let dir = tempfile::Builder::new().prefix("vm-").rand_bytes(3).tempdir()?;
    for (name, mebibytes) in FILES {
        let bytes = vec![0x5a; (mebibytes << 20) as usize];
        fs::write(dir.path().join(name), bytes)?;
        File::open(dir.path().join(name))?.sync_all()?;
    }
    fs::write(dir.path().join("vm.table"), TABLE)?;
    let mut command = Command::new(binary());
    command.current_dir(dir.path()).args(["--socket-dir=.", "--table=vm.table"]);
    command.arg(format!("--control-path={CONTROL}"));
    let mut daemon = Daemon::spawn(command);
    let setup = Setup { slots: DEPTH, slot_bytes: 128 << 10, interrupts: true, ..Setup::default() };
    let (disk, scratch) = (dir.path().join("disk.sock"), dir.path().join("scratch.sock"));
    let vmms = [(daemon.vmm(&disk, &setup), &DISK[..]), (daemon.vmm(&scratch, &setup), &SCRATCH[..])];
    drop(daemon.connect(&dir.path().join(CONTROL)));
    let stop = AtomicBool::new(false);
    let shown = thread::scope(|scope| {
        let stop = &stop;
        for (vmm, habits) in vmms {
            scope.spawn(move || load(vmm, habits, stop));
        }
        let shown = show(dir.path());
        stop.store(true, Relaxed);
        shown
    })?;
    daemon.stop();
    fs::write(target.with_extension("svg"), Term::new().palette(WIN10_CONSOLE).render_svg(&shown))?;
    fs::write(target.with_extension("txt"), plain(&shown))
}

/// Keeps a disk busy, whatever comes of its requests.
fn load(mut vmm: Vmm, habits: &[Habit], stop: &AtomicBool) {
    let mut rng = Rng::with_seed(1);
    let noise = vec![0xa5; 64 << 10];
    let mut next = 0;
    let mut submit = |vmm: &mut Vmm, slot: usize| {
        let mut lot = rng.u8(..100);
        let habit = habits.iter().find(|habit| {
            let chosen = lot < habit.2;
            lot = lot.saturating_sub(habit.2);
            chosen
        });
        let (from, to, _, sectors, writes) = *habit.unwrap_or(&habits[0]);
        let places = (to - from) / sectors as u64;
        next = (next + 1) % places;
        let place = if habits.len() > 1 { rng.u64(..places) } else { next };
        let bytes = sectors * 512;
        let (kind, data) = match writes {
            true => (kind::OUT, Data::ToDevice(&noise[..bytes])),
            false => (kind::IN, Data::FromDevice(bytes)),
        };
        let request = Request { kind, sector: from + place * sectors as u64, data };
        vmm.submit(0, slot, &request, &Shape::PLAIN, &mut rng);
    };
    (0..DEPTH).for_each(|slot| submit(&mut vmm, slot));
    vmm.kick(0);
    while !stop.load(Relaxed) {
        let mut done = Some(vmm.wait(0));
        while let Some(again) = done {
            submit(&mut vmm, again.slot);
            done = vmm.complete(0);
        }
        vmm.kick(0);
    }
    (0..DEPTH).for_each(|_| drop(vmm.wait(0)));
}

/// The session of a user who looks.
fn show(dir: &Path) -> io::Result<String> {
    let mut session = String::new();
    for words in ["top --once --interval 2", "dmsetup status"] {
        let mut command = Command::new(binary());
        command.current_dir(dir).env("VHOST_USER_DM_CONTROL", CONTROL).env("CLICOLOR_FORCE", "1").env("COLUMNS", "80");
        let output = command.env_remove("NO_COLOR").args(words.split(' ')).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("{words}: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let gap = if session.is_empty() { "" } else { "\n" };
        session += &format!("{gap}$ vhost-user-dm {words}\n{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(session)
}

/// Without escape sequences, all of which end with an `m` here.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| plain += part.split_once('m').map_or("", |(_, rest)| rest));
    plain.lines().fold(String::new(), |all, line| all + line.trim_end() + "\n")
}
