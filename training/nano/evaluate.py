"""Exact match per task on held-out seeds and held-out words, each beside the level of a guesser.

    python evaluate.py RUN_FOLDER --pictures 1500    # PyTorch, greedy by one teacher-forced pass

`suite.py` writes the same pictures and questions for `margay eval`.

One teacher-forced pass is exact for exact match: greedy decoding equals the target if and only if every argmax does.
The no-skill level of a kind is the better of two: always giving its most frequent answer, or a guess among the
answers that the picture makes possible (for instance the colours that occur in it).
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from draw import draw
from model import Aux, Config, Nano
from questions import MIX, one
from rows import Row, collate, mask_of
from scene import codes, make_scene, preprocess
from tokenizer import Tokenizer

EVAL_SEED = "held out"


def examples(n: int, per_picture: int = 12, seed: str = EVAL_SEED):
    """n scenes with pictures and questions, every kind asked about as often as the scene allows."""
    for i in range(n):
        rng = random.Random(f"{seed} {i}")
        scene = make_scene(rng, "eval")
        kinds = rng.sample(list(MIX["full"]), per_picture)
        asked = [qa for qa in (one(k, scene, rng, "eval") for k in kinds) if qa is not None]
        yield scene, rng, asked


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson, 95 %."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, right / n
    mid, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (mid - half) / (1 + z * z / n), (mid + half) / (1 + z * z / n)


class Tally:
    def __init__(self):
        self.right, self.n, self.chance, self.answers = Counter(), Counter(), Counter(), defaultdict(Counter)

    def add(self, qa, right: bool):
        self.right[qa.kind] += right
        self.n[qa.kind] += 1
        self.chance[qa.kind] += qa.chance
        self.answers[qa.kind][qa.answer] += 1

    def no_skill(self, kind):
        if kind.startswith("exist"):  # yes and no are even over all exist questions
            return 0.5
        return max(self.chance[kind], self.answers[kind].most_common(1)[0][1]) / self.n[kind]

    def table(self) -> str:
        lines = ["| task | exact | 95 % interval | n | no skill |", "|---|---|---|---|---|"]
        for k in sorted(self.n):
            lo, hi = interval(self.right[k], self.n[k])
            lines.append(f"| {k} | {self.right[k] / self.n[k]:.3f} | {lo:.3f} - {hi:.3f} | {self.n[k]} | {self.no_skill(k):.2f} |")
        return "\n".join(lines)


@torch.no_grad()
def score(model, aux, tok, pictures: int, *, device="cpu", symbolic=False, text=True, brief=False, size=32, wrong=None, seed=EVAL_SEED):
    """Tally over `pictures` scenes, or, if `brief`, a dict of accuracies with those of the visual codes (V...)."""
    model.eval()
    tally, seen, chars = Tally(), defaultdict(lambda: [0, 0]), [0, 0]
    todo = list(examples(pictures, seed=seed)) if pictures else []
    for at in range(0, len(todo), size):
        part = todo[at : at + size]
        truth = torch.tensor(np.stack([codes(s) for s, _, _ in part]), device=device)
        if symbolic:
            tokens = truth @ aux.book
        else:
            pixels = torch.stack([torch.from_numpy(preprocess(draw(s, r)).copy()) for s, r, _ in part]).to(device)
            tokens = model.see(pixels)[1]
            for k, (a, b) in aux.accuracy(tokens, truth).items():
                seen[k][0] += a
                seen[k][1] += b
        if not text:
            continue
        rows = []
        for _, _, asked in part:
            row = Row(tok)
            for qa in asked:
                row.add([qa])
            rows.append(row)
        b = {k: v.to(device) for k, v in collate(rows).items()}
        best = model.decode(b["ids"], tokens, rows[0].gap, b["pos"], mask_of(b["block"], b["blind"])).argmax(-1).cpu()
        for i, row in enumerate(rows):
            for qa, first, last in row.spans:
                hits = [int(best[i, j]) == row.target[j] for j in range(first, last)]
                tally.add(qa, all(hits))
                if qa.kind == "read":
                    chars[0] += sum(hits[:-1])
                    chars[1] += len(hits) - 1
                if wrong is not None and not all(hits):
                    wrong.append((at + i, qa, tok.decode(best[i, first:last])))
    if not brief:
        return tally
    out = {k: tally.right[k] / tally.n[k] for k in sorted(tally.n)}
    if chars[1]:
        out["char"] = chars[0] / chars[1]
    out.update({f"V{k}": a / max(1, b) for k, (a, b) in seen.items()})
    return out


def restore(folder: Path, tokenizer: Path, device="cpu"):
    state = torch.load(folder / "last.pt", map_location=device, weights_only=False)
    config = Config(**state["config"])
    model, aux = Nano(config).to(device), Aux(config).to(device)
    model.load_state_dict(state["model"]), aux.load_state_dict(state["aux"])
    return model.eval(), aux, Tokenizer(tokenizer), state


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run", type=Path)
    p.add_argument("--tokenizer", type=Path, default=Path(__file__).parent / "tokenizer.model")
    p.add_argument("--pictures", type=int, default=1000)
    p.add_argument("--seed", default=EVAL_SEED, help="another text gives other pictures")
    p.add_argument("--device", default="cpu")
    p.add_argument("--symbolic", action="store_true", help="decoder alone, on exact codes")
    p.add_argument("--wrong", type=int, default=0, help="show this many wrong answers")
    a = p.parse_args()
    model, aux, tok, state = restore(a.run, a.tokenizer, a.device)
    wrong = []
    print(f"step {state['step']}, {state['seen']} pictures, {state['seconds']:.0f} s")
    print(score(model, aux, tok, a.pictures, device=a.device, symbolic=a.symbolic, wrong=wrong, seed=a.seed).table())
    for i, qa, said in wrong[: a.wrong]:
        print(f"picture {i}: {qa.question!r} -> {said!r}, is {qa.answer!r} ({qa.kind})")


if __name__ == "__main__":
    main()
