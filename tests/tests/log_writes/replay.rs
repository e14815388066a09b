//! The command, on logs that are there.

use std::fs;

use dm_tests::blk::{Segment, kind};

use crate::ground::{Ground, SECTOR};

/// Four writes in two flushes, a mark behind each.
fn logged() -> Ground {
    let ground = Ground::new(64, 256);
    let (served, mut vmm) = ground.serve();
    for (n, mark) in [(1, "one"), (2, "two")] {
        vmm.write(0, 0, &[n; 2 * SECTOR]).unwrap();
        vmm.write(0, u64::from(n) * 8, &[n; SECTOR]).unwrap();
        vmm.flush(0).unwrap();
        ground.message(&served, &["mark", mark]);
    }
    vmm.ranges(0, kind::DISCARD, &[Segment { sector: 0, sectors: 1, flags: 0 }]).unwrap();
    vmm.flush(0).unwrap();
    drop(vmm);
    served.stop();
    ground
}

/// The disk with sectors of one byte each over what it was.
fn with(ground: &Ground, sectors: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = fs::read(ground.fresh()).unwrap();
    for (sector, byte) in sectors {
        bytes[sector * SECTOR..(sector + 1) * SECTOR].fill(*byte);
    }
    bytes
}

#[test]
fn to_any_point_and_on_from_there() {
    let ground = logged();
    let one = with(&ground, &[(0, 1), (1, 1), (8, 1)]);
    let two = with(&ground, &[(0, 2), (1, 2), (8, 1), (16, 2)]);
    let end = with(&ground, &[(0, 0), (1, 2), (8, 1), (16, 2)]);
    assert_eq!(ground.disk(), end, "what the disk is");
    assert_eq!(ground.replayed(&["--until=entry:0"]), with(&ground, &[(0, 1), (1, 1)]));
    for point in ["flush:1", "mark:one", "entry:2", "entry:3"] {
        assert_eq!(ground.replayed(&["--until", point]), one, "{point}");
    }
    for point in ["flush:2", "mark:two", "entry:7"] {
        assert_eq!(ground.replayed(&["--until", point]), two, "{point}");
    }
    for args in [&[][..], &["--until=flush:3"], &["--until=mark:dm-log-writes-end"]] {
        assert_eq!(ground.replayed(args), end, "{args:?}");
    }
    assert_eq!(ground.replayed(&["--no-discard"]), two);
    let to = ground.fresh();
    for step in [&["--until=mark:one"][..], &["--from=flush:1", "--until=flush:2"], &["--from=entry:7"]] {
        let args: Vec<&str> = ["--to", &to].into_iter().chain(step.iter().copied()).collect();
        assert_eq!(ground.replay(&args).0, 0, "{args:?}");
    }
    assert_eq!(fs::read(&to).unwrap(), end);
    let list = "\
0@2: sector 0, size 1024, flags 0x0(NONE)
1@5: sector 8, size 512, flags 0x0(NONE)
2@7: sector 0, size 0, flags 0x1(FLUSH)
3@8: sector 0, size 0, flags 0x8(MARK) one
";
    assert_eq!(ground.replay(&["--list", "--until=mark:one"]), (0, list.into(), String::new()));
}

#[test]
fn refusals_say_what_there_is_and_write_nothing() {
    let ground = logged();
    let to = ground.fresh();
    let before = fs::read(&to).unwrap();
    let small = ground.dir().join("small.img");
    fs::write(&small, vec![9; 8 * SECTOR]).unwrap();
    let small = small.display().to_string();
    let log = ground.log();
    for (args, wanted) in [
        (
            &["--to", &to, "--until=mark:three"][..],
            "mark:three: there is none in this log, which has 11 entries, 3 flushes and the marks one, two, dm-log-writes-end",
        ),
        (&["--to", &to, "--until=flush:4"], "flush:4: there is none"),
        (&["--to", &to, "--until=entry:11"], "entry:11: there is none"),
        (&["--to", &to, "--from=mark:two", "--until=mark:one"], "mark:one is not behind mark:two in this log"),
        (&["--to", &to, "--until=flush:0"], "flushes are counted from 1"),
        (&["--to", &to, "--until=end"], "mark:NAME, flush:N (from 1) or entry:N (from 0)"),
        (&["--to", &small], "entry 1, at byte 2048 of the log: it is about bytes 4096..4608, and the image has 4096"),
        (&["--to", &small], "truncate -s 4608"),
        (&["--to", &log], "it is the log itself"),
        (&["--to", "/nonexistent/image"], "/nonexistent/image"),
    ] {
        let (code, out, err) = ground.replay(args);
        assert!(code != 0 && out.is_empty() && err.contains(wanted), "{args:?}: {out}{err}");
    }
    assert_eq!(fs::read(&to).unwrap(), before);
    assert_eq!(fs::read(&small).unwrap(), [9; 8 * SECTOR]);
    // What is being served is nobody's to write.
    let served = ground.start(&ground.table());
    let (code, _, err) = ground.replay(&["--to", &ground.image()]);
    assert!(code != 0 && err.contains("disk.img"), "{err}");
    served.stop();
}

#[test]
fn a_log_that_is_none_is_told_where() {
    let ground = logged();
    let good = ground.log_bytes();
    let mut tried = 0;
    let mut broken = |change: &dyn Fn(&mut Vec<u8>), wanted: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        ground.write_log(&bytes);
        for args in [&[][..], &["--list"], &["--to", &ground.fresh()]] {
            let (code, _, err) = ground.replay(args);
            assert!(code == 1 && err.contains(wanted), "{args:?}: {err:?} without {wanted:?}");
        }
        tried += 1;
    };
    broken(&|bytes| bytes[0] ^= 1, "no log of log-writes: its magic number is 0x6a736677736873");
    broken(&|bytes| bytes[8] = 2, "its version is 2, not 1");
    broken(&|bytes| bytes[25] = 3, "its blocks have 768 bytes, not a power of two from 512 to 65536");
    broken(&|bytes| bytes.truncate(20), "it has 20 bytes");
    broken(&|bytes| bytes[16] = 200, "entry 11, at byte");
    broken(
        &|bytes| bytes.truncate(3 * SECTOR),
        "entry 0, at byte 512 of the log: its 1024 bytes of data go 512 bytes behind the log's end",
    );
    broken(
        &|bytes| bytes[SECTOR + 15] = 0x80,
        "entry 0, at byte 512 of the log: it is about 9223372036854775810 blocks from 0 on, which no device has",
    );
    broken(&|bytes| bytes[SECTOR + 16] = 32, "entry 0, at byte 512 of the log: its flags are 0x20");
    broken(&|bytes| bytes[SECTOR + 8] = 0, "entry 0, at byte 512 of the log: it is a write of nothing");
    broken(&|bytes| bytes[SECTOR + 32] = 1, "its block holds more than an entry does");
    broken(
        &|bytes| bytes[7 * SECTOR + 25] = 2,
        "entry 3, at byte 3584 of the log: its text has 515 bytes, and its block room for 480",
    );
    assert_eq!(tried, 11);
}

#[test]
fn commands_run_at_each_flush_and_stop_it() {
    let ground = logged();
    let to = ground.fresh();
    let said = ground.dir().join("said");
    let scratch = ground.dir().join("scratch");
    let note = format!("echo $ENTRY $FLUSH $MARK $(basename $IMAGE) $(wc -c <$IMAGE) >>{}", said.display());
    let (code, out, err) = ground.replay(&["--to", &to, "--each-flush", &note]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let size = 64 * SECTOR;
    let lines = format!("2 1 replayed.img {size}\n6 2 one replayed.img {size}\n9 3 two replayed.img {size}\n");
    assert_eq!(fs::read_to_string(&said).unwrap(), lines);
    // It stops where one fails; what the command saw is what was durable then.
    let to = ground.fresh();
    let stop = "test $FLUSH -lt 2";
    let (code, _, err) = ground.replay(&["--to", &to, "--each-flush", stop]);
    let wanted = format!("entry 6 (flush 2, mark \"one\"): {stop:?} failed (exit status: 1)");
    assert!(code == 1 && err.contains(&wanted), "{err}");
    assert_eq!(fs::read(&to).unwrap(), with(&ground, &[(0, 2), (1, 2), (8, 1), (16, 2)]));
    // A command may do what it wants with a copy.
    let to = ground.fresh();
    let spoil = format!("tr '\\0-\\377' x <$IMAGE >{0}.new && mv {0}.new $IMAGE", scratch.display());
    let of_copy = ["--to", &to, "--each-flush", &spoil, "--scratch", scratch.to_str().unwrap()];
    let (code, _, err) = ground.replay(&of_copy);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read(&to).unwrap(), ground.disk());
    assert!(!scratch.exists());
    // The copy of a command that fails is left, and nothing is written over.
    let fails = ["--to", &ground.fresh(), "--each-flush", "false", "--scratch", scratch.to_str().unwrap()];
    assert!(ground.replay(&fails).2.contains("scratch"));
    assert_eq!(fs::read(&scratch).unwrap(), with(&ground, &[(0, 1), (1, 1), (8, 1)]));
    let again = ground.replay(&fails).2;
    assert!(again.contains(&format!("{}: File exists", scratch.display())), "{again}");
    fs::remove_file(&scratch).unwrap();
    // It is the command's to take away.
    let takes = ["--to", &ground.fresh(), "--each-flush", "rm \"$IMAGE\"", "--scratch", scratch.to_str().unwrap()];
    assert_eq!(ground.replay(&takes).0, 0);
    // One that is killed has failed.
    let (code, _, err) = ground.replay(&["--to", &ground.fresh(), "--each-flush", "kill -TERM $$"]);
    assert!(code == 1 && err.contains("failed (signal: 15 (SIGTERM))"), "{err}");
}

#[test]
fn a_torn_log_is_listed_and_replayed_up_to_its_fault() {
    let ground = logged();
    let whole = ground.log_bytes();
    let list = ground.replay(&["--list"]).1;
    let mut bytes = whole.clone();
    bytes[8 * SECTOR + 16] = 0xff;
    ground.write_log(&bytes);
    let fault = "entry 4, at byte 4096 of the log: ";
    let (code, out, err) = ground.replay(&["--list"]);
    assert!(code == 1 && err.contains(fault), "{err}");
    assert_eq!(out.lines().collect::<Vec<_>>(), list.lines().take(4).collect::<Vec<_>>());
    let to = ground.fresh();
    let (code, _, err) = ground.replay(&["--to", &to]);
    assert!(code == 1 && err.contains(fault), "{err}");
    assert_eq!(fs::read(&to).unwrap(), with(&ground, &[]), "nothing was written");
    assert_eq!(ground.replayed(&["--until=entry:2"]), with(&ground, &[(0, 1), (1, 1), (8, 1)]));
}

#[test]
fn what_cannot_be_a_log_is_refused_at_once() {
    let ground = Ground::new(64, 64);
    let pipe = ground.dir().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for path in [pipe, ground.dir().to_owned(), "/dev/null".into()] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let args = ["replay".to_owned(), path.display().to_string()];
            sender.send(dm_tests::daemon::run(args).unwrap()).unwrap();
        });
        // Whoever waits for a pipe's writer waits for ever.
        let (code, _, err) = receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer");
        assert!(code == 1 && err.contains("neither a file nor a block device"), "{err}");
    }
}
