//! How a component is found: by path, by number, and what is no component.

mod common;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use common::{Need, RO, RW, can_run, dir, image, open};
use vhost_user_dm::device::{Kind, OpenError, Registry};

fn refused(text: &str, number: Option<(u64, u64)>) -> OpenError {
    Registry::new().open(text, number, &RW).expect_err(text)
}

#[test]
fn a_missing_path_is_enoent() {
    let dir = dir();
    let path = dir.path().join("none.img");
    let error = open(&path, &RW).expect_err("there is no such file");
    assert_eq!(error.errno_name(), "ENOENT");
    assert_eq!(error.to_string(), format!("{}: No such file or directory (os error 2)", path.display()));
    symlink("nowhere", dir.path().join("dangling")).expect("a link");
    assert_eq!(open(&dir.path().join("dangling"), &RW).expect_err("leads nowhere").errno_name(), "ENOENT");
    symlink("ring", dir.path().join("ring")).expect("a link");
    assert_eq!(open(&dir.path().join("ring"), &RW).expect_err("a ring of links").errno_name(), "ELOOP");
    let file = image(dir.path(), "file", 512);
    assert_eq!(open(&file.join("below"), &RW).expect_err("a file is no directory").errno_name(), "ENOTDIR");
    assert_eq!(refused("", None).errno_name(), "ENOENT");
    assert_eq!(refused("a\0b", None).errno_name(), "ENOENT");
}

#[test]
fn what_is_no_storage_is_enotblk_and_is_never_opened() {
    let dir = dir();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    // Opening the FIFO for reading would wait for a writer that never comes.
    let cases =
        [(dir.path(), "directory"), (&fifo, "FIFO"), (&socket, "socket"), ("/dev/null".as_ref(), "character device")];
    for (path, what) in cases {
        for opts in [RW, RO] {
            let error = open(path, &opts).expect_err(what);
            assert_eq!(error.errno_name(), "ENOTBLK");
            assert_eq!(
                error.to_string(),
                format!("{}: is a {what}, not a block device or an image file", path.display())
            );
        }
    }
}

#[test]
fn tags_are_not_resolved_and_the_link_that_does_it_is_named() {
    let error = refused("PARTUUID=12ab-01", None);
    assert_eq!(error.errno_name(), "ENOENT");
    let help = error.help().expect("a tag has a link");
    assert!(help.contains("/dev/disk/by-partuuid/12ab-01"), "{help}");
    assert!(refused("LABEL=root", None).help().is_some_and(|help| help.contains("/dev/disk/by-label/root")));
}

#[test]
fn numbers_are_checked_as_the_kernel_does() {
    for number in [(4096, 0), (0, 1_048_576), (u64::MAX, u64::MAX)] {
        let text = format!("{}:{}", number.0, number.1);
        assert_eq!(refused(&text, Some(number)).errno_name(), "EOVERFLOW", "{text}");
    }
    let error = refused("4095:1048575", Some((4095, 1_048_575)));
    assert_eq!(error.errno_name(), "ENXIO");
    assert_eq!(error.to_string(), "4095:1048575: no block device has this number");
    // 1:3 is /dev/null among the character devices.
    assert_eq!(refused("1:3", Some((1, 3))).errno_name(), "ENXIO");
}

#[test]
fn a_file_is_found_relative_to_the_working_directory_and_through_links() {
    let dir = dir();
    let target = image(dir.path(), "disk.img", 4096);
    let link = dir.path().join("link");
    symlink(&target, &link).expect("a link");
    let component = open(&link, &RW).expect("a link to a file");
    assert_eq!(
        (component.kind, component.path.as_path(), component.name.as_str()),
        (Kind::File, link.as_path(), "link")
    );
    drop(component);
    // The crate's own directory is the working directory of its tests.
    let text = "Cargo.toml";
    let component = Registry::new().open(text, None, &RO).expect("a relative path");
    assert_eq!(component.path.as_os_str(), text);
}

/// What an unprivileged user would get. File permissions are checked for the thread's own file system user.
#[test]
fn missing_permission_is_eacces_and_says_whether_reading_would_do() {
    use std::os::unix::fs::PermissionsExt;
    if !can_run("missing_permission_is_eacces_and_says_whether_reading_would_do", &[Need::Root]) {
        return;
    }
    let dir = dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let readable = image(dir.path(), "readable.img", 4096);
    std::fs::set_permissions(&readable, PermissionsExt::from_mode(0o644)).expect("chmod");
    let closed = image(dir.path(), "closed.img", 4096);
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o600)).expect("chmod");
    let hidden = dir.path().join("hidden");
    std::fs::create_dir(&hidden).expect("a directory");
    let below = image(&hidden, "below.img", 4096);
    std::fs::set_permissions(&hidden, PermissionsExt::from_mode(0o700)).expect("chmod");

    let check = move || {
        // SAFETY: takes no pointers; glibc documents it as a property of the calling thread, and this thread
        // ends with the test.
        unsafe { libc::setfsuid(65534) };
        let error = open(&readable, &RW).expect_err("0644 of root");
        assert_eq!(error.errno_name(), "EACCES");
        assert_eq!(
            error.to_string(),
            format!("{}: cannot open for reading and writing: Permission denied (os error 13)", readable.display())
        );
        assert!(error.help().is_some_and(|help| help.contains("--read-only")));
        assert!(open(&readable, &RO).is_ok());
        for path in [&closed, &below] {
            for opts in [RW, RO] {
                let error = open(path, &opts).expect_err("nothing is allowed");
                assert_eq!(error.errno_name(), "EACCES");
                assert!(!error.help().unwrap_or_default().contains("--read-only"));
            }
        }
    };
    std::thread::spawn(check).join().expect("the checks hold");
}
