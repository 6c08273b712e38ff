"""What encoding only the patches of a frame that changed costs in answers.

    frames.py --margay target/release/margay --suite SUITE [--model MODEL] [--limit 300] [--seed 1]

SUITE is what `training/nano/suite.py` writes. Of each of its pictures a clip of two frames is made: the second is the picture,
the first is the picture but for a square that shows what another one does. Questions are asked about the second frame, as
`margay run --video` sees it: encoded whole, and by the patches that changed. Prints a table in Markdown; shares of right
answers are of the same questions in each line, and "first frame" tells what is lost where nothing is encoded anew.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

SHARES = [0.1, 0.25, 0.5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300, help="questions, evenly spread")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    questions = [json.loads(line) for line in (args.suite / "questions.jsonl").read_text().splitlines()]
    questions = questions[:: max(1, len(questions) // args.limit)][: args.limit]
    pictures = sorted((args.suite / "images").iterdir())
    print("| square that changes | patches encoded of the second frame | right, whole | right, changed patches | the same words | right, first frame |")
    print("|---|---|---|---|---|---|")
    for share in SHARES:
        chosen = random.Random(args.seed)
        counts, patches, of = dict.fromkeys(["whole", "changed", "same", "first"], 0), 0, 0
        for question in questions:
            picture = Image.open(args.suite / "images" / question["image"]).convert("RGB")
            other = Image.open(chosen.choice(pictures)).convert("RGB").resize(picture.size)
            side = [round(length * share**0.5) for length in picture.size]
            left, top = (chosen.randint(0, length - part) for length, part in zip(picture.size, side, strict=True))
            square = (left, top, left + side[0], top + side[1])
            before = picture.copy()
            before.paste(other.crop(square), square)
            with tempfile.TemporaryDirectory() as folder:
                before.save(f"{folder}/1.png")
                first, _ = ask(args, folder, question, [])
                picture.save(f"{folder}/2.png")
                whole, all_patches = ask(args, folder, question, [])
                changed, encoded = ask(args, folder, question, ["--changed-patches"])
            each = all_patches["of_patches"] // 2
            patches, of = patches + encoded["patches"] - each, of + each
            for name, said in [("whole", whole), ("changed", changed), ("first", first)]:
                counts[name] += plain(said) == plain(question["answer"])
            counts["same"] += whole == changed
        shares = {name: f"{100 * count / len(questions):.1f}%" for name, count in counts.items()}
        print(f"| {share:.0%} of the picture | {100 * patches / of:.0f}% | {shares['whole']} | {shares['changed']} | {shares['same']} | {shares['first']} |", flush=True)


def plain(words: str) -> str:
    return words.strip(" .").lower()


def ask(args: argparse.Namespace, folder: str, question: dict, options: list[str]) -> tuple[str, dict]:
    """The answer about the last frame, and the counts of the clip."""
    model = [args.model] if args.model else []
    words = [args.margay, "run", *model, "--video", folder, "--max-frames", "1", "--pool", "1", "--least-change", "0"]
    done = subprocess.run([*words, *options, "--json", question["question"]], text=True, capture_output=True, check=True)
    told = json.loads(done.stdout)
    return told["text"], told["video"]


if __name__ == "__main__":
    main()
