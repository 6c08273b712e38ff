"""Packs scenes and their questions into batches.

One row is one picture with all its questions: [BOS USER : _] [V visual places] [question answer] [question answer]...
The block mask lets a question see the picture and itself only, and positions restart after the picture, so a row is
exactly equal to separate conversations (test_model.py) at a fraction of the cost. Some blocks are conversations of
two or three turns, and some rows carry a question that was asked without a picture (it sees BOS only).
"""

from __future__ import annotations

import random

import numpy as np
import torch

from draw import draw
from model import n_visual
from questions import NO_PICTURE, QA, ask_many
from scene import codes, make_scene, patch_labels, preprocess
from tokenizer import BOS, Tokenizer

WEIGHT = {
    "describe": 2.0,
    "read": 4.0,
    "count": 1.5,
    "where": 2.0,
    "where_yn": 1.5,
    "larger": 1.5,
    "smaller": 1.5,
}  # of a question in the loss


class Row:
    """Token ids with, for each, its position, block (0 the picture, -1 padding), blindness, target and weight."""

    def __init__(self, tok: Tokenizer):
        self.tok = tok
        self.gap = len(tok.before)
        n = self.gap + n_visual()
        self.ids = list(tok.before) + [0] * n_visual()
        self.pos, self.block, self.blind = list(range(n)), [0] * n, [0] * n
        self.target, self.weight = [-100] * n, [0.0] * n
        self.spans = []  # (QA, first, last + 1): where the logits of an answer are
        self.blocks = 0

    def add(self, turns: list[QA], picture: bool = True) -> None:
        self.blocks += 1
        at = self.gap + n_visual() if picture else 1
        for i, qa in enumerate(turns):
            asked = self.tok.question(qa.question) if picture and i == 0 else self.tok.turn(qa.question)
            said = self.tok.answer(qa.answer)
            first = len(self.ids) + len(asked) - 1
            new = (*asked, *said)
            self.ids += new
            self.pos += range(at, at + len(new))
            at += len(new)
            self.block += [self.blocks] * len(new)
            self.blind += [0 if picture else 1] * len(new)
            self.target += [-100] * len(new)
            self.weight += [0.0] * len(new)
            for k, token in enumerate(said):
                self.target[first + k] = token
                self.weight[first + k] = WEIGHT.get(qa.kind, 1.0) / len(said)
            self.spans.append((qa, first, first + len(said)))


def fill(row: Row, asked: list[QA], rng: random.Random, longest: int, chat: float) -> None:
    """Blocks until the row is full; `chat` is the share of conversations, counted by block."""
    i = 0
    while i < len(asked):
        n = rng.randint(2, 3) if rng.random() < chat else 1
        turns = asked[i : i + n]
        i += n
        cost = sum(len(row.tok.question(q.question)) + len(row.tok.answer(q.answer)) for q in turns)
        if len(row.ids) + cost <= longest:
            row.add(turns)
    if rng.random() < chat / 3 and asked and len(row.ids) + 24 <= longest:
        row.add([QA("no_picture", asked[0].question, NO_PICTURE)], picture=False)


def collate(rows: list[Row]) -> dict:
    n = max(len(r.ids) for r in rows)

    def pack(name, empty, dtype):
        return torch.tensor([getattr(r, name) + [empty] * (n - len(r.ids)) for r in rows], dtype=dtype)

    return dict(
        ids=pack("ids", BOS, torch.long),
        pos=pack("pos", 0, torch.long),
        block=pack("block", -1, torch.int16),
        blind=pack("blind", 0, torch.bool),
        target=pack("target", -100, torch.long),
        weight=pack("weight", 0.0, torch.float32),
    )


def mask_of(block, blind):
    """[B, 1, T, T], True where row i may look at column j."""
    n = block.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=block.device).tril()
    same = block[:, :, None] == block[:, None, :]
    prefix = (block == 0)[:, None, :] & ~blind[:, :, None]
    prefix[:, :, 0] = True
    return (causal & (same | prefix))[:, None]


def batch(
    rng: random.Random,
    size: int,
    tok: Tokenizer | None,
    *,
    pictures=True,
    kinds=None,
    mix="full",
    split="train",
    longest=190,
    chat=0.08,
    most=11,
    labels=True,
):
    """`kinds` maps a scene kind to its share (see make_scene); `tok` None leaves the text out."""
    scenes, rows, out = [], [], {}
    names, weights = zip(*(kinds or {"scene": 1}).items())
    for _ in range(size):
        scene = make_scene(rng, split, rng.choices(names, weights)[0])
        scenes.append(scene)
        if tok is not None:
            row = Row(tok)
            fill(row, ask_many(scene, rng, split, mix, most), rng, longest, chat)
            rows.append(row)
    if rows:
        out.update(collate(rows))
    if pictures:
        out["pixels"] = torch.from_numpy(np.stack([preprocess(draw(s, rng)) for s in scenes]))
    if labels:
        out["codes"] = torch.from_numpy(np.stack([codes(s) for s in scenes]))
        if pictures:
            out["labels"] = torch.from_numpy(np.stack([patch_labels(s) for s in scenes]))
    out["rows"], out["scenes"] = rows, scenes
    return out
