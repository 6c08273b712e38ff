#!/usr/bin/env bash
# Usage: scripts/x86-emulated.sh DIR [FILTER...]
#
# Runs margay-cpu's unit tests, or those whose name holds a FILTER, on emulated processors with the instructions that
# this one may lack (qemu and valgrind emulate none of them): AVX-512 F, BW, VL and VNNI on Bochs' `tigerlake`, then
# AVX-VNNI without AVX-512 on its `arrow_lake`, and AVX512_BF16 on its `sapphire_rapids`, which Bochs 3 has. They run a
# static test binary, as all there is on a small Linux system. DIR is a folder for what that takes; made if missing, and
# of use again. The last line is `N passed, N failed`; the exit status is not 0 when a test failed, when Margay did not
# find those instructions, or when a run was not over within MARGAY_BOCHS_MINUTES. DIR/serial.MODEL is all the system
# said. A model that this Bochs lacks is passed over with a line that says so.
#
# For Debian 12 with Rust; as root the first time, to install the packages. Debian's Bochs is version 2.7, so it shows
# AVX-512 alone. Too slow for CI: beside the build a processor takes five minutes of one core with Debian's Bochs, whose
# debugger cannot be turned off, 90 seconds with one without.
#
#   MARGAY_BOCHS          a Bochs with EVEX and `nogui`, without debugger, where Debian's is not to be used
#   MARGAY_BOCHS_MINUTES  the limit for each emulated run; 60 if unset
set -euo pipefail
[ $# -ge 1 ] || {
    sed -n '2s/^# //p' "$0" >&2
    exit 2
}
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
minutes=${MARGAY_BOCHS_MINUTES:-60}
target=x86_64-unknown-linux-gnu

die() {
    echo "$*" >&2
    exit 1
}

# Packages: the emulator with its BIOSes, what boots a CD, and the system's one program beside the tests.
packages=(bochs bochs-sdl bochsbios vgabios isolinux syslinux-common xorriso busybox-static cpio binutils)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || die "missing packages: install ${missing[*]}"
    echo "== installing ${missing[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
fi

# The kernel is unpacked, not installed.
if [ ! -s "$dir/linux" ]; then
    echo "== Linux"
    rm -rf "$dir/kernel"
    mkdir "$dir/kernel"
    [ "$(id -u)" != 0 ] || apt-get update -q
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p')
    (cd "$dir/kernel" && apt-get download -q -o APT::Sandbox::User=root "$kernel" && dpkg-deb -x ./*.deb .)
    cp "$dir"/kernel/boot/vmlinuz-* "$dir/linux"
    rm -rf "$dir/kernel"
fi

# Build scripts and macros must stay dynamic, so the flags are the target's alone. Debian's Bochs takes a gather or
# scatter whose indices are in zmm16 to zmm31 for an illegal instruction: for it, the compiler shall make none of loops.
echo "== static unit tests of margay-cpu"
features=+crt-static
[ -n "${MARGAY_BOCHS:-}" ] || features+=,+prefer-no-gather,+prefer-no-scatter
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=$features"
cargo test -p margay-cpu --lib --no-run --target "$target" >"$dir/cargo" 2>&1 || {
    cat "$dir/cargo" >&2
    exit 1
}
binary=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$dir/cargo")
[ -x "$binary" ] || die "no test binary in cargo's output"

run=$(mktemp -d "$dir/run.XXXXXX")
bochs_pid=
cleanup() {
    [ -z "$bochs_pid" ] || kill -9 "$bochs_pid" 2>/dev/null || true
    rm -rf "$run"
}
trap cleanup EXIT

# The system: /init runs the tests, then powers the machine off once the serial port has sent everything.
mkdir -p "$run/system/bin" "$run/system/proc" "$run/system/sys" "$run/system/dev" "$run/system/tmp" "$run/cd"
cp "$(command -v busybox)" "$run/system/bin/busybox"
strip -o "$run/system/tests" "$binary"
printf '%s\n' "$@" >"$run/system/filters"
cat >"$run/system/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
flags=$(/bin/busybox grep -m1 ^flags /proc/cpuinfo | /bin/busybox grep -owE 'fma|f16c|avx[0-9a-z_]*')
echo processor: $flags
cd /tmp
/tests --exact isa::tests::names_round_trip_and_the_best_is_supported --nocapture |
    /bin/busybox grep -o 'supported: .*'
/tests --test-threads=1 $(/bin/busybox cat /filters)
echo "tests exited with $?"
/bin/busybox sleep 0.2
/bin/busybox poweroff -f
INIT
chmod +x "$run/system/init"
(cd "$run/system" && find . | cpio -o -H newc --quiet) >"$run/cd/initrd"
cp "$dir/linux" "$run/cd/linux"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$run/cd/"
# fsrm: Bochs has the short fast `rep movsb` but not the register that enables fast strings, and Linux then picks a
# memmove that relies on both and overwrites itself. The others: Bochs 2.7 gives sizes of the protection keys' and of
# the compacted state at which Linux does without AVX altogether.
options="console=ttyS0,115200 quiet nokaslr mitigations=off nowatchdog audit=0 clearcpuid=fsrm,pku,xsavec,xsaves"
options+=" lpj=1000000 tsc=reliable random.trust_cpu=on rdinit=/init"
cat >"$run/cd/isolinux.cfg" <<CFG
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL /linux
  INITRD /initrd
  APPEND $options
CFG
xorriso -as mkisofs -quiet -o "$run/cd.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
    -boot-info-table "$run/cd" 2>"$run/xorriso" || die "xorriso: $(cat "$run/xorriso")"

# The machines. A second of their clock is 50 million instructions, however long those take.
if [ -n "${MARGAY_BOCHS:-}" ]; then
    program=$MARGAY_BOCHS
    bochs=("$MARGAY_BOCHS" -q -f "$run/bochsrc")
    display=nogui
else
    program=bochs
    bochs=(bochs -q -f "$run/bochsrc" -rc "$run/debugger")
    display=sdl2
    export SDL_VIDEODRIVER=dummy SDL_AUDIODRIVER=dummy
    echo c >"$run/debugger"
fi
models=$("$program" --help cpu 2>&1 </dev/null || true)
status=0

# on MODEL SETS...: the tests on that processor, where Margay must find these instruction sets and no others.
on() {
    local model=$1 serial=$dir/serial.$1 tail_pid until_s finished
    shift
    grep -qw "$model" <<<"$models" || {
        echo "== $model: passed over, this Bochs has no such processor"
        return 0
    }
    {
        [ "$display" = nogui ] || echo "sound: driver=dummy"
        cat <<RC
config_interface: textconfig
display_library: $display
cpu: model=$model, count=1, ips=50000000
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path="$run/cd.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$run/serial"
clock: sync=none
log: $run/log
panic: action=fatal
RC
    } >"$run/bochsrc"
    echo "== $model"
    : >"$run/serial"
    (cd "$run" && exec "${bochs[@]}") >"$run/out" 2>&1 </dev/null &
    bochs_pid=$!
    tail -n +1 -f --pid="$bochs_pid" "$run/serial" | tr -d '\r' &
    tail_pid=$!
    until_s=$((SECONDS + 60 * minutes))
    # Powered off, Bochs exits by itself.
    while kill -0 "$bochs_pid" 2>/dev/null && [ "$SECONDS" -lt "$until_s" ]; do sleep 1; done
    finished=$((SECONDS < until_s))
    kill -9 "$bochs_pid" 2>/dev/null || true
    wait "$bochs_pid" 2>/dev/null || true
    bochs_pid=
    wait "$tail_pid" || true
    tr -d '\r' <"$run/serial" >"$serial"
    cp "$run/log" "$dir/log.$model" 2>/dev/null || true

    if ! grep -q '^tests exited with ' "$serial"; then
        status=1
        if [ "$finished" = 0 ]; then echo "not over within $minutes minutes" >&2; else echo "Bochs ended early" >&2; fi
        tail -n 5 "$run/out" >&2
    elif ! grep -qx 'tests exited with 0' "$serial"; then
        status=1
    fi
    grep -qx "supported: $*" "$serial" || {
        echo "$model is not one that supports $*" >&2
        status=1
    }
    cat "$serial" >>"$run/serials"
}

on tigerlake scalar avx2 avx512
on arrow_lake scalar avx2 avxvnni
on sapphire_rapids scalar avx2 avxvnni avx512
touch "$run/serials"
awk -v bad="$status" '
    /^test .* \.\.\. ok$/ { running++ }
    /^test result: / { passed += $4; failed += $6; running = 0 }
    END {
        passed += running
        if ((bad || !passed) && !failed) failed = 1
        printf "%d passed, %d failed\n", passed, failed
    }
' "$run/serials" | tee "$run/totals"
grep -q ' 0 failed$' "$run/totals" && exit "$status"
exit 1
