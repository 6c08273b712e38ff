"""How many answers survive when visual tokens are left out, method by method.

    reduction.py --margay target/release/margay --suite SUITE [--model MODEL] [--shares 75,50,25,11]

SUITE is what `training/nano/suite.py` writes. Prints a table in Markdown: all questions, and those that read a text apart,
because a text is lost first. The first row leaves nothing out.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

METHODS = ["merge", "diverse", "even", "random"]
# The task of reading a sign.
TEXT = "read"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="the built-in model unless given")
    parser.add_argument("--shares", default="75,50,25,11", help="percent of the tokens that stay")
    args = parser.parse_args()
    print("| tokens that stay | method | right, % | 95% within | texts read, % |")
    print("|---|---|---|---|---|")
    row(args, "all", "", [])
    for share in args.shares.split(","):
        for method in METHODS:
            row(args, f"{share}%", method, ["--keep-image-tokens", f"{share}%", "--reduce", method])


def row(args: argparse.Namespace, share: str, method: str, extra: list[str]) -> None:
    command = [args.margay, "eval", *([args.model] if args.model else []), "--suite", "nano", "--data", args.suite, "--json"]
    done = subprocess.run([str(word) for word in [*command, *extra]], text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    told = json.loads(done.stdout)
    value, interval = told["headline"]["value"], told["headline"]["interval"]
    read = next(task["figures"]["exact"] for task in told["tasks"] if task["task"] == TEXT)
    print(f"| {share} | {method} | {value:.1f} | {interval['low']:.1f} to {interval['high']:.1f} | {read:.1f} |", flush=True)


if __name__ == "__main__":
    main()
