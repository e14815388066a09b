//! Disks with partitions, as a host has them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::Loop;

/// A loop device whose partitions the kernel was told of.
pub struct Disk {
    device: Loop,
}

impl Disk {
    /// The reason where this machine or user can have none.
    pub fn attach(image: &Path) -> Result<Disk, String> {
        let disk = Disk { device: Loop::attach(image, 512)? };
        if !disk.partition(1).exists() {
            let added =
                Command::new("partx").arg("--add").arg(disk.device.path()).output().map_err(|e| e.to_string())?;
            if !added.status.success() || !disk.partition(1).exists() {
                return Err(format!("partx: {}", String::from_utf8_lossy(&added.stderr)));
            }
        }
        Ok(disk)
    }

    /// The whole disk.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.path().display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The loop device goes after its partitions.
        let _ = Command::new("partx").arg("--delete").arg(self.device.path()).output();
    }
}
