//! Virtual machines on disks that the daemon assembles: QEMU is the front end, Linux the driver, and firmware too.
//! What the guest saw is compared with the components' files.
//!
//! Needs what `ci/setup.sh` installs. Guests run emulated where /dev/kvm is not to be had, so these tests take
//! seconds each.

#[path = "../boot/control.rs"]
mod control;
#[path = "../boot/crash.rs"]
mod crash;
#[path = "../boot/host.rs"]
mod host;
#[path = "../boot/migrate.rs"]
mod migrate;
#[path = "../boot/vm.rs"]
mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dm_tests::daemon::{Daemon, flag};
use dm_tests::files::allocated;
use dm_tests::skip::skip;
use host::{Loop, Piece, Scratch, assemble, disk_sha256, run, serve, sha256, table};
use vm::{Setup, bootable_disk};

const SERIAL: &str = "--serial=boot-test";

/// 16 MiB of three files: pieces that do not begin at their file's start, a stripe set, and a synthetic piece, with
/// borders at sectors that no page or stripe shares.
fn mixed_disk(scratch: &Scratch) -> Vec<Piece> {
    let (a, b, c) = (scratch.noise("a", 16384), scratch.noise("b", 8192), scratch.noise("c", 8192));
    vec![
        Piece::Linear(2049, a.clone(), 7),
        Piece::Striped(16384, 8, vec![b, c]),
        Piece::Zero(35),
        Piece::Linear(14300, a, 2060),
    ]
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(Piece::len).sum()
}

#[test]
fn the_guest_sees_the_disk_that_the_table_describes() {
    let scratch = Scratch::new();
    let pieces = mixed_disk(&scratch);
    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("describe");
    assert_eq!(vm.wait_for("size"), total(&pieces).to_string());
    assert_eq!(vm.wait_for("serial"), "boot-test");
    assert_eq!(vm.wait_for("read-only"), "0");
    // QEMU asks for one queue per virtual CPU.
    assert_eq!(vm.wait_for("queues"), "2");
    assert_eq!(vm.wait_for("logical-block"), "512");
    assert_eq!(vm.wait_for("cache"), "write back");
    assert_eq!(vm.wait_for("sha256"), disk_sha256(&scratch, &pieces));
    vm.finish();
    daemon.stop();
}

#[test]
fn rings_may_be_as_large_as_qemu_makes_them() {
    // A back end cannot tell QEMU how large a ring may be, and newer ones make them this large unasked.
    let scratch = Scratch::new();
    let pieces = mixed_disk(&scratch);
    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), ",queue-size=1024").run_test("describe");
    assert_eq!(vm.wait_for("sha256"), disk_sha256(&scratch, &pieces));
    vm.finish();
    daemon.stop();
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let scratch = Scratch::new();
    let pieces = mixed_disk(&scratch);
    let before = disk_sha256(&scratch, &pieces);
    let daemon = serve(&scratch, &pieces, &[SERIAL, "--read-only"]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("read-only");
    assert_eq!(vm.wait_for("read-only"), "1");
    assert_eq!(vm.wait_for("sha256"), before);
    vm.finish();
    daemon.stop();
    assert_eq!(disk_sha256(&scratch, &pieces), before);
}

#[test]
fn discard_and_write_zeroes_reach_the_components() {
    let scratch = Scratch::new();
    let (a, b, c) = (scratch.noise("a", 4096), scratch.noise("b", 8192), scratch.noise("c", 8192));
    let pieces = [
        Piece::Linear(4000, a.clone(), 8),
        Piece::Striped(8192, 8, vec![b.clone(), c.clone()]),
        Piece::Linear(4096, b.clone(), 4096),
    ];
    let image = scratch.path("expected.img");
    assemble(&pieces, &image);
    let space = || [&a, &b, &c].map(|path| allocated(path)).iter().sum::<u64>();
    let before = space();

    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("discard");
    assert_ne!(vm.wait_for("discard-max"), "0");
    assert_ne!(vm.wait_for("write-zeroes-max"), "0");
    // tests/boot/guest/discard has the same ranges.
    clear(&image, 1_048_576, 3_145_728);
    assert_eq!(vm.wait_for("discarded"), sha256(&image));
    let given_back = before - space();
    // Holes are made of whole pages of a file.
    assert!(given_back >= 3_000_000, "only {given_back} bytes of the files were given back");
    clear(&image, 6_291_968, 1_049_088);
    assert_eq!(vm.wait_for("zeroed"), sha256(&image));
    vm.finish();
    daemon.stop();
    assert_eq!(disk_sha256(&scratch, &pieces), sha256(&image), "the components' bytes");
}

/// Sets bytes of a file to zero.
fn clear(path: &Path, at: usize, len: usize) {
    let mut bytes = fs::read(path).expect("read the expected disk");
    bytes[at..at + len].fill(0);
    fs::write(path, bytes).expect("write the expected disk");
}

#[test]
fn a_file_system_across_segments_holds_what_was_written() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.noise("a", 65536), scratch.noise("b", 65536));
    let pieces = [
        Piece::Linear(50001, a, 0),
        Piece::Striped(14 * 128, 64, vec![scratch.noise("c", 896), scratch.noise("d", 896)]),
        Piece::Linear(65535, b, 1),
    ];
    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("file-system");
    let noise = vm.wait_for("noise");
    let sum = vm.wait_for("sha256");
    vm.finish();
    daemon.stop();
    let image = scratch.path("assembled.img");
    assemble(&pieces, &image);
    assert_eq!(sha256(&image), sum);
    assert_eq!(sha256(&read_file(&scratch, &image, "/noise")), noise);
    check_file_system(&image);
}

/// Takes a file out of an ext4 image that is not mounted.
fn read_file(scratch: &Scratch, image: &Path, name: &str) -> PathBuf {
    let copy = scratch.path("copy");
    run(Command::new("debugfs").arg("-R").arg(format!("dump {name} {}", copy.display())).arg(image));
    copy
}

fn check_file_system(image: &Path) {
    run(Command::new("e2fsck").arg("-fn").arg(image));
}

#[test]
fn a_block_device_brings_its_block_size() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.noise("a", 65536), scratch.noise("b", 65536));
    let disk = match Loop::attach(&a, 4096) {
        Ok(disk) => disk,
        Err(why) => return skip("a_block_device_brings_its_block_size", &why),
    };
    // A file takes blocks of any size: the disk has those of the block device.
    let pieces = [Piece::Linear(65000, disk.path().into(), 8), Piece::Linear(60000, b, 16)];
    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("file-system");
    assert_eq!(vm.wait_for("size"), total(&pieces).to_string());
    assert_eq!(vm.wait_for("logical-block"), "4096");
    assert_ne!(vm.wait_for("discard-max"), "0");
    vm.wait_for("noise");
    let sum = vm.wait_for("sha256");
    vm.finish();
    daemon.stop();
    let [_, second] = pieces;
    assert_eq!(disk_sha256(&scratch, &[Piece::Linear(65000, a, 8), second]), sum);
}

/// What the daemon said while the guest ran fio.
fn fio(machine: &[&str], more: &[&str]) -> String {
    let scratch = Scratch::new();
    let names = ["a", "b", "c"].map(|name| scratch.noise(name, 24576));
    let pieces = [
        Piece::Striped(60000 / 24 * 24, 8, names.to_vec()),
        Piece::Linear(4001, scratch.noise("d", 8192), 3),
        Piece::Linear(40000, scratch.noise("e", 40960), 9),
    ];
    let daemon = serve(&scratch, &pieces, &[&[SERIAL], more].concat());
    let machine = machine.iter().fold(Setup::new(&scratch), |setup, arg| setup.arg(*arg));
    let mut vm = machine.disk(&scratch.socket("disk"), "").run_test_with_fio("fio");
    let sum = vm.wait_for("sha256");
    let log = daemon.log();
    vm.finish();
    daemon.stop();
    assert_eq!(disk_sha256(&scratch, &pieces), sum);
    log
}

#[test]
fn fio_reads_back_what_it_wrote() {
    fio(&[], &[]);
}

#[test]
fn fio_reads_back_what_it_wrote_by_registered_memory() {
    if !dm_tests::skip::can_pin_memory() {
        return skip("fio_reads_back_what_it_wrote_by_registered_memory", "it has to pin memory");
    }
    let log = fio(&["--prealloc"], &["--register-memory"]);
    assert!(log.contains("guest memory is registered") && !log.contains("used without"), "{log}");
}

#[test]
fn an_error_segment_fails_alone() {
    let scratch = Scratch::new();
    let pieces = [
        Piece::Linear(2051, scratch.noise("a", 2051), 0),
        Piece::Error(5),
        Piece::Linear(2040, scratch.noise("b", 2048), 8),
        Piece::Zero(512),
    ];
    let before = scratch.path("before.img");
    assemble(&pieces, &before);
    let daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).disk(&scratch.socket("disk"), "").run_test("errors");
    assert_eq!(vm.wait_for("unreadable"), "2051 2052 2053 2054 2055");
    assert_eq!(vm.wait_for("unwritable"), "2051 2052 2053 2054 2055");
    let zeroes = scratch.text("zeroes", &"\0".repeat(512 * 512));
    assert_eq!(vm.wait_for("zero"), sha256(&zeroes));
    vm.finish();
    daemon.stop();

    let mut expected = fs::read(&before).expect("the disk as it was");
    for sector in (2040..=2068).filter(|s| !(2051..2056).contains(s)) {
        expected[sector * 512..][..512].copy_from_slice(format!("{:<512}", format!("sector {sector}")).as_bytes());
    }
    fs::write(&before, expected).expect("write the expected disk");
    assert_eq!(disk_sha256(&scratch, &pieces), sha256(&before), "the components' bytes");
}

#[test]
fn the_disk_is_there_after_a_reboot() {
    let scratch = Scratch::new();
    let pieces = mixed_disk(&scratch);
    let before = disk_sha256(&scratch, &pieces);
    let mut daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut vm = Setup::new(&scratch).arg("--may-reboot").disk(&scratch.socket("disk"), "").run_test("reboot");
    assert_eq!(vm.wait_for("sha256"), before);
    vm.wait_for("first");
    assert_eq!(vm.wait_for("size"), total(&pieces).to_string());
    vm.wait_for("second");
    assert_eq!(vm.wait_for("sha256"), disk_sha256(&scratch, &pieces));
    vm.finish();
    daemon.assert_running();
    daemon.stop();
    assert_ne!(disk_sha256(&scratch, &pieces), before, "the mark did not reach the component");
}

#[test]
fn the_daemon_outlives_machines_that_are_killed() {
    let scratch = Scratch::new();
    let pieces = mixed_disk(&scratch);
    let socket = scratch.socket("disk");
    let mut daemon = serve(&scratch, &pieces, &[SERIAL]);
    let mut last = None;
    for _ in 0..2 {
        let mut vm = Setup::new(&scratch).disk(&socket, "").run_test("killed");
        let found = vm.wait_for("found");
        assert!(last.is_none_or(|sum| sum == found), "what was written and flushed before the kill is gone");
        last = Some(vm.wait_for("wrote"));
        vm.wait_for("busy");
        vm.kill();
        daemon.assert_running();
    }
    let mut vm = Setup::new(&scratch).disk(&socket, "").run_test("after-kill");
    assert_eq!(vm.wait_for("size"), total(&pieces).to_string());
    assert_eq!(Some(vm.wait_for("found")), last);
    assert_eq!(vm.wait_for("sha256"), disk_sha256(&scratch, &pieces));
    vm.finish();
    daemon.stop();
}

#[test]
fn one_daemon_serves_two_disks() {
    let scratch = Scratch::new();
    let (a, b, c) = (scratch.noise("a", 4096), scratch.noise("b", 4096), scratch.noise("c", 6000));
    let other = [Piece::Linear(2999, c.clone(), 0), Piece::Zero(50)];
    // The upper device comes first in the file: any order is good.
    let top = [Piece::Linear(4000, "/dev/mapper/base".into(), 10), Piece::Linear(2000, c, 3000)];
    let base = [Piece::Linear(4096, b.clone(), 0), Piece::Linear(96, a.clone(), 0)];
    let top_in_files = [Piece::Linear(4000, b, 10), Piece::Linear(2000, scratch.path("c"), 3000)];
    let text =
        format!("top,,,rw,{};base,,,rw,{};other,,,ro,{}\n", table(&top, ","), table(&base, ","), table(&other, ","));
    let file = scratch.text("disks.concise", &text);
    let sockets = ["top.sock", "other.sock", "base.sock"].map(|name| scratch.socket(name));
    let mut daemon = Daemon::start([flag("--socket-dir", scratch.sockets()), flag("--table", &file)]);
    for socket in &sockets {
        daemon.wait_listening(socket);
    }

    let mut vm = Setup::new(&scratch).disk(&sockets[0], "").disk(&sockets[1], "").run_test("two-disks");
    assert_eq!(vm.wait_for("top-size"), "6000");
    assert_eq!(vm.wait_for("top-read-only"), "0");
    assert_eq!(vm.wait_for("top-sha256"), disk_sha256(&scratch, &top_in_files));
    assert_eq!(vm.wait_for("other-size"), "3049");
    assert_eq!(vm.wait_for("other-read-only"), "1");
    let other_sum = vm.wait_for("other-sha256");
    assert_eq!(other_sum, disk_sha256(&scratch, &other));
    let new = vm.wait_for("top-new-sha256");
    vm.finish();
    daemon.stop();
    assert_eq!(disk_sha256(&scratch, &top_in_files), new);
    assert_eq!(disk_sha256(&scratch, &other), other_sum);
}

/// Boots by firmware, twice: the booted system reboots itself the first time.
fn boot_twice_by_firmware(setup: fn(Setup) -> Setup) {
    let scratch = Scratch::new();
    let pieces = bootable_disk(
        &scratch,
        "echo; echo boot $(wc -l </var/boots) of $(findmnt -no SOURCE /)\n\
         if [ $(wc -l </var/boots) = 1 ]; then reboot; exit; fi\n",
    );
    let untouched = ["gpt-head.img", "boot.img", "gpt-tail.img"].map(|name| scratch.path(name));
    let before = untouched.each_ref().map(|path| sha256(path));
    let daemon = serve(&scratch, &pieces, &[]);
    let mut vm = setup(Setup::new(&scratch)).arg("--may-reboot").disk(&scratch.socket("disk"), "").boot();
    assert_eq!(vm.wait_for("boot"), "1 of /dev/vda2");
    assert_eq!(vm.wait_for("boot"), "2 of /dev/vda2");
    vm.power_off();
    daemon.stop();

    assert_eq!(untouched.each_ref().map(|path| sha256(path)), before, "pieces that the guest only reads");
    let root = scratch.path("root.img");
    check_file_system(&root);
    let boots = fs::read_to_string(read_file(&scratch, &root, "/var/boots")).expect("the list of boots");
    assert_eq!(boots.lines().count(), 2, "boots noted on the root file system: {boots:?}");
    let image = scratch.path("assembled.img");
    assemble(&pieces, &image);
    run(Command::new("sfdisk").args(["--quiet", "--verify"]).arg(&image));
}

#[test]
fn a_bios_boots_from_the_assembled_disk() {
    boot_twice_by_firmware(|setup| setup);
}

#[test]
fn uefi_boots_from_the_assembled_disk() {
    boot_twice_by_firmware(|setup| setup.arg("--uefi"));
}
