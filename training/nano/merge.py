"""Joins a vision run and decoder runs into one checkpoint; several decoders are averaged, weight by weight.

    python merge.py VISION_RUN OUT_RUN DECODER_RUN=WEIGHT [DECODER_RUN=WEIGHT ...]

The shipped weights: two decoder runs that parted from one checkpoint, at .35 and .65.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

VISION = ("vision_tower", "mm_projector")


def load(run: str) -> dict:
    return torch.load(Path(run) / "last.pt", map_location="cpu", weights_only=False)


def main(vision: str, out: str, *decoders: str) -> None:
    merged = load(vision)
    parts = [(load(run), float(weight)) for run, _, weight in (d.rpartition("=") for d in decoders)]
    if abs(sum(weight for _, weight in parts) - 1) > 1e-6:
        sys.exit("the decoders' weights must add up to 1")
    for name in parts[0][0]["model"]:
        if not any(place in name for place in VISION):
            merged["model"][name] = sum(weight * part["model"][name] for part, weight in parts)
    merged["optimizers"] = []
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(merged, Path(out) / "last.pt")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
