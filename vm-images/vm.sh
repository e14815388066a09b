#!/usr/bin/env bash
# Runs QEMU with disks that vhost-user back ends serve. It takes the place of this shell (exec), so that its process
# is the one to wait for or to kill.
# Usage: vm-images/vm.sh [--uefi] [--may-reboot] [--cpus=N] [--memory=SIZE] [--prealloc] [--disk=SOCKET[,PROPERTY=VALUE...]]... [QEMU ARGUMENT...]
set -euo pipefail
# shellcheck source=ci/common.sh
. "$(dirname "$0")/../ci/common.sh"

memory=512M prealloc=off cpus=2 reboot=(-no-reboot) firmware=() disks=()
while [ $# != 0 ]; do
    case $1 in
    --cpus=*) cpus=${1#*=} ;;
    --memory=*) memory=${1#*=} ;;
    --prealloc) prealloc=on ;;
    --may-reboot) reboot=() ;;
    --uefi)
        for code in /usr/share/OVMF/OVMF_CODE_4M.fd /usr/share/OVMF/OVMF_CODE.fd; do
            [ ! -r "$code" ] || break
        done
        [ -r "$code" ] || die "there is no OVMF firmware: run ci/setup.sh"
        firmware=(-drive "if=pflash,format=raw,readonly=on,file=$code"
            -drive "if=pflash,format=raw,snapshot=on,file=${code/CODE/VARS}")
        ;;
    --disk=*)
        disk=${1#*=}
        id=disk${#disks[@]}
        properties=${disk#"${disk%%,*}"}
        # reconnect: the guest outlives a back end that is started again.
        # disable-legacy: OVMF drives a device that could also be a legacy one as such.
        disks+=(-chardev "socket,id=$id,path=${disk%%,*},reconnect=1"
            -device "vhost-user-blk-pci,chardev=$id,disable-legacy=on$properties")
        ;;
    *) break ;;
    esac
    shift
done

case $("$TOP/vm-images/accel.sh") in
kvm) accel=(-accel kvm -cpu host) ;;
*) accel=(-accel 'tcg,thread=multi' -cpu max) ;;
esac

# A vhost-user back end works in the guest's memory itself, so that must be a file that can be shared: a memfd.
exec qemu-system-x86_64 -machine q35,graphics=off "${accel[@]}" -smp "$cpus" -m "$memory" \
    -object "memory-backend-memfd,id=memory,size=$memory,share=on,prealloc=$prealloc" -numa node,memdev=memory \
    -nodefaults -display none "${reboot[@]}" "${firmware[@]}" "${disks[@]}" "$@"
