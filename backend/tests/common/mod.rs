//! What the tests of component devices share: files, loop devices, mounts and the machine's abilities.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_dm::device::{Cache, Component, OpenError, Options, Registry};

/// Something of the machine that a test cannot do without.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Root's rights.
    Root,
    /// Mounting of file systems.
    Mount,
    /// Loop devices, mounts and the tools for them.
    Loop,
    /// What makes file systems of all kinds, and tells what they are.
    Filesystems,
    /// The tools of LVM2, and root's rights, which they ask for.
    Lvm,
    /// Mounting of file systems that a process serves.
    Fuse,
    /// qemu-io and qemu-storage-daemon.
    Qemu,
    /// A directory on tmpfs.
    Tmpfs,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Need::Root => "root",
            Need::Mount => "mount",
            Need::Loop => "loop",
            Need::Filesystems => "filesystems",
            Need::Lvm => "lvm",
            Need::Fuse => "fuse",
            Need::Qemu => "qemu",
            Need::Tmpfs => "tmpfs",
        }
    }

    fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!rustix::process::geteuid().is_root()).then(|| "it needs root".into()),
            Need::Mount => (!may_mount()).then(|| "mounting needs root with CAP_SYS_ADMIN".into()),
            Need::Loop if !may_mount() => Some("loop devices and mounts need root with CAP_SYS_ADMIN".into()),
            Need::Loop if !Path::new("/dev/loop-control").exists() => Some("there is no /dev/loop-control".into()),
            Need::Loop => {
                missing_tool(&["losetup", "blockdev", "partx", "sfdisk", "mke2fs", "mount", "mkswap", "swapon"])
            }
            Need::Filesystems => missing_tool(&[
                "blkid",
                "mke2fs",
                "debugfs",
                "mkfs.xfs",
                "mkfs.ntfs",
                "ntfscp",
                "mkfs.fat",
                "mkfs.exfat",
                "mkfs.btrfs",
                "mkswap",
                "sfdisk",
            ]),
            Need::Lvm if !rustix::process::geteuid().is_root() => Some("LVM2's tools want root".into()),
            Need::Lvm => missing_tool(&["pvcreate", "vgcreate", "lvcreate"]),
            Need::Fuse if !may_mount() => Need::Mount.missing(),
            Need::Fuse => (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".into()),
            Need::Qemu => missing_tool(&["qemu-io", "qemu-storage-daemon"]),
            Need::Tmpfs => (!Path::new("/dev/shm").is_dir()).then(|| "there is no /dev/shm".into()),
        }
    }
}

/// Root of a container often lacks the capability.
fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0);
    capabilities >> CAP_SYS_ADMIN & 1 == 1
}

fn missing_tool(names: &[&str]) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| std::env::split_paths(&paths).any(|dir| dir.join(name).is_file());
    let missing = names.iter().find(|name| !has(name))?;
    Some(format!("{missing} is not installed or not in PATH"))
}

/// Whether a test can run here. Where it cannot, that is said past the capture of test output; with `CI=true`
/// it is a failure unless `DM_TEST_ALLOW_SKIP` (names with commas) lists the need.
pub fn can_run(test: &str, needs: &[Need]) -> bool {
    let lacking = needs.iter().find_map(|need| Some((need.name(), need.missing()?)));
    let Some((need, why)) = lacking else { return true };
    let allowed = std::env::var("DM_TEST_ALLOW_SKIP").unwrap_or_default();
    let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        !in_ci || allowed.split(',').any(|name| name == need),
        "{test} cannot run: {why} (DM_TEST_ALLOW_SKIP={need} would allow that)"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    false
}

pub const RW: Options = Options { read_only: false, cache: Cache::Auto, incoming: false };
pub const RO: Options = Options { read_only: true, cache: Cache::Auto, incoming: false };

/// Opens by path in a registry of its own, as another process would.
pub fn open(path: &Path, opts: &Options) -> Result<Arc<Component>, OpenError> {
    Registry::new().open(path.to_str().expect("test paths are UTF-8"), None, opts)
}

/// A directory for test files, and the right to run.
///
/// Tests of one binary run one after another while they have it: a process that another thread starts has a
/// copy of every open file until it runs its program, so a device that one test has closed could still be
/// held by a child of the other.
pub struct Dir {
    temporary: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Dir {
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }
}

/// A directory on the file system of the system's temporary directory.
pub fn dir() -> Dir {
    dir_in(&std::env::temp_dir())
}

/// A directory in a place of the test's choice.
pub fn dir_in(parent: &Path) -> Dir {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing that the next one depends on.
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Dir { temporary: tempfile::tempdir_in(parent).expect("a temporary directory"), _alone: alone }
}

/// A sparse image file.
pub fn image(dir: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|file| file.set_len(bytes)).expect("a test image");
    path
}

/// Runs a tool and gives what it printed; fails the test with its complaint.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = try_run(program, args);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}

/// Runs a tool that may fail.
pub fn try_run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// A loop device, with its partitions where they were asked for. Detached on drop.
pub struct Loop {
    pub node: PathBuf,
}

impl Loop {
    pub fn attach(file: &Path, options: &[&str]) -> Loop {
        let mut args: Vec<&OsStr> = vec!["--find".as_ref(), "--show".as_ref()];
        args.extend(options.iter().map(|option| OsStr::new(*option)));
        args.push(file.as_os_str());
        Loop { node: PathBuf::from(run("losetup", args).trim()) }
    }

    /// Two primary partitions of equal size. `partx` adds them: not every kernel reads partition tables of
    /// loop devices by itself.
    pub fn with_two_partitions(file: &Path) -> Loop {
        let script = file.with_extension("sfdisk");
        fs::write(&script, "label: dos\n,8M\n,8M\n").expect("a partition script");
        let table = File::open(&script).expect("a partition script");
        let made = Command::new("sfdisk").arg("--quiet").arg(file).stdin(table).output().expect("sfdisk");
        assert!(made.status.success(), "sfdisk: {}", String::from_utf8_lossy(&made.stderr));
        let device = Loop::attach(file, &[]);
        run("partx", ["-u".as_ref(), device.node.as_os_str()]);
        device
    }

    pub fn name(&self) -> String {
        self.node.file_name().expect("a node has a name").to_string_lossy().into_owned()
    }

    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.node.display()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Write protection by blockdev would outlive the attachment.
        let _ = try_run("blockdev", ["--setrw".as_ref(), self.node.as_os_str()]);
        let _ = try_run("partx", ["-d".as_ref(), self.node.as_os_str()]);
        let _ = try_run("losetup", ["-d".as_ref(), self.node.as_os_str()]);
    }
}

/// A mount. Unmounted on drop, so it must be dropped before its device.
pub struct Mount {
    pub at: PathBuf,
}

impl Mount {
    pub fn new(args: &[&OsStr], at: &Path) -> Mount {
        fs::create_dir_all(at).expect("a mount point");
        run("mount", args.iter().copied().chain([at.as_os_str()]));
        Mount { at: at.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = try_run("umount", [&self.at]);
    }
}

/// An ext4 file system on a device.
pub fn mke2fs(node: &Path) {
    run("mke2fs", ["-q".as_ref(), "-F".as_ref(), "-t".as_ref(), "ext4".as_ref(), node.as_os_str()]);
}
