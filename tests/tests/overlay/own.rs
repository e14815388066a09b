//! Whose an overlay is: processes that make, serve and remove one at the same moment; and one that is a block device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use dm_tests::daemon::{Daemon, flag};
use dm_tests::files;
use dm_tests::loops::{self, Loop};
use dm_tests::skip::skip;
use dm_tests::vmm::Setup;

use super::{Ground, must, must_not, shown, words};

/// Two processes begin at the same instant with an overlay that is not there yet, and the first can serve on nothing. Whatever
/// comes of it, who serves the overlay has the file that the path leads to, then and afterwards.
#[test]
fn nobody_removes_an_overlay_that_another_one_serves() {
    let mut served = 0;
    for round in 0..40 {
        let ground = Ground::new(200 + round, 64 << 10);
        let cow = ground.path("cow");
        let args = |socket: &str| [flag("--socket-path", &ground.path(socket)), ground.blk_file(), ground.cow()];
        fs::create_dir(ground.path("directory")).expect("a directory");
        // Both may come to it, or one of them never.
        let first = if round % 2 == 0 { "directory" } else { "first.sock" };
        let mut one = Daemon::start(args(first));
        std::thread::sleep(Duration::from_micros(200 * (round / 2)));
        let mut other = Daemon::start(args("other.sock"));
        let mut sockets = Vec::new();
        for (daemon, name) in [(&mut one, first), (&mut other, "other.sock")] {
            let socket = ground.path(name);
            while daemon.is_running() && std::os::unix::net::UnixStream::connect(&socket).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            sockets.extend(daemon.is_running().then_some(name));
        }
        assert!(sockets.len() <= 1, "two processes serve one overlay");
        let Some(name) = sockets.first() else {
            assert!(!cow.exists(), "round {round}: nobody serves it, and it is there: {}{}", one.log(), other.log());
            continue;
        };
        served += 1;
        let winner = if *name == first { &mut one } else { &mut other };
        let mut vmm = winner.vmm(&ground.path(name), &Setup::default());
        vmm.write(0, 3, &[7; 512]).expect("write");
        vmm.flush(0).expect("flush");
        drop(vmm);
        winner.signal(rustix::process::Signal::TERM);
        winner.wait(Duration::from_secs(30)).expect("it ends");
        assert!(cow.exists(), "round {round}: the overlay that was served is gone");
        let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
        assert_eq!(
            vmm.read_all(0).expect("read")[3 * 512..4 * 512],
            [7; 512],
            "round {round}: what was flushed is gone"
        );
        drop(vmm);
        daemon.stop();
    }
    assert!(served > 0, "nobody ever served it");
}

#[test]
fn an_overlay_that_is_made_by_two_is_that_of_one() {
    for round in 0..10 {
        let ground = Ground::new(300 + round, 64 << 10);
        // Both find a file that is empty.
        if round % 2 == 0 {
            files::sparse(&ground.path("cow"), 0);
        }
        let socket = |name: &str| ground.path(&format!("{name}.sock"));
        let start = |name: &str| Daemon::start([flag("--socket-path", &socket(name)), ground.blk_file(), ground.cow()]);
        let names = ["a", "b", "c"];
        let mut daemons = names.map(start);
        let mut serving = 0;
        for (daemon, name) in daemons.iter_mut().zip(names) {
            while daemon.is_running() && std::os::unix::net::UnixStream::connect(socket(name)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            serving += u32::from(daemon.is_running());
        }
        assert_eq!(serving, 1, "round {round}: {}", daemons.iter().map(Daemon::log).collect::<String>());
    }
}

#[test]
fn an_empty_overlay_belongs_wherever_it_is_put() {
    let ground = Ground::new(400, 1 << 20);
    let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), ground.cow()]);
    vmm.write(0, 0, &[1; 512]).expect("write");
    drop(vmm);
    daemon.stop();
    must(&words(&["commit", &shown(&ground.path("cow")), &ground.blk_file()]));
    let mut other = Ground::new(401, 1 << 20);
    for _ in 0..2 {
        let (daemon, mut vmm) = other.serve(&[other.blk_file(), ground.cow()]);
        other.sees(&mut vmm);
        other.scribble(&mut vmm, 3);
        drop(vmm);
        daemon.stop();
    }
    // And is then one of that base.
    let args = [flag("--socket-path", &ground.path("disk.sock")), ground.blk_file(), ground.cow()];
    assert!(must_not(&args).contains("made over another disk"));
}

#[test]
fn a_block_device_is_an_overlay_again_and_again() {
    if let Some(why) = loops::missing() {
        return skip("a_block_device_is_an_overlay_again_and_again", why);
    }
    let mut ground = Ground::new(410, 1 << 20);
    let file = ground.path("device");
    files::sparse(&file, 3 << 20);
    let device = Loop::attach(&file, false).expect("a loop device");
    let overlay = flag("--overlay", &device.node);
    let node = shown(&device.node);
    for round in 0..4 {
        let (daemon, mut vmm) = ground.serve(&[ground.blk_file(), overlay.clone()]);
        ground.sees(&mut vmm);
        ground.scribble(&mut vmm, 30);
        drop(vmm);
        daemon.stop();
        if round % 2 == 0 {
            must(&words(&["commit", &node, &ground.blk_file()]));
        } else {
            must(&words(&["discard", &node]));
            ground.model = ground.base_now();
        }
        assert!(ground.base_now() == ground.model, "round {round}");
        assert_eq!(fs::read(&file).expect("the device")[..68 << 10], [0; 68 << 10], "round {round}");
    }
    assert!(fs::metadata(&device.node).expect("the node").rdev() != 0);
    let said = must_not(&words(&["discard", &node]));
    assert!(said.contains("nothing says that it is an overlay"), "{said}");
}
