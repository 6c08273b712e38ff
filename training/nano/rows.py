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
from model import EVIDENCE, n_visual
from questions import NO_PICTURE, QA, ask_many
from scene import FACTS, codes, facts, make_scene, patch_labels, preprocess
from tokenizer import BOS, Tokenizer

WEIGHT = {
    "describe": 2.0,
    "read": 4.0,
    "count": 1.5,
    "count_all": 1.5,
    "where": 2.0,
    "where_yn": 1.5,
    "larger": 1.5,
    "smaller": 1.5,
}  # of a question in the loss


def evidence(qa: QA) -> np.ndarray | None:
    """Numbers an answer follows from, NaN where they play no part: how far the first thing is to the right of the
    second and below it, their sizes, a count."""
    out = np.full(EVIDENCE, np.nan, np.float32)
    if len(qa.points) == 2:
        a, b = (facts(thing) for _, thing in qa.points)
        out[:4] = a[3] - b[3], a[4] - b[4], 2 * a[2] - 1, 2 * b[2] - 1
    elif qa.kind in ("count", "count_all"):
        out[4] = int(qa.answer)
    else:
        return None
    return out


def spells(qa: QA) -> tuple[int, str] | None:
    """The word that an answer spells, and where it begins."""
    if qa.kind == "read":
        return 0, qa.answer
    says = " that says "
    at = qa.answer.find(says) if qa.kind == "describe" else -1
    return None if at < 0 else (at + len(says) - 1, qa.answer[at + len(says) :].rstrip("."))


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
        self.points = []  # (place, Thing): the last token of a phrase that points at it
        self.counts = []  # (place, how many): the last token of a phrase that says what to count
        self.spelled = []  # (place, number of the letter of a sign that comes next, or of letters where the word ends)
        self.numbers = []  # (place, what an answer follows from): the token before it
        self.blocks = 0

    def add(self, turns: list[QA], picture: bool = True) -> None:
        self.blocks += 1
        at = self.gap + n_visual() if picture else 1
        for i, qa in enumerate(turns):
            write = self.tok.question if picture and i == 0 else self.tok.turn
            asked = write(qa.question)
            if picture:
                for end, thing in qa.points:
                    self.points.append((len(self.ids) + self.tok.until(write, qa.question, end) - 1, thing))
                if qa.counts:
                    self.counts.append((len(self.ids) + self.tok.until(write, qa.question, qa.counts) - 1, int(qa.answer)))
                for end, thing in qa.tells:
                    told = len(asked) + self.tok.until(self.tok.answer, qa.answer, end) - 1
                    self.points.append((len(self.ids) + told, thing))
                if (numbers := evidence(qa)) is not None:
                    self.numbers.append((len(self.ids) + len(asked) - 1, numbers))
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
            if picture and (word := spells(qa)):
                start = first + self.tok.until(self.tok.answer, qa.answer, word[0]) if word[0] else first
                self.spelled += [(start + k, k) for k in range(len(word[1]) + 1)]
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

    points = [(i * n + at, thing) for i, r in enumerate(rows) for at, thing in r.points]
    numbers = [(i * n + at, values) for i, r in enumerate(rows) for at, values in r.numbers]
    counts = [(i * n + at, many) for i, r in enumerate(rows) for at, many in r.counts]
    spelled = [(i * n + at, k) for i, r in enumerate(rows) for at, k in r.spelled]
    return dict(
        spelled_at=torch.tensor([at for at, _ in spelled], dtype=torch.long),
        spelled=torch.tensor([k for _, k in spelled], dtype=torch.long),
        count_at=torch.tensor([at for at, _ in counts], dtype=torch.long),
        counts=torch.tensor([many for _, many in counts], dtype=torch.float32),
        number_at=torch.tensor([at for at, _ in numbers], dtype=torch.long),
        numbers=torch.from_numpy(np.stack([v for _, v in numbers]) if numbers else np.zeros((0, EVIDENCE), np.float32)),
        point_at=torch.tensor([at for at, _ in points], dtype=torch.long),
        point_to=torch.from_numpy(np.stack([facts(thing) for _, thing in points]) if points else np.zeros((0, FACTS), np.float32)),
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
