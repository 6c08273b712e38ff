"""Numbers as a block of 32 keeps them: quantized and decoded again, in float32, bit for bit what Margay does.

A rounding takes x [..., block] to (y [..., block], inside [..., block]): what is read back, and False where a number lay
beyond the format's range, so that moving it a little changes nothing. formats.py finds one by name.

Equality with the Rust encoders (crates/margay-quant/src/formats) needs the same float32 operations in the same order:
sums from left to right, nothing fused. Do not "simplify" the arithmetic.
"""

from __future__ import annotations

import torch

LEVELS_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the E2M1 numbers; equals on both sides of zero: +0 comes first.
LEVELS_MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
ZERO_BELOW = 1e-15  # a group whose largest magnitude is smaller counts as zero
Rounded = tuple[torch.Tensor, torch.Tensor]


def over(a: float, b):
    """a / b as one division: Python's `a / b` of a number and a tensor is a product with the reciprocal, two roundings."""
    return torch.tensor(float(a)) / b


def half(x):
    """Through float16 and back."""
    return x.half().float()


def inverse(x):
    """1/x, or 0 where x is 0."""
    return torch.where(x != 0, 1 / x, 0.0)


def extreme(x):
    """The number of largest magnitude with its sign, the first of equals; +0 where there is none [..., 1]."""
    value = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    return torch.where(value != 0, value, 0.0)


def whole(x, low: int, high: int):
    """As C converts on x86: towards zero, never -0, and 0 for NaN and for what no 32 bits hold, such as the infinities that
    a scale too small to be inverted makes."""
    return torch.where(x.abs() < 2.0**31, x.trunc().clamp(low, high), 0.0) + 0.0


def half_away(x):
    """Nearest whole number, halves away from zero."""
    t = x.trunc()
    return t + torch.where((x - t).abs() >= 0.5, x.sign(), 0.0)


def signed(x, bits: int) -> Rounded:
    """y = d q with the extreme number at q = -2^(bits - 1): Q4_0, Q5_0. [..., group]"""
    top = 2 ** (bits - 1)
    d = extreme(x) / -top
    v = x * inverse(d)
    q = whole(v + (top + 0.5), 0, 2 * top - 1) - top
    return half(d) * q, v < top - 0.5


def ranged(x, bits: int) -> Rounded:
    """y = d q + m from the smallest number to the largest: Q4_1, Q5_1. [..., group]"""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    d = (high - low) / (2**bits - 1)
    q = whole((x - low) * inverse(d) + 0.5, 0, 2**bits - 1)
    return half(d) * q + half(low), torch.ones_like(x, dtype=torch.bool)


def q8_0(x) -> Rounded:
    d = extreme(x).abs() / 127
    q = whole(half_away(x * inverse(d)), -128, 127)
    return half(d) * q, torch.ones_like(x, dtype=torch.bool)


def nearest_level(x, levels):
    """The level of IQ4_NL nearest to x, the upper one of two equally near."""
    upper = torch.bucketize(x.contiguous(), levels, right=True)  # the first level above x
    below, above = levels[(upper - 1).clamp(min=0)], levels[upper.clamp(max=15)]
    return torch.where((upper == 16) | (upper > 0) & (x - below < above - x), below, above)


def iq4_nl(x) -> Rounded:
    """y = d T[q]; the scale is the best of 16 weighted fits. [..., 32]"""
    levels = torch.tensor(LEVELS_IQ4_NL, dtype=torch.float32, device=x.device)
    most = extreme(x)
    trials = [1 / (most / 127), *(over(trial - 127, most) for trial in range(-7, 8))]
    x_t = x.movedim(-1, 0)
    ids = torch.stack([t.squeeze(-1) for t in trials])  # [16, blocks]
    sum_qx, sum_q2 = torch.zeros_like(ids), torch.zeros_like(ids)
    for value in x_t:  # from left to right
        q = nearest_level(ids * value, levels)
        wq = value * value * q
        sum_qx = sum_qx + wq * value
        sum_q2 = sum_q2 + wq * q
    d = torch.where(sum_q2[0] > 0, sum_qx[0] / sum_q2[0], 0.0)
    best = d * sum_qx[0]
    for qx, q2 in zip(sum_qx[1:], sum_q2[1:]):
        better = (q2 > 0) & (qx * qx > best * q2)
        d = torch.where(better, qx / q2, d)
        best = torch.where(better, d * qx, best)
    d = torch.where(most.squeeze(-1).abs() < ZERO_BELOW, 0.0, d).unsqueeze(-1)
    v = x * inverse(d)
    return half(d) * nearest_level(v, levels), (v >= levels[0]) & (v <= levels[-1])


def mxfp4(x) -> Rounded:
    """y = K[q] 2^(e - 128); e is an 8-bit power of two. [..., 32]"""
    most = extreme(x).abs()
    # The logarithm of a float32, rounded to a float32 before it is cut.
    e = most.double().log2().float().floor() - 2 + 127
    # Below the smallest power the reference lets the byte wrap around.
    e = (torch.where(most > 0, e, 0.0).int() & 255).float()
    d = torch.exp2(e.double() - 128).float()
    levels = torch.tensor(LEVELS_MXFP4, dtype=torch.float32, device=x.device)
    best = levels[0] * d
    error = (best - x).abs()
    for level in levels[1:]:
        y = (level * d).expand_as(x)
        nearer = (y - x).abs() < error
        best, error = torch.where(nearer, y, best), torch.where(nearer, (y - x).abs(), error)
    return best.expand_as(x), x.abs() <= 12 * d
