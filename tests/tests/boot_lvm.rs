//! A virtual machine whose root file system is a logical volume that `assemble --lvm` found on two physical volumes.
//!
//! Needs what `ci/setup.sh` installs, and root for LVM2's tools and loop devices.
#![allow(dead_code, reason = "other tests use more of what they share with this one")]

#[path = "../boot/host.rs"]
mod host;
#[path = "../boot/vm.rs"]
mod vm;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use dm_tests::daemon::{Daemon, binary, flag};
use dm_tests::loops::{self, Loop};
use dm_tests::{files, skip};
use host::{Scratch, run};
use vm::{Setup, disk_images};

/// Works on loop devices alone, and without the kernel's device-mapper.
const CONFIG: &str = "devices { use_devicesfile=0 filter=[\"a|/dev/loop|\",\"r|.*|\"] } \
    activation { monitoring=0 udev_sync=0 udev_rules=0 } global { activation=0 use_lvmpolld=0 } \
    backup { backup=0 archive=0 }";
const MIB: u64 = 1 << 20;

fn lvm(tool: &str, args: &[&str]) {
    run(Command::new(tool).args(["-q", "--config", CONFIG]).args(args));
}

/// Two physical volumes, `a` and `b`, and the volume `host/root` of so many MiB: first on both in stripes, then on `b`.
fn volumes(scratch: &Scratch, mib: u64) {
    let devices = ["a", "b"].map(|name| {
        let path = scratch.path(name);
        files::sparse(&path, (mib + 8) * MIB);
        Loop::attach(&path, false).expect("a loop device")
    });
    let nodes = devices.each_ref().map(|device| device.node.to_str().expect("ASCII"));
    lvm("pvcreate", &nodes);
    lvm("vgcreate", &["-s", "1M", "host", nodes[0], nodes[1]]);
    lvm("lvcreate", &["-an", "-Zn", "-Wn", "-i2", "-I", "64k", "-L", "16M", "-n", "root", "host"]);
    let rest = format!("+{}M", mib - 16);
    lvm("lvextend", &["-i1", "-L", &rest, "host/root", nodes[1]]);
}

/// Copies a file to where the table says that its bytes belong.
fn fill(scratch: &Scratch, image: &[u8]) {
    let text = fs::read_to_string(scratch.path("root.table")).expect("the table");
    let open = |path: &str| OpenOptions::new().write(true).open(scratch.path(path)).expect("a physical volume");
    let put = |file: &File, at: u64, bytes: &[u8]| file.write_all_at(bytes, at * 512).expect("to fill a volume");
    let sectors = |from: u64, len: u64| {
        let part = |at: u64| usize::try_from(at * 512).expect("a small image").min(image.len());
        &image[part(from)..part(from + len)]
    };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().expect("a number");
        let (start, len) = (number(0), number(1));
        match words[2] {
            "linear" => put(&open(words[3]), number(4), sectors(start, len)),
            "striped" => {
                let chunk = number(4);
                let stripes = [(open(words[5]), number(6)), (open(words[7]), number(8))];
                for index in 0..len / chunk {
                    let (file, first) = &stripes[(index % 2) as usize];
                    put(file, first + index / 2 * chunk, sectors(start + index * chunk, chunk));
                }
            }
            other => panic!("a segment of {other}"),
        }
    }
}

#[test]
fn a_root_file_system_on_a_logical_volume_boots() {
    let tools = ["pvcreate", "vgcreate", "lvcreate"];
    let has = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    if let Some(why) = loops::missing().or_else(|| (!tools.iter().all(has)).then_some("lvm2 is missing")) {
        return skip::skip("a_root_file_system_on_a_logical_volume_boots", why);
    }
    let scratch = Scratch::new();
    for name in ["boot.img", "root.img"] {
        run(Command::new("cp").arg("--sparse=always").arg(disk_images().join(name)).arg(scratch.path(name)));
    }
    let script = scratch.text("rc.test", "echo; echo root $(findmnt -no SOURCE /)\n");
    let write = format!("write {} /etc/rc.test", script.display());
    run(Command::new("debugfs").args(["-w", "-R", &write]).arg(scratch.path("root.img")));
    let config = fs::read_to_string(host::top().join("vm-images/grub.cfg")).expect("GRUB's configuration");
    let config = scratch.text("grub.cfg", &config.replace("root=/dev/vda2", "root=/dev/vdb"));
    run(Command::new("mcopy").arg("-o").arg("-i").arg(scratch.path("boot.img")).arg(config).arg("::grub/grub.cfg"));
    let image = fs::read(scratch.path("root.img")).expect("the root file system");
    volumes(&scratch, (image.len() as u64).div_ceil(MIB));
    let program = |args: &[&str]| run(Command::new(binary()).args(args).current_dir(scratch.path(".")));
    program(&["assemble", "--lvm=host/root", "--pv", "a", "b", "-o", "root.table"]);
    program(&["assemble", "esp=boot.img", "-o", "boot.table"]);
    // The volume's paths are as they were given, so everything goes on from there.
    fill(&scratch, &image);
    assert!(program(&["show", "root.table"]).contains("ext4"));
    let serve = |name: &str| {
        let socket = scratch.socket(name);
        let mut command = Command::new(binary());
        command.args([flag("--socket-path", &socket), format!("--table={name}.table")]).current_dir(scratch.path("."));
        let mut daemon = Daemon::spawn(command);
        daemon.wait_listening(&socket);
        (daemon, socket)
    };
    let ((boot, first), (root, second)) = (serve("boot"), serve("root"));
    let setup = Setup::new(&scratch).arg("--uefi").disk(&first, "").disk(&second, "");
    let mut vm = setup.boot();
    assert_eq!(vm.wait_for("root"), "/dev/vdb");
    vm.power_off();
    boot.stop();
    root.stop();
    program(&["export", "root.table", "--to", "after.img"]);
    run(Command::new("e2fsck").arg("-fn").arg(scratch.path("after.img")));
    let boots = run(Command::new("debugfs").args(["-R", "cat /var/boots"]).arg(scratch.path("after.img")));
    assert_eq!(boots.lines().count(), 1, "boots noted on the root file system: {boots:?}");
}
