//! The transcript of a real kernel (tests/data/oracle, part 5): the same steps give the same lines, and the same log.

use dm_tests::blk::{Segment, kind};

use crate::ground::{Ground, SECTOR};

const TRANSCRIPT: &str = include_str!("../../data/oracle/out612-5.txt");

/// What was said of log-writes.
fn transcript() -> &'static str {
    let (_, after) = TRANSCRIPT.split_once("##### LOGW\n").expect("its section");
    after.split_once("\n#####").expect("its end").0
}

/// What the kernel's program printed for a command, in turn.
fn answers(command: &str) -> Vec<&'static str> {
    let parts = transcript().split("\n$ ").filter_map(|part| part.strip_prefix(command)?.strip_prefix('\n'));
    parts.map(|part| part.split_once("rc=").map_or(part, |(said, _)| said)).collect()
}

/// Sectors of the kernel's log that were dumped in full, as far as they were.
fn dumped() -> Vec<(usize, Vec<u8>)> {
    let mut sectors: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut again = false;
    for line in transcript().lines() {
        if let Some(number) = line.strip_prefix("sector ").and_then(|rest| rest.strip_suffix(':')) {
            sectors.push((number.parse().unwrap(), Vec::new()));
        } else if line == "*" {
            again = true;
        } else if let (Some((offset, _)), Some((_, bytes))) = (line.split_once("  "), sectors.last_mut())
            && let Ok(offset) = usize::from_str_radix(offset, 16)
        {
            let row = bytes.len().saturating_sub(16);
            while again && bytes.len() < offset {
                bytes.push(bytes[row + (bytes.len() - row) % 16]);
            }
            again = false;
            let hex = line[10..].split('|').next().unwrap_or_default().split_whitespace();
            bytes.extend(hex.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        } else if let (Ok(end), Some((_, bytes))) = (usize::from_str_radix(line, 16), sectors.last_mut())
            && line.len() == 8
        {
            let row = bytes.len().saturating_sub(16);
            while bytes.len() < end {
                bytes.push(bytes[row + (bytes.len() - row) % 16]);
            }
            again = false;
        }
    }
    sectors
}

/// The kernel's log as a whole: what was dumped, and by the first byte of each of its sectors that are of one byte.
fn first_bytes() -> Vec<u8> {
    let line = transcript().lines().find_map(|line| line.strip_prefix("read 0+60: 30720 bytes: ")).expect("the log");
    line.split(' ').map(|byte| u8::from_str_radix(byte.trim_end_matches('*'), 16).unwrap()).collect()
}

#[test]
fn the_same_steps_give_the_kernels_lines_and_its_log() {
    let ground = Ground::over(vec![0x11; 64 * SECTOR], 60);
    let (served, mut vmm) = ground.serve();
    let mut states = answers("dmsetup status x").into_iter();
    let mut state = || {
        let kernel = states.next().expect("another status").trim_end();
        assert_eq!(served.must(&["status", "disk"]).trim_end(), kernel);
    };
    vmm.write(0, 0, &[0xa1; 8 * SECTOR]).unwrap();
    vmm.write(1, 8, &[0xa2; SECTOR]).unwrap();
    state();
    vmm.flush(0).unwrap();
    state();
    ground.message(&served, &["mark", "hello"]);
    state();
    vmm.ranges(0, kind::DISCARD, &[Segment { sector: 16, sectors: 8, flags: 0 }]).unwrap();
    vmm.write(0, 32, &[0xb1; 8 * SECTOR]).unwrap();
    vmm.ranges(0, kind::WRITE_ZEROES, &[Segment { sector: 40, sectors: 8, flags: 0 }]).unwrap();
    state();
    for words in ["mark two words", "foo bar"] {
        let wanted = answers(&format!("dmsetup message x 0 {words}"));
        // The kernel's line stands behind the exit code.
        let line = transcript().split(&format!("message x 0 {words}\n")).nth(1).expect("it was tried");
        let line = line.lines().find_map(|line| line.strip_prefix("K: device-mapper: ")).expect("the kernel's line");
        assert_eq!(wanted.len(), 1);
        let args: Vec<&str> = ["message", "disk", "0"].into_iter().chain(words.split(' ')).collect();
        let refused = served.must_not(&args);
        assert!(refused.contains(line), "{refused:?} without {line:?}");
    }
    served.must(&["suspend", "disk"]);
    served.must(&["resume", "disk"]);
    drop(vmm);
    served.stop();
    let ours = ground.log_bytes();
    let dumped = dumped();
    assert_eq!(dumped.len(), 9, "sectors 0 to 3 and 10 to 14");
    for (sector, bytes) in &dumped {
        let own = &ours[sector * SECTOR..(sector + 1) * SECTOR];
        assert_eq!(own[..bytes.len()], **bytes, "sector {sector} of the log");
    }
    let firsts: Vec<u8> = ours.chunks(SECTOR).map(|sector| sector[0]).collect();
    assert_eq!(firsts, first_bytes());
}
