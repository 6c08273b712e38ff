#!/usr/bin/env python3
"""Writes hostile_golden.json: what ggml's own quantizer makes of hostile rows, with and without an importance matrix.

    python3 hostile_golden.py LIBGGML_BASE > hostile_golden.json

LIBGGML_BASE is libggml-base.so of any llama.cpp build without fused multiply-add. `hostile.rs` rebuilds the rows from the
same recipes, quantizes them, and compares hashes; the rows themselves are stored nowhere.
"""

import ctypes
import json
import sys

import numpy as np

ROWS, COLUMNS = 3, 512
F = np.float32
WITH_IMPORTANCE = {
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
}
PLAIN = {"F16": (1, 1, 2), "Q8_0": (8, 32, 34), "BF16": (30, 1, 2), "MXFP4": (39, 32, 17)}


def states(seed, count):
    state, out = seed, np.empty(count, np.uint32)
    for i in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = state
    return out


def uniform(seed, count):
    """In [-1, 1), exact in 24 bits."""
    return ((states(seed, count) >> np.uint32(8)).astype(np.int64) - (1 << 23)).astype(F) / F(1 << 23)


def rows():
    count = ROWS * COLUMNS
    f = uniform(12345, count)
    i = np.arange(count)
    steps = np.array([1e-8, 1, 0, 1e4, 1e-30, -1, 3], F)
    return {
        "uniform": f,
        "cube": f * f * f,
        "spikes": np.where(i % 37 == 5, f * f * f * F(8), f * f * f),
        "constant": np.full(count, 0.3, F),
        "negative": np.full(count, -1.7, F),
        "zero": np.zeros(count, F),
        "huge": f * F(3e38),
        "large": f * F(1e18),
        "tiny": f * F(1e-20),
        "denormal": f * F(1e-39),
        "edge": f * F(2e-15),
        "offset": f * F(0.1) + F(5),
        "mixed": f * steps[i // 16 % 7],
        "zeros": np.where(i % 3 == 0, F(-0.0), F(0)),
        "half": np.where(f > 0, f, np.where(i % 2 == 0, F(-0.0), F(0))),
        "lone": np.where(i % 64 == 3, F(1), F(0)),
        "signs": np.where(i % 2 == 0, F(1), F(-1)),
        "ties": ((states(777, count) >> np.uint32(8)) % np.uint32(16)).astype(F) * F(0.5) - F(4),
    }


def importances():
    u = ((states(99, COLUMNS) >> np.uint32(8)) & np.uint32(0xFFFF)).astype(F) / F(65536) + F(0.01)
    i = np.arange(COLUMNS)
    steps = np.array([1e-30, 1, 1e30, 1e-3, 0], F)
    return {
        "random": u,
        "sparse": np.where(i % 5 == 0, u, F(0)),
        "steep": u * steps[i // 8 % 5],
        "zeros": np.zeros(COLUMNS, F),
    }


def fnv1a(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def main():
    library = ctypes.CDLL(sys.argv[1])
    chunk = library.ggml_quantize_chunk
    pointer = ctypes.POINTER(ctypes.c_float)
    chunk.argtypes = [ctypes.c_int, pointer, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [pointer]
    chunk.restype = ctypes.c_size_t

    def quantize(kind, x, importance):
        number, elements, size = kind
        x = np.ascontiguousarray(x, F)
        out = (ctypes.c_uint8 * (x.size // elements * size))()
        weights = None if importance is None else np.ascontiguousarray(importance, F).ctypes.data_as(pointer)
        wrote = chunk(number, x.ctypes.data_as(pointer), out, 0, ROWS, COLUMNS, weights)
        assert wrote == len(out)
        return fnv1a(bytes(out))

    cases = {}
    with np.errstate(all="ignore"):
        x, weights = rows(), importances()
    for name, kind in (WITH_IMPORTANCE | PLAIN).items():
        known = weights if name in WITH_IMPORTANCE else {}
        cases[name.lower()] = {
            label: {row: quantize(kind, values, importance) for row, values in x.items()}
            for label, importance in ({"none": None} | known).items()
        }
    json.dump({"rows": ROWS, "columns": COLUMNS, "fnv1a": cases}, sys.stdout, indent=1)
    print()


main()
