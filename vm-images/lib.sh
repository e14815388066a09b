# shellcheck shell=bash
# Sourced by the scripts that build images: a cache keyed by what went in, and copying of programs.

# shellcheck source=ci/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../ci/common.sh"

# Every file system and partition table made here has fixed identities and times, so that the same inputs give the
# same image.
# shellcheck disable=SC2034
export SOURCE_DATE_EPOCH=1700000000

# cached NAME BUILD FILE...: prints the directory .cache/images/NAME-KEY, made by `BUILD DIRECTORY` unless it is
# there already. KEY is the checksum of the FILEs and of these scripts. Runs that race wait for one another.
cached() {
    local name=$1 build=$2 key directory partial
    shift 2
    mkdir -p "$CACHE/images"
    key=$(sha256sum -- "$TOP"/vm-images/*.sh "$@" | sed "s|$TOP/||" | sha256sum | cut -c 1-16)
    directory=$CACHE/images/$name-$key
    exec {lock}>"$CACHE/images/.$name.lock"
    flock "$lock"
    if [ ! -d "$directory" ]; then
        printf '   building %s (kept in %s)\n' "$name" "${directory#"$TOP/"}" >&2
        rm -rf "$CACHE/images/.partial-$name".*
        partial=$(mktemp -d "$CACHE/images/.partial-$name.XXXXXX")
        sha256sum -- "$@" | sed "s|$TOP/||" >"$partial/inputs.sha256"
        "$build" "$partial" >&2
        chmod 755 "$partial"
        mv "$partial" "$directory"
        # A run that began before this one may still use the last image: only what is old goes.
        find "$CACHE/images" -maxdepth 1 -name "$name-*" -mmin +1440 ! -path "$directory" -exec rm -rf {} +
    fi
    exec {lock}>&-
    touch "$directory"
    printf '%s\n' "$directory"
}

# The path of a program of this machine.
program() { command -v "$1" || die "$1 is not there: run ci/setup.sh"; }

# The shared libraries that a program is started with, its loader among them.
libraries() { ldd "$1" | sed -n 's/^[^/]*\(\/[^ ]*\) (0x[0-9a-f]*)$/\1/p'; }

# install_program ROOT PATH...: copies programs with their libraries, each to bin/ or to the path that it has here.
install_program() {
    local root=$1 path library
    shift
    for path; do
        cp -L --remove-destination "$path" "$root/bin/${path##*/}"
        libraries "$path" | while read -r library; do
            [ -e "$root$library" ] && continue
            mkdir -p "$root${library%/*}"
            cp -L "$library" "$root$library"
        done
    done
}

# install_busybox ROOT: busybox under every name that no other program has taken.
install_busybox() {
    local root=$1 applet
    cp -L "$(program busybox)" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r applet; do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
}

# pack ROOT FILE: an initramfs, the same for the same tree.
pack() {
    find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$1" && find . | sort | cpio --quiet --create --format=newc --reproducible --owner=0:0) >"$2"
}
