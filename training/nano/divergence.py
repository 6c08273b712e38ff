"""How far a faster path moves the distribution over the next token from the same weights computed in float32.

    python divergence.py --margay PATH/TO/margay --model nano-q4_0.gguf --pictures 40 \
        --variant= --variant=--int8-encoder "--variant=--kv q8"

Each question is traced twice: by the reference backend (float32 throughout, the weights as the file has them) and by
the CPU with a variant's options. KL(reference || variant), in nats, is taken at each position of the prompt from the
first visual token on, with keys and values in float32 unless a variant says --kv q8; `agree` is the share of positions with the same likeliest token. --from RUN OPTIONS compares with
another run of the CPU instead, such as --from= for its defaults.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from draw import draw
from evaluate import examples


def logits(binary: str, model: str, picture: Path, question: str, options: list[str]) -> np.ndarray:
    """[T, vocabulary] from the first visual token on."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trace.safetensors"
        command = [binary, "trace", model, "--image", str(picture), "--prompt", question, "--out", str(out), *options]
        subprocess.run(command, capture_output=True, check=True)
        tensors = load_file(out)
        first = int(np.argmax(tensors["input_ids"] < 0))
        return tensors["logits"].astype(np.float64)[first:]


def divergence(expected: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL of each row, nats, and whether both rows have the same greatest element."""

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(got)
    return (np.exp(p) * (p - q)).sum(-1), expected.argmax(-1) == got.argmax(-1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--margay", required=True)
    p.add_argument("--model", required=True, help="a GGUF file of nano, in any type")
    p.add_argument("--pictures", type=int, default=40)
    p.add_argument("--seed", default="divergence", help="another text gives other pictures")
    p.add_argument("--variant", action="append", default=[], help="options of `margay trace`, in one word; may be repeated")
    p.add_argument("--from", dest="base", default="--backend reference", help="options of what is compared with")
    p.add_argument("--jobs", type=int, default=2)
    a = p.parse_args()
    variants = a.variant or [""]
    found = {variant: ([], []) for variant in variants}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(a.jobs) as pool:
        work = []
        for i, (scene, rng, asked) in enumerate(examples(a.pictures, 3, a.seed)):
            path = Path(folder) / f"{i}.png"
            draw(scene, rng).save(path)
            work += [(path, qa.question) for qa in asked]

        def run(item):
            ask = lambda options: logits(a.margay, a.model, *item, shlex.split(options))
            expected = ask(a.base)
            return [divergence(expected, ask(variant)) for variant in variants]

        for results in pool.map(run, work):
            for variant, (kl, same) in zip(variants, results):
                found[variant][0].append(kl)
                found[variant][1].append(same)
    print(f"{len(work)} questions about {a.pictures} pictures, against: {a.base or 'the defaults'}")
    print(f"{'variant':32} {'mean KL':>9} {'median':>9} {'99 %':>9} {'greatest':>9} {'agree':>7}")
    for variant, (kl, same) in found.items():
        kl, same = np.concatenate(kl), np.concatenate(same)
        figures = [kl.mean(), np.median(kl), np.quantile(kl, 0.99), kl.max()]
        print(f"{variant or 'defaults':32} " + " ".join(f"{x:9.2e}" for x in figures) + f" {same.mean():7.2%}")


if __name__ == "__main__":
    main()
