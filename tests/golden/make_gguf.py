"""Small valid GGUF files for reader tests: tests/golden/gguf/.

Each file has a .json beside it that says what a reader must find. Floats are given both as
numbers and as the hexadecimal of their bits. tensors.gguf also has tensors.safetensors: the F32
values each tensor stands for (dequantised by the gguf package).

The K-quant blocks come from kquant_blocks.json: blocks the compiled ggml quantiser made, without
an importance matrix, of one row of 256 numbers each; the recipe of the numbers is in that file.

Usage: python make_gguf.py
"""

import hashlib
import json
import struct
import sys

from common import HERE, dump

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as T
from gguf import quants
from safetensors.numpy import save_file

OUT = HERE / "gguf"

F32S = [0.0, -0.0, 1.0, -1.5, 0.1, 3.4028234663852886e38, 1.1754943508222875e-38, 1e-45]
F64S = [0.0, -0.0, 1.0, -1.5, 0.1, 1.7976931348623157e308, 2.2250738585072014e-308, 5e-324]

SCALARS = [
    ("u8", T.UINT8, [0, 1, 255]),
    ("i8", T.INT8, [0, 127, -128]),
    ("u16", T.UINT16, [0, 256, 65535]),
    ("i16", T.INT16, [0, 32767, -32768]),
    ("u32", T.UINT32, [0, 65536, 2**32 - 1]),
    ("i32", T.INT32, [0, 2**31 - 1, -(2**31)]),
    ("f32", T.FLOAT32, F32S),
    ("bool", T.BOOL, [False, True]),
    ("string", T.STRING, ["", "plain", "\u00e9\u732b\U0001f408", "nul \u0000 inside", "a\nb\tc"]),
    ("u64", T.UINT64, [0, 2**32, 2**64 - 1]),
    ("i64", T.INT64, [0, 2**63 - 1, -(2**63)]),
    ("f64", T.FLOAT64, F64S),
]


def bits(kind, value):
    if kind == "f32":
        return struct.pack(">f", value).hex()
    return struct.pack(">d", value).hex()


def expect(key, kind, value):
    entry = {"key": key, "type": kind, "value": value}
    if kind in ("f32", "f64"):
        many = isinstance(value, list)
        entry["bits"] = [bits(kind, v) for v in value] if many else bits(kind, value)
    return entry


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_rows(path):
    """What the gguf package reads back: the expected directory of the file."""
    reader = gguf.GGUFReader(str(path))
    rows = []
    for t in reader.tensors:
        rows.append(
            {
                "name": t.name,
                "type": t.tensor_type.name,
                "type_id": int(t.tensor_type),
                "ne": [int(n) for n in t.shape],
                "offset": int(t.data_offset) - int(reader.data_offset),
                "bytes": int(t.n_bytes),
                "sha256": hashlib.sha256(np.ascontiguousarray(t.data).tobytes()).hexdigest(),
            }
        )
    return {"alignment": int(reader.alignment), "data_start": int(reader.data_offset)}, rows


def describe(path, version, metadata):
    layout, tensors = tensor_rows(path)
    if not tensors:
        layout.pop("data_start")
    dump(
        path.with_suffix(".json"),
        {"version": version, **layout, "metadata": metadata, "tensors": tensors},
    )


def all_kv_types():
    path = OUT / "all_kv_types.gguf"
    writer = gguf.GGUFWriter(str(path), "golden")
    metadata = [expect("general.architecture", "string", "golden")]
    for kind, tag, values in SCALARS:
        for i, value in enumerate(values):
            key = f"scalar.{kind}.{i}"
            writer.add_key_value(key, value, tag)
            metadata.append(expect(key, kind, value))
        key = f"array.{kind}"
        writer.add_key_value(key, values, T.ARRAY, sub_type=tag)
        metadata.append({**expect(key, kind, values), "type": f"[{kind}]"})
    long = list(range(-500, 500))
    writer.add_key_value("array.long", long, T.ARRAY, sub_type=T.INT32)
    metadata.append(expect("array.long", "[i32]", long))
    close(writer)
    describe(path, 3, metadata)


def matrix(rows, columns, seed):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.02, 2.0, (rows, 1))
    return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)


def tensors():
    path = OUT / "tensors.gguf"
    writer = gguf.GGUFWriter(str(path), "golden")
    writer.add_name("one tensor of each type")
    metadata = [
        expect("general.architecture", "string", "golden"),
        expect("general.name", "string", "one tensor of each type"),
    ]
    values = {}

    def add(name, data, kind):
        if kind == Q.F32:
            writer.add_tensor(name, data)
            values[name] = data
            return
        if kind == Q.F16:
            half = data.astype(np.float16)
            writer.add_tensor(name, half)
            values[name] = half.astype(np.float32)
            return
        packed = quants.quantize(data, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        values[name] = quants.dequantize(packed, kind).reshape(data.shape)

    source = matrix(4, 96, 7)
    source[1, 32:64] = 0.0  # a block of zeros
    add("odd.f32", matrix(1, 3, 8)[0], Q.F32)  # 12 bytes: padding follows
    add("w.f32", source, Q.F32)
    for kind in (Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1):
        add(f"w.{kind.name.lower()}", source, kind)
    add("conv.f16", matrix(6, 9, 9).reshape(2, 3, 3, 3), Q.F16)
    add("cube.q8_0", matrix(6, 64, 10).reshape(2, 3, 64), Q.Q8_0)

    blocks = json.loads((HERE / "kquant_blocks.json").read_text())
    original = np.array([row_of(k) for k in (0, 1)], dtype=np.float32)
    writer.add_tensor("k.f32", original)
    values["k.f32"] = original
    for name, rows in blocks["blocks"].items():
        packed = np.stack([np.frombuffer(bytes.fromhex(r), np.uint8) for r in rows])
        kind = Q[name]
        writer.add_tensor(f"k.{name.lower()}", packed, raw_dtype=kind)
        wide = quants.dequantize(packed, kind)
        values[f"k.{name.lower()}"] = wide
        error = np.mean((wide - original) ** 2) / np.mean(original**2)
        assert error < 0.25, (name, error)
    close(writer)
    describe(path, 3, metadata)
    stored = path.with_suffix(".safetensors")
    save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, stored)
    stored.chmod(0o644)


def row_of(kind):
    """The 256 numbers behind the K-quant blocks (recipe in kquant_blocks.json)."""
    state = (12345 + 777 * kind) & 0xFFFFFFFF
    out = np.zeros(256, np.float32)
    for i in range(256):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        f = np.float32((state >> 8) - 2**23) / np.float32(2**23)
        if kind == 1:
            f = np.float32(np.float32(f * f) * f)
            if i % 37 == 5:
                f = np.float32(f * np.float32(8))
        out[i] = f
    return out


def small(path, version, alignment=None):
    writer = gguf.GGUFWriter(str(path), "golden")
    metadata = [expect("general.architecture", "string", "golden")]
    if alignment:
        writer.add_custom_alignment(alignment)
        metadata.append(expect("general.alignment", "u32", alignment))
    writer.add_uint32("answer", 42)
    writer.add_array("words", ["one", "two", "three"])
    metadata.append(expect("answer", "u32", 42))
    metadata.append(expect("words", "[string]", ["one", "two", "three"]))
    a, b = matrix(1, 5, 11)[0], matrix(3, 4, 12)
    writer.add_tensor("a", a)
    writer.add_tensor("b", b)
    close(writer)
    if version != 3:
        data = bytearray(path.read_bytes())
        data[4:8] = struct.pack("<I", version)  # versions 2 and 3 share one layout
        path.write_bytes(bytes(data))
    describe(path, version, metadata)
    expected = json.loads(path.with_suffix(".json").read_text())
    for row, data in zip(expected["tensors"], (a, b)):
        row["values"] = [float(v) for v in data.reshape(-1)]
    dump(path.with_suffix(".json"), expected)


def main():
    OUT.mkdir(exist_ok=True)
    all_kv_types()
    tensors()
    small(OUT / "v2.gguf", 2)
    small(OUT / "align64.gguf", 3, alignment=64)
    for path in sorted(OUT.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
