"""Margay's encoders against ggml's on one thread, turn by turn.

    cargo build --release -p margay-quant --example encode
    python bench/quantization/encoders.py libggml-base.so target/release/examples/encode [TYPE ...]

For each type both pack the same matrix of normal numbers, ROUNDS times in turn; the bytes are compared, and medians of
the processor time that each thread was on a core are printed, so that other work on the machine counts little. `x` is
how many times as fast as ggml Margay is. `imatrix` rows pack with importances. llama.cpp ships a library for the oldest
processors; one built with `-march=native -ffp-contract=off` from its `ggml-quants.c` is the harder rival.
"""

import ctypes
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROUNDS = 7
ROWS, COLUMNS = 256, 4096
# Types, and the names that ggml's functions have.
TYPES = {name.lower(): name for name in (
    "q8_0 q5_1 q5_0 q4_1 q4_0 q6_K q5_K q4_K q3_K q2_K iq4_nl iq4_xs mxfp4").split()}
UNWEIGHTED = {"q8_0", "mxfp4"}


class Margay:
    def __init__(self, program, numbers):
        self.process = subprocess.Popen([program, numbers, str(COLUMNS)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)

    def tell(self, line):
        """Seconds on a core that one command took."""
        before = self.on_core()
        self.process.stdin.write(line + "\n")
        if self.process.stdout.readline() != "done\n":
            sys.exit(f"{line}: not done")
        return self.on_core() - before

    def on_core(self):
        return int(pathlib.Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9


def main():
    library, program, *only = sys.argv[1:]
    ggml = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL | 1)
    if hasattr(ggml, "ggml_init"):
        class Params(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]
        ggml.ggml_init.argtypes = [Params]
        ggml.ggml_init.restype = ctypes.c_void_p
        ggml.ggml_init(Params(1 << 16, None, True))  # tables
    x = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32) * np.float32(0.02)
    importance = np.maximum(x[0] * x[0], np.float32(1e-6))
    out = np.zeros(x.size * 4, np.uint8)
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    with tempfile.TemporaryDirectory() as folder:
        numbers, packed = f"{folder}/numbers", f"{folder}/packed"
        x.tofile(numbers)
        margay = Margay(program, numbers)
        print(f"{'type':8} {'':8} {'ggml ns':>8} {'margay':>8} {'x':>6}  bytes", flush=True)
        for name in only or TYPES:
            for weighted in (False, True):
                if weighted and name in UNWEIGHTED:
                    continue
                pack = getattr(ggml, f"quantize_{TYPES[name]}")
                pack.restype = ctypes.c_size_t
                pack.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
                theirs, ours = [], []
                for _ in range(ROUNDS if name[0] != "i" else 3):
                    start = time.thread_time()
                    size = pack(pointer(x), pointer(out), ROWS, COLUMNS, pointer(importance) if weighted else None)
                    theirs.append(time.thread_time() - start)
                    ours.append(margay.tell(f"{'weighted' if weighted else 'encode'} {name}"))
                margay.tell(f"write {packed}")
                equal = np.array_equal(np.fromfile(packed, np.uint8), out[:size])
                a, b = (statistics.median(t) / x.size * 1e9 for t in (theirs, ours))
                print(f"{name:8} {'imatrix' if weighted else '':8} {a:8.2f} {b:8.2f} {a / b:6.2f}  "
                      f"{'equal' if equal else 'DIFFERENT'}", flush=True)


if __name__ == "__main__":
    main()
