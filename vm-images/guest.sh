#!/usr/bin/env bash
# Builds the guest's kernel and initramfs from Debian's packages, and prints the directory that holds them:
#   vmlinuz  modules/ (what the disk's own initramfs takes)  test.cpio (runs tests)  fio.cpio (appended, it adds fio)
# Needs no root. Kept in .cache/ as long as its inputs stay the same.
set -euo pipefail
# shellcheck source=vm-images/lib.sh
. "$(dirname "$0")/lib.sh"

here=$TOP/vm-images
# Whatever kernel is fetched, its disk driver and the file system of the boot partition must be there.
modules=(virtio_pci virtio_blk vfat nls_cp437 nls_ascii)
# busybox has some of these too, but its dd drops iflag=direct, and its lsblk, blkdiscard and mke2fs do less.
programs=(dash dd lsblk blkdiscard mke2fs e2fsck resize2fs findmnt)

mapfile -t debs < <("$here/fetch-kernel.sh")
[ ${#debs[@]} != 0 ] || die "no kernel"

# unpack_modules TREE DIRECTORY: the wanted modules and those they need, ready for insmod, with their order.
unpack_modules() {
    local tree=$1 out=$2 version wanted word path file
    version=$(basename "$tree"/lib/modules/*)
    depmod --basedir "$tree" "$version"
    mkdir -p "$out"
    : >"$out/order"
    for wanted in "${modules[@]}"; do
        modprobe --dirname "$tree" --set-version "$version" --show-depends "$wanted" || true
    done | while read -r word path; do
        [ "$word" = insmod ] || continue
        file=$(basename "$path" | sed 's/\.\(xz\|zst\|gz\)$//')
        [ -e "$out/$file" ] && continue
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
    unpack_modules "$work/tree" "$out/modules"

    root=$work/test
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,mnt,modules}
    ln -s bin "$root/sbin"
    for name in "${programs[@]}"; do install_program "$root" "$(program "$name")"; done
    ln -s dash "$root/bin/sh"
    install_busybox "$root"
    cp "$out/modules"/* "$root/modules/"
    install -m 755 "$here/init-test" "$root/init"
    pack "$root" "$out/test.cpio"

    mkdir -p "$work/fio/bin"
    install_program "$work/fio" "$(program fio)"
    # What the base has is not wanted twice.
    (cd "$work/fio" && find . -type f | while read -r name; do [ ! -e "$root/$name" ] || rm "$name"; done)
    pack "$work/fio" "$out/fio.cpio"
}

inputs=("${debs[@]}" "$here/init-test" "$(program busybox)")
for name in "${programs[@]}" fio; do
    inputs+=("$(program "$name")")
    mapfile -t -O ${#inputs[@]} inputs < <(libraries "$(program "$name")")
done
mapfile -t inputs < <(printf '%s\n' "${inputs[@]}" | sort -u)
cached guest build "${inputs[@]}"
