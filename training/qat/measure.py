"""What rounding costs margay-nano, before and after training: a row of a table for each variant.

    python measure.py float q4_0 int2 uint2 RUN/ste4 RUN/lsq4 --pictures 250

A variant is `float`, a rule of layers.py for both halves or one (`int2/decoder`), applied to the weights as they are (with
`lsqN` the step of each group is that of least error), or the folder of a run of train.py. Accuracy is exact match over all
kinds of questions on held-out pictures and words, with Wilson's interval; KL(float || variant) in nats and the share of
equal likeliest tokens are taken where a token of an answer is predicted, on other held-out pictures. Bytes are those of
the weights, packed to the bits that a rule needs.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch

import nano
from distill import divergence
from evaluate import interval, score
from export import reload
from formats import bits_per_weight
from layers import quantize, rounded
from model import Aux
from tokenizer import Tokenizer


def variant(name: str, weights: Path):
    """A plain model, and its modules' rules."""
    if (Path(name) / "export").is_dir():
        return reload(Path(name) / "export"), json.loads((Path(name) / "settings.json").read_text())["rules"]
    model = reload(weights)
    if name == "float":
        return model, {}
    bits, _, part = name.partition("/")
    model = copy.deepcopy(model)
    got = quantize(model, nano.rules(bits, part or "both"), "error")
    return rounded(model), got


def size_bytes(model, got: dict[str, str]) -> float:
    """Of all weights: what a rule names at its bits, other matrices and kernels in float16, the rest in float32."""
    bits = 0.0
    for name, p in model.named_parameters():
        module = name.removesuffix(".weight")
        if module in got:
            bits += p.numel() * bits_per_weight(got[module])
        else:
            bits += p.numel() * (16 if p.ndim > 1 and "position" not in name else 32)
    return bits / 8


@torch.no_grad()
def drift(model, teacher, tok, pictures: int, seed: str, size: int = 16):
    """Mean and 99th percentile of the divergence where answers are predicted, and agreement."""
    kl, same = [], []
    for i in range(0, pictures, size):
        b = nano.pictures_and_questions(tok, size, f"{seed} drift {i}", "eval")
        at = nano.is_answer(b)
        told, said = nano.answer(teacher, b)[0][at], nano.answer(model, b)[0][at]
        kl.append(divergence(said, told)), same.append(said.argmax(-1) == told.argmax(-1))
    kl, same = torch.cat(kl), torch.cat(same)
    return kl.mean().item(), kl.quantile(0.99).item(), same.float().mean().item()


def row(name: str, model, got, teacher, tok, pictures: int, seed: str) -> str:
    tally = score(model, Aux(model.config), tok, pictures, seed=seed)
    right, n = sum(tally.right.values()), sum(tally.n.values())
    low, high = interval(right, n)
    mean, tail, same = drift(model, teacher, tok, max(16, pictures // 4), seed)
    kinds = sorted(tally.n, key=lambda k: tally.right[k] / tally.n[k])[:3]
    worst = ", ".join(f"{k} {tally.right[k] / tally.n[k]:.2f}" for k in kinds)
    accuracy = f"{100 * right / n:.1f} | {100 * low:.1f} - {100 * high:.1f} | {n}"
    return f"| {name} | {accuracy} | {mean:.4f} | {tail:.3f} | {100 * same:.1f} | {size_bytes(model, got) / 1e6:.2f} | {worst} |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("variants", nargs="+")
    p.add_argument("--weights", type=Path, default=nano.NANO / "weights")
    p.add_argument("--pictures", type=int, default=250)
    p.add_argument("--seed", default="qat held out")
    a = p.parse_args()
    torch.set_num_threads(1)
    tok, teacher = Tokenizer(nano.NANO / "tokenizer.model"), reload(a.weights)
    print("| weights | exact % | 95 % interval | n | KL mean | KL 99 % | same token % | MB | worst |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in a.variants:
        model, got = variant(name, a.weights)
        print(row(name, model, got, teacher, tok, a.pictures, a.seed), flush=True)


if __name__ == "__main__":
    main()
