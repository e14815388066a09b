#!/usr/bin/env bash
# Builds the guest's kernel and initramfs from Debian's packages, and prints the directory that holds them:
#   vmlinuz  modules/ (what the disk's own initramfs takes)  test.cpio (runs tests)  fio.cpio (appended, it adds fio)
#   dm.cpio (appended, it adds the kernel's device-mapper and dmsetup)
# Needs no root. Kept in .cache/ as long as its inputs stay the same.
set -euo pipefail
# shellcheck source=vm-images/lib.sh
. "$(dirname "$0")/lib.sh"

here=$TOP/vm-images
# Whatever kernel is fetched, its disk driver and the file system of the boot partition must be there.
modules=(virtio_pci virtio_blk vfat nls_cp437 nls_ascii)
# Of these a kernel may lack some; the test that uses them says which.
dm_modules=(dm-mod dm-zero dm-delay dm-flakey dm-dust dm-ebs dm-unstripe dm-switch dm-snapshot dm-log-writes dm-mirror
    virtio_console)
# busybox has some of these too, but its dd drops iflag=direct, and its lsblk, blkdiscard and mke2fs do less.
programs=(dash dd lsblk blkdiscard mke2fs e2fsck resize2fs findmnt)

mapfile -t debs < <("$here/fetch-kernel.sh")
[ ${#debs[@]} != 0 ] || die "no kernel"

# unpack_modules TREE DIRECTORY BASE MODULE...: modules and those they need, ready for insmod, with their order; but
# none that is in the directory BASE.
unpack_modules() {
    local tree=$1 out=$2 base=$3 version wanted word path file
    shift 3
    version=$(basename "$tree"/lib/modules/*)
    depmod --basedir "$tree" "$version"
    mkdir -p "$out"
    : >"$out/order"
    for wanted; do
        modprobe --dirname "$tree" --set-version "$version" --show-depends "$wanted" || true
    done | while read -r word path; do
        [ "$word" = insmod ] || continue
        file=$(basename "$path" | sed 's/\.\(xz\|zst\|gz\)$//')
        [ -e "$out/$file" ] || [ -e "$base/$file" ] && continue
        case $path in
        *.xz) xz --decompress --stdout "$path" ;;
        *.zst) zstd --decompress --quiet --stdout "$path" ;;
        *.gz) gzip --decompress --stdout "$path" ;;
        *) cat "$path" ;;
        esac >"$out/$file"
        printf '%s\n' "$file" >>"$out/order"
    done
}

build() {
    local out=$1 work deb root name
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the directory of now
    trap "rm -rf '$work'" EXIT
    for deb in "${debs[@]}"; do dpkg-deb --extract "$deb" "$work/tree"; done
    # Newer packages have their modules below usr/ (merged), where depmod does not look.
    [ -d "$work/tree/lib/modules" ] || ln -s usr/lib "$work/tree/lib"
    cp "$work"/tree/boot/vmlinuz-* "$out/vmlinuz"
    unpack_modules "$work/tree" "$out/modules" "$work" "${modules[@]}"

    root=$work/test
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,mnt,modules}
    ln -s bin "$root/sbin"
    for name in "${programs[@]}"; do install_program "$root" "$(program "$name")"; done
    ln -s dash "$root/bin/sh"
    install_busybox "$root"
    cp "$out/modules"/* "$root/modules/"
    install -m 755 "$here/init-test" "$root/init"
    pack "$root" "$out/test.cpio"

    pack_more "$root" "$work/fio" fio
    mv "$work/fio.cpio" "$out/"
    unpack_modules "$work/tree" "$work/dm/dm-modules" "$out/modules" "${dm_modules[@]}"
    pack_more "$root" "$work/dm" dmsetup addpart
    mv "$work/dm.cpio" "$out/"
}

# pack_more BASE ROOT PROGRAM...: ROOT.cpio of what is in ROOT and programs, without what the base has.
pack_more() {
    local base=$1 root=$2 name
    shift 2
    mkdir -p "$root/bin"
    for name; do install_program "$root" "$(program "$name")"; done
    (cd "$root" && find . -type f | while read -r name; do [ ! -e "$base/$name" ] || rm "$name"; done)
    pack "$root" "$root.cpio"
}

inputs=("${debs[@]}" "$here/init-test" "$(program busybox)")
for name in "${programs[@]}" fio dmsetup addpart; do
    inputs+=("$(program "$name")")
    mapfile -t -O ${#inputs[@]} inputs < <(libraries "$(program "$name")")
done
mapfile -t inputs < <(printf '%s\n' "${inputs[@]}" | sort -u)
cached guest build "${inputs[@]}"
