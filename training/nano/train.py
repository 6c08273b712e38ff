"""Trains margay-nano in stages. Each ends by the clock, saves often, and goes on with `--resume`.

    python train.py vision  --out RUN/vision  --seconds 7000          # ViT + projector learn the code of each token
    python train.py decoder --out RUN/decoder --seconds 7000          # decoder learns to answer from exact codes
    python train.py decoder --out RUN/seeing  --seconds 1800 --mix hard --vision RUN/vision --decoder RUN/decoder
                                                                      # and from what the finished eye says
    python train.py joint   --out RUN/joint   --seconds 2400 --vision RUN/vision --decoder RUN/decoder   # both, slower

`vision` and `decoder` do not need each other and run at the same time. The codebook (model.codebook) is fixed, so
the two halves fit when they meet. See README.md for timings and what else was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from evaluate import score
from export import reload
from model import Aux, Config, Nano, name_words
from optimizer import make_optimizers
from rows import batch, mask_of
from tokenizer import Tokenizer


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("stage", choices=["vision", "decoder", "joint"])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seconds", type=float, required=True, help="length of the whole stage, earlier parts included")
    p.add_argument("--tokenizer", type=Path, default=Path(__file__).parent / "tokenizer.model")
    p.add_argument("--vision", type=Path, help="run folder to take ViT and projector from; decoder: they are not trained")
    p.add_argument("--decoder", type=Path, help="run folder to take the decoder from")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--muon", type=float, default=0.02)
    p.add_argument("--adam", type=float, default=2e-3)
    p.add_argument("--vision-rate", type=float, default=0.4, help="joint: rate of ViT and projector, times the others'")
    p.add_argument("--aux", type=float, default=0.3, help="joint: weight of the dense losses")
    p.add_argument("--point", type=float, default=0.15, help="weight of what a phrase should bring to mind")
    p.add_argument("--flat", type=float, default=0.45, help="share of the stage before the rate falls")
    p.add_argument("--lookup", type=float, default=0.12, help="decoder: share of the stage on look-up questions only")
    p.add_argument("--mix", help="decoder, joint: this mix of questions (questions.MIX)")
    p.add_argument("--noise", type=float, default=0.25)
    p.add_argument("--layers", type=int, default=Config.layers)
    p.add_argument("--v-layers", type=int, default=Config.v_layers)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--workers", type=int, default=0, help="processes that draw; 0 draws in this one")
    p.add_argument("--rank", type=int, default=0)
    p.add_argument("--world", type=int, default=1, help="processes that share each step (gloo on one machine)")
    p.add_argument("--port", type=int, default=29511)
    p.add_argument("--save-every", type=float, default=240)
    p.add_argument("--eval-every", type=float, default=600)
    p.add_argument("--eval-pictures", type=int, default=96)
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


class Batches(torch.utils.data.IterableDataset):
    """Endless batches; the seed tells rank, worker and number of batch, so no two are equal, before or after a resume."""

    def __init__(self, a, tok, progress, first):
        self.a, self.tok, self.progress, self.first = a, tok, progress, first

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        worker, step = (info.id if info else 0), self.first
        while True:
            rng = random.Random(f"{self.a.stage} {self.a.seed} {self.a.rank} {worker} {step}")
            b = make_batch(self.a, self.tok, rng, self.progress.value if hasattr(self.progress, "value") else 0.0)
            b.pop("rows"), b.pop("scenes")
            yield b
            step += 1


def make_batch(a, tok, rng, done: float) -> dict:
    """`done` runs from 0 to 1 over the stage."""
    if a.stage == "vision":
        natural = 0.25 if done < 0.6 else 0.55
        return batch(rng, a.batch, None, kinds={"scene": natural, "page": (1 - natural) * 0.65, "crowd": (1 - natural) * 0.35})
    if a.stage == "decoder":
        return batch(rng, a.batch, tok, pictures=bool(a.vision), mix=a.mix or ("lookup" if done < a.lookup else "hard"), chat=0.0 if done < 0.3 else 0.08)
    return batch(rng, a.batch, tok, mix=a.mix or "full")


def losses(a, model, aux, b):
    """Total loss and its parts."""
    parts, tokens = {}, None
    if "pixels" in b and a.stage == "decoder":
        with torch.no_grad():
            tokens = model.see(b["pixels"])[1]
    elif "pixels" in b:
        features, tokens = model.see(b["pixels"])
        parts = aux.loss(features, tokens, b["codes"], b["labels"])
    else:
        tokens = b["codes"] @ aux.book
        tokens = tokens + torch.randn_like(tokens) * a.noise * random.random()
    total = sum(parts.values()) * (1.0 if a.stage == "vision" else a.aux)
    if "ids" in b:
        target = b["target"].flatten()
        at = (target >= 0).nonzero()[:, 0]
        gap = int((b["ids"][0] == 0).nonzero()[0])
        tap = []
        logits = model.decode(b["ids"], tokens, gap, b["pos"], mask_of(b["block"], b["blind"]), at, tap)
        if len(b["point_at"]):
            parts["point"] = a.point * aux.pointed(tap[0], b["point_at"], b["point_to"])
            total = total + parts["point"]
        if len(b["count_at"]):
            parts["count"] = 2 * a.point * aux.counted(tap[0], b["count_at"], b["counts"])
            total = total + parts["count"]
        if len(b["spelled_at"]):
            parts["spelled"] = a.point * aux.spelling(tap[0], b["spelled_at"], b["spelled"])
            total = total + parts["spelled"]
        if len(b["number_at"]):
            parts["numbers"] = 2 * a.point * aux.evident(tap[1], b["number_at"], b["numbers"])
            total = total + parts["numbers"]
        weight = b["weight"].flatten()[at]
        parts["text"] = (F.cross_entropy(logits.float(), target[at], reduction="none") * weight).sum() / weight.sum()
        total = total + parts["text"]
    return total, parts


def rate(done: float, step: int, flat: float) -> float:
    fall = 1.0 if done < flat else max(0.02, 1 - (done - flat) / (1 - flat))
    return min(1.0, (step + 1) / 60) * fall


def load(model, aux, folder: Path, prefixes):
    """From a run, or from an exported folder, whose layers may be fewer: the others start as identities."""
    if (folder / "last.pt").exists():
        state = torch.load(folder / "last.pt", map_location="cpu", weights_only=False)
    else:
        state = dict(model=reload(folder).state_dict(), step="an export")
    take = {k: v for k, v in state["model"].items() if k.startswith(prefixes)}
    model.load_state_dict(take, strict=False)
    for name, p in model.named_parameters():
        if name.startswith(prefixes) and name not in take:
            print(f"{name}: new", flush=True)
            if name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
                p.data.zero_()
    eye = any("vision" in p for p in prefixes)
    known = {k: v for k, v in state.get("aux", {}).items() if ("point" in k) != eye}
    aux.load_state_dict(known, strict=False)
    print(f"{folder}: {len(take)} tensors of step {state['step']}", flush=True)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    random.seed(a.seed * 100 + a.rank)
    a.out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer(a.tokenizer)
    config = Config(vocab=tok.size, layers=a.layers, v_layers=a.v_layers)
    model, aux = Nano(config).to(a.device), Aux(config).to(a.device)
    name_words(model, tok)
    if a.vision:
        load(model, aux, a.vision, ("model.vision_tower", "model.mm_projector"))
    if a.decoder:
        load(model, aux, a.decoder, ("model.embed_tokens", "model.layers", "model.norm", "lm_head"))
    is_eye = lambda n: "vision_tower" in n or "mm_projector" in n  # noqa: E731
    named = [(n, p) for n, p in model.named_parameters() if a.stage == "joint" or is_eye(n) == (a.stage == "vision")]
    named += [(f"aux.{n}", p) for n, p in aux.named_parameters() if a.stage == "joint" or ("point" in n) == (a.stage == "decoder")]
    slow = ("vision_tower", "mm_projector", "aux.") if a.stage == "joint" else ()
    optimizers = make_optimizers(named, a.muon, a.adam, slow, a.vision_rate)
    params = [p for _, p in named]
    step, before, seen = 0, 0.0, 0
    if a.resume and (a.out / "last.pt").exists():
        s = torch.load(a.out / "last.pt", map_location=a.device, weights_only=False)
        model.load_state_dict(s["model"]), aux.load_state_dict(s["aux"], strict=False)
        for o, state in zip(optimizers, s["optimizers"]):
            peaks = [g["peak"] for g in o.param_groups]
            o.load_state_dict(state)
            for group, peak in zip(o.param_groups, peaks):  # rates may change on the way
                group["peak"] = peak
        step, before, seen = s["step"], s["seconds"], s["seen"]
    if a.world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(a.port))
        torch.distributed.init_process_group("gloo", rank=a.rank, world_size=a.world)

    def save():
        if a.rank == 0:
            state = dict(
                model=model.state_dict(),
                aux=aux.state_dict(),
                optimizers=[o.state_dict() for o in optimizers],
                step=step,
                seen=seen,
                seconds=seconds,
                config=vars(config),
            )
            torch.save(state, a.out / "next.pt")
            os.replace(a.out / "next.pt", a.out / "last.pt")

    def note(**what):
        if a.rank == 0:
            line = json.dumps(
                dict(s=round(seconds), step=step, seen=seen, **{k: round(v, 4) if isinstance(v, float) else v for k, v in what.items()})
            )
            print(line, flush=True)
            with open(a.out / "log.jsonl", "a") as f:
                f.write(line + "\n")

    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(1))  # save, then end
    start = time.monotonic()
    seconds = last_save = last_note = last_eval = before
    progress = torch.multiprocessing.Value("d", before / a.seconds)
    loader = iter(
        torch.utils.data.DataLoader(
            Batches(a, tok, progress, step), batch_size=None, num_workers=a.workers, prefetch_factor=4 if a.workers else None
        )
    )
    running = {}
    while seconds < a.seconds and not asked_to_stop:
        done = min(1.0, seconds / a.seconds)
        progress.value = done
        b = {k: v.to(a.device, non_blocking=True) for k, v in next(loader).items()}
        model.train()
        with torch.autocast(a.device, torch.bfloat16, enabled=a.device == "cuda"):
            total, parts = losses(a, model, aux, b)
        total.backward()
        if a.world > 1:  # one all-reduce; its last number is the clock of rank 0
            flat = torch.cat([p.grad.flatten() for p in params] + [torch.tensor([(before + time.monotonic() - start) * a.world * (a.rank == 0)])])
            torch.distributed.all_reduce(flat)
            flat /= a.world
            for p, g in zip(params, flat[:-1].split([p.numel() for p in params])):
                p.grad = g.view_as(p)
            seconds = float(flat[-1])
        else:
            seconds = before + time.monotonic() - start
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        now = rate(done, step, a.flat)
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = group["peak"] * now
            o.step()
            o.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + a.batch * a.world
        for k, v in parts.items():
            v = float(v.detach())
            running[k] = 0.95 * running.get(k, v) + 0.05 * v
        if seconds - last_note > 30:
            last_note = seconds
            note(rate=now, per_s=seen / max(seconds, 1e-9), **{f"L_{k}": v for k, v in running.items()})
        if seconds - last_eval > a.eval_every:
            last_eval = seconds
            if a.rank == 0:
                note(
                    **score(
                        model,
                        aux,
                        tok,
                        a.eval_pictures,
                        device=a.device,
                        symbolic=a.stage == "decoder" and not a.vision,
                        text=a.stage != "vision",
                        brief=True,
                    )
                )
        if seconds - last_save > a.save_every:
            last_save = seconds
            save()
    save()
    if asked_to_stop:
        return
    note(
        final=1,
        **(
            score(model, aux, tok, a.eval_pictures * 2, device=a.device, symbolic=a.stage == "decoder" and not a.vision, text=a.stage != "vision", brief=True)
            if a.rank == 0
            else {}
        ),
    )


if __name__ == "__main__":
    main()
