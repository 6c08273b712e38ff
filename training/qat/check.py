"""Compares the logits of a stored file in Margay with those of the folder it was made from in PyTorch.

    python check.py RUN/export RUN/nano.gguf --margay PATH/TO/margay --pictures 4

`reference` computes in float32 with the file's weights, as PyTorch does with the folder's: only the order of sums differs.
`cpu` multiplies int8 activations; `cpu, int8 in PyTorch` has PyTorch round the inputs of quantized layers alike.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import nano  # noqa: F401, puts its folder on the path
from draw import draw
from evaluate import examples
from export import reload
from layers import Int8Groups
from model import n_visual


def trace(margay: str, gguf: Path, picture: Path, question: str, backend: str) -> dict:
    with tempfile.TemporaryDirectory() as held:
        out = Path(held) / "trace.safetensors"
        command = [margay, "trace", str(gguf), "--image", str(picture), "--prompt", question, "--out", str(out), "--backend", backend]
        subprocess.run(command, check=True, capture_output=True)
        return load_file(out)


def as_stored(folder: Path):
    """The folder's model; what a file keeps in float16 is rounded to it."""
    model = reload(folder)
    for conv in (model.vision.embeddings.patch_embedding, model.model.mm_projector.peg.peg[0]):
        conv.weight.data = conv.weight.data.half().float()
    return model


@torch.no_grad()
def logits(model, traced: dict):
    """Of the same pixels and ids [T, vocabulary]."""
    ids = traced["input_ids"].long()
    gap, n = int((ids < 0).nonzero()[0]), len(ids)
    assert (ids < 0).sum() == n_visual()
    tokens = model.model.mm_projector(model.vision(traced["pixel_values"]))
    mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    return model.decode(ids.clamp(min=0)[None], tokens, gap, torch.arange(n)[None], mask)[0]


def differences(folder: Path, gguf: Path, margay: str, pictures: int, backend: str, int8: bool = False):
    """Greatest difference of a logit, the logits' spread, and the share of positions with the same likeliest token."""
    model = as_stored(folder)
    hooks = []
    if int8:  # the products that have 8-bit activations: those of blocks
        matrices = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        hooks = [m.register_forward_pre_hook(lambda _, args: (Int8Groups.apply(args[0]),)) for m in matrices]
    most, spread, same = 0.0, [], []
    with tempfile.TemporaryDirectory() as held:
        for i, (scene, rng, asked) in enumerate(examples(pictures, 3, "qat check")):
            path = Path(held) / f"{i}.png"
            draw(scene, rng).save(path)
            for qa in random.Random(i).sample(asked, 1):
                traced = trace(margay, gguf, path, qa.question, backend)
                ours, theirs = logits(model, traced), traced["logits"]
                most = max(most, (ours - theirs).abs().max().item())
                spread.append(theirs.std().item()), same.append((ours.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    for hook in hooks:
        hook.remove()
    return most, sum(spread) / len(spread), sum(same) / len(same)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("gguf", type=Path)
    p.add_argument("--margay", required=True)
    p.add_argument("--pictures", type=int, default=4)
    a = p.parse_args()
    torch.set_num_threads(1)
    for name, backend, int8 in (("reference", "reference", False), ("cpu", "cpu", False), ("cpu, int8 in PyTorch", "cpu", True)):
        most, spread, same = differences(a.folder, a.gguf, a.margay, a.pictures, backend, int8)
        print(f"{name:22} greatest difference {most:.2e}, logits' spread {spread:.2f}, same likeliest token {100 * same:.1f} %")


if __name__ == "__main__":
    main()
