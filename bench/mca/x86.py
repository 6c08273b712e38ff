#!/usr/bin/env python3
"""Throughput of the VNNI kernels of x86-64 by llvm-mca's models of processors.

Usage: bench/mca/x86.py [--mca llvm-mca-22] [--asm FILE.s] [--json] [--loop KERNEL] [--processors A,B]

Compiles margay-cpu to assembly, finds the loop over groups of 32 columns of every integer kernel (products, scales and
minima, all that runs once a group; of encoders 8 columns), lets llvm-mca simulate it and prints a table: cycles a turn,
`vpdpbusd` a cycle, and what part that is of the peak, which is that of the same model on independent `vpdpbusd` and
nothing else. Loops of single rows also show the bytes of codes and scales they read a cycle, the unpacking of the scales
of K-quants included: at 4 GHz, 10 of them are 40 GB/s.

Models and processors are not the same. Those of LLVM 22 know no E-core: `gracemont` is the P-core of Alder Lake, whose
model stands for all its successors but Lunar Lake's. `sapphirerapids` and `icelake-server` were made from processors
with one port for 512-bit products or floats; servers have two, as `cascadelake` does. `znver5` is Zen 4. Zen 4's model
gives `vpdpbusd` on registers 4 cycles of both ports, where it takes one of one port and two of 64 bytes (uops.info): here
it is simulated as `vfmadd231ps`, which has the same ports and latency. Alder Lake's model takes a register that is
xored with itself for one that depends on what it held: it is simulated as a load.

Needs c++filt of binutils and llvm-mca of a recent LLVM.
"""

import argparse
import json
import re
from pathlib import Path

from assembly import compiled, functions, run

TARGET = "x86_64-unknown-linux-gnu"
PROCESSORS = {
    "avxvnni": ["alderlake", "znver4"],
    "avx512": ["icelake-server", "cascadelake", "sapphirerapids", "znver4"],
}
PEAK = {"avxvnni": "{{vex}} vpdpbusd %ymm14, %ymm15, %ymm{}", "avx512": "vpdpbusd %zmm30, %zmm31, %zmm{}"}
SCALES = 16 * 2
# Products of one row whose scales are unpacked before: turns of that loop a group, whose cycles are added.
UNPACKS = {"gemv Q4_K": 1, "gemv Q5_K": 1, "gemv Q2_K": 2, "gemv Q3_K": 1, "gemv Q6_K": 1}


def generic(*values):
    return ", ".join(f"{str(v).lower()}: bool" if isinstance(v, bool) else f"{v}: usize" for v in values)


def kernels():
    """Instruction set, name, symbol as c++filt prints it, bytes that single rows read a group."""
    # Rows of a tile, where groups have one scale and where they have two, and of the encoder's.
    for isa, rows, channel_rows in [("avxvnni", (4, 4), 6), ("avx512", (12, 8), 12)]:
        for name, halves, minima in [
            ("gemm Q4_0 Q5_0 Q8_0", 1, False),
            ("gemm Q4_1 Q4_K Q5_K", 1, True),
            ("gemm Q3_K Q6_K", 2, False),
            ("gemm Q2_K", 2, True),
        ]:
            yield isa, name, f"quant::{isa}::tile::<{generic(halves, minima, rows[halves - 1])}>", None
        yield isa, "gemm int8 encoder", f"channel::{isa}::tile::<{generic(channel_rows)}>", None
        for name, bits, packed, halves, minima, scales in [
            ("gemv Q4_0", 4, True, 1, False, SCALES),
            ("gemv Q4_1", 4, True, 1, True, 2 * SCALES),
            ("gemv Q4_K", 4, False, 1, True, 2 * 16 + 2 * SCALES // 8),
            ("gemv Q5_0", 5, True, 1, False, SCALES),
            ("gemv Q5_1", 5, True, 1, True, 2 * SCALES),
            ("gemv Q5_K", 5, False, 1, True, 2 * 16 + 2 * SCALES // 8),
            ("gemv Q8_0", 8, True, 1, False, SCALES),
            ("gemv Q2_K", 4, False, 2, True, 4 * 16 + 2 * SCALES // 8),
            ("gemv Q3_K", 4, False, 2, False, 2 * 16 + SCALES // 8),
            ("gemv Q6_K", 6, False, 2, False, 2 * 16 + SCALES // 8),
        ]:
            parameters = generic(bits, packed, halves, minima)
            yield isa, name, f"quant::{isa}::one_row::<{parameters}>", 32 * 16 * bits // 8 + scales


def loops(lines, instruction):
    """The innermost loops with such instructions: from a label to the last branch back to it."""
    label = {line[:-1]: at for at, line in enumerate(lines) if re.match(r"^\.\w+:", line)}
    found = []
    for end, line in enumerate(lines):
        branch = re.match(r"\s+j\w+\t(\.L\w+)$", line)
        begin = label.get(branch.group(1)) if branch else None
        if begin is None or begin > end or any(begin <= b and e <= end for b, e in found):
            continue
        if any(instruction in line for line in lines[begin : end + 1]):
            found.append((begin, end))
    return [[line for line in lines[b : e + 1] if not line.startswith(".")] for b, e in found]


def cycles(tool, processor, lines, iterations):
    if processor.startswith("znver"):
        lines = [re.sub(r"(\{vex\}\s+)?vpdpbusd", "vfmadd231ps", line) for line in lines]
    if processor in ("alderlake", "sapphirerapids"):
        lines = [re.sub(r"vp?xor\w*\s+(%\w+), \1, %[xyz](mm\d+)", r"vmovups (%rsp), %y\2", line) for line in lines]
    command = [tool, "-mtriple=x86_64", f"-mcpu={processor}", f"-iterations={iterations}"]
    out = run(command, input="\n".join(lines))
    return int(re.search(r"Total Cycles:\s+(\d+)", out).group(1)) / iterations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca")
    parser.add_argument("--asm", type=Path, help="assembly made before")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--loop", help="print the loop of the kernels of this name instead")
    parser.add_argument("--processors", help="comma-separated, instead of the usual ones")
    options = parser.parse_args()
    code = functions(options.asm or compiled(TARGET), r"^.*?kernels::", "#")
    peaks, rows = {}, []
    for isa, name, symbol, read in kernels():
        body = max(loops(code[symbol], "vpdpbusd"), key=len)
        products = sum("vpdpbusd" in line for line in body)
        if options.loop:
            if options.loop in f"{isa} {name}":
                print(f"# {isa} {name}: {products} products, {len(body)} instructions", *body, sep="\n")
            continue
        # Vectors that are kept on the stack; broadcasts from there are what a tile prepared.
        spills = sum(bool(re.search(r"vmov\w+\s.*\(%rsp|vmov\w+\s.*\(%rbp", line)) for line in body)
        for processor in options.processors.split(",") if options.processors else PROCESSORS[isa]:
            if (processor, isa) not in peaks:
                block = [PEAK[isa].format(i) for i in range(14)]
                peaks[processor, isa] = round(14 / cycles(options.mca, processor, block, 500), 1)
            took = cycles(options.mca, processor, body, 200)
            if name in UNPACKS:
                scales = loops(code["quant::avx2::unpack_scales"], "vmulps")
                took += UNPACKS[name] * max(cycles(options.mca, processor, turn, 200) for turn in scales)
            row = {
                "kernel": f"{isa} {name}",
                "processor": processor,
                "instructions": len(body),
                "stack_moves": spills,
                "cycles": round(took, 1),
                "products": products,
                "products_a_cycle": round(products / took, 2),
                "percent_of_peak": round(100 * products / took / peaks[processor, isa]),
            }
            if read:
                row["bytes_a_cycle"] = round(read / took, 1)
            rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    if rows:
        print(f"{'kernel':29}{'model':16}{'instr':>6}{'stack':>6}{'cycles':>8}{'prod':>6}{'prod/c':>8}{'% peak':>8}{'B/c':>6}")
    for row in rows:
        print(
            f"{row['kernel']:29}{row['processor']:16}{row['instructions']:6}{row['stack_moves']:6}{row['cycles']:8}"
            f"{row['products']:6}{row['products_a_cycle']:8}{row['percent_of_peak']:8}{row.get('bytes_a_cycle', ''):>6}"
        )


if __name__ == "__main__":
    main()
