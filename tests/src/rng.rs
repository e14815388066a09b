//! Seeded randomness of the tests: the seed is printed when a test fails, and `DM_TEST_SEED` repeats it.

use fastrand::Rng;

/// Seeds to run: `DM_TEST_SEED` alone if set, else `count` fixed ones from `base` on. Fixed, so that the
/// suite does the same work each time and is never red by chance; a longer hunt sets the variables.
pub fn seeds(base: u64, count: u64) -> Vec<u64> {
    match env_number("DM_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (base..base + count).collect(),
    }
}

/// Number of operations for each seed: `DM_TEST_OPS` if set, else `default`.
pub fn operations(default: u64) -> u64 {
    env_number("DM_TEST_OPS").unwrap_or(default)
}

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a decimal number")))
}

/// Fills with random bytes.
pub fn fill(rng: &mut Rng, out: &mut [u8]) {
    rng.fill(out);
}

/// `len` random bytes.
pub fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    rng.fill(&mut out);
    out
}

/// Says on a failing test how to repeat it. Keep it alive for as long as the seed is in use.
#[derive(Debug)]
pub struct Repeat {
    /// The seed in use.
    pub seed: u64,
    /// What was under test, for instance the table.
    pub context: String,
}

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with DM_TEST_SEED={}\n{}", self.seed, self.context);
        }
    }
}
