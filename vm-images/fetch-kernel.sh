#!/usr/bin/env bash
# Downloads the guest's kernel packages into .cache/kernel/ (nothing is installed, no root) and prints their paths.
# Usage: vm-images/fetch-kernel.sh [--cached]     --cached never downloads: it fails when something is not there
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/../ci/common.sh"

cached_only=false
case ${1:-} in
'') ;;
--cached) cached_only=true ;;
*) die "unknown argument '$1'" ;;
esac
have apt-cache || die "apt is needed to fetch the guest's kernel"

# The package that a metapackage stands for, by its dependency on a versioned linux-image.
stands_for() {
    apt-cache depends --important "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}
image=$(stands_for linux-image-cloud-amd64)
# Ubuntu has no cloud flavour in one package: its modules have a package of their own.
[ -n "$image" ] || image=$(stands_for linux-image-virtual)

mkdir -p "$CACHE/kernel"
cd "$CACHE/kernel"
exec 9>.lock
flock 9

# Without package lists (a machine that is offline) what was fetched last is still good.
if [ -z "$image" ]; then
    [ -s current ] || die "apt knows no linux-image-cloud-amd64 (nor linux-image-virtual): run 'apt-get update'"
    sed "s|^|$PWD/|" current
    exit 0
fi

packages=("$image")
modules=linux-modules-${image#linux-image-}
[ -z "$(apt-cache show "$modules" 2>/dev/null)" ] || packages+=("$modules")

files=()
for package in "${packages[@]}"; do
    record=$(apt-cache show --no-all-versions "$package")
    version=$(sed -n 's/^Version: //p' <<<"$record")
    sum=$(sed -n 's/^SHA256: //p' <<<"$record")
    file=${package}_${version//:/%3a}_amd64.deb
    if ! sha256sum --check --status <<<"$sum  $file" 2>/dev/null; then
        $cached_only && exit 1
        apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$package=$version" >&2
        sha256sum --check --quiet <<<"$sum  $file" >&2 || die "$file is not what the archive's index says"
    fi
    files+=("$file")
done
printf '%s\n' "${files[@]}" >current
sed "s|^|$PWD/|" current
