#!/usr/bin/env bash
# Kills the back end under load and starts it again, round after round: what was acknowledged must be there, every
# request must end once, none may hang, and no byte outside of the segments may change (tests/src/crash).
# Usage: ci/crash.sh [ROUNDS] [ARGUMENT...]   by a front end of the tests (default: 200 rounds, 3 minutes)
#        ci/crash.sh --vm [ROUNDS]            by QEMU, with fio --verify in the guest (default: 10 rounds, 8 minutes)
# Arguments: --seed=N          seed of the first round; each further one has the next number
#            --mode=MODE       tracked, in-order (without in-flight tracking), or any (default: as the seed says)
#            --keep-going      goes on after a round that failed
# A round that fails prints its seed and the command that repeats it. The moment in which the back end is killed is
# counted in completed requests, but where it then is with the others is up to the machine: repeat it several times.
# VHOST_USER_DM names another back end to kill. `cargo test` has a short form: tests/tests/crash.rs, tests/tests/boot.rs.
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

vm=false
case ${1:-} in
-h | --help) sed -n '2,11s/^# //p' "$0"; exit 0 ;;
--vm) vm=true; shift ;;
esac
rounds=200
if $vm; then rounds=10; fi
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    rounds=$1
    shift
fi

target=${CARGO_TARGET_DIR:-$TOP/target}
if [ -z "${VHOST_USER_DM:-}" ]; then
    cargo build --manifest-path "$TOP/Cargo.toml" --quiet --release -p vhost-user-dm
    export VHOST_USER_DM=$target/release/vhost-user-dm
fi
if $vm; then
    [ $# = 0 ] || die "unknown argument '$1' (try --help)"
    cd "$TOP"
    DM_CRASH_ROUNDS=$rounds exec cargo test --quiet -p dm-tests --test boot -- --nocapture crash::
fi
# Not the release profile, in which a panic aborts: a round that fails has something to say, and others may follow.
cargo build --manifest-path "$TOP/Cargo.toml" --quiet -p dm-tests --bin dm-crash
exec "$target/debug/dm-crash" "$rounds" "$@"
