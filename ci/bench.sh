#!/usr/bin/env bash
# Measures vhost-user-dm on this machine and prints Markdown. Arguments go to `dm-bench compare` (--help lists them):
#   ci/bench.sh                                     the rows that have bars, against qemu-storage-daemon: 10 minutes
#   ci/bench.sh --rows all                          every row, what features cost, the process: an hour and a half
#   ci/bench.sh --rows costs,process                two sets of rows: bars, matrix, costs, process, restart
#   ci/bench.sh --rows restart                      the guest's pause while the back end is replaced: 2 minutes
#   ci/bench.sh --row 'in order'                    what in-flight tracking costs
#   ci/bench.sh --row 'tmpfs randread' --rounds 15  rows by a part of their name
#   ci/bench.sh --against OLD/vhost-user-dm         this build and another in turn
#   ci/bench.sh --save FILE; ci/bench.sh --against FILE
# It says at once how long it will take. Nothing else should run meanwhile.
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

if [ "$(nproc)" -lt 2 ]; then
    die "needs two CPUs, one for the back end and one for the client"
fi
case " $* " in
*' --against'*) ;;
*) have qemu-storage-daemon || die "qemu-storage-daemon is missing: run ci/setup.sh" ;;
esac

target=${CARGO_TARGET_DIR:-$TOP/target}
# Not from $TOP: relative paths among the arguments are the caller's.
cargo build --manifest-path "$TOP/Cargo.toml" --quiet --release -p vhost-user-dm --bin vhost-user-dm -p dm-tests --bin dm-bench

note=()
if commit=$(git -C "$TOP" log -1 --format='%h of %cs' 2>/dev/null); then
    git -C "$TOP" diff --quiet HEAD -- backend table || commit+=", with changes"
    note=(--note "commit $commit")
fi

# The O_DIRECT rows need a real disk; the build directory is on one as a rule. A run that is interrupted leaves its
# files to this script.
mkdir -p "$CACHE"
disk=$(mktemp -d "$CACHE/bench-XXXXXX")
memory=$(mktemp -d /dev/shm/bench-XXXXXX)
trap 'rm -rf "$disk" "$memory"' EXIT
"$target/release/dm-bench" compare --ours "$target/release/vhost-user-dm" --disk "$disk" --memory "$memory" \
    "${note[@]}" "$@"
