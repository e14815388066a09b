//! Scratch directories and component files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory in memory (tmpfs), or None where the machine has no /dev/shm.
pub fn memory_dir() -> Option<TempDir> {
    let shm = Path::new("/dev/shm");
    let usable = shm.is_dir() && is_tmpfs(shm);
    usable.then(|| scratch(shm)).and_then(Result::ok)
}

/// A directory on the disk that holds the build directory.
pub fn disk_dir() -> TempDir {
    let exe = std::env::current_exe().expect("the test has an executable");
    let beside = exe.parent().expect("an executable lies in a directory");
    scratch(beside).expect("the build directory is writable")
}

fn scratch(parent: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("dm-tests-").tempdir_in(parent)
}

fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
}

/// Writes a component file, with nothing of it left in the page cache that is not on the disk.
pub fn component(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("create a component");
    file.write_all(bytes).expect("fill a component");
    file.sync_all().expect("sync a component");
}

/// A component of `bytes` bytes that is one hole.
pub fn sparse(path: &Path, bytes: u64) {
    let file = File::create(path).expect("create a component");
    file.set_len(bytes).expect("size a component");
}

/// Bytes of disk space that a file takes.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).expect("stat a component").blocks() * 512
}

/// Cuts a component short while it is in use.
pub fn truncate(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("open a component");
    file.set_len(bytes).expect("truncate a component");
}

/// A small file system in memory of its own, unmounted on drop. Needs root.
#[derive(Debug)]
pub struct SmallFs {
    dir: TempDir,
}

impl SmallFs {
    /// Mounts a tmpfs of `bytes` bytes.
    pub fn mount(bytes: u64) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let size = std::ffi::CString::new(format!("size={bytes}")).expect("no NUL in a number");
        rustix::mount::mount("dm-tests", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), size.as_c_str())?;
        Ok(SmallFs { dir })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
    }
}
