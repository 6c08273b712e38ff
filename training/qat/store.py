"""Writes a folder of rounded weights as a GGUF file that holds them exactly.

    python store.py FOLDER OUT.gguf --margay PATH/TO/margay [--type q4_0] [--vision-type f16]

`margay convert --type q4_0` rounds again: what was rounded by q4_0, q5_0 or q8_0 comes out as it is (test_store.py), but
weights on a learned grid, or of fewer bits, do not: it puts the extreme number of a block at the end of the range. Here
`margay convert` lays out the file and names the tensors, once with float32 numbers and once with blocks, and each block is
then replaced by one that decodes to the numbers. Any runtime that knows the type reads the file. A block whose numbers no
scale gives exactly is an error, not an approximation.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader

# Type: least and greatest code.
SIGNED = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-127, 127)}
RANGED = {"Q4_1": 15}


def extreme(x):
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def signed_codes(x: torch.Tensor, low: int, high: int):
    """Float16 scale [N, 1] and whole codes with x = scale q exactly, and where there are such [N]."""
    d, q = torch.zeros_like(x[:, :1]), torch.zeros_like(x)
    found = (x == 0).all(-1)
    most = extreme(x)
    for k in [k * sign for k in range(max(-low, high), 0, -1) for sign in (-1, 1)]:
        if found.all():
            break
        trial = (most / k).half().float()
        codes = torch.where(trial != 0, x / trial, 0.0).round()
        fits = (trial * codes == x) & (codes >= low) & (codes <= high)
        new = fits.all(-1) & ~found
        d, q, found = torch.where(new[:, None], trial, d), torch.where(new[:, None], codes, q), found | new
    return d, q, found


def ranged_codes(x: torch.Tensor, top: int):
    """As `signed_codes`, with a float16 minimum: x = scale q + minimum in float32, for blocks that use code 0."""
    m = x.amin(-1, keepdim=True).half().float()
    d, q = torch.zeros_like(m), torch.zeros_like(x)
    found = (x == m).all(-1)
    for k in range(top, 0, -1):
        trial = ((x.amax(-1, keepdim=True) - m) / k).half().float()
        codes = torch.where(trial != 0, (x - m) / trial, 0.0).round()
        fits = (trial * codes + m == x) & (codes >= 0) & (codes <= top)
        new = fits.all(-1) & ~found
        d, q, found = torch.where(new[:, None], trial, d), torch.where(new[:, None], codes, q), found | new
    return d, m, q, found


def pack(fields, nibbles=None, high_bits=None, codes=None) -> np.ndarray:
    """Blocks [N, bytes]: float16 fields, fifth bits, then nibbles (number j low, j + 16 high) or whole bytes."""
    parts = [f.half().numpy().view(np.uint8) for f in fields]
    if high_bits is not None:
        bits = (high_bits.numpy().astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(-1, keepdims=True, dtype=np.uint32)
        parts.append(bits.view(np.uint8))
    if nibbles is not None:
        n = nibbles.numpy().astype(np.uint8)
        parts.append(n[:, :16] | n[:, 16:] << 4)
    if codes is not None:
        parts.append(codes.numpy().astype(np.int8).view(np.uint8))
    return np.concatenate(parts, -1)


def blocks(x: torch.Tensor, kind: str) -> tuple[np.ndarray, torch.Tensor]:
    """Blocks of type `kind` [N, bytes] that decode to x [N, 32] exactly, and where they do [N]."""
    if kind in RANGED:
        d, m, q, found = ranged_codes(x, RANGED[kind])
        return pack([d, m], nibbles=q), found
    low, high = SIGNED[kind]
    d, q, found = signed_codes(x, low, high)
    if kind == "Q8_0":
        return pack([d], codes=q), found
    q = q - low
    return pack([d], nibbles=q % 16, high_bits=q // 16 if kind == "Q5_0" else None), found


def store(folder: Path, out: Path, margay: str, dtype="q4_0", vision_dtype="q4_0") -> dict[str, str]:
    """Writes `out`; says which tensors are held exactly, in which type."""
    exact = {}
    with tempfile.TemporaryDirectory(dir=out.parent) as held:
        numbers, laid_out = Path(held) / "numbers.gguf", Path(held) / "blocks.gguf"
        convert = lambda to, a, b: subprocess.run(  # noqa: E731
            [margay, "convert", str(folder), "-o", str(to), "--single", "--type", a, "--vision-type", b], check=True, stdout=subprocess.DEVNULL
        )
        convert(numbers, "f32", "f32")
        convert(laid_out, dtype, vision_dtype)
        wanted = {t.name: t for t in GGUFReader(numbers).tensors}
        for tensor in GGUFReader(laid_out, "r+").tensors:
            kind = tensor.tensor_type.name
            if kind not in SIGNED and kind not in RANGED:
                continue
            x = torch.from_numpy(np.array(wanted[tensor.name].data)).reshape(-1, 32)
            data, found = blocks(x, kind)
            if not found.all():
                lost = (~found).sum().item()
                raise ValueError(
                    f"{tensor.name}: no block of {kind} holds the numbers of {lost} of {len(x)} groups exactly; was it rounded in training?"
                    " Other types: --type, --vision-type"
                )
            tensor.data[:] = data.reshape(tensor.data.shape)
            tensor.data.flush()
            exact[tensor.name] = kind
        os.replace(laid_out, out)
    return exact


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--margay", required=True)
    p.add_argument("--type", default="q4_0", help="of the decoder")
    p.add_argument("--vision-type", default="q4_0")
    a = p.parse_args()
    exact = store(a.folder, a.out, a.margay, a.type, a.vision_type)
    print(f"{a.out}: {a.out.stat().st_size} bytes, {len(exact)} tensors hold the folder's numbers exactly")


if __name__ == "__main__":
    main()
