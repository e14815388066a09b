//! Loop devices and the file systems on them that a test may freeze, fill or take away. They need root.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::files;

/// Why this process cannot have loop devices with file systems; `None` where it can.
pub fn missing() -> Option<&'static str> {
    if !crate::skip::is_root() {
        return Some("loop devices and mounts need root");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there is no /dev/loop-control");
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| std::env::split_paths(&paths).any(|dir| dir.join(name).is_file());
    let tools = ["losetup", "mke2fs", "fsfreeze", "mount", "umount"];
    if tools.iter().all(|name| has(name)) { None } else { Some("one of losetup, mke2fs, fsfreeze, mount is missing") }
}

fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(format!("{program}: {said}")))
    }
}

/// A loop device, detached on drop.
#[derive(Debug)]
pub struct Loop {
    /// Its node.
    pub node: PathBuf,
}

impl Loop {
    /// A loop device over a file. With `direct` it goes past the page cache of the file's file system, so that what
    /// happens to the file is seen at once.
    pub fn attach(file: &Path, direct: bool) -> io::Result<Loop> {
        let mode = if direct { "--direct-io=on" } else { "--direct-io=off" };
        let args: [&OsStr; 4] = ["--find".as_ref(), "--show".as_ref(), mode.as_ref(), file.as_ref()];
        Ok(Loop { node: PathBuf::from(run("losetup", args)?.trim()) })
    }

    /// A loop device with logical blocks of so many bytes.
    pub fn with_blocks(file: &Path, block: u32) -> io::Result<Loop> {
        let block = format!("--sector-size={block}");
        let args: [&OsStr; 4] = ["--find".as_ref(), "--show".as_ref(), block.as_ref(), file.as_ref()];
        Ok(Loop { node: PathBuf::from(run("losetup", args)?.trim()) })
    }

    /// Takes the backing file away; the device goes when its last user closes it.
    pub fn detach(&self) -> io::Result<()> {
        run("losetup", ["-d".as_ref(), self.node.as_os_str()]).map(drop)
    }

    /// Whether what was asked of the device waits for the disk that its file is on: the kernel's thread that does it, whose
    /// name tells for whom it works, is in state D. Others always are on a busy machine.
    pub fn hangs(&self) -> bool {
        let work = format!("+{}", self.node.file_name().unwrap_or_default().to_string_lossy());
        waits(Path::new("/proc"), |name| name.starts_with("kworker/") && name.ends_with(&work))
    }

    /// Tells the device that its file has another size.
    pub fn resize(&self) -> io::Result<()> {
        run("losetup", ["-c".as_ref(), self.node.as_os_str()]).map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.detach();
    }
}

/// A small ext4 on a loop device, mounted; everything goes on drop.
#[derive(Debug)]
pub struct LoopFs {
    at: PathBuf,
    // In this order: unmounted (by our own drop), detached, removed.
    device: Loop,
    _dir: TempDir,
}

impl LoopFs {
    /// An ext4 of `bytes` bytes.
    pub fn mount(bytes: u64) -> io::Result<LoopFs> {
        let dir = files::disk_dir();
        let image = dir.path().join("fs.img");
        files::sparse(&image, bytes);
        let options = ["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run("mke2fs", options.iter().map(OsStr::new).chain([image.as_os_str()]))?;
        let device = Loop::attach(&image, false)?;
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at)?;
        run("mount", ["-t".as_ref(), "ext4".as_ref(), device.node.as_os_str(), at.as_os_str()])?;
        Ok(LoopFs { at, device, _dir: dir })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The device that it is on.
    pub fn device(&self) -> &Path {
        &self.device.node
    }

    /// Whatever writes to it from now on waits in the kernel until the result is dropped. That must come before a killed
    /// process is waited for, which may hang in such a write.
    pub fn freeze(&self) -> io::Result<Frozen<'_>> {
        run("fsfreeze", ["-f".as_ref(), self.at.as_os_str()])?;
        Ok(Frozen(&self.at))
    }

    /// Mounts it again in another way: `"ro"`, `"rw"`.
    pub fn remount(&self, how: &str) -> io::Result<()> {
        run("mount", ["-o".as_ref(), OsStr::new(&format!("remount,{how}")), self.at.as_os_str()]).map(drop)
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // A process of the test may need a moment to let go of it.
        let gone = run("umount", [&self.at]).or_else(|_| run("umount", ["-l".as_ref(), self.at.as_os_str()]));
        if let Err(error) = gone {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
    }
}

/// A file system that is frozen. See [`LoopFs::freeze`].
#[derive(Debug)]
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("fsfreeze", ["-u".as_ref(), self.0.as_os_str()]) {
            eprintln!("cannot thaw {}: {error}", self.0.display());
        }
    }
}

/// Whether a write of a process waits for a disk: one of its threads of io_uring does, state D.
pub fn hangs(pid: u32) -> bool {
    waits(Path::new(&format!("/proc/{pid}/task")), |name| name.starts_with("iou-wrk"))
}

/// Whether a task in a directory of /proc waits for a disk that has such a name.
fn waits(dir: &Path, is: impl Fn(&str) -> bool) -> bool {
    let tasks = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.any(|stat| {
        let name = stat.split_once(" (").and_then(|(_, rest)| rest.split_once(") D "));
        name.is_some_and(|(name, _)| is(name))
    })
}
