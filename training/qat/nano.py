"""margay-nano as a case: which of its matrices get what, its batches, and its losses."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

NANO = Path(__file__).resolve().parents[1] / "nano"
sys.path.append(str(NANO))  # behind this folder, whose train.py is another

from distill import answer_loss, hidden_loss  # noqa: E402
from rows import batch, mask_of  # noqa: E402

EYE = ("model.vision_tower", "model.mm_projector")
MATRICES = {
    "vision": r"vision_tower.*(_proj|fc[12])$|mm_projector\.mlp",
    "decoder": r"^model\.layers\..*_proj$",
}


def rules(bits: str, part: str) -> list[tuple[str, str | None]]:
    """`bits` is a rule of layers.py for the matrices inside the blocks of `part` (vision, decoder, both). Where it has the
    decoder, embedding and head take what `margay convert --type q4_0` gives them."""
    parts = list(MATRICES) if part == "both" else [part]
    out = [(MATRICES[p], bits) for p in parts]
    if "decoder" in parts:
        out += [(r"embed_tokens$", "q4_0"), (r"lm_head$", "q8_0")]
    return out


def of_part(model, part: str):
    """Named parameters that training may change."""
    return [(n, p) for n, p in model.named_parameters() if part == "both" or n.startswith(EYE) == (part == "vision")]


def pictures_and_questions(tok, size: int, seed: str, split: str = "train") -> dict:
    """`size` rows: a picture with some seven questions each."""
    return batch(random.Random(seed), size, tok, mix="full" if split == "eval" else "hard", split=split, labels=False)


def answer(model, b: dict, tokens=None):
    """Logits at every position of text [N, vocabulary], and the visual tokens they were told, unless `tokens` are given."""
    tokens = model.see(b["pixels"])[1] if tokens is None else tokens
    gap = int((b["ids"][0] == 0).nonzero()[0])
    text = (b["block"] > 0).flatten().nonzero()[:, 0]
    return model.decode(b["ids"], tokens, gap, b["pos"], mask_of(b["block"], b["blind"]), text), tokens


def is_answer(b: dict) -> torch.Tensor:
    """Of the positions of text, those that predict a token of an answer [N]."""
    return (b["target"] >= 0).flatten()[(b["block"] > 0).flatten()]


def loss(student, teacher, b: dict, part: str, others: float, hidden: float, temperature: float):
    """Total and parts; the teacher is the float model."""
    with torch.no_grad():
        told, tokens = answer(teacher, b)
    said, seen = answer(student, b, tokens if part == "decoder" else None)
    parts = dict(answers=answer_loss(said, told, is_answer(b), others, temperature))
    if part != "decoder" and hidden:
        parts["tokens"] = hidden * hidden_loss(seen, tokens)
    return sum(parts.values()), parts
