//! Another process's file on a server that does not answer any more: to look for who has a component meets it, and must not
//! wait for it.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Loop, Need, RW, can_run, dir, image, open, run, try_run};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::io::{FdFlags, fcntl_setfd};

/// A file system that a thread serves: a directory in which every name is a regular file.
struct Server {
    at: PathBuf,
    dead: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn mount(at: &Path) -> Server {
        std::fs::create_dir(at).expect("a mount point");
        let channel = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        fcntl_setfd(&channel, FdFlags::empty()).expect("mount inherits it");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", channel.as_raw_fd());
        run("mount", ["-i", "-t", "fuse", "-o", &options, "dead", at.to_str().expect("UTF-8")]);
        fcntl_setfd(&channel, FdFlags::CLOEXEC).expect("nobody else does");
        let dead = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let dead = dead.clone();
            move || serve(&channel, &dead)
        });
        Server { at: at.to_owned(), dead, thread: Some(thread) }
    }

    /// From now on nobody gets an answer.
    fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The first ends the connection, and with it the thread and whoever waits for an answer.
        let _ = try_run("umount", ["-f".as_ref(), self.at.as_os_str()]);
        let _ = try_run("umount", ["-l".as_ref(), self.at.as_os_str()]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Numbers as `linux/fuse.h` lays them out.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_attr`; nothing of it may be cached.
fn attributes(inode: u32, mode: u32) -> Vec<u8> {
    let times = [0; 9];
    [words(&[inode, 0, 1 << 20, 0, 8, 0]), words(&times), words(&[mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn serve(mut channel: &File, dead: &AtomicBool) {
    let mut request = vec![0; 1 << 20];
    while let Ok(len) = channel.read(&mut request) {
        if dead.load(Ordering::SeqCst) {
            continue;
        }
        // struct fuse_in_header: length, what is asked for, its number, the inode
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("a header"));
        assert!(len >= 40, "a request of {len} bytes");
        let answer = match word(4) {
            // FUSE_LOOKUP: struct fuse_entry_out
            1 => [words(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), attributes(2, 0o100_644)].concat(),
            // FUSE_GETATTR: struct fuse_attr_out
            3 => {
                let inode = word(16);
                [words(&[0; 4]), attributes(inode, if inode == 1 { 0o40_755 } else { 0o100_644 })].concat()
            }
            // FUSE_OPEN: struct fuse_open_out
            14 => words(&[1, 0, 0, 0]),
            // FUSE_INIT: struct fuse_init_out, version 7.31
            26 => [words(&[7, 31, 65536, 0, 9 << 16 | 12, 65536, 1]), words(&[0; 9])].concat(),
            _ => Vec::new(),
        };
        // struct fuse_out_header; ENOSYS for all the rest
        let error = if answer.is_empty() { 38_i32.wrapping_neg() as u32 } else { 0 };
        let header = words(&[16 + answer.len() as u32, error, word(8), word(12)]);
        // Who asked may have gone.
        let _ = channel.write(&[header, answer].concat());
    }
}

#[test]
fn a_search_for_who_has_a_component_does_not_wait_for_other_files() {
    if !can_run("a_search_for_who_has_a_component_does_not_wait_for_other_files", &[Need::Fuse, Need::Loop]) {
        return;
    }
    let dir = dir();
    let server = Server::mount(&dir.path().join("mnt"));
    let file = File::options().read(true).write(true).open(server.at.join("file")).expect("it answers");
    // What the search looks for in particular, on the wrong file.
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 101,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("a lock");
    let path = image(dir.path(), "disk.img", 1 << 20);
    let device = Loop::attach(&image(dir.path(), "other.img", 1 << 20), &[]);
    let served = [open(&path, &RW).expect("nobody is there"), open(&device.node, &RW).expect("nobody is there")];
    server.die();
    let (sender, receiver) = channel();
    let node = device.node.clone();
    let search = std::thread::spawn(move || {
        for path in [path, node] {
            let _ = sender.send(open(&path, &RW).expect_err("it is served").to_string());
        }
    });
    // However long the machine takes; a server that is dead does not answer in a minute either.
    let found: Vec<_> = (0..2).map(|_| receiver.recv_timeout(Duration::from_secs(60))).collect();
    drop((served, server));
    search.join().expect("it ends when the server is unmounted at the latest");
    let [file, device] = &found[..] else { panic!("two were searched for: {found:?}") };
    assert!(file.as_ref().is_ok_and(|told| told.contains("has it open for writing")), "{file:?}");
    assert!(device.as_ref().is_ok_and(|told| told.contains("the kernel has it claimed")), "{device:?}");
}
