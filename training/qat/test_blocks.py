"""Every rounding equals Margay's blocks bit for bit: golden rows of ggml, and a folder that Margay itself converts.

MARGAY=PATH/TO/margay names the program for the second.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from formats import FORMATS, bits_per_weight, round_rows

GOLDEN = Path(__file__).parents[2] / "crates/margay-quant/tests/gguf_golden.json"
NANO = Path(__file__).parents[1] / "nano/weights"
MARGAY = os.environ.get("MARGAY")
CONVERTED = list(FORMATS)


def same_bits(a: torch.Tensor, b) -> bool:
    """Signs of zero included."""
    return torch.equal(a.contiguous().view(torch.int32), torch.as_tensor(b, dtype=torch.float32).contiguous().view(torch.int32))


def golden_row(kind: int) -> torch.Tensor:
    """As the note of the file says, in float32."""
    state, out = 12345 + 777 * kind, []
    for i in range(256):
        state = (state * 1664525 + 1013904223) % 2**32
        f = np.float32((state >> 8) - 2**23) / np.float32(2**23)
        f = f * f * f if kind else f
        out.append(f * np.float32(8) if kind and i % 37 == 5 else f)
    return torch.tensor(np.array(out))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("name", list(FORMATS))
def test_rounding_equals_the_golden_blocks(name, kind):
    cases = json.loads(GOLDEN.read_text())["cases"]
    (case,) = [c for c in cases if c["type"].lower() == name and c["kind"] == kind and not c["imatrix"]]
    blocks = np.frombuffer(bytes.fromhex(case["hex"]), np.uint8)
    expected = dequantize(blocks, GGMLQuantizationType[case["type"]])
    assert same_bits(round_rows(golden_row(kind), name)[0], expected)
    assert bits_per_weight(name) == len(blocks) * 8 / 256


def adversarial(columns: int) -> torch.Tensor:
    """[rows, columns]: what makes a rounding err."""
    g = torch.Generator().manual_seed(7)
    normal = lambda n: torch.randn(n, columns, generator=g)  # noqa: E731
    scale = 10.0 ** torch.empty(24, 1).uniform_(-9, 4, generator=g)
    halves = torch.randint(-16, 16, (16, columns), generator=g) / 2  # ties of every format, equal extremes of both signs
    sparse = normal(8) * (torch.rand(8, columns, generator=g) < 0.03)
    rows = [
        normal(32),
        normal(16) ** 3,
        normal(24) * scale,
        halves,
        halves * 0.1,
        torch.randint(-127, 128, (8, columns), generator=g) + 0.5,
        sparse,
        normal(4).abs() + 3,  # one sign, far from zero
        -normal(4).abs() - 3,
        normal(4).clamp(-6, 6) * 1e4,  # scales near the end of float16
        normal(8) * torch.tensor([1e-36, 1e-38, 1e-40, 1e-44]).repeat(2)[:, None],  # subnormal in float32
        normal(4) * 2e-7,  # scales subnormal in float16
        torch.zeros(2, columns),
        -torch.zeros(2, columns),
        torch.full((2, columns), 0.3),
        torch.full((2, columns), -1.0),
        torch.tensor([3.0, -3.0]).repeat(2, columns // 2),
        torch.tensor([-3.0, 3.0, 0.0, -0.0]).repeat(2, columns // 4),
    ]
    return torch.cat(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """margay-nano whose down projections are adversarial numbers, and those numbers."""
    if not MARGAY:
        pytest.skip("MARGAY is not set: it names the program to compare with")
    out = tmp_path_factory.mktemp("adversarial")
    for path in NANO.iterdir():
        if path.name != "model.safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    held = {k: v.float() for k, v in load_file(NANO / "model.safetensors").items()}
    down = held["model.layers.0.mlp.down_proj.weight"]
    x = adversarial(down.shape[1])
    assert x.shape[0] <= down.shape[0] and x.shape[1] % 256 == 0
    down[: len(x)] = x
    save_file(held, out / "model.safetensors", {"format": "pt"})
    return out, down


@pytest.mark.parametrize("name", CONVERTED)
def test_rounding_equals_what_margay_writes_and_reads(name, folder, tmp_path):
    source, x = folder
    blocks, numbers = tmp_path / "blocks.gguf", tmp_path / "numbers.gguf"
    for command in ([str(source), "-o", str(blocks), "--type", name], [str(blocks), "-o", str(numbers), "--type", "f32"]):
        subprocess.run([MARGAY, "convert", *command, "--single"], check=True, capture_output=True)
    (kept,) = [t for t in GGUFReader(blocks).tensors if t.name == "blk.0.ffn_down.weight"]
    assert kept.tensor_type.name.lower() == name
    (found,) = [t for t in GGUFReader(numbers).tensors if t.name == "blk.0.ffn_down.weight"]
    got = round_rows(x, name)[0]
    differ = (got.view(torch.int32) != torch.from_numpy(np.array(found.data)).view(torch.int32)).any(-1).nonzero().flatten()
    assert same_bits(got, np.array(found.data)), f"rows {differ.tolist()}"


def test_uniform_formats_at_the_width_of_a_block_are_that_block():
    x = adversarial(64)
    for uniform, block in [("int4", "q4_0"), ("int5:32", "q5_0"), ("uint4", "q4_1"), ("uint5", "q5_1")]:
        assert same_bits(round_rows(x, uniform)[0], round_rows(x, block)[0])


@pytest.mark.parametrize("name, levels, bits", [("int2", 4, 2.5), ("int3:64", 8, 3.25), ("uint2", 4, 3), ("uint3", 8, 4)])
def test_uniform_groups_have_their_levels_and_bits(name, levels, bits):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    group = 64 if ":" in name else 32
    y = round_rows(x, name)[0].unflatten(-1, (-1, group))
    counts = [len(row.unique()) for row in y.flatten(0, 1)]
    assert max(counts) == levels
    assert bits_per_weight(name) == bits
    off = (y.flatten(-2) - x).abs().amax()
    assert off < x.abs().amax() / (levels / 2) + 1e-3


def test_numbers_beyond_the_range_are_told():
    x = torch.zeros(32)
    x[:4] = torch.tensor([-8.0, 7.4, 7.6, 8.0])
    y, inside = round_rows(x, "q4_0")
    assert y[:4].tolist() == [-8.0, 7.0, 7.0, 7.0]
    assert inside.tolist() == [True, True, False, False] + [True] * 28


def test_names_and_rows_that_do_not_fit_are_refused():
    for name in ("q9_0", "int1", "int2:", "int2:0", "uint", "lsq4"):
        with pytest.raises(ValueError, match="no format"):
            round_rows(torch.zeros(32), name)
    with pytest.raises(ValueError, match="a row of 48 is no multiple of the 32"):
        round_rows(torch.zeros(2, 48), "q4_0")
