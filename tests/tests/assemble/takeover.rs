//! Types, GUIDs, labels, attributes and the signature of the host's own partition table.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dm_tests::daemon::{Daemon, flag};
use dm_tests::loops::Loop;
use dm_tests::skip::{is_root, skip};
use dm_tests::vmm::Setup;
use serde_json::Value;

use crate::from::{changed, overwrite, ranges};
use crate::ground::{Ground, sfdisk, tool};

const GPT: &str = "label: gpt\n\
    start=2048, size=4096, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI system\", uuid=5A1C39E8-0000-4000-8000-000000000001\n\
    start=8192, size=8192, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=\"Fedora, root\", uuid=5A1C39E8-0000-4000-8000-000000000002, \
    attrs=\"RequiredPartition LegacyBIOSBootable GUID:63\"\n";

const MBR: &str = "label: dos\nlabel-id: 0x5a1c39e8\nstart=2048, size=4096, type=7, bootable\nstart=8192, size=8192, type=83\n\
    start=20480, size=2048, type=82\n";

/// A disk of the host, as a file.
pub fn host(ground: &Ground, name: &str, layout: &str) -> PathBuf {
    let path = ground.piece(name, 49152);
    let mut sfdisk = Command::new("sfdisk");
    let mut child = sfdisk.arg("--quiet").arg(&path).stdin(Stdio::piped()).spawn().expect("start sfdisk");
    std::io::Write::write_all(child.stdin.as_mut().expect("its input"), layout.as_bytes()).expect("write the layout");
    assert!(child.wait().expect("wait for sfdisk").success());
    path
}

/// Fields of a partition that are to stay.
fn fields(table: &Value, index: usize) -> Vec<Value> {
    ["type", "uuid", "name", "attrs", "bootable", "size"].map(|key| table["partitions"][index][key].clone()).to_vec()
}

#[test]
fn ranges_of_an_image_that_are_partitions_keep_what_they_are() {
    let ground = Ground::new();
    let host = sfdisk(&host(&ground, "host", GPT));
    let said = ground.assemble(&["root=host@8192+8192", "esp=host@2048+4096"]);
    assert!(said.contains("type, GUID, label and attributes as partition 2 of "), "{said}");
    let disk = sfdisk(&ground.image());
    assert_eq!(fields(&disk, 0), fields(&host, 1));
    assert_eq!(fields(&disk, 1), fields(&host, 0));
    assert_ne!(disk["id"], host["id"]);

    // What is given wins over what is taken over; a range that is no partition takes nothing.
    ground.assemble(&["root=host@8192+8192,label=other,type=home", "esp=host@2048+4095"]);
    let disk = sfdisk(&ground.image());
    assert_eq!((&disk["partitions"][0]["name"], &disk["partitions"][1]["name"]), (&"other".into(), &"esp".into()));
    assert_eq!(disk["partitions"][0]["type"], "933AC7E1-2EB4-4F13-B844-0E14E2AEF915");
    assert_eq!(disk["partitions"][0]["uuid"], host["partitions"][1]["uuid"]);
}

#[test]
fn an_mbr_keeps_its_signature_and_numbers() {
    let ground = Ground::new();
    let host = sfdisk(&host(&ground, "host", MBR));
    let said = ground.assemble(&["--label=mbr", "swap=host@20480+2048", "win=host@2048+4096", "new=host@30720+2048"]);
    assert!(said.contains("PARTUUID=5a1c39e8-03") && said.contains("disk signature 5a1c39e8 as "), "{said}");
    let disk = sfdisk(&ground.image());
    assert_eq!(disk["id"], "0x5a1c39e8");
    // sfdisk lists by number: Windows is still the first, swap the third, and the new one has the free one.
    assert_eq!(fields(&disk, 0), fields(&host, 0));
    assert_eq!(fields(&disk, 2), fields(&host, 2));
    assert_eq!(disk["partitions"][1]["type"], "83");
}

#[test]
fn types_are_translated_between_the_two_kinds_of_tables() {
    let ground = Ground::new();
    host(&ground, "gpt", GPT);
    host(&ground, "mbr", MBR);
    let said = ground.assemble(&["--label=mbr", "a=gpt@2048+4096", "b=gpt@8192+8192"]);
    assert!(said.contains("an MBR keeps neither its PARTUUID nor its label"), "{said}");
    let disk = sfdisk(&ground.image());
    assert_eq!((&disk["partitions"][0]["type"], &disk["partitions"][1]["type"]), (&"ef".into(), &"83".into()));
    ground.assemble(&["a=mbr@2048+4096", "b=mbr@20480+2048"]);
    let disk = sfdisk(&ground.image());
    assert_eq!(disk["partitions"][0]["type"], "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7");
    assert_eq!(disk["partitions"][1]["type"], "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F");
}

/// The kernel parses no table of a loop device by itself everywhere; partx tells it.
struct Partitions(Loop);

impl Partitions {
    fn attach(image: &Path) -> Result<Partitions, String> {
        let device = Loop::attach(image, false).map_err(|error| error.to_string())?;
        let partitions = Partitions(device);
        if !partitions.node(1).exists() {
            let added =
                Command::new("partx").arg("--add").arg(&partitions.0.node).output().map_err(|e| e.to_string())?;
            if !added.status.success() || !partitions.node(1).exists() {
                return Err(format!("partx: {}", String::from_utf8_lossy(&added.stderr)));
            }
        }
        Ok(partitions)
    }

    fn node(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.0.node.display()))
    }
}

impl Drop for Partitions {
    fn drop(&mut self) {
        // The loop device goes after its partitions.
        let _ = Command::new("partx").arg("--delete").arg(&self.0.node).output();
    }
}

#[test]
fn partitions_of_a_disk_keep_what_they_are() {
    const NAME: &str = "partitions_of_a_disk_keep_what_they_are";
    if !is_root() {
        return skip(NAME, "loop devices need root");
    }
    let ground = Ground::new();
    let image = host(&ground, "host", GPT);
    let before = fs::read(&image).expect("the host's disk");
    let host = sfdisk(&image);
    let disk = match Partitions::attach(&image) {
        Ok(disk) => disk,
        Err(why) => return skip(NAME, &why),
    };
    let (esp, root) = (format!("esp={}", disk.node(1).display()), format!("root={}", disk.node(2).display()));
    ground.assemble(&[root, esp]);
    let made = sfdisk(&ground.image());
    assert_eq!(fields(&made, 0), fields(&host, 1));
    assert_eq!(fields(&made, 1), fields(&host, 0));

    // The same disk as the host's leads to the partitions' own devices, and never to the disk.
    ground.assemble(&["--from".to_owned(), disk.0.node.display().to_string(), "--only=2".to_owned()]);
    let real: Vec<_> =
        ground.lines().into_iter().filter(|line| line[2] == "linear" && line[3].starts_with("/dev")).collect();
    assert_eq!(real.len(), 1, "{real:?}");
    assert_eq!(fs::canonicalize(&real[0][3]).expect("a device"), disk.node(2));
    assert_eq!(real[0][4], "0");
    assert!(fs::read(&image).expect("the host's disk") == before, "assembling writes nothing to the host's disk");
    let written = overwrite(&ground);
    assert_eq!(ranges(written.iter().map(|written| !written)), [(2048, 6144)], "the partition that was not named");
    drop(disk);
    assert_eq!(changed(&before, &image), [(8192, 16384)]);
}

#[test]
fn a_disk_of_4096_byte_blocks_has_a_table_of_such() {
    const NAME: &str = "a_disk_of_4096_byte_blocks_has_a_table_of_such";
    let ground = Ground::new();
    let (a, b) = (ground.piece("a", 8192), ground.piece("b", 4093));
    let said = ground.assemble(&["a=a", "b=b", "--sector-size=4096"]);
    assert!(said.contains("4096-byte blocks") && said.contains("serve the disk with --block-size=4096"), "{said}");
    let attach = |path: &Path| {
        let mut losetup = Command::new("losetup");
        let output =
            losetup.args(["--find", "--show", "--sector-size=4096"]).arg(path).output().expect("start losetup");
        match output.status.success() {
            true => Ok(Loop { node: String::from_utf8_lossy(&output.stdout).trim().into() }),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let image = match attach(&ground.image()) {
        Ok(image) => image,
        Err(why) => return skip(NAME, &why),
    };
    let table = sfdisk(&image.node);
    assert_eq!(table["sectorsize"], 4096);
    let numbers =
        |index: usize| ["start", "size"].map(|key| table["partitions"][index][key].as_u64().expect("a number"));
    // The last block of the second partition is filled up with zeroes.
    assert_eq!([numbers(0), numbers(1)], [[256, 1024], [1280, 512]]);
    assert!(tool("sgdisk", &["--verify"], &image.node).contains("No problems found"));
    drop(image);

    // A piece that has such blocks makes them the disk's.
    let device = attach(&a).expect("a second loop device");
    let piece = format!("a={}", device.node.display());
    assert!(ground.assemble(&[&piece]).contains("4096-byte blocks"));
    let socket = ground.path("socket");
    let mut daemon = Daemon::start([flag("--socket-path", &socket), flag("--table", &ground.path("disk.table"))]);
    let vmm = daemon.vmm(&socket, &Setup::default());
    assert_eq!(vmm.config.blk_size, 4096);
    drop(vmm);
    daemon.stop();
    let said = ground.try_assemble(&[&piece, "--sector-size=512"]);
    assert!(!said.good && said.err.contains("it has blocks of 4096 bytes, and so would the disk"), "{}", said.err);
    drop(b);
}
