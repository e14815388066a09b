//! Bases that the host uses: file systems on loop devices.

use std::fs;
use std::path::Path;

use dm_tests::daemon::{Daemon, flag};
use dm_tests::files;
use dm_tests::loops::{self, LoopFs};
use dm_tests::skip::skip;
use dm_tests::vmm::Setup;

use super::must_not;

fn served(args: &[String], socket: &Path) {
    let mut daemon = Daemon::start(args);
    let mut vmm = daemon.vmm(socket, &Setup::default());
    let before = vmm.read_all(0).expect("read");
    vmm.write(0, 2, &[9; 1024]).expect("write");
    let after = vmm.read_all(0).expect("read");
    assert!(after[1024..2048] == [9; 1024] && after[2048..] == before[2048..]);
    drop(vmm);
    daemon.stop();
}

#[test]
fn a_base_is_mounted_read_only_or_not_at_all() {
    if let Some(why) = loops::missing() {
        return skip("a_base_is_mounted_read_only_or_not_at_all", why);
    }
    let dir = files::disk_dir();
    let mounted = LoopFs::mount(4 << 20).expect("a file system");
    fs::write(mounted.path().join("file"), "content").expect("write a file");
    let socket = dir.path().join("disk.sock");
    let device = flag("--blk-file", mounted.device());
    let args = |more: &[&str]| {
        let mut args = vec![flag("--socket-path", &socket), device.clone()];
        args.extend(more.iter().map(|&word| word.to_owned()));
        args
    };
    let said = must_not(&args(&[]));
    assert!(said.contains("it is mounted on") && said.contains("--overlay=tmp"), "{said}");
    let said = must_not(&args(&["--overlay=tmp"]));
    assert!(said.contains("it is mounted on") && said.contains("may change under the overlay"), "{said}");
    assert!(said.contains("umount") && said.contains("--force=mounted"), "{said}");
    served(&args(&["--overlay=tmp", "--force=mounted"]), &socket);
    mounted.remount("ro").expect("mount it read-only");
    let bytes = fs::read(mounted.device()).expect("read the device");
    served(&args(&["--overlay=tmp"]), &socket);
    let cow = flag("--overlay", &dir.path().join("cow"));
    served(&args(&[&cow]), &socket);
    assert!(fs::read(mounted.device()).expect("read the device") == bytes, "the base has changed");
    assert_eq!(fs::read_to_string(mounted.path().join("file")).expect("read a file"), "content");
    // Mounted for writing meanwhile, it is another.
    mounted.remount("rw").expect("mount it for writing");
    fs::write(mounted.path().join("another"), "content").expect("write a file");
    mounted.remount("ro").expect("mount it read-only");
    let said = must_not(&args(&[&cow]));
    assert!(said.contains("has been written to since"), "{said}");
}
