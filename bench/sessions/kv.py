"""What each type of keys and values takes, and what it costs.

    kv.py --margay target/release/margay --model NANO.gguf --suite SUITE [--samples 64] [--limit 512] --kept F16.jsonl

SUITE is what `training/nano/suite.py` writes. Prints a table in Markdown: bytes a token in all layers, the mean divergence of
next tokens from those with keys and values in float32 and how often the likeliest is the same (`margay compare`), and the
right answers of the questions (`margay eval`, which is within `compare`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

TYPES = ["f32", "f16", "q8", "q8_0", "fp8", "q4_0", "kivi2"]
DROPPED = [
    ("f16, snapkv 75%", ["--kv", "f16", "--evict", "snapkv", "--kv-budget", "75%"]),
    ("f16, snapkv 50%", ["--kv", "f16", "--evict", "snapkv", "--kv-budget", "50%"]),
    ("f16, h2o 75%", ["--kv", "f16", "--evict", "h2o", "--kv-budget", "75%"]),
    ("f16, h2o 50%", ["--kv", "f16", "--evict", "h2o", "--kv-budget", "50%"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--samples", default="64", help="questions whose next tokens are compared")
    parser.add_argument("--limit", default="512", help="questions that are answered")
    parser.add_argument("--kept", type=Path, required=True, help="a file for the answers with f16, which are asked once")
    parser.add_argument("--only", help="these types, and nothing dropped")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None
    print("| keys and values | bytes a token | mean KL, nats | same likeliest | right | same words as f16 |")
    print("|---|---|---|---|---|---|")
    for kind in only or TYPES:
        difference, paired = compare(args, ["--kv", kind])
        row(kind, f"{token_bytes(args, kind):.0f}", difference["all"], paired)
    for name, options in [] if only else DROPPED:
        # Nothing is dropped while next tokens are compared.
        _, paired = compare(args, [*options, "--samples", "1"])
        row(name, "", None, paired)


def row(name: str, size: str, next_token: dict | None, paired: dict) -> None:
    kl = f"{next_token['mean']:.1e}" if next_token else ""
    same = f"{100 * next_token['same_top1']:.2f}%" if next_token else ""
    asked = sum(paired[key] for key in ["both", "only_reference", "only_candidate", "neither"])
    right = f"{paired['candidate']['value']:.1f}%"
    print(f"| {name} | {size} | {kl} | {same} | {right} | {paired['same_answers']} of {asked} |", flush=True)


def compare(args: argparse.Namespace, options: list[str]) -> tuple[dict, dict]:
    samples = [] if "--samples" in options else ["--samples", args.samples]
    kept = args.kept
    told = ask(
        args,
        ["compare", args.model, args.model, "--suite", "nano", "--data", args.suite, "--limit", args.limit],
        [*samples, "--ref-answers", kept, *options, "--json"],
    )
    return told["difference"], told["suite"]["paired"]


def token_bytes(args: argparse.Namespace, kind: str) -> float:
    """Of full blocks; buffers beside them, which all types have alike, do not count."""

    def cache(kind: str, context: int) -> int:
        told = ask(args, ["inspect", args.model], ["--kv", kind, "--context", context, "--json"])
        return told["memory"]["cache_bytes"]

    def grows(kind: str) -> float:
        return (cache(kind, 1024) - cache(kind, 768)) / 256

    return grows(kind) - grows("f16") + cache("f16", 128) / 128


def ask(args: argparse.Namespace, command: list, options: list) -> dict:
    done = subprocess.run([str(word) for word in [args.margay, *command, *options]], text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
