#!/usr/bin/env bash
# Installs what the demo and the tests need and this machine lacks. Says first what and why.
# Usage: ci/setup.sh [--list]     --list only says what is missing
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

only_list=false
case ${1:-} in
'') ;;
--list) only_list=true ;;
-h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
*) die "unknown argument '$1' (try --help)" ;;
esac

# package | why
wanted='gcc|links the Rust programs
libc6-dev|the C library that they are linked with
qemu-system-x86|the virtual machine that boots the assembled disk (brings SeaBIOS)
ovmf|UEFI firmware, for the UEFI boot
grub-common|makes the boot loader image
grub-pc-bin|the boot loader, for SeaBIOS
grub-efi-amd64-bin|the boot loader, for UEFI
fdisk|sfdisk writes the partition-table pieces, and reads back those of assemble
gdisk|sgdisk reads them back too, in the guest as well
dosfstools|mkfs.fat makes the boot partition
mtools|mcopy fills the boot partition without root
e2fsprogs|mke2fs makes the root partition without root; e2fsck checks it afterwards
xfsprogs|mkfs.xfs makes what tests recognise
btrfs-progs|mkfs.btrfs, the same
ntfs-3g|mkfs.ntfs, and ntfscp for the file of a hibernated Windows
exfatprogs|mkfs.exfat, the same
dmsetup|has a guest'\''s kernel do what ours is compared with
lvm2|makes volume groups in files, without the kernel, for tests to read
util-linux|lsblk and blkdiscard in the guest, losetup and partx on the host
busybox-static|most of the guest'\''s user space
kmod|loads the guest'\''s kernel modules
cpio|packs the guest'\''s initramfs
xz-utils|unpacks the guest'\''s kernel modules
fio|verified random I/O in the guest
jq|reads cargo'\''s metadata for the licence check
shellcheck|checks these scripts'

# What is called; its own package differs between releases, so it is looked up by its name.
storage_daemon_why='qemu-storage-daemon, which the benchmark compares with'

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -vx '(none)' || true; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif ! have sudo; then
        die "must be root to run '$*', and sudo is not there: run it as root, then start this script again"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -qq "$@" </dev/null
}

require_rust() {
    have cargo && return
    die "no Rust toolchain: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$TOP/Cargo.toml") or later (https://rustup.rs), then start this script again"
}

require_debian() {
    if have apt-get && have dpkg-query; then
        [ "$(dpkg --print-architecture)" = amd64 ] && return
        die "the guests are amd64 machines with amd64 programs of this one; this is $(dpkg --print-architecture)"
    fi
    printf 'This machine has no apt-get. The demo and the tests need what these Debian packages hold:\n' >&2
    printf '%s\n' "$wanted" | sed 's/^\([^|]*\)|/  \1: /' >&2
    printf '  qemu-system-common or qemu-utils: %s\n' "$storage_daemon_why" >&2
    printf '  %s, unpacked (not installed): the guest'\''s kernel\n' linux-image-cloud-amd64 >&2
    exit 1
}

list_missing() {
    local package why
    missing=()
    while IFS='|' read -r package why; do
        installed "$package" && continue
        missing+=("$package")
        reasons+=("$package: $why")
    done <<<"$wanted"
}

# Debian moved qemu-storage-daemon from qemu-system-common to qemu-utils. Where qemu-utils is of another release
# than the qemu that will be installed (a backport, say), both hold the file, and dpkg stops half-way.
align_qemu_utils() {
    local have_version want_version
    installed qemu-utils || return 0
    installed qemu-system-common && return 0
    have_version=$(dpkg-query -W -f '${Version}' qemu-utils)
    want_version=$(candidate qemu-system-common)
    [ "$have_version" = "$want_version" ] && return 0
    say "qemu-utils $have_version clashes with qemu-system-common $want_version: changing it to $want_version"
    apt_get install --no-install-recommends --allow-downgrades "qemu-utils=$want_version" >/dev/null
}

require_rust
require_debian
missing=() reasons=()
list_missing
# On a release where it comes by itself (a dependency of qemu-system-x86) it is there already after the first round.
storage_daemon_missing() { ! have qemu-storage-daemon; }
kernel_missing() { ! "$TOP/vm-images/fetch-kernel.sh" --cached >/dev/null 2>&1; }

heading "Packages"
if [ ${#missing[@]} = 0 ] && ! storage_daemon_missing && ! kernel_missing; then
    say "everything is there: nothing to install"
    exit 0
fi
[ ${#reasons[@]} = 0 ] || printf '   will install %s\n' "${reasons[@]}"
if storage_daemon_missing; then
    say "will install qemu-utils, unless qemu-system-x86 brings it: $storage_daemon_why"
fi
if kernel_missing; then
    say "will fetch the kernel package that linux-image-cloud-amd64 (Ubuntu: linux-image-virtual) stands for"
    say "  into .cache/ (26 MB and more): the guest's kernel; it is unpacked there, never installed"
fi
$only_list && exit 0

heading "Installing"
apt_get update
if [ ${#missing[@]} != 0 ]; then
    align_qemu_utils
    apt_get install --no-install-recommends "${missing[@]}" >/dev/null
fi
if storage_daemon_missing; then
    apt_get install --no-install-recommends qemu-utils >/dev/null
    storage_daemon_missing && die "no package brought qemu-storage-daemon"
fi
"$TOP/vm-images/fetch-kernel.sh" >/dev/null
list_missing
[ ${#missing[@]} = 0 ] || die "apt-get left these out: ${missing[*]}"
say "done: everything is there"
