"""Trains a draft of margay-nano: a decoder of the same width and fewer layers that sees the same visual tokens.

    python draft.py OUT --layers 1 --seconds 400          # OUT becomes an exported folder; `margay convert` takes it

The eye, the embedding and the head are margay-nano's, and stay as they are but for the head; the layers begin as its first
and last. At each token of an answer the draft is shown the probabilities that margay-nano gives to the next one.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from export import reload, write
from model import Config, Nano
from optimizer import make_optimizers
from rows import batch, mask_of
from tokenizer import Tokenizer

HERE = Path(__file__).parent


def begun(nano: Nano, layers: int) -> Nano:
    """A decoder of so many of its layers: the first ones, and of two and more the last."""
    c = nano.config
    taken = list(range(layers - 1)) + [c.layers - 1] if layers > 1 else [0]
    draft = Nano(Config(**{**vars(c), "layers": layers}))
    state = {k: v for k, v in nano.state_dict().items() if ".layers." not in k or "vision" in k}
    for to, of in enumerate(taken):
        first = f"model.layers.{of}."
        state |= {f"model.layers.{to}.{k[len(first):]}": v for k, v in nano.state_dict().items() if k.startswith(first)}
    draft.load_state_dict(state)
    return draft


def agreement(nano: Nano, draft: Nano, b: dict):
    """Divergence of the draft from nano at each token of the answers [N], and whether it takes the same one [N]."""
    with torch.no_grad():
        tokens = nano.see(b["pixels"])[1]
    at = (b["target"].flatten() >= 0).nonzero()[:, 0]
    gap = int((b["ids"][0] == 0).nonzero()[0])
    call = (b["ids"], tokens, gap, b["pos"], mask_of(b["block"], b["blind"]), at)
    with torch.no_grad():
        told = nano.decode(*call)
    said = draft.decode(*call)
    apart = F.kl_div(said.log_softmax(-1), told.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return apart, said.argmax(-1) == told.argmax(-1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out", type=Path)
    p.add_argument("--layers", type=int, default=1)
    p.add_argument("--seconds", type=float, default=400)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    tok = Tokenizer(HERE / "tokenizer.model")
    nano = reload(HERE / "weights").requires_grad_(False)
    draft = begun(nano, a.layers)
    named = [(n, p) for n, p in draft.named_parameters() if n.startswith(("model.layers.", "model.norm", "lm_head"))]
    optimizers = make_optimizers(named, 0.005, 5e-4, (), 1.0)
    rng = random.Random(f"draft {a.seed}")
    start, step, same, told = time.monotonic(), 0, 0.0, 0.0
    while (done := (time.monotonic() - start) / a.seconds) < 1:
        b = batch(rng, a.batch, tok, mix="hard", labels=False)
        apart, right = agreement(nano, draft, b)
        apart.mean().backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = group["peak"] * min(1.0, (step + 1) / 20, 2 * (1 - done))
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        same += 0.05 * (right.float().mean().item() - same)
        told += 0.05 * (apart.mean().item() - told)
        if step % 20 == 0:
            print(f"{time.monotonic() - start:.0f} s, step {step}, {step * a.batch} rows: apart {told:.3f} nats, same {same:.3f}", flush=True)
    with torch.no_grad():
        b = batch(random.Random("held out"), 64, tok, split="test", labels=False)
        apart, right = agreement(nano, draft, b)
    print(f"held out: apart {apart.mean():.3f} nats, same token {right.float().mean():.3f} of {len(right)}")
    write(draft, HERE / "tokenizer.model", a.out)


if __name__ == "__main__":
    main()
