"""The roundings by name.

    q8_0 q5_0 q5_1 q4_0 q4_1 iq4_nl mxfp4                       blocks of 32 (blocks.py)
    q2_k q3_k q4_k q5_k q6_k                                    blocks of 256 (kquants.py)
    int4 int3 int2, uint4 uint3 uint2, and with :GROUP          that many bits in groups of 32, or of GROUP

`intN` is q4_0's rule with N bits (a float16 scale, the extreme number at the end of the range), `uintN` q4_1's (a float16
scale and minimum). No file type has 2 or 3 bits in groups of 32; store.py puts such numbers into q4_0 or q4_1 as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch

from blocks import Rounded, iq4_nl, mxfp4, q8_0, ranged, signed
from kquants import q2_k, q3_k, q4_k, q5_k, q6_k

# Numbers a block, bits a number with all scales, the rounding of one block.
FORMATS: dict[str, tuple[int, float, Callable[[torch.Tensor], Rounded]]] = {
    "q8_0": (32, 8.5, q8_0),
    "q6_k": (256, 6.5625, q6_k),
    "q5_k": (256, 5.5, q5_k),
    "q5_1": (32, 6, partial(ranged, bits=5)),
    "q5_0": (32, 5.5, partial(signed, bits=5)),
    "q4_k": (256, 4.5, q4_k),
    "q4_1": (32, 5, partial(ranged, bits=4)),
    "q4_0": (32, 4.5, partial(signed, bits=4)),
    "iq4_nl": (32, 4.5, iq4_nl),
    "mxfp4": (32, 4.25, mxfp4),
    "q3_k": (256, 3.4375, q3_k),
    "q2_k": (256, 2.625, q2_k),
}
UNIFORM = re.compile(r"(u?int|lsq)([2-8])(?::([1-9][0-9]*))?")
GROUP = 32


def uniform(name: str) -> tuple[str, int, int] | None:
    """Kind (int, uint, lsq), bits and group of a name such as uint2:64; None for any other."""
    found = UNIFORM.fullmatch(name)
    return found and (found[1], int(found[2]), int(found[3] or GROUP))


def block(name: str) -> tuple[int, float, Callable[[torch.Tensor], Rounded]]:
    """Numbers a block, bits a number, the rounding of one block."""
    if name in FORMATS:
        return FORMATS[name]
    kind, bits, group = uniform(name) or (None, 0, 0)
    if kind == "int":
        return group, bits + 16 / group, partial(signed, bits=bits)
    if kind == "uint":
        return group, bits + 32 / group, partial(ranged, bits=bits)
    raise ValueError(f"no format {name!r}; known are {', '.join(FORMATS)}, and intN or uintN with 2 to 8 bits, as in int2:64")


def round_rows(x: torch.Tensor, name: str) -> Rounded:
    """x [..., row] as `name` keeps it, and where it lay in the range."""
    size, _, rounded = block(name)
    if x.shape[-1] % size:
        raise ValueError(f"a row of {x.shape[-1]} is no multiple of the {size} numbers of a block of {name}")
    y, inside = rounded(x.detach().float().unflatten(-1, (-1, size)))
    return y.flatten(-2), inside.flatten(-2)


def bits_per_weight(name: str) -> float:
    """Scales included; `lsqN` has the float16 step of `intN`."""
    return block(name.replace("lsq", "int"))[1]
