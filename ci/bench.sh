#!/usr/bin/env bash
# Measures vhost-user-dm against qemu-storage-daemon on this machine, and long tables against short ones.
# Arguments go to `dm-bench compare`; for instance: ci/bench.sh --row 'tmpfs randread' --rounds 15
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v qemu-storage-daemon >/dev/null; then
    echo "ci/bench.sh: qemu-storage-daemon is missing: run ci/setup.sh" >&2
    exit 1
fi
if [ "$(nproc)" -lt 2 ]; then
    echo "ci/bench.sh: needs two CPUs, one for the back end and one for the client" >&2
    exit 1
fi

target=${CARGO_TARGET_DIR:-target}
cargo build --release -p vhost-user-dm --bin vhost-user-dm
cargo build --release -p dm-tests --bin dm-bench

# The O_DIRECT rows need a real disk; the build directory is on one as a rule.
mkdir -p .cache
exec "$target/release/dm-bench" compare --ours "$target/release/vhost-user-dm" --disk .cache "$@"
