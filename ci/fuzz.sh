#!/usr/bin/env bash
# Looks for inputs that break what must hold for every input (tests/src/fuzz). Needs no nightly toolchain.
# Usage: ci/fuzz.sh [TARGET|all] [SECONDS]     SECONDS is for each target (default 60)
#        ci/fuzz.sh --keep [TARGET|all]       takes what was found into tests/fuzz/corpus, where it reaches new code
# The working corpus is in .cache/fuzz, so that a hunt goes on where the last one ended.
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

FUZZ=$TOP/tests/fuzz
VERSION=0.13.2

keep=false
case ${1:-} in
-h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
--keep) keep=true; shift ;;
esac
known=$(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' "$FUZZ/Cargo.toml")
targets=${1:-all}
seconds=${2:-60}
[[ $seconds =~ ^[0-9]+$ ]] || die "SECONDS is '$seconds': expected a number"
if [ "$targets" = all ]; then
    targets=$known
else
    grep -qx -- "$targets" <<<"$known" || die "no target '$targets'; there are: ${known//$'\n'/ }"
fi

if ! have cargo-fuzz; then
    say "installing cargo-fuzz $VERSION from crates.io (cargo install)"
    cargo install cargo-fuzz --version "$VERSION" --locked
fi

cd "$TOP"
# Sanitizers are nightly's; the coverage that guides a fuzzer is not. An option of its own, as cargo-fuzz would
# otherwise build for a sanitizer.
fuzz() {
    local command=$1
    shift
    cargo fuzz "$command" --fuzz-dir tests/fuzz --sanitizer none "$@"
}

run() {
    local target=$1 work=$CACHE/fuzz/$1 found=$CACHE/fuzz/crashes/$1/ log
    mkdir -p "$found"
    log=$(mktemp)
    heading "fuzz $target ($seconds s)"
    if fuzz run "$target" "$work" "$FUZZ/corpus/$target" "$FUZZ/regressions/$target" -- \
        -artifact_prefix="$found" -max_total_time="$seconds" -max_len=1024 -timeout=10 -print_final_stats=1 \
        >"$log" 2>&1; then
        grep -E '^#[0-9]+\s+DONE|^stat::number_of_executed_units' "$log" | sed 's/^/   /'
        rm -f "$log"
        return 0
    fi
    # What the check said; the rest is the fuzzer's stack.
    grep -m 1 -A 6 'panicked at' "$log" || tail -n 40 "$log"
    local input
    # libFuzzer names the input that it wrote; without one the build failed.
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    rm -f "$log"
    [ -n "$input" ] || die "$target does not run"
    say "$target fails on $input; to see it again:"
    say "  cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none $target $input"
    say "to make it smaller:"
    say "  cargo fuzz tmin --fuzz-dir tests/fuzz --sanitizer none $target $input"
    say "once it is fixed, put it into tests/fuzz/regressions/$target: cargo test --test corpus replays it"
    return 1
}

keep() {
    local target=$1 log
    log=$(mktemp)
    heading "keep what is new of $target"
    # By the lines of code reached alone: how often a line was reached is of use to a hunt, but makes a corpus large.
    fuzz run "$target" "$FUZZ/corpus/$target" "$CACHE/fuzz/$target" -- \
        -merge=1 -use_counters=0 -max_len=1024 >"$log" 2>&1 || { tail -n 40 "$log"; die "$target does not run"; }
    rm -f "$log"
    say "$(find "$FUZZ/corpus/$target" -type f | wc -l) inputs"
}

status=0
for target in $targets; do
    mkdir -p "$CACHE/fuzz/$target" "$FUZZ/corpus/$target" "$FUZZ/regressions/$target"
    if $keep; then
        keep "$target"
    else
        run "$target" || status=1
    fi
done
exit "$status"
