#!/usr/bin/env python3
"""Throughput of the ARM integer kernels by llvm-mca's models of processors.

Usage: bench/mca/arm.py [--mca llvm-mca-22] [--asm FILE.s] [--json] [--loop KERNEL] [--dispatch N]

Compiles margay-cpu for aarch64 to assembly, finds the loop over groups of 32 columns of every integer kernel (products,
scales and minima, all that runs once a group), lets llvm-mca simulate it and prints a table: cycles a group, products a
cycle, and what part that is of the peak. The peak is that of the same model on independent products and nothing else:
`sdot`, `smmla` or `smlal`, whichever the kernel uses. Loops of single rows also show the bytes of codes and scales they
read a cycle.

Needs what scripts/aarch64.sh needs (not qemu), c++filt of binutils, and llvm-mca, best of a recent LLVM: that of
Debian 12's llvm-14 lacks Neoverse V1 and V2. `cortex-a76` is the model of Cortex-A57 in every LLVM, `cortex-x1` that of
Neoverse V1, which it is a variant of, and Neoverse N1 is a variant of Cortex-A76: read the N1 column for A76.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from assembly import compiled, functions, run

TARGET = "aarch64-unknown-linux-gnu"
# Models to ask, by the instruction that multiplies.
PROCESSORS = {
    "smlal": ["cortex-a53", "cortex-a57"],
    "sdot": ["cortex-a76", "neoverse-n1", "neoverse-v1", "neoverse-n2", "neoverse-v2", "cortex-x1", "cortex-x3"],
    "smmla": ["neoverse-v1", "neoverse-n2", "neoverse-v2", "cortex-x3"],
    "fmla": ["cortex-a57", "neoverse-n1", "neoverse-v1", "neoverse-n2", "cortex-x3"],
}
PEAK = {
    "smlal": "smlal v{}.8h, v30.8b, v31.8b",
    "sdot": "sdot v{}.4s, v30.16b, v31.16b",
    "smmla": "smmla v{}.4s, v30.16b, v31.16b",
    "fmla": "fmla v{}.4s, v30.4s, v31.4s",
}
# Products of one instruction.
PRODUCTS = {"smlal": 8, "sdot": 16, "smmla": 32, "fmla": 4}
# What a product instruction looks like; `smull` is the first of a sum.
PRODUCT = {"smlal": r"\bsm(lal|ull)2?\t", "sdot": r"\bsdot\t", "smmla": r"\bsmmla\t", "fmla": r"\bfmla\t"}
# Kernels: name, instruction, path and parameters as c++filt prints them, bytes that single rows read a group.
U, B = "{}: usize", "{}: bool"


def generics(*values):
    return ", ".join((B.format(str(v).lower()) if isinstance(v, bool) else U.format(v)) for v in values)


SCALES = 16 * 2


def codes(bits):
    return 32 * 16 * bits // 8


KERNELS = [
    # ROWS, BYTES, HALVES, MIN
    ("gemm Q4_0 Q5_0", "smlal", f"smull::tile::<{generics(3, False, 1, False)}>", None),
    ("gemm Q4_1 Q4_K Q5_K", "smlal", f"smull::tile::<{generics(3, False, 1, True)}>", None),
    ("gemm Q3_K Q6_K", "smlal", f"smull::tile::<{generics(3, False, 2, False)}>", None),
    ("gemm Q2_K", "smlal", f"smull::tile::<{generics(3, False, 2, True)}>", None),
    ("gemm Q8_0", "smlal", f"smull::tile::<{generics(2, True, 1, False)}>", None),
    # BITS, PACKED, HALVES, MIN
    ("gemv Q4_0", "smlal", f"smull::one_row::<{generics(4, True, 1, False)}>", codes(4) + SCALES),
    ("gemv Q5_0", "smlal", f"smull::one_row::<{generics(5, True, 1, False)}>", codes(5) + SCALES),
    ("gemv Q6_K", "smlal", f"smull::one_row::<{generics(6, False, 2, False)}>", codes(6) + 2 * 16 + SCALES // 8),
    ("gemv Q8_0", "smlal", f"smull::one_row::<{generics(8, True, 1, False)}>", codes(8) + SCALES),
    # ROWS, HALVES, MIN
    ("gemm Q4_0 Q5_0 Q8_0", "sdot", f"sdot::tile::<{generics(6, 1, False)}>", None),
    ("gemm Q4_1 Q4_K Q5_K", "sdot", f"sdot::tile::<{generics(6, 1, True)}>", None),
    ("gemm Q3_K Q6_K", "sdot", f"sdot::tile::<{generics(4, 2, False)}>", None),
    ("gemm Q2_K", "sdot", f"sdot::tile::<{generics(4, 2, True)}>", None),
    # BITS, PACKED, HALVES, MIN
    ("gemv Q4_0", "sdot", f"sdot::one_row::<{generics(4, True, 1, False)}>", codes(4) + SCALES),
    ("gemv Q4_1", "sdot", f"sdot::one_row::<{generics(4, True, 1, True)}>", codes(4) + 2 * SCALES),
    ("gemv Q4_K", "sdot", f"sdot::one_row::<{generics(4, False, 1, True)}>", codes(4) + 2 * 16 + 2 * SCALES // 8),
    ("gemv Q5_0", "sdot", f"sdot::one_row::<{generics(5, True, 1, False)}>", codes(5) + SCALES),
    ("gemv Q5_K", "sdot", f"sdot::one_row::<{generics(5, False, 1, True)}>", codes(5) + 2 * 16 + 2 * SCALES // 8),
    ("gemv Q6_K", "sdot", f"sdot::one_row::<{generics(6, False, 2, False)}>", codes(6) + 2 * 16 + SCALES // 8),
    ("gemv Q8_0", "sdot", f"sdot::one_row::<{generics(8, True, 1, False)}>", codes(8) + SCALES),
    # SIGNED, MIN; what K-quants need before either product
    ("scales Q4_K Q5_K Q2_K", "sdot", f"super_scales::<{generics(False, True)}>", None),
    ("scales Q3_K Q6_K", "sdot", f"super_scales::<{generics(True, False)}>", None),
    # PAIRS, HALVES, MIN
    ("gemm Q4_0 Q5_0 Q8_0", "smmla", f"smmla::tile::<{generics(3, 1, False)}>", None),
    ("gemm Q4_1 Q4_K Q5_K", "smmla", f"smmla::tile::<{generics(3, 1, True)}>", None),
    ("gemm Q3_K Q6_K", "smmla", f"smmla::tile::<{generics(2, 2, False)}>", None),
    ("gemm Q2_K", "smmla", f"smmla::tile::<{generics(2, 2, True)}>", None),
    # ROWS: c++filt ends with the type's path, which `functions` cuts
    ("gemm F32", "fmla", "F32, 6: usize>", None),
    ("gemm F16", "fmla", "F16, 6: usize>", None),
    ("gemm BF16", "fmla", "Bf16, 6: usize>", None),
]


def compile_for_arm():
    sysroot = os.environ.get("MARGAY_AARCH64_SYSROOT")
    return compiled(TARGET, *([f"--sysroot={sysroot}"] if sysroot else []))


def loop(lines, product):
    """The innermost loop with the most products: from a label to the last branch back to it."""
    label = {line[:-1]: at for at, line in enumerate(lines) if re.match(r"^\.\w+:", line)}
    best, products = None, 0
    for end, line in enumerate(lines):
        branch = re.match(r"\s+(?:b\.\w+|b|cbn?z|tbn?z)\t.*?(\.L\w+)$", line)
        begin = label.get(branch.group(1)) if branch else None
        if begin is None or begin > end:
            continue
        body = [line for line in lines[begin : end + 1] if not line.startswith(".")]
        count = sum(bool(re.search(product, line)) for line in body)
        if count and (best is None or count > products or (count == products and len(body) < len(best))):
            best, products = body, count
    return best, products


def cycles(tool, processor, text, iterations, dispatch=None):
    command = [tool, "-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+dotprod,+i8mm", f"-iterations={iterations}"]
    if dispatch:
        command.append(f"-dispatch={dispatch}")
    out = run(command, input=text)
    total = int(re.search(r"Total Cycles:\s+(\d+)", out).group(1))
    return total / iterations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mca", default="llvm-mca")
    parser.add_argument("--asm", type=Path, help="assembly made before")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--loop", help="print the loop of the kernels of this name instead")
    parser.add_argument("--dispatch", type=int, help="instructions a cycle, instead of the models' own")
    parser.add_argument("--processors", help="comma-separated, instead of the usual ones")
    options = parser.parse_args()
    code = functions(options.asm or compile_for_arm(), r"^.*neon::", "//")
    peaks, rows = {}, []
    for name, instruction, symbol, read in KERNELS:
        body, products = loop(code[symbol], PRODUCT[instruction] if "scales" not in symbol else r"\bfmul\t")
        if body is None:
            sys.exit(f"no loop in {symbol}")
        if options.loop:
            if options.loop in f"{instruction} {name}":
                print(f"// {instruction} {name}: {products} products, {len(body)} instructions", *body, sep="\n")
            continue
        spills = sum(bool(re.search(r"\[sp", line)) for line in body)
        for processor in options.processors.split(",") if options.processors else PROCESSORS[instruction]:
            if (processor, instruction) not in peaks:
                block = "\n".join(PEAK[instruction].format(i) for i in range(24))
                took = cycles(options.mca, processor, block, 500, options.dispatch)
                peaks[processor, instruction] = PRODUCTS[instruction] * round(24 / took)
            took = cycles(options.mca, processor, "\n".join(body), 200, options.dispatch)
            if "scales" in symbol:
                products = 0
            rate = products * PRODUCTS[instruction] / took
            row = {
                "kernel": f"{instruction} {name}",
                "processor": processor,
                "instructions": len(body),
                "stack_accesses": spills,
                "cycles": round(took, 1),
                "products": products * PRODUCTS[instruction],
                "products_a_cycle": round(rate, 1),
                "percent_of_peak": round(100 * rate / peaks[processor, instruction], 1),
            }
            if read:
                # A group of a row has 32 * 16 products; a loop may hold less than a group.
                row["bytes_a_cycle"] = round(read * row["products"] / 512 / took, 1)
            rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    if rows:
        print(f"{'kernel':27}{'model':13}{'instr':>6}{'stack':>6}{'cycles':>8}{'prod/it':>8}{'prod/c':>8}{'% peak':>8}{'B/c':>6}")
    for row in rows:
        print(
            f"{row['kernel']:27}{row['processor']:13}{row['instructions']:6}{row['stack_accesses']:6}{row['cycles']:8}"
            f"{row['products']:8}{row['products_a_cycle']:8}{row['percent_of_peak']:8}{row.get('bytes_a_cycle', ''):>6}"
        )


if __name__ == "__main__":
    main()
