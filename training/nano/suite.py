"""Writes held-out pictures and questions as the suite `nano` of `margay eval`.

    python suite.py SUITE --pictures 500
    margay eval --suite nano --data SUITE

SUITE/images holds the pictures, SUITE/questions.jsonl a question a line: what is asked and answered, its kind, and how
often a guesser is right who knows what is in the picture. The same seed gives the same suite; `evaluate.py` asks the
same questions through PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from draw import draw
from evaluate import EVAL_SEED, examples


def write(folder: Path, pictures: int, per_picture: int, seed: str) -> int:
    """The number of questions written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (scene, rng, asked) in enumerate(examples(pictures, per_picture, seed)):
        name = f"{i:05}.png"
        draw(scene, rng).save(folder / "images" / name)
        for at, qa in enumerate(asked):
            line = dict(id=f"{i:05}.{at}", image=name, kind=qa.kind, question=qa.question, answer=qa.answer, chance=qa.chance)
            lines.append(json.dumps(line, ensure_ascii=False))
    # Last, so that a folder with questions has all their pictures.
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return len(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--pictures", type=int, default=500)
    p.add_argument("--per-picture", type=int, default=12, help="kinds asked about a picture; some scenes have fewer")
    p.add_argument("--seed", default=EVAL_SEED, help="another text gives other pictures")
    a = p.parse_args()
    print(f"{write(a.folder, a.pictures, a.per_picture, a.seed)} questions about {a.pictures} pictures in {a.folder}")


if __name__ == "__main__":
    main()
