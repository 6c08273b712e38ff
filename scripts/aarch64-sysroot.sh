#!/usr/bin/env bash
# Usage: scripts/aarch64-sysroot.sh DIR
#
# Builds the standard library for aarch64-unknown-linux-gnu with the rustc in PATH and puts it in DIR, for machines
# whose toolchain cannot add the target (`rustup target add` is simpler where it works). Takes about a minute.
# The library's source is rustup's rust-src component, or else Debian's rust-src package of the same version.
set -euo pipefail

target=aarch64-unknown-linux-gnu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
sysroot=$(cd "$1" && pwd)
version=$(rustc -V | cut -d' ' -f2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints the folder of the standard library's source.
library_source() {
    local component
    component=$(rustc --print sysroot)/lib/rustlib/src/rust/library
    if [ -f "$component/Cargo.lock" ]; then
        echo "$component"
        return
    fi
    # A package list of its own: enabling the suite for the whole system would let apt replace libc.
    mkdir -p "$work"/apt/{sources,lists/partial,cache/archives/partial}
    sed -n '1,/^$/p' /etc/apt/sources.list.d/debian.sources |
        sed 's/^Suites:.*/Suites: trixie-backports/' >"$work/apt/sources/backports.sources"
    local options=(-o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache"
        -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/apt/sources" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" -qq update >&2
    local package
    package=$(apt-cache "${options[@]}" madison rust-src | awk -v v="$version" '$3 ~ "^"v"[+-]" { print $3; exit }')
    [ -n "$package" ] || { echo "no source of the standard library $version: try rustup target add $target" >&2; exit 1; }
    (cd "$work" && apt-get "${options[@]}" -qq download "rust-src=$package" >&2 && dpkg -x rust-src_*.deb src)
    echo "$work/src/usr/src/rustc-$version/library"
}

source=$(library_source)
mkdir -p "$work/empty/src"
: >"$work/empty/src/lib.rs"
printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$work/empty/Cargo.toml"
# The variable names a source outside the toolchain's folder, which is cargo's own test hook: it writes nothing into the
# installed toolchain. RUSTC_BOOTSTRAP allows -Zbuild-std here; the project's own build does without both.
(
    cd "$work/empty"
    env -u RUSTFLAGS -u CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS \
        __CARGO_TESTS_ONLY_SRC_ROOT="$source" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$work/target" \
        cargo build --quiet --release -Zbuild-std=std,panic_unwind,panic_abort,test,proc_macro --target "$target"
)
libraries=$sysroot/lib/rustlib/$target/lib
rm -rf "$libraries"
mkdir -p "$libraries"
cp "$work/target/$target/release/deps/"lib*.rlib "$libraries"
rm -f "$libraries"/libempty-*
echo "standard library $version for $target: $sysroot"
