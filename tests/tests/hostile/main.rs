//! Front ends and guests that mean harm, or are broken beyond sense. After each the process lives, its log
//! is short, and a well-behaved front end is served right by the same process.
#![allow(missing_docs)]

mod chains;
mod control;
mod inflight;
mod load;
mod rings;

use std::path::PathBuf;
use std::time::Duration;

use dm_tests::daemon::Served;
use dm_tests::files;
use dm_tests::vmm::{Setup, Vmm};
use dm_tests::wire::Connection;
use tempfile::TempDir;

const SECTOR: usize = 512;
/// What does not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sectors of the victim's disk.
const SECTORS: u64 = 2048;

/// A daemon to be attacked.
struct Victim {
    served: Served,
    component: PathBuf,
    rounds: u64,
    _dir: TempDir,
}

impl Victim {
    fn new(args: &[&str]) -> Self {
        Self::on(files::memory_dir().unwrap_or_else(files::disk_dir), args)
    }

    /// On a disk, where requests take long enough to be caught in flight.
    fn slow() -> Self {
        Self::on(files::disk_dir(), &[])
    }

    fn on(dir: TempDir, args: &[&str]) -> Self {
        let component = dir.path().join("component");
        files::component(&component, &vec![0x11; SECTORS as usize * SECTOR]);
        let table = format!("0 {SECTORS} linear {} 0\n", component.display());
        Victim { served: Served::table(&table, args), component, rounds: 0, _dir: dir }
    }

    /// A connection on which nothing was said yet.
    fn connect(&mut self) -> Connection {
        let stream = self.served.daemon.connect(&self.served.socket);
        Connection::new(stream).expect("a connection")
    }

    fn vmm(&mut self, setup: &Setup) -> Vmm {
        self.served.vmm(setup)
    }

    /// Asserts that the process lives and serves a good front end right.
    fn assert_well(&mut self, after: &str) {
        eprintln!("after: {after}");
        self.served.daemon.assert_running();
        self.rounds += 1;
        let mut vmm = self.served.vmm(&Setup { queues: 2, ..Setup::default() });
        let sector = self.rounds * 5 % (SECTORS - 8);
        let bytes: Vec<u8> = (0..8 * SECTOR).map(|i| (i as u64 + self.rounds) as u8).collect();
        for queue in [0, 1] {
            vmm.write(queue, sector, &bytes).expect("write");
            vmm.flush(queue).expect("flush");
            assert!(vmm.read(queue, sector, bytes.len()).as_ref() == Ok(&bytes));
        }
        let file = std::fs::read(&self.component).expect("read the component");
        assert_eq!(file.len(), SECTORS as usize * SECTOR);
        assert!(file[sector as usize * SECTOR..][..bytes.len()] == bytes);
    }

    fn log_lines(&self) -> usize {
        self.served.daemon.log().lines().count()
    }

    fn stop(self) {
        let lines = self.log_lines();
        self.served.daemon.stop();
        assert!(lines < 1000 + 20 * self.rounds as usize, "{lines} lines of log");
    }
}
