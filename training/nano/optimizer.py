"""Muon on the matrices inside the blocks, AdamW on the rest.

Muon is written out here because PyTorch's own orthogonalises in bfloat16, which is very slow on CPUs without it;
equal shapes are stacked, so that a step is a few batched products.
"""

from __future__ import annotations

from collections import defaultdict

import torch


def orthogonal(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration with the quintic coefficients of the Muon reference (Keller Jordan, 2024)."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.02):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))
                step = orthogonal(torch.stack(updates)) * max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(params, step):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * u)


def make_optimizers(named_params, muon_lr, adam_lr, slow=(), slow_factor=1.0):
    """Two optimizers; parameters whose name contains one of `slow` learn at `slow_factor` times the rate."""
    groups = defaultdict(list)
    for name, p in named_params:
        matrix = p.ndim == 2 and ".layers." in name or "mm_projector.mlp" in name and p.ndim == 2
        groups[matrix, any(s in name for s in slow)].append(p)
    muon = [dict(params=v, lr=muon_lr * (slow_factor if s else 1)) for (m, s), v in groups.items() if m]
    adam = [dict(params=v, lr=adam_lr * (slow_factor if s else 1)) for (m, s), v in groups.items() if not m]
    out = [torch.optim.AdamW(adam, betas=(0.9, 0.97), weight_decay=0.0)]
    if muon:
        out.append(Muon(muon))
        for group, given in zip(out[1].param_groups, muon):
            group["lr"] = given["lr"]
    for o in out:
        for group in o.param_groups:
            group["peak"] = group["lr"]
    return out
