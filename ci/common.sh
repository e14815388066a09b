# shellcheck shell=bash
# Sourced by every script of ci/ and vm-images/: where things are, and how messages look.

# A user's CDPATH would make `cd` print, and a user's locale would change what tools print and how they sort.
unset CDPATH
export LC_ALL=C
# sfdisk, mke2fs and their like are in sbin, which an ordinary user's PATH lacks on Debian.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # for the scripts that source this file
CACHE=$TOP/.cache

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\e[1m' RED=$'\e[31m' RESET=$'\e[0m'
else
    BOLD='' RED='' RESET=''
fi

heading() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$RESET"; }
say() { printf '   %s\n' "$*"; }
die() {
    printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$RESET" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
