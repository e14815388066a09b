#!/usr/bin/env bash
# Builds the pieces of a bootable disk, each a file of its own, and prints the directory that holds them:
#   gpt-head.img   protective MBR with boot code, partition table, and the boot loader in a partition of its own
#   boot.img       FAT, also the EFI system partition: kernel, initramfs, boot loader's configuration
#   root.img       ext4 root file system
#   gpt-tail.img   the backup of the partition table
#   layout         one "START LENGTH PIECE" a line, in sectors: how they make one disk
# The disk boots with a BIOS and with UEFI. Needs no root. Kept in .cache/ as long as its inputs stay the same.
set -euo pipefail
# shellcheck source=vm-images/lib.sh
. "$(dirname "$0")/lib.sh"

here=$TOP/vm-images
grub=/usr/lib/grub
guest=$("$here/guest.sh")

# In sectors of 512 bytes. The table's own layout is fixed by the UEFI specification: a header in sector 1, 32 sectors
# of entries after it, and the same in reverse at the end.
head_len=2048 boot_len=131072 root_len=131072 tail_len=33
grub_start=34
boot_start=$head_len
root_start=$((boot_start + boot_len))
gap_start=$((root_start + root_len))
disk_len=$((gap_start + 2048))
tail_start=$((disk_len - tail_len))

# put_u64 FILE OFFSET NUMBER: little-endian.
put_u64() {
    local i bytes=''
    for i in 0 8 16 24 32 40 48 56; do bytes+=$(printf '\\x%02x' $((($3 >> i) & 255))); done
    # shellcheck disable=SC2059  # the bytes are escapes
    printf "$bytes" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# The table is written on a sparse file of the disk's size, so that sfdisk itself places both copies.
partition_table() {
    local out=$1 disk=$1/disk
    truncate --size $((disk_len * 512)) "$disk"
    sfdisk --quiet "$disk" <<END
label: gpt
label-id: 6f6d7664-6d2d-7265-6164-6d652d312e30
first-lba: 34
start=$boot_start, size=$boot_len, name=boot, type=U, uuid=6f6d7664-6d2d-7265-6164-6d652d000001
start=$root_start, size=$root_len, name=root, type=L, uuid=6f6d7664-6d2d-7265-6164-6d652d000002
start=$grub_start, size=$((head_len - grub_start)), name=grub, type=21686148-6449-6E6F-744E-656564454649, uuid=6f6d7664-6d2d-7265-6164-6d652d000003
END
    dd if="$disk" of="$out/gpt-head.img" count=$head_len status=none
    dd if="$disk" of="$out/gpt-tail.img" skip=$tail_start status=none
    rm "$disk"
}

# What grub-install does, without a device: the boot code loads the core's first sector, which loads the rest. GRUB
# copies all that it reads with the CPU. That matters in an emulated guest (QEMU's TCG): a boot loader that reads
# code right over code that ran before leaves TCG running the old one when the disk is in another process.
boot_code() {
    local out=$1 core=$1/core.img
    local modules=(part_gpt fat normal configfile linux echo test)
    # shellcheck disable=SC2016  # $prefix is GRUB's
    grub-mkimage --format=i386-pc --output="$core" --prefix='(hd0,gpt1)/grub' biosdisk "${modules[@]}"
    [ "$(stat -c %s "$core")" -le $(((head_len - grub_start) * 512)) ] || die "GRUB's core is too large for its partition"
    # kernel_sector in boot.img, and the start of the block list in the core's first sector
    dd if="$grub/i386-pc/boot.img" of="$out/gpt-head.img" bs=1 count=440 conv=notrunc status=none
    put_u64 "$out/gpt-head.img" $((0x5c)) $grub_start
    put_u64 "$core" $((0x1f4)) $((grub_start + 1))
    dd if="$core" of="$out/gpt-head.img" seek=$grub_start conv=notrunc status=none
    rm "$core"

    grub-mkimage --format=x86_64-efi --output="$out/bootx64.efi" --prefix='(hd0,gpt1)/grub' "${modules[@]}"
}

boot_partition() {
    local out=$1 work=$2 initramfs=$2/initramfs
    mkdir -p "$initramfs"/{bin,dev,proc,sys,root,modules}
    cp -L "$(program busybox)" "$initramfs/bin/busybox"
    ln -s busybox "$initramfs/bin/sh"
    # busybox's own does not know PARTUUID, so this one is called by its path.
    install_program "$initramfs" "$(program findfs)"
    cp "$guest"/modules/* "$initramfs/modules/"
    install -m 755 "$here/init-disk" "$initramfs/init"
    pack "$initramfs" "$work/initramfs.cpio"
    gzip --no-name --best "$work/initramfs.cpio"

    truncate --size $((boot_len * 512)) "$out/boot.img"
    mkfs.fat -F 32 -n BOOT -i 766d646d --invariant "$out/boot.img" >/dev/null
    mmd -i "$out/boot.img" ::EFI ::EFI/BOOT ::grub
    mcopy -i "$out/boot.img" "$guest/vmlinuz" ::vmlinuz
    mcopy -i "$out/boot.img" "$work/initramfs.cpio.gz" ::initramfs
    mcopy -i "$out/boot.img" "$out/bootx64.efi" ::EFI/BOOT/BOOTX64.EFI
    mcopy -i "$out/boot.img" "$here/grub.cfg" ::grub/grub.cfg
    rm "$out/bootx64.efi"
}

root_partition() {
    local out=$1 root=$2/root name
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,root,var}
    ln -s bin "$root/sbin"
    for name in lsblk findmnt sfdisk sgdisk; do install_program "$root" "$(program "$name")"; done
    install_busybox "$root"
    cp "$here/inittab" "$root/etc/inittab"
    install -m 755 "$here/rc" "$root/etc/rc"
    printf 'PRETTY_NAME="the root file system of vhost-user-dm'\''s demo"\n' >"$root/etc/os-release"

    truncate --size $((root_len * 512)) "$out/root.img"
    mke2fs -q -t ext4 -L root -U 6f6d7664-6d2d-7265-6164-6d652d0000ff -E root_owner=0:0 -d "$root" "$out/root.img"
}

build() {
    local out=$1 work
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the directory of now
    trap "rm -rf '$work'" EXIT
    partition_table "$out"
    boot_code "$out"
    boot_partition "$out" "$work"
    root_partition "$out" "$work"
    cat >"$out/layout" <<END
0 $head_len gpt-head.img
$boot_start $boot_len boot.img
$root_start $root_len root.img
$gap_start $((tail_start - gap_start)) zero
$tail_start $tail_len gpt-tail.img
END
}

[ -d "$grub/i386-pc" ] && [ -d "$grub/x86_64-efi" ] || die "GRUB is not there: run ci/setup.sh"
inputs=("$guest/inputs.sha256" "$here"/{init-disk,inittab,rc,grub.cfg} "$grub/i386-pc/boot.img" "$grub/i386-pc/modinfo.sh"
    "$grub/x86_64-efi/modinfo.sh" "$(program sfdisk)" "$(program sgdisk)" "$(program findfs)" "$(program mkfs.fat)" "$(program mcopy)" "$(program grub-mkimage)")
cached disk build "${inputs[@]}"
