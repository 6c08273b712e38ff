"""The K-quants of 256 numbers for formats.py: small weighted searches for scales, run over all groups at once.

Source of the searches: crates/margay-quant/src/search.rs, which follows `make_qkx2_quants`, `make_q3_quants` and
`make_qx_quants` of ggml step for step. Groups are held transposed [n, ...], so that a sum over a group runs from left to
right.
"""

from __future__ import annotations

import torch

from blocks import ZERO_BELOW, Rounded, extreme, half, over


def nearest(x):
    """Nearest whole number, halves to even, the way that adding 1.5 x 2^23 rounds: what is no small number gives some
    number of 23 bits."""
    return (((x + 12582912.0).view(torch.int32) & 0x007FFFFF) - 0x00400000).float()


def affine(x, w, top: int, first: float, delta: float, steps: int, absolute: bool):
    """Scale, minimum and codes with x = scale q - minimum: the range, then weighted least squares for each trial.
    x and w are [n, groups]."""
    low, high = x.amin(0), x.amax(0)
    low = torch.where(low < 0, low, 0.0)
    flat = high == low
    sum_w, sum_x = sum_left(w), sum_left(w * x)

    def error(scale, low, q):
        diff = scale * q + low - x
        return sum_left(w * (diff.abs() if absolute else diff * diff))

    def assign(iscale, low):
        return nearest(iscale * (x - low)).clamp(0, top)

    iscale = over(top, high - low)
    scale, start = 1 / iscale, low
    codes = assign(iscale, low)
    best = error(scale, low, codes)
    for step in range(steps + 1):
        shift = torch.tensor(first) + torch.tensor(delta) * step + top  # in float32
        q = assign(shift / (high - low), low)
        wq = w * q
        sum_l, sum_l2, sum_xl = sum_left(wq), sum_left(wq * q), sum_left(wq * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        a = (sum_w * sum_xl - sum_x * sum_l) / determinant
        b = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = b > 0
        a, b = torch.where(positive, sum_xl / sum_l2, a), torch.where(positive, 0.0, b)
        found = error(a, b, q)
        better = (determinant > 0) & (found < best)
        best, scale, low = torch.where(better, found, best), torch.where(better, a, scale), torch.where(better, b, low)
        codes = torch.where(better, q, codes)
    return torch.where(flat, 0.0, scale), torch.where(flat, -start, -low), torch.where(flat, 0.0, codes)


def sum_left(terms):
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def groups(x, size: int):
    """[..., 256] -> [size, blocks, groups]"""
    return x.reshape(-1, 256 // size, size).permute(2, 0, 1).contiguous()


def back(y, shape):
    return y.permute(1, 2, 0).reshape(shape)


def with_minimum(x, size: int, top: int, most: int, weights, fit, **trials) -> Rounded:
    """Q2_K, Q4_K, Q5_K: y = d s q - dmin m with whole s and m up to `most`, into which `fit` brings them."""
    g = groups(x, size)
    scale, minimum, codes = affine(g, weights(g), top, **trials)  # [blocks, groups]
    largest = lambda v: v.amax(-1, keepdim=True).clamp(min=0)  # noqa: E731
    max_scale, max_min = largest(scale), largest(minimum)
    quantized = lambda v, m: fit(nearest(torch.where(m > 0, over(most, m), 0.0) * v))  # noqa: E731
    s, m = quantized(scale, max_scale), quantized(minimum, max_min)
    a, b = half(max_scale / most) * s, half(max_min / most) * m
    v = (g + b) / a
    codes = torch.where(a != 0, nearest(v).clamp(0, top), codes)
    inside = (a == 0) | (v > -0.5) & (v < top + 0.5)
    return back(a * codes - b, x.shape), back(inside, x.shape)


def typical(g):
    """Some of PyTorch's square roots of float32 are a unit in the last place off; those of float64, rounded, are not."""
    return (sum_left(g * g) / len(g)).double().sqrt().float() + g.abs()


def low_byte(v):
    """At most 63 of the low byte: the reference lets a negative scale, which sparse groups may get, wrap around."""
    return (v.int() & 255).clamp(max=63).float()


def q2_k(x) -> Rounded:
    return with_minimum(x, 16, 3, 15, torch.abs, lambda v: v.clamp(0, 15), first=-0.5, delta=0.1, steps=15, absolute=True)


def q4_k(x) -> Rounded:
    return with_minimum(x, 32, 15, 63, typical, low_byte, first=-1.0, delta=0.1, steps=20, absolute=False)


def q5_k(x) -> Rounded:
    return with_minimum(x, 32, 31, 63, typical, low_byte, first=-0.5, delta=0.1, steps=15, absolute=False)


def final(x, g, d, s, codes, top: int) -> Rounded:
    """y = d s q with the nearest codes from -top to top - 1, or the search's where d s is 0."""
    scale = d * s
    v = g / scale
    codes = torch.where(scale != 0, nearest(v).clamp(-top, top - 1), codes)
    inside = (scale == 0) | (v > -top - 0.5) & (v < top - 0.5)
    return back(scale * codes, x.shape), back(inside, x.shape)


def symmetric(x, top: int):
    """Scale and codes with x = scale q: the extreme number at the end of the range, then 18 trials around it."""
    most = extreme(x.movedim(0, -1)).squeeze(-1)

    def assign(iscale):
        q = nearest(iscale * x).clamp(-top, top - 1)
        w = x * x
        return q, sum_left(w * x * q), sum_left(w * q * q)

    codes, lx, l2 = assign(over(-top, most))
    scale = torch.where(l2 != 0, lx / l2, 0.0)
    best = scale * lx
    for step in (s for s in range(-9, 10) if s):
        q, lx, l2 = assign(-(top + torch.tensor(0.1) * step) / most)
        better = (l2 > 0) & (lx * lx > best * l2)
        scale = torch.where(better, lx / l2, scale)
        best = torch.where(better, scale * lx, best)
        codes = torch.where(better, q, codes)
    nothing = most.abs() < ZERO_BELOW
    return torch.where(nothing, 0.0, scale), torch.where(nothing, float(-top), codes)


def q6_k(x) -> Rounded:
    g = groups(x, 16)
    scale, codes = symmetric(g, 32)
    largest = extreme(scale)
    iscale = -128 / largest
    d, s = half(1 / iscale), nearest(iscale * scale).clamp(max=127)
    nothing = largest.abs() < ZERO_BELOW
    d, s, codes = torch.where(nothing, 0.0, d), torch.where(nothing, 0.0, s), torch.where(nothing, -32.0, codes)
    return final(x, g, d, s, codes, 32)


def by_descent(x, top: int):
    """As `symmetric` for few codes: at most five rounds in which each code in turn moves to where the others want it."""
    most = extreme(x.movedim(0, -1)).squeeze(-1)
    w = x * x
    codes = nearest(over(-top, most) * x).clamp(-top, top - 1)
    lx, l2 = sum_left(w * x * codes), sum_left(w * codes * codes)
    codes = list(codes)
    for _ in range(5):
        for i, (v, weight) in enumerate(zip(x, w)):
            q = codes[i]
            others_lx, others_l2 = lx - weight * v * q, l2 - weight * q * q
            wanted = nearest(v * others_l2 / others_lx).clamp(-top, top - 1)
            moved_lx, moved_l2 = others_lx + weight * v * wanted, others_l2 + weight * wanted * wanted
            better = (others_lx > 0) & (wanted != q) & (moved_l2 > 0) & (moved_lx * moved_lx * l2 > lx * lx * moved_l2)
            codes[i] = torch.where(better, wanted, q)
            lx, l2 = torch.where(better, moved_lx, lx), torch.where(better, moved_l2, l2)
    nothing = most.abs() < ZERO_BELOW
    scale = torch.where(~nothing & (l2 > 0), lx / l2, 0.0)
    return scale, torch.where(nothing, float(-top), torch.stack(codes))


def q3_k(x) -> Rounded:
    g = groups(x, 16)
    scale, codes = by_descent(g, 4)
    largest = extreme(scale)
    iscale = -32 / largest
    nothing = largest == 0
    s = torch.where(nothing, -32.0, nearest(iscale * scale).clamp(-32, 31))
    return final(x, g, torch.where(nothing, 0.0, half(1 / iscale)), s, codes, 4)
