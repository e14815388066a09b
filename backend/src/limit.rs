//! A limit on log lines that a guest, a front end or a failing device can cause.

use std::time::{Duration, Instant};

/// Lines at once.
const BURST: u32 = 8;
/// After a burst, one line in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets a burst of lines through, then one in five seconds, and counts what it keeps back.
#[derive(Debug)]
pub struct Limiter {
    left: u32,
    since: Option<Instant>,
    kept_back: u64,
}

impl Default for Limiter {
    fn default() -> Self {
        Limiter { left: BURST, since: None, kept_back: 0 }
    }
}

impl Limiter {
    /// Whether a line may be written now; the number is how many were kept back before it.
    pub fn pass(&mut self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_secs() / INTERVAL.as_secs();
        if earned > 0 {
            self.left = u32::try_from(earned).unwrap_or(BURST).saturating_add(self.left).min(BURST);
            self.since = Some(now);
        }
        if self.left == 0 {
            self.kept_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// Writes a log line if `$limiter` lets it pass, and says how many like it were left out before.
#[macro_export]
macro_rules! limited {
    ($limiter:expr, $level:ident, $($text:tt)+) => {
        match $limiter.pass() {
            Some(0) => log::$level!($($text)+),
            Some(n) => log::$level!("{} ({n} similar messages left out)", format_args!($($text)+)),
            None => {}
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_burst_and_a_count() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let passed = (0..100_000).filter(|_| limiter.pass_at(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limiter.pass_at(start + INTERVAL), Some(100_000 - u64::from(BURST)));
        assert_eq!(limiter.pass_at(start + INTERVAL), None);
        // After a long silence the burst is there again, and no more than that.
        let later = start + INTERVAL * 1000;
        assert_eq!((0..100).filter(|_| limiter.pass_at(later).is_some()).count(), BURST as usize);
    }
}
