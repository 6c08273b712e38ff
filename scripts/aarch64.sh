#!/usr/bin/env bash
# Usage: scripts/aarch64.sh
#
# Builds for aarch64 Linux and runs the tests that must hold on ARM: margay-cpu, margay-quant and `margay`, whose
# end-to-end tests cover the rest, on a processor with every feature; then again on one without the dot product, where
# run-time dispatch has to choose the plain kernels; then the kernels on one with the dot product alone. The last line is
# `N passed, N failed`.
#
# Needs qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross (Debian's names), and the standard library of the
# target: from `rustup target add aarch64-unknown-linux-gnu`, or in a folder named by MARGAY_AARCH64_SYSROOT, which
# scripts/aarch64-sysroot.sh makes. On an aarch64 machine `cargo xtask test` is all there is to run.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing: install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2
        exit 1
    }
done

if [ -n "${MARGAY_AARCH64_SYSROOT:-}" ]; then
    echo "standard library: $MARGAY_AARCH64_SYSROOT"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot=$MARGAY_AARCH64_SYSROOT"
elif [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
    echo "standard library: the toolchain's own"
else
    echo "no standard library for $target: run 'rustup target add $target', or make one with" >&2
    echo "scripts/aarch64-sysroot.sh DIR and set MARGAY_AARCH64_SYSROOT=DIR" >&2
    exit 1
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

# on PROCESSOR ARGUMENTS...: cargo test with these arguments on that processor.
on() {
    local processor=$1
    shift
    echo "== $processor: cargo test $*"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $processor -L /usr/aarch64-linux-gnu" \
        cargo test --target "$target" --no-fail-fast "$@" 2>&1 | tee -a "$log" || status=1
}

# One selection of packages, so that what they share is built once; without the reference, which is no backend of ARM's.
# What does not depend on the processor (files, folders of caches, answers of a form) is tested where it is fast.
on max -p margay-cpu -p margay-quant -p margay --no-default-features --lib --test contract --test fusion \
    --test kv_states --test suite --test golden --test methods --test properties --test end_to_end_parity \
    --test end_to_end_sessions --test kept_sessions
# The plain kernels are held against the portable ones bit for bit, so the long suite need not run twice.
on cortex-a53 -p margay-cpu --no-default-features --lib --test contract
on cortex-a53 -p margay --no-default-features --test end_to_end_parity
# With the dot product but without matrix products, as most phones are.
on cortex-a76 -p margay-cpu --no-default-features --lib

awk '/^test result: / { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit "$status"
