#!/usr/bin/env bash
# Checks that every crate that is built into the programs or their tests may be used under a licence listed here.
# Reads what cargo knows, needs no network once the crates are there.
#
# There is no check for known vulnerabilities: its data base (RustSec's) is fetched from a host that machines which
# only reach package registries cannot ask, and a check against no data would pass always.
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

# All let their code be linked into a program under either of this project's licences.
allowed='0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 ISC MIT MIT-0 Unicode-3.0 Unlicense Zlib'

# may_use EXPRESSION: whether an SPDX expression holds with the allowed licences (1) and no other (0).
may_use() {
    local expression=$1 word formula=''
    # Crates from before SPDX expressions say MIT/Apache-2.0. An exception only permits more.
    expression=$(sed -e 's|/| OR |g' -e 's/ WITH [^ )]*//g' -e 's/[()]/ & /g' <<<"$expression")
    for word in $expression; do
        case $word in
        OR) formula+='||' ;;
        AND) formula+='&&' ;;
        '(' | ')') formula+=$word ;;
        *) case " $allowed " in *" $word "*) formula+=1 ;; *) formula+=0 ;; esac ;;
        esac
    done
    [[ $formula =~ ^[01\|\&\(\)]+$ ]] && ((formula))
}

crates=$(cd "$TOP" && cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu |
    jq --raw-output '.packages[] | "\(.name) \(.version)\t\(.license // "none given")"')
count=0 bad=0
while IFS=$'\t' read -r crate licence; do
    count=$((count + 1))
    may_use "$licence" && continue
    bad=$((bad + 1))
    printf '   %s: %s\n' "$crate" "$licence"
done <<<"$crates"
[ "$bad" = 0 ] || die "$bad of $count crates have no licence that ci/licences.sh allows"
say "$count crates, each under an allowed licence"
