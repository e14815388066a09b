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

/// Whether guest memory can be pinned here (`--register-memory`): the kernel can, and this process may pin 2 GiB.
pub fn can_pin_memory() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // 6.12 to 6.15 put data in the wrong place in some of their releases.
    let able = version >= (5, 19) && !((6, 12)..(6, 16)).contains(&version);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let capabilities = read("/proc/self/status");
    let capabilities = capabilities.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    let lock = u64::from_str_radix(capabilities.trim(), 16).is_ok_and(|set| set >> 14 & 1 == 1);
    // Capabilities in a user namespace of its own do not count.
    let whole = read("/proc/self/uid_map").split_whitespace().eq(["0", "0", "4294967295"]);
    able && (limit.is_none_or(|limit| limit >= 2 << 30) || lock && whole)
}
