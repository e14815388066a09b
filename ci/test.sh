#!/usr/bin/env bash
# Runs every check and every test, goes on after a failure, and counts: the last line is "N passed, N failed,
# N skipped". Succeeds only if nothing failed.
# Usage: ci/test.sh [--no-setup]     --no-setup takes for granted that ci/setup.sh has run
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

setup=true
case ${1:-} in
'') ;;
--no-setup) setup=false ;;
-h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
*) die "unknown argument '$1' (try --help)" ;;
esac

passed=0 failures=() skips=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cd "$TOP"

# skipped NAME REASON. What runs in CI may not stop to run there unnoticed.
skipped() {
    if [ "${CI:-}" = true ] && ! grep -q "^$1: " tests/allowed-skips.txt; then
        failures+=("$1: cannot run in CI ($2), and tests/allowed-skips.txt does not list it")
    else
        skips+=("$1: $2")
    fi
}

# check NAME COMMAND...: one check, which passes, fails, or is skipped (status 77, its last line says why).
check() {
    local name=$1 status=0 began=$SECONDS
    shift
    heading "$name"
    "$@" 2>&1 | tee "$log" || status=$?
    case $status in
    0) passed=$((passed + 1)) ;;
    77) skipped "$name" "$(sed -n '$s/^SKIPPED: //p' "$log")" ;;
    *) failures+=("$name") ;;
    esac
    say "($((SECONDS - began)) s)"
}

# The tests say themselves how many they are: one line for each of cargo's test programs.
cargo_tests() {
    local status=0 began=$SECONDS name count reason
    heading "cargo test"
    cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
    count=$(sed -n 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$log" | paste -sd + | sed 's/^$/0/')
    passed=$((passed + count))
    while read -r name; do failures+=("$name"); done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
    while read -r name; do skips+=("$name: ignored"); done < <(sed -n 's/^test \(.*\) \.\.\. ignored.*$/\1/p' "$log")
    # A test that finds it cannot run here says so, and passes: it counts as skipped.
    while IFS= read -r reason; do
        skips+=("$reason")
        passed=$((passed - 1))
    done < <(sed -n 's/^.*SKIPPED \([^ ]*: .*\)$/\1/p' "$log")
    # A program that does not compile, or dies, has no line.
    if [ "$status" != 0 ] && ! grep -q '^test .* \.\.\. FAILED$' "$log"; then failures+=("cargo test (status $status)"); fi
    if [ "$count" = 0 ]; then failures+=("cargo test (it ran none)"); fi
    say "($((SECONDS - began)) s)"
}

shell_scripts() {
    shellcheck --external-sources --severity=warning ci/*.sh vm-images/*.sh vm-images/init-* vm-images/rc .ci/run
    shellcheck --shell=dash --severity=warning tests/boot/guest/*
}

if $setup; then
    ci/setup.sh
fi
check "format" cargo fmt --all --check
check "clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
check "documentation" env RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
check "licences" ci/licences.sh
check "shell scripts" shell_scripts
check "guest images" vm-images/disk.sh
check "build" cargo build --locked --workspace
cargo_tests
check "demo" ci/demo.sh --no-setup
check "demo with partitions" ci/demo.sh --no-setup --partitions
check "demo with UEFI" ci/demo.sh --no-setup --uefi

heading "Summary ($SECONDS s)"
[ ${#skips[@]} = 0 ] || printf '   skipped %s\n' "${skips[@]}"
[ ${#failures[@]} = 0 ] || printf '   FAILED %s\n' "${failures[@]}"
printf '%d passed, %d failed, %d skipped\n' "$passed" ${#failures[@]} ${#skips[@]}
[ ${#failures[@]} = 0 ]
