#!/usr/bin/env python3
"""Runs a conversation of many pictures in a control group that holds what the plan promised and 2% more, and no swap.

    sudo bench/memory/within_promise.py --margay target/release/margay --model mobilevlm-v2-1.7b:q4_0

The plan is `margay plan`'s for a device, the weights are random at the model's true shapes (`margay bench --shape --keep`), or
a file's with --file. Each turn shows another picture; where the context is nearly full the conversation begins anew, so that
the cache is filled again and again. Prints one JSON object; the exit status is 1 where the system ended the program, or it
did not answer every question.

Needs Linux, a memory controller (control groups of version 1 or 2), the right to make a group, and Pillow.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from PIL import Image


class Group:
    """A control group with a limit of memory, swap counted."""

    def __init__(self, limit):
        name = f"margay-promise-{os.getpid()}"
        second = pathlib.Path("/sys/fs/cgroup")
        self.version = 2 if (second / "cgroup.controllers").exists() else 1
        self.folder = (second if self.version == 2 else second / "memory") / name
        self.folder.mkdir()
        if self.version == 2:
            self.write("memory.max", limit)
            self.write("memory.swap.max", 0)
        else:
            self.write("memory.limit_in_bytes", limit)
            if (self.folder / "memory.memsw.limit_in_bytes").exists():
                self.write("memory.memsw.limit_in_bytes", limit)

    def write(self, file, value):
        (self.folder / file).write_text(str(value))

    def enter(self):
        """In the child, before it becomes the program."""
        self.write("cgroup.procs", os.getpid())

    def number(self, file):
        return int((self.folder / file).read_text())

    def field(self, file, name):
        for line in (self.folder / file).read_text().splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
        return None

    def told(self):
        """Most bytes, and how often the system ended a program of the group."""
        if self.version == 2:
            return self.number("memory.peak"), self.field("memory.events", "oom_kill")
        return self.number("memory.max_usage_in_bytes"), self.field("memory.oom_control", "oom_kill")

    def remove(self):
        self.folder.rmdir()


def picture(rng, path):
    """Blocks of random colours: no two pictures are the same."""
    cells = Image.new("RGB", (8, 6))
    cells.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(48)])
    cells.resize((640, 480), Image.Resampling.NEAREST).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margay", required=True)
    parser.add_argument("--device", default="oneplus-13r")
    parser.add_argument("--model", default="mobilevlm-v2-1.7b:q4_0", help="a shape and its recipe")
    parser.add_argument("--limits", default="", help="as `margay plan --limits` takes them")
    parser.add_argument("--file", help="the model's file, where it is there already")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--over", type=float, default=0.02, help="what the group holds beyond the promise")
    options = parser.parse_args()

    plan = [options.margay, "plan", "--device", options.device, "--model", options.model, "--json"]
    plan += ["--context", str(options.context), "--limits", options.limits]
    chosen = json.loads(subprocess.run(plan, check=True, capture_output=True, text=True).stdout)["decision"]["plan"]
    promise = int(chosen["values"]["memory"])
    limit = int(promise * (1 + options.over)) // 4096 * 4096

    with tempfile.TemporaryDirectory() as folder:
        file = options.file
        if file is None:
            file = f"{folder}/model.gguf"
            shape = [options.margay, "bench", "--shape", chosen["model"], "--type", chosen["recipe"], "--keep", file]
            shape += ["--prompt", "hello", "--max-tokens", "1", "--repeat", "1", "--warmup", "0"]
            subprocess.run(shape, check=True, stdout=subprocess.DEVNULL)
        rng = random.Random(0)
        lines = []
        # The visual tokens of a picture by the plan's own count, its question in pieces of a few letters, and its answer.
        tokens = int(chosen["picture"].split()[0])
        each = tokens + 90 + options.tokens
        turns = max(1, options.context // each)
        for at in range(options.pictures):
            picture(rng, f"{folder}/{at}.png")
            lines += ["/clear"] if at % turns == 0 and at else []
            lines += [f"/image {folder}/{at}.png", f"What is in picture {at}, and of which colour is it?"]
        chat = [options.margay, "chat", file, "--kv", chosen["kv"], "--context", str(options.context)]
        chat += ["--max-tokens", str(options.tokens)]
        # `72 tokens (--keep-image-tokens 50%)`: how the plan takes pictures.
        chat += chosen["picture"].partition("(")[2].rstrip(")").split()
        group = Group(limit)
        run = subprocess.run(
            chat,
            input="\n".join(lines + ["/stats"]) + "\n",
            capture_output=True,
            text=True,
            preexec_fn=group.enter,
        )
        peak, kills = group.told()
        group.remove()
    result = {
        "plan": {key: chosen[key] for key in ("model", "recipe", "kv", "picture")},
        "context": options.context,
        "promise_bytes": promise,
        "limit_bytes": limit,
        "peak_bytes_of_group": peak,
        "oom_kills": kills,
        "exit": run.returncode,
        "pictures": options.pictures,
        "turns_a_conversation": turns,
        "last_words": (run.stdout + run.stderr)[-400:],
    }
    print(json.dumps(result, indent=1))
    return 0 if run.returncode == 0 and kills == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
