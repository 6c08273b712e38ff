"""What it gains that stages of an answer run at the same time.

    overlap.py --margay target/release/margay [--model MODEL [--mmproj FILE]] [--pictures 4] [--pixels 12] [--rounds 7]
               [--ways off,auto,on] [--threads N]

Makes pictures of so many million pixels (JPEG and PNG in turn: noise on a gradient, so that decoding takes what a photograph's
does) and asks one question about all of them, `margay run --overlap` each way in turn, every round in another order. The answers
must be the same. Prints medians (and the least) over the rounds of the time to the first token (decoding the pictures counts,
loading does not) and of the whole process, and the median of each round's ratio to `off`, as a table in Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="the model inside the program unless given")
    parser.add_argument("--mmproj", type=Path, help="its vision file, where it is not found beside it")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--pixels", type=float, default=12, help="million pixels of a picture")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", default="off,auto,on")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    ways = args.ways.split(",")
    with tempfile.TemporaryDirectory() as folder:
        paths = [picture(Path(folder), at, args.pixels) for at in range(args.pictures)]
        first = {way: [] for way in ways}
        whole = {way: [] for way in ways}
        answers = {}
        for turn in range(args.rounds):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                took, said = run(args, paths, way)
                first[way].append(said["stages"]["ttft_ms"])
                whole[way].append(took)
                answers[way] = said["tokens"]
                print(f"round {turn + 1}, {way}: {first[way][-1]:.0f} ms, process {took:.0f} ms", file=sys.stderr)
        if any(tokens != answers[ways[0]] for tokens in answers.values()):
            raise SystemExit(f"the answers differ: {answers}")
    print("| --overlap | first token, ms (least) | beside off | process, ms (least) | beside off |")
    print("|---|---|---|---|---|")
    for way in ways:
        cells = []
        for times in (first, whole):
            ratio = statistics.median(a / b for a, b in zip(times[way], times[ways[0]], strict=True))
            cells += [f"{statistics.median(times[way]):.0f} ({min(times[way]):.0f})", f"{ratio:.2f}"]
        print(f"| {way} | {' | '.join(cells)} |")


def picture(folder: Path, at: int, pixels: float) -> Path:
    """A file of its own picture: a JPEG, or every second one a PNG."""
    width = round((pixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    random = np.random.default_rng(at)
    slope = np.linspace(40, 200, width)[None, :, None] * np.linspace(0.5, 1, height)[:, None, None]
    coarse = random.integers(-40, 40, (height // 16 + 1, width // 16 + 1, 3))
    coarse = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    levels = slope + coarse + random.integers(-6, 6, (height, width, 3))
    path = folder / f"{at}.{'png' if at % 2 else 'jpg'}"
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def run(args: argparse.Namespace, paths: list[Path], way: str) -> tuple[float, dict]:
    command = [str(args.margay), "run", "--overlap", way, "--json", "--max-tokens", "4"]
    command += ["--model", str(args.model)] if args.model else []
    command += ["--mmproj", str(args.mmproj)] if args.mmproj else []
    command += ["--threads", str(args.threads)] if args.threads else []
    command += [word for path in paths for word in ("--image", str(path))]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--prompt", "What is there?"], check=True, capture_output=True, text=True)
    return (time.perf_counter() - begin) * 1000, json.loads(done.stdout)


if __name__ == "__main__":
    main()
