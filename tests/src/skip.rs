//! Tests that cannot run on this machine say so, and may not hide in CI.

use std::io::Write;

/// Names of tests that may be skipped in CI, each with the reason: `name: reason` a line.
const ALLOWED: &str = include_str!("../allowed-skips.txt");

/// Reports that test `name` does not run here, and why.
///
/// # Panics
///
/// Where `CI` is `true` and tests/allowed-skips.txt does not list `name`: a test that silently stops
/// running in CI is as good as deleted.
pub fn skip(name: &str, why: &str) {
    // Straight to the descriptor: the test harness swallows what passing tests print by macro.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {name}: {why}");
    let allowed = ALLOWED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .any(|(listed, reason)| listed.trim() == name && !reason.trim().is_empty());
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(allowed || !in_ci, "{name} cannot run in CI ({why}) and is not in tests/allowed-skips.txt");
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
