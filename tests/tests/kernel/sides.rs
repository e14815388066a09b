//! What both sides can do, and our side of it.

use std::collections::HashMap;
use std::path::PathBuf;

use dm_tests::blk::{IOERR, Segment, UNSUPP, feature, kind};
use dm_tests::control::{Controlled, Output};
use dm_tests::files;
use dm_tests::operations::{Operation, Outcome, SECTOR, digest, fill};
use dm_tests::vmm::{Failed, Setup, Vmm};
use tempfile::TempDir;

/// Components and their sectors: sizes that are no multiple of anything, but for one.
pub const COMPONENTS: [(&str, u64); 6] = [("a", 4103), ("b", 3001), ("c", 2048), ("d", 1501), ("e", 203), ("f", 16384)];

/// The number of a component.
pub fn component(name: &str) -> usize {
    COMPONENTS.iter().position(|(known, _)| *known == name).unwrap_or_else(|| panic!("test bug: no component {name}"))
}

/// Sectors of a component.
pub fn sectors(name: &str) -> u64 {
    COMPONENTS[component(name)].1
}

/// A device and what to do on it.
pub type Request = (String, Operation);

/// One of the two that are compared.
pub trait Side {
    /// A component as its tables name it.
    fn node(&self, component: usize) -> String;
    /// A component as its `dmsetup` shows it.
    fn shown(&self, component: usize) -> String;
    fn dmsetup(&mut self, args: &[&str]) -> Output;
    /// One after another. What became of each is the text of an [`Outcome`].
    fn io(&mut self, requests: &[Request]) -> Vec<String>;
    /// Lets go of all devices.
    fn close(&mut self);
    fn bytes(&mut self, component: usize) -> Vec<u8>;
    fn place(&mut self, component: usize, bytes: &[u8]);
}

/// The back end, and front ends of its devices.
pub struct Ours {
    disks: HashMap<String, Vmm>,
    controlled: Controlled,
    dir: TempDir,
}

impl Ours {
    pub fn start() -> Ours {
        let dir = files::disk_dir();
        for (name, sectors) in COMPONENTS {
            files::sparse(&dir.path().join(name), sectors * SECTOR as u64);
        }
        Ours { disks: HashMap::new(), controlled: Controlled::empty(), dir }
    }

    fn path(&self, component: usize) -> PathBuf {
        self.dir.path().join(COMPONENTS[component].0)
    }

    /// The types of targets that it serves.
    pub fn targets(&self) -> Vec<String> {
        let listed = self.controlled.must(&["targets"]);
        listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    }

    pub fn stop(mut self) {
        self.disks.clear();
        self.controlled.daemon.assert_running();
        self.controlled.stop();
    }

    fn outcome(&mut self, device: &str, operation: Operation) -> Outcome {
        if !self.disks.contains_key(device) {
            let setup = Setup { slots: 1, slot_bytes: 256 << 10, ..Setup::default() };
            self.disks.insert(device.to_owned(), self.controlled.vmm(device, &setup));
        }
        let vmm = self.disks.get_mut(device).expect("it is there now");
        match carry_out(vmm, operation) {
            Ok(digest) => Outcome::Done(digest),
            // What a Linux guest makes of the status.
            Err(Failed(IOERR)) => Outcome::Failed("EIO".into()),
            Err(Failed(UNSUPP)) => Outcome::Failed("EOPNOTSUPP".into()),
            Err(Failed(status)) => Outcome::Failed(format!("status {status}")),
        }
    }
}

/// As a guest's driver does it, which asks for nothing that it was not offered.
fn carry_out(vmm: &mut Vmm, operation: Operation) -> Result<Option<u64>, Failed> {
    let bytes = |len: u32| len as usize * SECTOR;
    match operation {
        Operation::Read(at, len) => vmm.read(0, at, bytes(len)).map(|data| Some(digest(&data))),
        Operation::Write(at, len, seed) => {
            let mut data = vec![0; bytes(len)];
            fill(seed, &mut data);
            vmm.write(0, at, &data).map(|()| None)
        }
        Operation::Flush => vmm.flush(0).map(|()| None),
        Operation::Discard(..) if !vmm.has(feature::DISCARD) || vmm.config.max_discard_sectors == 0 => {
            Err(Failed(UNSUPP))
        }
        Operation::Discard(sector, sectors) => {
            vmm.ranges(0, kind::DISCARD, &[Segment { sector, sectors, flags: 0 }]).map(|()| None)
        }
        Operation::WriteZeroes(at, len) if !vmm.has(feature::WRITE_ZEROES) => {
            vmm.write(0, at, &vec![0; bytes(len)]).map(|()| None)
        }
        Operation::WriteZeroes(sector, sectors) => {
            vmm.ranges(0, kind::WRITE_ZEROES, &[Segment { sector, sectors, flags: 0 }]).map(|()| None)
        }
    }
}

impl Side for Ours {
    fn node(&self, component: usize) -> String {
        self.path(component).to_str().expect("a path of ASCII").to_owned()
    }

    fn shown(&self, component: usize) -> String {
        self.node(component)
    }

    fn dmsetup(&mut self, args: &[&str]) -> Output {
        self.controlled.dmsetup(args)
    }

    fn io(&mut self, requests: &[Request]) -> Vec<String> {
        requests.iter().map(|(device, operation)| self.outcome(device, *operation).to_string()).collect()
    }

    fn close(&mut self) {
        self.disks.clear();
    }

    fn bytes(&mut self, component: usize) -> Vec<u8> {
        std::fs::read(self.path(component)).expect("read a component")
    }

    fn place(&mut self, component: usize, bytes: &[u8]) {
        // The same file: a process may have it open.
        let file = std::fs::OpenOptions::new().write(true).open(self.path(component)).expect("open a component");
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).expect("fill a component");
        file.sync_all().expect("sync a component");
    }
}
