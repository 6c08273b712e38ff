"""How many answers survive when visual tokens are left out, method by method.

    reduction.py --margay target/release/margay --suite SUITE [--model MODEL] [--shares 75,50,25] [--limit N]
    reduction.py --margay target/release/margay --suite SUITE --inside 1,2,3 [--by attention,diverse,random] [...]

SUITE is what `training/nano/suite.py` writes. Prints a table in Markdown: all questions, and those that read a text apart,
because a text is lost first. The first row leaves nothing out; `auto` rows say how many tokens a picture keeps in the mean,
over the suite's pictures, and how many pictures are kept whole for their text. With --limit the same subset for all. With
--inside K,... tokens are left out inside the decoder instead, behind its first K layers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

METHODS = ["merge", "diverse", "visionzip", "prumerge", "even", "random"]
# Those that make sense where the picture says how many stay; random at that number is the baseline.
AUTO = ["merge", "diverse", "visionzip", "prumerge", "random"]
# The task of reading a sign.
TEXT = "read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="the built-in model unless given")
    parser.add_argument("--shares", default="75,50,25", help="percent of the tokens that stay")
    parser.add_argument("--limit", type=int, help="so many questions, the same for all")
    parser.add_argument("--inside", help="layers that see all tokens; the others see the share")
    parser.add_argument("--by", default="attention,diverse,random", help="how --inside chooses")
    args = parser.parse_args()
    print("| tokens that stay | method | right, % | 95% within | texts read, % |")
    print("|---|---|---|---|---|")
    row(args, "all", "", [])
    if args.inside:
        for layer in args.inside.split(","):
            for share in args.shares.split(","):
                for method in args.by.split(","):
                    extra = ["--prune-image-tokens", f"{share}%", "--prune-layer", layer, "--prune-by", method]
                    row(args, f"{share}% behind layer {layer}", method, extra)
        return
    for share in args.shares.split(","):
        for method in METHODS:
            row(args, f"{share}%", method, ["--keep-image-tokens", f"{share}%", "--reduce", method])
    for method in AUTO:
        extra = ["--keep-image-tokens", "auto", "--reduce", method]
        row(args, f"auto, {kept(args, extra)}", method, extra)


def kept(args: argparse.Namespace, extra: list[str]) -> str:
    """The mean share of a picture's tokens that stay, and of pictures that are kept whole for their text."""
    tokens = of = texts = count = 0
    for picture in sorted((args.suite / "images").iterdir()):
        words = [args.margay, "run", *([args.model] if args.model else []), "--image", picture, "-p", "What is this?"]
        told = answer([*words, "--json", "--max-tokens", "1", *extra])["pictures"][0]
        tokens, of, count = tokens + told["tokens"], of + told["of"], count + 1
        texts += told["why"] == "text"
    return f"{100 * tokens / of:.0f}% in the mean, {100 * texts / count:.0f}% of pictures whole for text"


def answer(command: list) -> dict:
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout)


def row(args: argparse.Namespace, share: str, method: str, extra: list[str]) -> None:
    command = [args.margay, "eval", *([args.model] if args.model else []), "--suite", "nano", "--data", args.suite]
    limit = ["--limit", args.limit] if args.limit else []
    told = answer([*command, "--json", *limit, *extra])
    value, interval = told["headline"]["value"], told["headline"]["interval"]
    read = next(task["figures"]["exact"] for task in told["tasks"] if task["task"] == TEXT)
    print(f"| {share} | {method} | {value:.1f} | {interval['low']:.1f} to {interval['high']:.1f} | {read:.1f} |", flush=True)


if __name__ == "__main__":
    main()
