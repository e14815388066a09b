//! Virtual machines on disks that `assemble` put together of separate files, from their firmware to a root file system that
//! is found by its PARTUUID.
//!
//! Needs what `ci/setup.sh` installs.
#![allow(dead_code, reason = "other tests use more of what they share with this one")]

#[path = "../boot/disk.rs"]
mod disk;
#[path = "../boot/host.rs"]
mod host;
#[path = "../boot/vm.rs"]
mod vm;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::Disk;
use dm_tests::daemon::{Daemon, binary, flag};
use dm_tests::skip::skip;
use host::{Piece, Scratch, run, sha256};
use vm::{Setup, disk_images};

/// What the booted system does: says where its root is and what two tools think of the disk.
const IN_THE_GUEST: &str = "echo; echo root $(findmnt -no SOURCE /)\n\
    echo partuuid $(sed 's/.*root=PARTUUID=\\([^ ]*\\).*/\\1/' /proc/cmdline)\n\
    sgdisk --verify /dev/vda >/tmp/sgdisk 2>&1; echo sgdisk $? $(grep -c 'No problems found' /tmp/sgdisk)\n\
    sfdisk --verify /dev/vda >/tmp/sfdisk 2>&1; echo sfdisk $? $(grep -c 'No errors detected' /tmp/sfdisk)\n";

/// The boot and the root partition, each a file. GRUB's configuration names the root by `partuuid`.
fn partitions(scratch: &Scratch, partuuid: &str) {
    for name in ["boot.img", "root.img"] {
        run(Command::new("cp").arg("--sparse=always").arg(disk_images().join(name)).arg(scratch.path(name)));
    }
    let script = scratch.text("rc.test", IN_THE_GUEST);
    let write = format!("write {} /etc/rc.test", script.display());
    run(Command::new("debugfs").args(["-w", "-R", &write]).arg(scratch.path("root.img")));
    let config = fs::read_to_string(host::top().join("vm-images/grub.cfg")).expect("GRUB's configuration");
    let config = config.replace("root=/dev/vda2", &format!("root=PARTUUID={partuuid}"));
    assert!(config.contains(partuuid), "GRUB's configuration has another form: {config}");
    let config = scratch.text("grub.cfg", &config);
    let mut copy = Command::new("mcopy");
    run(copy.arg("-o").arg("-i").arg(scratch.path("boot.img")).arg(config).arg("::grub/grub.cfg"));
}

/// GRUB for a BIOS: its first sector, which loads the rest from sector `at` on, and that rest. `prefix` is where its
/// configuration is.
fn grub(scratch: &Scratch, prefix: &str, at: u64) -> (Vec<u8>, Vec<u8>) {
    let core = scratch.path("core.img");
    let modules = ["biosdisk", "part_gpt", "part_msdos", "fat", "normal", "configfile", "linux", "echo", "test"];
    let mut make = Command::new("grub-mkimage");
    run(make.args(["--format=i386-pc", "--prefix", prefix, "--output"]).arg(&core).args(modules));
    let mut first = fs::read("/usr/lib/grub/i386-pc/boot.img").expect("GRUB's first sector");
    let mut core = fs::read(core).expect("GRUB's image");
    // kernel_sector, and the start of the block list in the image's first sector.
    first[0x5c..0x64].copy_from_slice(&at.to_le_bytes());
    core[0x1f4..0x1fc].copy_from_slice(&(at + 1).to_le_bytes());
    core.resize(core.len().next_multiple_of(512), 0);
    (first, core)
}

/// Runs the command in the directory of the files; returns what it said.
fn assemble(scratch: &Scratch, args: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.arg("assemble").args(args).args(["-o", "vm.table"]).current_dir(scratch.path("."));
    run(&mut command)
}

/// The pieces of the table that was written: lines of two kinds.
fn pieces(scratch: &Scratch) -> Vec<Piece> {
    let text = fs::read_to_string(scratch.path("vm.table")).expect("the table");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| words[index].parse().expect("a number");
            match words[2] {
                "linear" => Piece::Linear(number(1), words[3].into(), number(4)),
                "zero" => Piece::Zero(number(1)),
                other => panic!("a segment of {other}"),
            }
        })
        .collect()
}

/// Both tools find nothing wrong with the disk on the host. Returns sfdisk's description of it.
fn verify(scratch: &Scratch) -> String {
    let image = scratch.path("assembled.img");
    host::assemble(&pieces(scratch), &image);
    let said = run(Command::new("sfdisk").arg("--verify").arg(&image));
    assert!(said.contains("No errors detected"), "{said}");
    let said = run(Command::new("sgdisk").arg("--verify").arg(&image));
    assert!(said.contains("No problems found"), "{said}");
    run(Command::new("sfdisk").arg("--dump").arg(&image))
}

/// Boots the disk by its firmware, and sees that the guest found its root by the PARTUUID and nothing wrong with the disk.
fn boot(scratch: &Scratch, setup: fn(Setup) -> Setup, root: &str, partuuid: &str) {
    let before = verify(scratch);
    let head = sha256(&scratch.path("vm.head"));
    let socket = scratch.socket("disk");
    let mut daemon = Daemon::start([flag("--socket-path", &socket), flag("--table", &scratch.path("vm.table"))]);
    daemon.wait_listening(&socket);
    let mut vm = setup(Setup::new(scratch)).disk(&socket, "").boot();
    assert_eq!(vm.wait_for("root"), root);
    assert_eq!(vm.wait_for("partuuid"), partuuid);
    assert_eq!(vm.wait_for("sgdisk"), "0 1");
    assert_eq!(vm.wait_for("sfdisk"), "0 1");
    vm.power_off();
    daemon.stop();
    assert_eq!(sha256(&scratch.path("vm.head")), head, "a guest that only reads the partition table changed it");
    assert_eq!(verify(scratch), before);
}

/// The guest wrote to its root file system, which is as it should be.
fn check_boots(root: &Path) {
    run(Command::new("e2fsck").arg("-fn").arg(root));
    let boots = run(Command::new("debugfs").args(["-R", "cat /var/boots"]).arg(root));
    assert_eq!(boots.lines().count(), 1, "boots noted on the root file system: {boots:?}");
}

const ROOT: &str = "0ddba115-7e57-4d15-8ca5-7a55e3b1ed00";

#[test]
fn a_bios_boots_a_gpt_of_three_files() {
    let scratch = Scratch::new();
    partitions(&scratch, ROOT);
    // The first partition begins at 1 MiB.
    let (first, core) = grub(&scratch, "(hd0,gpt2)/grub", 2048);
    fs::write(scratch.path("boot-code"), first).expect("write the boot code");
    fs::write(scratch.path("grub.img"), core).expect("write GRUB");
    let root = format!("root=root.img,guid={ROOT}");
    assemble(
        &scratch,
        &["--boot-code=boot-code", "grub=grub.img,type=bios-boot", "boot=boot.img,type=xbootldr", &root],
    );
    boot(&scratch, |setup| setup, "/dev/vda3", ROOT);
    check_boots(&scratch.path("root.img"));
}

#[test]
fn uefi_boots_a_gpt_of_two_files() {
    let scratch = Scratch::new();
    partitions(&scratch, ROOT);
    let root = format!("root=root.img,guid={ROOT}");
    assemble(&scratch, &["--label=gpt", "esp=boot.img", &root]);
    boot(&scratch, |setup| setup.arg("--uefi"), "/dev/vda2", ROOT);
    check_boots(&scratch.path("root.img"));
}

#[test]
fn a_bios_boots_an_mbr_of_two_files() {
    let scratch = Scratch::new();
    partitions(&scratch, "5a1c39e8-02");
    let (first, core) = grub(&scratch, "(hd0,msdos1)/grub", 1);
    fs::write(scratch.path("boot-code"), [first, core].concat()).expect("write GRUB");
    assemble(
        &scratch,
        &[
            "--label=mbr",
            "--signature=5a1c39e8",
            "--boot-code=boot-code",
            "boot=boot.img,type=0c,bootable",
            "root=root.img",
        ],
    );
    boot(&scratch, |setup| setup, "/dev/vda2", "5a1c39e8-02");
    check_boots(&scratch.path("root.img"));
}

#[test]
fn uefi_boots_three_files_by_their_names() {
    let scratch = Scratch::new();
    // The same files make the same disk, so its PARTUUIDs are known before they are in the configuration.
    partitions(&scratch, ROOT);
    let dir = scratch.path("images");
    fs::create_dir(&dir).expect("a directory");
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(scratch.path(from), dir.join(to)).expect("a link");
    link("boot.img", "esp.img");
    link("root.img", "root-x86-64.img");
    scratch.noise("home.img", 4096);
    link("home.img", "home.img");
    let said = assemble(&scratch, &["--discover=images", "--dry-run"]);
    let partuuid = said.lines().filter_map(|line| line.trim().strip_prefix("PARTUUID=")).nth(1);
    let partuuid = partuuid.unwrap_or_else(|| panic!("no second partition: {said}")).to_owned();
    partitions(&scratch, &partuuid);
    assemble(&scratch, &["--discover=images"]);
    let dump = verify(&scratch);
    assert!(dump.contains("type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"), "{dump}");
    boot(&scratch, |setup| setup.arg("--uefi"), "/dev/vda2", &partuuid);
    check_boots(&scratch.path("root.img"));
}

/// A disk of a host: GRUB for a BIOS, boot, root, and a partition that is nobody's business.
fn host_disk(scratch: &Scratch) -> PathBuf {
    partitions(scratch, ROOT);
    let (first, core) = grub(scratch, "(hd0,gpt2)/grub", 2048);
    fs::write(scratch.path("boot-code"), first).expect("write the boot code");
    fs::write(scratch.path("grub.img"), core).expect("write GRUB");
    scratch.noise("other.img", 16384);
    let root = format!("root=root.img,guid={ROOT}");
    assemble(
        scratch,
        &["--boot-code=boot-code", "grub=grub.img,type=bios-boot", "boot=boot.img,type=esp", &root, "other=other.img"],
    );
    let image = scratch.path("host.img");
    host::assemble(&pieces(scratch), &image);
    image
}

/// Where the partitions of the host's disk are, in bytes.
fn ranges(image: &Path) -> Vec<Range<usize>> {
    let dump = run(Command::new("sfdisk").arg("--dump").arg(image));
    let field = |line: &str, key: &str| {
        let (_, after) = line.split_once(key).expect("a partition");
        after.split(',').next().and_then(|number| number.trim().parse::<usize>().ok()).expect("a number") * 512
    };
    let lines = dump.lines().filter(|line| line.contains("start="));
    lines.map(|line| field(line, "start=")..field(line, "start=") + field(line, "size=")).collect()
}

/// Nothing of the host's disk was changed but partitions of these numbers.
fn only_changed(before: &[u8], image: &Path, numbers: &[usize]) {
    let mut after = fs::read(image).expect("the host's disk");
    for number in numbers {
        let range = ranges(image)[number - 1].clone();
        after[range.clone()].copy_from_slice(&before[range]);
    }
    assert!(before == after, "the host's disk was changed elsewhere");
}

#[test]
fn the_disk_of_an_image_boots_with_one_partition_real_and_one_replaced() {
    let scratch = Scratch::new();
    let image = host_disk(&scratch);
    let before = fs::read(&image).expect("the host's disk");
    // Root is a file of its own here; of the host's disk only the boot partition is real.
    assemble(&scratch, &["--from=host.img", "--only=2", "--replace=3=root.img", "--rest=zero"]);
    boot(&scratch, |setup| setup, "/dev/vda3", ROOT);
    check_boots(&scratch.path("root.img"));
    only_changed(&before, &image, &[2]);
}

/// A root file system out of the host's disk.
fn root_of(scratch: &Scratch, image: &Path) -> PathBuf {
    let bytes = fs::read(image).expect("the host's disk");
    let root = scratch.path("root-afterwards");
    fs::write(&root, &bytes[ranges(image)[2].clone()]).expect("write the root file system");
    root
}

/// A disk on a loop device, and a test that has guests write to its partitions 2 and 3, of which the latter is booted once.
fn on_a_loop_device(name: &str, test: impl FnOnce(&Scratch, &Disk)) {
    let scratch = Scratch::new();
    let image = host_disk(&scratch);
    let before = fs::read(&image).expect("the host's disk");
    let disk = match Disk::attach(&image) {
        Ok(disk) => disk,
        Err(why) => return skip(name, &why),
    };
    test(&scratch, &disk);
    drop(disk);
    only_changed(&before, &image, &[2, 3]);
    check_boots(&root_of(&scratch, &image));
}

#[test]
fn the_other_system_of_a_disk_boots_from_its_partitions() {
    on_a_loop_device("the_other_system_of_a_disk_boots_from_its_partitions", |scratch, disk| {
        let from = format!("--from={}", disk.path().display());
        assemble(scratch, &[&from, "--only=2,3", "--rest=zero"]);
        boot(scratch, |setup| setup, "/dev/vda3", ROOT);
    });
}

#[test]
fn uefi_boots_partitions_that_keep_their_partuuids() {
    on_a_loop_device("uefi_boots_partitions_that_keep_their_partuuids", |scratch, disk| {
        // GRUB looks for its configuration on the first partition.
        let piece = |name: &str, number| format!("{name}={}", disk.partition(number).display());
        let said = assemble(scratch, &[&piece("esp", 2), &piece("root", 3)]);
        assert!(
            said.contains(&format!("PARTUUID={ROOT}\n     type, GUID, label and attributes as partition 3 of ")),
            "{said}"
        );
        boot(scratch, |setup| setup.arg("--uefi"), "/dev/vda2", ROOT);
    });
}
