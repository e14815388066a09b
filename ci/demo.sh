#!/usr/bin/env bash
# A virtual machine boots from one disk that vhost-user-dm assembles from pieces: partition table, boot partition, root
# partition. From firmware through the boot loader to the root file system. Succeeds only if all of that happened.
# Usage: ci/demo.sh [--partitions] [--uefi] [--no-setup]
#   --partitions  the boot and root partitions are real ones, on loop devices (needs root), in place of files
#   --uefi        boots with UEFI (OVMF) in place of a BIOS (SeaBIOS)
#   --no-setup    takes for granted that ci/setup.sh has run
# Exit status: 0 it all worked, 77 this machine has no loop devices to make partitions on, otherwise a failure.
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/common.sh"

partitions=false setup=true firmware=()
for arg; do
    case $arg in
    --partitions) partitions=true ;;
    --uefi) firmware=(--uefi) ;;
    --no-setup) setup=false ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) die "unknown argument '$arg' (try --help)" ;;
    esac
done

step() { heading "$((++steps)). $*"; }
steps=0 daemon='' loops=() work=''

clean_up() {
    local loop
    if [ -n "$daemon" ]; then
        kill -KILL "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    for loop in "${loops[@]}"; do
        # Partitions that partx has made keep a loop device from going.
        partx --delete "$loop" 2>/dev/null || true
        losetup --detach "$loop" || true
    done
    [ -z "$work" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# The pieces, in files that the guest may write. The message is new every time: no image left from another run can
# print it.
make_pieces() {
    local images file
    images=$("$TOP/vm-images/disk.sh")
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/demo.XXXXXX")
    for file in gpt-head.img boot.img root.img gpt-tail.img layout; do
        cp --sparse=always "$images/$file" "$work/$file"
    done
    message="this disk never existed in one piece ($(od -An -N4 -tx4 /dev/urandom | tr -d ' '))"
    printf '%s\n' "$message" >"$work/message"
    debugfs -w -R "write $work/message /etc/message" "$work/root.img" 2>/dev/null >&2
}

# attach FILE: a loop device with the file's partitions; its name goes into $attached. The kernel's own scan of a loop device finds none on some
# machines; partx tells it what it finds itself.
attach() {
    local loop
    loop=$(losetup --find --show "$1") || return
    loops+=("$loop")
    [ -e "${loop}p1" ] || partx --add "$loop" || return
    attached=$loop
    [ -b "${loop}p1" ]
}

# Two disks of this machine: one has the boot partition, the other the root partition behind one that is nobody's
# business.
make_partitions() {
    local first=$work/first-disk second=$work/second-disk
    truncate --size 80M "$first" "$second"
    printf 'label: gpt\nstart=4096, size=131072\n' | sfdisk --quiet "$first"
    printf 'label: dos\nstart=2048, size=8192\nstart=12288, size=131072\n' | sfdisk --quiet "$second"
    if ! attach "$first"; then
        printf 'SKIPPED: this user cannot make partitions on loop devices here\n'
        exit 77
    fi
    boot=${attached}p1
    attach "$second"
    other=${attached}p1 root=${attached}p2
    dd if="$work/boot.img" of="$boot" bs=1M conv=fsync status=none
    dd if="$work/root.img" of="$root" bs=1M conv=fsync status=none
    dd if=/dev/urandom of="$other" bs=1M count=4 conv=fsync status=none
    rm "$work/boot.img" "$work/root.img"
    other_sum=$(sha256sum <"$other")
}

write_table() {
    local start length piece
    while read -r start length piece; do
        case $piece in
        zero) printf '%s %s zero\n' "$start" "$length" ;;
        boot.img) printf '%s %s linear %s 0\n' "$start" "$length" "$boot" ;;
        root.img) printf '%s %s linear %s 0\n' "$start" "$length" "$root" ;;
        *) printf '%s %s linear %s 0\n' "$start" "$length" "$work/$piece" ;;
        esac
    done <"$work/layout" >"$work/disk.table"
}

start_daemon() {
    "$program" --socket-path="$work/disk.sock" --table="$work/disk.table" 2>"$work/daemon.log" &
    daemon=$!
    while [ ! -S "$work/disk.sock" ]; do
        kill -0 "$daemon" 2>/dev/null || die "vhost-user-dm did not start: $(cat "$work/daemon.log")"
        sleep 0.1
    done
    sed 's/^/   /' "$work/daemon.log"
}

# The console as it comes, without the cursor movements of the firmware.
boot_guest() {
    timeout --foreground 150 "$TOP/vm-images/vm.sh" "${firmware[@]}" --disk="$work/disk.sock" -serial stdio </dev/null |
        sed -u -e 's/\x1b\[[0-9;?=]*[A-Za-z]//g' -e 's/\x1bc//g' -e 's/\r//g' | tee "$work/console" | sed -u 's/^/   | /'
}

stop_daemon() {
    local status=0
    kill -TERM "$daemon"
    wait "$daemon" || status=$?
    daemon=''
    [ "$status" = 0 ] || die "vhost-user-dm ended with status $status: $(cat "$work/daemon.log")"
}

check() {
    grep -qE "$2" "$work/console" || die "the console does not show $1"
    say "ok: $1"
}

if $setup; then
    "$TOP/ci/setup.sh"
fi
SECONDS=0

step "Build vhost-user-dm"
(cd "$TOP" && cargo build --quiet --release --package vhost-user-dm)
program=${CARGO_TARGET_DIR:-$TOP/target}/release/vhost-user-dm
say "$program"

step "Make the pieces of the disk"
make_pieces
boot=$work/boot.img root=$work/root.img
! $partitions || make_partitions
(cd "$work" && for file in gpt-head.img "$boot" "$root" gpt-tail.img; do
    [ -b "$file" ] && size=$(blockdev --getsz "$file") || size=$(($(stat -c %s "$file") / 512))
    printf '   %8s sectors  %s\n' "$size" "$file"
done)

step "Write the table, and check it"
write_table
sed 's/^/   /' "$work/disk.table"
say "\$ vhost-user-dm check disk.table"
"$program" check "$work/disk.table" 2>&1 | sed 's/^/   /'

step "Serve the disk"
start_daemon

step "Boot a virtual machine from it"
boot_guest || die "QEMU failed or the guest hung; what vhost-user-dm said: $(tail -n 20 "$work/daemon.log")"
stop_daemon

step "What happened"
if [ ${#firmware[@]} != 0 ]; then check "UEFI" 'BdsDxe: starting Boot'; else check "the BIOS" '^SeaBIOS'; fi
check "the boot loader" '^GRUB: loading the kernel from the boot partition'
check "one disk with three partitions" '^vda +130M +0 disk'
check "the root partition mounted" 'vda2 +64M +0 part /$'
check "the root file system's own message" "^message from the root file system: ${message//[()]/.}\$"
check "an orderly power-off" 'reboot: Power down'
e2fsck -fn "$root" >"$work/e2fsck.log" 2>&1 || die "the root file system is damaged: $(cat "$work/e2fsck.log")"
boots=$(debugfs -R 'cat /var/boots' "$root" 2>/dev/null | wc -l)
[ "$boots" = 1 ] || die "the guest's writes did not reach the root partition"
say "ok: what the guest wrote is in $root, and its file system is clean"
if $partitions; then
    [ "$(sha256sum <"$other")" = "$other_sum" ] || die "the partition beside it, $other, was changed"
    say "ok: the partition beside it, $other, is untouched"
fi
printf '\n   %sThe virtual machine booted from a disk in pieces. %d seconds.%s\n' "$BOLD" $SECONDS "$RESET"
