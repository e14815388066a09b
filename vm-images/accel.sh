#!/usr/bin/env bash
# Prints what this machine can run a guest with: "kvm" when a guest really boots with it, else "tcg" (emulation).
# A /dev/kvm that opens is no proof: on a host that is itself a guest, a kernel may hang in its first second.
# The answer holds until the next start of the machine.
set -euo pipefail
# shellcheck source=vm-images/lib.sh
. "$(dirname "$0")/lib.sh"

[ -r /dev/kvm ] && [ -w /dev/kvm ] || {
    echo tcg
    exit 0
}
mkdir -p "$CACHE"
answer=$CACHE/accel-$(cat /proc/sys/kernel/random/boot_id)-$(id -u)
exec 9>"$CACHE/.accel.lock"
flock 9
if [ ! -s "$answer" ]; then
    printf '   trying whether a guest boots with /dev/kvm (10 seconds at most)\n' >&2
    guest=$("$TOP/vm-images/guest.sh")
    # Without a test to run, the guest's init says so and powers off.
    said=$(timeout --kill-after=1 10 qemu-system-x86_64 -machine q35 -accel kvm -cpu host -smp 2 -m 512M -nodefaults \
        -display none -no-reboot -kernel "$guest/vmlinuz" -initrd "$guest/test.cpio" -append 'quiet panic=-1' \
        -serial null -serial stdio </dev/null 2>/dev/null || true)
    rm -f "$CACHE"/accel-*
    case $said in
    *'no test'*) echo kvm >"$answer" ;;
    *) echo tcg >"$answer" ;;
    esac
    printf '   it %s\n' "$([ "$(cat "$answer")" = kvm ] && echo does || echo 'does not: guests are emulated')" >&2
fi
cat "$answer"
