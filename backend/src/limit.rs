//! A limit on log lines that a guest, a front end or a failing device can cause.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines at once.
const BURST: u32 = 8;
/// After a burst, one line in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets a burst of lines through, then one in five seconds, and counts what it keeps back.
///
/// Whatever can be made anew by the one who causes the lines (a queue by a reset, a session by connecting) shares that of its
/// disk. It is asked only where something went wrong, so its lock is on nobody's way.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<State>);

#[derive(Debug)]
struct State {
    left: u32,
    since: Option<Instant>,
    kept_back: u64,
}

impl Default for State {
    fn default() -> Self {
        State { left: BURST, since: None, kept_back: 0 }
    }
}

impl Limiter {
    /// Whether a line may be written now; the number is how many were kept back before it.
    pub fn pass(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pass_at(Instant::now())
    }
}

impl State {
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

/// The limiters of a disk. Several, so that a guest's flood does not keep back what is said of front ends, nor one that comes
/// and goes all the time what is wrong with it.
#[derive(Debug, Default)]
pub struct Limiters {
    /// For what a guest or a component causes.
    pub requests: Limiter,
    /// For what a front end causes.
    pub control: Limiter,
    /// For front ends that come and go.
    pub visits: Limiter,
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
        let mut limiter = State::default();
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
