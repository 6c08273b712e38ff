"""Fine-tunes margay-nano with the weights it will have in a file, taught by its float self.

    python train.py --out RUN --bits 4 --method lsq --seconds 600
    python train.py --out RUN --bits 2 --method ste --part decoder --seconds 600 --resume
    python store.py RUN/export RUN/nano.gguf --margay PATH/TO/margay     # the very weights of training, as GGUF

The rate is flat, then falls linearly to the end, which is after `--seconds` or `--pictures`, whatever comes first: with
`--pictures` a run can be repeated. `last.pt` holds model, optimizer and clock; SIGTERM saves and ends, and the same
command with `--resume` goes on. At the end RUN/export is a Hugging Face folder in float32 that holds the rounded weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import time
from pathlib import Path

import torch

import nano
from export import reload, write
from layers import STARTS, quantize, rounded, steps
from tokenizer import Tokenizer


def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--bits", type=int, choices=[2, 3, 4], required=True)
    p.add_argument("--method", choices=["ste", "lsq"], required=True, help="rounded as the format does, or with learned steps")
    p.add_argument("--start", choices=list(STARTS), default="range", help="lsq: the first steps (layers.py)")
    p.add_argument("--part", choices=["both", "decoder", "vision"], default="both", help="what is quantized and trained")
    p.add_argument("--seconds", type=float, required=True, help="length of the run, earlier parts included; 0: rounded only")
    p.add_argument("--pictures", type=int, help="ends after so many pictures, if that is earlier")
    p.add_argument("--weights", type=Path, default=nano.NANO / "weights", help="where to start, and the teacher")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rate", type=float, default=3e-4, help="of AdamW for weights")
    p.add_argument("--step-rate", type=float, default=0.003, help="of AdamW for learned steps, times their mean size")
    p.add_argument("--others", type=float, default=0.1, help="weight of positions that do not predict an answer")
    p.add_argument("--hidden", type=float, default=1.0, help="weight of the distance of visual tokens")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--flat", type=float, default=0.4, help="share of the run before the rate falls")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--save-every", type=float, default=120)
    return p.parse_args(words)


def rule(bits: int, method: str) -> str:
    """Of layers.py. Four bits rounded as the format does are the format."""
    return f"lsq{bits}" if method == "lsq" else "q4_0" if bits == 4 else f"int{bits}"


def optimizer(model, part: str, rate: float, step_rate: float):
    learned = steps(model)
    is_step = {id(p) for p in learned}
    weights = [p for _, p in nano.of_part(model, part) if id(p) not in is_step]
    groups = [dict(params=weights, peak=rate)]
    groups += [dict(params=[p], peak=step_rate * p.detach().mean().item()) for p in learned]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.97), weight_decay=0.0)


def rate(done: float, step: int, flat: float) -> float:
    fall = 1.0 if done < flat else max(0.02, 1 - (done - flat) / (1 - flat))
    return min(1.0, (step + 1) / 20) * fall


def main(words=None):
    a = arguments(words)
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer(nano.NANO / "tokenizer.model")
    teacher = reload(a.weights).requires_grad_(False)
    student = copy.deepcopy(teacher)
    got = quantize(student, nano.rules(rule(a.bits, a.method), a.part), a.start)
    for _, p in nano.of_part(student, a.part):
        p.requires_grad_(True)
    adam = optimizer(student, a.part, a.rate, a.step_rate)
    params = [p for group in adam.param_groups for p in group["params"]]
    step, seen, before = 0, 0, 0.0
    if a.resume and (a.out / "last.pt").exists():
        held = torch.load(a.out / "last.pt", map_location="cpu", weights_only=True)
        student.load_state_dict(held["model"])
        adam.load_state_dict(held["optimizer"])
        step, seen, before = held["step"], held["seen"], held["seconds"]

    def save():
        state = dict(model=student.state_dict(), optimizer=adam.state_dict(), step=step, seen=seen, seconds=seconds)
        torch.save(state, a.out / "next.pt")
        os.replace(a.out / "next.pt", a.out / "last.pt")

    def note(**what):
        clock = dict(s=round(seconds), cpu_s=round(time.process_time()), step=step, seen=seen)
        line = json.dumps(clock | {k: round(v, 5) for k, v in what.items()})
        print(line, flush=True)
        with open(a.out / "log.jsonl", "a") as f:
            f.write(line + "\n")

    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(1))
    start = time.monotonic()
    seconds = last_save = last_note = before
    running = {}
    (a.out / "settings.json").write_text(json.dumps({k: str(v) for k, v in vars(a).items()} | dict(rules=got), indent=2) + "\n")
    while not asked_to_stop:
        done = max(seconds / a.seconds if a.seconds else 1.0, seen / a.pictures if a.pictures else 0.0)
        if done >= 1:
            break
        b = nano.pictures_and_questions(tok, a.batch, f"qat {a.seed} {step}")
        total, parts = nano.loss(student, teacher, b, a.part, a.others, a.hidden, a.temperature)
        adam.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        now = rate(done, step, a.flat)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * now
        adam.step()
        step, seen, seconds = step + 1, seen + a.batch, before + time.monotonic() - start
        for k, v in parts.items():
            running[k] = 0.95 * running.get(k, v.item()) + 0.05 * v.item()
        if seconds - last_note > 30:
            last_note = seconds
            note(rate=now, **running)
        if seconds - last_save > a.save_every:
            last_save = seconds
            save()
    save()
    note(**running)
    if not asked_to_stop:
        write(rounded(student), nano.NANO / "tokenizer.model", a.out / "export", "float32")


if __name__ == "__main__":
    main()
