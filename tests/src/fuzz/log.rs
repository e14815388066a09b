//! Any bytes as a log of log-writes.

use vhost_user_dm::log_writes::{Log, Replay, Until};

/// Bytes of an input for one block of the log; the rest of a block is zeroes. So a short input makes a log of many blocks.
const PIECE: usize = 40;
/// Bytes of a block of the log that is made.
const BLOCK: usize = 512;
/// Bytes of the image.
const IMAGE: usize = 16 << 10;

/// Reads `data` as a log, as it is and blown up, and replays it to each point of it.
///
/// # Panics
/// Where an entry is outside of the log, a write outside of the image, or the image is not what the format says.
pub fn log(data: &[u8]) {
    judge(&data.to_vec());
    let blown_up: Vec<u8> = data.chunks(PIECE).flat_map(|piece| [piece, &[0; BLOCK][piece.len()..]].concat()).collect();
    judge(&blown_up);
}

fn judge(bytes: &Vec<u8>) {
    let size = bytes.len() as u64;
    let log = match Log::new(bytes, size) {
        Ok(log) => log,
        Err(refusal) => return explained(&refusal.to_string()),
    };
    let block = u64::from(log.head.block);
    let (mut end, mut count, mut whole) = (block, 0, true);
    for entry in log.entries() {
        match entry {
            Ok(entry) => {
                assert_eq!((entry.number, entry.at), (count, end), "entries follow on each other");
                end = entry.end();
                assert!(entry.data() <= end && end <= size, "{entry:?} of {size} bytes");
                log.text(&entry).expect("a mark's text is in its block");
                count += 1;
            }
            Err(refusal) => {
                explained(&refusal.to_string());
                whole = false;
            }
        }
    }
    assert!(count * block < size.max(1), "each entry has a block");
    if whole {
        assert_eq!(count, log.head.entries);
    }
    replayed(&log, bytes, &Replay::default());
    for number in 0..count.min(4) {
        replayed(&log, bytes, &Replay { until: Some(Until::Entry(number)), ..Replay::default() });
        let from = Some(Until::Entry(number));
        replayed(&log, bytes, &Replay { from, no_discard: true, ..Replay::default() });
    }
}

/// Replays, and compares with what the format says.
fn replayed(log: &Log<'_>, bytes: &[u8], replay: &Replay) {
    let fresh: Vec<u8> = (0..IMAGE).map(|n| (n / 7) as u8).collect();
    let plan = match replay.plan(log, IMAGE as u64) {
        Ok(plan) => plan,
        Err(refusal) => return explained(&refusal.to_string()),
    };
    let mut image = fresh.clone();
    let mut behind = 0;
    let done = replay.run(log, &plan, &mut image, &mut |_, _, _| {
        behind += 1;
        Ok(())
    });
    done.expect("a plan can be carried out");
    assert_eq!(behind, plan.entries);
    let (first, last) = (plan.skip, plan.skip + plan.entries);
    assert_eq!(image, naive(bytes, fresh, (first, last), replay.no_discard), "{replay:?}");
}

/// The entries from `first` up to before `last`, laid over an image.
fn naive(bytes: &[u8], mut image: Vec<u8>, (first, last): (u64, u64), no_discard: bool) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let block = number(24) as u32 as usize;
    let mut at = block;
    for entry in 0..last {
        let (to, len, discards) =
            (number(at) as usize * block, number(at + 8) as usize * block, number(at + 16) & 4 != 0);
        at += block;
        match (entry >= first, discards) {
            (true, true) if !no_discard => image[to..to + len].fill(0),
            (true, false) if len > 0 => image[to..to + len].copy_from_slice(&bytes[at..at + len]),
            _ => {}
        }
        at += if discards { 0 } else { len };
    }
    image
}

/// A refusal that a terminal can show.
fn explained(refusal: &str) {
    assert!(!refusal.is_empty() && !refusal.chars().any(char::is_control), "{refusal:?}");
}
