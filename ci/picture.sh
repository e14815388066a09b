#!/usr/bin/env bash
# Records ci/top.svg and ci/top.txt, the terminal picture in README.md: starts vhost-user-dm over a few files, keeps it
# busy with the tests' own front end, and looks at it with `top` and `dmsetup status`.
# Usage: ci/picture.sh [FILE]   writes FILE.svg and FILE.txt (default: ci/top)
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

case ${1:-} in
-h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
-*) die "unknown argument '$1' (try --help)" ;;
esac

target=${CARGO_TARGET_DIR:-$TOP/target}
if [ -z "${VHOST_USER_DM:-}" ]; then
    cargo build --manifest-path "$TOP/Cargo.toml" --quiet --release -p vhost-user-dm
    export VHOST_USER_DM=$target/release/vhost-user-dm
fi
cargo build --manifest-path "$TOP/Cargo.toml" --quiet --release -p dm-tests --bin dm-picture
exec "$target/release/dm-picture" "${1:-$TOP/ci/top}"
