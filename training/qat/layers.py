"""Fake quantization for any torch model: its matrices pass through a rounding on the way to each product.

`quantize` hangs a rounding on the weight of every Linear and Embedding that a rule names (torch's own parametrizations:
the optimizer goes on with the float numbers, `module.weight` is what the file will hold). Nothing here knows a model.

    rules = [(r"lm_head$", "q8_0"), (r"layers\\..*_proj$", "lsq2"), (r"embed_tokens$", None)]

The first pattern that is found in a module's name decides; modules that none names stay float. A rule is a name of
formats.py (a straight-through estimator), `lsqN` or `lsqN:GROUP` (a learned step for each group of GROUP, 32 unless given),
`lsqN:row` (one for each output row), or None.
"""

from __future__ import annotations

import copy
import re

import torch
from torch import nn
from torch.nn.utils import parametrize

from blocks import extreme, over
from formats import block, round_rows, uniform

# The smallest normal float16: a step is written as one.
SMALLEST_STEP = 2.0**-14
LARGEST_STEP = 65504.0


def stored_step(step):
    """Positive and a float16, whatever the optimizer did."""
    return step.clamp(SMALLEST_STEP, LARGEST_STEP).half().float()


class StraightThrough(torch.autograd.Function):
    """Rounded on the way forward; backward, the gradient where the number lay in the range and 0 elsewhere."""

    @staticmethod
    def forward(ctx, x, name):
        y, inside = round_rows(x, name)
        ctx.save_for_backward(inside)
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


class Lsq(torch.autograd.Function):
    """y = s clamp(round(x / s), low, high) with the gradients of LSQ (Esser et al. 2020, arXiv 1902.08153, eq. 3, 5).
    x [..., group], step [..., 1]; s is the step that a file holds; `factor` scales its gradient, which passes straight
    through to the step."""

    @staticmethod
    def forward(ctx, x, step, low, high, factor):
        s = stored_step(step)
        v = x / s
        q = v.round().clamp(low, high) + 0.0
        ctx.save_for_backward(v, q)
        ctx.limits = low, high, factor
        return s * q

    @staticmethod
    def backward(ctx, grad):
        v, q = ctx.saved_tensors
        low, high, factor = ctx.limits
        inside = (v > low) & (v < high)
        of_step = torch.where(inside, q - v, q)
        return grad * inside, (grad * of_step).sum(-1, keepdim=True) * factor, None, None, None


class BlockWeight(nn.Module):
    """A weight as a block format keeps it."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, weight):
        return StraightThrough.apply(weight, self.name)

    def extra_repr(self):
        return self.name


def published_start(x, low: int, high: int):
    """LSQ's start (section 2.1), made for one step a layer. x [..., group] -> step, direction [..., 1]"""
    return 2 * x.abs().mean(-1, keepdim=True) / high**0.5, torch.ones_like(x[..., :1])


def range_start(x, low: int, high: int):
    """What `intN` rounds with: the extreme number is at the longer end, whichever its sign."""
    most = extreme(x)
    return most.abs() / -low, torch.where(most > 0, -1.0, 1.0)


def error_start(x, low: int, high: int, trials: int = 64):
    """Of steps up to that of `range_start`, the one of least squared error."""
    reach, direction = range_start(x, low, high)
    x, best, least = x * direction, reach, torch.full_like(reach, torch.inf)
    for k in range(trials, trials // 8, -1):
        s = stored_step(reach * (k / trials))
        error = (s * (x / s).round().clamp(low, high) - x).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, s, best), torch.where(error < least, error, least)
    return best, direction


STARTS = dict(published=published_start, range=range_start, error=error_start)


class LsqWeight(nn.Module):
    """A weight on a grid whose step is learned: [out, in] with a float32 step [out, in / group, 1], used as float16. The
    grid has one number more on the side of zero where `direction` times it is negative; a start chooses, and it stays."""

    def __init__(self, weight: torch.Tensor, bits: int, group: int, start: str = "range"):
        super().__init__()
        self.bits, self.group = bits, group
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        step, direction = STARTS[start](weight.detach().float().unflatten(-1, (-1, group)), self.low, self.high)
        self.step = nn.Parameter(step.clamp(SMALLEST_STEP, LARGEST_STEP))
        self.register_buffer("direction", direction)

    def forward(self, weight):
        x = weight.unflatten(-1, (-1, self.group)) * self.direction
        y = Lsq.apply(x, self.step, self.low, self.high, (self.group * self.high) ** -0.5)
        return (y * self.direction).flatten(-2)

    def extra_repr(self):
        return f"bits={self.bits}, group={self.group}"


def make(name: str, weight: torch.Tensor, start: str = "range") -> nn.Module:
    """The rounding that a rule names, for this weight; learned steps begin as `start` (STARTS) says."""
    kind, _, group = name.partition(":")
    row = weight.shape[-1]
    found = uniform(kind if group == "row" else name)
    if found and found[0] == "lsq":
        size = row if group == "row" else found[2]
        if row % size:
            raise ValueError(f"a row of {row} is no multiple of a group of {size}")
        return LsqWeight(weight, found[1], size, start)
    size = block(name)[0]
    if row % size:
        raise ValueError(f"a row of {row} is no multiple of the {size} numbers of a block of {name}")
    return BlockWeight(name)


def quantize(model: nn.Module, rules: list[tuple[str, str | None]], start: str = "range") -> dict[str, str]:
    """Hangs roundings on the model by rules; says which module got which. A rule that no module meets is an error."""
    got, met = {}, set()
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        pattern, rule = next(((p, r) for p, r in rules if re.search(p, name)), (None, None))
        met.add(pattern)
        if rule is None:
            continue
        if parametrize.is_parametrized(module, "weight"):
            raise ValueError(f"{name} is quantized already")
        try:
            rounding = make(rule, module.weight, start)
        except ValueError as why:
            raise ValueError(f"{name}: {why}") from None
        parametrize.register_parametrization(module, "weight", rounding)
        got[name] = rule
    if unmet := [p for p, _ in rules if p not in met]:
        raise ValueError(f"no Linear or Embedding is decided by {', '.join(unmet)}")
    return got


def rounded(model: nn.Module) -> nn.Module:
    """A plain copy whose weights are what the roundings made of them: what a file of them computes."""
    out = copy.deepcopy(model)
    for module in list(out.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight.detach()
            # Not torch's remove_parametrizations: it takes `weight` from the class, which copy and original share.
            plain = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.__class__ = plain
            module.weight = nn.Parameter(weight)
    return out


class Int8Groups(torch.autograd.Function):
    """A row of activations as Margay's CPU multiplies it: groups of 32 in int8 with a float32 scale max|x| / 127."""

    @staticmethod
    def forward(ctx, x):
        g = x.float().unflatten(-1, (-1, 32))
        most = g.abs().amax(-1, keepdim=True)
        # Rows of almost nothing become zeros: 127 over them is near the end of float32.
        to_code = torch.where(most > 1e-36, over(127, most), 0.0)
        return (g * to_code).round().mul(most / 127).flatten(-2)

    @staticmethod
    def backward(ctx, grad):
        return grad


def quantize_inputs(model: nn.Module) -> list:
    """The inputs of every Linear whose weight passes through a rounding do so as well; call `remove` on what is given
    back to undo it."""
    wanted = [m for m in model.modules() if isinstance(m, nn.Linear) and parametrize.is_parametrized(m, "weight")]
    return [m.register_forward_pre_hook(lambda _, args: (Int8Groups.apply(args[0]), *args[1:])) for m in wanted]


def steps(model: nn.Module) -> list[nn.Parameter]:
    """The learned steps: they want a rate of their own, relative to their size."""
    return [m.step for m in model.modules() if isinstance(m, LsqWeight)]
